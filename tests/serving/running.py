"""A server over HTTP, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

import uvicorn

from embstore.models import build
from embstore.serving.connections import SETTINGS
from embstore.serving.http import App, File
from embstore.serving.indexes import Indexes
from embstore.serving.reader import Reader
from embstore.serving.server import Server
from embstore.serving.versions import Following, Versions
from embstore.store import Store


@contextmanager
def serving(
    store: Store, *, files: Mapping[str, File] | None = None, indexes: Indexes | None = None, **settings: Any
) -> Iterator[tuple[Server, str]]:
    """A server of a store, and its ``127.0.0.1:PORT``."""
    versions = Versions(store, Following(seconds=0.05), open_reader=lambda version: Reader(version, build, indexes))
    versions.follow()
    server = Server(name="shop", versions=versions, **settings)
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(App(server, files), **SETTINGS))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until = monotonic() + 30
        while not running.started and monotonic() < until:
            sleep(0.005)
        yield server, f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()
        listening.close()
        server.close()
