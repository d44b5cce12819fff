"""The process in front of those that answer: takes the ports, starts workers, and starts again those that die.

supervisor ──stdin: settings──> worker 0   ┐ one HTTP socket, inherited
           <──report: ready───  worker 1   ┘ one table, mapped by all

SIGTERM, SIGINT   workers answer what they have begun, within a bound; a second one ends all at once
a worker dies     its number is started again, after a pause that grows with each death in a row
it dies itself    the workers' stdin ends, and so do they
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from embstore import errors
from embstore.errors import EmbstoreError, Interrupted, ServingError
from embstore.serving import sockets
from embstore.serving.settings import ADMIN_TOKEN, TOKEN, ServeSettings

log = logging.getLogger("embstore.serving")

_END_SECONDS = 15.0  # after the notice; more than a worker takes that is asked to end
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
_LONG_LIFE = 60.0  # seconds after which a death is not one in a row


@dataclass(frozen=True, kw_only=True)
class Listening:
    """What a server that is ready says of itself.

    Args:
        version: immutable, that its alias means.
        scores: whether it gives scores.
        input: the first of its inputs, as the protocol describes it.
        http: addresses, ``host:port``.
        grpc: likewise.
    """

    version: str
    scores: bool
    input: dict[str, Any]
    http: list[str] = field(default_factory=list)
    grpc: list[str] = field(default_factory=list)


class Supervisor:
    """A server's processes.

    Args:
        settings: of the server.
        announce: called once, when all workers are ready.
    """

    def __init__(self, settings: ServeSettings, announce: Callable[[Listening], object] = lambda _: None) -> None:
        self.settings, self._announce = settings, announce
        self._http: list[socket.socket] = []
        self._grpc: list[socket.socket] = []
        self._folder = ""
        self._workers: dict[int, asyncio.subprocess.Process] = {}
        self._ready: dict[int, dict[str, Any]] = {}
        self._announced = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ConfigError: a port is in use.
            EmbstoreError: what a worker could not start for.
            Interrupted: a second signal; requests under way were lost.
        """
        settings = self.settings
        try:
            if settings.http_port is not None:
                self._http = sockets.take(settings.host, settings.http_port)
            if settings.grpc_port is not None:
                self._grpc = sockets.take(settings.host, settings.grpc_port, shared=True)
            self._folder = tempfile.mkdtemp(prefix="embstore-serve-")
            asyncio.run(self._run())
        finally:
            for of in (*self._http, *self._grpc):
                of.close()
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)

    async def _run(self) -> None:
        self._asked, self._asked_again, self._compiled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        keepers = [loop.create_task(self._keep(number)) for number in range(self.settings.workers)]
        asked = loop.create_task(self._asked.wait())
        done, _ = await asyncio.wait((asked, *keepers), return_when=asyncio.FIRST_COMPLETED)
        self._asked.set()
        failures = [task.exception() for task in done if task is not asked and task.exception()]
        await self._end(keepers, logging.DEBUG if failures else logging.INFO)  # what never ran doesn't end
        if failures and failures[0] is not None:
            raise failures[0]
        if self._asked_again.is_set():
            raise Interrupted("stopped at once: requests under way were not answered")

    def _signalled(self) -> None:
        if self._asked.is_set():
            self._asked_again.set()
        self._asked.set()

    async def _end(self, keepers: list[asyncio.Task[None]], level: int) -> None:
        """Let workers answer what they have begun, unless it takes too long or a second signal comes."""
        log.log(level, "ending")
        self._compiled.set()
        for worker in list(self._workers.values()):
            _send(worker, signal.SIGTERM)
        seconds = self.settings.notice_seconds + _END_SECONDS
        again = asyncio.create_task(self._asked_again.wait())
        ended = asyncio.create_task(asyncio.wait(keepers))
        await asyncio.wait((again, ended), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        for number, worker in list(self._workers.items()):
            if worker.returncode is None:
                log.warning("killed: it did not end", extra={"fields": {"worker": number, "worker_pid": worker.pid}})
                _send(worker, signal.SIGKILL)
        await ended
        log.log(level, "ended")

    async def _keep(self, number: int) -> None:
        """Have a worker of that number, again and again."""
        deaths = 0
        if number > 0:  # what the first has compiled, or fails at, the others needn't
            await self._compiled.wait()
        while not self._asked.is_set():
            began = monotonic()
            worker, report = await self._start(number)
            if self._asked.is_set():
                _send(worker, signal.SIGTERM)
            error = await self._heard(number, report)
            code = await worker.wait()
            del self._workers[number]
            mark_process_dead(worker.pid, self._folder)
            if self._asked.is_set():
                return
            if not self._announced:
                what = f"worker {number} ended with code {code} before it was ready"
                raise error or ServingError(what, do="the log above says more")
            deaths = 1 if monotonic() - began > _LONG_LIFE else deaths + 1
            pause = min(_FIRST_PAUSE * 2 ** (deaths - 1), _LONGEST_PAUSE)
            about = {"worker": number, "worker_pid": worker.pid, "code": code, "pause_seconds": pause}
            log.error("worker died; started again", extra={"fields": about | ({"error": str(error)} if error else {})})
            await _wait(self._asked, pause)

    async def _start(self, number: int) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
        read, write = os.pipe()
        descriptors = [of.fileno() for of in self._http]
        environment = {key: value for key, value in os.environ.items() if key not in (TOKEN, ADMIN_TOKEN)}
        environment.setdefault("GRPC_VERBOSITY", "NONE")  # it would write lines of its own among the log's
        environment |= {"PROMETHEUS_MULTIPROC_DIR": self._folder, "OMP_NUM_THREADS": "1"}
        path = [] if sys.path[0] in ("", os.getcwd()) else ["-P"]  # find embstore where this process did
        try:
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, *path, "-m", "embstore.serving.worker"),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[*descriptors, write],
                env=environment,
            )
        finally:
            os.close(write)
        self._workers[number] = worker
        report = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(read, "rb")
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(report), pipe)
        orders = {"number": number, "report": write, "http": descriptors, "settings": self.settings.to_dict()}
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(orders | {"grpc": sockets.addresses(self._grpc)}).encode() + b"\n")
        return worker, report

    async def _heard(self, number: int, report: asyncio.StreamReader) -> EmbstoreError | None:
        """What a worker says when it has started, or why it can't."""
        line = await report.readline()
        said = json.loads(line) if line else {}
        if error := said.get("error"):
            kind = getattr(errors, error["kind"], ServingError)
            return kind(error["message"])
        if ready := said.get("ready"):
            self._ready[number] = ready
            self._compiled.set()
            if len(self._ready) == self.settings.workers and not self._announced:
                self._announced = True
                http, grpc = sockets.addresses(self._http), sockets.addresses(self._grpc)
                self._announce(Listening(**ready, http=http, grpc=grpc))
        return None


def _send(worker: asyncio.subprocess.Process, number: int) -> None:
    if worker.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            worker.send_signal(number)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
