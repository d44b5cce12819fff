"""How well logits predict clicks: AUC, GAUC, logloss, normalized entropy, calibration.

Every metric is exact (no binning of scores) and is taken over *tie blocks*: the rows sorted by score, equal scores
merged into one block that holds its positive and negative weight.

    score       -1.2  -1.2   0.3   0.9   0.9   0.9
    label         0     1     0     1     1     0
    block       [  1 pos 1 neg ][0, 1][ 2 pos 1 neg ]

Blocks don't know in which order the rows came, so neither do the metrics: without weights they are equal to the last
bit for any order of the rows; with weights, up to the rounding of the sums of weights.

Shape suffixes: N rows, B rows of one update, K tie blocks, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from embstore.errors import DataError

Values = ArrayLike | torch.Tensor


def auc(labels: Values, scores: Values, weight: Values | None = None) -> float:
    """Area under the ROC curve: the weighted share of (positive, negative) pairs ranked rightly, a tie counting half.

    Args:
        labels: ``[N]``, 0 or 1.
        scores: ``[N]``, finite; any increasing function of the probability, compared as given (float32 stays float32).
        weight: ``[N]``, non-negative; 1 for each row when not given.

    Returns:
        A number in [0, 1], NaN when one class has no weight.

    Raises:
        DataError: a label that is not 0 or 1, a score that is not finite, a negative weight, unequal lengths.
    """
    return _tie_blocks(labels, scores, weight).auc()


def gauc(labels: Values, scores: Values, groups: Values, weight: Values | None = None) -> float:
    """Group AUC: the AUC within each group (usually a user), averaged by the groups' impressions (their weight).

    A group with one class only has no AUC and is left out, of the impressions too; NaN when all are. ``groups`` is
    ``[N]`` of any dtype that sorts; other arguments and errors as in ``auc``.

    Source: Zhou et al. 2018, Deep Interest Network, section 6.3, the user-weighted AUC.
    """
    blocks = _tie_blocks(labels, scores, weight, groups)
    starts_G = _starts(blocks.group)
    below_K = blocks.negatives_below()
    below_K -= np.repeat(below_K[starts_G], np.diff(starts_G, append=len(below_K)))  # only those of the same group
    positive_G = np.add.reduceat(blocks.positive, starts_G)
    negative_G = np.add.reduceat(blocks.negative, starts_G)
    doubled_G = np.add.reduceat(blocks.positive * (2 * below_K + blocks.negative), starts_G)
    both_G = (positive_G > 0) & (negative_G > 0)
    positive_G, negative_G = positive_G[both_G], negative_G[both_G]
    auc_G = doubled_G[both_G] / (2.0 * positive_G * negative_G)
    impressions_G = positive_G + negative_G
    return _ratio(np.sum(impressions_G * auc_G), impressions_G.sum())


def logloss(labels: Values, logits: Values, weight: Values | None = None) -> float:
    """Mean binary cross-entropy in nats, from logits, so that no probability is rounded to 0 or 1.

    A row costs softplus(-z) for a positive and softplus(z) for a negative, with softplus(z) = max(z, 0) +
    log1p(exp(-abs(z))) in float64. Arguments and errors as in ``auc``; NaN without rows.
    """
    return _tie_blocks(labels, logits, weight).logloss()


def normalized_entropy(labels: Values, logits: Values, weight: Values | None = None) -> float:
    """Logloss over that of always predicting the observed positive rate; below 1 is better than knowing the rate.

    Arguments and errors as in ``auc``; NaN when one class has no weight.

    Source: He et al. 2014, Practical Lessons from Predicting Clicks on Ads at Facebook, eq. 1.
    """
    return _tie_blocks(labels, logits, weight).normalized_entropy()


def calibration_ratio(labels: Values, logits: Values, weight: Values | None = None) -> float:
    """Mean predicted probability over the observed positive rate; 1 is calibrated, above 1 predicts too many.

    Arguments and errors as in ``auc``; NaN without positives.

    Source: He et al. 2014, section 2, "calibration".
    """
    return _tie_blocks(labels, logits, weight).calibration_ratio()


def expected_calibration_error(labels: Values, logits: Values, weight: Values | None = None, bins: int = 20) -> float:
    """Mean gap between predicted probability and observed rate over bins of equal weight (equal mass).

    Rows sorted by logit are cut into ``bins`` quantiles; the gap of a bin is the absolute difference of its mean
    probability and its positive rate, averaged by bin weight. Equal logits always share a bin, the one that holds the
    middle of their weight, so the value does not depend on the order of the rows. With few rows a bin it overestimates.
    Other arguments and errors as in ``auc``; NaN without rows.

    Source: Naeini et al. 2015, Obtaining Well Calibrated Probabilities Using Bayesian Binning (ECE), with the
    equal-mass bins of Nixon et al. 2019, Measuring Calibration in Deep Learning.
    """
    return _tie_blocks(labels, logits, weight).calibration_error(bins)


class Evaluation:
    """Collects logits and labels batch by batch, then computes every metric over all of them, exactly.

    Held: 5 bytes a row, 4 more with weights, 8 more with groups. How the rows were cut into updates changes nothing.

    >>> evaluation = Evaluation()
    >>> evaluation.update([2.0, -1.0], [1, 0])
    >>> evaluation.update([0.5], [0])
    >>> evaluation.result()["auc"]
    1.0
    """

    def __init__(self) -> None:
        self._chunks: list[_Rows] = []

    def __len__(self) -> int:
        return sum(len(chunk.logits) for chunk in self._chunks)

    def update(
        self, logits_B: Values, labels_B: Values, weight_B: Values | None = None, groups_B: Values | None = None
    ) -> None:
        """Add rows; the values are copied to the host.

        Args:
            logits_B: ``[B]``, any float dtype, on any device; kept as float32.
            labels_B: ``[B]``, 0 or 1.
            weight_B: ``[B]``, non-negative; rows added without weigh 1.
            groups_B: ``[B]`` integers; given at every update or at none.

        Raises:
            DataError: logits that are not finite (training diverged), a label that is not 0 or 1, a negative weight,
                unequal lengths, or groups at some updates only. Nothing is added.
        """
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is found so
            logits = _host(logits_B).astype(np.float32)
        bad = logits.size - np.count_nonzero(np.isfinite(logits))
        if bad:
            raise DataError(
                f"training diverged: {bad} of {logits.size} logits are not finite",
                expected="finite logits",
                found=f"{np.isnan(logits).sum()} NaN and {np.isinf(logits).sum()} infinite",
                do="go back to the last checkpoint and lower the learning rate",
            )
        labels, _, weight, groups = _checked(labels_B, logits, weight_B, groups_B)
        weights = np.empty(0, np.float32) if weight is None else weight.astype(np.float32)
        groups = np.empty(0, np.int64) if groups is None else groups.astype(np.int64)
        self._append(_Rows(logits, labels.astype(np.uint8), weights, groups))

    def merge(self, other: Evaluation) -> None:
        """Add the rows of another evaluation; its arrays are shared, not copied.

        Raises:
            DataError: one has groups and the other has rows without.
        """
        for chunk in list(other._chunks):
            self._append(chunk)

    def result(self) -> dict[str, float]:
        """Every metric over the rows so far.

        Returns:
            ``auc, logloss, normalized_entropy, calibration_ratio, ece, rows, positives_rate`` (weighted, as the others)
            and ``gauc`` when there are groups. NaN where a metric is undefined, as its function says.
        """
        rows = self._rows()
        weight = rows.weights if len(rows.weights) else None
        blocks = _tie_blocks(rows.labels, rows.logits, weight)
        values = {
            "auc": blocks.auc(),
            "logloss": blocks.logloss(),
            "normalized_entropy": blocks.normalized_entropy(),
            "calibration_ratio": blocks.calibration_ratio(),
            "ece": blocks.calibration_error(),
            "rows": float(len(rows.logits)),
            "positives_rate": _ratio(blocks.positive.sum(), blocks.total.sum()),
        }
        if len(rows.groups):
            values["gauc"] = gauc(rows.labels, rows.logits, rows.groups, weight)
        return values

    def state_arrays(self) -> dict[str, NDArray]:
        """All rows, to send to another process.

        Returns:
            ``{logits: float32, labels: uint8, weights: float32, groups: int64}``, ``[N]``; the last two may be ``[0]``.
        """
        return self._rows()._asdict()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Values]) -> Evaluation:
        """The evaluation that ``state_arrays`` described; errors as in ``update``."""
        evaluation = cls()
        logits, labels, weights, groups = (_host(arrays[name]) for name in _Rows._fields)
        evaluation.update(logits, labels, weights if len(weights) else None, groups if len(groups) else None)
        return evaluation

    def _append(self, rows: _Rows) -> None:
        if not len(rows.logits):
            return
        if self._chunks and bool(len(self._chunks[0].groups)) != bool(len(rows.groups)):
            raise DataError("groups", expected="groups for every row or for none", found="rows with and without")
        self._chunks.append(rows)

    def _rows(self) -> _Rows:
        chunks = [_NO_ROWS, *self._chunks]
        if any(len(chunk.weights) for chunk in chunks):
            chunks = [chunk.weighted() for chunk in chunks]
        rows = _Rows(*map(np.concatenate, zip(*chunks, strict=True)))
        self._chunks = [rows] if len(rows.logits) else []  # so that the next call has one chunk to copy
        return rows


class _Rows(NamedTuple):
    logits: NDArray
    labels: NDArray
    weights: NDArray  # empty: every row weighs 1
    groups: NDArray  # empty: no groups

    def weighted(self) -> _Rows:
        return self if len(self.weights) else self._replace(weights=np.ones(len(self.logits), np.float32))


_NO_ROWS = _Rows(np.empty(0, np.float32), np.empty(0, np.uint8), np.empty(0, np.float32), np.empty(0, np.int64))


class _Blocks(NamedTuple):
    score: NDArray
    positive: NDArray  # int64 counts, or float64 weights
    negative: NDArray
    group: NDArray  # the blocks lie by group, then by score; the score itself when there are no groups

    @property
    def total(self) -> NDArray:
        return self.positive + self.negative

    def negatives_below(self) -> NDArray:
        below_K = np.zeros_like(self.negative)
        np.cumsum(self.negative[:-1], out=below_K[1:])
        return below_K

    def auc(self) -> float:
        doubled = np.sum(self.positive * (2 * self.negatives_below() + self.negative))
        return _ratio(doubled, 2.0 * float(self.positive.sum()) * float(self.negative.sum()))

    def logloss(self) -> float:
        z_K = self.score.astype(np.float64)
        tail_K = np.log1p(np.exp(-np.abs(z_K)))
        cost_K = self.positive * (np.maximum(-z_K, 0) + tail_K) + self.negative * (np.maximum(z_K, 0) + tail_K)
        return _ratio(cost_K.sum(), self.total.sum())

    def normalized_entropy(self) -> float:
        rate = _ratio(self.positive.sum(), self.total.sum())
        if not 0 < rate < 1:
            return float("nan")
        return self.logloss() / float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))

    def calibration_ratio(self) -> float:
        return _ratio(np.sum(self.total * _sigmoid(self.score)), self.positive.sum())

    def calibration_error(self, bins: int = 20) -> float:
        mass = self.total.sum()
        # Twice the middle of each block's weight, so that counts stay whole numbers.
        middle_K = 2 * np.cumsum(self.total) - self.total
        bin_K = np.minimum(middle_K * bins // (2 * max(mass, 1e-300)), bins - 1).astype(np.int64)
        gap_K = self.total * _sigmoid(self.score) - self.positive
        return _ratio(np.abs(np.bincount(bin_K, weights=gap_K)).sum(), mass)


def _tie_blocks(labels: Values, scores: Values, weight: Values | None, groups: Values | None = None) -> _Blocks:
    labels_N, scores_N, weight_N, groups_N = _checked(labels, scores, weight, groups)
    order_N = np.argsort(scores_N)
    keys = [scores_N]
    if groups_N is not None:
        # Twice as fast as lexsort: only the second sort needs to be stable.
        order_N = order_N[np.argsort(groups_N[order_N], kind="stable")]
        keys.append(groups_N)
    starts_K = _starts(*(key_N[order_N] for key_N in keys))
    labels_N = labels_N[order_N]
    if weight_N is None:
        positive_K = np.add.reduceat(labels_N, starts_K, dtype=np.int64)
        negative_K = np.diff(starts_K, append=len(labels_N)) - positive_K
    else:
        weight_N = weight_N[order_N]
        positive_K = np.add.reduceat(weight_N * labels_N, starts_K)
        negative_K = np.add.reduceat(weight_N * ~labels_N, starts_K)
    first_K = order_N[starts_K]
    return _Blocks(scores_N[first_K], positive_K, negative_K, keys[-1][first_K])


def _starts(*sorted_N: NDArray) -> NDArray:
    """Where runs of equal values start, equal in all the arrays."""
    first_N = np.zeros(len(sorted_N[0]), dtype=bool)
    first_N[:1] = True
    for values_N in sorted_N:
        first_N[1:] |= values_N[1:] != values_N[:-1]
    return np.flatnonzero(first_N)


def _sigmoid(logits: NDArray) -> NDArray:
    z = logits.astype(np.float64)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def _ratio(value: float, by: float) -> float:
    return float(value) / float(by) if by > 0 else float("nan")


def _checked(
    labels: Values, scores: Values, weight: Values | None, groups: Values | None
) -> tuple[NDArray, NDArray, NDArray | None, NDArray | None]:
    """The arguments as arrays of one length: labels bool, scores as given, weight float64, groups as given."""
    labels_N, scores_N = _host(labels), _host(scores)
    weight_N = None if weight is None else _host(weight).astype(np.float64)
    groups_N = None if groups is None else _host(groups)
    for name, values in (("scores", scores_N), ("labels", labels_N), ("weight", weight_N), ("groups", groups_N)):
        if values is not None and values.shape != (scores_N.size,):
            raise DataError(name, expected=f"one dimension of {scores_N.size} rows", found=f"shape {values.shape}")
    _expect("scores", scores_N, np.isfinite(scores_N), "finite numbers")
    positive_N = labels_N == 1
    _expect("labels", labels_N, positive_N | (labels_N == 0), "0 or 1")
    if weight_N is not None:
        _expect("weights", weight_N, (weight_N >= 0) & np.isfinite(weight_N), "finite numbers, 0 or more")
    return positive_N, scores_N, weight_N, groups_N


def _expect(name: str, values: NDArray, good: NDArray, expected: str) -> None:
    if not good.all():
        bad = values[~good]
        found = f"{bad.size} of {values.size} other, the first being {bad[0]}"
        raise DataError(name, expected=expected, found=found, do="drop or correct these rows")


def _host(values: Values) -> NDArray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def finite(values: Any) -> Any:
    """Nested metrics with ``None`` for what is not finite, as JSON needs (an AUC without positives, say)."""
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    return None if isinstance(values, float) and not math.isfinite(values) else values
