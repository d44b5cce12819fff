"""Lines for machines, lines for people."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO

import pytest

from embstore.serving import logs


class Terminal(StringIO):
    """What a person watches."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_json_object_a_line() -> None:
    stream = StringIO()
    logs.configure("info", {"worker": 3}, stream)
    log = logging.getLogger("embstore.serving")
    log.debug("nothing")
    log.info("loaded\n%s", "more", extra={"fields": {"version": "v1"}})
    try:
        raise ValueError("inside")
    except ValueError:
        log.exception("failed")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["worker"], first["message"], first["version"]) == ("info", 3, "loaded\nmore", "v1")
    assert first["time"].endswith("Z")
    assert "ValueError: inside" in second["traceback"]


def test_plain_lines_on_a_terminal() -> None:
    stream = Terminal()
    logs.configure("debug", {"worker": 3}, stream)
    logging.getLogger("embstore.serving").warning("not swapped", extra={"fields": {"alias": "production"}})
    assert stream.getvalue().endswith(" worker 3 warning: not swapped alias=production\n")


def test_what_comes_from_outside_stays_on_its_line() -> None:
    stream = Terminal()
    logs.configure("debug", stream=stream)
    path = "/v2\n12:00:00 error: worker died\x1b[2J"
    logging.getLogger("embstore.serving").debug("request", extra={"fields": {"path": path}})
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"request path='/v2\n12:00:00 error: worker died\x1b[2J'")
