"""What gc takes and what it leaves: against a model in plain Python, in races, and killed at every step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import CorruptVersionError, StoreError, VersionNotFoundError
from embstore.schema import Feature, Schema
from embstore.store import Bundle, Change, Collected, Store, files, local

MakeBundle = Callable[..., Bundle]
DAY = 86400


def add_version(root: Path, number: int, **manifest: Any) -> str:
    """A version whose folder holds a manifest and one more file: enough for gc, which opens none."""
    version = f"20260101T000000Z-{number:08x}"
    folder = root / "versions" / version
    folder.mkdir(parents=True)
    data = json.dumps({"version": version, **manifest}).encode()
    (folder / "manifest.json").write_bytes(data)
    (folder / "rows").write_bytes(bytes(1000))
    (root / "log").mkdir(exist_ok=True)
    entry = {"verb": "publish", "version": version, "time": "2026-01-01T00:00:00Z", "parent": None}
    entry["manifest_sha256"] = hashlib.sha256(data).hexdigest()
    count = len(list((root / "log").glob("0*.json"))) + 1
    (root / "log" / f"{count:012d}.json").write_text(json.dumps({**entry, "number": count}))
    return version


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Length and time of writing of all there is."""
    return {
        path.relative_to(root).as_posix(): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
    }


def age(path: Path, seconds: float) -> None:
    """Let all of it have been written that long ago."""
    for one in (path, *path.rglob("*")):
        os.utime(one, (time.time() - seconds,) * 2, follow_symlinks=False)


# A model: who holds what, by the rules as they are told to a user.

SCHEMA = Schema(features=(Feature(name="user"),))
BUNDLE = Bundle(
    table=UnifiedEmbedding(SCHEMA.features, num_rows=16, dim=2, kernel="reference"),
    schema=SCHEMA,
    dense_state={},
    model={"name": "dnn", "settings": {}, "dense_width": 0, "widths": [2]},
    metrics={},
    lineage={},
)


class Keeping(RuleBasedStateMachine):
    """Two stores on one folder, and what a user would expect of them."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.now = datetime(2027, 1, 1, tzinfo=UTC)
        self.stores = [Store(self.root, clock=lambda: self.now) for _ in range(2)]
        self.living: list[str] = []
        self.gone: set[str] = set()
        self.aliases: dict[str, list[str]] = {}  # all it meant, the last is now
        self.tags: dict[str, str] = {}
        self.leases: list[tuple[Any, datetime]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def any_version(self, pick: int) -> str:
        every = [*self.living, *sorted(self.gone)]
        return every[pick % len(every)]

    @contextlib.contextmanager
    def refused_if(self, refused: bool) -> Iterator[None]:
        if not refused:
            yield
            return
        with pytest.raises(StoreError):
            yield

    which, pick = st.integers(0, 1), st.integers(0, 50)
    alias, tag = st.sampled_from(["production", "canary"]), st.sampled_from(["spring", "summer", "fall"])

    @rule(which=which)
    def publish(self, which: int) -> None:
        self.living.append(self.stores[which].publish(BUNDLE).id)

    @precondition(lambda self: self.living)
    @rule(which=which, pick=pick, alias=alias)
    def promote(self, which: int, pick: int, alias: str) -> None:
        store, version = self.stores[which], self.any_version(pick)
        with self.refused_if(version in self.gone):
            store.promote(version, alias)
            if self.aliases.setdefault(alias, [])[-1:] != [version]:
                self.aliases[alias].append(version)

    @precondition(lambda self: self.living)
    @rule(which=which, alias=alias)
    def rollback(self, which: int, alias: str) -> None:
        store, meant = self.stores[which], self.aliases.get(alias, [])
        if len(meant) < 2:
            with pytest.raises(StoreError):
                store.rollback(alias)
            return
        assert store.rollback(alias).id == meant[-2]
        meant.append(meant[-2])

    @precondition(lambda self: self.living)
    @rule(which=which, pick=pick, tag=tag)
    def tag_it(self, which: int, pick: int, tag: str) -> None:
        version = self.any_version(pick)
        with self.refused_if(version in self.gone or self.tags.get(tag, version) != version):
            self.stores[which].tag(tag, version)
            self.tags[tag] = version

    @precondition(lambda self: self.living)
    @rule(which=which, tag=tag)
    def untag(self, which: int, tag: str) -> None:
        with self.refused_if(tag not in self.tags):
            self.stores[which].untag(tag)
            del self.tags[tag]

    @precondition(lambda self: self.living)
    @rule(which=which, pick=pick, hours=st.integers(1, 5))
    def lease(self, which: int, pick: int, hours: int) -> None:
        version = self.any_version(pick)
        with self.refused_if(version in self.gone):
            lent = self.stores[which].lease(version, seconds=3600 * hours)
            self.leases.append((lent, self.now + timedelta(hours=hours)))

    @precondition(lambda self: self.leases)
    @rule(pick=pick)
    def renew(self, pick: int) -> None:
        lent, until = self.leases[pick % len(self.leases)]
        with self.refused_if(lent.version in self.gone):
            lent.renew()
            until = max(until, self.now + timedelta(seconds=lent.seconds))
            self.leases[pick % len(self.leases)] = lent, until

    @precondition(lambda self: self.leases)
    @rule(pick=pick)
    def release(self, pick: int) -> None:
        lent, _ = self.leases.pop(pick % len(self.leases))
        lent.release()

    @rule(minutes=st.sampled_from([1, 59, 60, 61, 300]))
    def wait(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @precondition(lambda self: self.living)
    @rule(which=which, keep=st.integers(1, 4), dry_run=st.booleans())
    def collect(self, which: int, keep: int, dry_run: bool) -> None:
        held = set(self.living[-keep:]) | set(self.tags.values())
        for meant in self.aliases.values():
            held |= set(meant[-2:])
        held |= {lent.version for lent, until in self.leases if until > self.now}
        expected = [version for version in self.living if version not in held]
        found = self.stores[which].gc(keep=keep, dry_run=dry_run)
        assert list(found.retired) == expected
        assert list(found.kept) == [version for version in self.living if version in held]
        assert all(found.kept.values())
        assert found.removed == ()
        assert (found.bytes > 1000 * len(expected)) == bool(expected)
        if not dry_run:
            self.gone |= set(expected)
            self.living = [version for version in self.living if version in held]

    @invariant()
    def both_agree_with_the_model(self) -> None:
        for store in self.stores:
            assert [info.id for info in store.versions()] == self.living
            assert store.tags() == self.tags
            aliases = {alias: meant[-1] for alias, meant in self.aliases.items()}
            if self.living:
                aliases["latest"] = self.living[-1]
            if len(self.aliases.get("production", [])) > 1:
                aliases["previous"] = self.aliases["production"][-2]
            assert store.aliases() == aliases
            for ref, version in {**self.tags, **aliases, **{one: one for one in self.living}}.items():
                assert store.resolve(ref) == version
            for version in self.gone:
                with pytest.raises(VersionNotFoundError, match="collected"):
                    store.resolve(version)
        folder = self.root / "versions"
        assert {path.name for path in folder.glob("*")} == set(self.living)


Keeping.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestKeeping = Keeping.TestCase


# Races.


def test_a_leased_version_is_never_retired(tmp_path: Path) -> None:
    """Two take leases while two collect; who got a lease finds the version until he gives it back."""
    stolen, refused, taken, retired = [], [], [], []
    for attempt in range(40):
        root = tmp_path / str(attempt)
        versions = [add_version(root, number) for number in range(4)]
        barrier = threading.Barrier(4)

        def borrow(root: Path, barrier: threading.Barrier, mine: list[str]) -> None:
            store = Store(root)
            barrier.wait()
            for version in mine:
                try:
                    lent = store.lease(version, seconds=60)
                except VersionNotFoundError:
                    refused.append(version)
                    continue
                taken.append(version)
                for _ in range(3):
                    if (
                        version not in [info.id for info in store.versions()]
                        or not (root / "versions" / version / "rows").is_file()
                    ):
                        stolen.append(version)
                if version == mine[0]:
                    lent.release()

        def collect(root: Path, barrier: threading.Barrier) -> None:
            store = Store(root)
            barrier.wait()
            for _ in range(3):
                retired.extend(store.gc(keep=1).retired)

        threads = [
            *(threading.Thread(target=borrow, args=(root, barrier, mine)) for mine in (versions, versions[::-1])),
            *(threading.Thread(target=collect, args=(root, barrier)) for _ in range(2)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        Store(root).versions()  # the log is whole
    assert not stolen
    assert taken
    assert retired


@pytest.mark.parametrize("claim", ["lease", "tag", "promote", "publish"])
def test_a_claim_that_came_first_is_seen(claim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone takes the number between gc's look and its entry; gc looks again."""
    one, two, _ = (add_version(tmp_path, number) for number in range(3))
    copy, raced, other = obstore.copy, [], Store(tmp_path)

    def race(*args: Any, **options: Any) -> None:
        if not raced:
            raced.append(True)
            if claim == "lease":
                other.lease(one, seconds=60)
            elif claim == "tag":
                other.tag("spring", one)
            elif claim == "promote":
                other._move("production", one, other._log.state())
            else:
                add_version(tmp_path, 3, delta={"base": one})
        copy(*args, **options)

    monkeypatch.setattr(obstore, "copy", race)
    found = Store(tmp_path).gc(keep=1)
    assert raced
    assert one in found.kept
    assert two in found.retired


# Deltas.


def test_what_a_kept_version_is_based_on_is_kept(tmp_path: Path) -> None:
    whole = add_version(tmp_path, 0)
    first = add_version(tmp_path, 1, delta={"base": whole, "rows": 5})
    second = add_version(tmp_path, 2, delta={"base": first})
    other = add_version(tmp_path, 3)
    unused = add_version(tmp_path, 4, delta={"base": other})
    add_version(tmp_path, 5, delta={"base": second})
    found = Store(tmp_path).gc(keep=1)
    assert found.retired == (other, unused)
    assert found.kept[whole] == (f"base of {first}",)
    assert found.kept[second] == (f"base of 20260101T000000Z-{5:08x}",)


@pytest.mark.parametrize("damage", ["absent", "changed", "wrong base"])
def test_nothing_below_a_version_that_can_not_be_read_is_taken(damage: str, tmp_path: Path) -> None:
    one, two = (add_version(tmp_path, number) for number in range(2))
    broken = add_version(tmp_path, 2, delta={"base": "../x"} if damage == "wrong base" else None)
    free, _ = (add_version(tmp_path, number) for number in (3, 4))
    manifest = tmp_path / "versions" / broken / "manifest.json"
    if damage == "absent":
        manifest.unlink()
    elif damage == "changed":
        manifest.write_bytes(manifest.read_bytes() + b" ")
    store = Store(tmp_path)
    store.tag("spring", broken)
    found = store.gc(keep=1)
    assert found.retired == (free,)
    assert "can't be read" in found.kept[one][0]
    assert "can't be read" in found.kept[two][0]
    store.untag("spring")
    assert store.gc(keep=1).retired == (one, two, broken)


# Leftovers.


@pytest.mark.parametrize("seconds", [0, 100])
def test_leftovers_go_when_nothing_was_written_for_the_grace(seconds: int, tmp_path: Path) -> None:
    version = add_version(tmp_path, 0)
    folder = tmp_path / "versions"
    for name in (".tmp-20260101T000000Z-00000009", "20260101T000000Z-0000000a"):
        (folder / name / "table").mkdir(parents=True)
        (folder / name / "table" / "rows").write_bytes(bytes(50))
    (folder / ".tmp-file").write_bytes(bytes(7))
    (folder / ".tmp-link").symlink_to(folder / version)
    (folder / "notes.txt").write_text("not ours")
    (tmp_path / "log" / ".tmp-0123").write_bytes(bytes(9))
    (tmp_path / "log" / "notes.txt").write_text("not ours")
    for path in (*folder.iterdir(), *(tmp_path / "log").iterdir()):
        age(path, DAY + seconds - 50)
    # A publisher whose folder is old, but who is still writing into a file.
    os.utime(folder / "20260101T000000Z-0000000a" / "table" / "rows")
    before = tree(tmp_path)
    store = Store(tmp_path)
    dry = store.gc(dry_run=True)
    assert tree(tmp_path) == before
    found = store.gc()
    assert dry == found
    if not seconds:
        assert found == Collected(retired=(), removed=(), bytes=0, kept=found.kept)
        assert tree(tmp_path) == before
        return
    assert set(found.removed) == {
        "versions/.tmp-20260101T000000Z-00000009",
        "versions/.tmp-file",
        "versions/.tmp-link",
        "log/.tmp-0123",
    }
    assert found.bytes == 50 + 7 + 9
    assert set(os.listdir(folder)) == {version, "20260101T000000Z-0000000a", "notes.txt"}
    assert (folder / version / "rows").exists()  # what a link points to is not the link
    age(folder / "20260101T000000Z-0000000a", DAY + 1)
    assert store.gc().removed == ("versions/20260101T000000Z-0000000a",)
    assert store.gc().removed == ()


def test_a_leftover_that_may_not_be_read_is_told(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.publish(make_bundle())
    left, listdir = tmp_path / "versions" / ".tmp-20260101T000000Z-0000000a", os.listdir
    left.mkdir()

    def refusing(path: Any) -> list[str]:
        if Path(path) == left:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(files.os, "listdir", refusing)
    with pytest.raises(StoreError, match=rf"gc: store .*Permission denied: '{left}'"):
        store.gc()


def test_a_store_that_lost_its_log_keeps_its_versions(tmp_path: Path) -> None:
    version = add_version(tmp_path, 0)
    shutil.rmtree(tmp_path / "log")
    age(tmp_path / "versions", 10 * DAY)
    assert Store(tmp_path).gc() == Collected(retired=(), removed=(), bytes=0, kept={})
    assert (tmp_path / "versions" / version / "rows").exists()


def test_a_publisher_that_was_swept_away_says_so(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path).publish(make_bundle())
    write, raced = local.write_small, []

    def race(path: Path, data: bytes) -> Any:
        if not raced:
            raced.append(True)
            add_version(tmp_path, 1)  # takes the number, so the publisher looks again
            later = datetime.now(UTC) + timedelta(days=3)
            raced.extend(Store(tmp_path, clock=lambda: later).gc().removed)
        return write(path, data)

    monkeypatch.setattr(local, "write_small", race)
    with pytest.raises(StoreError, match="removed by gc"):
        Store(tmp_path).publish(make_bundle())
    assert any(str(path).startswith("versions/2") for path in raced)
    assert len(Store(tmp_path).versions()) == 2


def test_a_delta_whose_base_was_retired_meanwhile_is_not_published(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    base, last = (store.publish(make_bundle(seed=seed)) for seed in range(2))
    keep = store.place.keep

    def slow(*args: Any, **options: Any) -> None:
        keep(*args, **options)
        assert Store(tmp_path).gc(keep=1).retired == (base.id,)

    monkeypatch.setattr(store.place, "keep", slow)
    with pytest.raises(VersionNotFoundError, match=f"{base.id} was collected"):
        store.publish(make_bundle(seed=2), change=Change(base=base))
    assert [info.id for info in store.versions()] == [last.id]


def test_a_version_named_just_before_it_goes_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gc has looked, a publisher slower than the grace appends its entry, gc goes on to remove."""
    add_version(tmp_path, 0)
    late = add_version(tmp_path, 1)
    entry = tmp_path / "log" / "000000000002.json"
    data = entry.read_bytes()
    entry.unlink()
    age(tmp_path / "versions" / late, 2 * DAY)
    before = tree(tmp_path / "versions" / late)
    store = Store(tmp_path)
    remove, asked = store.place.remove, []

    def raced(path: str, wanted: Callable[[], bool]) -> bool:
        entry.write_bytes(data)
        asked.append(path)
        return remove(path, wanted)

    monkeypatch.setattr(store.place, "remove", raced)
    assert store.gc().removed == ()
    assert asked == [f"versions/{late}"]
    assert tree(tmp_path / "versions" / late) == before
    assert [info.id for info in store.versions()][-1] == late


# Crashes.


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), Killed()], ids=["error", "kill"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_gc_killed_at_any_step_is_finished_by_the_next(error: BaseException, after: bool, tmp_path: Path) -> None:
    names: set[str] = set()
    for step in range(1, 100):
        root = tmp_path / str(step)
        versions = [add_version(root, number) for number in range(4)]
        stale = root / "versions" / ".tmp-20260101T000000Z-00000009" / "table"
        stale.mkdir(parents=True)
        (stale / "rows").write_bytes(bytes(5))
        age(stale.parent, 2 * DAY)
        calls: list[str] = []

        def failing(name: str, call: Any, step: int, calls: list[str]) -> Any:
            def wrapped(*args: Any, **options: Any) -> Any:
                calls.append(name)
                if len(calls) > step and isinstance(error, Killed):
                    raise error  # the dead do nothing more
                out = call(*args, **options) if after or len(calls) != step else None
                if len(calls) == step:
                    raise error
                return out

            return wrapped

        with pytest.MonkeyPatch.context() as patch:
            for holder, name in (
                *((os, name) for name in ("rename", "unlink", "rmdir", "fsync")),
                (obstore, "copy"),
            ):
                patch.setattr(holder, name, failing(name, getattr(holder, name), step, calls))
            with contextlib.suppress(StoreError, OSError, Killed):
                Store(root).gc(keep=2)
            names |= set(calls)
        living = [info.id for info in Store(root).versions()]
        assert living in (versions, versions[2:])
        for version in living:
            assert len(list((root / "versions" / version).iterdir())) == 2
        Store(root, clock=lambda: datetime.now(UTC) + timedelta(days=2)).gc(keep=2)
        assert sorted(os.listdir(root / "versions")) == versions[2:]
        assert not list((root / "log").glob(".tmp-*"))
        again = Store(root).gc(keep=2)
        assert (again.retired, again.removed, again.bytes) == ((), (), 0)
        if len(calls) < step:
            break
    assert {"rename", "unlink", "rmdir", "fsync", "copy"} == names
    assert step > 15


def test_what_a_retire_names_needs_no_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = (add_version(tmp_path, number) for number in range(2))

    def killed(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(Killed):
            Store(tmp_path).gc(keep=1)
    assert (tmp_path / "versions" / one).is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            Store(tmp_path).gc(keep=1)
    (gone,) = (tmp_path / "versions").glob(f".tmp-gone-{one}-*")
    found = Store(tmp_path).gc(keep=1)
    assert found.removed == (f"versions/{gone.name}",)
    assert found.bytes > 1000
    assert not gone.exists()


# With whole versions.


def test_a_reader_keeps_what_it_has_open(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    bundle = make_bundle(seed=1)
    old = store.publish(bundle)
    store.publish(make_bundle(seed=2))
    assert store.gc(keep=1).retired == (old.id,)
    assert not old.folder.exists()
    assert torch.equal(old.table.read_rows(0, 40), bundle.table.read_rows(0, 40))
    assert old.dense_state().keys() == bundle.dense_state.keys()


def test_an_alias_that_moved_while_it_was_opened_is_followed(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    old = store.publish(make_bundle(seed=1)).id
    resolve, moved = store.resolve, []

    def slow(ref: str) -> str:
        version = resolve(ref)
        if not moved:
            moved.append(other.publish(make_bundle(seed=2)).id)
            assert other.gc(keep=1).retired == (old,)
        return version

    monkeypatch.setattr(store, "resolve", slow)
    assert store.open("latest").id == moved[0]
    with pytest.raises(VersionNotFoundError, match="collected"):
        store.open(old)


def test_a_damaged_version_is_still_damaged(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    version = store.publish(make_bundle())
    (version.folder / "manifest.json").unlink()
    with pytest.raises(CorruptVersionError):
        store.open()


@pytest.mark.parametrize(
    ("options", "message"), [({"keep": 0}, "1 or more"), ({"grace_seconds": -1}, "0 or more")], ids=str
)
def test_settings_that_can_not_be(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=message):
        Store(tmp_path).gc(**options)
    with pytest.raises(StoreError, match="no such folder"):
        Store(tmp_path / "nowhere").gc()
