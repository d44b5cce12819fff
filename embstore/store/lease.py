"""Leases: a version kept for as long as someone says so, and no longer than they said."""

from __future__ import annotations

import os
import secrets
import socket
from types import TracebackType
from typing import Any

from embstore.errors import StoreError
from embstore.store.log import Log, stamp
from embstore.store.refs import check_living, resolve
from embstore.store.state import HOLDER, State

MAX_LEASE_SECONDS = 366 * 86400


class Lease:
    """A version that gc leaves alone until a time; take one with ``Store.lease``.

    A context manager: leaving the block releases it. Who forgets to, or dies, holds it until the time is over.

    Args:
        log: of the store.
        id: 16 hex digits.
        version: the id of the version held.
        holder: who holds it, for those who wonder.
        seconds: from taking or renewing it to its end.
        until: its end, UTC, e.g. ``"2026-11-24T03:44:20Z"``.
    """

    def __init__(self, log: Log, *, id: str, version: str, holder: str, seconds: float, until: str) -> None:
        self.id, self.version, self.holder, self.seconds, self.until = id, version, holder, seconds, until
        self._log = log

    def renew(self) -> None:
        """Hold the version for ``seconds`` from now.

        Raises:
            VersionNotFoundError: the lease had run out and the version was collected.
            StoreError: it was released.
        """

        until = self.until

        def entry(state: State) -> dict[str, Any] | None:
            nonlocal until
            check_living(state, self.version)
            if self.id not in state.leases:
                raise StoreError(f"lease {self.id} of {self.version}", found="released", do="take another")
            made = _entry(self._log, self.id, self.version, self.holder, self.seconds)
            until = max(made["until"], state.leases[self.id].until)
            return made if made["until"] > state.leases[self.id].until else None  # renewed within the same second

        self._log.add(entry)
        self.until = until

    def release(self) -> None:
        """Hold the version no longer; no change when it is not held."""

        def entry(state: State) -> dict[str, Any] | None:
            if self.id not in state.leases:
                return None
            time = stamp(self._log.clock())
            return {"time": time, "verb": "release", "lease": self.id, "version": self.version}

        self._log.add(entry)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.release()
        except StoreError as unreleased:
            if error is None:
                raise
            error.add_note(f"{self!r} was not released: {unreleased}")  # the block's own error is what matters

    def __repr__(self) -> str:
        return f"Lease({self.version}, holder={self.holder!r}, until={self.until})"


def take(log: Log, ref: str, *, seconds: float, holder: str | None) -> Lease:
    """A lease of the version that ``ref`` means; see ``Store.lease``."""
    if not 1 <= seconds <= MAX_LEASE_SECONDS:
        raise StoreError(
            "lease",
            expected=f"1 to {MAX_LEASE_SECONDS:,} seconds",
            found=str(seconds),
            do="a tag keeps a version longer",
        )
    holder = f"{socket.gethostname()} {os.getpid()}" if holder is None else holder
    if not HOLDER.fullmatch(holder):
        raise StoreError("holder of a lease", expected="1 to 200 characters, none a control", found=repr(holder))
    id = secrets.token_hex(8)
    entry = log.add(lambda state: _entry(log, id, resolve(state, ref, log.place), holder, seconds))
    assert entry
    return Lease(log, id=id, version=entry["version"], holder=holder, seconds=seconds, until=entry["until"])


def _entry(log: Log, id: str, version: str, holder: str, seconds: float) -> dict[str, Any]:
    """The log entry that takes or renews a lease from now on."""
    now = log.clock()
    return {
        "time": stamp(now),
        "verb": "lease",
        "lease": id,
        "version": version,
        "holder": holder,
        "until": stamp(now, seconds=seconds),
    }
