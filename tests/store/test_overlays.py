"""What deltas have changed, laid over one another. The judge: a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embstore.store import overlays as module
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
    for part in found.parts:
        part.put(overlays[part.delta].rows_RD, into_ND)
    assert found.hit_N.tolist() == (into_ND != -1).flatten().tolist()
    at_once_ND = torch.full((len(rows), 1), -1.0)
    overlays.put(found, at_once_ND)
    assert torch.equal(at_once_ND, into_ND)
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


@given(chain=chains, bounds=st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)).map(sorted))
def test_a_range_is_as_its_rows_are(chain: list[set[int]], bounds: list[int]) -> None:
    overlays = Overlays()
    for delta, rows in enumerate(chain):
        overlays = overlays.over(overlay(rows, delta))
    start, stop = bounds
    into_ND = torch.full((stop - start, 1), -1.0)
    for part in overlays.within(start, stop):
        part.put(overlays[part.delta].rows_RD, into_ND)
    assert into_ND.flatten().tolist() == rows_of(overlays, list(range(start, stop)))


def chain_of(*sizes: int) -> list[Overlays]:
    """Deltas of so many rows, each chain with the one before."""
    out = [Overlays()]
    for delta, size in enumerate(sizes):
        out.append(out[-1].over(overlay(set(range(delta, delta + size)), delta)))
    return out[1:]


def merged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each merge takes, from now on."""
    sizes, merge = list[int](), module._merge

    def counted(runs: Sequence[Any]) -> Any:
        sizes.append(sum(len(run.row_U) for run in runs))
        return merge(runs)

    monkeypatch.setattr(module, "_merge", counted)
    return sizes


def runs(overlays: Overlays) -> int:
    """How many a row that none of the deltas has changed is looked for in."""
    return 1 + runs(overlays._under) if overlays else 0


def test_versions_that_take_turns_merge_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case: with three of one chain in use, each lookup made the index of its version again."""
    sizes, chain = merged(monkeypatch), chain_of(*[100] * 9)
    for each in chain:
        rows_of(each, [0])
    once = list(sizes)
    assert 0 < sum(once) < 9 * 900
    for each in [*chain, *chain]:
        rows_of(each, [0, 50])
    assert sizes == once


def test_a_small_delta_on_large_ones_costs_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = chain_of(*[1000] * 9, 1, 1, 1)
    rows_of(chain[8], [0])
    sizes = merged(monkeypatch)
    for each in chain[9:]:
        assert rows_of(each, [500, 5000]) == [8500.0, -1.0]
    assert sum(sizes) < 10


@given(
    sizes=st.lists(st.sampled_from([0, 1, 2, 3, 10, 30, 100, 1000]), max_size=100)
    | st.integers(1, 50).map(lambda size: [size] * 100)
)
def test_a_delta_costs_a_multiple_of_its_rows_and_a_search_few_runs(sizes: list[int]) -> None:
    for overlays in chain_of(*sizes):
        assert runs(overlays) <= 10
    with patch.object(module, "_FREE", 0):  # as of large deltas
        for overlays, size in zip(chain_of(*sizes), sizes, strict=True):
            assert overlays._rows <= 4 * max(size, 1)
        if sizes and len(set(sizes)) == 1:
            assert runs(overlays) <= 25


def test_what_no_search_needs_is_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain just opened only the last version's runs, each once."""
    sizes, chain = merged(monkeypatch), chain_of(*[100] * 9)
    rows_of(chain[-1], [-5])
    assert sizes == [900]


def test_many_threads_merge_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, overlays = merged(monkeypatch), chain_of(*[ROWS] * 9)[-1]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: rows_of(overlays, [0, 25]), range(64)))
    assert answers == [[0.0, 8025.0]] * 64
    assert sizes == [9 * ROWS]
