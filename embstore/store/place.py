"""Where a store is: a folder, or a prefix of a bucket; and where a version's files are.

    folder     log/ and versions/ lie in it; what is read is mapped where it lies
    bucket     the same names, as objects; files are fetched into a folder of this machine when they are first needed

The registry, the log and gc know these two protocols only; ``embstore.store.local`` and ``embstore.store.objects`` are
what there is of each.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import obstore
from obstore.store import ObjectStore

from embstore.errors import CorruptVersionError, StoreError
from embstore.store.bundle import Progress
from embstore.store.files import FileDigest, read_small
from embstore.store.manifest import MANIFEST, MAX_MANIFEST_BYTES

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "adl", "azure")
TRANSFERS = 8  # at once: one connection doesn't fill a network
_MANGLED = re.compile(rf"({'|'.join(SCHEMES)}|file):/(?!/)", re.IGNORECASE)  # as Path leaves a URI


class Stamp(NamedTuple):
    """What changes when a file is written, without reading it.

    Args:
        bytes: its length.
        written: on a disk, its inode and the time of its last change; in a bucket, the object's ETag and time.
    """

    bytes: int
    written: str


class Files(Protocol):
    """The files of one version; a name is relative to the version, with ``/`` between its parts."""

    @property
    def folder(self) -> Path:
        """Where they lie on this machine, or come to lie when they are fetched."""

    @property
    def at_hand(self) -> bool:
        """Whether they lie there without being fetched."""

    def where(self, name: str) -> str:
        """What to call one in a message."""

    def sizes(self) -> dict[str, int]:
        """Length by name of every file there is.

        Raises:
            CorruptVersionError: there is something else than files and folders.
        """

    def stamps(self) -> dict[str, Stamp]:
        """Length, and when it was written, by name of every file there is.

        Raises:
            CorruptVersionError: as ``sizes``.
        """

    def fetch(self, name: str, digest: FileDigest) -> Path:
        """Where one lies on this machine; what had to be fetched is as ``digest`` says.

        Raises:
            CorruptVersionError: it can't be fetched, or is not what ``digest`` says.
        """

    def digest(self, name: str) -> FileDigest:
        """Length and sha256 of the stored bytes as they are now.

        Raises:
            CorruptVersionError: absent, or it can't be read.
        """


class Place(Protocol):
    """Where a store is; ``str`` is its name in messages. A path is relative to it: ``log/...`` or ``versions/...``."""

    @property
    def folder(self) -> Path:
        """On this machine: of the store, or of what is fetched from it."""

    @property
    def at_hand(self) -> bool:
        """Whether the store lies there. Elsewhere a ``create`` may be tried again after it was done: no two writers'
        data may be alike."""

    def missing(self) -> tuple[str, str] | None:
        """Of a store that is not there, what was expected and what was found."""

    def objects(self) -> ObjectStore | None:
        """By which the log is read; ``None`` where there is no log yet.

        Raises:
            CorruptVersionError: a link among its folders.
            StoreError: it can't be read, or not from a fork.
        """

    def entry(self, objects: ObjectStore, meta: obstore.ObjectMeta) -> bytes:
        """The bytes of an entry of the log.

        Args:
            objects: of ``objects``.
            meta: what a listing, or a request for it alone, says of it.

        Raises:
            CorruptVersionError: it is a link.
            BaseError, OSError: it can't be read.
        """

    def create(self, path: str, data: bytes) -> bool:
        """Let an object be there, durable, whole or not at all; False, with nothing changed, when there is one.

        Raises:
            StoreError: it can't be written.
        """

    def stage(self, version: str) -> Path:
        """A new folder of this machine in which to write a version.

        Raises:
            OSError, StoreError: it can't be made.
        """

    def discard(self, staged: Path) -> None:
        """Undo ``stage``, as far as that can be done."""

    def keep(
        self, staged: Path, version: str, files: Mapping[str, FileDigest], progress: Progress | None = None
    ) -> None:
        """Let what was staged be the files of a version, durable; no entry of the log names it yet.

        Raises:
            OSError, StoreError: that can't be done.
        """

    def holds(self, version: str) -> bool:
        """Whether a version has files; asked by the publisher who wrote them."""

    def files(self, version: str) -> Files:
        """Those of a version."""

    def contents(self) -> Iterator[str]:
        """Paths of all that lies in ``versions/`` and ``log/``, folders as one."""

    def last_written(self, path: str) -> float:
        """POSIX time at which anything in it was."""

    def size(self, path: str) -> int:
        """Bytes of all in it."""

    def remove(self, path: str, wanted: Callable[[], bool]) -> bool:
        """Remove it and all in it; False when another had before.

        Args:
            wanted: asked once nobody finds the version any more; if so it is put back, and False is returned.

        Raises:
            OSError, StoreError: that can't be done.
        """

    def tidy(self, living: Collection[str], retired: Collection[str], grace_seconds: float) -> None:
        """Drop what this machine keeps of retired versions; and of no version, once nobody used it for the grace."""


def location(store: str | Path) -> Path | str:
    """A folder, as it was called; or the URI of a bucket and a prefix.

    Raises:
        StoreError: a ``file://`` URI of another machine, a URI of another kind, or one that names no bucket and prefix.
    """
    if not str(store):
        raise StoreError("store ''", expected="a folder or URI", found="an empty name")
    if isinstance(store, Path) or "://" not in store:
        if mangled := _MANGLED.match(str(store)):
            do = "pass it as text: a Path makes one slash of two" if isinstance(store, Path) else ""
            expected = f"a folder, or a URI that begins with {mangled[1]}://"
            raise StoreError(f"store {store}", expected=expected, found=mangled[0], do=do)
        return Path(store)
    try:
        uri = urlsplit(store)
    except ValueError as error:
        raise StoreError(f"store {store}", expected="a URI", found=str(error)) from error
    if uri.scheme != "file":
        _check_bucket(store, uri)
        return store.rstrip("/")
    if uri.netloc not in ("", "localhost"):
        raise StoreError(f"store {store}", expected="a folder or file:// URI", found=f"a folder of {uri.netloc}")
    return Path(unquote(uri.path))


def _check_bucket(store: str, uri: SplitResult) -> None:
    """Refuse what obstore would take for another store, or for none."""
    scheme = store.partition("://")[0]
    if scheme not in SCHEMES:
        expected = f"a folder, file:// or one of {', '.join(f'{known}://' for known in SCHEMES[:4])}"
        raise StoreError(f"store {store}", expected=expected, found=f"{scheme}://")
    found = ""
    if not uri.netloc:
        found = "no bucket"
    elif "?" in store or "#" in store:
        found = "a ? or #"
    elif not {"", ".", ".."}.isdisjoint(unquote(uri.path).rstrip("/").split("/")[1:]):
        found = "a prefix with an empty part, . or .."
    if found:
        raise StoreError(f"store {store}", expected=f"{scheme}://bucket/prefix", found=found)


def read_manifest(files: Files, sha256: str, size: int) -> bytes:
    """The bytes of a version's manifest, of which there are ``size``.

    Raises:
        CorruptVersionError: there is none, or its sha256 is another.
    """
    where = files.where(MANIFEST)
    if size > MAX_MANIFEST_BYTES:
        raise CorruptVersionError(where, expected=f"at most {MAX_MANIFEST_BYTES:,} bytes", found=f"{size:,}")
    data = read_small(files.fetch(MANIFEST, FileDigest(size, sha256)), MAX_MANIFEST_BYTES)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CorruptVersionError(where, expected=f"sha256 {sha256}, as the log says", found=found)
    return data


_forked = _used = False


def refuse_fork() -> None:
    """Called before obstore is.

    Raises:
        StoreError: in a fork of a process that had used a store: obstore's threads are not in it.
    """
    global _used
    if _forked:
        do = "start processes with spawn or forkserver, or fork before a store is used"
        raise StoreError("a store in a forked process", expected="threads of its own", found="none", do=do)
    _used = True


def _after_fork() -> None:
    global _forked
    _forked = _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
