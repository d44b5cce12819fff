"""The append-only log of a store: a version, alias, tag or lease exists because an entry says so.

    log/000000000001.json   {"number": 1, "verb": "publish", "version": ..., "manifest_sha256": ..., "parent": ...}
    log/000000000002.json   {"number": 2, "verb": "alias", "alias": "production", "version": ..., "was": null}

Creating the next number, or failing because another writer has, is the store's only compare-and-swap. What the entries
mean, and which may follow which, is in ``embstore.store.state``.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from embstore.errors import CorruptVersionError, StoreError
from embstore.store.documents import read_json, write_json
from embstore.store.failures import request_failed
from embstore.store.place import TRANSFERS, Place
from embstore.store.state import State, replay

_ENTRY = re.compile(r"log/([0-9]{12})\.json")
_MAX_ENTRY_BYTES = 64 << 10
_AT_ONCE = 4 * TRANSFERS  # entries asked for before the first of them is replayed

Clock = Callable[[], datetime]


class Log:
    """The log of a store.

    Args:
        place: of the store.
        clock: what time it is, with its time zone.
    """

    def __init__(self, place: Place, clock: Clock) -> None:
        self.place, self.clock = place, clock
        self._state = State()

    def state(self, *, least: int = 0) -> State:
        """Replay the entries that are new since the last call.

        Args:
            least: the number of an entry that is there, whether a listing shows it yet or not: that of a shared file
                system may be a minute old.

        Raises:
            CorruptVersionError: an entry that is missing, broken or contradicts an earlier one.
            StoreError: an entry that a later embstore wrote, or a store that can't be read.
        """
        state, objects = self._state, self.place.objects()
        if objects is None:
            return state
        try:
            listed = {
                int(match[1]): meta
                for chunk in obstore.list(objects, "log", offset=_path(state.number))
                for meta in chunk
                if (match := _ENTRY.fullmatch(meta["path"]))
            }
            numbers = range(state.number + 1, max([least, *listed]) + 1)
            if not numbers:
                return state
            state = state.copy()
            with closing(self._read(objects, numbers, listed)) as entries:
                for number, data in zip(numbers, entries, strict=True):
                    where = self._where(number)
                    replay(state, number, read_json(data, where), where)
        except (BaseError, OSError) as error:
            raise request_failed(f"store {self.place}: read log", error) from error
        self._state = state  # set once it is whole: threads may do the work twice, and none sees half of it
        return state

    def _read(self, objects: ObjectStore, numbers: range, listed: Mapping[int, obstore.ObjectMeta]) -> Generator[bytes]:
        """The bytes of entries in order; from elsewhere, several at once."""

        def read(number: int) -> bytes:
            return self.place.entry(objects, self._checked(objects, number, listed.get(number)))

        if self.place.at_hand:
            yield from map(read, numbers)
        else:
            with ThreadPoolExecutor(min(TRANSFERS, len(numbers))) as pool:
                for first in range(0, len(numbers), _AT_ONCE):  # a gap is found before all are asked for
                    yield from pool.map(read, numbers[first : first + _AT_ONCE])

    def add(self, entry_on: Callable[[State], dict[str, Any] | None]) -> dict[str, Any] | None:
        """Append the entry that ``entry_on`` makes of the present state, however many others write meanwhile.

        Args:
            entry_on: called again, with a newer state, after each entry that another writer got in first; so what it
                checks is true of all that precedes the entry. ``None`` leaves the log as it is; errors pass through.

        Returns:
            The entry appended, or ``None``.

        Raises:
            StoreError: the entry can't be written.
        """
        while True:
            state = self.state()
            entry = entry_on(state)
            if entry is None or self.append(state.number + 1, entry):
                return entry

    def append(self, number: int, entry: dict[str, Any]) -> bool:
        """Create entry ``number``, durable; False, with nothing changed, when another writer has.

        Raises:
            StoreError: the entry can't be written.
        """
        path = _path(number)
        own = {} if self.place.at_hand else {"nonce": secrets.token_hex(8)}
        if self.place.create(path, write_json({"number": number, **entry, **own})):
            return True
        if self.state().number < number:  # else the caller would try the same number for ever
            raise StoreError(self._where(number), expected="a readable entry", found="one that can't be read")
        return False

    def _checked(self, objects: ObjectStore, number: int, meta: obstore.ObjectMeta | None) -> obstore.ObjectMeta:
        """What is known of an entry, before it is read."""
        where = self._where(number)
        if meta is None:  # a listing may miss what was created while it was made, and show what was created later
            try:
                meta = obstore.head(objects, _path(number))
            except FileNotFoundError:
                raise CorruptVersionError(where, expected="an entry, as later ones follow", found="none") from None
        if not 0 < meta["size"] <= _MAX_ENTRY_BYTES:
            raise CorruptVersionError(where, expected=f"1 to {_MAX_ENTRY_BYTES:,} bytes", found=f"{meta['size']:,}")
        return meta

    def _where(self, number: int) -> str:
        """What to call an entry in a message."""
        return f"{self.place}/{_path(number)}"


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def stamp(time: datetime, *, seconds: float = 0) -> str:
    """A time, ``seconds`` later, as the store writes it; begun seconds of the sum count as whole.

    >>> stamp(datetime(2026, 11, 24, 3, 44, 20, 700_000, tzinfo=UTC))
    '2026-11-24T03:44:20Z'
    >>> stamp(datetime(2026, 11, 24, 3, 44, 20, 700_000, tzinfo=UTC), seconds=1)
    '2026-11-24T03:44:22Z'
    """
    if seconds:
        time = datetime.fromtimestamp(math.ceil((time + timedelta(seconds=seconds)).timestamp()), UTC)
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _path(number: int) -> str:
    return f"log/{number:012d}.json"
