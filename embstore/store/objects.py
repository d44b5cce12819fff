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
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore, from_url

from embstore.errors import CorruptVersionError, StoreError
from embstore.store.bundle import Progress
from embstore.store.failures import request_failed
from embstore.store.files import FileDigest, last_used, make_folder, read_small, sha256_file
from embstore.store.manifest import MANIFEST
from embstore.store.place import TRANSFERS, Stamp, refuse_fork

PARTIAL = ".tmp-"  # a file being written
_CHUNK_BYTES = 8 << 20
_UPLOAD_PARTS = 4  # of 5 MiB, of a file at once
# An endpoint that gives no sign for so long is tried again, until retries have gone on for so long. To an upload no
# sign is given before it is done: a slow one has all the time of a request.
_SILENCE, _RETRIES = timedelta(seconds=8), timedelta(seconds=15)
_CONNECT, _REQUEST = timedelta(seconds=5), timedelta(minutes=10)
# What obstore reads of the environment unless it is given options, as AWS_ALLOW_HTTP.
_OPTIONS = (
    *("allow_http", "allow_invalid_certificates", "root_certificate", "user_agent", "default_content_type"),
    *("connect_timeout", "read_timeout", "timeout", "pool_idle_timeout", "pool_max_idle_per_host"),
    *("http1_only", "http2_only", "http2_keep_alive_interval", "http2_keep_alive_timeout"),
    *("http2_keep_alive_while_idle", "randomize_addresses"),
    *("proxy_url", "proxy_ca_certificate", "proxy_excludes"),
)
_PREFIXES = {"s3": "AWS", "s3a": "AWS", "gs": "GOOGLE"}  # of the environment's variables; the others' are AZURE
_SERVERS = (  # variables that say whose bucket of a name is meant
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT"),
    *("AZURE_ENDPOINT", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"),
)


def caches() -> Path:
    """What can be made again lies here: ``$EMBSTORE_CACHE``, or in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("EMBSTORE_CACHE") or Path(home) / "embstore")


def cache_folder(objects: ObjectStore, name: str, above: Path | None = None) -> Path:
    """The folder of this machine for a store's files: no other's, be it of that name on another server.

    Args:
        above: what it lies in; ``$EMBSTORE_CACHE`` or the user's cache folder when not given.
    """
    above = above or caches()
    config = getattr(objects, "config", {})
    server = [str(config.get(key, "")) for key in ("endpoint", "account_name")]
    server += [os.environ.get(variable, "") for variable in _SERVERS]
    return above / hashlib.sha256("\n".join((name, *server)).encode()).hexdigest()[:16]


def _client(scheme: str, *, patient: bool) -> dict[str, Any]:
    """obstore's options: ours, and over them the environment's, none of which obstore would read any more."""
    prefix = _PREFIXES.get(scheme, "AZURE")
    given = {option: os.environ.get(f"{prefix}_{option.upper()}") for option in _OPTIONS}
    options: dict[str, Any] = {"connect_timeout": _CONNECT, "read_timeout": _SILENCE, "timeout": _REQUEST}
    options |= {option: value for option, value in given.items() if value is not None}
    if patient:
        del options["read_timeout"]
    return options


class ObjectPlace:
    """A store in a bucket.

    Args:
        objects: of obstore, its prefix the store's.
        name: for messages, e.g. ``"s3://bucket/prefix"``.
        cache: folder in which to make one for what is fetched; several processes and stores may share it.
        uploads: the same by a more patient client, if there is one.
    """

    at_hand = False

    def __init__(
        self, objects: ObjectStore, name: str, cache: Path | None = None, uploads: ObjectStore | None = None
    ) -> None:
        self._objects, self._uploads, self._name = objects, uploads or objects, name
        self.folder = cache_folder(objects, name, cache)

    @classmethod
    def at(cls, uri: str, cache: Path | None = None) -> ObjectPlace:
        """By its URI, as ``location`` gives it; credentials and endpoint are those of the environment, as the
        provider's own tools read them.

        Raises:
            StoreError: a URI or an environment that obstore can't use.
        """
        scheme = uri.partition("://")[0]
        # S3 compares what it got with this; the others compare lengths, and we what is read back.
        options: dict[str, Any] = {"checksum_algorithm": "SHA256"} if scheme in ("s3", "s3a") else {}
        patient = {**options, "client_options": _client(scheme, patient=True)}
        options["client_options"] = _client(scheme, patient=False)
        options["retry_config"] = {"retry_timeout": _RETRIES}
        refuse_fork()
        try:
            objects, uploads = from_url(uri, **options), from_url(uri, **patient)
        except (BaseError, ValueError, TypeError) as error:
            raise request_failed(f"store {uri}", error) from error
        return cls(objects, uri, cache, uploads)

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

    def entry(self, objects: ObjectStore, meta: obstore.ObjectMeta) -> bytes:
        """From the cache where the bucket's ETag says that it is the same, else from the bucket.

        An ETag is an object's MD5 but in buckets that encrypt with keys of their own, and in Azure; there an entry is
        fetched by every process.
        """
        path, size = meta["path"], meta["size"]
        digest, cached = (meta["e_tag"] or "").strip('"'), self.folder / path
        with suppress(CorruptVersionError):
            if _md5(data := read_small(cached, size)) == digest:
                return data
        data = bytes(obstore.get_range(objects, path, start=0, length=size))
        if _md5(data) == digest:
            with suppress(OSError), _whole(cached) as partial:  # it only saves a request
                partial.write_bytes(data)
        return data

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

    def discard(self, staged: Path) -> None:
        """It alone."""
        shutil.rmtree(staged, ignore_errors=True)

    def keep(
        self, staged: Path, version: str, files: Mapping[str, FileDigest], progress: Progress | None = None
    ) -> None:
        """Upload it, read it back, compare; the manifest goes last. What was staged stays in the cache."""
        total, done = sum(digest.bytes for digest in files.values()), 0
        bucket = self.files(version)

        def upload(name: str) -> int:
            with self._told(f"upload {name}"), (staged / name).open("rb") as file:
                obstore.put(self._uploads, bucket.path(name), file, max_concurrency=_UPLOAD_PARTS)
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

    def tidy(self, living: Collection[str], retired: Collection[str], grace_seconds: float) -> None:
        """Drop what the cache has of retired versions; of what no entry names and what is half fetched, the old.

        What can't be read or removed stays: it is room on this machine, no more.
        """
        now = time.time()
        with suppress(OSError):
            for path in list((self.folder / "versions").iterdir()):
                with suppress(OSError):
                    if path.name in retired or (path.name not in living and now - last_used(path) > grace_seconds):
                        shutil.rmtree(path, ignore_errors=True)
        for folder, _, names in os.walk(self.folder):
            for path in (Path(folder, name) for name in names if name.startswith(PARTIAL)):
                with suppress(OSError):
                    if now - last_used(path) > grace_seconds:
                        path.unlink()

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
            raise request_failed(f"store {self}: {doing}", error) from error


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
        return {name: stamp.bytes for name, stamp in self.stamps().items()}

    def stamps(self) -> dict[str, Stamp]:
        """Of the objects, not of what the cache has of them."""
        above = self.path("")
        return {
            meta["path"].removeprefix(above): Stamp(meta["size"], f"{meta['e_tag']} {meta['last_modified']}")
            for meta in self.place.listed(above.rstrip("/"))
        }

    def fetch(self, name: str, digest: FileDigest) -> Path:
        """From the cache if it is whole there, else from the bucket."""
        target = self.folder / name
        with suppress(CorruptVersionError):
            if sha256_file(target) == digest:
                return target
        try:
            with _whole(target) as partial:
                with partial.open("xb") as file:
                    found = self._read(name, file.write, digest.bytes)
                if found != digest:
                    raise CorruptVersionError(self.where(name), expected=str(digest), found=str(found))
        except OSError as error:
            do = "make room there, or set EMBSTORE_CACHE to another folder"
            raise StoreError(f"cache {self.place.folder}", found=str(error), do=do) from error
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


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A path to write a file of the cache to; leaving the block puts it in its place, an error removes it."""
    partial = target.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)  # nothing of the cache's is one
        os.replace(partial, target)
    finally:
        with suppress(OSError):
            partial.unlink()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
