"""How fast a batch is looked up: embstore from raw tokens, hashing included; its peers from rows made beforehand.

One table of 1,000,000 rows of 16 float32 that 26 features share, 4096 rows a batch, no gradient. All contenders read
the same rows, take turns, and each call takes the next of several batches. FBGEMM is timed with int64 and int32 rows,
and its inference module too; a claim takes the faster. TBE's rows lie in memory that it allocates, as for its users;
``_vs_tbe_same_memory`` gives it embstore's, on huge pages. ``share_of_gather_limit`` is the time of the fastest plain
gather of those rows (torch, compiled with and without prefetching, or ``nn.EmbeddingBag`` if that is faster still) over
embstore's: 1 would say that hashing and layout cost nothing.

The full run adds embstore's other kernels, other dims and lists of 1 to 50 values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import gather
from benchmarks.peers.bags import bags
from benchmarks.peers.collection import collection, jagged
from benchmarks.peers.tbe import narrow, tbe, tbe_inference
from benchmarks.report import Result, claim, main
from benchmarks.workloads import (
    DIM,
    DISTRIBUTIONS,
    OWN_KERNEL,
    Case,
    cpu_kernels,
    extra_bytes,
    fastest,
    flagged,
    make_cases,
    make_table,
    milliseconds,
    prepared,
    report_settings,
    rotate,
    undisturbed,
)
from embstore.embeddings.unified import UnifiedEmbedding

DIMS = (8, 32, 64, 128)
LIMIT = "gather with precomputed rows"
TBE, TBE_INFERENCE, BAG, TORCHREC = "FBGEMM TBE", "FBGEMM inference TBE", "nn.EmbeddingBag", "torchrec EBC"
SAME_MEMORY = "FBGEMM TBE on the same memory"


def measure(quick: bool) -> Result:
    """Uniform and Zipf at dim 16; in the full run also ``DIMS`` and lists."""
    claims: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    for distribution in DISTRIBUTIONS:
        _measure(distribution, distribution, claims, samples, quick=quick, seconds=15 if quick else 40)
    if not quick:
        for dim in DIMS:
            for distribution in DISTRIBUTIONS:
                _measure(f"{distribution}_dim_{dim}", distribution, claims, samples, dim=dim, quick=quick, seconds=15)
        for distribution in DISTRIBUTIONS:
            _measure(
                f"{distribution}_lists", distribution, claims, samples, lists=True, quick=quick, seconds=30, repeats=20
            )
    return Result(
        claims=claims,
        samples=samples,
        settings=report_settings(),
        packages=("fbgemm-gpu-cpu", "torchrec"),
    )


def _measure(
    label: str,
    distribution: str,
    claims: dict[str, Any],
    samples: dict[str, Any],
    *,
    quick: bool,
    seconds: float,
    repeats: int = 100,
    dim: int = DIM,
    lists: bool = False,
) -> None:
    """One setting: its samples and claims are added to those of the others."""
    table = make_table(dim=dim)
    kernels = [OWN_KERNEL] if quick else cpu_kernels(dim)
    cases = make_cases(table, distribution, 4 if lists else 16, np.random.default_rng(1), lists=lists)
    ours = _ours(table, kernels)
    contenders = {**{name: _look_up(same) for name, same in ours.items()}, **_peers(table, cases)}
    with torch.no_grad():
        _check(contenders, cases[0])
        extra = {
            name: extra_bytes(lambda run=run: run(cases[0]), before=lambda name=name: _let_go(ours.get(name)))
            for name, run in contenders.items()
        }
        limits = {} if lists else _limits(table, cases[0])
        taken, notes = undisturbed(rotate({**contenders, **limits}, cases), repeats=repeats, seconds=seconds)
    samples[label] = {"seconds": taken, "extra_bytes": extra, **notes}
    times = milliseconds(taken, notes["statistic"])
    claims.update(flagged(_time_claims(label, times), notes))
    claims.update(_memory_claim(label, extra, fastest(times, f"{TBE},")))


def _ours(table: UnifiedEmbedding, kernels: Sequence[str]) -> dict[str, UnifiedEmbedding]:
    """The rows of ``table`` under each kernel."""
    return {
        f"embstore {kernel}": UnifiedEmbedding(
            table.features, table.hashed_rows, table.dim, kernel=kernel, rows=table.weight
        ).eval()
        for kernel in kernels
    }


def _look_up(table: UnifiedEmbedding) -> Callable[[Case], Tensor]:
    return lambda case: table(case.tokens)


def _let_go(table: UnifiedEmbedding | None) -> None:
    """Of the memory of earlier outputs that its kernel holds to use again."""
    if table is not None:
        table.kernel = type(table.kernel)()


def _peers(table: UnifiedEmbedding, cases: list[Case]) -> dict[str, Callable[[Case], Tensor]]:
    narrowed, kjts = prepared(cases, narrow), prepared(cases, jagged)
    training, inference, ebc = tbe(table), tbe_inference(table), collection(table)
    same_memory = tbe(table, own_memory=False)
    return {
        f"{TBE}, int64": lambda case: training(case.rows_T, case.offsets),
        f"{TBE}, int32": lambda case: training(*narrowed[id(case)]),
        SAME_MEMORY: lambda case: same_memory(*narrowed[id(case)]),
        f"{TBE_INFERENCE}, int64": lambda case: inference(case.rows_T, case.offsets),
        f"{TBE_INFERENCE}, int32": lambda case: inference(*narrowed[id(case)]),
        BAG: lambda case: bags(table.weight, case),
        TORCHREC: lambda case: ebc(kjts[id(case)]).values(),
    }


def _limits(table: UnifiedEmbedding, case: Case) -> dict[str, Callable[[Case], object]]:
    found = {}
    for name, run in gather.contenders(table.dim).items():
        # Each writes to memory of its own, as each contender does: that of a gather just before would be in the cache.
        out_TD = torch.zeros(len(case.rows_T), table.dim)
        run(table.weight, case.bag_rows_T, out_TD)
        torch.testing.assert_close(out_TD, table.weight[case.bag_rows_T])
        found[name] = lambda case, run=run, out_TD=out_TD: run(table.weight, case.bag_rows_T, out_TD)
    return found


def _check(contenders: dict[str, Callable[[Case], Tensor]], case: Case) -> None:
    """All give the same numbers, or nothing is compared."""
    outputs = {name: run(case) for name, run in contenders.items()}
    expected = outputs[BAG]
    for name, out_BW in outputs.items():
        torch.testing.assert_close(out_BW, expected, msg=lambda text, name=name: f"{name}: {text}")


def _time_claims(label: str, times: dict[str, float]) -> dict[str, Any]:
    ours = f"embstore {OWN_KERNEL}"
    peers = {
        "tbe": f"{TBE},",
        "tbe_same_memory": SAME_MEMORY,
        "tbe_inference": f"{TBE_INFERENCE},",
        "embeddingbag": BAG,
        "torchrec": TORCHREC,
    }
    claims = {}
    for suffix, prefix in peers.items():
        peer = fastest(times, prefix)
        named = TBE if suffix == "tbe" else peer
        claims[f"forward_{label}_vs_{suffix}"] = claim(times[ours], "ms", named, times[peer], higher_is_better=False)
    limits = {name: ms for name, ms in times.items() if name.startswith("gather:") or name == BAG}
    if len(limits) > 1:
        share = min(limits.values()) / times[ours]
        claims[f"share_of_gather_limit_{label}"] = claim(share, "share", LIMIT, 1.0)
    return claims


def _memory_claim(label: str, extra: dict[str, int | None], peer: str) -> dict[str, Any]:
    """What a call needs beyond the table, its result included (``extra_bytes``); none where it can't be measured."""
    ours, theirs = extra[f"embstore {OWN_KERNEL}"], extra[peer]
    if ours is None or theirs is None:
        return {}
    name = f"forward_memory_{label}_vs_tbe"
    return {name: claim(ours / 2**20, "MiB", TBE, theirs / 2**20, higher_is_better=False)}


if __name__ == "__main__":
    main("lookup", measure)
