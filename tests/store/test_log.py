"""The log's verbs: each entry is held to those before it; refs, tags and leases."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest

from embstore.errors import CorruptVersionError, StoreError, VersionNotFoundError
from embstore.store import Bundle, Store

MakeBundle = Callable[..., Bundle]

A, B, C, NONE = (f"20260101T00000{i}Z-0000000{i}" for i in range(4))
NOON, LATER = "2026-01-01T12:00:00Z", "2026-01-01T13:00:00Z"


def publish(version: str, **values: Any) -> dict[str, Any]:
    return {"verb": "publish", "version": version, "manifest_sha256": "0" * 64, "parent": None, **values}


def alias(name: str, version: str, was: str | None = None) -> dict[str, Any]:
    return {"verb": "alias", "alias": name, "version": version, "was": was}


def tag(name: str, version: str) -> dict[str, Any]:
    return {"verb": "tag", "tag": name, "version": version}


def untag(name: str, version: str) -> dict[str, Any]:
    return {"verb": "untag", "tag": name, "version": version}


def lease(version: str, **values: Any) -> dict[str, Any]:
    return {"verb": "lease", "lease": "0" * 16, "version": version, "holder": "me", "until": LATER, **values}


def release(version: str, **values: Any) -> dict[str, Any]:
    return {"verb": "release", "lease": "0" * 16, "version": version, **values}


def retire(*versions: Any, **values: Any) -> dict[str, Any]:
    return {"verb": "retire", "versions": list(versions), **values}


def written(root: Path, *entries: dict[str, Any]) -> Store:
    """A store whose log holds these entries after the publishing of A, B and C; it has no versions' files."""
    (root / "log").mkdir(parents=True)
    for number, entry in enumerate((publish(A), publish(B), publish(C), *entries), 1):
        text = json.dumps({"number": number, "time": NOON, **entry})
        (root / "log" / f"{number:012d}.json").write_text(text)
    return Store(root)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        # tag
        ([tag("v1", NONE)], "version published before"),
        ([tag("v1", A), tag("v1", A)], "not taken"),
        ([tag("v1", A), tag("v1", B)], "not taken"),
        ([alias("production", A), tag("production", B)], "not taken"),
        ([tag("latest", A)], "not taken"),
        ([tag("previous", A)], "not taken"),
        ([tag("v1", A), alias("v1", B)], "no tag"),
        ([tag("2026", A)], "text like"),
        ([tag("a/b", A)], "text like"),
        ([retire(A), tag("v1", A)], "version that exists"),
        # untag
        ([untag("v1", A)], "a tag of"),
        ([tag("v1", A), untag("v1", B)], "a tag of"),
        ([tag("v1", A), untag("v1", A), untag("v1", A)], "a tag of"),
        # lease
        ([lease(NONE)], "version published before"),
        ([retire(A), lease(A)], "version that exists"),
        ([lease(A, until=NOON)], "later than"),
        ([lease(A), lease(B, until="2026-01-01T14:00:00Z")], "of 2026"),
        ([lease(A), lease(A, holder="you", until="2026-01-01T14:00:00Z")], "of 2026"),
        ([lease(A), lease(A)], "later than"),
        ([lease(A, lease="x")], "text like"),
        ([lease(A, holder="")], "text like"),
        ([lease(A, holder="a\nb")], "text like"),
        ([lease(A, holder="a" * 201)], "text like"),
        ([lease(A, until="tomorrow")], "text like"),
        # release
        ([release(A)], "a lease of"),
        ([lease(A), release(B)], "a lease of"),
        ([lease(A), release(A), release(A)], "a lease of"),
        ([lease(A), retire(A, time=LATER), release(A)], "a lease of"),
        # retire
        ([retire()], "one or more"),
        ([retire(A, A)], "each once"),
        ([retire(NONE)], "versions that exist"),
        ([retire(A), retire(A)], "versions that exist"),
        ([retire("../x")], "text like"),
        ([retire(5)], "text like"),
        ([{"verb": "retire", "versions": A}], "a list"),
        ([retire(C)], "alias latest"),
        ([alias("production", A), retire(A)], "alias production"),
        ([alias("canary", A), alias("canary", B, A), retire(A)], "rollback of canary"),
        ([tag("v1", A), retire(B, A)], "tag v1"),
        ([lease(A), retire(A)], "leased by me"),
        # the others, of a version that is no more
        ([retire(A), publish(A)], "a new version"),
        ([retire(A), alias("production", A)], "version that exists"),
    ],
)
def test_an_entry_that_contradicts_earlier_ones(entries: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    before = written(tmp_path / "before", *entries[:-1])
    before.versions()
    after = written(tmp_path / "after", *entries)
    with pytest.raises(CorruptVersionError, match=rf"{len(entries) + 3:012d}\.json.*{message}"):
        after.versions()


def test_entries_that_may_follow(tmp_path: Path) -> None:
    store = written(
        tmp_path,
        tag("v1.0", A),
        untag("v1.0", A),
        tag("v1.0", B),
        lease(A),
        lease(A, until="2026-01-01T14:00:00Z"),
        lease(B, lease="1" * 16),
        release(B, lease="1" * 16),
        alias("production", B),
        retire(A, time="2026-01-01T14:00:00Z"),
        publish(NONE, parent=A),  # its parent is no more: where it came from stays true
    )
    assert [info.id for info in store.versions()] == [B, C, NONE]
    assert store.tags() == {"v1.0": B}
    assert store.lineage(NONE) == (NONE, A)


def test_a_listing_that_missed_an_entry_is_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, listed = written(tmp_path), obstore.list
    monkeypatch.setattr(
        obstore,
        "list",
        lambda *args, **options: [
            [meta for meta in chunk if "2.json" not in meta["path"]] for chunk in listed(*args, **options)
        ],
    )
    assert len(store.versions()) == 3


def test_a_ref_may_be_a_tag(tmp_path: Path) -> None:
    store = written(tmp_path, tag("spring", A), alias("production", B))
    assert store.resolve("spring") == A
    assert store.tag("summer", "spring").tags == ("spring", "summer")
    assert store.versions()[0].tags == ("spring", "summer")
    assert "spring" not in store.aliases()
    with pytest.raises(StoreError, match=f"name not taken; found a tag of {A}"):
        store.tag("summer", B)
    with pytest.raises(StoreError, match=f"name not taken; found an alias of {B}"):
        store.tag("production", A)
    for name in ("latest", "previous", "", "2026", "V1", "a/b", "a" * 64, "a\n"):
        with pytest.raises(StoreError, match="lower-case letter"):
            store.tag(name, A)
    with pytest.raises(StoreError, match="did you mean 'summer'"):
        store.untag("sumer")
    with pytest.raises(VersionNotFoundError, match="did you mean 'summer'"):
        store.resolve("sumer")
    assert store.untag("summer").tags == ("spring",)
    assert store.untag("spring").id == A
    with pytest.raises(StoreError, match="no such folder"):
        Store(tmp_path / "nowhere").untag("x")
    with pytest.raises(VersionNotFoundError, match="no such folder"):
        Store(tmp_path / "nowhere").tag("x", "latest")


def test_an_alias_can_not_have_a_tags_name(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    version = store.publish(make_bundle()).id
    store.tag("spring", version)
    with pytest.raises(StoreError, match="a name that is no tag"):
        store.promote(version, "spring")
    store.untag("spring")
    store.promote(version, "spring")


def test_a_retired_version_is_refused_everywhere(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = (store.publish(make_bundle(seed=seed)).id for seed in range(2))
    lent = Store(tmp_path, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC)).lease(old, seconds=60)  # long over
    before = store.open(old)
    assert store.gc(keep=1).retired == (old,)
    when = json.loads(max((tmp_path / "log").iterdir()).read_bytes())["time"]
    for use in (
        store.resolve,
        store.open,
        store.verify,
        store.promote,
        lambda ref: store.tag("spring", ref),
        lambda ref: store.lease(ref, seconds=60),
        store.lineage,
        lambda ref: store.diff(ref, new),
    ):
        with pytest.raises(VersionNotFoundError, match=f"{old} was collected on {when}"):
            use(old)
    with pytest.raises(VersionNotFoundError, match="collected"):
        lent.renew()
    lent.release()
    with pytest.raises(VersionNotFoundError, match="collected"):
        store.resolve(old[:-1])
    assert before.table.read_rows(0, 40).shape == (40, 3)  # gone by name, not from under its reader
    child = store.publish(make_bundle(seed=2), parent=old)
    assert store.lineage(child.id) == (child.id, old)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def leased(store: Store) -> list[str]:
    """The reasons with which a gc would keep A."""
    return [reason for reason in store.gc(keep=1, dry_run=True).kept.get(A, ()) if reason.startswith("leased")]


def test_a_lease_runs_until_its_second_is_over(tmp_path: Path) -> None:
    written(tmp_path)
    clock = Clock()
    store = Store(tmp_path, clock=clock)
    clock.wait(0.7)
    lent = store.lease(A, seconds=10, holder="trainer")
    assert (lent.version, lent.holder, lent.until) == (A, "trainer", "2026-01-01T12:00:11Z")
    assert leased(store) == ["leased by trainer until 2026-01-01T12:00:11Z"]
    clock.wait(10.2)
    assert leased(store)
    clock.wait(0.1)
    assert not leased(store)
    lent.renew()  # nobody took the version meanwhile
    assert lent.until == "2026-01-01T12:00:21Z"
    assert leased(store)
    entries = len(list((tmp_path / "log").iterdir()))
    lent.renew()  # in the same second: nothing to say
    assert len(list((tmp_path / "log").iterdir())) == entries
    lent.release()
    assert not leased(store)
    lent.release()
    with pytest.raises(StoreError, match="released"):
        lent.renew()


def test_a_lease_is_given_back_when_its_block_ends(tmp_path: Path) -> None:
    written(tmp_path)
    store = Store(tmp_path)

    def work() -> None:
        with store.lease(A, seconds=60) as one, store.lease(A, seconds=60):
            assert one.version == A
            assert len(leased(store)) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not leased(store)


@pytest.mark.parametrize("seconds", [0, -1, 0.5, float("nan"), float("inf"), 367 * 86400])
def test_leases_of_no_length(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="31,622,400 seconds"):
        written(tmp_path).lease(A, seconds=seconds)


@pytest.mark.parametrize("holder", ["", "a\n", "x" * 201])
def test_holders_that_can_not_be(holder: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holder"):
        written(tmp_path).lease(A, seconds=5, holder=holder)


def test_one_of_those_who_take_a_tag_gets_it(tmp_path: Path) -> None:
    written(tmp_path)
    barrier, won, lost = threading.Barrier(6), [], []

    def take(version: str) -> None:
        store = Store(tmp_path)
        barrier.wait()
        for name in ("a", "b", "c"):
            try:
                won.append((name, store.tag(name, version).id))
            except StoreError as error:
                lost.append(str(error))

    threads = [threading.Thread(target=take, args=(version,)) for version in (A, B, C) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 6  # each tag's version was named by two
    assert len(lost) == 12
    assert len(set(won)) == 3
    assert all("a name not taken" in message for message in lost)
    assert Store(tmp_path).tags() == dict(won)


def test_a_promotion_that_lost_to_gc_fails(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    old, _ = (store.publish(make_bundle(seed=seed)).id for seed in range(2))
    copy, raced = obstore.copy, []

    def race(*args: Any, **options: Any) -> None:
        if not raced:
            raced.append(True)
            assert other.gc(keep=1).retired == (old,)
        copy(*args, **options)

    monkeypatch.setattr(obstore, "copy", race)
    with pytest.raises(VersionNotFoundError, match="collected"):
        store.promote(old)
    assert "production" not in store.aliases()
