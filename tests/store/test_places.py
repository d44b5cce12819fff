"""The store by its verbs, wherever it is: in a folder, in S3, and in obstore's bucket in memory."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
import torch
from obstore.store import MemoryStore, from_url

from embstore.errors import CorruptVersionError, StoreError, VersionNotFoundError
from embstore.store import Bundle, Change, Consumer, OptimizerState, Store, Version

MakeBundle = Callable[..., Bundle]


@dataclass
class Somewhere:
    """A place for one store. ``objects`` reads and writes it behind the store's back."""

    root: Any
    objects: Any
    tmp: Path
    caches: int = field(default=0)

    def store(self, **options: Any) -> Store:
        """The store, as a process on another machine sees it: with a cache of its own."""
        self.caches += 1
        return Store(self.root, cache=self.tmp / f"cache-{self.caches}", **options)

    def flip(self, path: str, bit: int) -> None:
        """Let one bit of a file be another."""
        data = bytearray(obstore.get(self.objects, path).bytes())
        data[bit // 8 % len(data)] ^= 1 << bit % 8
        obstore.put(self.objects, path, bytes(data))

    def paths(self) -> list[str]:
        """Of all files."""
        return sorted(meta["path"] for chunk in obstore.list(self.objects) for meta in chunk)


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Somewhere:
    monkeypatch.setenv("EMBSTORE_CACHE", str(tmp_path / "cache"))
    if request.param == "memory":
        memory = MemoryStore()
        return Somewhere(memory, memory, tmp_path)
    root = request.getfixturevalue("s3") if request.param == "s3" else (tmp_path / "store").as_uri()
    if request.param == "folder":
        (tmp_path / "store").mkdir()
    return Somewhere(root, from_url(root), tmp_path)


def rows(version: Version) -> torch.Tensor:
    return version.table.read_rows(0, version.table.num_rows)


def test_what_was_published_is_read_elsewhere(make_bundle: MakeBundle, place: Somewhere) -> None:
    store, bundle = place.store(), make_bundle(rows=200)
    version = store.publish(bundle)
    for reader in (store, place.store()):
        found = reader.open()
        assert (found.id, found.digest, found.manifest) == (version.id, version.digest, version.manifest)
        assert torch.equal(rows(found), bundle.table.rows_ND)
        some = torch.tensor([199, 0, 7, 7])
        assert torch.equal(found.table.gather(some), bundle.table.rows_ND[some])
        assert found.dense.keys() == bundle.dense_state.keys()
        for name, tensor in found.dense.items():
            assert torch.equal(tensor, bundle.dense_state[name])
        found.verify()
        reader.verify()


def test_aliases_tags_leases_and_lineage(make_bundle: MakeBundle, place: Somewhere) -> None:
    store, other = place.store(), place.store()
    a = store.publish(make_bundle(seed=0)).id
    b = store.publish(make_bundle(seed=1), parent=a).id
    c = other.publish(make_bundle(seed=2), parent=b).id
    store.promote(a)
    other.promote(b)
    assert store.aliases() == other.aliases() == {"production": b, "previous": a, "latest": c}
    assert store.rollback().id == a
    assert other.tag("spring", b).tags == ("spring",)
    assert store.lineage() == (c, b, a)
    assert [info.id for info in store.versions()] == [a, b, c]
    with pytest.raises(StoreError, match="not taken"):
        store.tag("spring", a)
    with store.lease(c, seconds=60) as lent:
        assert lent.version == c
    assert store.diff(a, b).rows.changed == 40
    with pytest.raises(VersionNotFoundError, match="did you mean 'spring'"):
        store.open("sprang")
    assert obstore.head(place.objects, "log/000000000008.json")["size"] > 0  # one entry a verb, no number left out


def test_a_store_that_is_not_there(place: Somewhere) -> None:
    missing = Somewhere(f"{place.root}/nowhere" if isinstance(place.root, str) else MemoryStore(), None, place.tmp)
    for use in (lambda store: store.versions(), lambda store: store.gc(), lambda store: store.rollback()):
        with pytest.raises(StoreError, match="publish makes a store"):
            use(missing.store())
    with pytest.raises(VersionNotFoundError, match="no version 'latest'"):
        missing.store().open()
    assert missing.store().aliases() == {}


def test_deltas_and_their_chain(make_bundle: MakeBundle, place: Somewhere) -> None:
    store, optimizer = place.store(), {"sum": torch.rand(300)}
    state = OptimizerState(name="rowwise_adagrad", steps=1, rates=0.1, table=optimizer, dense={"m": torch.ones(2)})
    bundle = make_bundle(rows=300, optimizer=state)
    consumer = Consumer(place.store(), place.tmp / "position", ref="latest")
    version = store.publish(bundle)
    copy = torch.empty(0)
    for step in range(1, 4):
        for update in consumer.pending():
            if update.whole:
                copy = rows(update.version).clone()
            copy[update.index_R] = update.rows_RD
            consumer.commit(update)
        assert torch.equal(copy, bundle.table.rows_ND)
        changed = torch.randperm(300, generator=torch.Generator().manual_seed(step))[:20].sort().values
        bundle.table.rows_ND[changed] += step
        optimizer["sum"][changed] += step
        version = store.publish(bundle, change=Change(base=version, touched=changed))
        found = place.store().open()
        assert (found.delta.depth, found.delta.rows) == (step, 20)
        assert torch.equal(rows(found), bundle.table.rows_ND)
        assert torch.equal(found.optimizer_state().table["sum"], optimizer["sum"])
    whole = place.store().compact()
    assert whole.delta is None
    assert torch.equal(rows(place.store().open()), bundle.table.rows_ND)


@pytest.mark.parametrize("encoding", ["int8", "int4", "float16"])
def test_quantised_rows(encoding: str, make_bundle: MakeBundle, place: Somewhere) -> None:
    bundle = make_bundle(rows=100, dim=4)
    version = place.store().publish(bundle, encoding=encoding)
    found = place.store().open()
    assert found.table.encoding == encoding
    assert torch.equal(rows(found), rows(version))
    loss = version.manifest["table"]["loss"]["largest"]
    assert 0 < float((rows(found) - bundle.table.rows_ND).abs().max()) == pytest.approx(loss)


def test_gc_takes_what_nothing_holds(make_bundle: MakeBundle, place: Somewhere) -> None:
    store = place.store()
    a, b, c, d = (store.publish(make_bundle(seed=seed)).id for seed in range(4))
    store.promote(b)
    lent = store.lease(c, seconds=3600)
    before = place.paths()
    assert store.gc(keep=1, dry_run=True).retired == (a,)
    assert place.paths() == before
    found = place.store().gc(keep=1)
    assert found.retired == (a,)
    assert found.bytes > 1000
    assert not any(a in path for path in place.paths())
    lent.release()
    assert store.gc(keep=1).retired == (c,)
    with pytest.raises(VersionNotFoundError, match="collected"):
        place.store().open(c)
    for version in (b, d):
        place.store().verify(version)


def test_what_a_crash_left_goes_after_the_grace(make_bundle: MakeBundle, place: Somewhere) -> None:
    store = place.store()
    version = store.publish(make_bundle()).id
    left = "20260101T000000Z-0000000a"
    obstore.put(place.objects, f"versions/{left}/table/bucket-00000.safetensors", bytes(50))
    obstore.put(place.objects, "versions/notes.txt", b"not ours")
    assert store.gc().removed == ()
    later = place.store(clock=lambda: datetime.now(UTC) + timedelta(days=2))
    assert later.gc(dry_run=True).removed == (f"versions/{left}",)
    found = later.gc()
    assert (found.removed, found.bytes) == ((f"versions/{left}",), 50)
    assert later.gc().removed == ()
    assert "versions/notes.txt" in place.paths()
    place.store().verify(version)


def test_any_flipped_bit_is_found(make_bundle: MakeBundle, place: Somewhere) -> None:
    """By verify, and by opening and reading; a machine that has the file whole already reads on."""
    version = place.store().publish(make_bundle(rows=100)).id
    whole = place.store()
    rows(whole.open(version))
    choice = random.Random(5)
    files = [path for path in place.paths() if path.startswith(f"versions/{version}/")]
    assert len(files) > 4
    for path in files * 3:
        bit = choice.randrange(8 * obstore.head(place.objects, path)["size"])
        place.flip(path, bit)
        with pytest.raises(StoreError, match=path.rpartition("/")[2]):
            place.store().verify(version)
        with pytest.raises(StoreError, match=path.rpartition("/")[2]):
            rows(place.store().open(version))
        place.flip(path, bit)
    place.store().verify(version)


@pytest.mark.parametrize("damage", ["gone", "short", "long", "stray"])
def test_files_that_are_not_as_published(damage: str, make_bundle: MakeBundle, place: Somewhere) -> None:
    version = place.store().publish(make_bundle(rows=100)).id
    path = f"versions/{version}/table/bucket-00000.safetensors"
    data = bytes(obstore.get(place.objects, path).bytes())
    if damage == "gone":
        obstore.delete(place.objects, path)
    elif damage == "stray":
        obstore.put(place.objects, path + ".bak", data)
    else:
        obstore.put(place.objects, path, data[:-1] if damage == "short" else data + b"x")
    with pytest.raises(CorruptVersionError, match="bucket-00000"):
        place.store().verify(version)
    if damage != "stray":
        with pytest.raises(CorruptVersionError, match="bucket-00000"):
            place.store().open(version)


def test_threads_that_publish_and_promote(make_bundle: MakeBundle, place: Somewhere) -> None:
    published, barrier = [], threading.Barrier(3)

    def work(store: Store, seed: int) -> None:
        barrier.wait()
        for _ in range(3):
            published.append(store.publish(make_bundle(seed=seed)).id)

    stores = [place.store() for _ in range(2)]
    threads = [threading.Thread(target=work, args=(store, seed)) for seed, store in enumerate([*stores, stores[0]])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    infos = place.store().versions()
    assert sorted(info.id for info in infos) == sorted(published)
    assert [info.number for info in infos] == list(range(1, 10))
