"""How uvicorn serves the application: its settings, and connections that bound what they hold of a request.

uvicorn and httptools bound neither a request's head nor what follows a chunked body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536


class Connection(HttpToolsProtocol):
    """A connection; it ends where more than ``HEAD_BYTES`` come without the end of a head or any of a body."""

    _idle_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._idle_bytes += len(data)
        super().data_received(data)
        if self._idle_bytes > HEAD_BYTES and self.parser is not None and not self.transport.is_closing():
            self.send_400_response(f"request: expected a head of at most {HEAD_BYTES:,} bytes")

    def on_message_begin(self) -> None:
        self._idle_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._idle_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """In the words of the other errors; it has no untrusted text."""
        body = b'{"error":"%b"}' % msg.encode()
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        self.transport.close()


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
    "timeout_keep_alive": 75,  # longer than load balancers keep theirs, which would meet a closed one
}
