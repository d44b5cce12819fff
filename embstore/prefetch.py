"""Run an iterator ahead in a thread, with a bounded number of items made but not yet taken."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterate ``source`` in a thread, at most ``depth`` items ahead; errors are raised where the item would be.

    The next item is only begun when there is room for it, so ``depth=1`` holds two items at most: the one being
    used and the one being made. Use as a context manager, or call ``close``; leaving early stops the thread.

    Args:
        source: what to iterate; its ``close`` is called at the end, if it has one.
        depth: items made ahead.
        name: the thread's.

    Raises:
        ConfigError: a depth below 1.
    """

    def __init__(self, source: Iterator[T], depth: int, name: str = "prefetch") -> None:
        self._source = source
        self._items: deque[tuple[str, object]] = deque()
        self._room = threading.Semaphore(depth)
        self._ready = threading.Semaphore(0)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        _running.add(self)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._room.acquire()
                if self._stopped:
                    # A consumer may already be waiting for the item that now won't come.
                    self._put("end", None)
                    return
                try:
                    item = next(self._source)
                except StopIteration:
                    self._put("end", None)
                    return
                self._put("item", item)
                del item
        except BaseException as error:  # handed to the consumer, which raises it
            self._put("error", error)
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()

    def _put(self, kind: str, item: object) -> None:
        self._items.append((kind, item))
        self._ready.release()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._stopped:
            raise StopIteration
        self._ready.acquire()
        kind, item = self._items.popleft()
        if kind == "item":
            self._room.release()
            return item  # type: ignore[return-value]
        self._stopped = True
        if kind == "error":
            try:
                raise item  # type: ignore[misc]
            finally:
                del item  # else the error, its traceback and this frame hold each other, and what they read
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stopped = True
        self._room.release()
        self._thread.join()
        self._items.clear()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_running: WeakSet[Prefetch[Any]] = WeakSet()


@atexit.register
def _close_all() -> None:
    # A thread that is in native code while the interpreter goes away aborts the process.
    for prefetch in list(_running):
        prefetch.close()
