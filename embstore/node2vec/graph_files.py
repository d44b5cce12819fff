"""Graphs from and to files: lists of edges as text or Parquet, and compressed rows as npz; no pickle.

=====================  ==========================================================================================
self-loops             kept (``loops=False``: left out); of an undirected graph once
the same edge again    without weights: once; with weights: added up; undirected, ``a b`` and ``b a`` are the same
weight 0               no edge
weight < 0, NaN, inf   ``GraphError`` with its line or row
nodes without edges    only from an npz, whose shape says how many nodes there are; a list has none
ids                    whole numbers where all ids of a text are such; else text. Parquet: as the columns are
=====================  ==========================================================================================

Nodes are numbered in the order of their ids.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.errors import EmbstoreError, GraphError
from embstore.node2vec import columns, edge_text
from embstore.node2vec.graph import NODE, Graph
from embstore.parquet_files import find, reading

FORMAT = 1
_NAMES = ("source", "target", "weight")
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, MemoryError, RuntimeError)


def read_edges(
    path: str | Path,
    *,
    directed: bool = False,
    feature: str = NODE,
    loops: bool = True,
    separator: str | None = None,
) -> Graph:
    """The graph of a list of edges.

    Text has an edge a line: two ids and, on all lines or on none, a weight, between spaces, tabs or commas. Blank lines
    and those that begin with # or % are left out, and so is a first line ``source target weight``; ``.gz`` and other
    compressed files are read as they are. Parquet (a file, folder or glob of ``.parquet``, or a URI) has the columns
    ``source``, ``target`` and perhaps ``weight``.

    Args:
        path: of the file.
        directed: whether an edge leads only from the first to the second.
        feature: what the nodes are values of.
        loops: whether edges from a node to itself are kept.
        separator: one character between fields, for text whose ids hold spaces, say.

    Raises:
        GraphError: no such file, an empty one, one cut short, or a line that is no edge, with its number.
        DataError: an id too long.
        LogError, SchemaError: of Parquet, as for logs.
    """
    text = str(path)
    source, target, weight = _parquet_edges(text) if is_parquet(text) else _text_edges(text, separator)
    if not len(source):
        raise GraphError(f"edges of {path}", expected="at least one edge", found="none")
    values = columns.joined([source.unique(), target.unique()], feature)
    columns.check_length(values, f"edges of {path}: ids")
    ends = [columns.numbers(columns.as_type(end, values.type, feature), values) for end in (source, target)]
    del source, target
    if not loops:
        apart = ends[0] != ends[1]
        ends, weight = [end[apart] for end in ends], None if weight is None else weight[apart]
    graph = Graph.of_edges(ends[0], ends[1], weight, directed=directed, nodes={feature: values})
    return _with_edges(graph, str(path))


def is_parquet(path: str) -> bool:
    """Whether a list of edges is taken for Parquet, else for text."""
    return "://" in path or os.path.isdir(path) or path.endswith((".parquet", ".pq"))


def to_npz(graph: Graph, path: str | Path) -> None:
    """Write a graph and what its nodes are; scipy's ``load_npz`` reads its matrix. The file appears when it is whole.

    Raises:
        GraphError: it can't be written.
    """
    arrays: dict[str, NDArray[Any]] = {
        "format": np.array(b"csr"),
        "shape": np.array([graph.num_nodes] * 2),
        "indptr": graph.indptr_N,
        "indices": graph.indices_E,
        "data": np.ones(len(graph.indices_E), np.uint8) if graph.weights_E is None else graph.weights_E,
        "embstore": np.array(FORMAT),
        "directed": np.array(graph.directed),
    }
    if graph.nodes is not None:
        arrays["features"] = np.array(list(graph.nodes), dtype=np.str_)
        for number, values in enumerate(graph.nodes.values()):
            plain = values.cast(columns.value_type(values.type))
            if pa.types.is_integer(plain.type):
                arrays[f"values_{number}"] = plain.to_numpy()
                continue
            offset_V, data_B = columns.text_of(plain)
            arrays[f"values_{number}"] = data_B[offset_V[0] : offset_V[-1]]
            arrays[f"offsets_{number}"] = offset_V - offset_V[0]
            arrays[f"text_{number}"] = np.array(pa.types.is_large_string(plain.type))
    path = Path(path)
    part = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            part = file.name
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if part is not None:
            Path(part).unlink(missing_ok=True)
        raise GraphError(f"graph {path}", expected="a place to write to", found=str(error.strerror)) from error


def read_npz(path: str | Path, *, directed: bool = False, feature: str | None = None) -> Graph:
    """A graph that ``to_npz`` wrote, or a square sparse matrix in compressed rows that scipy's ``save_npz`` wrote.

    Args:
        path: of the file.
        directed: of a matrix, whether its entries are arcs; else it must be symmetric. Of our own files, whether it is
            agreed that they are: a graph is what it was when written.
        feature: of a matrix, what its rows' numbers are values of; None: just numbers.

    Raises:
        GraphError: no such file, broken or cut short, with pickled objects, or no graph.
    """
    what = f"graph {path}"
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist()}
    except EmbstoreError:
        raise
    except _BROKEN as error:
        found = " ".join(str(error).split()) or type(error).__name__
        do = "write it with embstore or scipy.sparse.save_npz"
        raise GraphError(what, expected="an npz of compressed rows", found=found, do=do) from error
    for name, kinds in {"format": "SU", "shape": "iu", "indptr": "iu", "indices": "iu", "data": "iufb"}.items():
        if name not in arrays or arrays[name].dtype.kind not in kinds:
            held = ", ".join(sorted(arrays)[:8]) if name not in arrays else f"{arrays[name].dtype}"
            raise GraphError(f"{what}: {name}", expected="an array of compressed rows", found=held or "nothing")
    form = arrays["format"].reshape(-1)[:1].astype(np.str_).tolist()
    shape = arrays["shape"].reshape(-1).tolist() or [0]
    if form != ["csr"] or len(arrays["indptr"].reshape(-1)) != shape[0] + 1 or shape != [shape[0]] * 2:
        found = f"{''.join(form)} of {shape} with {arrays['indptr'].size:,} bounds"
        raise GraphError(what, expected="the compressed rows (csr) of a square matrix", found=found)
    ours = "embstore" in arrays
    if ours:
        if arrays["embstore"].tolist() != FORMAT:
            found = str(arrays["embstore"].tolist())[:40]
            raise GraphError(what, expected=f"format {FORMAT}", found=found, do="read it with a later embstore")
        if directed != (there := bool(arrays.get("directed", np.array(False)).any())):
            kinds_of = ("an undirected graph", "a directed graph")
            raise GraphError(what, expected=kinds_of[directed], found=kinds_of[there], do=f"say directed: {there}")
    try:
        nodes = _nodes(arrays, shape[0])
    except (KeyError, ValueError, IndexError, pa.ArrowException) as error:
        raise GraphError(f"{what}: its nodes", expected="values of features", found=str(error)[:80]) from error
    if nodes is None and feature is not None:
        nodes = {feature: pa.array(np.arange(shape[0]))}
    graph = Graph.of_csr(arrays["indptr"], arrays["indices"], arrays["data"], directed=directed, nodes=nodes)
    return _with_edges(graph, str(path))


def reduced(graph: Graph, *, loops: bool = True, min_weight: float = 0.0) -> Graph:
    """A graph without some of its edges; its nodes stay.

    Raises:
        GraphError: there would be no edge.
    """
    some_E = np.ones(len(graph.indices_E), dtype=bool)
    if not loops:
        some_E &= graph.sources() != graph.indices_E
    if graph.weights_E is not None:
        some_E &= graph.weights_E >= min_weight
    elif min_weight > 1:
        some_E[:] = False
    if some_E.all():
        return graph
    kept_N = np.bincount(graph.sources()[some_E], minlength=graph.num_nodes)
    left = replace(
        graph,
        indptr_N=np.concatenate([[0], np.cumsum(kept_N)]),
        indices_E=graph.indices_E[some_E],
        weights_E=None if graph.weights_E is None else graph.weights_E[some_E],
    )
    return _with_edges(left, "a file")


def _with_edges(graph: Graph, name: str) -> Graph:
    if not len(graph.indices_E):
        raise GraphError(f"graph of {name}", expected="at least one edge of weight above 0", found="none")
    return graph


def _parquet_edges(path: str) -> tuple[pa.Array, pa.Array, NDArray[np.float64] | None]:
    filesystem, paths = find(path)
    parts: list[list[pa.Array]] = [[], []]
    weight: list[NDArray[np.float64]] = []
    rows = 0
    for one in paths:
        with reading(one), pq.ParquetFile(one, filesystem=filesystem) as file:
            names = [name for name in _NAMES if name in file.schema_arrow.names]
            if names[:2] != list(_NAMES[:2]) or (rows and ("weight" in names) != bool(weight)):
                found, expected = ", ".join(file.schema_arrow.names), "columns source and target, and weight or none"
                raise GraphError(f"edges of {one}", expected=expected, found=found)
            for batch in file.iter_batches(batch_size=2**20, columns=names):
                table = pa.Table.from_batches([batch])
                for end, name in enumerate(_NAMES[:2]):
                    values, row_V = columns.flat(table.column(name), name)
                    if len(values) != table.num_rows or not (np.diff(row_V) == 1).all():
                        found = f"none in row {rows:,} or one after it"
                        raise GraphError(f"edges of {one}: {name}", expected="an id in each row", found=found)
                    parts[end].append(values)
                if "weight" in names:
                    missing = table.column("weight").null_count
                    if missing:
                        expected, found = "a weight in each row", f"{missing:,} missing after row {rows:,}"
                        raise GraphError(f"edges of {one}", expected=expected, found=found)
                    weight.append(columns.weights(table.column("weight"), "weight", rows)[0])
                rows += table.num_rows
    if not rows:
        raise GraphError(f"edges of {path}", expected="at least one edge", found="none")
    kinds = {part.type for part in parts[0] + parts[1]}
    kind = next(iter(kinds)) if len(kinds) == 1 else pa.int64()
    source, target = (pa.concat_arrays([columns.as_type(part, kind, _NAMES[e]) for part in parts[e]]) for e in (0, 1))
    return source, target, np.concatenate(weight) if weight else None


def _text_edges(path: str, separator: str | None) -> tuple[pa.Array, pa.Array, NDArray[np.float64] | None]:
    numbers: list[NDArray[np.int64]] = []
    texts: list[tuple[pa.Array, pa.Array]] = []
    weights: list[NDArray[np.float64]] = []
    first_line, first = 0, True
    try:
        with pa.input_stream(path, compression="detect") as stream:
            for fields, weighted in edge_text.fields_of(stream, separator):
                begin = 0
                if len(fields.line_E) and first:
                    begin, first = int(edge_text.is_header(fields, weighted)), False
                if begin:
                    fields = edge_text.Fields(
                        fields.data_B, fields.bounds[1:], fields.line_E[1:], fields.number_E2[1:], fields.whole_E[1:]
                    )
                if not len(fields.line_E):
                    continue
                first_line = first_line or int(fields.line_E[0])
                if weighted:
                    weights.append(_checked(fields.weights(), fields.line_E, path))
                if fields.whole_E.all() and not texts:
                    numbers.append(fields.number_E2)
                    continue
                if (alone := not texts and not numbers) and len(fields.whole_E) > 1 and not fields.whole_E[0]:
                    _check_header(fields.whole_E[1:], first_line, path)
                if not alone and not texts:
                    texts += [
                        tuple(pa.array(part[:, end]).cast(pa.large_string()) for end in (0, 1)) for part in numbers
                    ]
                    numbers.clear()
                texts.append((fields.ids(0), fields.ids(1)))
    except (OSError, EOFError, pa.ArrowException) as error:
        found = str(error).split("\n")[0]
        do = "check the path, and write it again if it was cut short"
        raise GraphError(f"edges of {path}", expected="text in UTF-8, or Parquet", found=found, do=do) from error
    except GraphError as error:
        raise GraphError(
            f"edges of {path}, {error.what}", expected=error.expected, found=error.found, do=error.do
        ) from error
    weight = np.concatenate(weights) if weights else None
    if texts:
        return *(pa.concat_arrays([part[end] for part in texts]) for end in (0, 1)), weight
    if not numbers:
        return pa.array([], pa.int64()), pa.array([], pa.int64()), None
    return *(pa.array(np.concatenate([part[:, end] for part in numbers])) for end in (0, 1)), weight


def _check_header(others_E: NDArray[np.bool_], line: int, path: str) -> None:
    if others_E.all():
        found, do = "a text, as of a header", "begin a header with #, or take it out"
        raise GraphError(f"line {line:,}", expected="whole numbers as in the lines after it", found=found, do=do)


def _checked(weight_E: NDArray[np.float64], line_E: NDArray[np.int64], path: str) -> NDArray[np.float64]:
    wrong = np.flatnonzero(~(np.isfinite(weight_E) & (weight_E >= 0)))
    if len(wrong):
        found = str(weight_E[wrong[0]])
        raise GraphError(f"line {line_E[wrong[0]]:,}", expected="a finite weight of 0 or more", found=found)
    return weight_E


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One of an npz; what its header asks for must be what the archive holds, or it would be allocated unseen."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} of version {version}")
        header = (np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0)[version[0] - 1]
        shape, _, dtype = header(file)
        begin = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects")
    size = dtype.itemsize
    for of in shape:
        size *= of
    if begin + size != archive.getinfo(name).file_size:
        raise ValueError(f"{name} of {list(shape)} in {archive.getinfo(name).file_size:,} bytes")
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _nodes(arrays: Mapping[str, NDArray[Any]], num_nodes: int) -> dict[str, pa.Array] | None:
    if "features" not in arrays:
        return None
    nodes: dict[str, pa.Array] = {}
    for number, name in enumerate(arrays["features"].tolist()):
        values = arrays[f"values_{number}"]
        if f"offsets_{number}" not in arrays:
            if values.dtype not in (np.int64, np.uint64):
                raise ValueError(f"{values.dtype} as values")
            nodes[str(name)] = pa.array(values)
            continue
        offset_V = arrays[f"offsets_{number}"].astype(np.int64)
        if values.dtype != np.uint8 or offset_V[0] != 0 or offset_V[-1] != len(values) or (np.diff(offset_V) < 0).any():
            raise ValueError(f"offsets that are not of its {len(values):,} bytes")
        kind = pa.large_string() if arrays[f"text_{number}"].any() else pa.large_binary()
        buffers = [None, pa.py_buffer(offset_V), pa.py_buffer(values)]
        nodes[str(name)] = pa.Array.from_buffers(kind, len(offset_V) - 1, buffers)
        nodes[str(name)].validate(full=True)
    if any(pc.count_distinct(values).as_py() != len(values) for values in nodes.values()):
        raise ValueError("a value twice")
    if sum(map(len, nodes.values())) != num_nodes:
        raise ValueError(f"{sum(map(len, nodes.values())):,} values of {num_nodes:,} nodes")
    return nodes
