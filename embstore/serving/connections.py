"""How uvicorn serves the application: its settings, and connections that bound what they hold of a request.

uvicorn and httptools bound neither a request's head nor what follows a chunked body, nor the time that a client takes.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from functools import cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536
HEAD_SECONDS = 30.0  # for all of a head to come
BODY_SECONDS = 40.0  # for the first of a body; asgi.py waits for the rest
IDLE_SECONDS = 75.0  # longer than load balancers keep theirs, which would meet a closed one
WRITE_SECONDS = 30.0  # without ``SLOWEST_BYTES`` read in each, a client is gone
SLOWEST_BYTES = 10_000  # a second
PIPELINED = 64  # requests that may wait for the one before
CONNECTIONS = 8192  # of a process, and no more than three quarters of the files that it may open
_LOOK_SECONDS = 5.0


class Connection(HttpToolsProtocol):
    """A connection that ends where its client doesn't come on.

    That is: more than ``HEAD_BYTES`` without the end of a head or any of a body, a head that takes more than
    ``HEAD_SECONDS``, a body of which nothing comes, nothing for ``IDLE_SECONDS``, or a response that isn't read.
    """

    _idle_bytes = 0
    _since = 0.0  # it began to wait for a request, or to answer one
    _head_since: float | None = None  # the first byte of a head that isn't whole
    _unsent = _slow_looks = 0
    _looking: Any = None
    _answered: Any = None  # the request that is being, or was last

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > _most_connections():
            self._refuse(b"503 Service Unavailable", "server: expected fewer connections; try again")
        self._looking = self.loop.call_later(_LOOK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._idle_bytes += len(data)
        super().data_received(data)
        if self._idle_bytes > HEAD_BYTES and self.parser is not None and not self.transport.is_closing():
            self.send_400_response(f"request: expected a head of at most {HEAD_BYTES:,} bytes")

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has ended only its own side still reads the answer to a whole request."""
        if self._is_answering and not self.cycle.more_body and self.scheme == "http":
            self.cycle.keep_alive = False
            return True
        self._leave()
        return None

    def on_message_begin(self) -> None:
        self._idle_bytes, self._head_since = 0, self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._idle_bytes, self._head_since = 0, None
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("pipelined requests")  # answered as any that can't be parsed
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        self._since, self._slow_looks = self.loop.time(), 0
        super().on_response_complete()

    def resume_writing(self) -> None:
        self._slow_looks = 0
        super().resume_writing()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered, self._since = cycle, self.loop.time()
        super()._start_asgi_task(cycle, app)

    @property
    def _is_answering(self) -> bool:
        return self._answered is not None and not self._answered.response_complete

    def _leave(self) -> None:
        """What is being answered goes nowhere; uvicorn says so only to the request that came last."""
        self.pipeline.clear()
        for cycle in (self._answered, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _look(self) -> None:
        """End the connection where its client has stopped."""
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        is_slow = bool(self._unsent) and unsent > self._unsent - SLOWEST_BYTES * _LOOK_SECONDS
        self._slow_looks = self._slow_looks + 1 if unsent and is_slow else 0
        self._unsent = unsent
        if self._slow_looks * _LOOK_SECONDS >= WRITE_SECONDS:
            self._leave()
            self.transport.abort()
        elif self.transport.is_closing():
            pass
        elif self._is_answering:
            cycle = self._answered
            is_silent = cycle.more_body and not cycle.response_started and now - self._since > BODY_SECONDS
            if is_silent and cycle is self.cycle and not cycle.body:
                self._refuse(b"408 Request Timeout", f"request: expected its body in {BODY_SECONDS:g} s")
        else:
            if self._head_since is not None and now - self._head_since > HEAD_SECONDS:
                self._refuse(b"408 Request Timeout", f"request: expected all of its head in {HEAD_SECONDS:g} s")
            elif self._head_since is None and now - self._since > IDLE_SECONDS + _LOOK_SECONDS:
                self.transport.close()  # also of one that sends what is no request
        self._looking = self.loop.call_later(_LOOK_SECONDS, self._look)

    def send_400_response(self, msg: str) -> None:
        """In the words of the other errors; it has no untrusted text."""
        self._refuse(b"400 Bad Request", msg)

    def _refuse(self, status: bytes, message: str) -> None:
        body = b'{"error":"%b"}' % message.encode()
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\n" % status
        self._leave()
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        self.transport.close()


@cache
def _most_connections() -> int:
    return min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4)


SETTINGS: Mapping[str, Any] = {  # of uvicorn.Config
    "http": Connection,
    "loop": "uvloop",
    "ws": "none",
    "interface": "asgi3",
    "lifespan": "off",
    "proxy_headers": False,
    "server_header": False,
    "access_log": False,
    "log_config": None,
    "timeout_keep_alive": IDLE_SECONDS,
}
