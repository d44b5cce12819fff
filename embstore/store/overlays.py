"""The rows that a chain of deltas has changed, found by one search however long the chain.

    delta 0    rows 3 17 40        newest    row     3  9 17 40
    delta 1    rows 9 17                     delta   0  1  1  0      which changed the row last
                                             place   0  0  1  2      among that delta's rows

Shape suffixes: N rows asked for, H of them changed, R changed by a delta, U changed by any.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_KEPT = 2  # indexes of a chain: of the version in use, and of the one that takes its place


@dataclass(frozen=True)
class Overlay:
    """Rows that a delta has changed, in memory.

    Args:
        index_R: int64, ascending.
        rows_RD: in the table's dtype.
    """

    index_R: Tensor
    rows_RD: Tensor


class Found(NamedTuple):
    """Which of some rows have changed, and where their numbers are.

    Args:
        hit_N: bool.
        parts: of each delta that was the last to change one: its number in the chain; int64 ``[H]``, which of the rows
            asked for it was; int64 ``[H]``, its place among the delta's.
    """

    hit_N: Tensor
    parts: list[tuple[int, Tensor, Tensor]]


class _Index(NamedTuple):
    """Of a chain: the rows, ascending, and then a number beyond all, which ends every search; their last changes."""

    row_U: Tensor
    delta_U: NDArray[np.uint8]
    place_U: NDArray[np.int64]


class Overlays:
    """The changes of each delta of a chain, oldest first.

    The first search makes one index of them: 17 bytes for each row that any of them has changed (the changed numbers
    stay where they are), by a merge; that of a longer chain is made of the shorter one's. Of all versions of a chain
    that are open, only the two indexes made last are kept, and the changes they are of.

    >>> below = Overlays().over(Overlay(torch.tensor([3, 17]), torch.zeros(2, 1)))
    >>> above = below.over(Overlay(torch.tensor([9, 17]), torch.ones(2, 1)))
    >>> above.find(torch.tensor([17, 5, 3]))
    Found(hit_N=tensor([ True, False,  True]), parts=[(0, tensor([2]), tensor([0])), (1, tensor([0]), tensor([1]))])
    """

    def __init__(self) -> None:
        self._parts: tuple[Overlay, ...] = ()
        self._kept: list[tuple[tuple[Overlay, ...], _Index]] = []  # shared along the chain
        self._lock = threading.Lock()

    def over(self, newest: Overlay) -> Overlays:
        """These, and one more."""
        longer = Overlays()
        longer._parts, longer._kept, longer._lock = (*self._parts, newest), self._kept, self._lock
        return longer

    def __iter__(self) -> Iterator[Overlay]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def find(self, rows_N: Tensor) -> Found:
        """The last changes of the rows of these numbers (int64)."""
        if not self._parts:
            return Found(torch.zeros(len(rows_N), dtype=torch.bool), [])
        index = self._index()
        place_N = torch.searchsorted(index.row_U, rows_N)
        hit_N = index.row_U[place_N] == rows_N
        at_H = hit_N.numpy().nonzero()[0]
        found_H = place_N.numpy()[at_H]
        delta_H = index.delta_U[found_H]
        order_H = np.argsort(delta_H, kind="stable")
        counts = np.bincount(delta_H, minlength=len(self)).tolist()
        at, place = (torch.from_numpy(of[order_H]).split(counts) for of in (at_H, index.place_U[found_H]))
        parts = [(number, at[number], place[number]) for number, count in enumerate(counts) if count]
        return Found(hit_N, parts)

    def put(self, found: Found, into_ND: Tensor) -> None:
        """The rows that were found, each where it was asked for."""
        for number, at_H, place_H in found.parts:
            into_ND.index_copy_(0, at_H, self._parts[number].rows_RD.index_select(0, place_H))

    def _index(self) -> _Index:
        found = self._kept_index()
        if found is None:
            with self._lock:  # what others have is found without
                found = self._kept_index()
                if found is None:
                    found = self._merged()
                    self._kept.append((self._parts, found))
                    del self._kept[:-_KEPT]
        return found

    def _kept_index(self) -> _Index | None:
        return next((index for parts, index in tuple(self._kept) if parts is self._parts), None)

    def _merged(self) -> _Index:
        shorter = [
            (len(parts), index)
            for parts, index in self._kept
            if len(parts) < len(self) and all(one is other for one, other in zip(parts, self._parts, strict=False))
        ]
        depth, under = max(shorter, key=lambda known: known[0], default=(0, _NOTHING))
        newest = range(len(self) - 1, depth - 1, -1)
        sizes = [len(self._parts[number].index_R) for number in newest]
        row = np.concatenate([*(self._parts[number].index_R.numpy() for number in newest), under.row_U.numpy()])
        # Of ascending runs this is a merge; equal rows stay in order, so the newest change of each is the first.
        order = np.argsort(row, kind="stable")
        row = row[order]
        first = np.ones(len(row), dtype=bool)
        np.not_equal(row[1:], row[:-1], out=first[1:])
        row, order = row[first], order[first][:-1]
        delta = np.concatenate([np.repeat(np.array(newest, dtype=np.uint8), sizes), under.delta_U])
        place = np.concatenate([*map(np.arange, sizes), under.place_U])
        return _Index(torch.from_numpy(row), delta[order], place[order])


_BEYOND = torch.tensor([torch.iinfo(torch.int64).max])
_NOTHING = _Index(_BEYOND, np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64))
