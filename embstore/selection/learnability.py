"""The learnability of a label by a batch's columns, and its gradient by their scores, never forming a matrix of rows.

How much of a label's variance a linear model of standardised columns X explains can be estimated from far fewer rows
than a model needs (Kong & Valiant 2018, "Estimating learnability in the sublinear data regime"), by products over
rows in ascending order. Sheth & Fusi 2020 ("Differentiable feature selection by discrete relaxation", section 3) weigh
each column by a score s and take the estimate's gradient:

    T = strict upper triangle of X diag(s) X'          z(s) = sum_k a_k y' T^k y,   a_k = c_k / C(N, k + 1)

With Sigma the covariance of sqrt(s) X and b that with y, y' T^k y / C(N, k + 1) is b' Sigma^(k-1) b in expectation, so
z is b' p(Sigma) b with x p(x) close to 1 as ``COEFFICIENTS`` make it, and so close to b' Sigma^-1 b: the variance
explained.

**The product.** (T r)_p = sum_j s_j x_pj sum_{q > p} x_qj r_q: a running sum for each column, rows read from the last
to the first. (T r)_p needs r of later rows only, so that one pass makes r_1 = T y, ..., r_K = T^K y together. A column
is (B_j - mu_j) / scale_j with B sparse. With t_j = s_j / scale_j^2, u_p = sum_j B_pj t_j mu_j, c = sum_j t_j mu_j^2,

    (T r)_p = sum_j t_j B_pj S_j  +  c R - u_p R - V        S_j, R, V: sums of B_qj r_q, r_q, u_q r_q over q > p

**The gradient.** dT/ds_j is the strict upper triangle of x_j x_j', and with l_k = a_k y + T' l_(k+1), l_K = a_K y (by
Horner's rule; T' needs earlier rows only: a second pass, from the first row to the last)

    dz/ds_j = sum_k l_k' (dT/ds_j) r_(k-1) = sum_k sum_{p < q} l_k(p) x_pj x_qj r_(k-1)(q)

The sum over p is what T' l_k keeps anyway for column j. With B for x it is the *pairs* of the column; the means add

    - mu_j sum_q B_qj h_q + mu_j^2 H,      h_q = sum_k [l_k(q) sum_{p > q} r_(k-1)(p) + r_(k-1)(q) sum_{p < q} l_k(p)]
                                           H = sum_k sum_{p < q} l_k(p) r_(k-1)(q)

of which only H reaches columns that a batch doesn't have. Both passes take O(K x entries).

Suffixes: N rows of the batch, E entries, D sparse columns, U those that the batch has, C dense columns, K orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError
from embstore.hashing import compiled
from embstore.selection.batches import SparseBatch

COEFFICIENTS: dict[int, tuple[float, ...]] = {
    1: (0.6035533905932737,),
    2: (1.5270499973212355, -0.3484172023671536),
    3: (2.902535809086495, -1.8721586940065318, 0.0),
    4: (4.634437756448889, -5.199319462754689, 0.0, 1.503892708839753),
    5: (6.9294244114988075, -14.121922663550272, 9.447237864936243, 0.0, -1.210855447022313),
    6: (9.54351946327965, -28.088458516995082, 31.833147928477093, -11.17357019591028, -1.1468309473942677, 0.0),
    7: (
        *(12.544609067652857, -49.645344714339515, 79.77956533699405, -46.71565261872549),
        *(0.0, 0.0, 5.028430732976888),
    ),
    8: (
        *(16.034299573942622, -84.27336368159763, 196.81499653242346, -215.2989140336177),
        *(92.60149554205785, 0.0, 0.0, -4.85907200798061),
    ),
    9: (
        *(19.860021733215262, -130.712120296877, 390.6901585146315, -569.5483266563267, 354.3221594123773),
        *(0.0, -73.67950149184257, 0.0, 10.05186844345736),
    ),
    10: (
        *(24.10963632316911, -194.90849828788672, 733.9824876527109, -1427.8483585885003, 1414.7184291321778),
        *(-581.1727054295444, 0.0, 0.0, 30.99688793800582, 1.1351251528786372),
    ),
    11: (
        *(28.75392605827118, -279.2409432649265, 1280.5383392700633, -3104.6478693861955, 3990.8141246538053),
        *(-2300.394304706309, 0.0, 427.3630501575334, 0.0, 0.0, -42.17540169415876),
    ),
    12: (
        *(33.851690406147846, -391.43032496821854, 2185.051952469203, -6716.656013433815, 11880.787648120067),
        *(-11741.505959662492, 5385.955425907416, 0.0, -674.4678029727093, 0.0, 0.0, 39.40407815654496),
    ),
}
"""By order K, c_1 .. c_K: of all with |x - sum_k c_k x^(k+1)| <= 2 E_K on [0, 1], the one of least sum_k 2^k |c_k|.

E_K is what the best of all can do (1.207 x^2, off by 0.207, for K = 1). Small coefficients are worth twice its error:
the variance of y' T^k y grows with k. It was computed here; the table of the authors' published code (in NNI's
``FeatureGradientSelector``) agrees to its grid's width, in the fourth to sixth digit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """What a batch's gradient is taken at.

    Args:
        weight_D: float64, s_j / (scale_j^2 of the column x the spectral scale).
        mean_D: float64, the sparse columns' means.
        shift: sum of weight x mean^2.
        dense_weight_C, dense_mean_C, dense_scale_C: float64, of the dense columns; weights are s / the spectral scale.
        label_mean, label_scale: how labels are standardised.
        coefficients: c_1 .. c_K.
    """

    weight_D: NDArray[np.float64]
    mean_D: NDArray[np.float64]
    shift: float
    dense_weight_C: NDArray[np.float64]
    dense_mean_C: NDArray[np.float64]
    dense_scale_C: NDArray[np.float64]
    label_mean: float
    label_scale: float
    coefficients: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchGradient:
    """The learnability of one batch, and its gradient by the columns' weights.

    Args:
        rows: of the batch.
        learnability: z; its expectation is in 0 to 1, itself need not be.
        columns_U: int32, distinct sparse columns.
        gradient_U: float64, dz/dweight of these, but for ``common``.
        common: what mean^2 is multiplied by in dz/dweight of every sparse column.
        dense_C: float64, dz/dweight of the dense columns.
    """

    rows: int
    learnability: float
    columns_U: NDArray[np.int32]
    gradient_U: NDArray[np.float64]
    common: float
    dense_C: NDArray[np.float64]

    def by_column(self, mean_D: NDArray[np.float64]) -> NDArray[np.float64]:
        """dz/dweight of all sparse columns, float64 ``[D]``."""
        out_D = self.common * mean_D**2
        out_D[self.columns_U] += self.gradient_U
        return out_D


def batch_gradient(batch: SparseBatch, weights: Weights, place_D: NDArray[np.int32] | None = None) -> BatchGradient:
    """z and its gradient at ``weights``, of one batch: a pure function, in O(order x entries).

    Args:
        place_D: memory for work, all 0 before and after; made when not given, at some cost.

    A batch of fewer than k + 1 rows says nothing of y' T^k y; that term is left out.
    """
    rows, order = len(batch), len(weights.coefficients)
    a_K = np.array([c / comb(rows, k + 2) if rows > k + 1 else 0.0 for k, c in enumerate(weights.coefficients)])
    y_N = (batch.labels_N.astype(np.float64) - weights.label_mean) / weights.label_scale
    x_NC = standardised(batch.dense_NC, weights.dense_mean_C, weights.dense_scale_C)
    local_E, columns_U = distinct(
        batch.indices_E, np.zeros(len(weights.weight_D), np.int32) if place_D is None else place_D
    )
    weight_U, mean_U = weights.weight_D[columns_U], weights.mean_D[columns_U]
    products = np.empty((rows, order + 1))
    columns = (batch.indptr_N, local_E, weight_U, mean_U, weights.shift, x_NC, weights.dense_weight_C)
    _products(*columns, y_N, products)
    learnability = float(a_K @ (y_N @ products[:, 1:]))
    gradient_U, dense_C = np.zeros(len(columns_U)), np.zeros(x_NC.shape[1])
    common = _gradient(*columns, y_N, products, a_K, gradient_U, dense_C)
    return BatchGradient(
        rows=rows,
        learnability=learnability,
        columns_U=columns_U,
        gradient_U=gradient_U,
        common=common,
        dense_C=dense_C,
    )


def binary_loss(learnability: float, least: float = 1e-4) -> tuple[float, float]:
    """(1 - sqrt(z)) / 2 with z clipped to 0 .. 1, and its slope by z.

    What is left of the error of a linear classifier (Kong & Valiant, section 4). The slope goes on as at the ends of
    [least, 1] beyond them, so that an estimate that strays there doesn't stop the search.
    """
    slope = -0.25 / sqrt(min(max(learnability, least), 1.0))
    return 0.5 * (1.0 - sqrt(min(max(learnability, 0.0), 1.0))), slope


def coefficients(order: int) -> tuple[float, ...]:
    """c_1 .. c_order.

    Raises:
        ConfigError: an order other than 1 to 12.
    """
    if order not in COEFFICIENTS:
        raise ConfigError("order", expected="1 to 12", found=str(order))
    return COEFFICIENTS[order]


def standardised(
    dense_NC: NDArray[np.float32], mean_C: NDArray[np.float64], scale_C: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Dense columns, 0 where missing."""
    return np.nan_to_num((dense_NC - mean_C) / scale_C, nan=0.0)


def distinct(indices_E: NDArray[np.int32], place_D: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Each entry's place among the distinct columns, int32 ``[E]``, and those in order of appearance, int32 ``[U]``.

    Args:
        place_D: all 0 before and after.
    """
    local_E, columns_U = np.empty_like(indices_E), np.empty(min(len(indices_E), len(place_D)) + 1, np.int32)
    count = _number(indices_E, place_D, local_E, columns_U)
    place_D[columns_U[:count]] = 0
    return local_E, columns_U[:count]


@compiled(nogil=True)
def _number(indices_E, place_D, local_E, columns_U):  # type: ignore[no-untyped-def]
    count = 0
    for e in range(len(indices_E)):  # without a branch, which would be mistaken for a fifth of the entries
        column = indices_E[e]
        place = place_D[column]
        new = place == 0
        columns_U[count] = column
        count += new
        place = count if new else place
        place_D[column] = place
        local_E[e] = place - 1
    return count


@compiled(nogil=True)
def _products(indptr_N, local_E, weight_U, mean_U, shift, x_NC, weight_C, y_N, r_NK):  # type: ignore[no-untyped-def]
    """T^0 y .. T^K y into the columns of ``r_NK``."""
    order, width = r_NK.shape[1] - 1, x_NC.shape[1]
    sum_UK, dense_CK = np.zeros((len(weight_U), order)), np.zeros((width, order))
    rest_K, means_K, here_K = np.zeros(order), np.zeros(order), np.zeros(order)
    for p in range(len(y_N) - 1, -1, -1):
        begin, end = indptr_N[p], indptr_N[p + 1]
        mean, here_K[:] = 0.0, 0.0
        for e in range(begin, end):
            column = local_E[e]
            weight = weight_U[column]
            mean += weight * mean_U[column]
            for k in range(order):
                here_K[k] += weight * sum_UK[column, k]
        for c in range(width):
            weight = weight_C[c] * x_NC[p, c]
            for k in range(order):
                here_K[k] += weight * dense_CK[c, k]
        r_NK[p, 0] = y_N[p]
        for k in range(order):
            r_NK[p, k + 1] = here_K[k] + (shift - mean) * rest_K[k] - means_K[k]
            rest_K[k] += r_NK[p, k]
            means_K[k] += mean * r_NK[p, k]
        for e in range(begin, end):
            column = local_E[e]
            for k in range(order):
                sum_UK[column, k] += r_NK[p, k]
        for c in range(width):
            for k in range(order):
                dense_CK[c, k] += x_NC[p, c] * r_NK[p, k]


@compiled(nogil=True)
def _gradient(  # type: ignore[no-untyped-def]
    indptr_N, local_E, weight_U, mean_U, shift, x_NC, weight_C, y_N, r_NK, a_K, gradient_U, gradient_C
):
    """dz/dweight of the columns, added to ``gradient_U`` and ``gradient_C``; H is returned."""
    order, width = len(a_K), x_NC.shape[1]
    sum_UK, dense_CK = np.zeros((len(weight_U), order)), np.zeros((width, order))
    before_K, means_K = np.zeros(order), np.zeros(order)  # sums of l_(k+1) and of u l_(k+1), earlier rows
    here_K, left_K, after_K = np.zeros(order + 1), np.zeros(order), np.zeros(order)
    for q in range(len(y_N)):
        for k in range(order):
            after_K[k] += r_NK[q, k]
    common = 0.0
    for q in range(len(y_N)):
        begin, end = indptr_N[q], indptr_N[q + 1]
        mean, here_K[:] = 0.0, 0.0
        for e in range(begin, end):
            column = local_E[e]
            weight, pairs = weight_U[column], 0.0
            mean += weight * mean_U[column]
            for k in range(order):
                here_K[k] += weight * sum_UK[column, k]
                pairs += sum_UK[column, k] * r_NK[q, k]
            gradient_U[column] += pairs
        for c in range(width):
            weight, pairs = weight_C[c] * x_NC[q, c], 0.0
            for k in range(order):
                here_K[k] += weight * dense_CK[c, k]
                pairs += dense_CK[c, k] * r_NK[q, k]
            gradient_C[c] += pairs * x_NC[q, c]
        lonely = 0.0
        for k in range(order - 1):
            left_K[k] = a_K[k] * y_N[q] + here_K[k + 1] + (shift - mean) * before_K[k + 1] - means_K[k + 1]
        left_K[order - 1] = a_K[order - 1] * y_N[q]
        for k in range(order):
            after_K[k] -= r_NK[q, k]
            lonely += left_K[k] * after_K[k] + before_K[k] * r_NK[q, k]
            common += before_K[k] * r_NK[q, k]
        for k in range(order):
            before_K[k] += left_K[k]
            means_K[k] += mean * left_K[k]
        for e in range(begin, end):
            column = local_E[e]
            gradient_U[column] -= mean_U[column] * lonely
            for k in range(order):
                sum_UK[column, k] += left_K[k]
        for c in range(width):
            for k in range(order):
                dense_CK[c, k] += x_NC[q, c] * left_K[k]
    return common
