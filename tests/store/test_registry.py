"""Versions, refs and aliases; crashes and races."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embstore.errors import StoreError, VersionNotFoundError
from embstore.store import Bundle, Store, new_space

MakeBundle = Callable[..., Bundle]


def ids(store: Store) -> list[str]:
    return [info.id for info in store.versions()]


def test_versions_are_listed_in_the_order_published(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "store")
    with pytest.raises(StoreError, match="no such folder"):
        store.versions()
    first = store.publish(make_bundle(seed=1))
    second = store.publish(make_bundle(seed=2), parent=first.id)
    for reader in (store, Store(tmp_path / "new" / "store"), Store(f"file://{tmp_path}/new/store")):
        one, two = reader.versions()
        assert (one.id, one.number, one.parent, one.digest, one.aliases) == (first.id, 1, None, first.digest, ())
        assert (two.id, two.number, two.parent, two.aliases) == (second.id, 2, first.id, ("latest",))
        assert reader.open().id == second.id
        assert reader.open(first.id).parent is None
        assert reader.open(second.id).parent == first.id


def test_the_log_is_as_the_page_says(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    version = store.publish(make_bundle())
    store.promote(version.id)
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["000000000001.json", "000000000002.json"]
    first, second = (json.loads(path.read_bytes()) for path in sorted((tmp_path / "log").iterdir()))
    assert first == {
        "number": 1,
        "time": version.manifest["created"],
        "verb": "publish",
        "version": version.id,
        "manifest_sha256": version.digest,
        "parent": None,
    }
    assert second.pop("time")
    assert second == {"number": 2, "verb": "alias", "alias": "production", "version": version.id, "was": None}


def test_spaces_are_given_or_new(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store, space = Store(tmp_path), new_space()
    assert store.publish(make_bundle(lineage={"space": space})).space == space
    assert len({store.publish(make_bundle()).space for _ in range(3)} | {space}) == 4


def test_previous_says_what_it_would_be(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    version = store.publish(make_bundle()).id
    said = "no version 'previous' in .*; expected a version that production meant before; found "
    with pytest.raises(VersionNotFoundError, match=f"{said}none yet"):
        store.open("previous")
    store.promote(version)
    with pytest.raises(VersionNotFoundError, match=f"{said}one version so far"):
        store.open("previous")
    store.promote(store.publish(make_bundle()).id)
    assert store.resolve("previous") == version


def test_refs_that_mean_nothing_name_the_nearest(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(VersionNotFoundError, match="no such folder"):
        Store(tmp_path / "nowhere").open()
    store = Store(tmp_path)
    assert store.versions() == []
    with pytest.raises(VersionNotFoundError, match="is empty"):
        store.open()
    version = store.publish(make_bundle()).id
    store.promote(version, "canary")
    with pytest.raises(VersionNotFoundError, match="did you mean 'canary'"):
        store.open("canari")
    with pytest.raises(VersionNotFoundError, match=f"did you mean '{version}'"):
        store.open(version[:-1] + "x")
    with pytest.raises(VersionNotFoundError, match="no version 'nope'"):
        store.publish(make_bundle(), parent="nope")
    store.publish(make_bundle())
    with pytest.raises(VersionNotFoundError, match="2 versions"):
        store.open("2")
    for ref in ("", "previous", "../log"):
        with pytest.raises(VersionNotFoundError):
            store.open(ref)
    with pytest.raises(
        VersionNotFoundError, match=f"`embstore promote latest --store {tmp_path}` lets it mean .*serve --alias latest"
    ):
        store.open("production")


@given(
    hexes=st.lists(st.text("0123456789abcdef", min_size=8, max_size=8), min_size=1, max_size=5, unique=True),
    second=st.integers(0, 2),
    length=st.integers(0, 25),
)
def test_a_ref_is_an_id_or_a_unique_prefix(
    hexes: list[str], second: int, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("refs")
    (root / "log").mkdir()
    versions = [f"20260101T00000{(second * i) % 3}Z-{text}" for i, text in enumerate(hexes)]
    for number, version in enumerate(versions, 1):
        entry = {"number": number, "time": "2026-01-01T00:00:00Z", "verb": "publish", "version": version}
        entry |= {"manifest_sha256": "0" * 64, "parent": None}
        (root / "log" / f"{number:012d}.json").write_text(json.dumps(entry))
    store = Store(root)
    assert store.resolve("latest") == versions[-1]
    for version in versions:
        ref = version[:length]
        meant = [other for other in versions if ref and other.startswith(ref)]
        if len(meant) == 1:
            assert store.resolve(ref) == version
        else:
            with pytest.raises(VersionNotFoundError):
                store.resolve(ref)


def test_promote_and_rollback(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    a, b, c = (store.publish(make_bundle(seed=seed)).id for seed in range(3))
    with pytest.raises(StoreError, match="no alias 'production'"):
        store.rollback()
    assert store.promote(a).aliases == ("production",)
    with pytest.raises(StoreError, match="a version before"):
        store.rollback()
    store.promote(b)
    assert store.aliases() == {"production": b, "previous": a, "latest": c}
    entries = len(list((tmp_path / "log").iterdir()))
    store.promote(b)  # nothing new: what was before must not be forgotten
    assert len(list((tmp_path / "log").iterdir())) == entries
    assert store.rollback().id == a
    assert store.aliases() == {"production": a, "previous": b, "latest": c}
    assert store.rollback().id == b
    store.promote("latest", "canary")
    store.promote("canary")
    with pytest.raises(StoreError, match="promote production; expected the version it should mean; found the alias"):
        store.promote("production")
    assert Store(tmp_path).aliases() == {"production": c, "previous": b, "canary": c, "latest": c}
    assert Store(tmp_path).open("previous").id == b


@pytest.mark.parametrize("alias", ["latest", "previous", "", "2026", "Canary", "a/b", "a" * 64, "a\n"])
def test_names_that_can_not_be_aliases(alias: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish(make_bundle())
    with pytest.raises(StoreError, match="lower-case word"):
        store.promote("latest", alias)


def test_an_alias_moved_meanwhile_is_not_overwritten(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    a, b, c = (store.publish(make_bundle(seed=seed)).id for seed in range(3))
    store.promote(a)
    copy, moved = obstore.copy, []

    def race(*args: Any, **options: Any) -> None:
        if not moved:
            moved.append(b)
            other.promote(b)
        copy(*args, **options)

    monkeypatch.setattr(obstore, "copy", race)
    with pytest.raises(StoreError, match="moved meanwhile"):
        store.promote(c)
    assert store.aliases()["production"] == b
    moved.clear()
    other.promote = lambda ref: other.publish(make_bundle(seed=3))  # type: ignore[method-assign, assignment]
    store.promote(c)  # a publish took the number: no reason to give up
    assert store.aliases()["production"] == c
    assert len(store.versions()) == 4


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing cleans up."""


def crash_at(patch: pytest.MonkeyPatch, step: int, error: BaseException) -> list[str]:
    """Let the ``step``-th call that touches the disk fail; returns the calls so far."""
    calls: list[str] = []

    def failing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == step:
                raise error
            return call(*args, **options)

        return wrapped

    for holder, name in (
        (os, "mkdir"),
        (os, "fsync"),
        (os, "rename"),
        (obstore, "copy"),
    ):
        patch.setattr(holder, name, failing(name, getattr(holder, name)))
    if isinstance(error, Killed):
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)
        patch.setattr(os, "unlink", lambda *args, **options: None)
    return calls


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Killed()], ids=["error", "kill"])
def test_a_crash_at_any_step_leaves_the_old_versions(
    error: BaseException, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    calls: list[str] = []
    for step in range(1, 100):
        root = tmp_path / str(step)
        old = Store(root).publish(make_bundle(seed=1)).id
        with pytest.MonkeyPatch.context() as patch:
            calls = crash_at(patch, step, error)
            try:
                Store(root).publish(make_bundle(seed=2))
            except (StoreError, Killed):
                pass
            else:
                break
        done = "copy" in calls and calls.index("copy") < step - 1
        found = ids(Store(root))
        assert found[:1] == [old]
        assert len(found) == (2 if done else 1), calls  # the entry is the one point at which a version exists
        new = Store(root).publish(make_bundle(seed=3)).id
        assert ids(Store(root)) == [*found, new]
        for version in ids(Store(root)):
            Store(root).verify(version)
        if isinstance(error, OSError):
            assert not list((root / "versions").glob(".tmp-*"))
            assert not list((root / "log").glob(".tmp-*"))
    assert {"mkdir", "fsync", "rename", "copy"} == set(calls)
    assert step == len(calls) + 1 > 15


def test_everything_is_durable_before_the_next_step_relies_on_it(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and folder has its own fsync before the rename, the entry before it can be seen, and folders after."""
    store = Store(tmp_path)
    store.publish(make_bundle())
    events: list[tuple[str, Any]] = []
    fsync, rename, copy = os.fsync, os.rename, obstore.copy

    def status(number: int) -> int:
        return os.fstat(number).st_ino

    monkeypatch.setattr(os, "fsync", lambda number: (events.append(("fsync", status(number))), fsync(number))[1])
    monkeypatch.setattr(os, "rename", lambda *paths: (events.append(("rename", None)), rename(*paths))[1])
    monkeypatch.setattr(obstore, "copy", lambda *a, **o: (events.append(("copy", None)), copy(*a, **o))[1])
    version = store.publish(make_bundle())
    rename_at, copy_at = events.index(("rename", None)), events.index(("copy", None))

    def synced(path: Path, start: int, stop: int) -> bool:
        return ("fsync", path.stat().st_ino) in events[start:stop]

    for path in (version.folder, *version.folder.rglob("*")):
        assert synced(path, 0, rename_at), path
    assert synced(tmp_path / "versions", rename_at, copy_at)
    assert synced(tmp_path / "log" / "000000000002.json", rename_at, copy_at)
    assert synced(tmp_path / "log", copy_at, len(events))


def test_threads_that_publish_at_once_all_succeed(make_bundle: MakeBundle, tmp_path: Path) -> None:
    shared, published, barrier = Store(tmp_path), [], threading.Barrier(4)

    def publish(store: Store, seed: int) -> None:
        barrier.wait()
        for _ in range(4):
            published.append(store.publish(make_bundle(seed=seed)).id)

    stores = (shared, shared, Store(tmp_path), Store(tmp_path))
    threads = [threading.Thread(target=publish, args=(store, seed)) for seed, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    infos = Store(tmp_path).versions()
    assert sorted(info.id for info in infos) == sorted(published)
    assert [info.number for info in infos] == list(range(1, 17))
    for info in infos:
        shared.verify(info.id)


PUBLISH = """
import sys
from embstore.schema import Schema, Feature
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.store import Bundle, Store
import torch
schema = Schema(features=(Feature(name="user"),))
table = UnifiedEmbedding(schema.features, num_rows=64, dim=4, kernel="reference", seed=int(sys.argv[2]))
model = {"name": "dnn", "settings": {}, "dense_width": 0, "widths": [4]}
bundle = Bundle(table=table, schema=schema, dense_state={}, model=model, metrics={}, lineage={})
sys.stdin.readline()
for _ in range(5):
    print(Store(sys.argv[1]).publish(bundle).id)
"""


@pytest.mark.slow
def test_processes_that_publish_at_once_all_succeed(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH, str(tmp_path), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    published = [line for process in processes for line in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0, 0]
    infos = Store(tmp_path).versions()
    assert sorted(info.id for info in infos) == sorted(published)
    assert [info.number for info in infos] == list(range(1, 11))


def test_a_trained_table_is_read_back_where_it_lies(tmp_path: Path) -> None:
    from embstore.embeddings.unified import UnifiedEmbedding

    schema = _exact_schema()
    tokens = {"day": torch.tensor([3, 1, 2])}
    table = UnifiedEmbedding(schema.features, num_rows=64, dim=4, num_tables=2, exact_tokens=tokens, kernel="reference")
    model = {"name": "dnn", "settings": {}, "dense_width": 0, "widths": list(table.widths)}
    bundle = Bundle(table=table.eval(), schema=schema, dense_state={}, model=model, metrics={}, lineage={})
    version = Store(tmp_path).publish(bundle)
    restored = UnifiedEmbedding.restore(version.table, kernel="reference").eval()
    for feature, values in (("user", ["ann", None, "bob"]), ("day", [1, 2, 99])):
        assert torch.equal(restored.lookup(feature, values), table.lookup(feature, values))


def _exact_schema() -> Any:
    from embstore.schema import Feature, Schema

    return Schema(features=(Feature(name="user", lookups=2), Feature(name="day", exact=True)))


def test_a_file_is_no_store(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    for use in (store.versions, store.open, lambda: store.publish(make_bundle())):
        with pytest.raises(StoreError, match=r"file; expected a folder.*; found not a folder"):
            use()
