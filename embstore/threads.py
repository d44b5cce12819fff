"""The process's threads for native code that releases the GIL: ``share`` runs a function on several of them at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")


@cache
def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def pool() -> ThreadPoolExecutor:
    """The threads, made when first asked for; all kernels of the process share them."""
    return ThreadPoolExecutor(usable_cores(), thread_name_prefix="embstore-kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)  # a forked child has the pool but not its threads


def share(work: Callable[[], T], threads: int) -> None:
    """Call ``work`` here and on up to ``threads - 1`` other threads at the same time; return when all have.

    ``work`` claims pieces of a job until none is left (``embstore.kernels.native.claim``). When this thread finds none
    left, calls that have not begun are not waited for.
    """
    others = [pool().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for other in others:
            if not other.cancel():
                other.result()
