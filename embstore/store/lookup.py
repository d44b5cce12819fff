"""Raw values to vectors, straight from a version's files: only the rows asked for are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.encoding import encode_values
from embstore.errors import ConfigError, CorruptVersionError
from embstore.feature_values import TokenStatus
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
    tokens = encode_values(values, version.schema.feature(feature))
    token_N = tokens.values_N.numpy()
    kept_N = version.filtered(feature, token_N)
    if kept_N is not token_N:
        tokens = replace(tokens, values_N=torch.from_numpy(kept_N))
    request = Request(tokens, version.plan.only(feature))

    def gather(rows_T: Tensor) -> Tensor:
        rows_TD = version.table.gather(rows_T)
        return rows_TD.float() if rows_TD.dtype == torch.float64 else rows_TD  # as a table is restored

    return pooled(request, gather)


def status(version: Version, feature: str, tokens_N: NDArray[Any]) -> NDArray[np.uint8]:
    """What each token is; see ``Version.status``."""
    spec = version.schema.feature(feature, of=f"version {version.id}")
    if feature in version.vocabulary_info:
        assert version.vocabulary is not None
        return version.vocabulary.status(feature, tokens_N)
    if not spec.exact:
        return TokenStatus.of_any(tokens_N)
    if feature not in version.exact_status:
        known_V = version.table.exact_tokens()[feature].numpy().view(np.uint64)
        version.exact_status[feature] = TokenStatus(known_V, known_V[:0])
    return version.exact_status[feature].of(tokens_N)
