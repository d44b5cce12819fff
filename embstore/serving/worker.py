"""A process that answers: HTTP on inherited sockets, gRPC on the same loop, the table's memory shared with others.

    stdin    {"number": 0, "settings": {...}, ...} in the first line; its end is the supervisor's end
    report   {"ready": {...}} or {"error": {...}}, once
    stderr   logs

It begins to listen when its version is loaded and warm. Asked to end (SIGTERM), it says that it isn't ready, goes on
for a moment so that clients and balancers notice, stops listening, and answers what it has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import torch
import uvicorn
import uvloop

from embstore.ctr import BuildNetwork
from embstore.errors import EmbstoreError
from embstore.models import build
from embstore.serving import logs, page, sockets
from embstore.serving.access import Access
from embstore.serving.connections import SETTINGS
from embstore.serving.grpc import serve as serve_grpc
from embstore.serving.http import App
from embstore.serving.indexes import Indexes
from embstore.serving.metrics import FOLDER, Metrics
from embstore.serving.outcomes import message_of
from embstore.serving.protocol import InferRequest, Limits, RequestedOutput, Tensor
from embstore.serving.reader import Reader
from embstore.serving.scores import Metric
from embstore.serving.server import Server, describe
from embstore.serving.service import infer
from embstore.serving.settings import ServeSettings
from embstore.serving.tls import server_context, server_credentials
from embstore.serving.versions import Following, Versions
from embstore.store import Store, Version
from embstore.store.place import location

log = logging.getLogger("embstore.serving")

_SWITCH_SECONDS = 0.0005  # that a version which is loaded beside it holds up a request; Python's own is 5 ms
GRACE_SECONDS = 10  # from when nothing new is accepted until what goes on is cut off


class WarmReader(Reader):
    """A reader whose first request is as fast as the next."""

    def load(self, *, progress: Any = None) -> None:
        """``Reader.load``, and everything asked for once: what is compiled or built then is there before it matters."""
        super().load(progress=progress)
        described = describe(self)
        sizes = {"BYTES": 4, "INT64": 8, "FP32": 4}
        inputs = [Tensor(of["name"], of["datatype"], (1,), bytes(sizes[of["datatype"]])) for of in described["inputs"]]
        outputs = [RequestedOutput(of["name"]) for of in described["outputs"]]
        infer(InferRequest(model="", inputs=inputs, outputs=outputs), self, Limits())


OpenReader = Callable[[Version, BuildNetwork | None], Reader]


def server_of(settings: ServeSettings, open_reader: OpenReader | None = None, *, threads: int = 4) -> Server:
    """The server of settings; nothing is loaded yet.

    Args:
        open_reader: of a version, and what builds its network, if that is wanted; ``WarmReader`` when not given.
        threads: ``Server``'s.
    """
    metrics, place = Metrics(), location(settings.store)
    features = "all" if "all" in settings.search else settings.search
    indexes = Indexes(features=features, metric=cast(Metric, settings.metric)) if settings.search else None
    opened = open_reader or (lambda version, build: WarmReader(version, build, indexes))
    versions = Versions(
        Store(place.absolute() if isinstance(place, Path) else place),  # a whole path, which ``told`` knows in a text
        Following(alias=settings.alias, seconds=settings.poll_seconds),
        open_reader=lambda version: opened(version, build if settings.scores else None),
        swapped=lambda name, reader: metrics.swapped(name, reader.version.id),
        failed=metrics.failing,
    )
    access = Access(settings.read_tokens, settings.admin_tokens)
    return Server(
        name=settings.name, versions=versions, access=access, limits=settings.limits, metrics=metrics, threads=threads
    )


class Worker:
    """One of a server's processes.

    Args:
        settings: of the server.
        descriptors: of the HTTP sockets.
        grpc_addresses: to bind for gRPC.
        report: where to say that it is ready.
    """

    def __init__(
        self, settings: ServeSettings, *, descriptors: list[int], grpc_addresses: list[str], report: BinaryIO
    ) -> None:
        self.settings, self._report = settings, report
        self._sockets = sockets.inherited(descriptors)
        self._grpc_addresses = grpc_addresses
        self.server = server_of(settings)

    async def run(self) -> None:
        """Answer until SIGTERM.

        Raises:
            EmbstoreError: the version can't be loaded.
            OSError, RuntimeError: the ports can't be used.
        """
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(_failed_aside)
        loop.add_signal_handler(signal.SIGTERM, asked.set)
        ending = loop.create_task(asked.wait())
        loading = loop.run_in_executor(None, self.server.versions.follow)
        await asyncio.wait((ending, loading), return_when=asyncio.FIRST_COMPLETED)
        if asked.is_set():
            return
        await loading
        http = self._http()
        answering = loop.create_task(http.serve(self._sockets)) if self._sockets else ending
        while self._sockets and not http.started and not answering.done():
            await asyncio.sleep(0.01)
        credentials = None if self.settings.tls is None else server_credentials(self.settings.tls)
        rpc = [await serve_grpc(self.server, at, credentials, reuse_port=True) for at in self._grpc_addresses]
        self._say_ready()
        await asyncio.wait((ending, answering), return_when=asyncio.FIRST_COMPLETED)
        self.server.ending = True
        log.info("ending")
        await asyncio.sleep(self.settings.notice_seconds)
        http.should_exit = True
        await asyncio.gather(answering, *(of.stop(GRACE_SECONDS) for of in rpc))
        log.info("ended")

    def _http(self) -> _Http:
        config = uvicorn.Config(
            App(self.server, files=page.files()), **SETTINGS, timeout_graceful_shutdown=GRACE_SECONDS
        )
        config.load()
        if self.settings.tls is not None:
            config.ssl = server_context(self.settings.tls)
        return _Http(config)

    def _say_ready(self) -> None:
        reader = self.server.versions.get()
        first = describe(reader)["inputs"][0]
        ready = {"version": reader.version.id, "scores": reader.scores, "input": first}
        log.info("ready", extra={"fields": {"version": reader.version.id}})
        tell(self._report, {"ready": ready})


class _Http(uvicorn.Server):
    """uvicorn without its signals, which are the worker's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _failed_aside(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a connection did wrong is a line of the log, not a traceback."""
    error = context.get("exception")
    if isinstance(error, OSError):  # ssl.SSLError is one
        log.debug("connection failed", extra={"fields": {"error": str(error)}})
    else:
        loop.default_exception_handler(context)


def tell(report: BinaryIO, what: Mapping[str, Any]) -> None:
    """Tell the supervisor, once, and if there still is one."""
    with contextlib.suppress(OSError, ValueError), report:
        report.write(json.dumps(what).encode() + b"\n")


def _end_with_supervisor(stdin: BinaryIO, notice_seconds: float) -> None:
    """End when stdin does, even if the loop hangs."""
    stdin.read()
    log.error("the supervisor is gone")
    shutil.rmtree(os.environ[FOLDER], ignore_errors=True)  # it would have
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(notice_seconds + GRACE_SECONDS + 1)
    os._exit(1)


def _allow_connections() -> None:
    """As many as the machine lets a process have; what is usual, 1,024 files, is few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> NoReturn:
    """Of ``python -m embstore.serving.worker``, which the supervisor starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the supervisor decides
    orders = json.loads(sys.stdin.buffer.readline())
    report = open(orders["report"], "wb", buffering=0)  # noqa: SIM115 - closed by tell
    code = 1
    try:
        settings = ServeSettings.from_dict(orders["settings"])
        logs.configure(settings.log_level, {"worker": orders["number"]})
        watched = (sys.stdin.buffer, settings.notice_seconds)
        threading.Thread(target=_end_with_supervisor, args=watched, daemon=True).start()
        torch.set_num_threads(1)
        sys.setswitchinterval(_SWITCH_SECONDS)
        _allow_connections()
        worker = Worker(settings, descriptors=orders["http"], grpc_addresses=orders["grpc"], report=report)
        uvloop.new_event_loop().run_until_complete(worker.run())
        code = 0
    except EmbstoreError as error:
        tell(report, {"error": {"kind": type(error).__name__, "message": str(error)}})
    except Exception as error:
        log.exception("failed")
        tell(report, {"error": {"kind": type(error).__name__, "message": message_of(error)}})
    sys.stderr.flush()
    os._exit(code)  # exiting in any other way would wait for a version that is still being loaded


if __name__ == "__main__":
    main()
