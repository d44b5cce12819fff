"""Lookups straight from a version's files. The judge: the table restored whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import buckets
import pytest
import torch
from disk import Call, intercepted
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore
from vectors import KNOWN_DAYS, VALUES, bits, tokens_of

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import SchemaError, VersionNotFoundError
from embstore.schema import Feature, Schema
from embstore.store import Bundle, Change, Store, Version, format
from embstore.store.quantization import ENCODINGS

FEATURES = (
    Feature(name="user", lookups=2),
    Feature(name="item", lookups=3),
    Feature(name="tags", lookups=2, pooling="mean", max_length=3),
    Feature(name="seen", pooling="sum"),
    Feature(name="hour", column="time", transform="hour"),
    Feature(name="day", exact=True, lookups=2),
    Feature(name="days", exact=True, pooling="mean"),
    Feature(name="flag", exact=True),
)
EXACT = {"day": tokens_of(KNOWN_DAYS), "days": tokens_of(KNOWN_DAYS), "flag": torch.empty(0, dtype=torch.int64)}
HASHED, DIM = 240, 4

text = st.none() | st.sampled_from(VALUES["user"]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
integers = st.none() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from(KNOWN_DAYS)
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "user": text,
    "item": integers,
    "tags": st.none() | st.lists(text, max_size=5),
    "seen": st.none() | st.lists(integers, max_size=20),
    "hour": st.none() | st.integers(0, 23),
    "day": integers,
    "days": st.none() | st.lists(integers, max_size=6),
    "flag": st.none() | st.booleans(),
}


def make_table(seed: int = 0, **options: Any) -> UnifiedEmbedding:
    return UnifiedEmbedding(FEATURES, HASHED, DIM, exact_tokens=EXACT, seed=seed, init_std=1.0, **options)


def bundle_of(table: UnifiedEmbedding) -> Bundle:
    return Bundle(
        table=table,
        schema=Schema(features=FEATURES, label="click"),
        dense_state={},
        model={"name": "dnn", "settings": {}, "dense_width": 0, "widths": list(table.widths)},
        metrics={},
        lineage={},
    )


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of a bucket."""
    monkeypatch.setattr(format, "BUCKET_BYTES", 32 * DIM * 4)
    return 32


def publish_deltas(store: Store, base: Version, deltas: list[tuple[set[int], str | None]]) -> Version:
    """Each on the last one: these rows changed, stored in this encoding."""
    table = UnifiedEmbedding.restore(base.table)
    for number, (rows, encoding) in enumerate(deltas):
        touched = torch.tensor(sorted(rows), dtype=torch.int64)
        table.weight[touched] = torch.randn(len(touched), DIM, generator=torch.Generator().manual_seed(number)).to(
            table.dtype
        )
        base = store.publish(bundle_of(table), change=Change(base=base, touched=touched, encoding=encoding))
    return base


@settings(max_examples=60)
@given(
    encoding=st.sampled_from(ENCODINGS),
    num_tables=st.sampled_from([1, 3, 8]),
    seed=st.integers(0, 3),
    deltas=st.lists(
        st.tuples(st.sets(st.integers(0, HASHED - 1), max_size=40), st.sampled_from([None, "int8", "int4", "float16"])),
        max_size=4,
    ),
    columns=st.fixed_dictionaries({name: st.lists(values, max_size=8) for name, values in COLUMNS.items()}),
)
def test_it_is_the_restored_table_s_bit_for_bit(
    encoding: str,
    num_tables: int,
    seed: int,
    deltas: list[tuple[set[int], str | None]],
    columns: dict[str, list[Any]],
    small_buckets: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        base = store.publish(bundle_of(make_table(seed, num_tables=num_tables)), encoding=encoding)
        assert base.table.layout.buckets > 1
        version = publish_deltas(store, base, [] if encoding == "float64" else deltas)
        table = UnifiedEmbedding.restore(version.table)
        for feature, values in columns.items():
            found = version.lookup(feature, values)
            assert found.dtype == torch.float32
            assert found.shape == (len(values), table.feature(feature).lookups * DIM)
            assert bits(found) == bits(table.lookup(feature, values))
            assert bits(store.lookup("latest", feature, values)) == bits(found)


def test_long_lists_are_summed_alike(tmp_path: Path) -> None:
    version = Store(tmp_path).publish(bundle_of(make_table()))
    lists = [list(range(n)) for n in (0, 1, 1000, 33_333)]
    table = UnifiedEmbedding.restore(version.table)
    for feature in ("seen", "days"):
        assert bits(version.lookup(feature, lists)) == bits(table.lookup(feature, lists))


def test_timestamps_are_taken_through_their_transform(tmp_path: Path) -> None:
    version = Store(tmp_path).publish(bundle_of(make_table()))
    moments = [datetime(2026, 1, 31, 17, tzinfo=UTC), None]
    assert bits(version.lookup("hour", moments)) == bits(version.lookup("hour", [17, None]))


def rows_of(version: Version, feature: str, values: list[Any]) -> set[int]:
    """Of the whole table, by the restored table's own plan."""
    table = UnifiedEmbedding.restore(version.table)
    plan = table.plan.only(feature)
    return {int(row) for lookup in plan.lookups for row in plan.rows_of(lookup, tokens_of(values))}


def in_a_folder(folder: Path, look: Callable[[Store], object]) -> set[int]:
    """The buckets that are read whole, to be checked, by ``look``."""
    read = set()

    def react(call: Call) -> Any:
        if call.name == "read" and call.path.parent.name == "table":
            read.add(int(call.path.stem[-5:]))
        return call.run()

    store = Store(folder)
    held = [store.open(info.id) for info in store.versions()]  # which reads the header of every bucket
    with intercepted(folder, react):
        look(store)
    assert held
    return read


def in_a_bucket(place: MemoryStore, cache: Path, look: Callable[[Store], object]) -> set[int]:
    """The buckets that are fetched by ``look``."""
    fetched = set()

    def react(name: str, path: str, run: Callable[[], Any]) -> Any:
        if name in ("get", "get_range") and "/table/bucket-" in path:
            fetched.add(int(Path(path).stem[-5:]))
        return run()

    with buckets.intercepted(react):
        look(Store(place, cache=cache))
    return fetched


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_only_the_buckets_of_its_rows_are_opened(where: str, small_buckets: int, tmp_path: Path) -> None:
    place = MemoryStore()
    store = Store(tmp_path / "store") if where == "folder" else Store(place, cache=tmp_path / "publisher")
    base = store.publish(bundle_of(make_table()))
    assert base.table.layout.buckets == 8
    user, days = rows_of(base, "user", ["ann"]), rows_of(base, "day", KNOWN_DAYS)
    version = publish_deltas(store, base, [({row}, None) for row in sorted(user)])  # a delta each
    assert min(days) >= HASHED
    tries = 0

    def opened(ref: str, feature: str, values: list[Any]) -> set[int]:
        nonlocal tries
        tries += 1

        expected = UnifiedEmbedding.restore(store.open(ref).table).lookup(feature, values)

        def look(store: Store) -> None:
            assert bits(store.lookup(ref, feature, values)) == bits(expected)

        if where == "folder":
            return in_a_folder(tmp_path / "store", look)
        return in_a_bucket(place, tmp_path / f"reader-{tries}", look)

    assert opened(base.id, "user", ["ann"]) == {row // small_buckets for row in user}
    assert opened(base.id, "day", KNOWN_DAYS) == {row // small_buckets for row in days}
    assert opened(version.id, "user", ["ann"]) == set()  # all in the deltas
    both = rows_of(base, "user", ["ann", "bob"]) - user
    assert opened(version.id, "user", ["ann", "bob"]) == {row // small_buckets for row in both}
    assert opened(version.id, "user", []) == set()


def test_a_version_that_is_held_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    version = store.publish(bundle_of(make_table()))
    held = store.open()
    assert store.open() is held
    monkeypatch.setattr(Version, "open", None)
    assert bits(store.lookup(version.id, "user", ["ann"])) == bits(held.lookup("user", ["ann"]))


def test_what_can_not_be_looked_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish(bundle_of(make_table()))
    for feature, values, message in (
        ("usr", ["a"], "no feature 'usr'; did you mean 'user'"),
        ("user", [1.5], "double"),
        ("user", "ann", "a list of values"),
        ("hour", [24], "0 to 23; found 24"),
    ):
        with pytest.raises(SchemaError, match=message):
            store.lookup("latest", feature, values)
    with pytest.raises(VersionNotFoundError, match="production"):
        store.lookup("production", "user", ["a"])
