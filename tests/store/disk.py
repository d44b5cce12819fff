"""What lies between a store and its disk: calls to be counted, failed, cut short or recorded; and a judge of stores.

``intercepted`` replaces the functions by which Python code reaches a file system (and obstore's, which are the log's),
so a test sees every call below one folder without knowing who makes it. The judge reads a store by
``docs/store-format.md`` alone.
"""

from __future__ import annotations

import builtins
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
import pytest

from embstore.errors import VersionNotFoundError
from embstore.store import Store

OBJECTS = ("put", "copy", "delete", "list", "get", "get_range", "head")  # obstore's
READS = ("open to read", "read", "preadv", "scandir", "list", "list_with_delimiter", "get_range", "get", "head")


@dataclass(frozen=True)
class Call:
    """One call to the disk: ``run()`` makes it; of a write, ``run(n)`` writes the first n bytes only."""

    name: str
    path: Path
    run: Callable[..., Any]
    other: Path | None = None
    data: bytes = b""


@contextmanager
def intercepted(root: Path, react: Callable[[Call], Any]) -> Iterator[None]:
    """Let ``react`` answer for every call below ``root``; ``react = lambda call: call.run()`` changes nothing."""
    root, opened = root.absolute(), {}  # opened: path by descriptor
    inside = str(root)

    def path_of(target: Any, folder: int | None = None) -> Path | None:
        if isinstance(target, int):
            return opened.get(target)
        path = Path(os.fsdecode(target))
        path = opened[folder] / path if folder in opened else path.absolute()
        return path if str(path).startswith(inside) else None

    class Raw(io.FileIO):
        at: Path

        def write(self, data: Any) -> int:
            whole = bytes(data)
            write = super().write
            return react(Call("write", self.at, lambda n=None: write(whole[:n]), data=whole))

        def readinto(self, buffer: Any) -> Any:
            read = super().readinto
            return react(Call("read", self.at, lambda: read(buffer)))

        def readall(self) -> Any:
            read = super().readall
            return react(Call("read", self.at, read))

        def close(self) -> None:
            if not self.closed:
                opened.pop(self.fileno(), None)
            super().close()

    def opening(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        path = path_of(file)
        if path is None:
            return plain_open(file, mode, buffering, *args, **options)
        writes = any(letter in mode for letter in "wxa+")
        kind = mode.replace("b", "").replace("t", "")

        def run() -> Raw:
            raw = Raw(file, kind)
            raw.at = path
            opened[raw.fileno()] = path
            return raw

        raw = run() if isinstance(file, int) else react(Call("open to write" if writes else "open to read", path, run))
        if not buffering:
            return raw
        buffer: Any = io.BufferedWriter(raw) if writes else io.BufferedReader(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, *args, **options)

    def on_path(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(target: Any = ".", *args: Any, **options: Any) -> Any:
            path = path_of(target, options.get("dir_fd"))
            if path is None:
                return call(target, *args, **options)
            return react(Call(name, path, lambda: call(target, *args, **options)))

        return wrapped

    def on_two(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(source: Any, target: Any, **options: Any) -> Any:
            path, other = path_of(source), path_of(target)
            if path is None or other is None:
                return call(source, target, **options)
            return react(Call(name, path, lambda: call(source, target, **options), other=other))

        return wrapped

    def open_number(target: Any, flags: int, *args: Any, **options: Any) -> int:
        path = path_of(target, options.get("dir_fd"))
        if path is None:
            return plain_number(target, flags, *args, **options)

        def run() -> int:
            number = plain_number(target, flags, *args, **options)
            opened[number] = path
            return number

        return react(Call("open to write" if flags & (os.O_WRONLY | os.O_RDWR) else "open to read", path, run))

    def closing(number: int) -> None:
        opened.pop(number, None)
        plain_close(number)

    def on_object(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(store: Any, *args: Any, **options: Any) -> Any:
            paths = [Path(str(store.prefix)) / text for text in args if isinstance(text, str)] or [Path(store.prefix)]
            if not str(paths[0].absolute()).startswith(inside):
                return call(store, *args, **options)
            other = paths[1].absolute() if len(paths) > 1 else None
            data = next((bytes(value) for value in args if isinstance(value, bytes)), b"")
            run = lambda: call(store, *args, **options)  # noqa: E731
            return react(Call(name, paths[0].absolute(), run, other=other, data=data))

        return wrapped

    plain_open, plain_number, plain_close = io.open, os.open, os.close
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "fsync", "fdatasync", "unlink", "remove", "rmdir", "scandir", "preadv", "truncate"):
            if hasattr(os, name):
                patch.setattr(os, name, on_path(name, getattr(os, name)))
        for name in ("rename", "replace", "link", "symlink"):
            patch.setattr(os, name, on_two(name, getattr(os, name)))
        for name in OBJECTS:
            patch.setattr(obstore, name, on_object(name, getattr(obstore, name)))
        patch.setattr(os, "open", open_number)
        patch.setattr(os, "close", closing)
        patch.setattr(io, "open", opening)
        patch.setattr(builtins, "open", opening)
        yield


@dataclass
class Found:
    """What a store holds: versions in the order published, aliases, and every ``(alias, was, version)`` in order."""

    versions: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    history: list[tuple[str, str | None, str]] = field(default_factory=list)


def read_store(root: Path, sound: set[str] | None = None) -> Found:
    """Read a store by the page: entries without gaps, every byte of every version as its manifest says.

    Args:
        sound: versions whose bytes need no second look; those that are read are added.
    """
    found = Found()
    names = sorted(path.name for path in (root / "log").iterdir()) if (root / "log").is_dir() else []
    names = [name for name in names if not name.startswith(".tmp-")]
    assert all(re.fullmatch(r"[0-9]{12}\.json", name) for name in names if "#" not in name), names
    for number, name in enumerate((name for name in names if "#" not in name), 1):
        assert name == f"{number:012d}.json"
        entry = json.loads((root / "log" / name).read_bytes())
        assert entry["number"] == number
        if entry["verb"] == "publish":
            if sound is None or entry["version"] not in sound:
                _check_bytes(root / "versions" / entry["version"], entry["manifest_sha256"])
            if sound is not None:
                sound.add(entry["version"])
            assert entry["version"] not in found.versions
            found.versions.append(entry["version"])
        else:
            assert entry["verb"] == "alias"
            assert entry["version"] in found.versions
            assert entry["was"] == found.aliases.get(entry["alias"])
            found.aliases[entry["alias"]] = entry["version"]
            found.history.append((entry["alias"], entry["was"], entry["version"]))
    return found


def check_store(root: Path, sound: set[str] | None = None) -> Found:
    """``read_store``, and embstore finds the same, opens and verifies it, and sees nothing else."""
    known = set(sound or ())
    found = read_store(root, sound)
    if not root.is_dir():
        return found
    store = Store(root)
    assert [info.id for info in store.versions()] == found.versions
    own = {alias: version for alias, version in store.aliases().items() if alias not in ("latest", "previous")}
    assert own == found.aliases
    for version in found.versions:
        if version not in known:
            store.verify(version)
    if (root / "versions").is_dir():
        for left in {path.name for path in (root / "versions").iterdir()} - set(found.versions):
            with pytest.raises(VersionNotFoundError):
                store.open(left)
    return found


def _check_bytes(folder: Path, digest: str) -> None:
    data = (folder / "manifest.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    files = json.loads(data)["files"]
    for name, entry in files.items():
        held = (folder / name).read_bytes()
        assert (len(held), hashlib.sha256(held).hexdigest()) == (entry["bytes"], entry["sha256"]), name
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {*files, "manifest.json"}
