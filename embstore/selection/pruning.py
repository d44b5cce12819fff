"""Which values of a vocabulary are kept: the best by their scores or counts, within a budget of rows.

    vocabulary   user: ann 12, bob 3, eve 1     item: 7 -> 9, 8 -> 2
    keep=0.5     of 5 rows 2: ann, 7            bob, eve and 8 are looked up as their features' pruned token

Of equal scores the more frequent value is kept, of those the first in the vocabulary's order; of several features the
first. Values that were dropped before stay so. Suffixes: V values of a feature, C candidates of several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, DataError, SchemaError, nearest

if TYPE_CHECKING:
    from embstore.schema import Schema
    from embstore.vocabulary import Vocabulary

ValueScores = Mapping[str, NDArray[np.float64]]
"""By feature, aligned with its values; a higher score is kept first."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What pruning has made of a feature, or of all that were not dropped.

    Args:
        rows, kept_rows: a row for each lookup of each value, before and after.
        values, kept: how many values were and are kept.
        occurrences: share of what was counted in the log that is of values that are kept; ``None`` if nobody counted.
        sharing: how many values have a row together with another: those that one stands in for, and that one.
    """

    rows: int
    kept_rows: int
    values: int
    kept: int
    occurrences: float | None
    sharing: int = 0


def prune(
    vocabulary: Vocabulary,
    scores: ValueScores | None = None,
    *,
    keep: float | None = None,
    rows: int | None = None,
    threshold: float | None = None,
    per_feature: bool = False,
    at_least: int = 1,
    lookups: Mapping[str, int] | None = None,
    drop_fields: Sequence[str] = (),
) -> Vocabulary:
    """The same values with fewer of them kept.

    Args:
        scores: of features' values; features without go by their counts, as all do when not given. Counts and other
            scores can't be compared: a budget over all features needs either for all.
        keep: share of the rows to keep.
        rows: number of rows to keep.
        threshold: keep values with this score or a higher one; with a budget, both must hold.
        per_feature: the budget is each feature's, not that of all together.
        at_least: so many values of a feature, the best, are kept in any case, as far as it has them.
        lookups: of features: a value takes a row for each; one where not given.
        drop_fields: features to leave out altogether.

    Raises:
        ConfigError: no budget, or one that is none.
        SchemaError: scores of a feature that is not there, a field to drop that is not, or none would be left.
        DataError: scores that are not one finite number for each value.

    >>> from embstore.vocabulary import FeatureValues, Vocabulary
    >>> user = FeatureValues.of("user", ["ann", "bob", "eve"], count=[12, 3, 1])
    >>> item = FeatureValues.of("item", [7, 8], count=[9, 2])
    >>> pruned = prune(Vocabulary({"user": user, "item": item}), keep=0.5)
    >>> pruned["user"].kept.tolist(), pruned["item"].kept.tolist()
    ([True, False, False], [True, False])
    """
    from embstore.vocabulary import Vocabulary

    check_budget(keep, rows, threshold, at_least)
    for name in (*drop_fields, *(scores or ())):
        if name not in vocabulary:
            raise SchemaError(f"no feature {name!r} in the vocabulary", do=nearest(name, vocabulary))
    names = [name for name in vocabulary if name not in drop_fields]
    if not names:
        raise SchemaError("features", expected="one that is not dropped", found="none")
    if scores is not None and not per_feature and (keep is not None or rows is not None):
        without = [name for name in names if name not in scores]
        if without:
            expected = "scores of every feature, or a budget per feature"
            raise SchemaError("a budget over all features", expected=expected, found=f"none of {without[0]!r}")
    score = {name: _scores(vocabulary, name, scores) for name in names}
    cost = {name: (lookups or {}).get(name, 1) for name in names}
    kept: dict[str, NDArray[np.bool_]] = {}
    for group in [[name] for name in names] if per_feature else [names]:
        there = sum(int(vocabulary[name].kept.sum()) * cost[name] for name in group)
        budget = float(there) if rows is None else float(rows)
        if keep is not None:
            budget = math.floor(keep * there + 1e-9)  # 0.7 of 10 rows are 7
        kept |= _best(vocabulary, {name: score[name] for name in group}, cost, budget, threshold, at_least)
    return Vocabulary({name: vocabulary[name].keep(kept[name]) for name in names})


def best_fields(scores: Mapping[str, float], *, keep: int | None = None, threshold: float | None = None) -> list[str]:
    """Names of the fields to keep, best first: so many, of equal ones the first, and those at the threshold or above.

    Raises:
        ConfigError: neither is given, or fewer than one field is to be kept.
        DataError: a score that is not a number.

    >>> best_fields({"user": 0.9, "hour": 0.1, "item": 0.9}, keep=2)
    ['user', 'item']
    """
    if (keep is None and threshold is None) or (keep is not None and keep < 1):
        raise ConfigError("fields", expected="a number to keep, 1 or more, or a threshold", found=str(keep))
    for name, score in scores.items():
        if math.isnan(score):
            raise DataError(f"score of field {name!r}", expected="a number", found="NaN")
    order = sorted(scores, key=lambda name: -scores[name])[:keep]
    return [name for name in order if threshold is None or scores[name] >= threshold]


def summaries(
    before: Vocabulary, after: Vocabulary, lookups: Mapping[str, int] | None = None
) -> tuple[dict[str, Summary], Summary]:
    """What became of each feature that was not dropped, and of all of these."""
    each = {name: _summary(before, after, [name], lookups or {}) for name in after}
    return each, _summary(before, after, list(after), lookups or {})


def without_fields(schema: Schema, dropped: Sequence[str]) -> Schema:
    """A schema without some of its features and dense columns.

    Raises:
        SchemaError: one that it doesn't have, or nothing would be left.
    """
    known = [*(of.name for of in schema.features), *(of.name for of in schema.dense)]
    for name in dropped:
        if name not in known:
            raise SchemaError(f"no field {name!r} in the schema", do=nearest(name, known))
    if set(known) <= set(dropped):
        raise SchemaError("schema", expected="a field that is not dropped", found="none")
    return replace(
        schema,
        features=tuple(of for of in schema.features if of.name not in dropped),
        dense=tuple(of for of in schema.dense if of.name not in dropped),
    )


def check_budget(keep: float | None, rows: int | None, threshold: float | None, at_least: int) -> None:
    """Refuse a budget that is none.

    Raises:
        ConfigError: saying so.
    """
    if keep is None and rows is None and threshold is None:
        raise ConfigError("prune", expected="keep (a share), rows or a threshold", found="none of them")
    if keep is not None and rows is not None:
        raise ConfigError("prune", expected="keep (a share) or rows", found="both")
    if keep is not None and not 0 <= keep <= 1:
        raise ConfigError("prune: keep", expected="a share, 0 to 1", found=str(keep))
    if rows is not None and rows < 0:
        raise ConfigError("prune: rows", expected="0 or more", found=str(rows))
    if threshold is not None and math.isnan(threshold):
        raise ConfigError("prune: threshold", expected="a number", found="NaN")
    if at_least < 0:
        raise ConfigError("prune: at_least", expected="0 or more", found=str(at_least))


def _scores(vocabulary: Vocabulary, name: str, scores: ValueScores | None) -> NDArray[np.float64]:
    of = vocabulary[name]
    if scores is None or name not in scores:
        return of.count.astype(np.float64)
    score_V = np.asarray(scores[name])
    if score_V.dtype != np.float64 or score_V.shape != (len(of),):
        found = f"{score_V.dtype} {list(score_V.shape)}"
        raise DataError(f"scores of {name!r}", expected=f"float64 [{len(of)}]", found=found)
    if not np.isfinite(score_V[of.kept]).all():
        raise DataError(f"scores of {name!r}", expected="finite numbers", found="others")
    return score_V


def _best(
    vocabulary: Vocabulary,
    score: Mapping[str, NDArray[np.float64]],
    cost: Mapping[str, int],
    budget: float,
    threshold: float | None,
    at_least: int,
) -> dict[str, NDArray[np.bool_]]:
    """Flags of some features' values: first each one's few, then the best of all of them while the budget lasts."""
    kept = {name: np.zeros(len(vocabulary[name]), np.bool_) for name in score}
    parts: list[tuple[NDArray[Any], ...]] = []
    for number, (name, score_V) in enumerate(score.items()):
        count_V, place_C = vocabulary[name].count, np.flatnonzero(vocabulary[name].kept)
        place_C = place_C[np.lexsort((place_C, -count_V[place_C], -score_V[place_C]))]
        kept[name][place_C[:at_least]] = True
        budget -= cost[name] * min(at_least, len(place_C))
        place_C = place_C[at_least:]
        if threshold is not None:
            place_C = place_C[score_V[place_C] >= threshold]
        size = len(place_C)
        parts.append((score_V[place_C], count_V[place_C], np.full(size, number), place_C, np.full(size, cost[name])))
    score_C, count_C, feature_C, place_C, cost_C = (np.concatenate(of) for of in zip(*parts, strict=True))
    order_C = np.lexsort((place_C, feature_C, -count_C, -score_C))
    taken_C = order_C[np.cumsum(cost_C[order_C]) <= budget]
    for number, name in enumerate(score):
        kept[name][place_C[taken_C[feature_C[taken_C] == number]]] = True
    return kept


def _summary(before: Vocabulary, after: Vocabulary, names: Sequence[str], lookups: Mapping[str, int]) -> Summary:
    cost = {name: lookups.get(name, 1) for name in names}
    were, are = ({name: int(of[name].kept.sum()) for name in names} for of in (before, after))
    counted = sum(int(after[name].count.sum()) for name in names)
    stay = sum(int(after[name].count[after[name].kept].sum()) for name in names)
    return Summary(
        rows=sum(were[name] * cost[name] for name in names),
        kept_rows=sum(are[name] * cost[name] for name in names),
        values=sum(were.values()),
        kept=sum(are.values()),
        occurrences=stay / counted if counted else None,
        sharing=sum(_sharing(after[name].stood_in) for name in names),
    )


def _sharing(stand_in_V: NDArray[np.int64]) -> int:
    there = stand_in_V[stand_in_V >= 0]
    return len(there) + len(np.unique(there))
