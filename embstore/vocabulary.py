"""The values features take. So far: the tokens of exact features, which have rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.distributed import ALONE, Group
from embstore.logs import ParquetLog


class ValueStatus(IntEnum):
    """What is known of a value."""

    KNOWN = 0
    MISSING = 1
    PRUNED = 2
    UNSEEN = 3


def exact_tokens(
    log: ParquetLog, *, progress: Callable[[int], object] | None = None, group: Group = ALONE
) -> dict[str, Tensor]:
    """The distinct tokens of each exact feature in a log, in one pass over those columns.

    Args:
        log: usually the training log.
        progress: called with the number of rows after each chunk read.
        group: whose ranks read a part of the log each; all have the tokens of the whole.

    Returns:
        ``{feature: sorted int64 tokens}`` for the features with ``exact=True``; no pass when there are none.
    """
    features = tuple(feature for feature in log.schema.features if feature.exact)
    if not features:
        return {}
    schema = replace(log.schema, features=features, dense=(), label=None, weight=None, group=None)
    seen: dict[str, NDArray[np.int64]] = {feature.name: np.empty(0, np.int64) for feature in features}
    log = ParquetLog(log.source, schema, labelled=False)
    for rows in log.rows_from(pieces=log.pieces[group.rank :: group.world]):
        for name, tokens in rows.features.items():
            seen[name] = np.union1d(seen[name], tokens.values.view(np.int64))
        if progress is not None:
            progress(rows.size)
    return {name: torch.cat(group.gather(torch.from_numpy(tokens))).unique() for name, tokens in seen.items()}
