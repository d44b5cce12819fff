"""What a name means moves with the store, and nobody who has begun is moved."""

from __future__ import annotations

import time

import pytest
import torch
from shop import RECORDS, bundle

from embstore.errors import VersionNotFoundError
from embstore.serving.reader import Reader
from embstore.serving.versions import Following, Versions
from embstore.store import Change, Store


def test_an_alias_is_followed(store: Store) -> None:
    swaps: list[tuple[str, str]] = []
    versions = Versions(store, swapped=lambda name, reader: swaps.append((name, reader.version.id)))
    first = versions.get()
    assert versions.ready() is first
    versions.look()
    assert versions.ready() is first
    second = store.publish(bundle(1))
    store.promote(second.id)
    versions.look()
    after = versions.ready()
    assert after is not None
    assert after.version.id == second.id
    assert first.lookup("user", RECORDS["user"]).vectors_BW.size  # who has begun goes on
    store.rollback()
    versions.look()
    again = versions.ready()
    assert again is not None
    assert again.version.id == first.version.id
    assert [version for _, version in swaps] == [first.version.id, second.id, first.version.id]


def test_other_versions_are_loaded_when_asked_for(store: Store) -> None:
    versions = Versions(store, Following(kept=2))
    ids = [store.publish(bundle(seed)).id for seed in (1, 2, 3)]
    assert versions.ready(ids[0]) is None
    for version in ids:
        assert versions.get(version).version.id == version
    assert [versions.ready(version) is not None for version in ids] == [False, True, True]
    assert versions.get("latest").version.id == ids[2]
    with pytest.raises(VersionNotFoundError):
        versions.get("canary")
    assert versions.get("latest") is versions.get(ids[2])  # the same version is loaded once


def test_a_version_can_be_stayed_at(store: Store) -> None:
    pinned = store.resolve("production")
    versions = Versions(store, Following(alias=pinned, kept=1))
    assert versions.get().version.id == pinned
    store.promote(store.publish(bundle(1)).id)
    for ref in ("production", "latest"):
        versions.get(ref)
    versions.look()
    reader = versions.ready()
    assert reader is not None
    assert reader.version.id == pinned


def test_a_damaged_version_leaves_the_one_before(store: Store) -> None:
    failed: list[str] = []
    versions = Versions(store, failed=failed.append)
    before = versions.get()
    damaged = store.publish(bundle(1))
    path = next((damaged.folder / "table").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    store.promote(damaged.id)
    del damaged
    versions.look()
    assert versions.ready() is before
    assert "sha256" in versions.failures()["production"]
    assert failed == ["production"]
    store.promote(before.version.id)
    versions.look()
    assert not versions.failures()


def test_a_thread_follows(store: Store) -> None:
    versions = Versions(store, Following(seconds=0.01))
    versions.follow()
    base = store.open("production")
    delta = store.publish(bundle(7), change=Change(base=base, touched=torch.arange(100)))
    store.promote(delta.id)
    deadline = time.monotonic() + 60
    while (reader := versions.ready()) is None or reader.version.id != delta.id:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    versions.close()
    expected = Reader(delta).lookup("user", RECORDS["user"])
    assert reader.lookup("user", RECORDS["user"]).vectors_BW.tobytes() == expected.vectors_BW.tobytes()
