"""Spans of several files as one run of memory, in place.

A table lies in buckets, one file each. Reserving address space for all of it and mapping each bucket's data where it
belongs makes the table one tensor again: a row is found by its number, whatever the number of files, and nothing is
read before it is looked at.

    files    [head| rows 0..3 ]   [head| rows 4..7 ]   [head| rows 8.. ]
    memory        [ rows 0..3          rows 4..7            rows 8..   ]

Python's ``mmap`` can't choose an address and keeps a file descriptor open per mapping; the C call does neither.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor

from embstore.errors import StoreError

_MAP_FIXED = 0x10  # the same on Linux and macOS; Python's mmap doesn't export it
_MAP_FAILED = ctypes.c_void_p(-1).value
# Linux counts writable private memory against the commit limit unless it is marked so; Python 3.12 exports the name.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE


class Region:
    """``nbytes`` of address space into which spans of files are placed.

    Writes to it are private to the process (copy on write) and never reach a file. Memory is returned when the last
    tensor made of it goes.

    Raises:
        StoreError: the address space can't be had.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        length = max(nbytes, 1)
        self._base = _map(0, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
        self._buffer = (ctypes.c_uint8 * length).from_address(self._base)
        release = weakref.finalize(self._buffer, _libc().munmap, self._base, length)
        release.atexit = False  # the process's end does it, after the last tensor

    def place(self, at: int, file: int, offset: int, nbytes: int) -> None:
        """Let bytes ``at`` to ``at + nbytes`` of the region be those of a file from ``offset``.

        Args:
            file: a descriptor; it may be closed afterwards.

        Raises:
            StoreError: a span outside its file or the region, or bytes that the disk can't read.
        """
        if at < 0 or nbytes < 0 or at + nbytes > self.nbytes or offset + nbytes > os.fstat(file).st_size:
            raise StoreError("mapping", expected="a span inside its file and region", found=f"{nbytes} bytes at {at}")
        whole_pages = 0
        if at % mmap.PAGESIZE == 0 and offset % mmap.PAGESIZE == 0:
            # The page in which the span ends is shared with what follows it, so it is copied unless it is the last.
            whole_pages = nbytes if at + nbytes == self.nbytes else nbytes - nbytes % mmap.PAGESIZE
        if whole_pages:
            _map(self._base + at, whole_pages, mmap.MAP_PRIVATE | _MAP_NORESERVE | _MAP_FIXED, file, offset)
        view = memoryview(self._buffer).cast("B")
        done = whole_pages
        while done < nbytes:
            try:
                read = os.preadv(file, [view[at + done : at + nbytes]], offset + done)
            except OSError as error:
                raise StoreError("mapping", expected=f"{nbytes} bytes", found=error.strerror or str(error)) from error
            if not read:
                raise StoreError("mapping", expected=f"{nbytes} bytes", found=f"the file ends after {done}")
            done += read

    def bytes(self) -> Tensor:
        """The region, uint8 ``[nbytes]``; keeps the memory."""
        return torch.frombuffer(self._buffer, dtype=torch.uint8)[: self.nbytes]


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


def _map(address: int, length: int, flags: int, file: int, offset: int) -> int:
    found = _libc().mmap(address, length, _PROTECTION, flags, file, offset)
    if found == _MAP_FAILED:
        reason = os.strerror(ctypes.get_errno())
        raise StoreError(f"mapping {length:,} bytes", found=reason, do="free memory or raise the limit on mappings")
    return int(found)
