"""Files that last and files that lie: durable writing, careful reading.

POSIX promises a new file only after its own fsync and its folder's. What is read back is opened without following
symbolic links, is a regular file, and has its length checked before memory is taken.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from embstore.errors import CorruptVersionError, StoreError


class FileDigest(NamedTuple):
    """Length in bytes and sha256 in hex digits: what a manifest says of a file."""

    bytes: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes with sha256 {self.sha256}"


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; not a symbolic link, folder, pipe or device.

    Raises:
        CorruptVersionError: there is none, or it is no regular file.
    """
    try:
        # Opening a pipe without O_NONBLOCK would wait for a writer.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CorruptVersionError(str(path), expected="a regular file", found=error.strerror or str(error)) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise CorruptVersionError(str(path), expected="a regular file", found="a folder, pipe or device")
    return os.fdopen(number, "rb")


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a file that is at most ``limit`` bytes long.

    Raises:
        CorruptVersionError: absent, no regular file, longer, or the disk can't read it.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise CorruptVersionError(str(path), expected=f"at most {limit:,} bytes", found=f"{size:,}")
        try:
            return file.read(size)  # not limit, all of which Python would allocate first
        except OSError as error:
            raise unreadable(path, error) from error


def write_small(path: Path, data: bytes) -> FileDigest:
    """Write a new file and fsync it; it must not exist. An ``OSError`` names it."""
    with _named(path), path.open("xb") as file:
        file.write(data)
        fsync_file(file)
    return FileDigest(len(data), hashlib.sha256(data).hexdigest())


def replace_small(path: Path, data: bytes) -> None:
    """Let a file hold ``data``, durable; whoever looks meanwhile, or after a crash, finds the old bytes or the new.

    Of several writers at once, the last one's bytes stay. One that is killed may leave a ``.NAME-<hex>`` beside it.
    """
    partial = path.with_name(f".{path.name}-{secrets.token_hex(8)}")  # a writer's own: another may be at work
    try:
        write_small(partial, data)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    fsync_folder(path.parent)


def sha256_file(path: Path) -> FileDigest:
    """Length and sha256 of a file's bytes as they are now.

    Raises:
        CorruptVersionError: absent, no regular file, or the disk can't read it.
    """
    with open_regular(path) as file:
        try:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error) from error
        return FileDigest(file.tell(), digest)


def unreadable(path: Path, error: OSError) -> CorruptVersionError:
    """What to raise for a file that opens but whose bytes the disk doesn't give."""
    return CorruptVersionError(str(path), expected="a file that can be read", found=error.strerror or str(error))


def unwritable(path: Path, error: OSError) -> StoreError:
    """What to raise for a file that the disk doesn't take."""
    found = error.strerror or str(error)
    return StoreError(str(path), expected="a file that can be written", found=found, do=remedy(error))


def remedy(error: BaseException) -> str:
    """What to do where nothing can be written; empty where only the disk's owner can know."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "free space there, or write elsewhere"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "make it writable, or write elsewhere"
    return ""


def walk(path: Path) -> Iterator[os.stat_result]:
    """The status of a file or folder and of all in it; what vanishes meanwhile is left out.

    Raises:
        OSError: a folder that may not be read.
    """
    try:
        status = os.lstat(path)
        yield status
        inside = os.listdir(path) if stat.S_ISDIR(status.st_mode) else []
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in inside:
        yield from walk(path / name)


def last_used(path: Path) -> float:
    """POSIX time at which a file in it was last written or, where the disk keeps that, read.

    A folder's own time moves when names in it do and not when its files do, so it counts only when there are none.
    """
    found = list(walk(path))
    files = [max(status.st_atime, status.st_mtime) for status in found if not stat.S_ISDIR(status.st_mode)]
    return max(files or [status.st_mtime for status in found], default=0.0)


def fsync_file(file: BinaryIO) -> None:
    """Flush a file being written down to the disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Make the names in a folder (files created, renamed, removed) survive a power cut. An ``OSError`` names it."""
    with _named(path):
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an ``OSError`` say of which file it is: those of calls on an open one don't."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def make_folder(path: Path) -> None:
    """Create a folder and the missing ones above it, each durable in its parent; fine when it exists.

    Raises:
        OSError: it can't be made, or its name can't be one (NUL in it, not UTF-8).
    """
    if not path.is_dir():
        make_folder(path.parent)
        try:
            path.mkdir(exist_ok=True)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        fsync_folder(path.parent)
