"""What only a store in a bucket has to withstand: lost answers, failing requests, a cache, killed publishers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import buckets
import obstore
import pytest
import torch
from commands import output
from disk import read_store
from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.store import MemoryStore, from_url
from publisher import Publisher, said, small_bundle

from embstore.errors import StoreError
from embstore.store import Bundle, Store, Version

MakeBundle = Callable[..., Bundle]


def rows(version: Version) -> torch.Tensor:
    return version.table.read_rows(0, version.table.num_rows)


def test_an_answer_that_was_lost_does_no_harm(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client tries the conditional put again, and finds the entry that it has just made itself."""
    put, lost = obstore.put, []

    def hasty(store: Any, path: str, *args: Any, **options: Any) -> Any:
        done = put(store, path, *args, **options)
        if path.startswith("log/"):
            lost.append(path)
            raise AlreadyExistsError(path)
        return done

    monkeypatch.setattr(obstore, "put", hasty)
    store = Store(s3)
    version = store.publish(small_bundle())
    store.promote(version.id)
    assert lost == ["log/000000000001.json", "log/000000000002.json"]
    assert [info.aliases for info in store.versions()] == [("latest", "production")]


def test_a_promotion_that_another_got_in_first_is_not_taken_for_ones_own(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = Store(s3), Store(s3)
    a, b = (store.publish(small_bundle(seed)).id for seed in range(2))
    put, raced = obstore.put, []

    def race(*args: Any, **options: Any) -> Any:
        if not raced:
            raced.append(True)
            other.promote(b)
        return put(*args, **options)

    monkeypatch.setattr(obstore, "put", race)
    with pytest.raises(StoreError, match="moved meanwhile"):
        store.promote(a)
    assert store.aliases()["production"] == b


@pytest.mark.parametrize("verb", ["rollback", "promote", "tag", "untag"])
def test_what_two_write_in_the_same_second_is_two_entries_or_an_error(verb: str, tmp_path: Path) -> None:
    """Their entries say the same: who is second must not take the first one's for its own."""
    bucket, now = MemoryStore(), datetime.now(UTC)
    one, two = (Store(bucket, cache=tmp_path / name, clock=lambda: now) for name in "ab")
    a, b, c = (one.publish(small_bundle(seed)).id for seed in range(3))
    one.promote(a)
    one.promote(b)
    one.tag("spring", a)
    act: Callable[[Store], Any] = {
        "rollback": Store.rollback,
        "promote": lambda store: store.promote(c),
        "tag": lambda store: store.tag("autumn", c),
        "untag": lambda store: store.untag("spring"),
    }[verb]
    two.aliases()
    raced: list[str] = []

    def race(name: str, path: str, run: Callable[[], Any]) -> Any:
        if name == "put" and not raced:
            raced.append(path)
            act(one)
        return run()

    # To have tagged the same is what both asked for; there is one entry all the same.
    refused = nullcontext() if verb == "tag" else pytest.raises(StoreError, match=r"meanwhile|no tag")
    with buckets.intercepted(race), refused:
        act(two)
    assert raced == ["log/000000000007.json"]
    assert len(list(obstore.list(bucket, "log").collect())) == 7


def test_a_rival_s_entry_is_read_no_further_than_one_s_own_is_long(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, size = Store(s3), 8 << 20
    store.publish(small_bundle())
    obstore.put(from_url(s3), "log/000000000002.json", bytes(size))
    read, get_range = [], obstore.get_range

    def counted(*args: Any, **options: Any) -> Any:
        data = get_range(*args, **options)
        read.append(len(data))
        return data

    def whole(*args: Any, **options: Any) -> Any:
        raise AssertionError("all of it was asked for")

    place, data = store.place, b"{}"
    monkeypatch.setattr(obstore, "get_range", counted)
    monkeypatch.setattr(obstore, "get", whole)
    assert not place.create("log/000000000002.json", data)
    assert read == [len(data) + 1]


def test_entries_in_a_bucket_are_as_the_page_says(s3: str) -> None:
    store = Store(s3)
    version = store.publish(small_bundle())
    store.promote(version.id)
    objects = from_url(s3)
    first, second = (json.loads(bytes(obstore.get(objects, f"log/{number:012d}.json").bytes())) for number in (1, 2))
    nonces = {entry.pop("nonce") for entry in (first, second)}
    assert len(nonces) == 2
    assert all(re.fullmatch("[0-9a-f]{16}", nonce) for nonce in nonces)
    assert first.pop("time") == version.manifest["created"]
    said = {"version": version.id, "manifest_sha256": version.digest, "parent": None}
    assert first == {"number": 1, "verb": "publish", **said}
    assert second.pop("time")
    assert second == {"number": 2, "verb": "alias", "alias": "production", "version": version.id, "was": None}


def test_every_request_that_fails_leaves_a_valid_store(tmp_path: Path) -> None:
    for step in range(1, 100):
        names: list[str] = []

        def failing(name: str, path: str, run: Callable[[], Any], names: list[str] = names, step: int = step) -> Any:
            names.append(name)
            if len(names) == step:
                raise GenericError("Generic S3 error: 503 Slow Down\n\nDebug source: ...")
            return run()

        bucket, cache = MemoryStore(), tmp_path / f"cache-{step}"
        old = Store(bucket, cache=tmp_path / "old").publish(small_bundle(1)).id
        store, said = Store(bucket, cache=cache), ""
        with buckets.intercepted(failing):
            try:
                store.publish(small_bundle(2))
                store.promote("latest")
                rows(Store(bucket, cache=tmp_path / f"reader-{step}").open("production"))
                store.gc(keep=3)
            except StoreError as error:
                said = str(error)
        found = read_store(buckets.mirror(bucket, tmp_path / f"mirror-{step}"))
        assert found.versions[0] == old
        assert not list(cache.rglob(".tmp-*")), "what was staged is left"
        if len(names) < step:
            break
        assert "503 Slow Down" in said
        assert "Debug" not in said
    assert {"put", "get", "list", "get_range"} <= set(names)
    assert step > 20


def test_leftovers_of_a_failed_upload_are_collected(s3: str, tmp_path: Path) -> None:
    def failing(name: str, path: str, run: Callable[[], Any]) -> Any:
        if name == "put" and path.endswith("manifest.json"):
            raise GenericError("no more")
        return run()

    store = Store(s3)
    store.publish(small_bundle())
    with buckets.intercepted(failing), pytest.raises(StoreError, match="no more"):
        store.publish(small_bundle())
    assert len(store.versions()) == 1
    later = Store(s3, clock=lambda: datetime.now(UTC) + timedelta(days=2))
    (left,) = later.gc().removed
    assert left.startswith("versions/2")
    assert len(list(buckets.mirror(s3, tmp_path / "mirror").glob("versions/*"))) == 1


# Processes.


@pytest.mark.parametrize(("processes", "each"), [(3, 3), pytest.param(16, 10, marks=pytest.mark.slow)])
def test_no_update_is_lost_in_s3(processes: int, each: int, s3: str, tmp_path: Path) -> None:
    beside, publisher = tmp_path / "here", Publisher()
    verbs = ["publish", "production"] * each
    end = publisher.order(root=s3, beside=str(beside), verbs=verbs, processes=processes)
    publisher.close()
    assert (end["done"], end["failed"]) == (processes, 0)
    found = read_store(buckets.mirror(s3, tmp_path / "mirror"))
    words = [word for word in said(beside) if word[0] != "begin"]
    assert sorted(version for verb, version in words if verb == "publish") == sorted(found.versions)
    assert sorted(version for _, _, version in found.history) == sorted(found.versions)
    assert len(found.versions) == processes * each


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_publisher_killed_at_every_request(times: int, s3: str, tmp_path: Path) -> None:
    verbs, publisher = ["publish", "production", "publish", "production", "rollback"], Publisher()
    whole = tmp_path / "whole"
    assert publisher.order(root=s3, beside=str(whole), verbs=verbs, step=0, how="")["done"] == 1
    calls = json.loads(whole.with_suffix(".calls").read_text())
    assert set(calls) == {"put"}, "the only request that changes a bucket"
    for step in range(1, len(calls) + 1):
        for turn in range(times):
            root, beside = f"{s3}-{step}-{turn}", tmp_path / f"{step}-{turn}"
            how = ("before", "after")[(step + turn) % 2]
            end = publisher.order(root=root, beside=str(beside), verbs=verbs, step=step, how=how)
            assert end["killed"] == 1
            found = read_store(buckets.mirror(root, tmp_path / f"mirror-{step}-{turn}"))
            words = said(beside)
            acknowledged = [version for verb, version in words if verb == "publish"]
            assert found.versions[: len(acknowledged)] == acknowledged
            assert len(found.versions) <= len(acknowledged) + (words[-1] == ["begin", "publish"])
            moved = [version for verb, version in words if verb in ("production", "rollback")]
            assert [version for _, _, version in found.history][: len(moved)] == moved
            assert publisher.order(root=root, beside=str(beside), verbs=["publish"], step=0, how="")["done"] == 1
            assert len(Store(root, cache=tmp_path / "cache").versions()) == len(found.versions) + 1
    publisher.close()


def test_publish_names_where_the_version_lies(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case: the folder it gave was the cache's, empty to whoever reads the bucket from elsewhere."""

    class Trained:
        bundle = staticmethod(small_bundle)
        parent = staticmethod(lambda _: None)

    monkeypatch.setattr("embstore.run.Run.open", lambda *_, **__: Trained)
    said = json.loads(output("publish", "run", "--store", s3, "--json"))
    assert said["folder"] == f"{s3}/versions/{said['version']}"
