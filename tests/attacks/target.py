"""A server to attack, of a store of one version: ``python target.py FOLDER [READ_TOKEN ADMIN_TOKEN]``.

Prints, as JSON, where it listens; logs of what failed inside go to stderr. It ends with its stdin. Features ``user``
and ``item`` are searched; limits are smaller than the usual ones, so that an attack reaches them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import threading
from pathlib import Path

import torch
import uvicorn
import uvloop
from shop import VOCABULARY, bundle

from embstore.models import build
from embstore.serving.access import Access
from embstore.serving.connections import SETTINGS
from embstore.serving.grpc import bind
from embstore.serving.http import App, File
from embstore.serving.indexes import Indexes
from embstore.serving.protocol import Limits
from embstore.serving.reader import Reader
from embstore.serving.server import Server
from embstore.serving.versions import Versions
from embstore.store import Store

LIMITS = Limits(values=200_000, output_bytes=32 << 20, body_bytes=8 << 20)


def server_of(folder: Path, tokens: list[str]) -> Server:
    """Of a store that is made in the folder."""
    store = Store(folder / "shop")
    store.promote(store.publish(bundle(vocabulary=VOCABULARY)).id)
    indexes = Indexes(features=("user", "item"), folder=folder / "indexes")
    versions = Versions(store, open_reader=lambda version: Reader(version, build, indexes))
    versions.get()
    access = Access(tokens[:1], tokens[1:])
    return Server(name="shop", versions=versions, access=access, limits=LIMITS)


async def listen(server: Server) -> None:
    """Until stdin ends."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = App(server, {"/": File(b"<p>shop</p>", "text/html"), "/page.js": File(b"1", "text/javascript")})
    http = uvicorn.Server(uvicorn.Config(app, **SETTINGS))
    rpc, grpc_port = bind(server, "127.0.0.1:0")
    await rpc.start()
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def wait() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait, daemon=True).start()
    serving = loop.create_task(http.serve([listening]))
    while not http.started:
        await asyncio.sleep(0.01)
    version = server.versions.get().version.id
    where = {"http": listening.getsockname()[1], "grpc": grpc_port, "version": version}
    print(json.dumps(where), flush=True)
    await ended.wait()
    http.should_exit = http.force_exit = True
    await asyncio.gather(serving, rpc.stop(0))


def main(folder: str, *tokens: str) -> None:
    """Serve."""
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    uvloop.run(listen(server_of(Path(folder), list(tokens))))


if __name__ == "__main__":
    main(*sys.argv[1:])
