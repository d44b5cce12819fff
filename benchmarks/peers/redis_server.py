"""Redis with a vector under each value: one server, without persistence, on the loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.servers import Process, free_port, running

_AT_ONCE = 10_000  # keys of one MSET


def missing() -> str | None:
    """What there is to install, if anything."""
    absent = [name for name in ("redis", "hiredis") if find_spec(name) is None]
    if shutil.which("redis-server") is None:
        absent.insert(0, "redis-server")
    return f"not installed: {', '.join(absent)} (benchmarks/peers/README.md)" if absent else None


@contextmanager
def redis(folder: Path, values: list[str], vectors_VD: NDArray[np.float32]) -> Iterator[Process]:
    """A running server that has them."""
    from redis import Redis

    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with running([*command, "--dir", str(folder)], {"redis": port}, folder / "redis.log") as process:
        client = Redis(port=port)
        for start in range(0, len(values), _AT_ONCE):
            end = start + _AT_ONCE
            rows = [row.tobytes() for row in vectors_VD[start:end]]
            client.mset(dict(zip(values[start:end], rows, strict=True)))
        client.close()
        yield process
