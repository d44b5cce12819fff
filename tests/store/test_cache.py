"""What this machine keeps of stores in buckets: whose it is, how it is checked, and when it goes."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import buckets
import obstore
import pytest
import torch
from commands import output
from obstore.store import MemoryStore, S3Store, from_url
from publisher import small_bundle

from embstore.errors import StoreError
from embstore.store import Bundle, Store, Version, files

MakeBundle = Callable[..., Bundle]


def rows(version: Version) -> torch.Tensor:
    return version.table.read_rows(0, version.table.num_rows)


def requests(name: str, act: Callable[[], Any]) -> list[str]:
    """Paths that ``act`` asks for, by one of obstore's calls."""
    asked: list[str] = []

    def seen(called: str, path: str, run: Callable[[], Any]) -> Any:
        if called == name:
            asked.append(path)
        return run()

    with buckets.intercepted(seen):
        act()
    return sorted(asked)


def age(path: Path) -> None:
    """Let a file or folder be from long ago."""
    os.utime(path, (0, 0))


# Whose it is.


def test_stores_that_share_a_cache_do_not_mix(s3: str, tmp_path: Path) -> None:
    one, two = (Store(f"{s3}-{name}", cache=tmp_path / "mine") for name in "ab")
    assert one.root != two.root
    assert {one.root.parent, two.root.parent} == {tmp_path / "mine"}
    kept, gone = one.publish(small_bundle()), [two.publish(small_bundle(seed)) for seed in range(2)]
    assert two.gc(keep=1).retired == (gone[0].id,)
    assert kept.folder.is_dir()
    assert not gone[0].folder.exists()


def test_buckets_of_one_name_on_two_servers_do_not_mix(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Store(s3).root
    assert Store(s3).root == here
    assert here.parent == tmp_path / "cache"
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "http://127.0.0.1:1")
            assert Store(s3).root != here
    given = [Store(S3Store("tests", endpoint=f"http://127.0.0.1:{port}")).root for port in (1, 1, 2)]
    assert given[0] == given[1] != given[2]


# How it is checked.


def test_a_cache_is_not_trusted(s3: str, tmp_path: Path) -> None:
    """What lies there damaged, cut short or as a link is fetched again; what lies there whole is not."""
    bundle = small_bundle()
    Store(s3).publish(bundle)
    cache = tmp_path / "mine"
    version = Store(s3, cache=cache).open()
    rows(version)
    names = ("manifest.json", "schema.yaml", "table/bucket-00000.safetensors", "model/dense.safetensors")
    for damage in ("none", "bit", "short", "link"):
        for name in names:
            path = version.folder / name
            data = bytearray(path.read_bytes())
            if damage == "bit":
                data[-1] ^= 1
            path.unlink()
            if damage == "link":
                path.symlink_to("/dev/zero")
            else:
                path.write_bytes(data[: -1 if damage == "short" else None])
        fetched: list[str] = []

        def seen(name: str, path: str, run: Callable[[], Any], fetched: list[str] = fetched) -> Any:
            if name == "get":
                fetched.append(path)
            return run()

        with buckets.intercepted(seen):
            again = Store(s3, cache=cache).open()
            assert torch.equal(rows(again), bundle.table.read_rows(0, 8))
        expected = [] if damage == "none" else sorted(f"versions/{version.id}/{name}" for name in names)
        assert sorted(fetched) == expected


def test_a_bucket_is_fetched_when_a_row_of_it_is_asked_for(
    s3: str, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embstore.store.format.BUCKET_BYTES", 16 * 12)
    bundle = make_bundle(rows=100)
    Store(s3).publish(bundle)
    version = Store(s3, cache=tmp_path / "mine").open()
    table = version.folder / "table"
    assert not table.exists()
    assert torch.equal(version.table.gather(torch.tensor([35])), bundle.table.rows_ND[35:36])
    assert [path.name for path in table.iterdir()] == ["bucket-00002.safetensors"]
    assert torch.equal(version.table.read_rows(0, 20), bundle.table.rows_ND[:20])
    assert len(list(table.iterdir())) == 3


def test_a_cache_that_can_not_be_written_is_no_damage(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(s3).publish(small_bundle())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBSTORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="EMBSTORE_CACHE"):
        output("versions", "--store", s3)


def test_a_folder_where_a_file_should_be_is_replaced(s3: str) -> None:
    bundle = small_bundle()
    version = Store(s3).publish(bundle)
    for name in ("manifest.json", "table/bucket-00000.safetensors"):
        (version.folder / name).unlink()
        (version.folder / name / "inside").mkdir(parents=True)
    assert torch.equal(rows(Store(s3).open()), bundle.table.read_rows(0, 8))
    assert (version.folder / "manifest.json").is_file()


def test_entries_of_the_log_are_fetched_once_and_side_by_side(s3: str, tmp_path: Path) -> None:
    store = Store(s3)
    version = store.publish(small_bundle()).id
    for number in range(49):
        store.tag(f"tag-{number}", version)
    shutil.rmtree(store.root / "log")
    together = threading.Barrier(2, timeout=30)  # broken, and an error, if they were fetched one after the other

    def wait(name: str, path: str, run: Callable[[], Any]) -> Any:
        if name == "get_range":
            together.wait()
        return run()

    with buckets.intercepted(wait):
        tags = Store(s3).tags()
    assert len(tags) == 49
    assert requests("get_range", lambda: Store(s3).tags()) == []
    assert Store(s3).tags() == tags
    Store(s3, cache=tmp_path / "elsewhere").tag("new", version)
    cached = store.root / "log" / "000000000007.json"
    cached.write_bytes(cached.read_bytes().replace(b"tag-5", b"tag-6"))
    paths = ["log/000000000007.json", "log/000000000051.json"]
    assert requests("get_range", lambda: Store(s3).tags()) == paths
    assert Store(s3).tags() == {**tags, "new": version}
    assert not list(store.root.rglob(".tmp-*"))


def test_a_store_made_anew_is_not_read_by_the_old_one_s_entries(s3: str) -> None:
    Store(s3).publish(small_bundle(1))
    assert len(Store(s3).versions()) == 1
    objects = from_url(s3)
    obstore.delete(objects, [meta["path"] for chunk in obstore.list(objects) for meta in chunk])
    new = Store(s3).publish(small_bundle(2)).id
    assert [info.id for info in Store(s3).versions()] == [new]


def test_entries_without_their_md5_are_not_cached(tmp_path: Path) -> None:
    bucket = MemoryStore()
    store = Store(bucket, cache=tmp_path)
    store.publish(small_bundle())
    for _ in range(2):
        asked = requests("get_range", lambda: Store(bucket, cache=tmp_path).versions())
        assert asked == ["log/000000000001.json"]
    assert not (store.root / "log").exists()


# When it goes.


def test_gc_drops_what_the_cache_has_of_collected_versions(s3: str, tmp_path: Path) -> None:
    store = Store(s3, cache=tmp_path / "mine")
    old, new = (store.publish(small_bundle(seed)) for seed in range(2))
    assert old.folder.is_dir()
    store.gc(keep=1, dry_run=True)
    assert old.folder.is_dir()
    store.gc(keep=1)
    assert not old.folder.exists()
    assert torch.equal(rows(new), small_bundle(1).table.read_rows(0, 8))


@pytest.mark.parametrize("name", [".tmp-20260101T000000Z-0000000a", "20260101T000000Z-0000000a"])
def test_what_is_being_published_is_as_old_as_its_newest_file(name: str, s3: str) -> None:
    store = Store(s3)
    store.publish(small_bundle())
    staged = store.root / "versions" / name
    (staged / "table").mkdir(parents=True)
    written = staged / "table" / "bucket-00000.safetensors"
    written.write_bytes(b"rows")
    age(staged)
    age(staged / "table")
    store.gc()
    assert written.exists(), "its folder is old, the file is not"
    age(written)
    os.utime(staged)
    store.gc()
    assert not staged.exists()


def test_old_partial_downloads_go(s3: str) -> None:
    store = Store(s3)
    version = store.publish(small_bundle())
    above = (version.folder, version.folder / "table", store.root / "log")
    for folder in above:
        folder.mkdir(exist_ok=True)
        (folder / ".tmp-0123").write_bytes(b"begun")
        (folder / ".tmp-4567").write_bytes(b"left")
        age(folder / ".tmp-4567")
    store.gc()
    assert sorted(store.root.rglob(".tmp-*")) == sorted(folder / ".tmp-0123" for folder in above)
    assert torch.equal(rows(Store(s3).open()), small_bundle().table.read_rows(0, 8))


@pytest.mark.parametrize("where", ["leftover", "cache"])
def test_what_may_not_be_read_stays(where: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gc, which has retired what it should, ends as it should."""
    store = Store(s3)
    old, new = (store.publish(small_bundle(seed)) for seed in range(2))
    left = [store.root / "versions" / f"20260101T000000Z-0000000{letter}" for letter in "abc"]
    for folder in left:
        folder.mkdir()
        age(folder)
    closed, listdir = left[1] if where == "leftover" else store.root / "versions", os.listdir

    def refusing(path: Any) -> list[str]:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    with monkeypatch.context() as patch:  # of the process, who may be root, to whom nothing is closed
        patch.setattr(files.os, "listdir", refusing)
        assert store.gc(keep=1).retired == (old.id,)
    assert [folder.exists() for folder in left] == ([False, True, False] if where == "leftover" else [True] * 3)
    assert torch.equal(rows(new), small_bundle(1).table.read_rows(0, 8))


def test_a_leftover_that_goes_while_gc_tidies_the_cache(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its publisher, or another gc, removes it; what lies beside it is tidied all the same."""
    store = Store(s3)
    version = store.publish(small_bundle())
    first, second = (store.root / "versions" / f".tmp-20260101T000000Z-0000000{letter}" for letter in "ab")
    for folder in (first, second):
        folder.mkdir()
        age(folder)
    lstat, seen = os.lstat, []

    def vanishing(path: Any, **options: Any) -> os.stat_result:
        if path in (first, second) and not seen:
            seen.append(path)
            path.rmdir()
        return lstat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "lstat", vanishing)
        store.gc()
    assert seen
    assert not first.exists()
    assert not second.exists(), "tidied by gc: only one of them had gone"
    assert version.folder.is_dir()
