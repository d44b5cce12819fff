"""What deltas have changed, laid over one another. The judge: a dictionary."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given
from hypothesis import strategies as st

from embstore.store.overlays import Overlay, Overlays

ROWS = 31
chains = st.lists(st.sets(st.integers(0, ROWS - 1)), max_size=6)


def overlay(rows: set[int], delta: int) -> Overlay:
    index_R = torch.tensor(sorted(rows), dtype=torch.int64)
    return Overlay(index_R, (1000.0 * delta + index_R).unsqueeze(1))


def rows_of(overlays: Overlays, rows: list[int]) -> list[float]:
    """These rows, -1 where nothing has changed one."""
    into_ND = torch.full((len(rows), 1), -1.0)
    found = overlays.find(torch.tensor(rows, dtype=torch.int64))
    overlays.put(found, into_ND)
    assert found.hit_N.tolist() == (into_ND != -1).flatten().tolist()
    return into_ND.flatten().tolist()


@given(chain=chains, asked=st.lists(st.integers(0, ROWS - 1)), searched=st.sets(st.integers(0, 6)), other=chains)
def test_the_last_of_several_changes_stands(
    chain: list[set[int]], asked: list[int], searched: set[int], other: list[set[int]]
) -> None:
    """Whichever of the shorter chains were searched before, and whatever else grew from them."""
    overlays, expected, tried = Overlays(), {}, []
    for delta, rows in enumerate(chain):
        aside = overlays
        overlays = overlays.over(overlay(rows, delta))
        expected = expected | {row: 1000.0 * delta + row for row in rows}
        if delta in searched:
            tried.append((overlays, expected))
            for number, changed in enumerate(other):
                aside = aside.over(overlay(changed, 10 + number))
                rows_of(aside, asked)
            assert rows_of(overlays, asked) == [expected.get(row, -1.0) for row in asked]
    for each, rows_expected in [*tried, (overlays, expected), *tried]:
        assert rows_of(each, asked) == [rows_expected.get(row, -1.0) for row in asked]
    assert len(overlays) == len(chain)
    assert len(overlays._kept) <= 2


def test_a_longer_chain_s_index_is_made_of_the_shorter_one_s() -> None:
    below = Overlays()
    for delta in range(5):
        below = below.over(overlay({delta, 20}, delta))
    assert rows_of(below, [20]) == [4020.0]
    unread = Overlay(torch.tensor([7]), torch.ones(1, 1))
    above = below.over(unread)
    below._parts[0].index_R[:] = 30  # not read again
    assert rows_of(above, [0, 7, 20, 30]) == [0.0, 1.0, 4020.0, -1.0]


def test_many_threads_make_one_index() -> None:
    overlays = Overlays()
    for delta in range(20):
        overlays = overlays.over(overlay(set(range(delta, ROWS)), delta))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: rows_of(overlays, [0, 25]), range(64)))
    assert answers == [[0.0, 19025.0]] * 64
    assert len(overlays._kept) == 1
