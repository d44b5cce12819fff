"""A kernel against the float64 judge of ``tests/contract``, on random batches, on any device, without pytest."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.kernels import TableOptimizer

JUDGE = Path(__file__).parents[1] / "tests" / "contract" / "judge.py"
DIMS = (4, 16, 20, 64)
STEPS = 3


def _load() -> ModuleType:
    """The judge's module: tests are no package."""
    spec = importlib.util.spec_from_file_location("embstore_judge", JUDGE)
    if spec is None or spec.loader is None:
        raise ImportError(f"no judge at {JUDGE}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["embstore_judge"] = module
    spec.loader.exec_module(module)
    return module


judge = _load()


def compare(
    kernel: str, device: str, *, seconds: float, generator: np.random.Generator, rounds: int = 20, batch: int = 24
) -> tuple[list[str], list[str]]:
    """Train random tables for ``STEPS`` steps beside the judge: descriptions of the comparisons made, and what failed.

    Each round takes every optimizer and dtype once, with the next dim, with or without the penalty.
    """
    done, failed = [], []
    end = time.perf_counter() + seconds
    for number, name, dtype in itertools.product(range(rounds), judge.RATES, judge.DTYPES):
        if time.perf_counter() > end:
            break
        dim, l2 = DIMS[number % len(DIMS)], 0.3 * (number % 2)
        label = f"{name} {str(dtype).removeprefix('torch.')} dim {dim} l2 {l2} round {number}"
        optimizer = TableOptimizer(name=name, learning_rate=judge.RATES[name], eps=1e-3, l2=l2)
        try:
            _follow(_table(kernel, optimizer, dtype, dim, device), generator, batch)
        except Exception as error:  # any error of a kernel is a finding
            failed.append(f"{label}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        done.append(label)
    return done, failed


def _follow(table: UnifiedEmbedding, generator: np.random.Generator, rows: int) -> None:
    """Steps of the table and of the judge, compared after each.

    Narrow rows are rounded up or down at random: the judge starts each step from the table's own rows, and the two must
    agree to one spacing (two with the penalty, which rounds once more).
    """
    judged = _judge(table)
    spacing = 0.0 if table.dtype == torch.float32 else torch.finfo(table.dtype).eps * (2 if table.optimizer.l2 else 1)
    for _ in range(STEPS):
        drawn = _draw(generator, int(generator.integers(1, rows + 1)))
        out_BW = table.train()(judge.feature_tokens(drawn).to(table.weight.device))
        _close(out_BW, judged.forward(drawn), 0.0 if table.dtype == torch.float32 else 1e-5)
        grad_BW = generator.standard_normal(out_BW.shape).astype(np.float32)
        out_BW.backward(torch.from_numpy(grad_BW).to(out_BW.device))
        judged.train(drawn, grad_BW)
        table.eval()
        _close(table.weight, judged.weight, spacing)
        for moment, values in table.table().state.items():
            expected = judged.state[moment]
            _close(values, expected[:, 0] if values.dim() == 1 else expected, 0.0)
        if spacing:
            judged.weight = table.weight.double().cpu().numpy()
    with torch.no_grad():
        _close(table(judge.feature_tokens(drawn).to(table.weight.device)), judged.forward(drawn), spacing)


def _close(found: torch.Tensor, expected: np.ndarray, spacing: float) -> None:
    np.testing.assert_allclose(found.detach().double().cpu().numpy(), expected, rtol=1e-4 + spacing, atol=1e-5)


def _draw(generator: np.random.Generator, rows: int) -> dict[str, list[list[int]]]:
    """Few values and any values, known and unknown; lists of 0 to 5."""
    special = [*range(9), *judge.EXACT["hour"], *judge.EXACT["colours"]]

    def token() -> int:
        if generator.random() < 0.7:
            return special[generator.integers(len(special))]
        return int(generator.integers(0, 2**64, dtype=np.uint64))

    lengths = {name: generator.integers(0, 6, rows) if name in judge.LISTS else np.ones(rows, int) for name in _names()}
    return {name: [[token() for _ in range(n)] for n in lengths[name]] for name in _names()}


def _names() -> list[str]:
    return [feature.name for feature in judge.FEATURES]


def _table(kernel: str, optimizer: TableOptimizer, dtype: torch.dtype, dim: int, device: str) -> UnifiedEmbedding:
    settings: dict[str, Any] = {"num_tables": 2, "exact_tokens": judge.exact_tokens(), "init_std": 1.0, "seed": 11}
    return UnifiedEmbedding(
        judge.FEATURES, 30, dim, optimizer=optimizer, dtype=dtype, kernel=kernel, device=device, **settings
    )


def _judge(table: UnifiedEmbedding) -> Any:
    return judge.Judge(
        features=list(table.features),
        num_rows=table.hashed_rows,
        num_tables=table.num_tables,
        seed=table.seed,
        exact=judge.EXACT,
        optimizer=table.optimizer,
        weight=table.weight.double().cpu().numpy(),
    )
