"""A graph of a log, built by the tasks of a runner: the same to the bit as ``embstore.node2vec.edges.build_graph``.

blocks ──survey──> Survey, kept once
blocks ──rows───> parts by session ──edges──┐
blocks ──pairs──> edges ────────────────────┴──> parts by ranges of nodes ──> pieces ──> Graph
                                    the parts of a piece never come to the driver
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from embstore.node2vec.blocks import Block, LogBlocks
from embstore.node2vec.edges import (
    GraphSettings,
    Survey,
    assembled,
    by_session,
    by_source,
    joined,
    merged,
    pair_edges,
    piece_of,
    ranges,
    session_edges,
    session_rows,
    survey_of,
)
from embstore.node2vec.graph import Graph

from .runners import Runner

_ROWS = 2**20  # of a piece of the log, at least, where it has so many
_PARTS = 4  # for each worker, in which sessions and nodes are shared out


class _Log(NamedTuple):
    blocks: LogBlocks
    settings: GraphSettings


class _Surveyed(NamedTuple):
    blocks: LogBlocks
    settings: GraphSettings
    survey: Survey
    bounds: list[int]
    parts: int


def graph_of_log(settings: GraphSettings, by: Runner, tell: Callable[[int], object]) -> Graph:
    """The graph of ``settings.log``.

    Args:
        by: who does it.
        tell: called with rows that were read; each is read twice, and once more for each of the ``sessions`` but one
            where there are no pairs.

    Raises:
        LogError, SchemaError, DataError, GraphError: as ``build_graph``.
    """
    blocks = LogBlocks(settings)
    pieces = list(_pieces(blocks))
    log = by.keep(_Log(blocks, settings))
    surveys = []
    for piece, survey in zip(pieces, by.map(_survey, log, ((piece,) for piece in pieces)), strict=True):
        surveys.append(survey)
        if len(surveys) > 16:
            surveys = [joined(surveys)]
        tell(_rows(piece))
    whole = joined(surveys)
    parts = _PARTS * by.workers
    surveyed = by.keep(_Surveyed(blocks, settings, whole, ranges(whole, parts), parts))
    edges: list[tuple[Any, ...]] = []
    for number in range(len(settings.sessions)):
        of_sessions = by.exchange(
            *(_session_rows, surveyed, [(piece, number) for piece in pieces], parts),
            *(_session_edges, (number,), lambda place: tell(_rows(pieces[place]))),
        )
        edges += [(None, handle) for handle in of_sessions]
    if settings.pairs:
        edges += [(piece, None) for piece in pieces]
    first = len(edges) - len(pieces)
    ended = by.exchange(
        *(_edges_by_source, surveyed, edges, len(ranges(whole, parts)) - 1, _piece, ()),
        lambda place: tell(_rows(pieces[place - first])) if settings.pairs and place >= first else None,
    )
    return assembled(by.take(ended), settings, whole)


def _pieces(log: LogBlocks) -> Iterator[list[Block]]:
    """Blocks that follow each other; the same for any runner."""
    piece: list[Block] = []
    for block in log.blocks:
        piece.append(block)
        if _rows(piece) >= _ROWS:
            yield piece
            piece = []
    if piece:
        yield piece


def _rows(piece: Sequence[Block]) -> int:
    return sum(block.rows for block in piece)


def _survey(log: _Log, piece: list[Block]) -> Survey:
    tables = log.blocks.tables(piece)
    return joined([survey_of(table, log.settings, first_row=first_row) for first_row, table in tables])


def _session_rows(log: _Surveyed, piece: list[Block], number: int) -> list[pa.Table]:
    tables = [
        session_rows(table, number, log.settings, log.survey, first_row=first_row)
        for first_row, table in log.blocks.tables(piece)
    ]
    return by_session(pa.concat_tables(tables), log.parts)


def _session_edges(log: _Surveyed, part: int, number: int, *rows: pa.Table) -> pa.Table:
    return session_edges(rows, number, log.settings)


def _edges_by_source(log: _Surveyed, piece: list[Block] | None, edges: pa.Table | None) -> list[pa.Table]:
    if edges is None:
        tables = log.blocks.tables(piece)
        edges = merged(
            [pair_edges(table, log.settings, log.survey, first_row=first_row) for first_row, table in tables]
        )
    return by_source(edges, log.bounds, directed=log.settings.directed)


def _piece(log: _Surveyed, part: int, *edges: pa.Table) -> pa.Table:
    return piece_of(edges, log.settings, log.survey)
