"""How the values of two vocabularies differ: which are new, gone or shifted, and how far a feature has drifted.

The population stability index of a feature is ``sum over bins of (b - a) * ln(b / a)``, where ``a`` and ``b`` are the
bin's shares of what was seen then and now. Bins are the ``BINS`` most frequent values of then (of equally frequent ones
the first in order), one for all other values of then, and one for values that are new. Each count has 0.5 added, so
that an empty bin is no infinity. Below 0.1 is commonly read as stable, above 0.25 as drifted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore.errors import SchemaError
from embstore.feature_values import FeatureValues

BINS = 100
SHIFT = 2.0  # a share that changed by this factor, and
SIGNIFICANT = 4.0  # by so many standard errors of the difference of two shares


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """A value whose share changed: by a factor of ``SHIFT``, and by ``SIGNIFICANT`` standard errors.

    Args:
        value: which.
        before, after: its shares of what was seen.
    """

    value: Any
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class FeatureDrift:
    """How one feature's values differ.

    Args:
        before, after: how many values there were and are.
        new, gone: how many are in one only, and ``new_share``, ``gone_share`` their shares of what was seen there.
        shifted: how many changed, and ``most`` of these, those that moved the most of what was seen first.
        psi: the population stability index; ``None`` where one of them saw nothing.
    """

    before: int
    after: int
    new: int
    gone: int
    new_share: float
    gone_share: float
    shifted: int
    most: tuple[Shifted, ...]
    psi: float | None


def drift(
    before: Mapping[str, FeatureValues], after: Mapping[str, FeatureValues], *, most: int = 10
) -> dict[str, FeatureDrift]:
    """How the features that both have differ.

    Args:
        before, after: vocabularies, or parts of them.
        most: shifted values to name.

    Raises:
        SchemaError: they have no feature in common, or one whose values are of another kind.
    """
    names = [name for name in before if name in after]
    if not names:
        found = f"{', '.join(before)} and {', '.join(after)}"
        raise SchemaError("vocabularies to compare", expected="a feature that both have", found=found)
    return {name: _drift(before[name], after[name], most) for name in names}


def _drift(before: FeatureValues, after: FeatureValues, most: int) -> FeatureDrift:
    values, then, now = _joined(before, after)
    totals = int(then.sum()), int(now.sum())
    share_then, share_now = then / max(totals[0], 1), now / max(totals[1], 1)
    new, gone = then == 0, now == 0
    at = _shifted(then, now, totals)
    order = at[np.argsort(-np.abs(share_now - share_then)[at], kind="stable")]
    return FeatureDrift(
        before=int((~new).sum()),
        after=int((~gone).sum()),
        new=int((new & ~gone).sum()),
        gone=int((gone & ~new).sum()),
        new_share=float(share_now[new].sum()),
        gone_share=float(share_then[gone].sum()),
        shifted=len(at),
        most=tuple(
            Shifted(value=values[int(v)].as_py(), before=float(share_then[v]), after=float(share_now[v]))
            for v in order[:most]
        ),
        psi=stability_index(then, now) if all(totals) else None,
    )


def stability_index(then_V: NDArray[np.int64], now_V: NDArray[np.int64], *, bins: int = BINS) -> float:
    """The population stability index of two counts of the same values, int64 ``[V]`` each, see above."""
    old = np.flatnonzero(then_V)
    first = old[np.argsort(-then_V[old], kind="stable")]
    head, tail, new = first[:bins], first[bins:], np.flatnonzero(then_V == 0)
    counts = [
        np.append(of[head], [of[tail].sum(), of[new].sum()]).astype(np.float64) + 0.5
        for of in (then_V.astype(np.int64), now_V.astype(np.int64))
    ]
    a, b = (of / of.sum() for of in counts)
    return float(((b - a) * np.log(b / a)).sum())


def _shifted(then: NDArray[np.int64], now: NDArray[np.int64], totals: tuple[int, int]) -> NDArray[np.intp]:
    if not all(totals):
        return np.empty(0, np.intp)
    a, b = then / totals[0], now / totals[1]
    both = (then + now) / sum(totals)
    error = np.sqrt(both * (1 - both) * (1 / totals[0] + 1 / totals[1]))
    moved = (then > 0) & (now > 0) & (np.maximum(a, b) >= SHIFT * np.minimum(a, b))
    return np.flatnonzero(moved & (np.abs(b - a) >= SIGNIFICANT * error))


def _joined(before: FeatureValues, after: FeatureValues) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """The values of both, in order, and how often each was seen then and now."""
    both = before.merged(after)
    counts = []
    for of in (before, after):
        found = pc.index_in(both.values, value_set=of.values.cast(both.values.type))
        place = found.fill_null(-1).to_numpy()
        counts.append(np.where(place < 0, 0, of.count[place] if len(of) else 0))
    return both.values, counts[0], counts[1]
