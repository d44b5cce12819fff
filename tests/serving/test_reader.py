"""What a reader gives is what the version and its model give."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch
from shop import DIM, FEATURES, RECORDS, SCHEMA, VOCABULARY, bundle

from embstore.batch import FeatureTokens
from embstore.ctr import CtrModel
from embstore.encoding import encode
from embstore.errors import ConfigError, KernelError, RequestError, SchemaError
from embstore.kernels.few import MOST
from embstore.models import build
from embstore.serving.indexes import Indexes
from embstore.serving.reader import Reader
from embstore.serving.worker import WarmReader
from embstore.store import Change, Store, Version
from embstore.vocabulary import ValueStatus


def test_vectors_are_the_versions(reader: Reader, version: Version) -> None:
    for feature in FEATURES:
        values = RECORDS[feature.name]
        looked = reader.lookup(feature.name, values)
        expected = version.lookup(feature.name, values).numpy()
        assert looked.vectors_BW.tobytes() == expected.tobytes()


def test_vectors_of_several_features_are_the_versions(reader: Reader, version: Version) -> None:
    rows = 20_000  # an output that is large enough for memory that is used again
    columns = {"item": list(range(rows)), "country": ["de", None, "fr", "x"] * (rows // 4)}
    for _ in range(2):
        embedded = reader.embed(columns, ["item", "country"])
        expected = [version.lookup(name, values).numpy() for name, values in columns.items()]
        assert embedded.tobytes() == np.concatenate(expected, axis=1).tobytes()
    assert reader.embed({"item": [], "country": []}, ["item", "country"]).shape == (0, 2 * DIM)


def test_a_lookup_takes_all_rows_of_each_feature(reader: Reader) -> None:
    prepared = reader.prepare("item", "country")
    few = reader.few(prepared.plan)
    assert few is not None
    with pytest.raises(KernelError, match="5 tokens for each of 2 features; found 9"):
        few(np.zeros(9, dtype=np.int64), 5)
    fixed = np.arange(10, dtype=np.int64)
    expected = few(fixed.copy(), 5)
    fixed.flags.writeable = False
    assert few(fixed, 5).tobytes() == expected.tobytes()


def test_many_values_are_read_as_few_are(reader: Reader) -> None:
    values = [f"u{i}" for i in range(40_000)]  # two lookups of 8 numbers: more than a single compiled call takes
    many = reader.lookup("user", values).vectors_BW
    assert many.size > MOST
    few = np.concatenate([reader.lookup("user", values[at : at + 500]).vectors_BW for at in range(0, len(values), 500)])
    assert many.tobytes() == few.tobytes()


def test_status_says_what_is_known(reader: Reader) -> None:
    known, missing, unseen = ValueStatus.KNOWN, ValueStatus.MISSING, ValueStatus.UNSEEN
    assert reader.lookup("country", RECORDS["country"]).status_N.tolist() == [known, known, unseen, missing, known]
    assert reader.lookup("tags", [["a", None], None, []]).status_N.tolist() == [known, missing, missing]


def test_scores_are_the_models(reader: Reader, version: Version) -> None:
    model = CtrModel.restore(version, build)
    time = pa.array([None if hour is None else hour * 3_600_000_000 for hour in RECORDS["hour"]], pa.timestamp("us"))
    table = pa.table({**{name: RECORDS[name] for name in RECORDS if name != "hour"}, "time": time})
    with torch.no_grad():
        expected = model(encode(table, SCHEMA, labelled=False).batch()).sigmoid().numpy()
    assert reader.score(RECORDS).tobytes() == expected.tobytes()
    assert reader.score(table).tobytes() == expected.tobytes()
    assert reader.score(table.to_pylist()).tobytes() == expected.tobytes()


@pytest.mark.parametrize("encoding", ["float32", "float16", "bfloat16", "float64", "int8", "int4"])
def test_every_encoding(store: Store, encoding: str) -> None:
    version = store.publish(bundle(), encoding=encoding)
    reader = Reader(version, build)
    before = reader.embed(RECORDS)  # nothing was checked yet: row by row
    reader.load()
    model = CtrModel.restore(version, build)
    tokens = FeatureTokens.from_columns({**RECORDS, "time": RECORDS["hour"]}, [f for f in FEATURES if f.name != "hour"])
    expected = model.table.lookup("user", RECORDS["user"]).numpy()
    assert before.tobytes() == reader.embed(RECORDS).tobytes()
    assert reader.embed(RECORDS, ["user"]).tobytes() == expected.tobytes()
    assert tokens.rows == len(before)


def test_a_delta_is_read_over_its_base(store: Store, version: Version) -> None:
    changed = bundle(seed=5)
    delta = store.publish(changed, change=Change(base=version, touched=torch.arange(0, 1000, 7)))
    reader = Reader(delta, build)
    reader.load()
    expected = torch.cat([delta.lookup(feature.name, RECORDS[feature.name]) for feature in FEATURES], dim=1)
    assert reader.embed(RECORDS).tobytes() == expected.numpy().tobytes()
    assert np.isfinite(reader.score(RECORDS)).all()


@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_a_chain_of_deltas(store: Store, encoding: str) -> None:
    """Some rows are changed by several deltas, some by one, some by none; loaded or not, any version of the chain."""
    version, chain = store.publish(bundle(), encoding=encoding), []
    for seed in range(1, 6):
        touched = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[: 50 * seed].sort().values
        version = store.publish(bundle(seed), change=Change(base=version, touched=touched))
        chain.append(version)
    values = [f"u{i}" for i in range(3000)]
    for version in chain:
        expected = version.lookup("user", values).numpy().tobytes()
        reader = Reader(version)
        assert reader.lookup("user", values).vectors_BW.tobytes() == expected
        reader.load()
        assert reader.lookup("user", values).vectors_BW.tobytes() == expected
        assert reader.embed(RECORDS).tobytes() == Reader(version).embed(RECORDS).tobytes()


def test_prepared_features(reader: Reader) -> None:
    prepared = reader.prepare("item", "user")
    assert prepared.plan is reader.prepare("item", "user").plan
    assert (prepared.width, prepared.slices["user"]) == (3 * DIM, slice(DIM, 3 * DIM))
    assert (prepared.embed(RECORDS)[:, DIM:] == reader.lookup("user", RECORDS["user"]).vectors_BW).all()


def test_a_version_goes_with_its_last_reader(store: Store) -> None:
    """Without waiting for the garbage collector, which may not look for hours where little is allocated."""
    base = store.open("production")
    delta = store.publish(bundle(7, vocabulary=VOCABULARY), change=Change(base=base, touched=torch.arange(100)))
    indexes = Indexes(features=["user"], folder=store.root.parent / "indexes")
    reader = WarmReader(delta, build, indexes)
    reader.load()
    reader.score(RECORDS)
    held = [weakref.ref(reader), weakref.ref(delta), weakref.ref(base), weakref.ref(reader.indexes["user"].near)]
    gc.collect()
    gc.disable()
    try:
        del reader, delta, base
        assert [of() for of in held] == [None] * 4
    finally:
        gc.enable()


def test_threads_share_a_reader(reader: Reader) -> None:
    expected = reader.score(RECORDS).tobytes()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: reader.score(RECORDS).tobytes(), range(200))) == {expected}


def test_bad_input(reader: Reader, version: Version) -> None:
    with pytest.raises(SchemaError, match="did you mean 'user'"):
        reader.lookup("usr", ["a"])
    with pytest.raises(SchemaError, match="other types hash to other rows"):
        reader.lookup("item", ["1"])
    with pytest.raises(SchemaError, match="other types hash to other rows"):
        reader.lookup("tags", [[1]])
    with pytest.raises(SchemaError, match="records have no 'item'"):
        reader.embed({"user": ["a"]})
    with pytest.raises(RequestError, match="as many rows in each"):
        reader.embed({**RECORDS, "user": ["a"]})
    with pytest.raises(RequestError, match="columns by name"):
        reader.embed([1, 2])
    with pytest.raises(ConfigError, match="no builder"):
        Reader(version).score(RECORDS)
