"""The process's threads for native code that releases the GIL."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def pool() -> ThreadPoolExecutor:
    """Threads of our own, made when first asked for; all who need some share them."""
    return ThreadPoolExecutor(usable_cores(), thread_name_prefix="embstore-kernels")


def share(work: Callable[[], object], threads: int) -> None:
    """Call ``work`` on ``threads`` threads at the same time, this one among them; return when all calls have.

    ``work`` claims pieces of a job until none is left (``embstore.kernels.native.claim``). The threads are those of
    torch's own OpenMP team, since its idle threads spin for a while after each operation: others would have to wait for
    a core. Where torch has no such team, they are ``pool``'s.
    """
    team = _team() if threads > 1 else None
    if team is not None:
        _share_team(team, work, threads)
        return
    others = [pool().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for other in others:
            if not other.cancel():  # one that hasn't begun would find nothing left to do
                other.result()


def _share_team(team: Callable[..., None], work: Callable[[], object], threads: int) -> None:
    errors: list[BaseException] = []

    def call(_: object) -> None:
        try:
            work()
        except BaseException as error:  # raised below: C code can't pass it on
            errors.append(error)

    team(_Work(call), None, threads, 0)
    if errors:
        raise errors[0]


@cache
def _team() -> Callable[..., None] | None:
    """``GOMP_parallel`` of the OpenMP library that torch is linked to, or ``None``."""
    import torch

    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        try:
            team = ctypes.CDLL(str(path)).GOMP_parallel  # the linker looks in what the library depends on, too
        except (OSError, AttributeError):
            continue
        team.argtypes, team.restype = [_Work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        return team
    return None


def _after_fork() -> None:
    """A forked child has neither the pool's threads nor the team's."""
    global _team
    pool.cache_clear()
    _team = cache(lambda: None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
