"""The rows that a chain of deltas has changed, found by a few searches however long the chain.

    delta 0    rows 3 17 40        run of both    row     3  9 17 40
    delta 1    rows 9 17                          delta   0  1  1  0      which changed the row last
                                                  place   0  0  1  2      among that delta's rows

Runs of neighbouring deltas are merged as in a log-structured merge tree (O'Neil et al., 1996): a small delta on large
ones is a run of its own, so that it costs no more than its own rows.

Shape suffixes: N rows asked for, L of them not found yet, H found, R changed by a delta, U by any of a run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.hashing import compiled
from embstore.kernels import rows

_SHARE = 4  # a run takes in the one below unless that is more than so many times as long
_COST = 4  # nor if it were then more than so many times as long as the newest delta, which pays for the merge,
_FREE = 1 << 20  # and more than so many rows, of which a merge takes 0.1 s


@dataclass(frozen=True)
class Overlay:
    """Rows that a delta has changed, in memory.

    Args:
        index_R: int64, ascending.
        rows_RD: in the table's dtype.
    """

    index_R: Tensor
    rows_RD: Tensor


class Part(NamedTuple):
    """Which of some rows a delta has changed, and where their numbers are.

    Args:
        delta: its number in the chain.
        at_H: int64, which of the rows asked for.
        place_H: int64, or a range: their places among the delta's.
    """

    delta: int
    at_H: Tensor
    place_H: Tensor | slice

    def put(self, changed: Tensor, into: Tensor) -> None:
        """These of what the delta has changed (``[R]`` or ``[R, width]``), each where it was asked for."""
        place_H = self.place_H  # index_select is the faster of the two
        changed_H = changed[place_H] if isinstance(place_H, slice) else changed.index_select(0, place_H)
        into.index_copy_(0, self.at_H, changed_H)


@dataclass(frozen=True)
class Found:
    """Which of some rows have changed.

    Args:
        hit_N: bool.
        at_H: which those are.
        delta_H: the delta that was the last to change each.
        place_H: the row's place among that delta's.
    """

    hit_N: Tensor
    at_H: NDArray[np.int64]
    delta_H: NDArray[np.uint8]
    place_H: NDArray[np.int64]

    @property
    def parts(self) -> list[Part]:
        """Of each delta that was the last to change one."""
        order_H = np.argsort(self.delta_H, kind="stable")
        counts = np.bincount(self.delta_H).tolist()
        at, place = (torch.from_numpy(of[order_H]).split(counts) for of in (self.at_H, self.place_H))
        return [Part(delta, at[delta], place[delta]) for delta, count in enumerate(counts) if count]


class _Run(NamedTuple):
    """The rows that neighbouring deltas have changed, ascending, and their last changes.

    Args:
        place_U: ``None`` where there is one delta, and a row's place is its own.
    """

    row_U: Tensor
    delta_U: NDArray[np.uint8]
    place_U: NDArray[np.int64] | None


class Overlays:
    """The changes of each delta of a chain, oldest first.

    A run of one delta is that delta's rows, and takes nothing. One of several is merged when it is first searched: that
    takes 40 bytes for each row of each of its deltas. 17 for each row that any has changed are kept, as long as the
    version with the newest of these deltas is, and versions above share them. Where all versions of a chain have been
    searched, a row is in the runs of several versions: of large deltas that are alike, in two or three.

    >>> below = Overlays().over(Overlay(torch.tensor([3, 17]), torch.zeros(2, 1)))
    >>> above = below.over(Overlay(torch.tensor([9, 17]), torch.ones(2, 1)))
    >>> found = above.find(torch.tensor([17, 5, 3]))
    >>> found.hit_N
    tensor([ True, False,  True])
    >>> found.parts[1]
    Part(delta=1, at_H=tensor([0]), place_H=tensor([1]))
    """

    def __init__(self) -> None:
        self._parts: tuple[Overlay, ...] = ()
        self._below = self._under = self  # without the newest delta, and without the newest run
        self._rows = 0  # of the newest run, each as often as a delta of it has changed it
        self._run: _Run | None = None
        self._lock = threading.Lock()

    def over(self, newest: Overlay) -> Overlays:
        """These, and one more."""
        longer = Overlays()
        own = rows = len(newest.index_R)
        under = self
        while under and under._rows <= _SHARE * rows and under._rows + rows <= max(_COST * own, _FREE):
            rows += under._rows
            under = under._under
        longer._parts, longer._below, longer._under, longer._rows = (*self._parts, newest), self, under, rows
        return longer

    def __getitem__(self, delta: int) -> Overlay:
        return self._parts[delta]

    def __len__(self) -> int:
        return len(self._parts)

    def find(self, rows_N: Tensor) -> Found:
        """The last changes of the rows of these numbers (int64)."""
        left_L, at_L, overlays = rows_N.numpy(), np.arange(len(rows_N)), self
        found: list[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]] = []
        while overlays and len(left_L):
            run = overlays._newest_run()
            if len(run.row_U):
                place_L = torch.searchsorted(run.row_U, torch.from_numpy(left_L)).numpy()
                hit_L = run.row_U.numpy().take(place_L, mode="clip") == left_L
                place_H, miss_L = place_L[hit_L], ~hit_L
                found.append((at_L[hit_L], run.delta_U[place_H], _places(run, place_H)))
                at_L, left_L = at_L[miss_L], left_L[miss_L]
            overlays = overlays._under
        hit_N = np.ones(len(rows_N), dtype=bool)
        hit_N[at_L] = False
        none = np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.int64)
        return Found(torch.from_numpy(hit_N), *(np.concatenate(column) for column in zip(none, *found, strict=True)))

    def put(self, found: Found, into_ND: Tensor) -> None:
        """The changed rows of those asked for, each where it was: a delta costs no more than its rows do."""
        row_bytes = into_ND.shape[1] * into_ND.element_size()
        if row_bytes % 4 or not into_ND.is_contiguous():
            for part in found.parts:
                part.put(self[part.delta].rows_RD, into_ND)
            return
        _copy_rows(found.at_H, found.delta_H, found.place_H, self._addresses, row_bytes, np.uint64(into_ND.data_ptr()))

    @cached_property
    def _addresses(self) -> NDArray[np.uint64]:
        """Of each delta's rows."""
        for part in self._parts:
            assert part.rows_RD.is_contiguous()
        return np.array([part.rows_RD.data_ptr() for part in self._parts], dtype=np.uint64)

    def within(self, start: int, stop: int) -> Iterator[Part]:
        """All changes of rows ``start`` to ``stop``, oldest first: the last of a row stands."""
        for delta, overlay in enumerate(self._parts):
            low, high = torch.searchsorted(overlay.index_R, torch.tensor([start, stop])).tolist()
            yield Part(delta, overlay.index_R[low:high] - start, slice(low, high))

    def _newest_run(self) -> _Run:
        if self._run is None:
            with self._lock:
                if self._run is None:
                    self._run = self._merged()
        return self._run

    def _merged(self) -> _Run:
        runs, overlays = list[_Run](), self
        while overlays is not self._under:
            if overlays._run is not None:
                runs.append(overlays._run)
                overlays = overlays._under
            else:
                index_R = overlays._parts[-1].index_R
                delta = np.uint8(len(overlays) - 1)
                runs.append(_Run(index_R, np.broadcast_to(delta, len(index_R)), None))
                overlays = overlays._below
        return runs[0] if len(runs) == 1 else _merge(runs)


def _places(run: _Run, place_H: NDArray[np.int64]) -> NDArray[np.int64]:
    return place_H if run.place_U is None else run.place_U[place_H]


@compiled(nogil=True)
def _copy_rows(at_H, delta_H, place_H, address_D, row_bytes, into):  # type: ignore[no-untyped-def]
    size = np.uint64(row_bytes)
    for h in range(len(at_H)):
        row = address_D[delta_H[h]] + np.uint64(place_H[h]) * size
        rows.copy(into + np.uint64(at_H[h]) * size, row, row_bytes // 4)


def _merge(runs: Sequence[_Run]) -> _Run:
    """One of several, the newest first."""
    row = np.concatenate([run.row_U.numpy() for run in runs])
    # Of ascending runs this is a merge; equal rows stay in order, so the newest change of each is the first.
    order = np.argsort(row, kind="stable")
    row = row[order]
    first = np.ones(len(row), dtype=bool)
    np.not_equal(row[1:], row[:-1], out=first[1:])
    row, order = row[first], order[first]
    delta = np.concatenate([run.delta_U for run in runs])[order]
    place = np.concatenate([_places(run, np.arange(len(run.row_U))) for run in runs])[order]
    return _Run(torch.from_numpy(row), delta, place)
