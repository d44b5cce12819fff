"""Distinct rows against a judge of dictionaries."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from embstore.kernels.distinct import distinct


@given(
    rows=st.lists(st.one_of(st.integers(0, 20), st.integers(0, 2**62)), max_size=200),
    block=st.one_of(st.integers(1, 30), st.just(2**60), st.just(2**62)),
)
def test_each_row_once_by_block_in_the_order_of_first_hits(rows: list[int], block: int) -> None:
    rows = [row % (block * 40) for row in rows]
    rows_U, number_T = distinct(torch.tensor(rows, dtype=torch.int64), block, 40)
    assert rows_U.tolist() == sorted(dict.fromkeys(rows), key=lambda row: row // block)
    assert rows_U[number_T].tolist() == rows


def test_rows_that_lie_apart_in_memory() -> None:
    rows_T = torch.arange(20).reshape(10, 2)[:, 0] // 4
    rows_U, number_T = distinct(rows_T, 3, 2)
    assert rows_U.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(rows_U[number_T], rows_T)


def test_many_rows() -> None:
    rows_T = torch.randint(0, 50_000, (200_000,), generator=torch.Generator().manual_seed(0))
    rows_U, number_T = distinct(rows_T, 20_000, 3)
    assert torch.equal(rows_U.sort().values, rows_T.unique())
    assert (rows_U // 20_000).diff().min() == 0
    assert torch.equal(rows_U[number_T], rows_T)
