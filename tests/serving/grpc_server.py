"""A gRPC server of a store, on a loop of its own, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from embstore.serving.grpc import bind
from embstore.serving.server import Server


@contextmanager
def running(server: Server, credentials: Any = None, **options: Any) -> Iterator[str]:
    """Its address, while it runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="grpc server")
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        bound, port = bind(server, "127.0.0.1:0", credentials, **options)
        await bound.start()
        return bound, port

    def on_loop(of: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(of, loop).result(30)

    try:
        started, port = on_loop(start())
        try:
            yield f"127.0.0.1:{port}"
        finally:
            on_loop(started.stop(1))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
