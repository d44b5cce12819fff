"""The greatest memory that this process comes to have in use while something is done."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from types import TracebackType

_EVERY = 0.02  # seconds


class Watched:
    """A context manager; afterwards ``bytes`` is the greatest resident size within, less that before.

    Looked at fifty times a second: not ``ru_maxrss``, which doesn't fall, and which a process may have from the one
    that started it.
    """

    bytes: int

    def __enter__(self) -> Watched:
        self._before = self._most = resident()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watcher.join()
        self.bytes = max(self._most, resident()) - self._before

    def _watch(self) -> None:
        while not self._over.wait(_EVERY):
            self._most = max(self._most, resident())


def resident() -> int:
    """Bytes in use now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
