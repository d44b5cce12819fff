"""Publishing: a version is written, read as its readers will read it, put in its place, and then named in the log."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from embstore.distributed import Group
from embstore.errors import CorruptVersionError, GroupError, StoreError
from embstore.store import format
from embstore.store.bundle import Bundle, Change, Progress
from embstore.store.files import FileDigest, remedy
from embstore.store.local import LocalFiles
from embstore.store.log import Log, stamp
from embstore.store.manifest import DELTA, MANIFEST
from embstore.store.place import Place
from embstore.store.refs import check_living, resolve
from embstore.store.state import State
from embstore.store.version import Version


def publish(
    place: Place,
    log: Log,
    bundle: Bundle,
    change: Change | None,
    *,
    parent: str | None,
    encoding: str | None,
    progress: Progress | None,
    group: Group,
) -> str:
    """See ``Store.publish``; the id of the version."""
    begun = group.lead(lambda: _begin(place, log, bundle, parent, change))
    version = begun["version"]
    try:
        staged = Path(group.lead(lambda: str(place.stage(version))))
        try:
            if blind := _blind(staged, group):
                raise StoreError(f"publish into {staged}", **blind)
            manifest = format.write(
                staged, bundle, **begun, encoding=encoding, change=change, progress=progress, group=group
            )
            kept = group.lead(lambda: _keep(place, staged, version, manifest, change, progress))
        except BaseException:
            if group.first:
                place.discard(staged)
            raise
        if change is not None and kept is None:
            return change.base.id
        group.lead(lambda: _commit(place, log, begun, kept))
    except OSError as error:
        do = ": ".join(filter(None, ("it was not published", remedy(error))))
        raise StoreError(f"publish {version}", found=str(error), do=do) from error
    return str(version)


def check_group(place: Place, group: Group, now: datetime) -> None:
    """See ``Store.check_group``."""
    if group.alone:
        return
    staged = Path(group.lead(lambda: str(place.stage(_id(stamp(now))))))
    try:
        if blind := _blind(staged, group):
            raise GroupError(f"publishing to {place}", **blind)
    finally:
        if group.first:
            place.discard(staged)


def _blind(staged: Path, group: Group) -> dict[str, str]:
    """What is wrong where a rank doesn't see a folder that rank 0 made."""
    found = group.each(lambda: [socket.gethostname(), staged.is_dir()])
    hosts = sorted({host for host, seen in found if not seen})
    if not hosts:
        return {}
    return {
        "expected": f"a folder that all ranks see: {staged.parent}, made on {found[0][0]}",
        "found": f"none on {', '.join(hosts)}",
        "do": "publish to a folder that the hosts share; to a bucket by ranks of one host",
    }


def _id(created: str) -> str:
    return f"{created.replace('-', '').replace(':', '')}-{secrets.token_hex(4)}"


def _begin(place: Place, log: Log, bundle: Bundle, parent: str | None, change: Change | None) -> dict[str, Any]:
    """The version's name, and what else of it is known before it is written."""
    state = log.state()
    if change is not None:
        parent = parent or change.base.id
        if state.published[resolve(state, change.base.id, place)].manifest_sha256 != change.base.digest:
            raise StoreError(f"delta of {change.base.id}", expected="a version of this store", found="another's")
        change.base.check(place.files)
    created = stamp(log.clock())
    return {
        "version": _id(created),
        "created": created,
        "space": bundle.lineage.get("space") or (change.base.space if change is not None else new_space()),
        "parent": parent if parent is None or parent in state.retired else resolve(state, parent, place),
    }


def _keep(
    place: Place, staged: Path, version: str, manifest: bytes, change: Change | None, progress: Progress | None
) -> dict[str, str | None] | None:
    """Put what was written in its place, unless it says nothing new; the digest of its manifest, and its base."""
    if change is not None and change.smallest and _says_nothing_new(json.loads(manifest), change.base):
        place.discard(staged)
        return None
    own = FileDigest(len(manifest), sha256(manifest).hexdigest())
    read = _as_readers_do(staged, version, own.sha256, change)
    place.keep(staged, version, {**read.files, MANIFEST: own}, progress)
    return {"digest": own.sha256, "base": None if read.base is None else read.base.id}


def _commit(place: Place, log: Log, begun: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """Let the version exist."""
    version = begun["version"]

    def entry(state: State) -> dict[str, Any]:
        if kept["base"] is not None:
            check_living(state, kept["base"])
        if not place.holds(version):
            raise StoreError(f"publish {version}", found="its files removed by gc", do="allow a longer grace")
        return {
            "time": begun["created"],
            "verb": "publish",
            "version": version,
            "manifest_sha256": kept["digest"],
            "parent": begun["parent"],
        }

    log.add(entry)


def new_space() -> str:
    """A new id for vectors that compare with no others: what a freshly made table gets."""
    return secrets.token_hex(16)


def _says_nothing_new(manifest: dict[str, Any], base: Version) -> bool:
    """Whether a version differs from its base in nothing but its name."""
    if manifest["delta"] is None or manifest["delta"]["rows"] or manifest["parent"] != base.id:
        return False
    if manifest.get("vocabulary") is not None:  # another than the base's
        return False
    before, files = base.manifest["files"], manifest["files"].items()
    kept = ("space", "columns", "model", "lineage", "metrics", "optimizer")
    return all(manifest[key] == base.manifest.get(key) for key in kept) and all(
        before.get(name) == digest for name, digest in files if name != DELTA
    )


def _as_readers_do(staged: Path, version: str, digest: str, change: Change | None) -> Version:
    """Open what was written: what no reader accepts is not published."""
    open_base = None if change is None else lambda _: change.base
    try:
        return Version.open(LocalFiles(staged), version=version, digest=digest, open_base=open_base)
    except CorruptVersionError as error:
        raise StoreError("bundle", expected="one that readers accept", found=str(error)) from error
