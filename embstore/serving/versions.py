"""Which version each name means now, opened and loaded; and how it comes to mean another.

A swap is one assignment: requests that have begun keep the reader they began with, those that come after get the new
one. A version that was swapped out stays loaded for a while; then its memory goes with the last request on it.

    production ──> v1            store promotes v2; the watcher opens, reads and warms it
    production ──> v2            v1 answers what it had begun
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from embstore.errors import EmbstoreError
from embstore.serving.outcomes import message_of
from embstore.serving.reader import Reader
from embstore.store import Store, Version
from embstore.store.state import PRODUCTION

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Following:
    """How names are followed.

    Args:
        alias: what a request means that names no version; a tag or version id, too, which then stays what it is.
        seconds: between two looks at the store.
        kept: versions asked for by id or tag that stay loaded, those asked for last.
        lingers: seconds that a version stays loaded after a swap, so that going back to it is immediate; no more than
            ``kept`` do.
    """

    alias: str = PRODUCTION
    seconds: float = 1.0
    kept: int = 2
    lingers: float = 30.0


class Versions:
    """The versions of a store that are answered from; any number of threads may ask at once.

    Args:
        store: where they come from.
        following: how.
        open_reader: opens one; ``Reader`` with ``embstore.models.build``, say.
        swapped: called with a name and the version it means, after each swap.
        failed: called with a name and whether it can't be swapped: each time it is tried, and when that is over.
    """

    def __init__(
        self,
        store: Store,
        following: Following | None = None,
        *,
        open_reader: Callable[[Version], Reader] = Reader,
        swapped: Callable[[str, Reader], object] = lambda name, reader: None,
        failed: Callable[[str, bool], object] = lambda name, fails: None,
    ) -> None:
        self.store, self.following = store, following or Following()
        self._open, self._swapped, self._failing = open_reader, swapped, failed
        self._named: dict[str, Reader] = {}  # by alias
        self._kept: OrderedDict[str, Reader] = OrderedDict()  # by id, tag or prefix
        self._left: dict[str, tuple[Reader, float]] = {}  # by id, swapped out, until when they linger
        self._lock = threading.Lock()  # of the three
        self._loading: dict[str, threading.Lock] = {}
        self._failed: dict[str, tuple[str, str]] = {}  # what went wrong, and what who asks is told
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def ready(self, ref: str = "") -> Reader | None:
        """The reader of an alias, tag, version id or unique prefix of one, if it is loaded; without any I/O."""
        reader = self._named.get(ref or self.following.alias)
        if reader is None and ref in self._kept:
            with self._lock:
                reader = self._kept.get(ref)
                if reader is not None:
                    self._kept.move_to_end(ref)
        return reader

    def get(self, ref: str = "") -> Reader:
        """The same, loaded if it is not; an alias is followed from then on.

        Raises:
            VersionNotFoundError: it means nothing.
            CorruptVersionError: the version is not what was published.
            StoreError: the store can't be read.
        """
        ref = ref or self.following.alias
        reader = self.ready(ref)
        return reader if reader is not None else self._load(ref)

    def loaded(self) -> dict[str, str]:
        """Version ids by the names they are loaded under."""
        with self._lock:
            readers = {**self._kept, **self._named}
        return {name: reader.version.id for name, reader in readers.items()}

    def follow(self) -> None:
        """Load the alias, and watch it, and those asked for later, from a thread of its own until ``close``.

        Raises:
            VersionNotFoundError, CorruptVersionError, StoreError: as ``get``.
        """
        self.get()
        self._watcher = threading.Thread(target=self._watch, name="versions", daemon=True)
        self._watcher.start()

    def look(self) -> None:
        """Look once whether aliases mean other versions now, and swap those that do.

        A version that can't be loaded, for whatever reason, is logged, and the one before answers on.
        """
        with self._lock:
            named = list(self._named.items())
            self._left = {version: of for version, of in self._left.items() if monotonic() < of[1]}
        for name, reader in named:
            try:
                version = self.store.resolve(name)
                if version != reader.version.id:
                    self._load(name, instead_of=reader)
                if self._failed.pop(name, None) is not None:
                    self._failing(name, False)
            except Exception as error:  # also of what nobody thought of: other aliases, and the next look, go on
                found = f"{type(error).__name__}: {error}"
                if self._failed.get(name, ("", ""))[0] != found:  # once, not every second
                    about = {"alias": name, "version": reader.version.id, "error": str(error)}
                    unforeseen = None if isinstance(error, EmbstoreError) else error
                    text = "not swapped: the version before answers on"
                    log.error(text, extra={"fields": about}, exc_info=unforeseen)
                self._failed[name] = found, message_of(error)
                self._failing(name, True)

    def failures(self) -> dict[str, str]:
        """Why an alias could not be swapped, by its name."""
        return {name: told for name, (_, told) in self._failed.copy().items()}

    def close(self) -> None:
        """End watching."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.following.seconds):
            self.look()

    def _load(self, ref: str, instead_of: Reader | None = None) -> Reader:
        """Open, read and name a version; the same one, asked for by several at once, is loaded once."""
        with self._lock:
            lock = self._loading.setdefault(ref, threading.Lock())
        try:
            with lock:
                reader = self.ready(ref)
                if reader is not None and reader is not instead_of:
                    return reader
                version = self.store.resolve(ref)
                reader = self._loaded_already(version) or self._opened(version)
                is_alias = ref == self.following.alias or self.store.aliases().get(ref) is not None
                with self._lock:
                    if is_alias:
                        before = self._named.get(ref)
                        if before is not None:
                            self._left.pop(before.version.id, None)
                            self._left[before.version.id] = before, monotonic() + self.following.lingers
                            while len(self._left) > self.following.kept:
                                self._left.pop(next(iter(self._left)))
                        self._named[ref] = reader
                    else:
                        self._kept[ref] = reader
                        while len(self._kept) > self.following.kept:
                            self._kept.popitem(last=False)
        finally:
            with self._lock:  # also of names that mean nothing: there is no end of them
                if self._loading.get(ref) is lock:  # else it was done before, and others wait by another
                    del self._loading[ref]
        if is_alias:
            log.info("loaded", extra={"fields": {"alias": ref, "version": version}})
            self._swapped(ref, reader)
        return reader

    def _loaded_already(self, version: str) -> Reader | None:
        with self._lock:
            readers = [*self._named.values(), *self._kept.values(), *(reader for reader, _ in self._left.values())]
        return next((reader for reader in readers if reader.version.id == version), None)

    def _opened(self, version: str) -> Reader:
        reader = self._open(self.store.open(version))
        reader.load()
        return reader
