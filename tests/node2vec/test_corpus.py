"""A corpus counts and trains on its source's walks, piece by piece, and keeps them in files when asked to."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embstore.errors import ConfigError, GraphError, LogError, StoreError
from embstore.node2vec import Graph, SkipGram, SkipGramSettings, Walker, WalkSettings
from embstore.node2vec.corpus import Corpus
from embstore.node2vec.walk_files import WalkFiles, write_walks


def walker(*, num_walks: int = 5) -> Walker:
    """Arcs, some of which end; a node that none leads to, and from which none leads."""
    rng = np.random.default_rng(1)
    source, target = rng.integers(0, 40, (2, 70))
    return Walker(
        Graph.of_edges(source, target, num_nodes=41, directed=True), WalkSettings(length=9, num_walks=num_walks, q=2)
    )


def skip_gram(corpus: Corpus, **settings: Any) -> SkipGram:
    return SkipGram(corpus.visits(), corpus.num_walks, SkipGramSettings(dim=6, epochs=2, subsample=0, **settings))


@pytest.mark.parametrize("chunk_bytes", [1, 500, 1 << 20])
def test_visits_are_those_of_all_walks(chunk_bytes: int) -> None:
    source = walker()
    seen: list[int] = []
    visits_N = Corpus(source, chunk_bytes=chunk_bytes).visits(threads=2, progress=seen.append)
    walks_WL = source.walks(0, source.num_walks)
    assert np.array_equal(visits_N, np.bincount(walks_WL[walks_WL >= 0], minlength=41))
    assert visits_N[40] == 5
    assert sum(seen) == source.num_walks
    assert max(seen) <= max(1, chunk_bytes // 36)


def test_any_chunks_train_the_same_vectors() -> None:
    source = walker()
    walks_WL = source.walks(0, source.num_walks)
    by_hand = skip_gram(Corpus(source))
    losses = [by_hand.train(walks_WL, 0, epoch=epoch) for epoch in range(2)]
    for chunk_bytes in (100, 5000, 1 << 20):
        corpus = Corpus(source, chunk_bytes=chunk_bytes)
        trained, done, told = skip_gram(corpus), [], []
        corpus.train(trained, progress=done.append, on_loss=lambda *of, told=told: told.append(of))
        assert np.array_equal(trained.vectors, by_hand.vectors)
        assert np.array_equal(trained.contexts, by_hand.contexts)
        assert sum(done) == 2 * source.num_walks
        assert told[-1][0] == 2 * source.num_walks
    assert [loss for _, loss in told] == losses


def test_many_threads_train() -> None:
    corpus = Corpus(walker(num_walks=100))
    trained = skip_gram(corpus)
    corpus.train(trained, threads=3)
    assert trained.contexts[:40].any(axis=1).sum() > 30


def test_a_skip_gram_of_other_walks() -> None:
    corpus, other = Corpus(walker()), Corpus(walker(num_walks=4))
    with pytest.raises(ConfigError, match="expected 41 nodes, 205 walks; found 41 nodes, 164 walks"):
        corpus.train(skip_gram(other))


def test_a_rate_that_is_too_great_is_found_at_the_end() -> None:
    source = walker()
    corpus = Corpus(source)
    last = source.walks(source.num_walks - 1, source.num_walks)[0]
    vectors = np.zeros((41, 4), np.float32)
    vectors[next(n for n in range(40) if n not in last)] = 3e38
    how = SkipGramSettings(dim=4, learning_rate=1, last_learning_rate=1)
    trained = SkipGram(corpus.visits(), corpus.num_walks, how, vectors=vectors, contexts=vectors)
    with pytest.raises(ConfigError, match="float32's range"):
        corpus.train(trained)


def test_chunks_of_no_bytes() -> None:
    with pytest.raises(ConfigError, match="bytes of a chunk"):
        Corpus(walker(), chunk_bytes=0)


@pytest.mark.parametrize("chunk_bytes", [36, 1000, 1 << 20])
def test_walks_come_back_from_files(tmp_path: Path, chunk_bytes: int) -> None:
    source = walker()
    done: list[int] = []
    write_walks(source, tmp_path / "walks", chunk_bytes=chunk_bytes, threads=2, progress=done.append)
    assert sum(done) == source.num_walks
    files = WalkFiles(tmp_path / "walks")
    assert (files.num_nodes, files.num_walks, files.length) == (source.num_nodes, source.num_walks, source.length)
    for begin, end in ((0, 205), (0, 1), (204, 205), (27, 29), (13, 130), (60, 60), (205, 205)):
        assert np.array_equal(files.walks(begin, end, threads=2), source.walks(begin, end))
    made, read = Corpus(source), Corpus(files, chunk_bytes=700)
    assert np.array_equal(made.visits(), read.visits())
    one, other = skip_gram(made), skip_gram(read)
    made.train(one)
    read.train(other)
    assert np.array_equal(one.vectors, other.vectors)


def test_others_read_the_files(tmp_path: Path) -> None:
    source = walker()
    write_walks(source, tmp_path / "walks", chunk_bytes=1000)
    rows = duckdb.sql(f"select number, walk from '{tmp_path}/walks/*.parquet' order by number").fetchall()
    walks = [[n for n in walk if n >= 0] for walk in source.walks(0, source.num_walks).tolist()]
    assert rows == list(enumerate(walks))


def test_parts_that_are_not_those_of_the_walks(tmp_path: Path) -> None:
    folder = tmp_path / "walks"
    write_walks(walker(), folder, chunk_bytes=1000)
    parts = sorted(folder.iterdir())
    assert [path.name for path in parts[:2]] == ["part-000000000000.parquet", "part-000000000027.parquet"]
    one, other = (path.read_bytes() for path in parts[:2])
    parts[0].write_bytes(other)
    parts[1].write_bytes(one)
    with pytest.raises(LogError, match=r"part-000000000027.parquet; expected walks from number 27 on; found others"):
        WalkFiles(folder).walks(30, 31)
    parts[0].write_bytes(one)
    parts[1].unlink()
    with pytest.raises(LogError, match="expected 205 walks; found 178"):
        WalkFiles(folder)
    write_walks(walker(num_walks=4), tmp_path / "others")
    shutil.copy(tmp_path / "others" / parts[0].name, parts[1])
    with pytest.raises(LogError, match="parts of several"):
        WalkFiles(folder)


def test_who_writes_or_reads_parts_needs_no_torch() -> None:
    code = "import sys, embstore.node2vec.walk_files, embstore.node2vec.pieces; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "walks").mkdir()
    with pytest.raises(StoreError, match="one that exists"):
        write_walks(walker(), tmp_path / "walks")
    assert not list((tmp_path / "walks").iterdir())


def test_walks_that_fail_on_the_way_leave_nothing(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_walks(walker(), tmp_path / "walks", chunk_bytes=1000, progress=stop)
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_walks(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="walks"):
        WalkFiles(tmp_path / "none")
    folder = tmp_path / "walks"
    write_walks(walker(), folder)
    path = folder / "part-000000000000.parquet"
    whole = path.read_bytes()
    column = pq.read_metadata(path).row_group(0).column(1)
    path.write_bytes(whole[:-9])
    with pytest.raises(LogError, match="walks"):
        WalkFiles(folder)
    middle = column.data_page_offset + column.total_compressed_size // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    with pytest.raises(LogError, match="walks"):
        WalkFiles(folder).walks(0, 205)
    says = {f"embstore.{key}": "1" for key in ("num_nodes", "num_walks", "length")}
    pq.write_table(pa.table({"number": [0]}).replace_schema_metadata(says), path)
    with pytest.raises(LogError, match="found no column 'walk'"):
        WalkFiles(folder)
    pq.write_table(pa.table({"walk": [[1, 2]]}), path)
    with pytest.raises(LogError, match="walks that embstore wrote; found other Parquet"):
        WalkFiles(folder)


@pytest.mark.parametrize(
    ("walk", "says", "error"),
    [
        ([[1, 5]], {}, GraphError),
        ([[1, -7]], {}, GraphError),
        ([[1, 2, 3]], {}, LogError),
        ([[1, 2], [1, 2]], {}, LogError),
        ([[1, 2]], {"length": "0"}, LogError),
        ([[1, 2]], {"num_nodes": "x"}, LogError),
        ([["a", "b"]], {}, LogError),
        ([[1, None]], {}, LogError),
        ([None], {}, LogError),
    ],
)
def test_files_that_lie(tmp_path: Path, walk: list[Any], says: dict[str, str], error: type[Exception]) -> None:
    says = {"num_nodes": "5", "num_walks": "1", "length": "2"} | says
    kind = pa.list_(pa.string() if "a" in (walk[0] or []) else pa.int32())
    table = pa.table({"number": list(range(len(walk))), "walk": pa.array(walk, kind)})
    metadata = {f"embstore.{key}": value for key, value in says.items()}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "part-0.parquet")
    with pytest.raises(error):
        WalkFiles(tmp_path).walks(0, 1)


def test_numbers_of_walks_that_are_not_in_the_files(tmp_path: Path) -> None:
    write_walks(walker(), tmp_path / "walks")
    for bounds in ((-1, 2), (3, 2), (0, 206)):
        with pytest.raises(ConfigError, match="numbers from 0 to 205"):
            WalkFiles(tmp_path / "walks").walks(*bounds)
