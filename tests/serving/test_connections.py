"""Connections whose clients don't come on are ended."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

import pytest
from running import serving

from embstore.serving import connections
from embstore.serving.protocol import Limits
from embstore.store import Store

SETTINGS = connections.SETTINGS
HEAD = b"POST /v2/models/shop/infer HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks every 20 ms."""
    monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.02)


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        yield connection


def rest(connection: socket.socket) -> bytes:
    """Until the server ends it."""
    parts = []
    try:
        while part := connection.recv(1 << 20):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


@pytest.mark.parametrize("sent", [b"P", HEAD, HEAD + b"X: "])
def test_heads_that_do_not_come(sent: bytes, http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    with connected(http) as connection:
        connection.sendall(sent)
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert "all of its head" in json.loads(body)["error"]


def test_bodies_that_do_not_come(http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.1)
    for more in (b"Content-Length: 100\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
        with connected(http) as connection:
            connection.sendall(HEAD + more)
            head, _, body = rest(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert "its body in" in json.loads(body)["error"]


def test_heads_by_the_byte(http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    with connected(http) as connection, pytest.raises(ConnectionError):
        _trickle(connection)


def _trickle(connection: socket.socket) -> None:
    for byte in HEAD * 1000:
        connection.sendall(bytes([byte]))
        sleep(0.01)


@pytest.mark.parametrize("sent", [b"", b"\r\n", HEAD + b"Content-Length: 2\r\n\r\n{}"])
def test_silent_connections(sent: bytes, http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.1)
    with connected(http) as connection:
        connection.sendall(sent)
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 400") == (len(sent) > 2)


def asked(count: int) -> bytes:
    """A request of so many items."""
    body = json.dumps(
        {
            "inputs": [{"name": "item", "datatype": "INT64", "shape": [count], "data": [7] * count}],
            "outputs": [{"name": "item.embedding"}],
        }
    ).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def test_responses_that_are_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(connections, "SLOWEST_BYTES", 1 << 30)  # what is sent while it is tested isn't enough
    with serving(store) as (_, address):
        with connected(address) as connection:
            connection.sendall(asked(200_000))
            sleep(2)
            answer = rest(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert len(answer) < int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])


def test_responses_together(store: Store) -> None:
    """Those that wait for clients are counted; when they are read there is room again."""
    with serving(store, limits=Limits(output_bytes=10 << 20)) as (_, address):
        held: list[Any] = []
        for _ in range(8):  # of some 8 MB; 40 MiB may wait
            host, port = address.split(":")
            connection = socket.create_connection((host, int(port)), timeout=60)
            connection.sendall(asked(100_000))
            held.append((connection, connection.recv(12)))
        assert {status for _, status in held} == {b"HTTP/1.1 200", b"HTTP/1.1 503"}
        for connection, _ in held:
            connection.shutdown(socket.SHUT_WR)
            rest(connection)
            connection.close()
        with connected(address) as connection:
            connection.sendall(asked(100_000))
            assert connection.recv(12) == b"HTTP/1.1 200"


def test_more_connections_than_there_may_be(http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_most_connections", lambda: 2)
    with connected(http) as first, connected(http) as second, connected(http) as third:
        head, _, body = rest(third).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert "fewer connections" in json.loads(body)["error"]
        for connection in (first, second):
            connection.sendall(asked(1))
            assert connection.recv(12) == b"HTTP/1.1 200"


def test_who_ended_its_side_is_answered(http: str) -> None:
    with connected(http) as connection:
        connection.sendall(asked(1) * 3)
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection).count(b"HTTP/1.1 200") == 3


def test_pipelined_requests_are_bounded(http: str) -> None:
    with connected(http) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        connection.shutdown(socket.SHUT_WR)
        assert b"HTTP/1.1 400" in rest(connection)
