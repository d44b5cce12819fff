"""Collecting what nothing holds: old versions, and what crashes left behind.

    1. retire     a log entry names the versions that are no more; from here nobody can resolve, lease or promote them
    2. rename     versions/<id> becomes versions/.tmp-gone-<id>-<hex>
    3. delete     file by file

A crash after 1 or 2 leaves what the next gc takes at once. A process that has a version open keeps its files until it
closes them, as POSIX lets a deleted file live while it is mapped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from embstore.errors import CorruptVersionError, StoreError
from embstore.store.documents import Fields, read_json
from embstore.store.local import GONE
from embstore.store.log import Log, stamp
from embstore.store.manifest import MANIFEST, VERSION_ID
from embstore.store.place import Place, read_manifest
from embstore.store.state import Published, State

_AT_ONCE = 1000  # versions in one entry, so that it stays within the log's limit
_TEMPORARY = ".tmp-"


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a gc did or, in a dry run, would do.

    Args:
        retired: versions that are no more, oldest first.
        removed: leftovers of crashes, relative to the store: of publishes, of log entries, of earlier gcs.
        bytes: freed by both; less while a reader still has a version open.
        kept: why each version that exists is kept, oldest first.
    """

    retired: tuple[str, ...]
    removed: tuple[str, ...]
    bytes: int
    kept: dict[str, tuple[str, ...]]


def collect(log: Log, *, keep: int, grace_seconds: float, dry_run: bool) -> Collected:
    """Retire versions and remove leftovers; see ``Store.gc``."""
    if keep < 1:
        raise StoreError("gc: keep", expected="1 or more: the last version stays", found=str(keep))
    if not grace_seconds >= 0:
        raise StoreError("gc: grace_seconds", expected="0 or more", found=str(grace_seconds))
    base = functools.cache(functools.partial(_read_base, log.place))  # a manifest never changes
    retired: list[str] = []
    unwanted: list[str] = []
    kept: dict[str, list[str]] = {}
    seen = State()

    def retire(state: State) -> dict[str, Any] | None:
        nonlocal seen, kept, unwanted
        seen = state
        time = stamp(log.clock())  # read once: the entry's time is the one at which leases were found to be over
        kept = _kept(state, time, keep, base)
        unwanted = [version for version in state.living if version not in kept]
        if dry_run or not unwanted:
            return None
        return {"time": time, "verb": "retire", "versions": unwanted[-_AT_ONCE:]}

    while added := log.add(retire):
        retired[:0] = added["versions"]  # the newest first: what is based on a version goes no later than it does
    retired += unwanted  # of a dry run
    freed, removed = 0, []
    try:
        for path in _leftovers(log, seen, grace_seconds):
            size = _remove(log, path, dry_run)
            freed += size or 0
            if size is not None and path.split("/")[1] not in retired:
                removed.append(path)
    except OSError as error:
        raise StoreError(f"gc: store {log.place}", expected="leftovers that can be read", found=str(error)) from error
    if dry_run:
        freed += sum(log.place.size(f"versions/{version}") for version in retired)
    else:
        state = log.state()
        log.place.tidy(state.living, state.retired, grace_seconds)
    return Collected(
        retired=tuple(retired),
        removed=tuple(removed),
        bytes=freed,
        kept={version: tuple(kept[version]) for version in seen.living if version in kept},
    )


def base_of(manifest: dict[str, Any]) -> str | None:
    """The version whose rows this one's are changes of, ``delta.base`` of the manifest; ``None`` for a whole version.

    Raises:
        CorruptVersionError: a base that is no version's id.
    """
    delta = manifest.get("delta")
    if delta is None or (isinstance(delta, dict) and delta.get("base") is None):
        return None
    return Fields(delta, "manifest: delta").text("base", VERSION_ID)


def _kept(state: State, time: str, keep: int, base: Callable[[Published], str | None]) -> dict[str, list[str]]:
    """The versions to keep and why: what the log holds, the newest ``keep``, and the bases of all these.

    A kept version whose manifest can't be read may be based on any that was published before it, so all of them stay.
    """
    out, living = state.held(time), state.living
    for version in living[-keep:]:
        out.setdefault(version, []).append(f"among the last {keep}")
    # A base was published before what is based on it, so one pass from the newest to the oldest finds them all.
    for place in range(len(living) - 1, -1, -1):
        version = living[place]
        if version not in out:
            continue
        try:
            below = base(state.published[version])
        except CorruptVersionError:
            for earlier in living[:place]:
                out.setdefault(earlier, []).append(f"may be the base of {version}, whose manifest can't be read")
        else:
            if below is not None:
                out.setdefault(below, []).append(f"base of {version}")
    return out


def _read_base(place: Place, published: Published) -> str | None:
    files = place.files(published.version)
    data = read_manifest(files, published.manifest_sha256, files.sizes().get(MANIFEST, 0))
    return base_of(read_json(data, files.where(MANIFEST)))


def _leftovers(log: Log, state: State, grace_seconds: float) -> Iterator[str]:
    """What may go now: of retired versions all, of the rest what nothing has been written to for the grace."""
    now = log.clock().timestamp()
    for path in log.place.contents():
        folder, name = path.split("/")
        if name.startswith(_TEMPORARY):
            at_once = name.startswith(GONE)
        elif folder == "versions" and VERSION_ID.fullmatch(name):
            at_once = name in state.retired
            # Without a single entry it is the log that is missing, more likely than all of the versions' entries.
            if not state.number or (name in state.published and not at_once):
                continue
        else:
            continue  # not ours
        if not at_once:
            if now - log.place.last_written(path) <= grace_seconds:
                continue
            if name in log.state().published:  # its publisher was only slow
                continue
        yield path


def _remove(log: Log, path: str, dry_run: bool) -> int | None:
    """Remove it and all in it; returns its bytes, or ``None`` when another gc was faster or its publisher only slow."""

    def wanted() -> bool:
        state, version = log.state(), path.split("/")[1]
        return version in state.published and version not in state.retired

    size = log.place.size(path)
    try:
        return size if dry_run or log.place.remove(path, wanted) else None
    except OSError as error:
        raise StoreError(f"gc: {path}", expected="something that can be removed", found=str(error)) from error
