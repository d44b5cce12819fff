"""Time and traffic of a step, by hand and against simulated ranks; host memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import PLAIN, TEN_BILLION, probabilities, workloads

from embstore.planning import (
    MACHINES,
    Workload,
    memory,
    predict,
)


@settings(max_examples=50)
@given(work=workloads, world=st.integers(1, 300), name=st.sampled_from(sorted(MACHINES)))
def test_a_prediction_is_consistent(work: Workload, world: int, name: str) -> None:
    found = predict(work, MACHINES[name], world)
    assert found.global_unique_rows <= world * found.unique_rows * (1 + 1e-6)
    assert found.unique_rows <= found.global_unique_rows * (1 + 1e-6)
    assert sum(found.seconds.values()) == pytest.approx(sum(found.by_resource.values()))
    assert max(found.seconds.values()) <= found.step_seconds * (1 + 1e-9) <= sum(found.seconds.values()) * (1 + 2e-9)
    assert found.samples_per_second * found.step_seconds == pytest.approx(work.batch * world)
    assert sum(found.exchanged.values()) == pytest.approx(found.intra_bytes + found.inter_bytes)
    assert (sum(found.exchanged.values()) == 0) == (world == 1)
    assert (found.fits == "memory") == (sum(found.memory.values()) <= found.capacity)
    if found.cache is not None:
        assert found.fits != "memory"
        assert found.cache.device_bytes <= found.capacity
        assert 0 <= found.cache.host_share <= 1
        assert found.cache.step_without <= found.step_seconds
        assert -1e-6 <= found.cache.hit_rate <= 1


def test_a_step_by_hand() -> None:
    """One row, so that all is known: 16 lookups a rank, one different row, four ranks on two hosts."""
    work = Workload(rows=1, dim=4, lookups=2, batch=8, flops=10, dense_parameters=100)
    found = predict(work, PLAIN, 4)
    assert found.exchanged == pytest.approx({"ids": 6, "vectors": 12, "gradients": 12, "dense gradients": 600})
    assert found.intra_bytes == pytest.approx((8 + 16 + 16) * 1 / 4)
    assert found.inter_bytes == pytest.approx((8 + 16 + 16) * 2 / 4 + 600)
    nano = {term: seconds * 1e9 for term, seconds in found.seconds.items()}
    assert nano == pytest.approx(
        {
            "dedup": 16_000,
            "exchange ids": 8,  # 4 bytes to the other host at half a byte a nanosecond; 2 bytes meanwhile within
            "lookup": 16 + 3 * 16 + 2 * 16 * 16,
            "exchange vectors": 16,
            "exchange gradients": 16,
            "update": 16 * 16 + 4 * 16 + 2 * (16 + 4) / 4,
            "dense network": 3 * 10 * 8,
            "reduce dense gradients": 1200,
        }
    )
    assert found.step_seconds == pytest.approx(sum(found.seconds.values()))
    assert found.limit == "compute"
    assert found.hosts == 2


def test_latency_and_overlap() -> None:
    work = Workload(rows=1, dim=4, lookups=2, batch=8)
    slow = replace(PLAIN, collective_us=100, peer_us=10)
    found = predict(work, slow, 4)
    assert found.by_resource["latency"] == pytest.approx(5 * 130e-6)  # sizes, lengths, ids, vectors, gradients
    assert found.limit == "latency"
    piped = predict(work, replace(slow, pipelined=True), 4)
    # Links are busy all the time: nothing but what doesn't use them can hide.
    links = sum(seconds for term, seconds in found.seconds.items() if term.startswith("exchange"))
    rest = sum(found.seconds.values()) - found.seconds["exchange ids"]
    assert piped.step_seconds == pytest.approx(max(links, rest))
    assert piped.step_seconds < found.step_seconds
    assert predict(work, slow, 1).by_resource.get("latency") is None


@pytest.mark.parametrize("world", [2, 4, 5, 8])
def test_exchanged_ids_are_those_that_ranks_with_random_rows_send(world: int) -> None:
    work = Workload(rows=500, dim=8, lookups=3, batch=100, skew=1.1)
    rng = np.random.default_rng(1)
    p = probabilities(work.rows, work.skew)
    on_host, elsewhere, updated = [], [], []
    rank = world - 1  # of the last host, which may be filled in part
    host = [each for each in range(world) if each // 2 == rank // 2 and each != rank]
    for _ in range(300):
        owner_of = rng.permutation(work.rows) % world
        batches = [np.unique(rng.choice(work.rows, size=300, p=p)) for _ in range(world)]
        asked = owner_of[batches[rank]]
        on_host.append(np.isin(asked, host).sum())
        elsewhere.append(((asked != rank).sum()) - on_host[-1])
        updated.append((owner_of[np.unique(np.concatenate(batches))] == rank).sum())
    found = predict(work, PLAIN, world)
    assert found.exchanged["ids"] / 8 == pytest.approx(np.mean(on_host) + np.mean(elsewhere), rel=0.03)
    assert found.exchanged["vectors"] == pytest.approx(found.exchanged["ids"] * 4)
    per_row = 8 + 2 * 4 * 8
    assert found.intra_bytes / per_row == pytest.approx(np.mean(on_host), rel=0.05, abs=0.01)
    assert found.inter_bytes / per_row == pytest.approx(np.mean(elsewhere), rel=0.05, abs=0.01)
    assert found.global_unique_rows / world == pytest.approx(np.mean(updated), rel=0.03)


def test_skew_makes_steps_cheaper_and_narrow_rows_smaller() -> None:
    work = Workload(rows=TEN_BILLION, dim=64)
    h100 = MACHINES["h100"]
    even, skewed = predict(work, h100, 128), predict(replace(work, skew=1.2), h100, 128)
    assert skewed.exchanged["vectors"] < 0.5 * even.exchanged["vectors"]
    assert skewed.step_seconds < even.step_seconds
    assert memory(replace(work, dtype="fp16"), 128)["rows"] == memory(work, 128)["rows"] / 2


def test_a_table_in_host_memory_by_hand() -> None:
    work = Workload(rows=1_000_000, dim=64, lookups=10, batch=100, skew=1.0)
    small = replace(MACHINES["h100"], memory_gb=0.1, reserved_gb=0, host_memory_gb=1, pipelined=False)
    found = predict(work, small, 2)
    cache = found.cache
    assert found.fits == "uvm"
    assert cache is not None
    here = sum(found.memory[part] for part in ("optimizer state", "activations", "exchange buffers"))
    assert cache.slots == int((100e6 - here - 4 * 500_000) / (256 + 16))
    assert cache.host_share == pytest.approx(1 - cache.slots / 500_000)
    assert cache.host_bytes == 500_000 * 256
    rng = np.random.default_rng(2)
    p = probabilities(work.rows, work.skew)
    misses = [(np.unique(rng.choice(work.rows, size=2000, p=p)) >= 2 * cache.slots).sum() for _ in range(50)]
    assert cache.pcie_bytes == pytest.approx(np.mean(misses) / 2 * 256 * 2, rel=0.1)
    assert found.seconds["cache misses"] == pytest.approx(cache.pcie_bytes / 2 / 64e9 / 0.5)
    assert found.step_seconds == pytest.approx(cache.step_without + found.seconds["cache misses"])
    adam = predict(replace(work, optimizer="adam"), small, 2).cache
    assert adam is not None
    assert adam.host_bytes == 500_000 * 256 * 3
    assert adam.slots > cache.slots  # Adam's moments lie in host memory
    assert predict(work, replace(small, host_memory_gb=0.1), 2).fits == "no"


def test_a_larger_cache_misses_less() -> None:
    work = Workload(rows=10**9, dim=64, skew=1.05)
    found = [predict(work, replace(MACHINES["h100"], memory_gb=size), 2) for size in (20, 40, 80, 120)]
    rates = [each.cache.hit_rate for each in found if each.cache is not None]
    assert len(rates) == 4
    assert rates == sorted(rates)
    steps = [each.step_seconds for each in found]
    assert steps == sorted(steps, reverse=True)
