"""A Ray cluster to work on: the one that is named, or one started here that ends with the work."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from embstore.errors import EmbstoreError
from embstore.threads import usable_cores

_TO_A_CORE = 4  # processes here at most; more only wait for each other
_REACH_SECONDS = 10.0
_apart = threading.Event()


@contextmanager
def cluster(
    ray: Any, address: str | None, *, cpus: int, processes: int, what: str, error: type[EmbstoreError]
) -> Iterator[None]:
    """A connection to the cluster: this process's own, that of an address, of ``RAY_ADDRESS``, or one started here.

    Args:
        ray: the package.
        address: of the cluster.
        cpus: of one started here.
        processes: that work there.
        what: these are, for messages.
        error: what to raise.
    """
    if address is None and ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS")
    most = _TO_A_CORE * usable_cores()
    if not where and processes > most:
        do = "take fewer, or a cluster by RAY_ADDRESS"
        raise error(f"{what} on this machine", expected=f"at most {most}", found=str(processes), do=do)
    options: dict[str, Any] = {} if where else {"num_cpus": cpus, "include_dashboard": False}
    if not where:  # Ray asks whether it may send these, of which nothing would be seen
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if where:
            _knock(where)
        with nullcontext() if where else _sessions_of_their_own():
            ray.init(address=where or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    except (OSError, RuntimeError, ValueError) as failed:
        raise error(
            f"no Ray cluster at {where or 'this machine'}",
            expected="one that can be reached",
            found=str(failed).strip().split("\n")[0],
            do="see `ray status` there, or leave the address out (and RAY_ADDRESS) to start one here",
        ) from failed
    try:
        yield
    finally:
        ray.shutdown()


def _leave_session() -> None:
    if _apart.is_set():
        os.setsid()


@contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """For processes started within, where the kernel ends them with this one: a signal to its process group (Ctrl-C,
    ``timeout``, a supervisor) is for this process, whose workers still have something to save or to answer.

    Ray has no option for it, but has Python run code in the new process, and with it such hooks.
    """
    if sys.platform == "linux":
        _apart.set()
    try:
        yield
    finally:
        _apart.clear()


if sys.platform == "linux":
    os.register_at_fork(after_in_child=_leave_session)


def _knock(address: str) -> None:
    """Ray itself waits for minutes where nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
