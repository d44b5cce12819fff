"""Edges between rows of one session that are near each other in time, or in steps.

    session  7  7  7  7  9  9       sorted by session, time and row
    time     0  5 40 44  1  2       window 30: 0-5, 40-44 and 1-2 are near, 5-40 are not
    node     a  b  a  c  b  b       edges a-b, a-c; b makes none with itself

An edge weighs what the later of its two rows does. Suffixes: R rows, E edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from embstore.errors import SchemaError
from embstore.hashing import compiled, splitmix64
from embstore.node2vec import columns
from embstore.node2vec.graph_settings import GraphSettings, SessionSettings, microseconds
from embstore.node2vec.sums import EdgeSums, edge_table, merged
from embstore.node2vec.survey import Survey, row_weights
from embstore.tokens import tokenize

_EDGES = 2**23  # made before they are merged


def session_rows(
    table: pa.Table, number: int, settings: GraphSettings, survey: Survey, *, first_row: int = 0
) -> pa.Table:
    """A block's rows as one of ``settings.sessions`` needs them, in their order; without those that lack a value, a
    session, a time or a weight.

    Args:
        number: of the session in ``settings.sessions``.
        survey: of the whole log.
        first_row: the number of the block's first row in the log.

    Returns:
        ``session`` (uint64, the token of the value), ``row``, ``time`` (int64), ``node`` (int32), ``high`` and ``low``.
        Two values have the same token once in 2^64.

    Raises:
        as ``survey_of``.
    """
    session = settings.sessions[number]
    column = table.column(session.column)
    node_V, row_V = survey.nodes_of(session.column, column)
    high_R, low_R, there_R = row_weights(table, settings, survey, first_row=first_row)
    place_R = first_row + np.arange(table.num_rows, dtype=np.int64)
    if session.by is None:
        if not columns.is_list(column.type):
            do = "say by which column rows make a session"
            raise SchemaError(f"sessions of column {session.column!r}", expected="lists", found=str(column.type), do=do)
        token_R = splitmix64(place_R.view(np.uint64))  # one to one; ``by_session`` divides by high bits
    else:
        by = table.column(session.by)
        tokens = tokenize(by, name=session.by)
        if tokens.offsets is not None:
            expected = "one value a row"
            raise SchemaError(f"session column {session.by!r}", expected=expected, found=str(by.type))
        token_R = tokens.values
        there_R = there_R & by.is_valid().to_numpy()
    time_R = np.zeros(table.num_rows, dtype=np.int64)
    if session.time is not None:
        time_R, timed_R = columns.times(table.column(session.time), session.time)
        there_R = there_R & timed_R
    some_V = there_R[row_V]
    row_V = row_V[some_V]
    rows = {"session": token_R[row_V], "row": place_R[row_V], "time": time_R[row_V], "node": node_V[some_V]}
    rows["high"] = high_R[row_V]
    if low_R is not None:
        rows["low"] = low_R[row_V]
    return pa.table(rows)


def by_session(rows: pa.Table, parts: int) -> list[pa.Table]:
    """Rows by hash of their session, in their order: all of a session are in one of so many parts, at most 65,536."""
    part_R = ((rows["session"].to_numpy() >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32)
    if parts == 1:
        return [rows]
    rows = rows.take(pa.array(np.argsort(part_R.astype(np.uint16), kind="stable")))
    ends = np.cumsum(np.bincount(part_R.astype(np.int64), minlength=parts)).tolist()
    return [rows.slice(begin, end - begin) for begin, end in pairwise([0, *ends])]


def session_edges(rows: Sequence[pa.Table], session: SessionSettings, *, directed: bool) -> pa.Table:
    """Edges of whole sessions, see ``embstore.node2vec.edges.session_edges``."""
    whole = pa.concat_tables(rows)
    token_R, row_R, time_R = (whole[name].to_numpy() for name in ("session", "row", "time"))
    order_R = np.lexsort((row_R, time_R, token_R))  # stable: elements of one list stay in order
    token_R, time_R, node_R, high_R = (whole[name].to_numpy()[order_R] for name in ("session", "time", "node", "high"))
    low_R = whole["low"].to_numpy()[order_R] if "low" in whole.column_names else None
    window = 2**64 - 1 if session.window is None else microseconds(session.window, "sessions.window")
    followers_R = np.empty(len(token_R), dtype=np.int64)
    _followers(token_R, time_R, np.uint64(window), session.steps or 2**31, followers_R)
    ends_R = np.cumsum(followers_R)
    edges = EdgeSums()
    begin, done = 0, 0
    while True:
        stop = max(int(np.searchsorted(ends_R, done + _EDGES, side="right")), begin + 1)
        stop = min(stop, len(ends_R))
        size = int(ends_R[stop - 1]) - done if stop else 0
        source_E, target_E, later_E = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int64)
        made = _pairs(node_R, followers_R, begin, stop, directed, source_E, target_E, later_E)
        later_E = later_E[:made]
        low_E = None if low_R is None else low_R[later_E]
        edges.add(merged([edge_table(source_E[:made], target_E[:made], high_R[later_E], low_E)]))
        if stop >= len(ends_R):
            return edges.table()
        begin, done = stop, done + size


@compiled(nogil=True)
def _followers(token_R, time_R, window, steps, followers_R):  # type: ignore[no-untyped-def]
    """How many rows after each are of its session and near."""
    end = 0
    for r in range(len(token_R)):
        end = max(end, r + 1)
        while end < len(token_R) and token_R[end] == token_R[r]:
            # Differences of times of either sign may be beyond 63 bits.
            if np.uint64(time_R[end]) - np.uint64(time_R[r]) > window:
                break
            end += 1
        followers_R[r] = min(end - r - 1, steps)


@compiled(nogil=True)
def _pairs(node_R, followers_R, begin, stop, directed, source_E, target_E, later_E):  # type: ignore[no-untyped-def]
    made = 0
    for r in range(begin, stop):
        a = node_R[r]
        for other in range(r + 1, r + 1 + followers_R[r]):
            b = node_R[other]
            if a == b:
                continue
            forth = directed or a < b
            source_E[made] = a if forth else b
            target_E[made] = b if forth else a
            later_E[made] = other
            made += 1
    return made
