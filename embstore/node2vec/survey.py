"""What must be known of a whole log before its edges can be numbered and weighed: its first reading.

block ──survey_of──> Survey ─┐
block ──survey_of──> Survey ─┴─joined──> Survey     the same for any blocks, in any order
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore.errors import GraphError
from embstore.node2vec import columns
from embstore.node2vec.graph import MAX_NODES
from embstore.node2vec.graph_settings import GraphSettings

_BITS = 31  # of either half of a weight


@dataclass(frozen=True, kw_only=True, eq=False)
class Survey:
    """Of some rows of a log.

    Args:
        values: of each feature, distinct and ascending. The numbers of nodes run through them in order.
        last: the latest time of the column that weights decay by, microseconds since 1970; None without one.
        greatest: weight of the column of weights; 1 without one.
    """

    values: Mapping[str, pa.Array]
    last: int | None
    greatest: float

    @property
    def num_nodes(self) -> int:
        return sum(map(len, self.values.values()))

    @property
    def scale(self) -> float:
        """A power of two above all weights, which they are measured by."""
        return float(2.0 ** min(math.frexp(self.greatest)[1], 1023)) if self.greatest > 0 else 1.0

    def nodes_of(self, feature: str, column: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The nodes in a column, ``[V]``, and the row of each."""
        values, row_V = columns.flat(column, feature)
        among, first = self.values[feature], 0
        for name, others in self.values.items():
            if name == feature:
                break
            first += len(others)
        return columns.numbers(columns.as_type(values, among.type, feature), among) + np.int32(first), row_V


def survey_of(table: pa.Table, settings: GraphSettings, *, first_row: int = 0) -> Survey:
    """Of a block of a log.

    Args:
        first_row: the number of the block's first row in the log, for messages.

    Raises:
        SchemaError: a column is of a type that can't be what it is to be.
        DataError: a value or a time too large.
        GraphError: a weight that is negative or not finite, with its row.
    """
    values = {name: columns.ordered(columns.flat(table.column(name), name)[0]) for name in settings.features}
    greatest, last = 1.0, None
    if settings.weight is not None:
        weight_R, _ = columns.weights(table.column(settings.weight), settings.weight, first_row)
        greatest = float(weight_R.max(initial=0.0))
    if settings.decay is not None:
        time_R, there_R = columns.times(table.column(settings.decay.time), settings.decay.time)
        last = int(time_R[there_R].max()) if there_R.any() else None
    return Survey(values=values, last=last, greatest=greatest)


def joined(surveys: Sequence[Survey]) -> Survey:
    """Of all their rows.

    Raises:
        SchemaError: values that have no common type.
        GraphError: more of them than a graph can have nodes.
    """
    values = {name: columns.joined([of.values[name] for of in surveys], name) for name in surveys[0].values}
    lasts = [of.last for of in surveys if of.last is not None]
    survey = Survey(values=values, last=max(lasts, default=None), greatest=max(of.greatest for of in surveys))
    if survey.num_nodes > MAX_NODES:
        raise GraphError("nodes", expected=f"at most {MAX_NODES:,}", found=f"{survey.num_nodes:,}")
    return survey


def row_weights(
    table: pa.Table, settings: GraphSettings, survey: Survey, *, first_row: int
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.bool_]]:
    """The weight of each row as two whole numbers, and which rows have one above 0.

    A weight is ``(high + low / 2^31) * scale / 2^31``, both in [0, 2^31]: to 2^-62 of the greatest exactly, and whole
    numbers add up to the same in any order. Where rows are counted, high is 1 and low is None.
    """
    there_R = np.ones(table.num_rows, dtype=bool)
    if settings.counts:
        return np.ones(table.num_rows, dtype=np.int64), None, there_R
    share_R = np.full(table.num_rows, 1.0 / survey.scale)
    if settings.weight is not None:
        weight_R, there_R = columns.weights(table.column(settings.weight), settings.weight, first_row)
        share_R = weight_R / survey.scale
    if settings.decay is not None:
        time_R, timed_R = columns.times(table.column(settings.decay.time), settings.decay.time)
        now = settings.decay.moment if settings.decay.moment is not None else survey.last or 0
        age_R = np.maximum(float(now) - time_R, 0.0)
        share_R = share_R * np.exp2(-age_R / settings.decay.half_life_us)
        there_R = there_R & timed_R
    share_R = share_R * 2.0**_BITS
    high_R = np.floor(share_R)
    low_R = np.rint((share_R - high_R) * 2.0**_BITS)
    return high_R.astype(np.int64), low_R.astype(np.int64), there_R & ((high_R > 0) | (low_R > 0))


def sums(high: NDArray[np.int64], low: NDArray[np.int64] | None, survey: Survey) -> NDArray[np.float64]:
    """What added up halves are as numbers."""
    if low is None:
        return high.astype(np.float64)
    return (high + low * 2.0**-_BITS) * (survey.scale * 2.0**-_BITS)
