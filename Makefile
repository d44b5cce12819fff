# Everything lives in .venv; nothing else on the machine is touched.
#   make demo                  set up, then the whole way on generated logs
#   make test                  set up, then the tests (make test-all adds the slow ones)
#   make demo FLAVOR=cuda      the same with the CUDA builds of torch and fbgemm

PYTHON ?= python3.11
FLAVOR ?= cpu
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready-$(FLAVOR)
PYTEST := $(BIN)/python -m pytest

TORCH    := torch==2.13.0
TORCHREC := torchrec==1.8.0

.PHONY: setup demo test test-all check format bench clean

setup: $(STAMP)

# torch first: the extras must not choose another. torchrec --no-deps: its metadata asks for the CUDA fbgemm.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[fbgemm-$(FLAVOR),torchrec,ray,serve,graphs,tensorboard,dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(TORCHREC)
	touch $@

demo: setup
	$(BIN)/embstore demo

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Every benchmark, its JSON kept in benchmarks/results/.
bench: setup
	for script in benchmarks/[a-z]*.py; do \
	  name=$$(basename $$script .py); \
	  case $$name in report|workloads|watching|wide_log|judging|ranks|gpu|gpu_training|gpu_node2vec|retraining) continue;; esac; \
	  $(BIN)/python -m benchmarks.$$name --out benchmarks/results/$$name.json || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
