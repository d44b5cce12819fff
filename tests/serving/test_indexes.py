"""Neighbours of values and of vectors, by a version's own vocabulary."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from shop import VOCABULARY, bundle
from test_service import ask, numbers, texts

from embstore.errors import ConfigError, RequestError, SchemaError, StoreError
from embstore.serving.indexes import Indexes
from embstore.serving.protocol import InferRequest, Limits, RequestedOutput, Tensor
from embstore.serving.reader import Reader
from embstore.serving.service import infer
from embstore.store import Store


@pytest.fixture
def searched(store: Store, tmp_path: Path) -> Reader:
    """A reader whose users and items are searched."""
    version = store.publish(bundle(vocabulary=VOCABULARY))
    return Reader(version, indexes=Indexes(features="all", folder=tmp_path / "indexes"))


def test_neighbours_of_values(searched: Reader) -> None:
    values, scores = searched.neighbors("user", ["ann", "never seen"], 3)
    kept = ["ann", "bob", "zoë"]
    vectors = searched.lookup("user", [*kept, "never seen"]).vectors_BW.astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit[:3].T
    rest = sorted(("bob", "zoë"), key=lambda name: -cosines[0, kept.index(name)])
    assert values.to_pylist()[:3] == [*rest, None]  # not itself, nor what was dropped
    assert values.to_pylist()[3:] == [kept[i] for i in np.argsort(-cosines[3])]
    np.testing.assert_allclose(scores[1], np.sort(cosines[3])[::-1], rtol=1e-6)
    assert scores[0, 2] == -np.inf


def test_over_the_protocol(searched: Reader) -> None:
    values, scores = searched.neighbors("item", [1, 5], 2)
    wanted = [RequestedOutput("item.neighbors"), RequestedOutput("item.scores")]
    request = InferRequest(model="shop", inputs=[numbers("item", [1, 5])], outputs=wanted, parameters={"k": 2})
    found, near = infer(request, searched, Limits()).outputs
    assert (found.datatype, found.shape) == ("INT64", (2, 2))
    assert np.frombuffer(found.raw(), "<i8").tolist() == values.to_pylist()
    assert bytes(near.raw()) == scores.tobytes()
    vector = searched.lookup("item", [5]).vectors_BW
    by_vector = ask(searched, [Tensor("item.vector", "FP32", vector.shape, vector.tobytes())], "item.neighbors")
    assert by_vector.outputs[0].json()[:2] == values.to_pylist()[2:]


def test_an_index_is_built_once(searched: Reader, tmp_path: Path) -> None:
    indexes = Indexes(features=["user"], folder=tmp_path / "indexes")
    with ThreadPoolExecutor(4) as pool:
        near = list(pool.map(lambda _: indexes.of(searched.version)["user"].near, range(8)))
    assert all(of.values.equals(near[0].values) for of in near)
    folder = tmp_path / "indexes" / searched.version.digest / "user-cosine"
    before = (folder / "neighbors.json").stat().st_mtime_ns
    indexes.of(searched.version)
    assert (folder / "neighbors.json").stat().st_mtime_ns == before
    (folder / "vectors.safetensors").write_bytes(b"damaged")
    assert indexes.of(searched.version)["user"].near.values.equals(near[0].values)  # built again


def test_bad_input(searched: Reader, reader: Reader, store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="serve with --search user"):
        reader.neighbors("user", ["ann"])
    with pytest.raises(ConfigError, match="no vocabulary"):
        Reader(store.open("production"), indexes=Indexes(features=["user"], folder=tmp_path)).load()
    with pytest.raises(SchemaError, match="did you mean 'user'"):
        Reader(store.open("production"), indexes=Indexes(features=["usr"], folder=tmp_path)).load()
    for k in (0, -1, 10_001, True, "3"):
        request = InferRequest(
            model="shop",
            inputs=[texts("user", ["a"])],
            outputs=[RequestedOutput("user.neighbors")],
            parameters={"k": k},
        )
        with pytest.raises(RequestError, match="k of 1 to 10,000"):
            infer(request, searched, Limits())
    with pytest.raises(RequestError, match=r"FP32 \[rows, 8\]"):
        ask(searched, [Tensor("item.vector", "FP32", (1, 3), bytes(12))], "item.neighbors")


def test_a_cache_that_takes_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    version = store.publish(bundle(vocabulary=VOCABULARY))
    with pytest.raises(StoreError, match="expected a file that can be written"):
        Reader(version, indexes=Indexes(features="all", folder=tmp_path / "file")).load()
