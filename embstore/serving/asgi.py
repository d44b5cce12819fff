"""Requests and responses of an ASGI server such as uvicorn, with bounds on what arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

from embstore.errors import DeadlineError, LimitError, RequestError
from embstore.serving.held import Held
from embstore.serving.protocol import Raw

BODY_SECONDS = 30.0  # for all of a body to come
_JOINED_BYTES = 1 << 20
LARGE_BYTES = 262_144  # bodies that are made and read beside other requests, and responses that are counted
JSON, BINARY = b"application/json", b"application/octet-stream"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Answer(NamedTuple):
    """A response.

    Args:
        body: in parts.
    """

    body: Sequence[Raw]
    kind: bytes = JSON
    headers: Sequence[tuple[bytes, bytes]] = ()
    status: int = 200


class File(NamedTuple):
    """What a path answers with, whoever asks.

    Args:
        kind: its media type.
    """

    body: bytes
    kind: str
    headers: Sequence[tuple[bytes, bytes]] = ()


class HttpError(RequestError):
    """What outcomes.py has no status for: HTTP's own."""

    def __init__(
        self,
        status: int,
        what: str,
        *,
        expected: str = "",
        found: str = "",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(what, expected=expected, found=found)
        self.status, self.headers = status, headers


class LeftError(Exception):
    """Nobody waits for the answer."""


@dataclass(slots=True)
class Call:
    """A request on its way.

    Args:
        headers: names in lower case.
        came: ``perf_counter()`` when its head was there.
        started: when all of it was.
        version: that its path names.
        held: bytes of its body, where it came in several pieces.
        unread: the connection can't be used again.
    """

    path: str
    headers: Mapping[bytes, bytes]
    receive: Receive
    came: float
    started: float
    version: str = ""
    held: int = 0
    unread: bool = False

    async def body(self, limit: int, arriving: Held) -> Raw:
        """All of its body, read-only; of a larger one than ``limit`` nothing, or no more than that, is held.

        Raises:
            HttpError: a compressed one, whose size nobody knows.
            LimitError: a larger one.
            DeadlineError: one that doesn't come.
            UnavailableError: as ``arriving`` says.
            LeftError: who asked has left.
        """
        encoding = self.headers.get(b"content-encoding", b"identity")
        if encoding.lower() != b"identity":
            raise HttpError(415, "Content-Encoding", expected="none", found=shown(text(encoding)))
        declared = int(self.headers.get(b"content-length", 0))
        if declared > limit:
            self.unread = b"expect" in self.headers
            raise _too_large(limit, f"{declared:,}")
        message = await self.receive()  # connections.py ends those of which nothing comes
        if message["type"] != "http.request":
            raise LeftError
        body: Raw = message["body"]
        if message.get("more_body") or len(body) > limit:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body = await self._pieces(body, limit, arriving)
            except TimeoutError as error:
                expected, found = f"all of its body in {BODY_SECONDS:g} s", f"{self.held:,} bytes"
                raise DeadlineError("request", expected=expected, found=found) from error
        self.started = perf_counter()
        return body

    async def _pieces(self, first: Raw, limit: int, arriving: Held) -> Raw:
        body, part, more = bytearray(), first, True
        self.unread = True
        while True:
            if len(body) + len(part) > limit:
                raise _too_large(limit, "more")
            arriving.check(len(part), "a request")
            self.held, arriving.held = self.held + len(part), arriving.held + len(part)
            body += part
            if not more:
                break
            message = await self.receive()
            if message["type"] != "http.request":
                raise LeftError
            part, more = message["body"], message.get("more_body", False)
        self.unread = False
        return memoryview(body).toreadonly()  # for what may be written to, numba would compile functions anew


async def respond(answer: Answer, send: Send, *, is_last: bool) -> None:
    """Send an answer; the connection's last one closes it."""
    parts = answer.body
    size = sum(len(part) for part in parts)
    headers = [(b"content-type", answer.kind), (b"content-length", b"%d" % size), *answer.headers]
    if is_last:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if len(parts) > 1 and size <= _JOINED_BYTES:
        parts = [b"".join(parts)]
    waits = size > LARGE_BYTES  # until most of it is read: the last, empty part is not sent before
    for number, part in enumerate(parts, 1):
        await send({"type": "http.response.body", "body": part, "more_body": waits or number < len(parts)})
    if waits:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def text(header: bytes | None) -> str | None:
    """A header's value; its bytes mean what they meant in HTTP/1.0."""
    return None if header is None else header.decode("latin-1")


def shown(value: Any) -> str:
    """A value from outside, for a message."""
    of = repr(value)
    return of if len(of) <= 100 else f"{of[:97]}..."


def _too_large(limit: int, found: str) -> LimitError:
    do = "ask in several requests"
    return LimitError("request", expected=f"a body of at most {limit:,} bytes", found=found, do=do)
