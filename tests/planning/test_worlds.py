"""The cheapest world, against trying them all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import TEN_BILLION, workloads

from embstore.errors import ConfigError
from embstore.planning import (
    MACHINES,
    Workload,
    cheapest,
    predict,
    worlds,
)
from embstore.planning.worlds import smallest_world


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
