"""torchrec's planner on the same tables."""

from __future__ import annotations

import resource
import time

import pytest
import torch
from planned import TEN_BILLION

from embstore.planning import (
    MACHINES,
    Workload,
    ask_torchrec,
    predict,
)


@pytest.mark.parametrize(
    ("work", "name", "world"),
    [
        (Workload(rows=TEN_BILLION, dim=64, skew=1.05), "h100", 128),
        (Workload(rows=10**9, dim=32, optimizer="adagrad"), "a100", 16),
        (Workload(rows=10**9, dim=32, optimizer="adam"), "h200", 8),
        (Workload(rows=10**9, dim=128, dtype="fp16", optimizer="sgd"), "h100", 8),
        (Workload(rows=100_000_003, dim=64, batch=1000), "cpu", 3),
        (Workload(rows=50_000_000, dim=64), "cpu", 1),
    ],
)
def test_torchrecs_planner_agrees_on_storage_to_two_percent(work: Workload, name: str, world: int) -> None:
    on = MACHINES[name]
    found = predict(work, on, world)
    theirs = ask_torchrec(work, on, found)
    assert theirs.fits
    assert found.fits == "memory"
    assert theirs.kernel == "fused"
    stored = theirs.device_bytes if on.kind == "cuda" else theirs.host_bytes
    assert stored == pytest.approx(sum(found.memory.values()), rel=0.02)
    assert theirs.step_seconds == pytest.approx(sum(theirs.seconds.values()))
    # The rest is known: a buffer of ids and one of vectors.
    rows = -(-work.rows // world)
    buffers = found.unique_rows * (8 + work.dim * (4 if work.dtype == "fp32" else 2))
    assert stored == pytest.approx(rows * (work.row_bytes + work.state_bytes) + buffers, rel=1e-6)


def test_torchrecs_planner_on_a_table_in_host_memory() -> None:
    work, on = Workload(rows=TEN_BILLION, dim=64, skew=1.05), MACHINES["h100"]
    found = predict(work, on, 16)
    theirs = ask_torchrec(work, on, found)
    assert (found.fits, theirs.kernel, theirs.fits) == ("uvm", "fused_uvm_caching", True)
    assert found.cache is not None
    assert theirs.device_bytes == pytest.approx(found.cache.device_bytes, rel=0.05)
    assert theirs.host_bytes == pytest.approx(found.cache.host_bytes * 65 / 64, rel=0.02)


def test_torchrecs_planner_says_too_when_a_table_does_not_fit() -> None:
    work, on = Workload(rows=TEN_BILLION, dim=64), MACHINES["h100"]
    found = predict(work, on, 2)
    theirs = ask_torchrec(work, on, found)
    assert (found.fits, theirs.fits) == ("no", False)


def test_ten_billion_rows_on_the_meta_device_cost_nothing() -> None:
    on = MACHINES["h100"]
    tiny = Workload(rows=1000, dim=64)
    ask_torchrec(tiny, on, predict(tiny, on, 2))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    work = Workload(rows=TEN_BILLION, dim=64)
    theirs = ask_torchrec(work, on, predict(work, on, 1024))
    assert theirs.device_bytes > TEN_BILLION / 1024 * 256
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024  # KiB
    assert time.monotonic() - start < 30
    assert not torch.distributed.is_initialized()
