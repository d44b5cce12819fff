"""One suite for every kernel, optimizer, dtype and shape of input; the judge is float64 and plain Python."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embstore.batch import FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import KernelError
from embstore.kernels import KERNELS, TableOptimizer, choose
from embstore.kernels.fbgemm import load
from embstore.schema import Feature


def _judge() -> ModuleType:
    spec = importlib.util.spec_from_file_location("judge", Path(__file__).with_name("judge.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["judge"] = module
    spec.loader.exec_module(module)
    return module


Judge = _judge().Judge
OPTIMIZERS = ("rowwise_adagrad", "adagrad", "adam", "sgd")
LR = {"rowwise_adagrad": 0.1, "adagrad": 0.1, "adam": 0.01, "sgd": 0.5}


def _has_fbgemm() -> bool:
    try:
        load()
    except KernelError:
        return False
    return True


HAS_FBGEMM = _has_fbgemm()


def _available(kernel: str, optimizer: str, dtype: torch.dtype = torch.float32) -> None:
    if kernel == "fbgemm":
        if not HAS_FBGEMM:
            pytest.skip("fbgemm-gpu is not installed for this torch")
        if optimizer == "adam" or dtype == torch.bfloat16:
            pytest.skip("FBGEMM has no Adam and no bfloat16 on CPU")


FEATURES = [
    Feature(name="user", lookups=2),
    Feature(name="tags", lookups=2),
    Feature(name="genres", pooling="mean"),
    Feature(name="hour", exact=True, lookups=2),
    Feature(name="colours", exact=True, pooling="mean"),
]
EXACT = {"hour": [3, 2**63 + 5, 7], "colours": [1, 2**64 - 1]}
DIM = 4


def _tokens(batch: dict[str, list[list[int]]]) -> FeatureTokens:
    columns: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
    rows = 0
    for name, lists in batch.items():
        rows = len(lists)
        flat = np.array([token for one in lists for token in one], dtype=np.uint64).view(np.int64)
        offsets = None
        if name in ("tags", "genres", "colours"):
            offsets = torch.tensor(np.cumsum([0, *map(len, lists)]), dtype=torch.int64)
        columns[name] = torch.from_numpy(flat), offsets
    return FeatureTokens.concatenate(columns, rows)


def _table(
    kernel: str, optimizer: TableOptimizer, dtype: torch.dtype = torch.float32, num_tables: int = 2
) -> UnifiedEmbedding:
    exact = {name: torch.from_numpy(np.array(tokens, dtype=np.uint64).view(np.int64)) for name, tokens in EXACT.items()}
    return UnifiedEmbedding(
        FEATURES,
        30,
        DIM,
        num_tables=num_tables,
        exact_tokens=exact,
        optimizer=optimizer,
        dtype=dtype,
        init_std=1.0,
        kernel=kernel,
        seed=11,
    )


def _judged(table: UnifiedEmbedding) -> Judge:
    return Judge(
        features=list(table.features),
        num_rows=table.hashed_rows,
        num_tables=table.num_tables,
        seed=table.seed,
        exact=EXACT,
        optimizer=table.optimizer,
        weight=table.weight.float().numpy().copy(),
    )


token = st.one_of(st.integers(0, 8), st.integers(0, 2**64 - 1), st.sampled_from(EXACT["hour"] + EXACT["colours"]))


@st.composite
def batches(draw: st.DrawFn, rows: int | None = None) -> dict[str, list[list[int]]]:
    rows = draw(st.integers(0, 6)) if rows is None else rows
    single = st.lists(token.map(lambda t: [t]), min_size=rows, max_size=rows)
    lists = st.lists(st.lists(token, max_size=5), min_size=rows, max_size=rows)
    kinds = {"user": single, "tags": lists, "genres": lists, "hour": single, "colours": lists}
    return {name: draw(kind) for name, kind in kinds.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=15)
@given(steps=st.lists(batches(), min_size=1, max_size=3), seed=st.integers(0, 2**16), l2=st.sampled_from([0.0, 0.3]))
def test_training_follows_the_judge(kernel: str, optimizer: str, steps: list, seed: int, l2: float) -> None:
    _available(kernel, optimizer)
    table = _table(kernel, TableOptimizer(name=optimizer, learning_rate=LR[optimizer], eps=1e-3, l2=l2))
    judge = _judged(table)
    generator = torch.Generator().manual_seed(seed)
    for batch in steps:
        out_BW = table(_tokens(batch))
        expected = judge.forward(batch) if out_BW.shape[0] else np.zeros((0, table.width))
        np.testing.assert_allclose(out_BW.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
        grad_BW = torch.randn(out_BW.shape, generator=generator)
        out_BW.backward(grad_BW)
        judge.train(batch, grad_BW.numpy())
    table.eval()
    np.testing.assert_allclose(table.weight.numpy(), judge.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_tables_give_the_same_output(kernel: str, dtype: torch.dtype) -> None:
    _available(kernel, "sgd", dtype)
    table = _table(kernel, TableOptimizer(name="sgd"), dtype).eval()
    batch = {
        "user": [[1], [2]],
        "tags": [[3, 4, 4], []],
        "genres": [[5, 6], [7]],
        "hour": [[3], [9]],
        "colours": [[], [1, 2]],
    }
    out_BW = table(_tokens(batch))
    assert out_BW.dtype == torch.float32
    np.testing.assert_allclose(out_BW.numpy(), _judged(table).forward(batch), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=25)
@given(batch=batches(rows=5))
def test_a_batch_gives_what_its_rows_give_alone(kernel: str, batch: dict) -> None:
    _available(kernel, "sgd")
    table = _table(kernel, TableOptimizer(name="sgd")).eval()
    together = table(_tokens(batch))
    alone = torch.cat([table(_tokens({name: column[i : i + 1] for name, column in batch.items()})) for i in range(5)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_hit_by_several_features_is_updated_once(kernel: str, optimizer: str) -> None:
    """One hashed row in all: every lookup of every feature hits it."""
    _available(kernel, optimizer)
    features = [Feature(name="a", lookups=2), Feature(name="b")]
    table = UnifiedEmbedding(features, 1, 4, optimizer=TableOptimizer(name=optimizer, learning_rate=0.1), kernel=kernel)
    before = float(table.weight[0, 0])
    tokens = torch.arange(8)
    out_BW = table(FeatureTokens.concatenate({"a": (tokens[:4], None), "b": (tokens[4:], None)}, 4))
    out_BW.backward(torch.full((4, 12), 0.5))
    total = 12 * 0.5  # one gradient: the sum over 4 rows x 3 lookups
    step = {"sgd": 0.1 * total, "adagrad": 0.1, "rowwise_adagrad": 0.1, "adam": 0.1}[optimizer]
    assert float(table.weight[0, 0]) == pytest.approx(before - step, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_steps_add_up_in_narrow_tables(dtype: torch.dtype) -> None:
    """Steps of a thirtieth of the spacing at 1.0 would all be lost to rounding to nearest; auto must not lose them."""
    spacing = torch.finfo(dtype).eps
    optimizer = TableOptimizer(name="sgd", learning_rate=1.0)
    table = UnifiedEmbedding([Feature(name="a")], 1, 256, optimizer=optimizer, dtype=dtype)
    table.weight.fill_(1.0)
    for _ in range(300):
        table(FeatureTokens.concatenate({"a": (torch.tensor([1]), None)}, 1)).backward(
            torch.full((1, 256), -spacing / 30)
        )
    assert float(table.weight.float().mean()) == pytest.approx(1 + 10 * spacing, abs=0.6 * spacing)


def test_kernels_agree_on_a_larger_table() -> None:
    _available("fbgemm", "rowwise_adagrad")
    features = [Feature(name=f"f{i}", lookups=2) for i in range(5)]
    tables = [
        UnifiedEmbedding(features, 1000, 16, optimizer=TableOptimizer(learning_rate=0.1), kernel=kernel)
        for kernel in KERNELS
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        columns = {f.name: (torch.randint(0, 500, (256,), generator=generator), None) for f in features}
        tokens = FeatureTokens.concatenate(columns, 256)
        grad_BW = torch.randn(256, 160, generator=generator)
        for table in tables:
            table(tokens).backward(grad_BW)
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tables[0].state_sum, tables[1].state_sum, rtol=1e-4, atol=1e-5)


def test_auto_says_what_it_took_and_why() -> None:
    kernel, reason = choose(
        "auto", optimizer=TableOptimizer(name="adam"), dtype=torch.float32, device=torch.device("cpu"), dim=4
    )
    assert kernel.name == "reference"
    assert "fbgemm" in reason
    if HAS_FBGEMM:
        assert "adam" in reason
        kernel, reason = choose(
            "auto", optimizer=TableOptimizer(), dtype=torch.float32, device=torch.device("cpu"), dim=4
        )
        assert kernel.name == "fbgemm"


def test_fbgemm_asked_for_what_it_lacks_is_refused() -> None:
    _available("fbgemm", "sgd")
    with pytest.raises(KernelError, match=r"no adam.*reference"):
        _table("fbgemm", TableOptimizer(name="adam"))
    with pytest.raises(KernelError, match="multiple of 4"):
        UnifiedEmbedding([Feature(name="a")], 10, 6, kernel="fbgemm")
    with pytest.raises(KernelError, match="bfloat16"):
        _table("fbgemm", TableOptimizer(name="sgd"), torch.bfloat16)


@pytest.mark.parametrize("kernel", KERNELS)
def test_inference_mode_reads_and_leaves_training_able(kernel: str) -> None:
    _available(kernel, "rowwise_adagrad")
    table = UnifiedEmbedding([Feature(name="a")], 50, 4, kernel=kernel).eval()
    tokens = FeatureTokens.concatenate({"a": (torch.arange(20), None)}, 20)
    with torch.inference_mode():
        inside = table(tokens)
    assert torch.equal(inside, table(tokens))
    before = table.weight.clone()
    table.train()(tokens).sum().backward()
    assert not torch.equal(table.weight, before)


@pytest.mark.parametrize("kernel", KERNELS)
def test_whatever_reads_a_table_in_training_sees_the_penalty_paid(kernel: str) -> None:
    """Rows untouched for a while are stale in memory; no way of reading may show it."""
    _available(kernel, "rowwise_adagrad")
    features = [Feature(name="a")]
    optimizer = TableOptimizer(learning_rate=0.1, l2=0.5, eps=1e-2)
    table = UnifiedEmbedding(features, 40, 4, optimizer=optimizer, init_std=1.0, kernel=kernel)
    everything = FeatureTokens.concatenate({"a": (torch.arange(100), None)}, 100)
    for start in (0, 50, 0, 0):
        table(everything.slice(start, start + 10)).sum().backward()
    settled = deepcopy(table).eval()
    assert not torch.equal(table.weight, settled.weight)  # there is something to pay
    with torch.no_grad():
        assert torch.equal(deepcopy(table)(everything), settled(everything))
    assert torch.equal(deepcopy(table).lookup("a", range(100)), settled.lookup("a", range(100)))
    assert torch.equal(deepcopy(table).read_rows(3, 17), settled.weight[3:17])
    loaded = UnifiedEmbedding(features, 40, 4, optimizer=optimizer, kernel=kernel).eval()
    loaded.load_state_dict(table.state_dict())
    assert torch.equal(loaded.weight, settled.weight)


def test_a_forward_without_backward_is_no_step() -> None:
    table = UnifiedEmbedding([Feature(name="a")], 40, 4, optimizer=TableOptimizer(l2=0.5))
    tokens = FeatureTokens.concatenate({"a": (torch.arange(10), None)}, 10)
    before = table.weight.clone()
    for _ in range(3):
        table(tokens)
    assert torch.equal(table.eval().weight, before)


def test_settling_what_owes_nothing_writes_nothing() -> None:
    """A published table is mapped from its files; writing to it would copy it into memory."""
    table = UnifiedEmbedding([Feature(name="a")], 40, 4, optimizer=TableOptimizer(l2=0.5))
    version = table.weight._version
    table.eval().train().eval()
    assert table.weight._version == version
