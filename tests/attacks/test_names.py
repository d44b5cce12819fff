"""Names and links that lead out of a store: refused, whoever gives them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from publisher import small_bundle

from embstore.errors import StoreError, VersionNotFoundError
from embstore.store import Store

OUTSIDE = [
    "..",
    "../..",
    "/",
    "/etc/passwd",
    "a\0b",
    "..\\..\\x",
    "C:\\x",
    "a/b",
    ".",
    "x" * 10_000,
    "\ud800",
    "~",
    "*",
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of one version that is in production, beside an empty folder."""
    store = Store(tmp_path / "store")
    store.promote(store.publish(small_bundle()).id)
    return Store(tmp_path / "store")


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: ascii(name[:20]))
def test_refs_and_aliases_are_no_paths(name: str, store: Store, tmp_path: Path) -> None:
    """Rule: a ref is looked up among the log's names, never on the disk; an alias is a lower-case word."""
    before = sorted(tmp_path.rglob("*"))
    for use in (store.open, store.resolve, store.verify, store.promote):
        with pytest.raises(VersionNotFoundError):
            use(name)
    for move in (lambda: store.promote("latest", name), lambda: store.rollback(name)):
        with pytest.raises(StoreError):
            move()
    with pytest.raises(VersionNotFoundError):
        store.publish(small_bundle(), parent=name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: ascii(name[:20]))
@pytest.mark.parametrize("key", ["version", "parent", "was", "alias"])
def test_names_in_the_log(key: str, name: str, store: Store) -> None:
    for number in (1, 2):
        path = store.root / "log" / f"{number:012d}.json"
        entry = json.loads(path.read_bytes())
        if key in entry:
            data = path.read_bytes()
            path.write_text(json.dumps({**entry, key: name}))
            with pytest.raises(StoreError, match=path.name):
                Store(store.root).open()
            path.write_bytes(data)


def _uses(store: Store) -> list[Callable[[], Any]]:
    return [store.open, store.verify, store.versions, lambda: store.publish(small_bundle()), store.aliases]


@pytest.mark.parametrize("name", ["log", "log/000000000001.json", "versions"])
def test_links_above_a_version(name: str, store: Store, tmp_path: Path) -> None:
    """Rule: below a store's folder nothing is a link, whatever it leads to."""
    (tmp_path / "elsewhere").mkdir()
    path, target = store.root / name, tmp_path / "elsewhere" / "target"
    path.rename(target)
    path.symlink_to(target)
    before = {file: file.read_bytes() for file in target.parent.rglob("*") if file.is_file()}
    for use in _uses(Store(store.root))[:2]:
        with pytest.raises(StoreError):
            use()
    with pytest.raises(StoreError):
        Store(store.root).publish(small_bundle())
    assert {file: file.read_bytes() for file in target.parent.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    "name", ["exact", "model", "exact/tokens.safetensors", "model/dense.safetensors", "compat.json"]
)
@pytest.mark.parametrize("broken", [False, True])
def test_links_within_a_version(name: str, broken: bool, store: Store, tmp_path: Path) -> None:
    path = store.open().folder / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / ("nowhere" if broken else "elsewhere"))
    for use in (Store(store.root).open, Store(store.root).verify):
        with pytest.raises(StoreError, match=path.name):
            use()


def test_a_link_in_the_place_of_a_version(store: Store, tmp_path: Path) -> None:
    """Rule: what is not a folder is not followed, be it a link back into the store or to a file."""
    folder = store.open().folder
    copy = shutil.copytree(folder, store.root / "versions" / "20260101T000000Z-00000000")
    for target in (copy, tmp_path, folder / "manifest.json", folder):
        shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink()
        folder.symlink_to(target)
        with pytest.raises(StoreError):
            Store(store.root).open()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800"], ids=["nul", "long", "surrogate"])
def test_folders_that_can_not_be(name: str, tmp_path: Path) -> None:
    for use in _uses(Store(tmp_path / name))[:4]:
        with pytest.raises(StoreError):
            use()
