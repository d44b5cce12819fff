"""Buckets of a table whose rows are shared out over processes: who writes which, and the rows that lie elsewhere.

    rows      | bucket 0 | bucket 1 | bucket 2 |
    shards    |     rank 0    |     rank 1     |     rank 0 writes buckets 0 and 1, with the last rows of 1 from rank 1

A rank writes the buckets that begin among its rows; so it needs others' rows of one bucket at most.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from embstore.distributed import Group
from embstore.store.manifest import Layout


class BucketRows:
    """The rows of the buckets that this process writes; made by all ranks of the group together.

    Args:
        group: the processes.
        shard: the rows that are here.
        layout: of the table.
        read: rows ``start`` to ``stop`` of ``shard``, on the host.

    ``numbers`` are those of its buckets.
    """

    def __init__(self, group: Group, shard: range, layout: Layout, read: Callable[[int, int], Tensor]) -> None:
        self._shard, self._read, self._rest = shard, read, None
        shards = [range(*bounds) for bounds in group.tell([shard.start, shard.stop])]
        numbers = [begun_in(of, layout) for of in shards]
        self.numbers = numbers[group.rank]
        if not group.alone:
            parts = []
            for rank, theirs in enumerate(numbers):
                start, stop = shard.start, shard.start
                if rank != group.rank and theirs:
                    start = max(shard.start, shards[rank].stop)
                    stop = max(start, min(shard.stop, layout.bucket(theirs[-1])[1]))
                parts.append(read(start, stop))
            self._rest = torch.cat(group.exchange(parts))

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of its buckets."""
        if stop <= self._shard.stop:
            return self._read(start, stop)
        assert self._rest is not None
        end = self._shard.stop
        beyond = self._rest[max(start - end, 0) : stop - end]
        return beyond if start >= end else torch.cat([self._read(start, end), beyond])


def begun_in(shard: range, layout: Layout) -> range:
    """The buckets whose first row is in a shard."""
    size = layout.bucket_rows
    return range(-(-shard.start // size), min(-(-shard.stop // size), layout.buckets))
