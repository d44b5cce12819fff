"""The processes of a server on Ray Serve: the single host's server behind Ray's proxies.

    client ──> proxy of a node ──> replica: http.App, grpc.Servicer ──> Server ──> Versions ──> Reader

Where a table is held by shards a replica has everything of a version but its rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import torch

from embstore.serving import logs, page
from embstore.serving.grpc import Servicer
from embstore.serving.http import App
from embstore.serving.settings import ServeSettings
from embstore.serving.worker import server_of

from .rpc import Methods
from .shards import DistantReader, Shard, Shards

_WAITING = 32  # requests that wait for shards at a time; others wait for those

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Front(Methods):
    """A replica.

    Args:
        settings: of the server.
        shards: handles of the deployments that hold the table; none: it is mapped here.
    """

    async def __init__(self, settings: ServeSettings, *shards: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        _begin(settings, {})
        if shards:
            asked = Shards(shards)
            self.server = server_of(
                settings, lambda version, build: DistantReader(version, build, asked), threads=_WAITING
            )
        else:
            self.server = server_of(settings)
        await asyncio.to_thread(self.server.versions.follow)
        self.http, self.handlers = App(self.server, files=page.files()), Servicer(self.server).handlers()
        self.body_bytes = settings.limits.body_bytes


class Part(Shard):
    """A shard's process.

    Args:
        settings, shard, shards: as ``Shard``'s.
    """

    def __init__(self, settings: ServeSettings, shard: int, shards: int) -> None:
        _begin(settings, {"shard": shard})
        super().__init__(settings, shard, shards)


def _begin(settings: ServeSettings, about: dict[str, Any]) -> None:
    """Logs as of the single host, in Ray's files; one thread a request, as others are answered beside it."""
    logs.configure(settings.log_level, about)
    torch.set_num_threads(1)


def asgi() -> Callable[..., Awaitable[None]]:
    """The application that a process's replica answers HTTP with."""
    return _answer


async def _answer(scope: Message, receive: Any, send: Send) -> None:
    if scope["type"] != "http":
        return
    from ray import serve

    async def send_bytes(message: Message) -> None:
        """Messages go to the proxy pickled, which views of memory can't be."""
        if isinstance(message.get("body"), memoryview):
            message = {**message, "body": bytes(message["body"])}
        await send(message)

    front: Any = serve.get_replica_context().servable_object
    await front.http(scope, receive, send_bytes)
