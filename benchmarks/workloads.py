"""What the benchmarks of the table work on: tokens, tables, gradients, and the same rows spelled out for the peers.

    ids       uniform: each of VOCABULARY values alike        zipf: the k-th value with probability ~ k^-EXPONENT
    tokens    splitmix64(id), as int64 bits; 26 features x 4096 rows, or lists of 1 to 50
    case      one batch of them, with the table rows its tokens hash to, in the layouts the peers take:

        rows_T, offsets    feature by feature (TBE):     [ f0 b0 | f0 b1 | .. | f1 b0 | .. ]   F*B bags
        bag_rows_T         batch row by batch row:       [ f0 b0 | f1 b0 | .. | f0 b1 | .. ]   so that the bags' output
                                                                              [B*F, D] already lies as [B, F*D]

Shape suffixes: B rows of the batch, F features, T table rows of all lookups, D dim, W = F*D output width.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.report import interleave, median
from embstore import hashing
from embstore.batch import FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.kernels import KERNELS, Request, TableOptimizer
from embstore.schema import Feature

OWN_KERNEL = "cpu"  # the one that stands for embstore in the claims
FEATURES, BATCH, ROWS, DIM = 26, 4096, 1_000_000, 16
VOCABULARY, EXPONENT = 10_000_000, 1.05
LONGEST = 50  # values of a list; the shortest has 1
WAITING, FEWEST = 0.05, 5  # see undisturbed


@dataclass(frozen=True)
class Case:
    """One batch; all tensors int64 on the table's device."""

    tokens: FeatureTokens
    rows_T: Tensor
    offsets: Tensor
    bag_rows_T: Tensor
    bag_offsets: Tensor


def report_settings() -> dict[str, Any]:
    """The sizes and options that decide a result, for its report."""
    return {
        "rows": ROWS,
        "features": FEATURES,
        "batch": BATCH,
        "dim": DIM,
        "vocabulary": VOCABULARY,
        "zipf_exponent": EXPONENT,
        "list_lengths": [1, LONGEST],
        "kernel": OWN_KERNEL,
        "threads": torch.get_num_threads(),
    }


def uniform(count: int, generator: np.random.Generator, vocabulary: int = VOCABULARY) -> NDArray[np.int64]:
    """Ids of 0 to ``vocabulary - 1``, all alike."""
    return generator.integers(0, vocabulary, count)


def zipf(count: int, generator: np.random.Generator, vocabulary: int = VOCABULARY) -> NDArray[np.int64]:
    """Ids by inverse CDF: where uniform numbers fall among the cumulated weights (id + 1) ** -EXPONENT.

    Exact, and bounded by the vocabulary, which ``Generator.zipf`` isn't.
    """
    cdf = _zipf_cdf(vocabulary)
    return np.searchsorted(cdf, generator.random(count) * cdf[-1], side="right").clip(max=vocabulary - 1)


@cache
def _zipf_cdf(vocabulary: int) -> NDArray[np.float64]:
    return np.cumsum(np.arange(1, vocabulary + 1, dtype=np.float64) ** -EXPONENT)


DISTRIBUTIONS: dict[str, Callable[..., NDArray[np.int64]]] = {"uniform": uniform, "zipf": zipf}


def feature_list(count: int = FEATURES) -> list[Feature]:
    """``count`` features of one lookup; their lists are summed."""
    return [Feature(name=f"f{i}") for i in range(count)]


def draw_tokens(
    distribution: str,
    generator: np.random.Generator,
    *,
    lists: bool = False,
    features: int = FEATURES,
    batch: int = BATCH,
    vocabulary: int = VOCABULARY,
) -> FeatureTokens:
    """A batch: one value a row, or lists of 1 to ``LONGEST`` values, lengths uniform."""
    columns: dict[str, tuple[Tensor, Tensor | None]] = {}
    for feature in feature_list(features):
        offsets = None
        count = batch
        if lists:
            offsets = torch.zeros(batch + 1, dtype=torch.int64)
            torch.cumsum(torch.from_numpy(generator.integers(1, LONGEST + 1, batch)), 0, out=offsets[1:])
            count = int(offsets[-1])
        ids = DISTRIBUTIONS[distribution](count, generator, vocabulary)
        columns[feature.name] = torch.from_numpy(hashing.splitmix64(ids.view(np.uint64)).view(np.int64)), offsets
    return FeatureTokens.concatenate(columns, batch)


def make_table(
    kernel: str = "auto",
    *,
    rows: int = ROWS,
    dim: int = DIM,
    features: int = FEATURES,
    optimizer: TableOptimizer | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> UnifiedEmbedding:
    """A table for ``draw_tokens``; equal settings give equal first rows, whatever the kernel."""
    return UnifiedEmbedding(
        feature_list(features), rows, dim, optimizer=optimizer, dtype=dtype, kernel=kernel, device=device
    )


def make_cases(
    table: UnifiedEmbedding, distribution: str, count: int, generator: np.random.Generator, **settings: Any
) -> list[Case]:
    """Different batches of the same kind, with the rows of ``table``."""
    device = table.weight.device
    return [make_case(table, draw_tokens(distribution, generator, **settings).to(device)) for _ in range(count)]


def make_case(table: UnifiedEmbedding, tokens: FeatureTokens) -> Case:
    """A batch that lies on the table's device, with its rows."""
    request = Request(tokens, table.plan)
    ones = torch.ones(tokens.rows, dtype=torch.int64, device=tokens.values_N.device)
    lengths_FB = torch.stack([tokens.offsets[n].diff() if n in tokens.offsets else ones for n in tokens.names])
    offsets = _from_zero(lengths_FB.flatten())
    bag_lengths = lengths_FB.t().flatten()
    bag_offsets = _from_zero(bag_lengths)
    # Where each value of the bags in their new order lay in the old one.
    moved = offsets[:-1].view(lengths_FB.shape).t().flatten() - bag_offsets[:-1]
    source_T = torch.arange(len(request.rows_T), device=ones.device) + moved.repeat_interleave(bag_lengths)
    return Case(tokens, request.rows_T, offsets, request.rows_T[source_T], bag_offsets)


def _from_zero(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def prepared(cases: Sequence[Case], make: Callable[[Case], Any]) -> dict[int, Any]:
    """What a peer takes instead of a case, made beforehand, by the case's id."""
    return {id(case): make(case) for case in cases}


def make_gradient(batch: int, width: int, seed: int = 1, device: str = "cpu") -> Tensor:
    """Of the output, float32 ``[B, W]``: normal numbers as small as those of a mean loss, 1 / B."""
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed)).div_(batch).to(device)


def cpu_kernels(dim: int = DIM) -> list[str]:
    """Kernels that run on this machine's CPU with such rows."""
    found = []
    for name in KERNELS:
        if name == "gpu":
            continue
        try:
            make_table(name, rows=1, dim=dim, features=1)
        except Exception:  # whatever a kernel lacks, another has
            continue
        found.append(name)
    return found


def rotate(
    contenders: Mapping[str, Callable[[Case], object]], cases: Sequence[Case]
) -> dict[str, Callable[[], object]]:
    """Contenders for ``report.interleave``, each call on the next batch.

    One round of batches for all of them: no contender finds in the cache the rows its forerunner has just read.
    """
    turn = itertools.cycle(cases)

    def bound(run: Callable[[Case], object]) -> Callable[[], object]:
        return lambda: run(next(turn))

    return {name: bound(run) for name, run in contenders.items()}


def undisturbed(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """As ``report.interleave``, but a call whose threads had to wait for a core another process held doesn't count.

    One thread kept waiting makes a parallel loop ten times slower, whoever wrote it: on a shared machine that, not the
    work, would be what the median tells. Linux counts the waiting of each thread (``schedstat``); a call counts when
    its threads waited for at most ``WAITING`` of its time.

    Args:
        repeats: calls of each contender that must count.
        seconds: to give up after.

    Returns:
        seconds by contender, and notes: ``left_out`` calls of each, and the ``statistic`` for ``milliseconds``. That is
        the median; but when some contender has fewer than ``FEWEST`` undisturbed calls, all calls of all are returned,
        of which only the minimum means something. Then measure again when the machine is quiet.
    """
    kept: dict[str, list[float]] = {name: [] for name in contenders}
    left: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    interleave(contenders, repeats=0, warmup=1)
    end = time.perf_counter() + seconds
    turn = 0
    while min(map(len, kept.values())) < repeats and time.perf_counter() < end:
        first = turn % len(names)
        turn += 1
        for name in names[first:] + names[:first]:
            if turn > 1 and time.perf_counter() > end:
                break
            waited, start = _waited(), time.perf_counter()
            contenders[name]()
            taken = time.perf_counter() - start
            (kept if _waited() - waited <= WAITING * taken else left)[name].append(taken)
    counts = {name: len(calls) for name, calls in left.items()}
    if min(map(len, kept.values())) >= FEWEST:
        return kept, {"statistic": "median", "left_out": counts}
    return {name: kept[name] + left[name] for name in names}, {
        "statistic": "minimum",
        "left_out": {},
        "disturbed": counts,
    }


def flagged(claims: dict[str, dict[str, Any]], notes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The claims, each with ``disturbed: true`` where ``undisturbed`` didn't get what it needs: don't quote those."""
    if notes["statistic"] == "median":
        return claims
    print(f"the machine was busy, measure again: {', '.join(claims)}", file=sys.stderr)
    return {name: {**one, "disturbed": True} for name, one in claims.items()}


def _waited() -> float:
    """Seconds that this process' threads have waited for a core so far; 0 where the system doesn't say."""
    total = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int(thread.read_text().split()[1])
    return total / 1e9


def milliseconds(samples: Mapping[str, list[float]], statistic: str = "median") -> dict[str, float]:
    """Each contender's median, or minimum."""
    reduce = {"median": median, "minimum": min}[statistic]
    return {name: reduce(seconds) * 1e3 for name, seconds in samples.items()}


def fastest(times: Mapping[str, float], prefix: str = "") -> str:
    """The contender with the least time among those whose name starts so."""
    return min((name for name in times if name.startswith(prefix)), key=times.__getitem__)


def extra_bytes(
    call: Callable[[], object], repeats: int = 5, before: Callable[[], object] = lambda: None
) -> int | None:
    """Memory that one call needs at its peak beyond what was there, its result included; ``None`` without /proc.

    The process' peak resident size (VmHWM), reset just before the call (``clear_refs``), less its resident size then;
    memory that earlier calls left with the allocator is given back first. Pages count, so it's good to about 0.5 MB.
    The median of some calls, after one that makes what is made only once.

    Args:
        before: done before each call, for contenders that hold memory to use again: lets go of it.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
    call()
    found = []
    for _ in range(repeats):
        before()
        trim(0)
        reset.write_text("5")
        resident = _kilobytes(status, "VmRSS")
        call()
        found.append(max(0, _kilobytes(status, "VmHWM") - resident) * 1024)
    return int(np.median(found))


def _kilobytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
