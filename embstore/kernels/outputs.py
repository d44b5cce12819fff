"""Memory for outputs, used again when nothing refers to it any more.

An output of some MB is fresh memory from the system at many a step, since the allocator gives back what is freed; that
costs page faults, and the system writes zeros to all of it first: as much time as the lookup itself.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST = 1 << 18  # numbers; smaller outputs the allocator keeps
MOST = 1 << 24  # numbers; larger ones are not held back from the system
HELD = 2  # a loop's last output is often alive until the next one is made
LINE = 16  # numbers of a cache line

_UNUSED = 3  # references to an array that only the list, the loop over it and the count itself know


class Outputs:
    """Gives float32 tensors of uninitialised memory; any number of threads may ask."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.float32]] = []
        self._lock = threading.Lock()

    def take(self, rows: int, width: int) -> Tensor:
        """A tensor ``[rows, width]``. Its memory is given again when it and all that share it are gone.

        Its storage may be up to twice as long as it is.
        """
        count = rows * width
        if not LEAST <= count <= MOST:
            return torch.empty(rows, width)
        with self._lock:
            for array in self._arrays:
                # A tensor made of an array refers to it for as long as its storage lives.
                fits = array.shape[1] == width and rows <= len(array) <= 2 * rows
                if fits and sys.getrefcount(array) == _UNUSED:
                    # Not a slice: autograd lets nobody change a view in place that a function of ours returns.
                    return torch.from_numpy(array).resize_(rows, width)
            self._arrays.append(_aligned(rows, width))
            del self._arrays[:-HELD]
            return torch.from_numpy(self._arrays[-1])


def _aligned(rows: int, width: int) -> NDArray[np.float32]:
    """Uninitialised, and rows of 16 numbers lie in one cache line each."""
    memory = np.empty(rows * width + LINE, dtype=np.float32)
    start = -memory.ctypes.data // 4 % LINE
    return memory[start : start + rows * width].reshape(rows, width)  # refers to ``memory``
