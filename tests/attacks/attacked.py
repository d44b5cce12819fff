"""A target in a process of its own, and clients of it that keep to no rule."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import grpc

from embstore.serving.messages import SERVICE, message

SECONDS = 60.0  # no answer takes longer, however busy the machine is
INFER = "/v2/models/shop/infer"
GOOD: dict[str, Any] = {
    "id": "good",
    "inputs": [
        {"name": "user", "datatype": "BYTES", "shape": [3], "data": ["ann", None, "zoë"]},
        {"name": "item", "datatype": "INT64", "shape": [3], "data": [1, -7, 5]},
        {"name": "tags", "datatype": "BYTES", "shape": [3], "data": ["a", "b", "c"]},
        {"name": "tags.lengths", "datatype": "INT64", "shape": [3], "data": [2, -1, 1]},
        {"name": "country", "datatype": "BYTES", "shape": [3], "data": ["de", "fr", "xx"]},
        {"name": "hour", "datatype": "INT64", "shape": [3], "data": [0, 23, 7]},
        {"name": "hour.missing", "datatype": "BOOL", "shape": [3], "data": [False, True, False]},
        {"name": "price", "datatype": "FP32", "shape": [3], "data": [1.5, None, 2]},
        {"name": "age", "datatype": "FP64", "shape": [3], "data": [33.0, 7.0, 0.5]},
    ],
    "outputs": [{"name": name} for name in ("embedding", "score", "tags.status", "item.neighbors", "item.scores")],
    "parameters": {"k": 3, "exact": True, "timeout": 60_000_000},
}


@dataclass
class Target:
    """A running server.

    Args:
        http, grpc: its ports.
        version: that it serves.
        began: bytes of memory before any attack, where that is compared.
    """

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    version: str
    log: Path
    began: int = 0

    def memory(self, what: str = "VmRSS") -> int:
        """Bytes it holds; ``VmHWM``: has held at most."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{what}:\s+(\d+) kB", text)
        assert found is not None
        return int(found[1]) << 10

    def connect(self) -> socket.socket:
        """A connection to its HTTP port."""
        return socket.create_connection(("127.0.0.1", self.http), timeout=SECONDS)

    def ask(
        self, method: str = "POST", path: str = INFER, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=SECONDS)
        try:
            sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, sent, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def said(self, data: bytes, *, end: bool = True) -> bytes:
        """All that is answered to bytes, until the connection ends."""
        with self.connect() as connection:
            with suppress(OSError):
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
            return received(connection)

    def check(self, headers: Mapping[str, str] | None = None) -> bytes:
        """What a good request is answered with, over HTTP; it is alive."""
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        status, body = self.ask(body=GOOD, headers=headers)
        assert status == 200, body
        return body


def received(connection: socket.socket) -> bytes:
    """Until it ends."""
    parts = []
    with suppress(ConnectionError):
        while part := connection.recv(1 << 20):
            parts.append(part)
    return b"".join(parts)


@contextmanager
def target(folder: Path, *tokens: str) -> Iterator[Target]:
    """A server of a store in the folder, until the end."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parents[1]), str(here.parent / "serving"), os.environ.get("PYTHONPATH", "")])
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(here / "target.py"), str(folder), *tokens],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()
            at = json.loads(line)
            yield Target(process, at["http"], at["grpc"], at["version"], folder / "log")
            process.stdin.close()
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def good_message() -> Any:
    """``GOOD`` as protobuf, its tensors raw."""
    of = message("ModelInferRequest")(model_name="shop", id="good")
    for tensor in GOOD["inputs"]:
        of.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        of.raw_input_contents.append(raw(tensor["datatype"], tensor["data"]))
    for output in GOOD["outputs"]:
        of.outputs.add(name=output["name"])
    of.parameters["k"].int64_param = 3
    of.parameters["exact"].bool_param = True
    return of


def typed_message() -> Any:
    """One feature's values in protobuf's typed fields, with a parameter."""
    of = message("ModelInferRequest")(model_name="shop", id="typed")
    user = of.inputs.add(name="user", datatype="BYTES", shape=[2])
    user.contents.bytes_contents.extend([b"ann", b"bob"])
    item = of.inputs.add(name="item", datatype="INT64", shape=[2, 1])
    item.contents.int64_contents.extend([1, 2**62])
    item.parameters["x"].string_param = "y"
    of.outputs.add(name="user.neighbors")
    of.outputs.add(name="item.embedding")
    return of


def raw(datatype: str, values: list[Any]) -> bytes:
    """Little-endian bytes; zeros for ``None``."""
    import numpy as np

    if datatype == "BYTES":
        texts = [(value or "").encode() for value in values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    kind = {"INT64": "<i8", "BOOL": "?", "FP32": "<f4", "FP64": "<f8"}[datatype]
    return np.array([value or 0 for value in values], dtype=kind).tobytes()


class Caller:
    """Calls of gRPC's methods by bytes."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_receive_message_length", -1)])
        self._methods: dict[str, Any] = {}

    def call(self, method: str, data: bytes, **how: Any) -> tuple[grpc.StatusCode, Any]:
        """The status, and the answer or what is said."""
        if method not in self._methods:
            self._methods[method] = self.channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            return grpc.StatusCode.OK, self._methods[method](data, timeout=SECONDS, **how)
        except grpc.RpcError as error:
            return error.code(), error.details()


def until(holds: Any, seconds: float = SECONDS) -> None:
    """Wait until something holds."""
    end = monotonic() + seconds
    while not holds():
        assert monotonic() < end, "it never held"
        sleep(0.05)
