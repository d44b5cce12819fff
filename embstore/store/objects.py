"""A store in a bucket: S3, Google Cloud Storage, Azure, by ``obstore``.

A version's files are uploaded, read back and compared before an entry of the log names it; creating an entry only if
there is none is the bucket's own conditional put. What is read is fetched into a folder of this machine, the cache,
its sha256 taken on the way, and mapped there: a table's bucket when a row of it is first asked for.

    s3://bucket/prefix/versions/<id>/table/bucket-00007.safetensors
        -> cache/versions/<id>/table/bucket-00007.safetensors

Whoever publishes writes there, too, before the upload, and so needs room for a version.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore, from_url

from embstore.errors import CorruptVersionError, StoreError
from embstore.store.bundle import Progress
from embstore.store.files import FileDigest, make_folder, sha256_file
from embstore.store.manifest import MANIFEST
from embstore.store.place import TRANSFERS, refuse_fork

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "adl", "azure")
_CHUNK_BYTES = 8 << 20


def default_cache(name: str) -> Path:
    """The folder of this machine for a store's files: below ``$EMBSTORE_CACHE``, else the user's cache folder."""
    above = os.environ.get("EMBSTORE_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = Path(above) if above else Path(home) / "embstore"
    return root / hashlib.sha256(name.encode()).hexdigest()[:16]


class ObjectPlace:
    """A store in a bucket.

    Args:
        objects: of obstore, its prefix the store's.
        name: for messages, e.g. ``"s3://bucket/prefix"``.
        cache: folder for what is fetched; several processes may share it.
    """

    at_hand = False

    def __init__(self, objects: ObjectStore, name: str, cache: Path | None = None) -> None:
        self._objects, self._name = objects, name
        self.folder = default_cache(name) if cache is None else cache

    @classmethod
    def at(cls, uri: str, cache: Path | None = None) -> ObjectPlace:
        """By its URI; credentials and endpoint are those of the environment, as the provider's own tools read them.

        Raises:
            StoreError: not a URI of a bucket.
        """
        scheme = uri.partition("://")[0]
        if scheme not in SCHEMES:
            expected = f"a folder, file:// or one of {', '.join(f'{known}://' for known in SCHEMES[:4])}"
            raise StoreError(f"store {uri}", expected=expected, found=f"{scheme}://")
        refuse_fork()
        try:
            # S3 compares what it got with this; the others compare lengths, and we what is read back.
            objects = from_url(uri, checksum_algorithm="SHA256") if scheme in ("s3", "s3a") else from_url(uri)
        except (BaseError, ValueError, TypeError) as error:
            raise StoreError(f"store {uri}", expected="a bucket and a prefix", found=_first_line(error)) from error
        return cls(objects, uri, cache)

    def __str__(self) -> str:
        return self._name

    def missing(self) -> tuple[str, str] | None:
        """Where there is no log."""
        with self._told("list"):
            first = next(iter(obstore.list(self._at_hand(), "log", chunk_size=1)), None)
        return None if first else ("a log in that bucket and prefix", "none")

    def objects(self) -> ObjectStore:
        """The bucket."""
        return self._at_hand()

    def check_entry(self, path: str) -> None:
        """Nothing: a bucket has no links."""

    def create(self, path: str, data: bytes) -> bool:
        """One conditional put."""
        with self._told(f"create {path}"):
            try:
                obstore.put(self._at_hand(), path, data, mode="create")
            except AlreadyExistsError:
                # A put whose answer was lost is tried again, and then finds its own object: no two writers' are alike.
                return bytes(obstore.get_range(self._objects, path, start=0, length=len(data) + 1)) == data
        return True

    def stage(self, version: str) -> Path:
        """A folder of the cache."""
        staged = self.folder / "versions" / f".tmp-{version}"
        try:
            make_folder(staged.parent)
            staged.mkdir()
        except OSError as error:
            expected = "a cache folder that can be written"
            raise StoreError(
                f"cache {self.folder}", expected=expected, found=str(error), do="set EMBSTORE_CACHE"
            ) from error
        return staged

    def keep(
        self, staged: Path, version: str, files: Mapping[str, FileDigest], progress: Progress | None = None
    ) -> None:
        """Upload it, read it back, compare; the manifest goes last. What was staged stays in the cache."""
        total, done = sum(digest.bytes for digest in files.values()), 0
        bucket = self.files(version)

        def upload(name: str) -> int:
            with self._told(f"upload {name}"), (staged / name).open("rb") as file:
                obstore.put(self._objects, bucket.path(name), file)
            found = bucket.digest(name)
            if found != files[name]:
                raise CorruptVersionError(bucket.where(name), expected=str(files[name]), found=str(found))
            return found.bytes

        self._at_hand()
        names = [name for name in files if name != MANIFEST]
        with ThreadPoolExecutor(TRANSFERS) as pool:
            for size in pool.map(upload, names):
                done += size
                if progress:
                    progress("upload", done, total)
        done += upload(MANIFEST)
        if progress:
            progress("upload", done, total)
        with suppress(OSError):  # it only saves a download
            os.rename(staged, bucket.folder)
        shutil.rmtree(staged, ignore_errors=True)

    def holds(self, version: str) -> bool:
        """Whether its manifest is there."""
        return MANIFEST in self.files(version).sizes()

    def files(self, version: str) -> ObjectFiles:
        """Those of a version."""
        return ObjectFiles(self, version, self.folder / "versions" / version)

    def contents(self) -> Iterator[str]:
        """Prefixes below ``versions/``; of the log nothing can be left behind."""
        with self._told("list"):
            yield from sorted(obstore.list_with_delimiter(self._at_hand(), "versions")["common_prefixes"])

    def last_written(self, path: str) -> float:
        """The latest of all in it, by the bucket's clock."""
        return max((meta["last_modified"].timestamp() for meta in self.listed(path)), default=0.0)

    def size(self, path: str) -> int:
        """Of all in it."""
        return sum(meta["size"] for meta in self.listed(path))

    def remove(self, path: str, wanted: Callable[[], bool]) -> bool:
        """The manifest first: what has none is no version, and no publisher names it."""
        names = [meta["path"] for meta in self.listed(path)]
        manifest, held = f"{path}/{MANIFEST}", None
        with self._told(f"delete {path}"), suppress(FileNotFoundError):
            if manifest in names:
                held = bytes(obstore.get(self._objects, manifest).bytes())
                obstore.delete(self._objects, manifest)
            if wanted():
                if held is not None:
                    obstore.put(self._objects, manifest, held)
                return False
            obstore.delete(self._objects, [name for name in names if name != manifest])
        return bool(names)

    def tidy(self, living: Collection[str], grace_seconds: float) -> None:
        """Drop what the cache has of other versions; of those being written, what is older than the grace."""
        cached = self.folder / "versions"
        for path in list(cached.iterdir()) if cached.is_dir() else ():
            gone = path.name not in living
            if path.name.startswith(".tmp-"):
                with suppress(FileNotFoundError):  # its publisher has just finished
                    gone = time.time() - path.stat().st_mtime > grace_seconds
            if gone:
                shutil.rmtree(path, ignore_errors=True)

    def listed(self, path: str) -> list[obstore.ObjectMeta]:
        """What lies below a path."""
        with self._told("list"):
            return [meta for chunk in obstore.list(self._at_hand(), path) for meta in chunk]

    def stream(self, path: str, where: str) -> Iterator[memoryview]:
        """An object's bytes, some at a time.

        Raises:
            CorruptVersionError: there is none.
            StoreError: the bucket doesn't give it.
        """
        with self._told(f"read {path}"):
            try:
                result = obstore.get(self._at_hand(), path)
            except FileNotFoundError as error:
                raise CorruptVersionError(where, expected="an object", found="none") from error
            for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                yield memoryview(chunk)

    def _at_hand(self) -> ObjectStore:
        refuse_fork()
        return self._objects

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """obstore's errors, and those that it takes from Python, as the store's."""
        try:
            yield
        except (BaseError, OSError) as error:
            do = "see the bucket's name, the network and the credentials; docs/object-stores.md"
            raise StoreError(f"store {self}: {doing}", found=_first_line(error), do=do) from error


@dataclass(frozen=True)
class ObjectFiles:
    """A version's files in a bucket, and those of them in the cache."""

    place: ObjectPlace
    version: str
    folder: Path
    at_hand = False

    def path(self, name: str) -> str:
        """Relative to the store."""
        return f"versions/{self.version}/{name}"

    def where(self, name: str) -> str:
        """Its URI."""
        return f"{self.place}/{self.path(name)}"

    def sizes(self) -> dict[str, int]:
        """Length by name."""
        above = self.path("")
        return {meta["path"].removeprefix(above): meta["size"] for meta in self.place.listed(above.rstrip("/"))}

    def fetch(self, name: str, digest: FileDigest) -> Path:
        """From the cache if it is whole there, else from the bucket."""
        target = self.folder / name
        with suppress(CorruptVersionError):
            if sha256_file(target) == digest:
                return target
        partial = target.with_name(f".tmp-{secrets.token_hex(8)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                found = self._read(name, file.write, digest.bytes)
            if found != digest:
                raise CorruptVersionError(self.where(name), expected=str(digest), found=str(found))
            os.replace(partial, target)
        except OSError as error:
            do = "make room there, or set EMBSTORE_CACHE to another folder"
            raise StoreError(f"cache {self.place.folder}", found=str(error), do=do) from error
        finally:
            with suppress(OSError):
                partial.unlink()
        return target

    def digest(self, name: str) -> FileDigest:
        """Of the object; nothing is kept."""
        return self._read(name, len)

    def _read(self, name: str, take: Callable[[memoryview], object], at_most: int | None = None) -> FileDigest:
        """Stream an object; of one longer than ``at_most`` no more than a chunk beyond."""
        hashed, size = hashlib.sha256(), 0
        for chunk in self.place.stream(self.path(name), self.where(name)):
            hashed.update(chunk)
            take(chunk)
            size += len(chunk)
            if at_most is not None and size > at_most:
                break
        return FileDigest(size, hashed.hexdigest())


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
