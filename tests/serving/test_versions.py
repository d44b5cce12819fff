"""What a name means moves with the store, and nobody who has begun is moved."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from shop import RECORDS, bundle
from test_service import wire

from embstore.errors import VersionNotFoundError
from embstore.serving.protocol import InferRequest, Limits, RequestedOutput
from embstore.serving.reader import Reader
from embstore.serving.service import infer
from embstore.serving.versions import Following, Versions
from embstore.store import Change, Store, Version


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
    failed: list[tuple[str, bool]] = []
    versions = Versions(store, failed=lambda *said: failed.append(said))
    before = versions.get()
    damaged = store.publish(bundle(1))
    path = next((damaged.folder / "table").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    store.promote(damaged.id)
    del damaged
    versions.look()
    assert versions.ready() is before
    assert "sha256" in versions.failures()["production"]
    assert failed == [("production", True)]
    store.promote(before.version.id)
    for _ in range(2):
        versions.look()
    assert not versions.failures()
    assert failed[1:] == [("production", False)]


def test_what_nobody_thought_of_leaves_the_one_before(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in loading one alias's version neither ends the watch nor keeps others from being swapped."""
    failed: list[tuple[str, bool]] = []

    def opened(version: Version) -> Reader:
        if version.id == bad.id:
            raise RuntimeError("inside")
        return Reader(version)

    bad, good = store.publish(bundle(1)), store.publish(bundle(2))
    store.promote("production", "canary")
    versions = Versions(store, open_reader=opened, failed=lambda *said: failed.append(said))
    before = versions.get("production")
    versions.get("canary")
    store.promote(bad.id)
    store.promote(good.id, "canary")
    for _ in range(2):
        versions.look()
    assert versions.ready("production") is before
    assert versions.get("canary").version.id == good.id
    assert failed == [("production", True)] * 2
    assert versions.failures() == {"production": "the server failed; its log says at what"}
    (line,) = [record for record in caplog.records if record.message.startswith("not swapped")]
    assert line.exc_info is not None
    assert "inside" in str(line.exc_info[1])


def test_a_version_that_many_ask_for_is_loaded_once(store: Store) -> None:
    opened, at_once = [], threading.Barrier(8)

    def open_reader(version: Version) -> Reader:
        opened.append(version.id)
        return Reader(version)

    versions = Versions(store, open_reader=open_reader)

    def ask(_: int) -> Reader:
        at_once.wait()
        return versions.get()

    with ThreadPoolExecutor(8) as pool:
        assert len({id(reader) for reader in pool.map(ask, range(8))}) == 1
    assert opened == [store.resolve("production")]


def test_each_answer_is_of_one_version_whatever_is_promoted_meanwhile(store: Store) -> None:
    """Several outputs of one request, from threads, while the alias moves between a whole version and its delta."""
    base = store.open("production")
    delta = store.publish(bundle(7), change=Change(base=base, touched=torch.arange(1000)))
    names = ("user.embedding", "item.embedding", "country.embedding", "embedding")
    request = InferRequest(model="shop", inputs=wire(), outputs=[RequestedOutput(name) for name in names])

    def answer(reader: Reader) -> tuple[str, list[bytes]]:
        found = infer(request, reader, Limits())
        return found.version, [bytes(output.raw()) for output in found.outputs]

    expected = dict(answer(Reader(version)) for version in (base, delta))
    assert expected[base.id] != expected[delta.id]
    versions, stop, seen = Versions(store), threading.Event(), set[str]()
    versions.get()

    def ask() -> int:
        wrong = 0
        while not stop.is_set():
            version, found = answer(versions.get())
            seen.add(version)
            wrong += found != expected[version]
        return wrong

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for number in range(20):
            seen.clear()
            store.promote((delta, base)[number % 2].id)
            versions.look()
            until = time.monotonic() + 60
            while (delta, base)[number % 2].id not in seen:
                assert time.monotonic() < until
                time.sleep(0.001)
        stop.set()
        assert [of.result() for of in asking] == [0, 0, 0]


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


def test_going_back_is_immediate_for_a_while(store: Store) -> None:
    versions = Versions(store, Following(lingers=1000))
    first = versions.get()
    store.promote(store.publish(bundle(1)).id)
    versions.look()
    assert versions.ready() is not first
    store.rollback()
    versions.look()
    assert versions.ready() is first


def test_who_lingers_goes(store: Store) -> None:
    versions = Versions(store, Following(lingers=0))
    first = weakref.ref(versions.get())
    store.promote(store.publish(bundle(1)).id)
    versions.look()
    versions.look()
    assert first() is None


def test_no_more_linger_than_are_kept(store: Store) -> None:
    versions = Versions(store, Following(lingers=1000, kept=1))
    gone = [weakref.ref(versions.get())]
    for seed in (1, 2):
        store.promote(store.publish(bundle(seed)).id)
        versions.look()
        gone.append(weakref.ref(versions.get()))
    assert [of() is not None for of in gone] == [False, True, True]
