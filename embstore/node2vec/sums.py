"""Tables of edges, and their sums: the same whatever is merged first. Suffix: E edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_WAITING = 2**22  # edges that may wait before they are merged


def edge_table(
    source_E: NDArray[np.int32],
    target_E: NDArray[np.int32],
    high_E: NDArray[np.int64],
    low_E: NDArray[np.int64] | None,
) -> pa.Table:
    """Edges as they are handed on, see ``embstore.node2vec.edges``."""
    columns = {"source": source_E, "target": target_E, "high": high_E}
    return pa.table(columns if low_E is None else {**columns, "low": low_E})


def merged(tables: Sequence[pa.Table]) -> pa.Table:
    """Each edge once, with the sum of its weights, ascending by source and target."""
    whole = pa.concat_tables(tables) if len(tables) > 1 else tables[0]
    if not whole.num_rows:
        return whole
    key_E = whole["source"].to_numpy().astype(np.int64)
    key_E <<= 32
    key_E |= whole["target"].to_numpy()
    order_E = np.argsort(key_E)
    key_E = key_E[order_E]
    first_E = np.flatnonzero(np.concatenate([[True], key_E[1:] != key_E[:-1]]))
    key_E = key_E[first_E]
    halves = [np.add.reduceat(whole[name].to_numpy()[order_E], first_E) for name in whole.column_names[2:]]
    return edge_table((key_E >> 32).astype(np.int32), key_E.astype(np.int32), halves[0], (*halves, None)[1])


class EdgeSums:
    """Edges, merged as they come: in memory are those that are distinct, and about as many that wait."""

    def __init__(self) -> None:
        self._waiting: list[pa.Table] = []
        self._merged = self._rows = 0

    def add(self, edges: pa.Table) -> None:
        """Some more of them."""
        self._waiting.append(edges)
        self._rows += edges.num_rows
        if self._rows > max(2 * self._merged, _WAITING):
            self.table()

    def table(self) -> pa.Table:
        """All that were added, as ``merged`` gives them."""
        if len(self._waiting) > 1:
            self._waiting = [merged(self._waiting)]
        self._rows = self._merged = self._waiting[0].num_rows
        return self._waiting[0]
