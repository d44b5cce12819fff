"""The process's threads for native code that releases the GIL."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path


@cache
def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def pool() -> ThreadPoolExecutor:
    """Threads of our own, made when first asked for; all who need some share them."""
    return ThreadPoolExecutor(usable_cores(), thread_name_prefix="embstore-kernels")


def share(work: Callable[[], object], threads: int) -> None:
    """Call ``work`` here and on up to ``threads - 1`` threads of the pool at the same time; return when all have.

    ``work`` claims pieces of a job until none is left (``embstore.kernels.native.claim``).
    """
    others = [pool().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for other in others:
            if not other.cancel():  # one that hasn't begun would find nothing left to do
                other.result()


@cache
def team() -> int:
    """The address of ``GOMP_parallel`` in the OpenMP library that torch is linked to; 0 where there is none.

    It runs a native function on all threads of torch's own team. Those spin for a while after each of torch's
    operations, so that threads of any other kind would first have to wait for a core.
    """
    import torch

    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel  # the linker looks in what the library depends on, too
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def _after_fork() -> None:
    """A forked child has neither the pool's threads nor the team's."""
    global team
    pool.cache_clear()
    team = cache(lambda: 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
