"""From a log to a graph, by pure functions of Arrow blocks: one process or many, the same graph to the bit.

    block ──survey_of──> Survey ──joined──> Survey: the values that are nodes, numbered; see ``survey``
    block ──pair_edges──────────────────────────────────────────> edges ─┐
    block ──session_rows──> rows ──by_session──┐                         │
    block ──session_rows──> rows ──by_session──┴──session_edges─> edges ─┴─merged──> edges ──by_source──┐
                                                                     edges ──by_source──┐               │
                        Graph <──assembled── piece of a range of nodes <──piece_of──────┴───────────────┘

``edges`` are a table of ``source``, ``target`` (int32) and a weight in whole numbers, ``high`` and, where weights are
no counts, ``low`` (int64, see ``survey.row_weights``): their sums don't depend on how a log is cut, so edges are merged
anywhere and in any order. Of an undirected graph ``source <= target`` until ``by_source`` puts an edge into the rows of
both its ends. Each function returns what its arguments decide, and nothing else; each block must be given once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embstore.errors import GraphError
from embstore.node2vec import blocks, graph_files, sessions
from embstore.node2vec.graph import Graph
from embstore.node2vec.graph_settings import DecaySettings, GraphSettings, SessionSettings
from embstore.node2vec.sessions import by_session, session_rows
from embstore.node2vec.sums import EdgeSums, edge_table, merged
from embstore.node2vec.survey import Survey, joined, row_weights, sums, survey_of

__all__ = [
    "DecaySettings",
    "EdgeSums",
    "GraphSettings",
    "SessionSettings",
    "Survey",
    "assembled",
    "build_graph",
    "by_session",
    "by_source",
    "joined",
    "merged",
    "pair_edges",
    "piece_of",
    "ranges",
    "session_edges",
    "session_rows",
    "survey_of",
]

_PIECE = 2**24  # entries of a piece, in one process
_ROWS = 2**22  # rows of sessions that are sorted at once
_EDGES = 2**24  # that pairs of lists make at once, where they aren't a single row's


def pair_edges(table: pa.Table, settings: GraphSettings, survey: Survey, *, first_row: int = 0) -> pa.Table:
    """The edges that ``settings.pairs`` (there are some) make of a block, merged.

    Args:
        survey: of the whole log.
        first_row: the number of the block's first row in the log, for messages.

    Raises:
        as ``survey_of``; GraphError: a value that the survey doesn't have.
    """
    high_R, low_R, there_R = row_weights(table, settings, survey, first_row=first_row)
    nodes = {
        name: survey.nodes_of(name, table.column(name))
        for name in dict.fromkeys(name for pair in settings.pairs for name in pair)
    }
    lengths = {name: np.bincount(row_V, minlength=table.num_rows) for name, (_, row_V) in nodes.items()}
    many = sum(int(lengths[first] @ lengths[second]) for first, second in settings.pairs)
    if many > max(_EDGES, 4 * table.num_rows) and (half := table.num_rows // 2):
        parts = (table.slice(0, half), first_row), (table.slice(half), first_row + half)
        return merged([pair_edges(part, settings, survey, first_row=row) for part, row in parts])
    found = []
    for first, second in settings.pairs:
        (source_V, row_V), (target_U, row_U) = nodes[first], nodes[second]
        count_R = lengths[second].copy()
        count_R[~there_R] = 0
        start_R = np.searchsorted(row_U, np.arange(table.num_rows))
        count_V = count_R[row_V]
        source_E, row_E = np.repeat(source_V, count_V), np.repeat(row_V, count_V)
        within_E = np.arange(len(row_E)) - np.repeat(np.cumsum(count_V) - count_V, count_V)
        target_E = target_U[start_R[row_E] + within_E]
        if not settings.directed:
            source_E, target_E = np.minimum(source_E, target_E), np.maximum(source_E, target_E)
        found.append(edge_table(source_E, target_E, high_R[row_E], None if low_R is None else low_R[row_E]))
    return merged(found)


def session_edges(rows: Sequence[pa.Table], number: int, settings: GraphSettings) -> pa.Table:
    """The edges of whole sessions, merged.

    Args:
        rows: all rows of these sessions, as ``session_rows`` gives them, in any order.
        number: of the session in ``settings.sessions``.
    """
    return sessions.session_edges(rows, settings.sessions[number], directed=settings.directed)


def by_source(edges: pa.Table, bounds: Sequence[int], *, directed: bool) -> list[pa.Table]:
    """Edges as entries of rows, those of an undirected graph both ways, by ranges of nodes.

    Args:
        bounds: ascending from 0 to the number of nodes: part k has rows ``bounds[k]`` to ``bounds[k + 1]``.
    """
    if not directed:
        apart = edges.filter(pc.not_equal(edges["source"], edges["target"]))
        other = {"source": apart["target"], "target": apart["source"]}
        turned = pa.table({name: other.get(name, apart[name]) for name in edges.column_names})
        edges = pa.concat_tables([edges, turned])
    if len(bounds) == 2:
        return [edges]
    part_E = np.searchsorted(bounds, edges["source"].to_numpy(), side="right") - 1
    order_E = np.argsort(part_E.astype(np.uint16 if len(bounds) < 2**16 else np.int64), kind="stable")
    ends = np.cumsum(np.bincount(part_E, minlength=len(bounds) - 1)).tolist()
    return [edges.take(pa.array(order_E[begin:end])) for begin, end in pairwise([0, *ends])]


def piece_of(parts: Sequence[pa.Table], settings: GraphSettings, survey: Survey) -> pa.Table:
    """The rows of a range of nodes, of all parts that ``by_source`` gave for it.

    Returns:
        ``source``, ``target`` (int32, ascending) and ``weight`` (float32); edges below ``min_weight`` are left out.

    Raises:
        GraphError: a weight beyond float32.
    """
    edges = merged(parts)
    low = edges["low"].to_numpy() if "low" in edges.column_names else None
    total_E = sums(edges["high"].to_numpy(), low, survey)
    with np.errstate(over="ignore", under="ignore"):
        weight_E = total_E.astype(np.float32)
    if not np.isfinite(weight_E).all():
        raise GraphError("edge weights", expected="numbers that float32 holds", found=f"{total_E.max():g}")
    piece = pa.table({"source": edges["source"], "target": edges["target"], "weight": weight_E})
    some_E = (weight_E > 0) & (total_E >= settings.min_weight)
    return piece if some_E.all() else piece.filter(pa.array(some_E))


def assembled(pieces: Iterable[pa.Table], settings: GraphSettings, survey: Survey) -> Graph:
    """A graph of the pieces of all ranges, in order. Values without an edge are no nodes of it.

    Raises:
        GraphError: there is no edge.
    """
    indices, weights, degree_N = [], [], np.zeros(survey.num_nodes, dtype=np.int64)
    for piece in pieces:
        source = piece["source"].to_numpy()
        if len(source):
            first = int(source[0])
            degrees = np.bincount(source - first)
            degree_N[first : first + len(degrees)] += degrees
            indices.append(piece["target"].to_numpy())
            weights.append(piece["weight"].to_numpy())
    if not indices:
        do = "check the columns, the window and min_weight"
        raise GraphError("a graph of a log", expected="at least one edge", found="none", do=do)
    indices_E, weights_E = np.concatenate(indices), np.concatenate(weights)
    del indices, weights
    used_N = degree_N > 0
    if settings.directed:
        used_N[indices_E] = True
    nodes: Mapping[str, pa.Array] = survey.values
    if not used_N.all():
        indices_E = (np.cumsum(used_N, dtype=np.int64) - 1).astype(np.int32)[indices_E]
        degree_N = degree_N[used_N]
        bounds = np.cumsum([0, *map(len, nodes.values())]).tolist()
        nodes = {
            name: values.filter(pa.array(used_N[begin:end]))
            for (name, values), (begin, end) in zip(nodes.items(), pairwise(bounds), strict=True)
        }
    return Graph(
        indptr_N=np.concatenate([[0], np.cumsum(degree_N)]),
        indices_E=indices_E,
        weights_E=None if (weights_E == 1).all() else weights_E,
        directed=settings.directed,
        nodes=nodes,
    )


def ranges(survey: Survey, count: int) -> list[int]:
    """Bounds of about ``count`` ranges of nodes, for ``by_source``."""
    if not survey.num_nodes:
        return [0, 0]
    return [*range(0, survey.num_nodes, -(-survey.num_nodes // count)), survey.num_nodes]


def build_graph(settings: GraphSettings, progress: Callable[[int], object] | None = None) -> Graph:
    """The graph that the settings describe, built in this process.

    Memory is linear in the distinct edges and values, and for sessions in their rows (36 bytes each, 44 where weights
    are no counts); the log itself is streamed, twice.

    Args:
        settings: what of.
        progress: called with the number of rows after each block of a log was read; each row is read twice.

    Raises:
        LogError, GraphError: nothing there, broken, or without edges.
        SchemaError, DataError: columns or values that can't be what they are to be.
    """
    if settings.edges is not None or settings.graph is not None:
        return _from_file(settings)
    log = blocks.LogBlocks(settings)
    tell = progress or (lambda rows: None)
    survey = _surveyed(log, settings, tell)
    edges = EdgeSums()
    rows: list[list[list[pa.Table]]] = [[] for _ in settings.sessions]
    parts = min(-(-log.rows // _ROWS), 2**16)
    for first_row, table in log.tables():
        if settings.pairs:
            edges.add(pair_edges(table, settings, survey, first_row=first_row))
        for number in range(len(rows)):
            of = session_rows(table, number, settings, survey, first_row=first_row)
            rows[number].append(by_session(of, parts))
        tell(table.num_rows)
    for number, cut in enumerate(rows):
        for part in range(parts):
            edges.add(session_edges([of[part] for of in cut], number, settings))
        cut.clear()
    whole = edges.table()
    bounds = ranges(survey, -(-2 * whole.num_rows // _PIECE) or 1)
    entries = by_source(whole, bounds, directed=settings.directed)
    del whole, edges
    return assembled((piece_of([part], settings, survey) for part in entries), settings, survey)


def _surveyed(log: blocks.LogBlocks, settings: GraphSettings, tell: Callable[[int], object]) -> Survey:
    waiting: list[Survey] = []
    most = 0
    for first_row, table in log.tables():
        waiting.append(survey_of(table, settings, first_row=first_row))
        if sum(of.num_nodes for of in waiting) > 2 * most + 2**20:
            waiting = [joined(waiting)]
            most = waiting[0].num_nodes
        tell(table.num_rows)
    return joined(waiting)


def _from_file(settings: GraphSettings) -> Graph:
    if settings.graph is not None:
        graph = graph_files.read_npz(settings.graph, directed=settings.directed, feature=settings.feature)
    else:
        assert settings.edges is not None
        graph = graph_files.read_edges(
            settings.edges,
            directed=settings.directed,
            feature=settings.feature,
            loops=settings.loops,
            separator=settings.separator,
        )
    return graph_files.reduced(graph, loops=settings.loops, min_weight=settings.min_weight)
