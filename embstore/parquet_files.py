"""The files of a Parquet log, found by what a person calls it; needs no torch."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from embstore.errors import LogError


def find(source: str | Path | Sequence[str | Path]) -> tuple[pafs.FileSystem, list[str]]:
    """The file system, and the Parquet files of a file, a folder (searched below), a glob, a URI, or a list of these.

    Raises:
        LogError: none there, one twice, or several file systems.
    """
    if isinstance(source, (str, Path)):
        filesystem, paths = _find_one(str(source))
    else:
        found = [_find_one(str(one)) for one in source]
        if not found:
            raise LogError("log", expected="at least one path", found="an empty list")
        filesystem, paths = found[0][0], [path for _, paths in found for path in paths]
        if any(other != filesystem for other, _ in found):
            raise LogError("log", expected="paths of one file system", found="several", do="give one log for each")
        twice = [path for path in paths if paths.count(path) > 1] if len(set(paths)) < len(paths) else []
        if twice:
            raise LogError("log", expected="each file once", found=f"{twice[0]} twice", do="take it out of the list")
    if not paths:
        raise LogError(
            f"log {named(source)}",
            expected="a .parquet file, a folder of them, a glob or a URI",
            found="no Parquet file there",
        )
    return filesystem, paths


def _find_one(source: str) -> tuple[pafs.FileSystem, list[str]]:
    if "://" in source:
        return _find_uri(source)
    local = pafs.LocalFileSystem()
    source = os.path.expanduser(source)
    if os.path.isfile(source):
        return local, [source]
    if os.path.isdir(source):
        return local, _parquet_below(local, source)
    return local, sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))


def _find_uri(source: str) -> tuple[pafs.FileSystem, list[str]]:
    base = source
    pattern = ""
    if any(mark in source for mark in "*?["):
        cut = source.rindex("/", 0, min(source.find(mark) for mark in "*?[" if mark in source))
        base, pattern = source[:cut], source[cut + 1 :]
    try:
        filesystem, root = pafs.FileSystem.from_uri(base)
        info = filesystem.get_file_info(root)
        if info.type == pafs.FileType.File:
            return filesystem, [root]
        paths = _parquet_below(filesystem, root) if info.type == pafs.FileType.Directory else []
    except (OSError, pa.ArrowException) as error:
        raise LogError(f"log {source}", expected="a URI that can be read", found=str(error)) from error
    if pattern:
        paths = [path for path in paths if _matches(os.path.relpath(path, root).split("/"), pattern.split("/"))]
    return filesystem, paths


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """As local globs match: segment by segment, ``**`` for any number of folders."""
    if not pattern or not parts:
        return not parts and all(segment == "**" for segment in pattern)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _parquet_below(filesystem: pafs.FileSystem, root: str) -> list[str]:
    """Parquet files below a folder in name order; names starting with ``_`` or ``.`` are not data."""
    infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    files = [info.path for info in infos if info.type == pafs.FileType.File and info.path.endswith((".parquet", ".pq"))]
    return sorted(p for p in files if not any(part[0] in "_." for part in Path(os.path.relpath(p, root)).parts))


def named(source: Any) -> str:
    """What messages call it."""
    if isinstance(source, (str, Path)):
        return str(source)
    return str(source[0]) if len(source) == 1 else f"of {len(source)} paths"


class reading:  # noqa: N801 - reads as a phrase: with reading(path)
    """Turns what Arrow raises for a broken or vanished file into ``LogError``."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, pa.ArrowException)):
            raise LogError(
                f"{self.path} can't be read",
                expected="a whole Parquet file",
                found=str(error).split("\n")[0],
                do="write it again, or move it out of the log",
            ) from error
