"""Consumers of a store: each applies every change once, in order, at its own pace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from embstore.errors import CorruptVersionError, StoreError, VersionNotFoundError
from embstore.store import Bundle, Change, Consumer, Store, Version

MakeBundle = Callable[..., Bundle]


class Copy:
    """Rows somewhere else, kept up by a consumer."""

    def __init__(self, store: Store, position: Path, ref: str = "latest") -> None:
        self.consumer, self.rows_ND, self.wholes = Consumer(store, position, ref=ref), torch.empty(0, 3), 0

    def follow(self, most: int = 100) -> int:
        done = 0
        for update in self.consumer.pending():
            if done == most:
                break
            if update.whole:
                self.rows_ND = update.version.table.read_rows(0, 40).clone()
                self.wholes += 1
            else:
                self.rows_ND[update.index_R] = update.rows_RD
            self.consumer.commit(update)
            done += 1
        return done


@pytest.fixture
def chain(make_bundle: MakeBundle, tmp_path: Path) -> tuple[Store, list[Tensor]]:
    """A store of a whole version and four deltas, and their rows."""
    store, rows_ND = Store(tmp_path / "store"), torch.zeros(40, 3)
    version, states = store.publish(make_bundle(rows_ND=rows_ND.clone())), [rows_ND.clone()]
    for step in range(4):
        rows_ND[step * 3 : step * 3 + 5] += 1 + step
        version = store.publish(make_bundle(rows_ND=rows_ND.clone()), change=Change(base=version))
        states.append(rows_ND.clone())
    return store, states


def test_consumers_follow_at_their_own_pace(chain: tuple[Store, list[Tensor]], tmp_path: Path) -> None:
    store, states = chain
    ids = [info.id for info in store.versions()]
    store.promote(ids[1])
    slow, fast = (Copy(store, tmp_path / name / "position.json", "production") for name in ("slow", "fast"))
    assert slow.follow() == fast.follow() == 1
    assert torch.equal(slow.rows_ND, states[1])
    store.promote(ids[4])
    assert fast.follow() == 3
    assert slow.follow(most=1) == 1
    assert torch.equal(slow.rows_ND, states[2])
    assert torch.equal(fast.rows_ND, states[4])
    again = Copy(Store(store.root), tmp_path / "slow/position.json", "production")  # after a restart
    again.rows_ND = slow.rows_ND
    assert again.consumer.position == ids[2]
    assert again.follow() == 2
    assert torch.equal(again.rows_ND, states[4])
    assert again.follow() == 0
    assert slow.wholes == fast.wholes == 1
    assert again.wholes == 0


def test_a_rollback_and_a_whole_version_are_taken_whole(
    chain: tuple[Store, list[Tensor]], make_bundle: MakeBundle, tmp_path: Path
) -> None:
    store, states = chain
    ids = [info.id for info in store.versions()]
    copy = Copy(store, tmp_path / "position.json", "production")
    for ref, rows_ND in ((ids[4], states[4]), (ids[2], states[2])):
        store.promote(ref)
        copy.follow()
        assert torch.equal(copy.rows_ND, rows_ND)
    assert copy.wholes == 2
    store.promote(store.publish(make_bundle(rows_ND=torch.ones(40, 3))).id)
    copy.follow()
    assert torch.equal(copy.rows_ND, torch.ones(40, 3))
    assert copy.wholes == 3


def test_a_compacted_version_costs_consumers_nothing(
    chain: tuple[Store, list[Tensor]], make_bundle: MakeBundle, tmp_path: Path
) -> None:
    store, states = chain
    copy = Copy(store, tmp_path / "position.json")
    copy.follow()
    whole = store.compact()
    assert whole.delta is None
    assert whole.compacts == whole.parent == store.versions()[-2].id
    assert torch.equal(whole.table.read_rows(0, 40), states[4])
    assert store.compact(whole.id).id == whole.id
    rows_ND = states[4] + 1
    last = store.publish(make_bundle(rows_ND=rows_ND), change=Change(base=whole))
    assert last.delta is not None
    assert last.delta.depth == 1
    assert copy.follow() == 2
    assert copy.wholes == 1
    assert torch.equal(copy.rows_ND, rows_ND)


def test_updates_are_applied_in_order(chain: tuple[Store, list[Tensor]], tmp_path: Path) -> None:
    store, _ = chain
    first = store.versions()[0].id
    consumer = Consumer(store, tmp_path / "position.json", ref=first)
    (whole,) = consumer.pending()
    consumer.commit(whole)
    consumer = Consumer(store, tmp_path / "position.json", ref="latest")
    updates = list(consumer.pending())
    assert len(updates) == 4
    with pytest.raises(StoreError, match=f"after {updates[0].version.id}"):
        consumer.commit(updates[1])
    consumer.commit(updates[0])
    with pytest.raises(StoreError, match="in the order"):
        consumer.commit(updates[0])
    assert consumer.position == updates[0].version.id


def test_positions_that_are_damaged_and_stores_without_the_alias(
    chain: tuple[Store, list[Tensor]], tmp_path: Path
) -> None:
    store, _ = chain
    with pytest.raises(VersionNotFoundError):
        list(Consumer(store, tmp_path / "position.json").pending())
    for text in ("", "{}", '{"version": "../..", "digest": ""}', "x" * 5000):
        (tmp_path / "position.json").write_text(text)
        with pytest.raises(CorruptVersionError):
            list(Consumer(store, tmp_path / "position.json", ref="latest").pending())


def test_versions_that_claim_to_compact_each_other(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = store.publish(make_bundle())
    consumer = Consumer(store, tmp_path / "position.json", ref="latest")
    for update in consumer.pending():
        consumer.commit(update)
    second = store.publish(make_bundle(seed=1))
    store.publish(replace(make_bundle(seed=2), compacts=second.id))
    opened = store.open

    def ring(ref: str) -> Version:
        version = opened(ref)
        if version.id == second.id:  # as a manifest could say
            version.manifest["compacts"] = store.resolve("latest")
        return version

    store.open = ring  # type: ignore[method-assign]
    assert first.id == consumer.position
    with pytest.raises(CorruptVersionError, match="a ring"):
        list(consumer.pending())
