"""A bucket to test with: moto's S3 server in a process of its own, one request at a time as S3's own puts are.

python buckets.py      serves on a free port, says which, ends when its standard input does
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import ObjectStore, from_url

BUCKET = "tests"
CALLS = ("put", "delete", "get", "get_range", "head", "list", "list_with_delimiter")  # obstore's


class Server:
    """The process, as seen from a test."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True)
        assert self._process.stdout
        endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "something",
        }
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


def new_uri() -> str:
    """A prefix that nothing lies under."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/store"


def mirror(source: str | ObjectStore, folder: Path) -> Path:
    """All that lies under a URI, or in obstore's store, as files: what a judge of folders can judge."""
    store = from_url(source) if isinstance(source, str) else source
    for chunk in obstore.list(store):
        for meta in chunk:
            path = folder / meta["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(obstore.get(store, meta["path"]).bytes())
    return folder


@contextmanager
def intercepted(react: Callable[[str, str, Callable[[], Any]], Any]) -> Iterator[None]:
    """Let ``react(name, path, run)`` answer for every call of obstore's."""

    def on(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(store: Any, *args: Any, **options: Any) -> Any:
            path = args[0] if args and isinstance(args[0], str) else ""
            return react(name, path, lambda: call(store, *args, **options))

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(obstore, name, on(name, getattr(obstore, name)))
        yield


def _serve() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    # Requests one after the other: moto looks whether an object exists, then puts it, in two steps.
    server = make_server("127.0.0.1", 0, application, threaded=False)
    print(server.port, flush=True)
    import threading

    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    _serve()
