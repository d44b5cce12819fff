"""Raw values to vectors, straight from a version's files: only the rows asked for are read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from embstore.encoding import encode_values
from embstore.errors import ConfigError, CorruptVersionError
from embstore.kernels.plan import LookupPlan, Request
from embstore.kernels.reference import pooled
from embstore.store.manifest import MANIFEST

if TYPE_CHECKING:
    from embstore.store.version import Version


def plan_of(version: Version) -> LookupPlan:
    """Which rows of a version's table each lookup may take.

    Raises:
        CorruptVersionError: other rows than its manifest says.
    """
    layout, where = version.table.layout, version.source.where(MANIFEST)
    try:
        plan = LookupPlan.build(
            version.schema.features,
            num_rows=layout.hashed_rows,
            dim=layout.dim,
            num_tables=layout.num_tables,
            seed=layout.seed,
            exact_tokens=version.table.exact_tokens(),
        )
    except ConfigError as error:
        raise CorruptVersionError(where, expected=error.expected, found=error.found) from error
    said = [(block["base"], block["size"]) for entry in version.table.features for block in entry["rows"]]
    for lookup, block in zip(plan.lookups, said, strict=True):
        if (lookup.base, lookup.size) != block:
            expected = f"rows {lookup.base} to {lookup.base + lookup.size}, as seed, tables and tokens have it"
            found = f"{block[0]} to {sum(block)}"
            raise CorruptVersionError(f"{where}: feature {lookup.feature!r}", expected=expected, found=found)
    if plan.num_rows != layout.rows:
        raise CorruptVersionError(f"{where}: rows", expected=str(plan.num_rows), found=str(layout.rows))
    return plan


def lookup(version: Version, feature: str, values: pa.Array | pa.ChunkedArray | Iterable[Any]) -> Tensor:
    """The vectors of raw values of one feature; see ``Version.lookup``."""
    request = Request(encode_values(values, version.schema.feature(feature)), version.plan.only(feature))

    def gather(rows_T: Tensor) -> Tensor:
        rows_TD = version.table.gather(rows_T)
        return rows_TD.float() if rows_TD.dtype == torch.float64 else rows_TD  # as a table is restored

    return pooled(request, gather)
