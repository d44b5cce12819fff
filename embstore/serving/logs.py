"""What a server's processes say, on stderr: a JSON object a line, or plain lines where a person watches.

log.info("ready", extra={"fields": {"version": "..."}})

{"time": "2026-01-02T03:04:05.678Z", "level": "info", "worker": 0, "pid": 12, "message": "ready", "version": "..."}
03:04:05 worker 0 ready version=...
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO


class JsonLines(logging.Formatter):
    """A JSON object a line.

    Args:
        about: what each line says, too.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        super().__init__()
        self._about = dict(about)

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": time, "level": record.levelname.lower(), **self._about, "pid": record.process}
        line |= {"message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class PlainLines(logging.Formatter):
    """The same for a person."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        super().__init__()
        self._about = "".join(f"{key} {value} " for key, value in about.items())

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        fields = "".join(f" {key}={_shown(value)}" for key, value in getattr(record, "fields", {}).items())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{time} {self._about}{level}{record.getMessage()}{fields}{trace}"


def _shown(value: Any) -> str:
    """A value that may be from outside: neither a line of its own nor an order to the terminal."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def configure(level: str, about: Mapping[str, Any] | None = None, stream: TextIO | None = None) -> None:
    """Send all of this process's logs to ``stream`` (stderr)."""
    to = stream or sys.stderr
    handler = logging.StreamHandler(to)
    handler.setFormatter((PlainLines if to.isatty() else JsonLines)(about or {}))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("asyncio", "numba", "grpc", "uvicorn"):  # what others get wrong is no news of the server
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # warns of every request that isn't one
