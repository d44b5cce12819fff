"""How long a training step of the table takes: forward, backward, and the optimizer's update of the rows hit.

One table of 1,000,000 rows of 16 float32 that 26 features share, 4096 rows a batch, row-wise Adagrad, a gradient given
to ``out.backward``: no network, the table is what is timed. embstore starts from raw tokens, hashing included, its
peers from rows made beforehand; contenders take turns, and each call takes the next of several batches. For
``nn.EmbeddingBag`` with sparse gradients there is no row-wise Adagrad: the claim takes ``torch.optim.Adagrad``, the
nearest; SparseAdam and SGD are in the samples.

``step_large_table_vs_dense_adam`` is a whole step of a small network (two hidden layers, cross entropy) on a table of
5,000,000 rows: embstore's table with its default optimizer against ``nn.Embedding`` with a dense gradient and
``torch.optim.Adam(parameters)``, which is what FuxiCTR and DeepCTR run. ``_vs_dense_fused_adam`` gives the peer torch's
fused Adam, which they don't use. The network and its optimizer (fused Adam) are the same for all.

The full run adds embstore's other kernels, other dims, lists, and embstore's other optimizers and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.bags import bag_parameter, bags
from benchmarks.peers.collection import collection, jagged
from benchmarks.peers.tbe import narrow, rows, tbe
from benchmarks.report import Result, claim, main
from benchmarks.workloads import (
    BATCH,
    DIM,
    FEATURES,
    OWN_KERNEL,
    Case,
    cpu_kernels,
    fastest,
    flagged,
    make_cases,
    make_gradient,
    make_table,
    milliseconds,
    prepared,
    report_settings,
    rotate,
    undisturbed,
)
from embstore.kernels import TableOptimizer
from embstore.models import build

LARGE_ROWS, HIDDEN = 5_000_000, (128, 64)
DIMS = (8, 32, 64, 128)
TBE, BAG, TORCHREC = "FBGEMM TBE", "nn.EmbeddingBag sparse", "torchrec EBC fused"
DENSE, DENSE_FUSED = "nn.Embedding + dense Adam", "nn.Embedding + dense fused Adam"
SAMPLED = [(name, torch.float32) for name in ("adagrad", "adam", "sgd")] + [
    ("rowwise_adagrad", dtype) for dtype in (torch.float16, torch.bfloat16)
]


def measure(quick: bool) -> Result:
    """The table alone, uniform and Zipf; a whole step on a large table; in the full run the other settings."""
    claims: dict[str, Any] = {}
    samples: dict[str, Any] = {}

    def add(label: str, distribution: str, **settings: Any) -> None:
        times, samples[label or "uniform"] = _step(distribution, quick=quick, **settings)
        claims.update(flagged(_claims(label, times), samples[label or "uniform"]))

    add("", "uniform", seconds=9 if quick else 40)
    add("zipf", "zipf", seconds=9 if quick else 40)
    times, samples["large_table"] = _large_table(seconds=9 if quick else 40)
    ours = f"embstore {OWN_KERNEL}"
    large = {
        "step_large_table_vs_dense_adam": claim(times[ours], "ms", DENSE, times[DENSE], higher_is_better=False),
        "step_large_table_vs_dense_fused_adam": claim(
            times[ours], "ms", DENSE_FUSED, times[DENSE_FUSED], higher_is_better=False
        ),
    }
    claims.update(flagged(large, samples["large_table"]))
    if not quick:
        for dim in DIMS:
            add(f"dim_{dim}", "uniform", dim=dim, seconds=15)
        for distribution in ("uniform", "zipf"):
            add(f"{distribution}_lists", distribution, lists=True, seconds=30)
        samples["optimizers_and_dtypes"] = _others(seconds=25)
    return Result(
        claims=claims,
        samples=samples,
        settings={**report_settings(), "large_rows": LARGE_ROWS, "hidden": HIDDEN},
        packages=("fbgemm-gpu-cpu", "torchrec"),
    )


def _step(
    distribution: str, *, quick: bool, seconds: float, dim: int = DIM, lists: bool = False, repeats: int = 60
) -> tuple[dict[str, float], dict[str, Any]]:
    """Milliseconds by contender, and the samples."""
    cases = make_cases(make_table(dim=dim), distribution, 4 if lists else 16, np.random.default_rng(1), lists=lists)
    grad_BW = make_gradient(BATCH, FEATURES * dim)
    kernels = [OWN_KERNEL] if quick else cpu_kernels(dim)
    ours = {f"embstore {kernel}": _ours(kernel, grad_BW, dim=dim) for kernel in kernels}
    contenders = {**ours, **_peers(cases, grad_BW, dim, quick)}
    taken, notes = undisturbed(rotate(contenders, cases), repeats=repeats, seconds=seconds)
    return milliseconds(taken, notes["statistic"]), {"seconds": taken, **notes}


def _ours(kernel: str, grad_BW: torch.Tensor, **settings: Any) -> Callable[[Case], None]:
    table = make_table(kernel, **settings)
    return lambda case: table(case.tokens).backward(grad_BW)


def _peers(cases: list[Case], grad_BW: torch.Tensor, dim: int, quick: bool) -> dict[str, Callable[[Case], None]]:
    """Each on a table of its own; a first step of the row-wise ones must agree."""
    narrowed = prepared(cases, narrow)
    wide_tbe, narrow_tbe = (tbe(make_table("reference", dim=dim)) for _ in range(2))
    changed = [rows(wide_tbe, dim), rows(narrow_tbe, dim)]
    peers: dict[str, Callable[[Case], None]] = {
        f"{TBE}, int64": lambda case: wide_tbe(case.rows_T, case.offsets).backward(grad_BW),
        f"{TBE}, int32": lambda case: narrow_tbe(*narrowed[id(case)]).backward(grad_BW),
    }
    if not quick:  # half a second a step
        kjts, fused_table = prepared(cases, jagged), make_table("reference", dim=dim)
        fused = collection(fused_table, fused=True)
        changed.append(fused_table.weight)
        peers[TORCHREC] = lambda case: fused(kjts[id(case)]).values().backward(grad_BW)
    _check(changed, list(peers.values()), cases[0], grad_BW)
    for name, optimizer in {
        "Adagrad": lambda weight: torch.optim.Adagrad([weight], lr=0.02, eps=1e-8),
        "SparseAdam": lambda weight: torch.optim.SparseAdam([weight], lr=1e-3),
        "SGD": lambda weight: torch.optim.SGD([weight], lr=0.02),
    }.items():
        peers[f"{BAG} + {name}"] = _bag_step(dim, optimizer, grad_BW)
    return peers


def _bag_step(dim: int, make: Callable[[nn.Parameter], torch.optim.Optimizer], grad_BW: torch.Tensor) -> Any:
    weight = bag_parameter(make_table("reference", dim=dim))
    optimizer = make(weight)

    def step(case: Case) -> None:
        optimizer.zero_grad(set_to_none=True)
        bags(weight, case, sparse=True).backward(grad_BW)
        optimizer.step()

    torch.sparse.check_sparse_tensor_invariants.disable()  # the default, said so; else torch warns
    return step


def _check(changed: list[torch.Tensor], steps: list[Callable[[Case], None]], case: Case, grad_BW: torch.Tensor) -> None:
    """One step of each, and of embstore: all must lead to the same table."""
    expected = make_table("reference", dim=changed[0].shape[1])
    expected(case.tokens).backward(grad_BW)
    for weight_ND, step in zip(changed, steps, strict=True):
        step(case)
        torch.testing.assert_close(weight_ND, expected.weight, rtol=1e-3, atol=1e-5)


def _claims(label: str, times: dict[str, float]) -> dict[str, Any]:
    ours = f"embstore {OWN_KERNEL}"
    prefixes = {"tbe": f"{TBE},", "embeddingbag": f"{BAG} + Adagrad", "torchrec": TORCHREC}
    claims = {}
    for suffix, prefix in prefixes.items():
        if not any(name.startswith(prefix) for name in times):
            continue
        peer = fastest(times, prefix)
        name = "_".join(filter(None, ["step", label, "vs", suffix]))
        named = TBE if suffix == "tbe" else peer
        claims[name] = claim(times[ours], "ms", named, times[peer], higher_is_better=False)
    return claims


def _large_table(*, seconds: float) -> tuple[dict[str, float], dict[str, Any]]:
    """A whole step of the same network on embstore's table and on a densely trained one."""
    table = make_table(OWN_KERNEL, rows=LARGE_ROWS)
    cases = make_cases(table, "uniform", 16, np.random.default_rng(1))
    label_B = (torch.rand(BATCH, generator=torch.Generator().manual_seed(1)) < 0.25).float()
    dense_BD = torch.zeros(BATCH, 0)

    def step(lookup: Callable[[Case], torch.Tensor], *more: torch.optim.Optimizer) -> Callable[[Case], None]:
        torch.manual_seed(1)  # the layers' first weights, the same for all; torch takes no generator there
        network = build("dnn", dense_width=0, widths=[DIM] * FEATURES, hidden=HIDDEN)
        optimizers = [torch.optim.Adam(network.parameters(), lr=1e-3, fused=True), *more]

        def run(case: Case) -> None:
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            logits_B = network(dense_BD, lookup(case))
            functional.binary_cross_entropy_with_logits(logits_B, label_B).backward()
            for optimizer in optimizers:
                optimizer.step()

        return run

    def dense_step(**settings: Any) -> Callable[[Case], None]:
        embedding = nn.Embedding.from_pretrained(table.weight.clone(), freeze=False)
        adam = torch.optim.Adam(embedding.parameters(), lr=1e-3, **settings)
        return step(lambda case: embedding(case.bag_rows_T).view(BATCH, -1), adam)

    contenders = {
        f"embstore {OWN_KERNEL}": step(lambda case: table(case.tokens)),
        DENSE: dense_step(),
        DENSE_FUSED: dense_step(fused=True),
    }
    taken, notes = undisturbed(rotate(contenders, cases), repeats=15, seconds=seconds)
    return milliseconds(taken, notes["statistic"]), {"seconds": taken, **notes}


def _others(*, seconds: float) -> dict[str, Any]:
    """embstore's other optimizers and dtypes, uniform."""
    grad_BW = make_gradient(BATCH, FEATURES * DIM)
    contenders = {}
    for name, dtype in SAMPLED:
        for kernel in dict.fromkeys((OWN_KERNEL, "reference")):
            label = f"embstore {kernel}, {name}, {str(dtype).removeprefix('torch.')}"
            contenders[label] = _ours(kernel, grad_BW, optimizer=TableOptimizer(name=name), dtype=dtype)
    cases = make_cases(make_table(), "uniform", 16, np.random.default_rng(1))
    taken, notes = undisturbed(rotate(contenders, cases), repeats=30, seconds=seconds)
    return {"seconds": taken, **notes}


if __name__ == "__main__":
    main("train_step", measure)
