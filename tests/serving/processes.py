"""``embstore serve`` as a process of its own, and what it is asked over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

START_SECONDS = 300  # where nothing is compiled yet and others use the machine


class Running:
    """A server, ready.

    Args:
        folder: where its output goes.
    """

    def __init__(self, folder: Path, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self._out, self._err = folder / "out", folder / "err"
        command = [sys.executable, "-m", "embstore", "serve", *map(str, arguments)]
        ports = [] if "--http-port" in command else ["--http-port", "0", "--grpc-port", "0"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, *ports], stdout=out, stderr=err, env=os.environ | (environment or {})
            )
        until(lambda: "\nask " in self.output or self.process.poll() is not None)
        assert self.process.poll() is None, self.errors
        self.http, self.grpc = (int(re.search(rf"{name} .*:(\d+)$", self.output, re.M)[1]) for name in ("HTTP", "gRPC"))  # type: ignore[index]

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._out.read_text()

    @property
    def errors(self) -> str:
        """What it has logged."""
        return self._err.read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log, a mapping a line."""
        return [json.loads(line) for line in self.errors.splitlines() if line.startswith("{")]

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers that are there."""
        return children(self.process.pid)

    def connect(self) -> HTTPConnection:
        """To HTTP, in the clear."""
        return HTTPConnection("127.0.0.1", self.http, timeout=START_SECONDS)

    def get(self, path: str) -> bytes:
        """The body of an answer."""
        connection = self.connect()
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def metric(self, line: str) -> float:
        """A number of ``/metrics``, of all workers; 0 where it is absent."""
        found = re.search(rf"^{re.escape(line)} (\S+)$", self.get("/metrics").decode(), re.M)
        return float(found[1]) if found else 0.0

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(START_SECONDS)

    def close(self) -> None:
        """End it in any case, with all of its workers."""
        workers = self.workers
        self.process.kill()
        self.process.wait()
        until(lambda: not any(alive(pid) for pid in workers))


def ask(connection: HTTPConnection, body: bytes, name: str = "shop", **headers: str) -> tuple[int, dict[str, Any]]:
    """The status and JSON of an answer."""
    connection.request("POST", f"/v2/models/{name}/infer", body, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def question(*users: str) -> bytes:
    """A request for vectors of users."""
    tensor = {"name": "user", "datatype": "BYTES", "shape": [len(users)], "data": users}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "user.embedding"}]}).encode()


def until(holds: Callable[[], object], seconds: float = START_SECONDS) -> None:
    """Wait for what must come to hold."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Of a process; none of one that has ended."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and nobody waited for doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
