"""``embstore plan``: its expectations against draws, its bytes against tensors, its laws, and torchrec's planner."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from embstore.cli import cli
from embstore.cli.plan import count
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError, EmbstoreError
from embstore.kernels import TableOptimizer
from embstore.planning import (
    MACHINES,
    Machine,
    Workload,
    ask_torchrec,
    cheapest,
    differences,
    expected_unique,
    machine,
    memory,
    popular_share,
    predict,
    read_rates,
    worlds,
)
from embstore.planning.worlds import smallest_world
from embstore.schema import Feature

TEN_BILLION = 10_000_000_000

# Rates and shares of 1, so that seconds can be worked out by hand.
PLAIN = Machine(
    name="plain",
    kind="cpu",
    memory_gb=100,
    reserved_gb=0,
    ranks_per_host=2,
    memory_gbps=1,
    stream_share=1,
    gather_share=1,
    link_share=1,
    flops_share=1,
    intra_gbps=1,
    inter_gbps=0.5,
    tflops=0.001,
    dedup_mps=1,
    collective_us=0,
    peer_us=0,
)


def probabilities(rows: int, exponent: float) -> np.ndarray:
    weights = 1 / np.arange(1, rows + 1) ** exponent
    return weights / weights.sum()


# Expected rows


@pytest.mark.parametrize(
    ("rows", "draws", "exponent"),
    [(1, 5, 1.0), (50, 30, 0.0), (1000, 500, 1.05), (1000, 5000, 0.7), (200_000, 3000, 1.2)],
)
def test_unique_rows_and_what_a_cache_misses_are_those_of_draws(rows: int, draws: int, exponent: float) -> None:
    rng = np.random.default_rng(0)
    cached = rows // 10
    seen, missed, hits = [], [], []
    for _ in range(200):
        drawn = rng.choice(rows, size=draws, p=probabilities(rows, exponent))
        unique = np.unique(drawn)
        seen.append(len(unique))
        missed.append((unique >= cached).sum())
        hits.append((drawn < cached).mean())
    for found, expected in (
        (seen, expected_unique(rows, draws, exponent)),
        (missed, expected_unique(rows, draws, exponent, beyond=cached)),
        (hits, popular_share(rows, exponent, cached)),
    ):
        assert abs(np.mean(found) - expected) <= 4 * np.std(found) / np.sqrt(len(found)) + 1e-9


@pytest.mark.parametrize("exponent", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("beyond", [0, 1000, 100_000])
def test_the_integral_is_the_sum_over_all_rows(exponent: float, beyond: int) -> None:
    rows, draws = 2_000_000, 300_000
    p = probabilities(rows, exponent)
    assert expected_unique(rows, draws, exponent, beyond=beyond) == pytest.approx(
        (1 - (1 - p[beyond:]) ** draws).sum(), rel=1e-6
    )
    assert popular_share(rows, exponent, beyond) == pytest.approx(p[:beyond].sum(), rel=1e-6)


@given(
    rows=st.integers(1, 10**11),
    more=st.integers(0, 10**11),
    draws=st.floats(1, 1e9),
    exponent=st.floats(0, 2.5),
    beyond=st.integers(0, 10**6),
)
def test_unique_rows_grow_with_rows_and_draws(rows: int, more: int, draws: float, exponent: float, beyond: int) -> None:
    found = expected_unique(rows, draws, exponent)
    assert 0 < found <= min(rows, draws) * (1 + 1e-9)
    assert expected_unique(rows, 2 * draws, exponent) >= found * (1 - 1e-6)
    assert expected_unique(rows + more, draws, exponent) >= found * (1 - 1e-6)
    assert expected_unique(rows, draws, exponent, beyond=beyond) <= found * (1 + 1e-6)
    assert 0 <= popular_share(rows, exponent, beyond) <= 1


# Memory


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "adam", "sgd"])
@pytest.mark.parametrize(("dtype", "torch_dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_memory_of_the_table_is_that_of_its_tensors(
    optimizer: Any, dtype: str, torch_dtype: torch.dtype, l2: float
) -> None:
    table = UnifiedEmbedding(
        [Feature(name="a", lookups=2), Feature(name="b")],
        1000,
        12,
        optimizer=TableOptimizer(name=optimizer, l2=l2),
        dtype=torch_dtype,
        kernel="reference",
    )
    table.track_changes()
    work = Workload(rows=1000, dim=12, dtype=dtype, optimizer=optimizer, lookups=3, batch=7, l2=l2 > 0, tracked=True)
    needs = memory(work, 1)
    assert needs["rows"] == table.weight.nbytes
    assert needs["optimizer state"] == sum(t.nbytes for name, t in table.named_buffers() if name.startswith("state_"))
    assert needs["marks"] == sum(t.nbytes for t in (table.paid, table.touched) if t is not None)
    out = torch.zeros(7, table.width)
    assert needs["activations"] == 2 * out.nbytes
    assert memory(replace(work, lookups=300, outputs=3), 1)["activations"] == 2 * out.nbytes  # pooled lists
    assert memory(work, 3)["rows"] == 334 * 12 * table.weight.element_size()


def test_memory_by_hand() -> None:
    work = Workload(rows=1, dim=4, lookups=2, batch=8, dense_parameters=100)
    assert memory(work, 1) == {
        "rows": 16,
        "optimizer state": 4,
        "marks": 0,
        "activations": 16 * 4 * 4 * 2,
        "dense model": 2000,
        # two batches of 16 ids, 16 places, an id asked for and one answered; a vector and a gradient, both ways
        "exchange buffers": 2 * 8 * (16 + 16 + 1 + 1) + 4 * 16,
    }


def test_a_dense_parameter_takes_what_adam_keeps_and_a_bucket() -> None:
    network = torch.nn.Linear(30, 10)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(2, 30)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    taken = sum(t.nbytes for t in [*network.parameters(), *(p.grad for p in network.parameters()), *moments])
    bucket = 4 * 310
    assert memory(Workload(rows=1, dim=4, dense_parameters=310), 1)["dense model"] == taken + bucket


workloads = st.builds(
    Workload,
    rows=st.integers(1, 10**11),
    dim=st.integers(1, 64).map(lambda n: 4 * n),
    dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
    optimizer=st.sampled_from(["rowwise_adagrad", "adagrad", "adam", "sgd"]),
    lookups=st.floats(0.5, 500),
    batch=st.integers(1, 100_000),
    skew=st.sampled_from([0.0, 0.8, 1.05, 1.5]),
    dense_parameters=st.integers(0, 10**9),
    l2=st.booleans(),
    tracked=st.booleans(),
)


@given(work=workloads, world=st.integers(1, 5000), more=st.integers(1, 5000))
def test_more_ranks_never_need_more_memory_and_more_rows_never_less(work: Workload, world: int, more: int) -> None:
    here = memory(work, world)
    fewer = memory(work, world + more)
    larger = memory(replace(work, rows=work.rows + more), world)
    for part, size in here.items():
        assert fewer[part] <= size
        assert larger[part] >= size * (1 - 1e-6)


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


# Time and traffic


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


# UVM


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


# Worlds


@settings(max_examples=30)
@given(work=workloads, name=st.sampled_from(sorted(MACHINES)), target=st.floats(1, 1e8))
def test_the_cheapest_world_is_the_first_of_those_that_can_be_rented(work: Workload, name: str, target: float) -> None:
    on = MACHINES[name]
    tried = [predict(work, on, world) for world in worlds(on, 64)]
    fitting = [each for each in tried if each.fits != "no"]
    if not fitting:
        with pytest.raises(ConfigError, match="no world of up to 64 ranks"):
            cheapest(work, on, largest=64)
        return
    best = cheapest(work, on, largest=64, samples_per_second=target)
    assert best.anyhow == fitting[0]
    assert [best.in_memory] == ([each for each in tried if each.fits == "memory"][:1] or [None])
    assert [best.fast_enough] == ([each for each in fitting if each.samples_per_second >= target][:1] or [None])
    assert best.fastest.samples_per_second == max(each.samples_per_second for each in fitting)


@pytest.mark.parametrize("rows", [10**6, 10**9, TEN_BILLION])
def test_the_world_that_would_hold_the_table_does_and_a_smaller_one_would_not(rows: int) -> None:
    work, on = Workload(rows=rows, dim=64), replace(MACHINES["h100"], host_memory_gb=0)
    needed = smallest_world(work, on)
    assert needed is not None
    sizes = worlds(on, needed)
    assert sizes[-1] == needed
    assert predict(work, on, needed).fits == "memory"
    assert all(predict(work, on, size).fits == "no" for size in sizes[:-1])


def test_what_no_world_can_do_is_said() -> None:
    work = Workload(rows=TEN_BILLION, dim=64)
    with pytest.raises(
        ConfigError, match=r"up to 4 ranks of h100.*77\.0 GB a rank.*650\.\d GB.*40 ranks would.*UVM\) 16.*fp16 24"
    ):
        cheapest(work, MACHINES["h100"], largest=4)
    with pytest.raises(ConfigError, match="don't shrink with more ranks: take a smaller batch"):
        cheapest(replace(work, batch=10**8), MACHINES["h100"])
    assert cheapest(work, MACHINES["h100"], samples_per_second=1e15).fast_enough is None


# What can't be


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 0}, "rows; expected 1 or more; found 0"),
        ({"dim": 30}, r"dim; expected a multiple of 4.*TBE.*found 30; take 28 or 32"),
        ({"dim": 0}, "dim; expected a multiple of 4"),
        ({"batch": 0}, "batch; expected 1 or more"),
        ({"lookups": 0}, "lookups; expected more than 0"),
        ({"skew": -1}, "skew; expected 0 or more"),
        ({"skew": float("nan")}, "skew; expected 0 or more"),
        ({"lookups": 3, "outputs": 4}, "outputs; expected 0 to the lookups, 3; found 4"),
        ({"flops": -1}, "flops; expected 0 or more"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8'; known: bf16, fp16, fp32"),
        ({"optimizer": "adamw"}, "unknown optimizer 'adamw'; did you mean 'adam'"),
    ],
)
def test_workloads_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Workload(**{"rows": 100, "dim": 8, **wrong})


def test_machines_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="world; expected 1 rank or more; found 0"):
        predict(Workload(rows=1, dim=4), PLAIN, 0)
    with pytest.raises(ConfigError, match="unknown device 'h10'; did you mean 'h100'"):
        machine("h10")
    with pytest.raises(ConfigError, match="intra_gbps; expected a number, more than 0; found 0"):
        machine("cuda", intra_gbps=0)
    with pytest.raises(ConfigError, match="link_share; expected at most 1"):
        machine("cuda", link_share=1.5)
    rates = tmp_path / "rates.json"
    for text, message in (
        ("{", "expected valid JSON"),
        ("[1]", "expected an object"),
        ('{"intra_gps": 3}', "unknown rate 'intra_gps'; did you mean 'intra_gbps'"),
        ('{"intra_gbps": "fast"}', "expected a number"),
        ('{"memory_gbps": NaN}', "expected a number"),
    ):
        rates.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_rates(rates)
    with pytest.raises(ConfigError, match=r"rates .*none\.json; expected a JSON file"):
        read_rates(tmp_path / "none.json")
    rates.write_text('{"intra_gbps": 3.5, "collective_us": 55}')
    measured = machine("cpu", read_rates(rates), inter_gbps=2)
    assert (measured.intra_gbps, measured.inter_gbps, measured.collective_us) == (3.5, 2, 55)
    assert measured.memory_gbps == MACHINES["cpu"].memory_gbps


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10e9", 10**10),
        ("10G", 10**10),
        ("10B", 10**10),
        ("1_000_000", 10**6),
        ("2.5M", 2_500_000),
        ("7", 7),
        ("1k", 1000),
    ],
)
def test_large_numbers_as_people_write_them(text: str, number: int) -> None:
    assert count("--rows", text) == number


@pytest.mark.parametrize("text", ["", "G", "1.5", "ten", "1e99", "nan", "inf", "1e-3", "0x10"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ConfigError, match="--rows; expected a whole number"):
        count("--rows", text)


# torchrec's planner


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


# The command


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["plan", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_the_command_prints_the_plan_its_alternatives_and_its_assumptions() -> None:
    text = invoke("--rows", "10e9", "--dim", 64, "--world", 128, "--device", "cuda", "--skew", 1.05, "--inter-gbps", 25)
    for expected in (
        "10,000,000,000 rows x 64 fp32, rowwise_adagrad; 26 lookups x 4,096 samples a rank, Zipf 1.05",
        "128 ranks on 16 hosts (h100): fits",
        "exchange gradients",
        "limited by inter-host link",
        "smallest world, all rows in memory: 40 ranks on 5 hosts",
        "smallest world, fits: 16 ranks on 2 hosts (UVM)",
        "torchrec's planner",
        "it knows nothing of dedup",
        "1,024",
        "with UVM",
        "25 GB/s between hosts; collectives reach 70%",
    ):
        assert expected in text
    (rows,) = (line for line in text.splitlines() if line.startswith(" rows "))
    assert rows.split() == ["rows", "20.000"]


def test_the_command_plans_the_smallest_world_and_what_a_target_needs() -> None:
    text = invoke("--rows", "10G", "--dim", 64, "--samples-per-second", "100M")
    assert "16 ranks on 2 hosts (h100): fits, with rows in host memory (UVM caching)" in text
    assert "rows in host memory only (160.000 of 256.000 GB a rank)" in text
    assert "smallest world, 100,000,000 samples/s: " in text
    assert "none; the fastest is" in invoke("--rows", "10G", "--dim", 64, "--samples-per-second", "1e15")


def test_the_command_as_json(tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text(json.dumps({"inter_gbps": 12.5, "link_share": 1.0}))
    flags = ["--rows", "10e9", "--dim", 64, "--world", 128, "--rates", rates, "--dense-parameters", "1e6"]
    answer = json.loads(invoke(*flags, "--samples-per-second", "20e6", "--json"))
    work = Workload(rows=TEN_BILLION, dim=64, dense_parameters=10**6)
    on = machine("h100", {"inter_gbps": 12.5, "link_share": 1.0})
    found = predict(work, on, 128)
    assert answer["workload"]["rows"] == TEN_BILLION
    assert answer["machine"]["inter_gbps"] == 12.5
    assert answer["prediction"]["step_seconds"] == found.step_seconds
    assert answer["prediction"]["memory"] == found.memory
    assert answer["torchrec"]["fits"] is True
    assert answer["differences"] == differences(work, on, found)
    assert [each["world"] for each in answer["worlds"]] == [1 << power for power in range(11)]
    best = cheapest(work, on, samples_per_second=20e6)
    assert best.in_memory is not None
    assert best.fast_enough is not None
    assert answer["cheapest"] == {
        "in_memory": best.in_memory.world,
        "fits": best.anyhow.world,
        "samples_per_second": 20e6,
        "fast_enough": best.fast_enough.world,
        "fastest": best.fastest.world,
    }
    assert any("12.5 GB/s between hosts" in line for line in answer["assumptions"])


def test_the_command_reads_a_run_and_a_schema(tmp_path: Path) -> None:
    schema = tmp_path / "schema.yaml"
    schema.write_text("label: y\nfeatures:\n  - {name: a, lookups: 2}\n  - {name: tags, max_length: 5, lookups: 3}\n")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"logs: {{train: none}}\nschema: {schema}\n"
        "table: {rows: 5000, dim: 16, dtype: float16, optimizer: {name: adagrad, l2: 0.1}}\n"
        "model: {name: dnn, hidden: [10], batch_norm: false}\ntraining: {batch_size: 300}\n"
    )
    flags = ("--device", "cpu", "--max-world", 4, "--json")
    work = json.loads(invoke("--config", config, *flags))["workload"]
    network = (5 * 16 + 1) * 10 + 10 + 1
    expected = {
        "rows": 5000,
        "dim": 16,
        "dtype": "fp16",
        "optimizer": "adagrad",
        "lookups": 17,
        "outputs": 5,
        "batch": 300,
    }
    assert {key: work[key] for key in expected} == expected
    assert (work["l2"], work["tracked"], work["dense_parameters"]) == (True, False, network)
    answer = json.loads(invoke("--config", config, "--rows", "1e6", "--lookups", 3, "--batch", "1k", *flags))
    assert [answer["workload"][key] for key in ("rows", "lookups", "batch")] == [10**6, 3, 1000]
    assert answer["machine"]["kind"] == "cpu"
    assert json.loads(invoke("--schema", schema, "--rows", 9, "--dim", 4, *flags))["workload"]["lookups"] == 17


def test_a_cpu_plan_measures_this_host_and_takes_what_is_given() -> None:
    flags = ("--rows", "1e6", "--dim", 16, "--device", "cpu", "--max-world", 2, "--json")
    measured = json.loads(invoke(*flags, "--ranks-per-host", 2))["machine"]
    assert measured["memory_gb"] == pytest.approx(_total_memory() / 2)
    assert 0.1 < measured["memory_gbps"] < 5000
    assert 0.001 < measured["gather_share"] <= 1
    given = json.loads(invoke(*flags, "--memory-gb", 7, "--memory-gbps", 33))["machine"]
    assert (given["memory_gb"], given["memory_gbps"]) == (7, 33)
    assert given["stream_share"] == MACHINES["cpu"].stream_share


def _total_memory() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise AssertionError


def test_without_torchrec_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchrec.distributed.planner.types", None)
    text = invoke("--rows", "1e6", "--dim", 16, "--max-world", 2)
    assert "torchrec's planner was not asked: torchrec can't be loaded" in text
    assert json.loads(invoke("--rows", "1e6", "--dim", 16, "--max-world", 2, "--json"))["torchrec"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dim", 8), "--rows, or --config"),
        (("--rows", 0, "--dim", 8), "rows; expected 1 or more"),
        (("--rows", 10, "--dim", 6), "multiple of 4"),
        (("--rows", 10, "--dim", 8, "--world", 0), "world; expected 1 rank or more"),
        (("--rows", 10, "--dim", 8, "--max-world", 0), "max world; expected 1 rank or more"),
        (("--rows", 10, "--dim", 8, "--samples-per-second", 0), "samples per second; expected a number, more than 0"),
        (("--rows", 10, "--dim", 8, "--ranks-per-host", 0), "ranks_per_host"),
        (("--rows", "10e9", "--dim", 64, "--max-world", 4), "40 ranks would"),
    ],
)
def test_the_command_says_what_cannot_be(flags: tuple[object, ...], message: str) -> None:
    with pytest.raises(EmbstoreError, match=message):
        invoke(*flags)
