"""The rows a new table starts with: the same numbers for a row, whichever part of the table is filled.

Each block of rows has a generator of its own, seeded by (seed, block), so that a shard draws no rows but those of the
blocks it has a part in.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from embstore.kernels.native import advise_huge_pages
from embstore.kernels.plan import LookupPlan

_BLOCK_ROWS = 1 << 12


def first_rows(
    plan: LookupPlan, rows: range, *, std: float, seed: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Normal numbers with deviation ``std`` for these rows of a plan's table, ``[len(rows), dim]``.

    The row that unknown values of an exact feature share is zero.
    """
    rows_ND = torch.empty(len(rows), plan.dim, dtype=dtype, device=device)
    advise_huge_pages(rows_ND)
    generator = torch.Generator(device)
    for block in range(rows.start // _BLOCK_ROWS, -(-rows.stop // _BLOCK_ROWS)):
        start, stop = block * _BLOCK_ROWS, min((block + 1) * _BLOCK_ROWS, plan.num_rows)
        generator.manual_seed(_seed_of(seed, block))
        first, last = max(start, rows.start), min(stop, rows.stop)
        if (first, last) == (start, stop):
            rows_ND[start - rows.start : stop - rows.start].normal_(0.0, std, generator=generator)
        else:
            whole = torch.empty(stop - start, plan.dim, dtype=dtype, device=device)
            whole.normal_(0.0, std, generator=generator)
            rows_ND[first - rows.start : last - rows.start] = whole[first - start : last - start]
    for lookup in plan.lookups:
        shared = lookup.base + lookup.size - 1
        if lookup.exact and shared in rows:
            rows_ND[shared - rows.start] = 0
    return rows_ND


def _seed_of(seed: int, block: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{block}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
