"""Graphs in files: text, Parquet, npz; broken and hostile ones."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from embstore.errors import DataError, EmbstoreError, GraphError
from embstore.node2vec import edge_text
from embstore.node2vec.edges import GraphSettings, build_graph
from embstore.node2vec.graph import Graph
from embstore.node2vec.graph_files import read_edges, read_npz, to_npz


def named(graph: Graph) -> dict[tuple[Any, Any], float]:
    assert graph.nodes is not None
    (values,) = graph.nodes.values()
    names = values.to_pylist()
    weights = np.ones(len(graph.indices_E)) if graph.weights_E is None else graph.weights_E
    ends = zip(graph.sources().tolist(), graph.indices_E.tolist(), weights.tolist(), strict=True)
    return {(names[u], names[v]): weight for u, v, weight in ends}


def text(folder: Path, content: str | bytes) -> Path:
    path = folder / "edges.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1 2\n2 3\n", {(1, 2): 1, (2, 3): 1}),
        ("# c\n\n% c\n  1\t 2  \r\n-2 3", {(1, 2): 1, (-2, 3): 1}),
        ("1,2,0.5\n2, 3 ,4\n", {(1, 2): 0.5, (2, 3): 4}),
        ("1 2 1\n1 2 2.5\n1 3 0\n", {(1, 2): 3.5}),
        ("1 2\n1 2\n2 1\n", {(1, 2): 1, (2, 1): 1}),
        ("1 1\n", {(1, 1): 1}),
        ("7 007\n", {("7", "007"): 1}),
        ("-0 0\n", {("-0", "0"): 1}),
        ("1 9999999999999999999999\n", {("1", "9999999999999999999999"): 1}),
        ("é bob\nbob #eve\n", {("é", "bob"): 1, ("bob", "#eve"): 1}),
        ("source,target,weight\n1,2,3e-1\n", {(1, 2): np.float32(0.3)}),
    ],
)
def test_text(tmp_path: Path, content: str, expected: dict[Any, float]) -> None:
    assert named(read_edges(text(tmp_path, content), directed=True)) == expected


def test_a_separator_lets_ids_hold_spaces(tmp_path: Path) -> None:
    path = text(tmp_path, "New York\tBoston\t2\nBoston\tSan Jos\u00e9\t1\n")
    assert named(read_edges(path, separator="\t", directed=True)) == {
        ("New York", "Boston"): 2,
        ("Boston", "San José"): 1,
    }
    with pytest.raises(GraphError, match=r"line 1.*two ids.*another number"):
        read_edges(path)


def test_options(tmp_path: Path) -> None:
    path = text(tmp_path, "1 1 5\n1 2 1\n2 3 3\n")
    graph = build_graph(GraphSettings(edges=str(path), feature="item", loops=False, min_weight=2))
    assert named(graph) == {(2, 3): 3, (3, 2): 3}
    assert graph.nodes is not None
    assert graph.nodes["item"].to_pylist() == [1, 2, 3]
    with pytest.raises(GraphError, match="at least one edge"):
        build_graph(GraphSettings(edges=str(path), min_weight=9))


def test_compressed_text(tmp_path: Path) -> None:
    path = tmp_path / "edges.txt.gz"
    path.write_bytes(gzip.compress(b"1 2\n" * 1000))
    assert read_edges(path).num_edges == 1
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(GraphError):
        read_edges(path)


NUMBERS = st.integers(-50, 50).map(str)
TEXTS = st.text("ab0é", min_size=1, max_size=3)


@given(
    edges=st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(1, 9)), min_size=1, max_size=40),
    last=st.one_of(st.none(), TEXTS),
    chunk=st.integers(1, 60),
)
def test_chunks_of_a_text_decide_nothing(
    tmp_path: Path, edges: list[tuple[str, str, int]], last: str | None, chunk: int
) -> None:
    edges = edges if last is None else [*edges, ("x", last, 1)]
    path = text(tmp_path, "".join(f"{u} {v} {w}\n" for u, v, w in edges))
    expected: dict[tuple[Any, Any], float] = {}
    for u, v, w in edges:
        key = (int(u), int(v)) if last is None else (u, v)
        expected[key] = expected.get(key, 0) + w
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge_text, "CHUNK", chunk)
        assert named(read_edges(path, directed=True)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "at least one edge"),
        ("# only\n\n", "at least one edge"),
        ("source target\n", "at least one edge"),
        ("1 2 0\n", "at least one edge of weight above 0"),
        ("1\n", "line 1; expected two ids"),
        ("1 2\n\n1 2 3\n", "line 3; expected 2 fields"),
        ("1 2 3 4\n", "line 1"),
        ("1,,2\n", "line 1"),
        ("1,2,\n", "line 1"),
        ("1 2 x\n", r"line 1; expected a number as the third field; found 'x'"),
        ("1 2 1\n1 2 -1\n", r"line 2; expected a finite weight of 0 or more; found -1"),
        ("1 2 nan\n", "line 1; expected a finite weight"),
        ("1 2 inf\n", "line 1; expected a finite weight"),
        ("1 2 1e39\n", "float32"),
        ("user item\n1 2\n3 4\n", "line 1; expected whole numbers as in the lines after it"),
        (b"a b\n\xff\xfe 1\n", "UTF-8"),
        (b"\x00\x01\x02\x03" * 100, "binary data"),
        (b"PAR1" + bytes(64), "binary data"),
    ],
)
def test_text_that_is_no_list_of_edges(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        read_edges(text(tmp_path, content))


def test_an_endless_line(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="without an end of line"):
        read_edges(text(tmp_path, b"a" * (edge_text.CHUNK * 2 + 1)))


def test_an_id_too_long_for_a_feature(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="65,536 bytes"):
        read_edges(text(tmp_path, "a " + "b" * 70_000 + "\n"))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="check the path"):
        read_edges(tmp_path / "none.txt")
    with pytest.raises(GraphError, match="npz"):
        read_npz(tmp_path / "none.npz")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "edges.parquet"
    pq.write_table(pa.table({"source": ["a", "b"], "target": ["b", "c"], "weight": [1, 3]}), path)
    assert named(read_edges(path, directed=True)) == {("a", "b"): 1, ("b", "c"): 3}
    pq.write_table(pa.table({"source": [1, 2], "target": pa.array([2, 1], pa.int8())}), path)
    assert named(read_edges(path)) == {(1, 2): 1, (2, 1): 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"source": ["a"]}, "columns source and target"),
        ({"source": [], "target": []}, "at least one edge"),
        ({"source": ["a", None], "target": ["b", "c"]}, "an id in each row"),
        ({"source": ["a"], "target": [1]}, "one type"),
        ({"source": [0.5], "target": [1]}, "can't be a feature"),
        ({"source": [["a"]], "target": [1]}, "one type"),
        ({"source": [0], "target": [1], "weight": [-1.0]}, "-1.0 in row 0"),
        ({"source": [0], "target": [1], "weight": pa.array([None], pa.float32())}, "a weight in each row"),
        ({"source": [0], "target": [1], "weight": ["x"]}, "expected numbers"),
    ],
)
def test_parquet_that_is_no_list_of_edges(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "edges.parquet")
    with pytest.raises(EmbstoreError, match=message):
        read_edges(tmp_path / "edges.parquet")


NODES = [
    None,
    {"node": pa.array([3, 5, 8, 9])},
    {"user": pa.array(["", "é"]), "item": pa.array([2**64 - 1], pa.uint64()), "raw": pa.array([b"\xff\0"])},
    {"user": pa.array(["x", "a", "b", "c", "d"]).slice(1)},
]


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("weight", [None, [1.0, 2.5, 0.1]])
def test_npz_and_back(tmp_path: Path, nodes: Any, directed: bool, weight: Any) -> None:
    path = tmp_path / "graph.npz"
    weight = None if weight is None else np.array(weight)
    graph = Graph.of_edges(
        np.array([0, 1, 2]), np.array([1, 2, 2]), weight, num_nodes=4, directed=directed, nodes=nodes
    )
    to_npz(graph, path)
    assert os.listdir(tmp_path) == ["graph.npz"]
    same = read_npz(path, directed=directed)
    assert same.indptr_N.tolist() == graph.indptr_N.tolist()
    assert same.indices_E.tolist() == graph.indices_E.tolist()
    assert np.array_equal(np.array(same.weights_E), np.array(graph.weights_E), equal_nan=False) or weight is None
    assert (same.weights_E is None) == (graph.weights_E is None)
    assert same.directed == directed
    assert same.nodes is None if nodes is None else same.nodes is not None
    if nodes is not None and same.nodes is not None:
        assert {k: v.to_pylist() for k, v in same.nodes.items()} == {k: v.to_pylist() for k, v in nodes.items()}
    matrix = scipy.sparse.load_npz(path)
    assert matrix.shape == (4, 4)
    assert matrix.nnz == len(graph.indices_E)
    with pytest.raises(GraphError, match="say directed"):
        read_npz(path, directed=not directed)


def test_matrices_of_scipy(tmp_path: Path) -> None:
    path = tmp_path / "matrix.npz"
    dense = np.array([[0, 2, 0], [2, 0, 0], [0, 0, 0]])
    scipy.sparse.save_npz(path, scipy.sparse.csr_array(dense))
    graph = build_graph(GraphSettings(graph=str(path)))
    assert graph.num_nodes == 3
    assert graph.weights_E is not None
    assert graph.weights_E.tolist() == [2, 2]
    dense[0, 2] = 1
    scipy.sparse.save_npz(path, scipy.sparse.csr_matrix(dense))
    assert read_npz(path, directed=True).num_edges == 3
    with pytest.raises(GraphError, match="symmetric"):
        read_npz(path)
    for wrong in (scipy.sparse.csc_array(dense), scipy.sparse.coo_array(dense), scipy.sparse.csr_array(dense[:2])):
        scipy.sparse.save_npz(path, wrong)
        with pytest.raises(GraphError, match="compressed rows"):
            read_npz(path)
    scipy.sparse.save_npz(path, scipy.sparse.csr_array((3, 3)))
    with pytest.raises(GraphError, match="at least one edge"):
        read_npz(path)


def npz(path: Path, **arrays: Any) -> Path:
    whole = {
        "format": np.array(b"csr"),
        "shape": np.array([2, 2]),
        "indptr": np.array([0, 1, 2]),
        "indices": np.array([1, 0]),
        "data": np.ones(2),
    }
    np.savez(path, **{name: of for name, of in {**whole, **arrays}.items() if of is not None})
    return path


@pytest.mark.parametrize(
    "arrays",
    [
        {"data": None},
        {"format": np.array([b"csr"] * 0)},
        {"format": np.array(7)},
        {"shape": np.array(2)},
        {"shape": np.array([2])},
        {"shape": np.array([-1, -1])},
        {"shape": np.array([2**40, 2**40])},
        {"indptr": np.array([0.0, 1.0, 2.0])},
        {"indptr": np.array([[0, 1, 2]])},
        {"indptr": np.array([0, 2**62, 2])},
        {"indices": np.array([1, 2**40])},
        {"data": np.array([1.0, np.nan])},
        {"data": np.array(["a", "b"])},
        {"data": np.array([None, {}], dtype=object)},
        {"embstore": np.array(99)},
        {"embstore": np.array(1), "directed": np.array(False), "features": np.array(["a"])},
        {"embstore": np.array(1), "features": np.array(["a"]), "values_0": np.array([1.5, 2.5])},
        {"features": np.array(["a"]), "values_0": np.array([1])},
        {"features": np.array(["a"]), "values_0": np.array([1, 1])},
        {
            "features": np.array(["a"]),
            "values_0": np.frombuffer(b"\xff\xfe", np.uint8),
            "offsets_0": np.array([0, 1, 2]),
            "text_0": np.array(True),
        },
        {
            "features": np.array(["a"]),
            "values_0": np.zeros(2, np.uint8),
            "offsets_0": np.array([0, 2**40, 2]),
            "text_0": np.array(True),
        },
    ],
)
def test_npz_that_is_no_graph(tmp_path: Path, arrays: dict[str, Any]) -> None:
    with pytest.raises(GraphError):
        read_npz(npz(tmp_path / "graph.npz", **arrays))


def test_npz_cut_short_or_flipped(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    to_npz(Graph.of_edges(np.array([0, 1]), np.array([1, 2]), nodes={"a": pa.array(["x", "y", "z"])}), path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(GraphError):
            read_npz(path)
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read_npz(path)  # a byte that nobody reads
        except GraphError:
            continue


def test_an_npz_that_promises_more_than_it_holds(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (2**44,)})
    path = npz(tmp_path / "graph.npz", indptr=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("indptr.npy", header.getvalue())
    with pytest.raises(GraphError, match="indptr"):
        read_npz(path)


def test_a_graph_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="a place to write to"):
        to_npz(Graph.of_edges(np.array([0]), np.array([1])), tmp_path / "none" / "graph.npz")
