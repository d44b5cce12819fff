"""Vectors of a graph's nodes as others take them: a table by value, and a published version.

    graph.nodes  {"user": [u1, u2], "item": [i1]}      vectors [3, dim]
    user         value  vector  weight                 rows of an exact block: looked up bit for bit as learnt
                 u1     [...]   strength of u1

A node without edges has learnt nothing: it is left out. Suffixes: N nodes, E entries, V values of a feature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import GraphError
from embstore.feature_values import FeatureValues
from embstore.kernels import TableOptimizer
from embstore.node2vec.graph import Graph
from embstore.schema import Feature, Schema
from embstore.store import Bundle, Store, Version, without_network
from embstore.tokens import tokenize
from embstore.vocabulary import Vocabulary

VALUE, VECTOR, WEIGHT = "value", "vector", "weight"


def graph_fingerprint(graph: Graph) -> str:
    """sha256 of a graph: its rows and, by feature, what its nodes are."""
    digest = hashlib.sha256(f"directed={graph.directed}\n".encode())
    for name, array in (("indptr", graph.indptr_N), ("indices", graph.indices_E), ("weights", graph.weights_E)):
        if array is not None:
            digest.update(f"{name} {array.dtype.str} {len(array)}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    for name, values in (graph.nodes or {}).items():
        tokens = tokenize(values, name=name).values
        digest.update(f"{len(name.encode())} {name} {len(tokens)}\n".encode())
        digest.update(np.ascontiguousarray(tokens).data)
    return digest.hexdigest()


def vectors_table(
    graph: Graph, vectors_ND: NDArray[Any], *, weights_N: NDArray[Any] | None = None
) -> dict[str, pa.Table]:
    """By feature, ``value``, ``vector`` (float32) and ``weight``: as Parquet, what ``embstore import`` takes.

    Args:
        graph: whose nodes they are; numbered ones are values of a feature ``node``.
        vectors_ND: in the order of the nodes.
        weights_N: how much each counts in the mean of a row that several values share, above 0, e.g. visits; the sum
            of the weights of its edges when not given.

    Raises:
        GraphError: vectors or weights of another number of nodes, or that can't be used.

    >>> nodes = {"user": pa.array(["ann"]), "item": pa.array([7, 8])}
    >>> graph = Graph.of_edges(np.array([0, 0]), np.array([1, 2]), nodes=nodes)
    >>> tables = vectors_table(graph, np.zeros((3, 4)))
    >>> tables["item"].select(["value", "weight"]).to_pydict()
    {'value': [7, 8], 'weight': [1.0, 1.0]}
    """
    vectors_ND, weights_N = _checked(graph, vectors_ND, weights_N)
    out, linked_N = {}, _linked(graph)
    for name, numbers in graph.parts().items():
        values = _values(graph, name)
        linked_V = linked_N[numbers.start : numbers.stop]
        if not linked_V.any():  # a column without values, say: no feature of a table
            continue
        vectors_VD = vectors_ND[numbers.start : numbers.stop][linked_V]
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors_VD.reshape(-1)), vectors_ND.shape[1])
        weight_V = pa.array(weights_N[numbers.start : numbers.stop][linked_V])
        out[name] = pa.table({VALUE: values.filter(pa.array(linked_V)), VECTOR: lists, WEIGHT: weight_V})
    return out


def publish_vectors(
    store: Store,
    graph: Graph,
    vectors_ND: NDArray[Any],
    lineage: Mapping[str, Any],
    *,
    logs: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    weights_N: NDArray[Any] | None = None,
    parent: str | None = None,
) -> Version:
    """Publish vectors as a version of a space of its own: exact features, a vocabulary, and no network.

    Looked up, a value gives its vector bit for bit; one that is not a node, zeros, and its status is unseen.
    ``embstore serve --search FEATURE`` finds a value's neighbours among those of its feature.

    Args:
        lineage: of the node2vec run: settings of graph, walks and skip-gram; the graph's fingerprint and sizes are
            added. It is the manifest's ``lineage.node2vec``.
        logs: fingerprints of those the graph was made from, ``{"train": {"fingerprint", "rows"}}``.
        metrics: numbers by name.
        weights_N: as for ``vectors_table``; rounded, they are the vocabulary's counts, of which none is below 1.
        parent: ref of the version these vectors were trained on from.

    Raises:
        GraphError: as ``vectors_table``.
        StoreError: it can't be published.
    """
    features, tokens, counts, rows = [], {}, {}, []
    for name, table in vectors_table(graph, vectors_ND, weights_N=weights_N).items():
        features.append(Feature(name=name, exact=True))
        value = table.column(VALUE).combine_chunks()
        tokens_V = tokenize(value, name=name).values.view(np.int64)
        order_V = np.argsort(tokens_V)
        if (np.diff(tokens_V[order_V]) == 0).any():
            raise GraphError(f"nodes of {name!r}", expected="each value once", found="one of them twice")
        tokens[name] = torch.from_numpy(tokens_V[order_V])
        numbers_VD = table.column(VECTOR).combine_chunks().flatten().to_numpy().reshape(len(value), -1)
        # An exact block: a row for each token, ascending, and one that all other values share.
        rows += [numbers_VD[order_V], np.zeros((1, numbers_VD.shape[1]), np.float32)]
        count = np.maximum(np.rint(table.column(WEIGHT).to_numpy()), 1).astype(np.int64)
        counts[name] = FeatureValues.of(name, value, count=count)
    schema, rows_ND = Schema(features=tuple(features)), torch.from_numpy(np.concatenate(rows))
    about = {"graph": _about(graph), "dim": rows_ND.shape[1], **lineage}
    bundle = Bundle(
        table=_table(features, rows_ND, tokens),
        schema=schema,
        dense_state={},
        model=without_network(schema, rows_ND.shape[1]),
        metrics=metrics or {},
        lineage={"node2vec": about, "logs": logs},
        columns={name: str(_values(graph, name).type) for name in counts},
        vocabulary=Vocabulary(counts),
    )
    return store.publish(bundle, parent=parent)


def _table(features: list[Feature], rows_ND: Tensor, tokens: Mapping[str, Tensor]) -> UnifiedEmbedding:
    """Of exact blocks alone, on these rows as they lie; plain SGD has no state."""
    plain = TableOptimizer(name="sgd")
    return UnifiedEmbedding(features, 0, rows_ND.shape[1], exact_tokens=tokens, rows=rows_ND, optimizer=plain)


def _about(graph: Graph) -> dict[str, Any]:
    return {
        "sha256": graph_fingerprint(graph),
        "nodes": {name: len(numbers) for name, numbers in graph.parts().items()},
        "edges": graph.num_edges,
        "directed": graph.directed,
        "weighted": graph.weights_E is not None,
    }


def _values(graph: Graph, name: str) -> pa.Array:
    """Of a feature's nodes, as the graph has them; numbers where it has none."""
    if graph.nodes is None:
        return pa.array(np.arange(graph.num_nodes, dtype=np.int64))
    values = graph.nodes[name]
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _linked(graph: Graph) -> NDArray[np.bool_]:
    """Which nodes have an edge, ``[N]``."""
    linked_N = graph.degrees() > 0
    linked_N[graph.indices_E] = True
    return linked_N


def _checked(
    graph: Graph, vectors_ND: NDArray[Any], weights_N: NDArray[Any] | None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    vectors = np.asarray(vectors_ND)
    if vectors.ndim != 2 or len(vectors) != graph.num_nodes or not vectors.shape[1] or vectors.dtype.kind != "f":
        expected = f"floats [{graph.num_nodes:,}, dim], one row for each node"
        raise GraphError("vectors", expected=expected, found=f"{vectors.dtype} {list(vectors.shape)}")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    linked_N = _linked(graph)
    if not linked_N.any():
        raise GraphError("vectors", expected="of a graph with an edge", found="none")
    if not np.isfinite(vectors[linked_N]).all():
        raise GraphError("vectors", expected="finite numbers", found="others", do="train with a smaller learning rate")
    if weights_N is None:
        weights = graph.strengths()
        if graph.directed:  # arcs that lead to a node count, too
            weights = weights + np.bincount(graph.indices_E, graph.weights_E, minlength=graph.num_nodes)
        return vectors, weights
    weights = np.asarray(weights_N, dtype=np.float64)
    if weights.shape != (graph.num_nodes,) or not (np.isfinite(weights) & (weights > 0))[linked_N].all():
        expected = f"{graph.num_nodes:,} finite numbers, above 0 where a node has an edge"
        raise GraphError("weights", expected=expected, found=f"{weights.dtype} {list(weights.shape)}, or others")
    return vectors, weights
