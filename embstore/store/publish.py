"""Publishing: a version is written, read as its readers will read it, put in its place, and then named in the log."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from embstore.distributed import Group
from embstore.errors import CorruptVersionError, StoreError
from embstore.store import format
from embstore.store.bundle import Bundle, Change, Progress
from embstore.store.files import FileDigest
from embstore.store.local import LocalFiles
from embstore.store.log import Log, stamp
from embstore.store.manifest import MANIFEST, DeltaInfo
from embstore.store.place import Place
from embstore.store.refs import check_living, resolve
from embstore.store.state import State
from embstore.store.version import Version

OpenBase = Callable[[DeltaInfo], Version]


def publish(
    place: Place,
    log: Log,
    bundle: Bundle,
    *,
    parent: str | None,
    encoding: str | None,
    change: Change | None,
    open_base: OpenBase,
    progress: Progress | None,
    group: Group,
) -> tuple[str, Version | None]:
    """See ``Store.publish``.

    Args:
        open_base: opens what a delta is a change of.

    Returns:
        The id of the version and, on rank 0, of a delta its base.
    """
    begun: dict[str, Any] = {}
    try:
        begun = group.lead(lambda: _begin(place, log, bundle, parent, change))
        staged = Path(begun["staged"])
        try:
            _check_seen(staged, group)
            manifest = format.write(
                staged,
                bundle,
                version=begun["version"],
                created=begun["created"],
                space=begun["space"],
                parent=begun["parent"],
                encoding=encoding,
                change=change,
                progress=progress,
                group=group,
            )
            base = None

            def keep() -> str:
                nonlocal base
                own = FileDigest(len(manifest), sha256(manifest).hexdigest())
                read = _as_readers_do(staged, begun["version"], own.sha256, open_base)
                place.keep(staged, begun["version"], {**read.files, MANIFEST: own}, progress)
                base = read.base
                return own.sha256

            digest = group.lead(keep)
        except BaseException:
            if group.first:
                shutil.rmtree(staged, ignore_errors=True)
            raise
        group.lead(lambda: _commit(place, log, begun, digest, base))
    except OSError as error:
        raise StoreError(
            f"publish {begun.get('version', '')}".strip(), found=str(error), do="see whether `versions` has it"
        ) from error
    return begun["version"], base


def _begin(place: Place, log: Log, bundle: Bundle, parent: str | None, change: Change | None) -> dict[str, Any]:
    """A name for the version, and a folder to write it in."""
    state = log.state()
    if change is not None:
        parent = parent or change.base.id
        if state.published[resolve(state, change.base.id, place)].manifest_sha256 != change.base.digest:
            raise StoreError(f"delta of {change.base.id}", expected="a version of this store", found="another's")
    created = stamp(log.clock())
    version = f"{created.replace('-', '').replace(':', '')}-{secrets.token_hex(4)}"
    return {
        "version": version,
        "created": created,
        "space": bundle.lineage.get("space") or (change.base.space if change is not None else new_space()),
        "parent": parent if parent is None or parent in state.retired else resolve(state, parent, place),
        "staged": str(place.stage(version)),
    }


def _check_seen(staged: Path, group: Group) -> None:
    (unseen,) = group.any(not staged.is_dir())
    if unseen:
        do = "publish from ranks of one host, or onto a file system they share"
        raise StoreError(f"publish into {staged}", expected="a folder that all ranks see", found="not on each", do=do)


def _commit(place: Place, log: Log, begun: Mapping[str, Any], digest: str, base: Version | None) -> None:
    """Let the version exist."""

    def entry(state: State) -> dict[str, Any]:
        if base is not None:
            check_living(state, base.id)
        if not place.holds(begun["version"]):
            found = "its files removed by gc"
            raise StoreError(f"publish {begun['version']}", found=found, do="allow a longer grace")
        return {
            "time": begun["created"],
            "verb": "publish",
            "version": begun["version"],
            "manifest_sha256": digest,
            "parent": begun["parent"],
        }

    log.add(entry)


def new_space() -> str:
    """A new id for vectors that compare with no others: what a freshly made table gets."""
    return secrets.token_hex(16)


def _as_readers_do(staged: Path, version: str, digest: str, open_base: OpenBase) -> Version:
    """Open what was written: what no reader accepts is not published."""
    try:
        return Version.open(LocalFiles(staged), version=version, digest=digest, open_base=open_base)
    except CorruptVersionError as error:
        raise StoreError("bundle", expected="one that readers accept", found=str(error)) from error
