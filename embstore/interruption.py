"""Being asked to stop: Ctrl-C or SIGTERM, which training heeds between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interruption:
    """Whether training was asked to stop."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        """Ask for it, from any thread."""
        self._asked.set()

    def asked(self) -> bool:
        """Whether it was."""
        return self._asked.is_set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The first signal only sets what ``asked`` says, a second one stops at once; only the main thread may set
        handlers, elsewhere nothing is watched."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._asked.clear()

        def stop(*_: object) -> None:
            if self._asked.is_set():
                raise KeyboardInterrupt
            self._asked.set()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
