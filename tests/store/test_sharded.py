"""Which rank writes which bucket; with whose rows is tested by real ranks (``tests/distributed``)."""

from __future__ import annotations

import functools
import operator

import torch
from hypothesis import given
from hypothesis import strategies as st

from embstore.distributed import ALONE
from embstore.store.manifest import Layout
from embstore.store.sharded import BucketRows, begun_in


def _layout(rows: int, bucket_rows: int) -> Layout:
    return Layout(
        dim=2,
        encoding="float32",
        rows=rows,
        hashed_rows=rows,
        num_tables=1,
        hash_spec=1,
        seed=0,
        bucket_rows=bucket_rows,
    )


@given(rows=st.integers(1, 200), bits=st.integers(0, 6), world=st.integers(1, 9))
def test_each_bucket_is_written_once(rows: int, bits: int, world: int) -> None:
    layout, block = _layout(rows, 1 << bits), -(-rows // world)
    shards = [range(min(rank * block, rows), min((rank + 1) * block, rows)) for rank in range(world)]
    numbers = [list(begun_in(shard, layout)) for shard in shards]
    assert functools.reduce(operator.iadd, numbers, []) == list(range(layout.buckets))
    for shard, own in zip(shards, numbers, strict=True):
        assert all(layout.bucket(number)[0] in shard for number in own)


def test_a_process_alone_reads_its_own() -> None:
    rows_ND = torch.arange(20.0).reshape(10, 2)
    found = BucketRows(ALONE, range(10), _layout(10, 4), lambda start, stop: rows_ND[start:stop])
    assert list(found.numbers) == [0, 1, 2]
    assert torch.equal(found.read(3, 10), rows_ND[3:])
