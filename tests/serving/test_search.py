"""Nearest neighbours. The judge: sums in float64 over all values, sorted by score and position."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError, CorruptVersionError, DataError, LaterVersionError, SchemaError, StoreError
from embstore.logs import ParquetLog
from embstore.schema import Feature, Schema
from embstore.serving.search import Neighbors, values_of, vectors_of
from embstore.store import Bundle, Store, Version
from embstore.vocabulary import Vocabulary

METRICS = ("cosine", "dot", "l2")


def judged(vectors_ND: Any, queries_QD: Any, metric: str) -> Any:
    """Scores ``[Q, N]`` in float64."""
    x, q = np.asarray(vectors_ND, dtype=np.float64), np.asarray(queries_QD, dtype=np.float64)
    if metric == "l2":
        return -((q[:, None] - x[None]) ** 2).sum(axis=2)
    scores = (q[:, None] * x[None]).sum(axis=2)
    if metric == "cosine":
        norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1)[None]
        scores = np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)
    return scores


def clustered(count: int, width: int, *, clusters: int = 200, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, width))
    drawn = centres[rng.integers(0, clusters, count)] + 0.3 * rng.standard_normal((count, width))
    return drawn.astype(np.float32)


def numbered(vectors_ND: Any, **options: Any) -> Neighbors:
    return Neighbors.build(pa.array(range(len(vectors_ND)), pa.int64()), vectors_ND, **options)


# Exact and approximate


@settings(max_examples=60)
@given(st.data())
def test_whole_numbers_are_ranked_as_the_judge_ranks_them(data: st.DataObject) -> None:
    """Small whole numbers: many ties and duplicates, and no score is rounded but a cosine."""
    count, width, queries = data.draw(st.tuples(st.integers(0, 30), st.integers(1, 5), st.integers(0, 4)))
    row = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    x = np.array(data.draw(st.lists(row, min_size=count, max_size=count)), dtype=np.float32).reshape(count, width)
    q = np.array(data.draw(st.lists(row, min_size=queries, max_size=queries)), dtype=np.float32).reshape(queries, width)
    metric = data.draw(st.sampled_from(METRICS))
    k, graph = data.draw(st.integers(1, 35)), data.draw(st.booleans())
    exclude = data.draw(st.none() | st.lists(st.integers(-1, count - 1), min_size=queries, max_size=queries))
    near = numbered(x, metric=metric, exact_below=0 if graph else 100, expansion=data.draw(st.sampled_from([1, 64])))
    exclude_Q = None if exclude is None else np.array(exclude, dtype=np.int64)
    positions_QK, scores_QK = near.positions(q, k, exact=True, exclude_Q=exclude_Q)
    expected_QN = judged(x, q, metric)
    for i in range(queries):
        allowed = [n for n in range(count) if exclude is None or n != exclude[i]]
        there = min(k, len(allowed))
        assert (positions_QK[i, there:] == -1).all()
        assert (scores_QK[i, there:] == -np.inf).all()
        got = positions_QK[i, :there].tolist()
        np.testing.assert_allclose(scores_QK[i, :there], expected_QN[i, got], rtol=0, atol=2e-7)
        if metric == "cosine":
            best = np.sort(expected_QN[i, allowed])[::-1][:there]
            np.testing.assert_allclose(scores_QK[i, :there], best, rtol=0, atol=2e-7)
            assert len(set(got)) == there
            pairs = list(zip((-scores_QK[i, :there]).tolist(), got, strict=True))
            assert pairs == sorted(pairs)
        else:
            assert got == sorted(allowed, key=lambda n: (-expected_QN[i, n], n))[:there]
    found_QK, found_scores_QK = near.positions(q, k, exclude_Q=exclude_Q)
    assert ((found_QK >= 0) == (positions_QK >= 0)).all()  # never fewer
    assert (found_scores_QK <= scores_QK).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("count", "k"), [(10_000, 7), (5_000, 4_999)])
def test_many_tiles(metric: Any, count: int, k: int) -> None:
    x, q = clustered(count, 9), clustered(3, 9, seed=1)
    positions_QK, scores_QK = numbered(x, metric=metric).positions(q, k, exact=True)
    expected_QN = judged(x, q, metric)
    best_QK = -np.sort(-expected_QN, axis=1)[:, :k]
    np.testing.assert_allclose(scores_QK, best_QK, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected_QN, positions_QK, 1), best_QK, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_score_is_the_same_bits_however_it_is_asked_for(metric: Any) -> None:
    x, q = clustered(3_000, 17), clustered(40, 17, seed=1)
    near = numbered(x, metric=metric, exact_below=0)
    whole, scores = near.positions(q, 5, exact=True)
    for i in range(len(q)):
        one, score = near.positions(q[i : i + 1], 5, exact=True)
        assert one.tolist() == whole[i : i + 1].tolist()
        assert score.tobytes() == scores[i].tobytes()
    known = {(i, n): s for i in range(len(q)) for n, s in zip(whole[i].tolist(), scores[i].tolist(), strict=True)}
    found, found_scores = near.positions(q, 5)
    pairs = [((i, n), s) for i in range(len(q)) for n, s in zip(found[i].tolist(), found_scores[i], strict=True)]
    shared = [(pair, score) for pair, score in pairs if pair in known]
    assert len(shared) > 150
    assert all(known[pair] == score for pair, score in shared)


@pytest.mark.parametrize("metric", METRICS)
def test_duplicates_far_from_zero_tie_by_position(metric: Any) -> None:
    """Squared distances from a product of matrices would lose all their digits here."""
    x = clustered(60, 8) * np.float32(1e-3) + np.float32(1000)
    x = x[np.random.default_rng(0).permutation(np.arange(300) % 60)]
    near = numbered(x, metric=metric)
    positions_QK, scores_QK = near.positions(x[:10], 5)
    for i in range(10):
        same = np.flatnonzero((x == x[i]).all(axis=1))
        if metric == "l2":
            assert positions_QK[i].tolist() == same.tolist()
            assert (scores_QK[i] == 0).all()
    assert (positions_QK >= 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_recall_of_20_000(metric: Any) -> None:
    x = clustered(20_000, 16)
    near = numbered(x, metric=metric)
    assert near.graph is not None
    assert near.recall(10, sample=300) >= 0.95
    # and as the judge counts it
    _, scores_QK = near.positions(x[:50], 10)
    worst_Q = -np.sort(-judged(x, x[:50], metric), axis=1)[:, 9]
    assert (scores_QK >= worst_Q[:, None] - 1e-5).mean() >= 0.95


def test_values_that_share_a_vector_do_not_hide_others() -> None:
    """As rows of a hashed table do; usearch alone loses a part of such an index."""
    distinct = clustered(2_000, 8)
    x = distinct[np.random.default_rng(0).integers(0, 2_000, 20_000)]
    near = numbered(x, exact_below=0)
    assert near.graph is not None
    assert len(near.graph.index) == len(near.vectors_UD) == len(np.unique(x, axis=0))
    assert near.recall(20, sample=300) >= 0.95
    own = np.arange(0, 20_000, 97)
    positions_QK, _ = near.positions(x[own], 3)
    for i, row in zip(own.tolist(), positions_QK.tolist(), strict=True):
        same = np.flatnonzero((x == x[i]).all(axis=1)).tolist()
        assert row[: min(3, len(same))] == same[:3]


def test_the_same_graph_each_time(tmp_path: Path) -> None:
    x = clustered(1_500, 8)
    digests = [numbered(x, exact_below=0).save(tmp_path / name).sha256 for name in "ab"]
    assert digests[0] == digests[1]


def test_threads_search_alike() -> None:
    x = clustered(3_000, 8)
    near = numbered(x, exact_below=0)
    expected = [near.positions(x[i * 50 : i * 50 + 50], 5, expansion=20 + i)[1].tobytes() for i in range(8)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            if near.positions(x[i * 50 : i * 50 + 50], 5, expansion=20 + i)[1].tobytes() != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# What comes back, and what is refused


def test_values_and_scores() -> None:
    near = Neighbors.build(pa.array(["a", "b", "c"]), np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32))
    names, scores = near.search(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), 4)
    assert names.to_pylist() == ["a", "b", "c", None, "a", "b", "c", None]
    assert scores.dtype == np.float32
    half = np.float32(0.5**0.5)
    np.testing.assert_allclose(scores, [[1, 0, 0, -np.inf], [half, half, 0, -np.inf]], rtol=1e-7)
    names, _ = near.search(np.zeros((1, 2)), 2, exclude_Q=[0])
    assert names.to_pylist() == ["b", "c"]


def test_lengths_do_not_matter_to_a_cosine() -> None:
    x = np.array([[3e17, 0], [1e-42, 1e-42]], dtype=np.float32)
    positions, scores = numbered(x).positions(np.array([[1e-300, 1e-300]]), 2)
    assert positions.tolist() == [[1, 0]]
    np.testing.assert_allclose(scores, [[1, 0.5**0.5]], rtol=1e-6)


def test_no_values(tmp_path: Path) -> None:
    near = Neighbors.build(pa.array([], pa.string()), np.zeros((0, 3), dtype=np.float32), exact_below=0)
    near.save(tmp_path / "none")
    for index in (near, Neighbors.open(tmp_path / "none")):
        names, scores = index.search(np.ones((2, 3), dtype=np.float32), 2)
        assert names.type == pa.string()
        assert names.to_pylist() == [None] * 4
        assert (scores == -np.inf).all()
        assert len(index) == 0
        assert index.recall(3) == 1
        assert index.search(np.ones((0, 3)), 2)[1].shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_numbers_without_a_score_are_refused(bad: float) -> None:
    x = clustered(20, 4)
    near = numbered(x)
    broken = x.copy()
    broken[7, 2] = bad
    with pytest.raises(DataError, match=r"queries, row 7.*length"):
        near.search(broken, 1)
    with pytest.raises(DataError, match="vectors, row 7"):
        numbered(broken)


def test_wrong_arguments_are_refused() -> None:
    x = clustered(20, 4)
    near = numbered(x)
    for queries in (x[:, :3], x[0], x.astype(int), x.astype(str), x[:, :0], torch.ones(2, 4, requires_grad=True)):
        with pytest.raises(ConfigError, match="queries"):
            near.search(queries, 1)
    for k in (0, -1, True, 1.5, 10**12):
        with pytest.raises(ConfigError, match="neighbours"):
            near.search(x, k)  # type: ignore[arg-type]
    for exclude in ([0], [20] * 20, [-2] * 20, [0.5] * 20):
        with pytest.raises(ConfigError, match="exclude_Q"):
            near.search(x, 1, exclude_Q=exclude)
    for options in ({"metric": "cos"}, {"connectivity": 1}, {"expansion": 0}, {"threads": 0}, {"expansion_build": 1.0}):
        with pytest.raises(ConfigError, match="expected"):
            numbered(x, **options)
    with pytest.raises(ConfigError, match="19 values and 20 vectors"):
        Neighbors.build(pa.array(range(19)), x)
    with pytest.raises(DataError, match="values, row 1"):
        Neighbors.build(pa.array([1, None]), x[:2])
    with pytest.raises(ConfigError, match="sample"):
        near.recall(1, sample=0)


def test_progress_counts_distinct_vectors() -> None:
    done: list[int] = []
    x = np.concatenate([clustered(5_000, 4)] * 2)
    near = numbered(x, exact_below=1, progress=done.append)
    assert sum(done) == len(near.vectors_UD)
    assert len(done) > 1


# Saved and opened


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Neighbors, Path]:
    x = clustered(2_000, 6)
    x[1_000:1_200] = x[:200]
    values = pa.array([f"ville-{i}-é" for i in range(len(x))])
    near = Neighbors.build(values, x, metric="dot", exact_below=0, connectivity=4)
    folder = tmp_path_factory.mktemp("near") / "saved"
    near.save(folder)
    return near, folder


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def vouched(folder: Path) -> Path:
    """Let ``neighbors.json`` say of the files what they are now, as who attacks would."""
    about = json.loads((folder / "neighbors.json").read_bytes())
    for name in about["files"]:
        data = (folder / name).read_bytes()
        about["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "neighbors.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_opened_answers_as_what_was_saved(saved: tuple[Neighbors, Path], exact: bool) -> None:
    near, folder = saved
    opened = Neighbors.open(folder)
    q = clustered(100, 6, seed=3)
    for mine, other in zip(near.search(q, 9, exact=exact), opened.search(q, 9, exact=exact), strict=True):
        assert mine.equals(other) if isinstance(mine, pa.Array) else mine.tobytes() == other.tobytes()
    assert (opened.metric, opened.expansion, len(opened), opened.width) == ("dot", 128, 2_000, 6)


def test_a_saved_folder_is_new_and_whole(saved: tuple[Neighbors, Path], tmp_path: Path) -> None:
    near, folder = saved
    with pytest.raises(StoreError, match="new name"):
        near.save(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        near.save(tmp_path / "file" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    digest = near.save(tmp_path / "again")
    assert Neighbors.open(tmp_path / "again", sha256=digest.sha256).width == 6
    with pytest.raises(CorruptVersionError, match="sha256"):
        Neighbors.open(tmp_path / "again", sha256="0" * 64)


@pytest.mark.parametrize("name", ["neighbors.json", "values.arrow", "vectors.safetensors", "graph.usearch"])
def test_damage_is_told(saved: tuple[Neighbors, Path], tmp_path: Path, name: str) -> None:
    whole = (saved[1] / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    damages = [b"", whole[:10], whole[:-2], whole[: len(whole) // 2]]
    damages += [bytes(flipped), whole + b"x"] if name != "neighbors.json" else [b"[]", b"{}"]
    for number, data in enumerate(damages):
        folder = copied(saved[1], tmp_path / str(number))
        (folder / name).write_bytes(data)
        with pytest.raises(CorruptVersionError, match=name):
            Neighbors.open(folder)
    for number, replace in enumerate((lambda path: path.unlink(), lambda path: path.rename(path.with_suffix(".x")))):
        folder = copied(saved[1], tmp_path / f"gone-{number}")
        replace(folder / name)
        (folder / "elsewhere").write_bytes(whole)
        if number:
            (folder / name).symlink_to(folder / "elsewhere")
        with pytest.raises(CorruptVersionError, match="regular file"):
            Neighbors.open(folder)


@pytest.mark.parametrize("name", ["values.arrow", "vectors.safetensors", "graph.usearch"])
def test_files_cut_short_by_an_attacker_who_vouches_for_them(
    saved: tuple[Neighbors, Path], tmp_path: Path, name: str
) -> None:
    whole = (saved[1] / name).read_bytes()
    cuts = [1, 8, 100, len(whole) // 2, len(whole) - 40, len(whole) - 1]
    for number, data in enumerate([whole[:cut] for cut in cuts] + [whole + bytes(64), pickle.dumps([1])]):
        folder = copied(saved[1], tmp_path / str(number))
        (folder / name).write_bytes(data)
        with pytest.raises(CorruptVersionError, match=name):
            Neighbors.open(vouched(folder))


def test_a_graph_made_to_lead_outside_is_refused(saved: tuple[Neighbors, Path], tmp_path: Path) -> None:
    """Each number that usearch follows, set to what can't be; only sums and digests are right."""
    near, _ = saved
    whole = (saved[1] / "graph.usearch").read_bytes()
    count, width = len(near.vectors_UD), near.width
    head = 8 + 4 * count * width
    graph, levels = head + 64, head + 64 + 40
    nodes = levels + 2 * count
    places = {
        "vectors": 0,
        "width": 4,
        "magic": head,
        "metric": head + 13,
        "scalar": head + 14,
        "count": head + 17,
        "deleted": head + 25,
        "dimensions": head + 33,
        "many": head + 41,
        "size": graph,
        "room": graph + 8,
        "room of level 0": graph + 16,
        "top": graph + 24,
        "entry": graph + 34,
        "level": levels,
        "key": nodes + 4,
        "own level": nodes + 8,
        "neighbours": nodes + 11,
        "neighbour": nodes + 17,
    }
    for name, place in places.items():
        data = bytearray(whole)
        data[place] ^= 0x40
        folder = copied(saved[1], tmp_path / name)
        (folder / "graph.usearch").write_bytes(data)
        with pytest.raises(CorruptVersionError, match=r"graph\.usearch"):
            Neighbors.open(vouched(folder))


def test_flipped_bits_that_are_vouched_for_are_refused_or_harmless(
    saved: tuple[Neighbors, Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    q = clustered(20, 6, seed=5)
    folder = copied(saved[1], tmp_path / "flipped")
    refused = 0
    for name in ("graph.usearch", "values.arrow", "vectors.safetensors"):
        whole = (saved[1] / name).read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, len(whole), 3):
                data[at] ^= 1 << int(rng.integers(0, 8))
            (folder / name).write_bytes(data)
            try:
                Neighbors.open(vouched(folder)).positions(q, 5)
            except CorruptVersionError:
                refused += 1
        (folder / name).write_bytes(whole)
    assert refused > 20


def test_what_the_json_may_say(saved: tuple[Neighbors, Path], tmp_path: Path) -> None:
    folder = copied(saved[1], tmp_path / "copy")
    about = json.loads((folder / "neighbors.json").read_bytes())
    wrong: list[dict[str, Any]] = [
        {"metric": "cos"},
        {"metric": "l2"},  # the graph's is another
        {"values": 1_999},
        {"vectors": 1_799},
        {"width": 0},
        {"expansion": "many"},
        {"files": {}},
        {"files": about["files"] | {"../secret": about["files"]["graph.usearch"]}},
        {"files": about["files"] | {"values.arrow": {"bytes": 1, "sha256": "x"}}},
    ]
    for change in wrong:
        (folder / "neighbors.json").write_text(json.dumps(about | change))
        with pytest.raises(CorruptVersionError):
            Neighbors.open(folder)
    (folder / "neighbors.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(LaterVersionError):
        Neighbors.open(folder)


# Of a version


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    features = (Feature(name="user", lookups=2), Feature(name="tags", pooling="mean"))
    table = UnifiedEmbedding(features, 500, 4, init_std=1.0)
    bundle = Bundle(
        table=table,
        schema=Schema(features=features, label="click"),
        dense_state={"network.weight": torch.zeros(2, 3)},
        model={"name": "dnn", "settings": {}, "dense_width": 0, "widths": list(table.widths)},
        metrics={},
        lineage={},
        columns={"user": "string", "tags": "list<element: int64>"},
    )
    return Store(tmp_path_factory.mktemp("store")).publish(bundle)


def test_a_versions_values_are_their_own_nearest(version: Version, tmp_path: Path) -> None:
    users = [f"u{i}" for i in range(50)]
    (tmp_path / "users.txt").write_text("\n".join([*users, users[0]]))
    sources: list[Any] = [tmp_path / "users.txt", {"user": pa.array([*users, users[3]])}]
    for source in sources:
        assert values_of(version, "user", source).to_pylist() == users
    values, done = values_of(version, "user", sources[0]), []
    vectors = vectors_of(version, "user", values, progress=done.append)
    assert sum(done) == 50
    assert vectors.tobytes() == version.lookup("user", users).numpy().tobytes()
    near = Neighbors.build(values, vectors)
    assert near.width == 8
    names, scores = near.search(version.lookup("user", ["u7", "u9"]), 1)
    assert names.to_pylist() == ["u7", "u9"]
    np.testing.assert_allclose(scores, 1, atol=1e-6)
    others, _ = near.search(version.lookup("user", ["u7", "u9"]), 49, exclude_Q=[7, 9])
    assert "u7" not in others[:49].to_pylist()
    assert others.null_count == 0


def test_a_lists_values_are_its_elements(version: Version, tmp_path: Path) -> None:
    table = pa.table({"user": ["a", "b", "a"], "tags": [[3, 1], [], [1, None, 2]], "click": [0, 1, 1]})
    pq.write_table(table, tmp_path / "log.parquet")
    vocabulary = Vocabulary.collect(ParquetLog(tmp_path / "log.parquet", version.schema))
    version = Store(tmp_path / "store").publish(dataclasses.replace(version.bundle(), vocabulary=vocabulary))
    values = values_of(version, "tags")
    assert values.to_pylist() == [1, 2, 3]
    assert values_of(version, "user").to_pylist() == ["a", "b"]
    expected = version.lookup("tags", pa.array([[1], [2], [3]])).numpy()
    assert vectors_of(version, "tags", values).tobytes() == expected.tobytes()


def test_no_such_feature(version: Version) -> None:
    with pytest.raises(SchemaError, match="usr"):
        values_of(version, "usr", {"usr": pa.array(["a"])})
    with pytest.raises(ConfigError, match="no vocabulary"):
        values_of(version, "user")
    with pytest.raises(SchemaError, match="no values of feature"):
        values_of(version, "tags", {"user": pa.array(["a"])})


def test_what_a_search_costs() -> None:
    """Known before: numbers multiplied, and bytes of the values found."""
    values = pa.array(["a" * n for n in range(1, 9)])
    near = Neighbors.build(values, np.eye(8, dtype=np.float32))
    assert near.products(10, 3) == 10 * 8 * 8
    positions_QK = np.array([[0, 7, -1], [1, 1, 1]])
    assert near.value_bytes(positions_QK) == 1 + 8 + 3 * 2
    assert near.values_at(positions_QK).to_pylist() == ["a", "a" * 8, None, "aa", "aa", "aa"]
    assert Neighbors.build(pa.array([5, 7]), np.eye(2, dtype=np.float32)).value_bytes(np.array([[0, 1]])) == 16
