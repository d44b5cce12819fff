"""A hash table of ``kernels.aggregate`` that grows as it must."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.kernels import aggregate as kernels

_ENTRIES, _BYTES = 1 << 10, 1 << 14  # room at first


class ValueTable:
    """Distinct values with what is known of each, and a lock for threads that share it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._slots = np.zeros(2 * _ENTRIES, np.uint64)
        self.entries = kernels.lines(_ENTRIES)
        self.text = np.empty(0, np.uint8)
        self._used = np.zeros(3, np.int64)

    def __len__(self) -> int:
        return int(self._used[0])

    @property
    def bytes(self) -> int:
        """Memory that it has written to."""
        return self._slots.nbytes + len(self) * self.entries.itemsize * self.entries.shape[1] + int(self._used[1])

    def hashes(self, numbers: bool) -> NDArray[np.uint64]:
        """Of its entries, which are numbers, or texts."""
        hash_E = np.empty(len(self), np.uint64)
        kernels.hashes(self.entries, numbers, hash_E)
        return hash_E

    def add(self, kernel: Any, given: tuple[Any, ...], size: int, numbers: bool) -> None:
        """Add so many values by one of the kernels, with its first arguments."""
        done = 0
        while (done := kernel(*given, self._slots, self.entries, self.text, self._used, done)) < size:
            self._grow(numbers)

    def taken(self) -> ValueTable:
        """A table of all it holds; itself is empty then."""
        out = ValueTable()
        with self.lock:
            out._slots, out.entries, out.text, out._used = self._slots[:0], self.entries, self.text, self._used
            self._clear()
        return out

    def forget(self) -> None:
        """Be empty again, with the same room."""
        self._slots.fill(0)
        self._used.fill(0)

    def _grow(self, numbers: bool) -> None:
        """Room for more entries or, where the next text wants so many bytes, for text."""
        count, text_bytes, wanted = self._used.tolist()
        if wanted:
            larger = np.empty(max(_BYTES, 2 * len(self.text), text_bytes + wanted), np.uint8)
            larger[:text_bytes] = self.text[:text_bytes]
            self.text = larger
            self._used[2] = 0
            return
        entries = kernels.lines(2 * len(self.entries))
        entries[:count] = self.entries[:count]
        self.entries = entries
        self._slots = np.zeros(2 * len(entries), np.uint64)
        kernels.fill_slots(entries, count, numbers, self._slots)
