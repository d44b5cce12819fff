"""Vocabularies of versions: what is published is what is read; what lookups, deltas and upkeep make of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import invoke, output
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore
from vectors import KNOWN_DAYS, VALUES, bits, make_table, publish, text, tokens_of

from embstore.batch import FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError, CorruptVersionError, SchemaError, StoreError
from embstore.feature_values import FeatureValues, ValueStatus
from embstore.hashing import PRUNED_TOKEN
from embstore.store import Bundle, Change, Consumer, Store, Version
from embstore.store.manifest import read_vocabulary
from embstore.vocabulary import Vocabulary

MakeBundle = Callable[..., Bundle]

integers = st.integers(-(2**63), 2**63 - 1)
ITEM = "Straße/..=%"
KINDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "user": (pa.string(), text),
    ITEM: (pa.int64(), integers),
    "tags": (pa.large_string(), text),
    "hour": (pa.int32(), st.integers(0, 23)),
    "day": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "7": (pa.bool_(), st.booleans()),
}


def vocabulary(**dropped: list[Any]) -> Vocabulary:
    """All of ``VALUES``, these of a feature dropped."""
    return Vocabulary(
        {
            name: FeatureValues.of(
                name,
                pa.array(values, KINDS[name][0] if name != "day" else pa.int64()),
                count=np.arange(len(values)),
                kept=[value not in dropped.get(name, []) for value in values],
            )
            for name, values in VALUES.items()
        }
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """A version without a vocabulary."""
    return publish(tmp_path_factory.mktemp("plain"), make_table())


def _files(version: Version) -> list[str]:
    return [name for name in version.files if name.startswith("vocabulary/")]


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Some features, each with any values."""
    out = {}
    for name in draw(st.lists(st.sampled_from(list(KINDS)), unique=True, min_size=1)):
        kind, values = KINDS[name]
        known = draw(st.dictionaries(values, st.tuples(st.integers(0, 2**63 - 1), st.booleans()), max_size=9))
        counts = {"count": [count for count, _ in known.values()], "kept": [kept for _, kept in known.values()]}
        unseen = draw(st.sampled_from(["keep", "keep", "prune"]))
        of = FeatureValues.of(name, pa.array(list(known), kind), unseen=unseen, **counts)
        if of.kept.any() and draw(st.booleans()):
            others = st.sampled_from([-1, *np.flatnonzero(of.kept).tolist()])
            of = of.keep(of.kept, np.array([-1 if keeps else draw(others) for keeps in of.kept], np.int64))
        out[name] = of
    return Vocabulary(out)


@settings(max_examples=40)
@given(of=vocabularies())
def test_what_is_published_is_what_is_read(
    of: Vocabulary, plain: Version, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    published = store.publish(replace(plain.bundle(), vocabulary=of))
    version = Store(store.root).open()
    assert version.vocabulary is not None
    assert version.vocabulary.same(of)
    assert of.same(version.vocabulary)
    assert {name: values.kind for name, values in version.vocabulary.items()} == {n: v.kind for n, v in of.items()}
    again = Store(store.root).publish(published.bundle())
    assert again.files == published.files
    store.verify()


def test_a_version_without_is_of_format_2(plain: Version, tmp_path: Path) -> None:
    assert plain.vocabulary is None
    assert plain.vocabulary_info == {}
    for bundle in (plain.bundle(), replace(plain.bundle(), vocabulary=Vocabulary({}))):
        version = Store(tmp_path).publish(bundle)
        assert version.manifest["format"] == 2
        assert "vocabulary" not in version.manifest
        assert version.files == plain.files
    version = Store(tmp_path).publish(replace(plain.bundle(), vocabulary=vocabulary()))
    compat = json.loads((version.folder / "compat.json").read_bytes())
    assert (version.manifest["format"], compat["format"], compat["minimal_reader"]) == (3, 3, 3)
    pruning = Vocabulary({name: replace(of, unseen="prune") for name, of in vocabulary().items()})
    version = Store(tmp_path).publish(replace(plain.bundle(), vocabulary=pruning))
    compat = json.loads((version.folder / "compat.json").read_bytes())
    assert (version.manifest["format"], compat["format"], compat["minimal_reader"]) == (4, 4, 4)


def test_dropped_values_are_looked_up_as_the_pruned_token(plain: Version, tmp_path: Path) -> None:
    dropped = {"user": ["été", ""], ITEM: [17], "tags": ["b"], "day": [7], "7": [False]}
    version = Store(tmp_path).publish(replace(plain.bundle(), vocabulary=vocabulary(**dropped)))
    table, honouring = (UnifiedEmbedding.restore(version.table, pruned=of) for of in (None, version.pruned))
    for name, values in VALUES.items():
        asked = [*values, None]
        tokens_N = tokens_of(asked)
        gone_N = torch.tensor([value in dropped.get(name, []) for value in asked])
        tokens_N[gone_N] = PRUNED_TOKEN
        columns: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {
            feature: (tokens_N, torch.arange(len(asked) + 1) if feature == "tags" else None) for feature in VALUES
        }
        out_BW = table(FeatureTokens.concatenate(columns, len(asked)))[:, table.slices[name]].detach()
        given: Any = [[value] for value in asked] if name == "tags" else asked
        assert bits(version.lookup(name, given).numpy()) == bits(out_BW.numpy())
        assert bits(honouring.lookup(name, given).numpy()) == bits(out_BW.numpy())
        changed = (version.lookup(name, given) != plain.lookup(name, given)).any(1)
        assert not changed[~gone_N].any()
    unknown = version.lookup("day", [7, 99])
    assert torch.equal(unknown[0], unknown[1])  # an exact feature's dropped value has the row of unknown ones
    both, other = version.lookup("tags", [["a", "b"], ["b", "a"]]), version.lookup("tags", [["a"]])
    assert torch.equal(both[0], both[1])
    assert not torch.equal(both[:1], other)


def test_unseen_values_are_pruned_where_the_vocabulary_says_so(plain: Version, tmp_path: Path) -> None:
    store = Store(tmp_path)
    of = {name: replace(of, unseen="prune") for name, of in vocabulary(user=["ann"]).items() if name in ("user", "day")}
    version = store.publish(replace(plain.bundle(), vocabulary=Vocabulary(of)))
    asked = ["ann", "nobody", "", None]
    assert [
        ValueStatus(status).name for status in version.status("user", tokens_of(asked).numpy().view(np.uint64))
    ] == [
        "PRUNED",
        "UNSEEN",
        "KNOWN",
        "MISSING",
    ]
    got, before = version.lookup("user", asked), plain.lookup("user", asked)
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[2:], before[2:])
    assert torch.equal(version.lookup(ITEM, [17, 999]), plain.lookup(ITEM, [17, 999]))  # a feature that it doesn't have
    restored = UnifiedEmbedding.restore(version.table, pruned=version.pruned)
    assert torch.equal(restored.lookup("user", asked), got)
    delta = store.publish(version.bundle(), change=Change(base=version))
    assert delta.own_vocabulary is None
    assert delta.manifest["format"] == 4
    assert torch.equal(delta.lookup("user", asked), got)
    manifest = json.loads((version.folder / "manifest.json").read_bytes())
    manifest["format"] = 3
    with pytest.raises(CorruptVersionError, match="where unseen values are pruned"):
        read_vocabulary(manifest, version.files, "here")


def test_a_stand_in_is_looked_up_instead(plain: Version, tmp_path: Path) -> None:
    store = Store(tmp_path)
    user = vocabulary(user=["ann"])["user"]
    number = {value: at for at, value in enumerate(user.values.to_pylist())}
    of = user.keep(user.kept, np.where(user.kept, -1, number[""]))
    version = store.publish(replace(plain.bundle(), vocabulary=Vocabulary({"user": of})))
    asked = ["ann", "", "nobody", None]
    tokens_N = tokens_of(asked).numpy().view(np.uint64)
    assert version.status("user", tokens_N).tolist() == [0, 0, 3, 1]
    got, before = version.lookup("user", asked), plain.lookup("user", asked)
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[1:], before[1:])
    restored = UnifiedEmbedding.restore(version.table, pruned=version.pruned)
    assert torch.equal(restored.lookup("user", asked), got)
    assert version.manifest["format"] == 5
    with pytest.raises(CorruptVersionError, match="where values have stand-ins"):
        read_vocabulary({**version.manifest, "format": 4}, version.files, "here")


def test_stand_ins_for_no_value_are_none(plain: Version, tmp_path: Path) -> None:
    """As a Parquet file may have the column, with nothing in it."""
    none = FeatureValues.of("user", ["ann", "eve"], kept=[True, False], stand_in=pa.array([None, None], pa.string()))
    version = Store(tmp_path).publish(replace(plain.bundle(), vocabulary=Vocabulary({"user": none})))
    assert version.manifest["format"] == 3
    found = Store(tmp_path).open().vocabulary
    assert found is not None
    assert found["user"].same(none)
    assert found.digest() == Vocabulary({"user": replace(none, stand_in=None)}).digest()


def test_status_by_vocabulary_by_exact_tokens_and_by_neither(plain: Version, tmp_path: Path) -> None:
    only = Vocabulary({name: of for name, of in vocabulary(user=[""]).items() if name == "user"})
    version = Store(tmp_path).publish(replace(plain.bundle(), vocabulary=only))
    asked = tokens_of(["ann", "", "nobody", None]).numpy().view(np.uint64)
    assert version.status("user", asked).tolist() == [0, 2, 3, 1]
    assert version.status(ITEM, asked).tolist() == [0, 0, 0, 1]
    for of in (version, plain):
        days = tokens_of([*KNOWN_DAYS, 8, None]).numpy()
        assert of.status("day", days).tolist() == [0, 0, 0, 3, 1]
        assert of.status("day", days).tolist() == [0, 0, 0, 3, 1]
    assert plain.status("user", asked).tolist() == [0, 0, 0, 1]
    assert plain.filtered("user", asked) is version.filtered(ITEM, asked) is asked
    assert version.filtered("user", asked).tolist() == [asked[0], PRUNED_TOKEN, *asked[2:].tolist()]
    with pytest.raises(SchemaError, match="no feature 'users'"):
        version.status("users", asked)


def test_what_nobody_needs_is_not_read(plain: Version, tmp_path: Path) -> None:
    """A feature's file is read when its values are asked for; where none was dropped, lookups need none."""
    root = tmp_path / "store"
    version = Store(root).publish(replace(plain.bundle(), vocabulary=vocabulary(user=["ann"])))
    user, item, *_ = sorted(_files(version))
    path = version.folder / item
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    opened = Store(root).open()
    opened.lookup(ITEM, [17])
    opened.lookup("user", ["ann"])
    assert opened.vocabulary is not None
    assert len(opened.vocabulary["user"]) == len(VALUES["user"])
    with pytest.raises(CorruptVersionError, match=rf"{item}.*sha256"):
        opened.status(ITEM, np.zeros(1, np.uint64))
    with pytest.raises(CorruptVersionError, match=item):
        opened.verify()
    with pytest.raises(CorruptVersionError, match=item):
        opened.check()
    (finding,) = Store(root).verify_all()
    assert item in str(finding.error)
    (version.folder / user).unlink()
    with pytest.raises(CorruptVersionError, match=rf"{user}.*no file"):
        Store(root).open()


def test_any_flipped_bit_is_found(plain: Version, tmp_path: Path) -> None:
    version = Store(tmp_path).publish(replace(plain.bundle(), vocabulary=vocabulary(user=["ann"])))
    path = version.folder / "vocabulary/feature-00000.safetensors"
    data = path.read_bytes()
    for at in range(0, len(data), 97):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(CorruptVersionError, match="feature-00000"):
            Store(tmp_path).open().lookup("user", ["ann"])
    path.write_bytes(data)
    Store(tmp_path).verify()


def test_from_a_bucket_only_what_is_asked_for_is_fetched(plain: Version, tmp_path: Path) -> None:
    bucket = MemoryStore()
    Store(bucket, cache=tmp_path / "one").publish(replace(plain.bundle(), vocabulary=vocabulary(user=["ann"])))
    version = Store(bucket, cache=tmp_path / "two").open()

    def fetched() -> list[str]:
        return sorted(path.name for path in version.folder.glob("vocabulary/*"))

    assert fetched() == []
    version.lookup(ITEM, [1])
    assert fetched() == []
    version.lookup("user", ["ann"])
    assert fetched() == ["feature-00000.safetensors"]
    assert version.vocabulary is not None
    assert version.vocabulary.same(vocabulary(user=["ann"]))
    assert len(fetched()) == len(VALUES)


def test_deltas_have_their_base_s_unless_they_bring_one(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = Vocabulary({"user": FeatureValues.of("user", [1, 2], kept=[True, False])})
    other = Vocabulary({"user": FeatureValues.of("user", [1, 2, 3])})
    bundle = make_bundle(vocabulary=one)
    first = store.publish(bundle)

    def moved(row: int, of: Bundle, **fields: Any) -> Bundle:
        rows_ND = of.table.read_rows(0, 40).clone()
        rows_ND[row] += 1
        return replace(of, table=type(of.table)(rows_ND), **fields)  # type: ignore[call-arg]

    second_bundle = moved(3, bundle, vocabulary=None)
    second = store.publish(second_bundle, change=Change(base=first))
    third = store.publish(moved(4, second_bundle, vocabulary=other), change=Change(base=second))
    fourth = store.publish(moved(5, second_bundle, vocabulary=other), change=Change(base=third))
    for version, wanted, own in ((first, one, 1), (second, one, 0), (third, other, 1), (fourth, other, 0)):
        opened = Store(tmp_path).open(version.id)
        assert opened.vocabulary is not None
        assert opened.vocabulary.same(wanted)
        assert opened.manifest["format"] == 3
        assert len(_files(opened)) == own
        dropped = opened.lookup("user", [2, 9])
        assert torch.equal(dropped[0], opened.lookup("user", [2])[0])
        status = opened.status("user", tokens_of([1, 2, 3]).numpy()).tolist()
        assert status == ([0, 2, 3] if wanted is one else [0, 0, 0])

    compacted = store.compact(second.id)
    assert compacted.delta is None
    assert compacted.vocabulary is not None
    assert compacted.vocabulary.same(one)
    whole = store.publish(moved(6, second_bundle), change=Change(base=second, touched=torch.arange(40)))
    assert whole.vocabulary is not None
    none = store.publish(moved(7, second_bundle, vocabulary=Vocabulary({})), change=Change(base=fourth))
    assert none.vocabulary is None
    assert store.publish(moved(8, second_bundle), change=Change(base=none)).vocabulary is None
    for finding in store.verify_all():
        assert finding.whole


def test_a_change_that_is_published_whole_has_its_base_s(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store, of = Store(tmp_path), Vocabulary({"user": FeatureValues.of("user", [1, 2], kept=[True, False])})
    first = store.publish(make_bundle(vocabulary=of))
    version = store.publish(make_bundle(seed=1), change=Change(base=first, smallest=True))
    assert version.delta is None
    assert version.vocabulary is not None
    assert version.vocabulary.same(of)


def test_a_vocabulary_alone_is_news(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store, of = Store(tmp_path), Vocabulary({"user": FeatureValues.of("user", [1, 2])})
    first = store.publish(make_bundle(vocabulary=of))
    bundle = make_bundle(vocabulary=of, lineage={**first.manifest["lineage"], "space": first.space})
    assert store.publish(bundle, change=Change(base=first, smallest=True)) is first
    assert store.publish(replace(bundle, vocabulary=None), change=Change(base=first, smallest=True)) is first
    pruned = Vocabulary({"user": of["user"].keep(np.array([True, False]))})
    second = store.publish(replace(bundle, vocabulary=pruned), change=Change(base=first, smallest=True))
    assert second.delta is not None
    assert second.delta.rows == 0
    assert second.vocabulary is not None
    assert second.vocabulary.same(pruned)
    assert store.diff(first.id, second.id).vocabulary == {"user.kept": (2, 1)}


def test_upkeep_of_versions_with_a_vocabulary(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """gc, consumers, diff, export and the commands."""
    root = tmp_path / "store"
    store = Store(root, clock=lambda: datetime.now(UTC) + timedelta(days=2))
    of = Vocabulary({"user": FeatureValues.of("user", [1, 2, 5], count=[7, 8, 9], kept=[True, True, False])})
    store.publish(make_bundle())
    first = store.publish(make_bundle(vocabulary=of))
    rows_ND = make_bundle().table.read_rows(0, 40).clone()
    rows_ND[3] += 1
    second = store.publish(make_bundle(rows_ND=rows_ND), change=Change(base=first))
    store.promote(second.id)
    (update,) = Consumer(store, tmp_path / "position").pending()
    assert update.version.vocabulary is not None
    assert update.version.vocabulary.same(of)
    assert store.gc(keep=1).kept.keys() == {first.id, second.id}
    assert store.open().vocabulary_info == first.vocabulary_info
    assert store.diff(first.id, second.id).vocabulary == {}
    said = json.loads(output("lookup", "user", 2, 5, 6, "--store", root, "--json"))
    assert said["status"] == ["known", "pruned", "unseen"]
    assert "pruned" in output("lookup", "user", 5, "--store", root)
    listed = json.loads(output("versions", "--store", root, "--json"))
    assert [row["damaged"] for row in listed] == [None, None]
    assert listed[1]["bytes"] >= sum(first.files[name].bytes for name in _files(first)) > 0
    output("verify", "--all", "--store", root)
    output("export", "--store", root, "--vocabulary", "--to", tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "feature=user" / "part-0.parquet")
    assert table.column("value").to_pylist() == [1, 2]
    assert table.column("count").to_pylist() == [7, 8]
    assert bits(table.column("vector").to_pylist()) == bits(second.lookup("user", [1, 2]).numpy())


def test_export_of_a_vocabulary_that_is_not_there(plain: Version, tmp_path: Path) -> None:
    root = plain.folder.parent.parent
    with pytest.raises(StoreError, match="expected a vocabulary"):
        invoke("export", "--store", root, "--vocabulary", "--to", tmp_path / "out")
    with pytest.raises(ConfigError, match="found several"):
        invoke("export", "--store", root, "--vocabulary", "--log", "log", "--to", tmp_path / "out")


@pytest.mark.parametrize(
    ("of", "error", "message"),
    [
        (FeatureValues.of("users", ["a"]), StoreError, "vocabulary of 'users'.*'user'"),
        (FeatureValues.of("user", [1]), SchemaError, "values of 'user'; expected values like string"),
        (FeatureValues.of("hour", ["a"]), SchemaError, "values of 'hour'"),
    ],
)
def test_vocabularies_of_another_table(
    of: FeatureValues, error: type[Exception], message: str, plain: Version, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(error, match=message):
        store.publish(replace(plain.bundle(), vocabulary=Vocabulary({of.name: of})))
    assert not list(tmp_path.glob("store/versions/*"))


def test_what_a_status_is_called() -> None:
    assert [status.name for status in ValueStatus] == ["KNOWN", "MISSING", "PRUNED", "UNSEEN"]
    assert list(ValueStatus) == [0, 1, 2, 3]
