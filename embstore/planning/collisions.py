"""How many values of a feature are expected to share a row, in one table of all features and in one for each.

A value's row is a hash: uniform over M rows, independent of others'. Of N values of a feature, for one lookup,

    pairs in one row                N (N - 1) / 2M          N^2 / 2M, nearly
    values that share theirs        N (1 - (1 - 1/M)^(N - 1))
    rows that are taken             M (1 - (1 - 1/M)^N)

In one shared table every feature has all M rows, and values of different features that meet are told apart by the
network (Coleman et al. 2023, section 4): what is lost is the sum over features of N_f^2 / 2M. Split in tables as large
as their features are (M_f = M N_f / N), the same rows lose the sum of N_f^2 / 2M_f = N^2 / 2M. Values with L lookups
meet wholly only where all L rows are the same: N (1 - (1 - 1/M^L)^(N - 1)) of them share all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embstore.errors import ConfigError

EXACT_SHARE = 0.01  # of the rows, that exact blocks may take together
_MOST_ROWS = 2**48


@dataclass(frozen=True, kw_only=True)
class Cardinality:
    """What a feature has.

    Args:
        name: of the feature.
        values: that are kept, N.
        occurrences: how often they were seen; 0 where nobody knows.
        lookups: L.
    """

    name: str
    values: int
    occurrences: int = 0
    lookups: int = 1


@dataclass(frozen=True, kw_only=True)
class Collisions:
    """What is expected of some features in a number of rows, or of one.

    Args:
        rows: M, of the table.
        pairs: of values that share a row, for each lookup; the mean over lookups.
        values: that share the row of a lookup with another value of their feature.
        wholly: that share the rows of all lookups with another value of their feature.
        share: ``values`` of all values.
        occurrences: share of occurrences whose value shares a row; ``None`` where nobody counted.
    """

    rows: float
    pairs: float
    values: float
    wholly: float
    share: float
    occurrences: float | None


@dataclass(frozen=True, kw_only=True)
class FeatureAdvice:
    """Of one feature.

    Args:
        cardinality: what it has.
        shared, split: what is expected of it in the shared table, and in a table of its own that is as large a part of
            the rows as its values are of all values.
        exact: whether it deserves a block of its own rows.
        exact_rows: what that would take: a row for each value and one for all others, for each lookup.
    """

    cardinality: Cardinality
    shared: Collisions
    split: Collisions
    exact: bool
    exact_rows: int


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """What a table of some rows does to a vocabulary.

    Args:
        rows: M, hashed ones.
        target: the share of values that may share a row.
        approximate_shared, approximate_split: pairs, as the sum of N_f^2 / 2M and as N^2 / 2M.
        shared, split: the expected numbers.
        shared_rows, split_rows: what reaches the target; ``None`` beyond 2^48.
        after_exact: shared, of the features that deserve no exact block, in the rows that those leave.
        features: each.
    """

    rows: int
    target: float
    approximate_shared: float
    approximate_split: float
    shared: Collisions
    split: Collisions
    shared_rows: int | None
    split_rows: int | None
    after_exact: Collisions
    features: tuple[FeatureAdvice, ...]


def cardinalities(vocabulary: Mapping[str, Any], lookups: Mapping[str, int] | None = None) -> list[Cardinality]:
    """Of a ``Vocabulary``'s kept values, and the pruned one where any value is looked up as that.

    Args:
        lookups: of features; one where not given.
    """
    return [
        Cardinality(
            name=name,
            values=int(of.kept.sum()) + bool(of.unseen == "prune" or of.pruned.any()),
            occurrences=int(of.count.sum()),
            lookups=(lookups or {}).get(name, 1),
        )
        for name, of in vocabulary.items()
    ]


def shared(features: Sequence[Cardinality], rows: float, *, num_tables: int = 1) -> Collisions:
    """In one table of all features.

    Args:
        rows: in all sub-tables together.

    >>> one = shared([Cardinality(name="user", values=2)], 4)
    >>> one.pairs, round(one.values, 9)
    (0.25, 0.5)
    """
    return _sum(features, rows, [rows / num_tables] * len(features))


def split(features: Sequence[Cardinality], rows: float) -> Collisions:
    """In a table for each feature, whose rows are in proportion to its values (not rounded; 1 at least)."""
    total = sum(of.values for of in features)
    return _sum(features, rows, [max(1.0, rows * of.values / total) if total else 1.0 for of in features])


def rows_for(
    features: Sequence[Cardinality],
    target: float,
    how: Callable[[Sequence[Cardinality], float], Collisions] = shared,
) -> int | None:
    """The fewest rows in which at most this share of the values shares its row; ``None`` beyond 2^48.

    >>> rows_for([Cardinality(name="user", values=1_000_000)], 0.1)
    9491213
    """
    if not 0 < target <= 1:
        raise ConfigError("target", expected="a share above 0, at most 1", found=str(target))
    low, high = 0, 1  # the target is missed in low rows, reached in high
    while how(features, high).share > target:
        low, high = high, high * 2
        if high > _MOST_ROWS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if how(features, middle).share > target else (low, middle)
    return high


def deserving(features: Sequence[Cardinality], rows: int, share: float = EXACT_SHARE) -> tuple[str, ...]:
    """Features that deserve exact blocks: the smallest, as long as their blocks together are this share of the rows."""
    left, out = rows * share, []
    for of in sorted(features, key=_block):
        left -= _block(of)
        if left < 0:
            break
        out.append(of.name)
    return tuple(out)


def advise(
    features: Sequence[Cardinality],
    *,
    rows: int | None = None,
    target: float = 0.1,
    num_tables: int = 1,
) -> Sizing:
    """All of it.

    Args:
        rows: of the table; those that reach the target when not given.
        target: the share of values that may share a row.

    Raises:
        ConfigError: no features, no rows, or a target that is none.
    """
    if not features or (rows is not None and rows < 1):
        raise ConfigError("collisions", expected="features, and 1 row or more", found=f"{len(features)}, {rows}")

    def tables(of: Sequence[Cardinality], m: float) -> Collisions:
        return shared(of, m, num_tables=num_tables)

    needed = rows_for(features, target, tables)
    rows = rows or needed or _MOST_ROWS
    exact = deserving(features, rows)
    rest = [of for of in features if of.name not in exact]
    total = sum(of.values for of in features)
    left = rows - sum(_block(of) for of in features if of.name in exact)
    return Sizing(
        rows=rows,
        target=target,
        approximate_shared=sum(of.values**2 for of in features) / 2 / (rows / num_tables),
        approximate_split=total**2 / 2 / rows,
        shared=tables(features, rows),
        split=split(features, rows),
        shared_rows=needed,
        split_rows=rows_for(features, target, split),
        after_exact=tables(rest, left),
        features=tuple(
            FeatureAdvice(
                cardinality=of,
                shared=tables([of], rows),
                split=_sum([of], rows, [max(1.0, rows * of.values / total) if total else 1.0]),
                exact=of.name in exact,
                exact_rows=_block(of),
            )
            for of in features
        ),
    )


def plot(features: Sequence[Cardinality], sizing: Sizing, path: str | Path) -> None:
    """A picture of the share of values that share a row, by rows, shared and split.

    Raises:
        ConfigError: matplotlib isn't installed, or the file can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        do = "pip install 'embstore[graphs]'"
        raise ConfigError("--plot", expected="matplotlib", found=str(error), do=do) from error
    centre = math.log2(max(sizing.rows, 2))
    rows_R = np.unique(np.maximum(np.round(2 ** np.linspace(centre - 6, centre + 6, 97)), 1))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for how, label in ((shared, "one table"), (split, "a table for each feature")):
        axes.plot(rows_R, [how(features, float(rows)).share for rows in rows_R], label=label)
    axes.axvline(sizing.rows, color="grey", linestyle=":", label=f"{sizing.rows:,} rows")
    axes.axhline(sizing.target, color="grey", linestyle="--", label=f"{sizing.target:.0%} of values")
    axes.set(xscale="log", xlabel="rows", ylabel="values that share a row with one of their feature", ylim=(0, 1))
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--plot {path}", expected="a file that can be written, .png or .svg", found=str(error)
        ) from error


def _block(of: Cardinality) -> int:
    return (of.values + 1) * of.lookups


def _sum(features: Sequence[Cardinality], rows: float, tables: Sequence[float]) -> Collisions:
    pairs = values = wholly = seen = 0.0
    for of, own in zip(features, tables, strict=True):
        met = _any(of.values - 1, 1 / own)
        pairs += of.values * (of.values - 1) / 2 / own
        values += of.values * met
        wholly += of.values * _any(of.values - 1, own**-of.lookups)
        seen += of.occurrences * met
    total, occurrences = sum(of.values for of in features), sum(of.occurrences for of in features)
    return Collisions(
        rows=rows,
        pairs=pairs,
        values=values,
        wholly=wholly,
        share=values / total if total else 0.0,
        occurrences=seen / occurrences if occurrences else None,
    )


def _any(others: int, chance: float) -> float:
    """That one of so many others is met, each with this chance: 1 - (1 - chance)^others."""
    if others < 1:
        return 0.0
    return 1.0 if chance >= 1 else -math.expm1(others * math.log1p(-chance))
