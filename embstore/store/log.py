"""The append-only log of a store: a version or alias exists because an entry says so.

    log/000000000001.json   {"number": 1, "verb": "publish", "version": ..., "manifest_sha256": ..., "parent": ...}
    log/000000000002.json   {"number": 2, "verb": "alias", "alias": "production", "version": ..., "was": null}

Creating the next number, or failing because another writer has, is the store's only compare-and-swap.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from embstore.errors import CorruptVersionError, StoreError
from embstore.store.documents import Fields, read_json, shown, write_json
from embstore.store.files import fsync_file, fsync_folder, make_folder
from embstore.store.manifest import SHA256, TIME, VERSION_ID

ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_ENTRY = re.compile(r"log/([0-9]{12})\.json")
_MAX_ENTRY_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Published:
    """A version came to be."""

    number: int
    time: str
    version: str
    manifest_sha256: str
    parent: str | None


@dataclass(frozen=True, kw_only=True)
class Aliased:
    """An alias was set; ``was`` is what it meant before."""

    number: int
    time: str
    alias: str
    version: str
    was: str | None


@dataclass
class State:
    """What the entries up to ``number`` amount to; versions are in the order they were published."""

    published: dict[str, Published] = field(default_factory=dict)
    aliases: dict[str, Aliased] = field(default_factory=dict)
    number: int = 0

    def version_of(self, alias: str) -> str | None:
        """The version an alias was set to, or ``None``."""
        return self.aliases[alias].version if alias in self.aliases else None


class Log:
    """The log in a store's folder.

    Args:
        root: of the store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._state = State()

    def state(self) -> State:
        """Replay the entries that are new since the last call.

        Raises:
            CorruptVersionError: an entry that is missing, broken or contradicts an earlier one.
            StoreError: an entry that a later embstore wrote.
        """
        state = self._state
        if not (self.root / "log").is_dir():
            return state
        store = LocalStore(self.root)
        try:
            sizes = {
                int(match[1]): meta["size"]
                for chunk in obstore.list(store, "log", offset=_path(state.number))
                for meta in chunk
                if (match := _ENTRY.fullmatch(meta["path"]))
            }
            state = State(dict(state.published), dict(state.aliases), state.number)
            for number in sorted(sizes):
                _replay(state, number, _read(store, number, sizes[number]))
        except BaseError as error:
            raise StoreError("log", expected="a readable log", found=_first_line(error)) from error
        self._state = state  # set once it is whole: threads may do the work twice, and none sees half of it
        return state

    def append(self, number: int, entry: dict[str, Any]) -> bool:
        """Create entry ``number``, durable; False, with nothing changed, when another writer has.

        Raises:
            StoreError: the entry can't be written.
        """
        folder = self.root / "log"
        make_folder(folder)
        store = LocalStore(self.root)
        staged, path = f"log/.tmp-{secrets.token_hex(8)}", _path(number)
        try:
            # Whole and on the disk before anyone can see it: a power cut leaves no torn entry that others built upon.
            obstore.put(store, staged, write_json({"number": number, **entry}), mode="create")
            with (self.root / staged).open("rb") as file:
                fsync_file(file)
            obstore.copy(store, staged, path, overwrite=False)
        except AlreadyExistsError as error:
            if self.state().number < number:  # else the caller would try the same number for ever
                raise StoreError(path, expected="a readable entry", found="one that can't be read") from error
            return False
        except BaseError as error:
            raise StoreError(f"log entry {number}", found=_first_line(error)) from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self.root / staged)
        fsync_folder(folder)
        return True


def _read(store: LocalStore, number: int, size: int) -> dict[str, Any]:
    path = _path(number)
    if not 0 < size <= _MAX_ENTRY_BYTES:
        raise CorruptVersionError(path, expected=f"1 to {_MAX_ENTRY_BYTES:,} bytes", found=f"{size:,}")
    return read_json(bytes(obstore.get_range(store, path, start=0, length=size)), path)


def _replay(state: State, number: int, entry: dict[str, Any]) -> None:
    where = _path(number)
    if number != state.number + 1:
        raise CorruptVersionError(_path(state.number + 1), expected="an entry, as later ones follow", found="none")
    fields = Fields(entry, where)
    fields.whole("number", number, number)
    time, version = fields.text("time", TIME), fields.text("version", VERSION_ID)
    verb = entry.get("verb")
    if verb == "publish":
        parent, sha256 = fields.text_or_null("parent", VERSION_ID), fields.text("manifest_sha256", SHA256)
        if version in state.published:
            raise fields.wrong("version", "a new version", f"{version}, published before")
        if parent is not None and parent not in state.published:
            raise fields.wrong("parent", "a version published before", parent)
        state.published[version] = Published(
            number=number, time=time, version=version, manifest_sha256=sha256, parent=parent
        )
    elif verb == "alias":
        alias, was = fields.text("alias", ALIAS), fields.text_or_null("was", VERSION_ID)
        if version not in state.published:
            raise fields.wrong("version", "a version published before", version)
        if was != state.version_of(alias):
            raise fields.wrong("was", repr(state.version_of(alias)), repr(was))
        state.aliases[alias] = Aliased(number=number, time=time, alias=alias, version=version, was=was)
    else:
        raise StoreError(f"{where}: verb {shown(verb)}", expected="publish or alias", do="upgrade embstore")
    state.number = number


def _path(number: int) -> str:
    return f"log/{number:012d}.json"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
