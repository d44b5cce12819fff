"""A store in a folder: files mapped where they lie, and a disk that keeps its word only after an fsync."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore

from embstore.errors import CorruptVersionError, StoreError
from embstore.store.bundle import Progress
from embstore.store.files import FileDigest, fsync_folder, make_folder, remedy, sha256_file, walk, write_small
from embstore.store.manifest import VERSION_ID
from embstore.store.place import Stamp, refuse_fork

GONE = ".tmp-gone-"  # a version on its way out
_OWN = {"log", "versions", "lost+found"}  # what a store's folder, or a disk of its own, may hold before its log does


@dataclass(frozen=True)
class LocalFiles:
    """A version's files in a folder."""

    folder: Path
    at_hand = True

    def where(self, name: str) -> str:
        """Its path."""
        return str(self.folder / name)

    def sizes(self) -> dict[str, int]:
        """Length by name; no folder or file is a link."""
        return {name: stamp.bytes for name, stamp in self.stamps().items()}

    def stamps(self) -> dict[str, Stamp]:
        """The time is that of the inode: no program can set it back."""
        return {
            name: Stamp(status.st_size, f"{status.st_ino} {status.st_ctime_ns}")
            for name, status in scan(self.folder).items()
        }

    def fetch(self, name: str, digest: FileDigest) -> Path:
        """Its path, unread."""
        return self.folder / name

    def digest(self, name: str) -> FileDigest:
        """Of the bytes as they are now."""
        return sha256_file(self.folder / name)


class LocalPlace:
    """A store in ``folder``; the first publish makes it."""

    at_hand = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def missing(self) -> tuple[str, str] | None:
        """Where there is no folder, or one of something else."""
        if os.path.isdir(self.folder):  # as no Path method does, it takes any name
            others = self._others()
            return ("a store", f"a folder without log/ that holds {others}") if others else None
        return "a folder", "not a folder" if os.path.exists(self.folder) else "no such folder"

    def objects(self) -> LocalStore | None:
        """The folder, once it has a log."""
        try:
            self._refuse_links()
            if not (self.folder / "log").is_dir():
                return None
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise StoreError(f"store {self}", expected="a readable folder", found=str(error.strerror)) from error
        refuse_fork()
        return LocalStore(self.folder)

    def entry(self, objects: ObjectStore, meta: obstore.ObjectMeta) -> bytes:
        """From the file; not through a link."""
        path = meta["path"]
        if (self.folder / path).is_symlink():
            raise CorruptVersionError(f"{self}/{path}", expected="a file", found="a link")
        return bytes(obstore.get_range(objects, path, start=0, length=meta["size"]))

    def create(self, path: str, data: bytes) -> bool:
        """Whole and on the disk before anyone can see it: a power cut leaves no torn entry that others built upon."""
        staged, there = f"log/.tmp-{secrets.token_hex(8)}", False
        refuse_fork()
        try:
            make_folder(self.folder / "log")
            write_small(self.folder / staged, data)
            obstore.copy(LocalStore(self.folder), staged, path, overwrite=False)
            there = True
            fsync_folder(self.folder / "log")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            if there:
                do = "it is there, but may not survive a power cut: look before you try again"
                raise StoreError(f"{self}/{path}", found=str(error).partition("\n")[0], do=do) from error
            raise self._unwritable(error) from error
        finally:
            with suppress(OSError):
                os.unlink(self.folder / staged)
        return True

    def stage(self, version: str) -> Path:
        """A folder beside the versions, so that a rename makes it one."""
        self._refuse_links()
        if os.path.isdir(self.folder) and (others := self._others()):
            found, do = f"a folder without log/ that holds {others}", "name a folder of its own"
            raise StoreError(f"store {self}", expected="a store, or an empty folder", found=found, do=do)
        staged = self.folder / "versions" / f".tmp-{version}"
        try:
            self._make(staged)
        except OSError as error:
            self.discard(staged)
            raise self._unwritable(error) from error
        return staged

    def discard(self, staged: Path) -> None:
        """With it goes ``versions`` if nothing else is there: a first publish that failed."""
        shutil.rmtree(staged, ignore_errors=True)
        with suppress(OSError, ValueError):  # in use; no name of a folder
            staged.parent.rmdir()

    def keep(
        self, staged: Path, version: str, files: Mapping[str, FileDigest], progress: Progress | None = None
    ) -> None:
        """Rename it; all in it is durable already."""
        os.rename(staged, self.folder / "versions" / version)
        fsync_folder(staged.parent)

    def holds(self, version: str) -> bool:
        """Whether its folder is there."""
        return (self.folder / "versions" / version).is_dir()

    def files(self, version: str) -> LocalFiles:
        """Those in its folder."""
        return LocalFiles(self.folder / "versions" / version)

    def contents(self) -> Iterator[str]:
        """By name."""
        for name in ("versions", "log"):
            inside: list[str] = []
            with suppress(FileNotFoundError, NotADirectoryError):
                inside = sorted(os.listdir(self.folder / name))
            yield from (f"{name}/{path}" for path in inside)

    def last_written(self, path: str) -> float:
        """The latest of all in it: a folder's own time says nothing of the files in its folders."""
        return max((status.st_mtime for status in walk(self.folder / path)), default=0.0)

    def size(self, path: str) -> int:
        """Of the files in it."""
        return sum(status.st_size for status in walk(self.folder / path) if stat.S_ISREG(status.st_mode))

    def remove(self, path: str, wanted: Callable[[], bool]) -> bool:
        """A version under another name first: so no half-deleted one is ever seen, and it can be put back."""
        target, versions = self.folder / path, self.folder / "versions"
        try:
            if VERSION_ID.fullmatch(target.name):
                gone = versions / f"{GONE}{target.name}-{secrets.token_hex(4)}"
                os.rename(target, gone)
                fsync_folder(versions)
                if wanted():
                    os.rename(gone, target)
                    fsync_folder(versions)
                    return False
                target = gone
        except FileNotFoundError:
            return False
        while os.path.lexists(target):
            # Another gc may be faster: see what is left.
            with suppress(FileNotFoundError):
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                else:
                    os.unlink(target)
        return True

    def tidy(self, living: Collection[str], retired: Collection[str], grace_seconds: float) -> None:
        """Nothing: what this machine keeps is the store itself."""

    def _make(self, staged: Path) -> None:
        for left in reversed(range(5)):
            try:
                make_folder(staged.parent)
                staged.mkdir()
                return
            except FileNotFoundError:  # another publisher has just discarded the first version
                if not left:
                    raise

    def _others(self) -> str:
        """Of a folder without a log, the first few names in it that are neither a store's nor hidden."""
        with suppress(OSError):  # what it can't be is said by whoever reads or writes there
            names = sorted(os.listdir(self.folder))
            others = [name for name in names if name not in _OWN and not name.startswith(".")]
            if "log" not in names:
                return ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        return ""

    def _unwritable(self, error: Exception) -> StoreError:
        """What to raise when the folder can't be made or written to."""
        expected, do = "a folder that can be written", remedy(error) or "name another"
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            return StoreError(f"store {self}", expected=expected, found="not a folder", do=do)
        said = error.strerror if isinstance(error, OSError) else None
        found = said or str(error).partition("\n")[0]
        return StoreError(f"store {self}", expected=expected, found=found, do=do)

    def _refuse_links(self) -> None:
        """Below a store's folder nothing is a link.

        Raises:
            CorruptVersionError: ``log`` or ``versions`` is one.
        """
        for path in (self.folder / "log", self.folder / "versions"):
            if os.path.islink(path):
                raise CorruptVersionError(str(path), expected="a folder", found="a link")


def scan(folder: Path, inside: str = "") -> dict[str, os.stat_result]:
    """Status by name, relative to ``folder``, of every file in it and its folders.

    Raises:
        CorruptVersionError: a symbolic link, pipe or device is among them, or ``folder`` is one.
    """
    out: dict[str, os.stat_result] = {}
    here = folder / inside if inside else folder
    try:
        if not stat.S_ISDIR(os.lstat(here).st_mode):
            raise CorruptVersionError(str(here), expected="a folder", found="something else")
        entries = [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(here)]
    except OSError as error:
        raise CorruptVersionError(str(here), expected="a folder", found=error.strerror or str(error)) from error
    for name, status in entries:
        path = f"{inside}/{name}" if inside else name
        if stat.S_ISDIR(status.st_mode):
            out.update(scan(folder, path))
        elif stat.S_ISREG(status.st_mode):
            out[path] = status
        else:
            raise CorruptVersionError(str(folder / path), expected="a file or folder", found="a link, pipe or device")
    return out
