"""Scores of vectors, and the best of them, the same bits however they are asked for.

N values, U distinct vectors in the order in which they first occur, D numbers each, Q queries, K neighbours, B vectors
of a tile. A score is a sum in float64 from the first number to the last, rounded to float32 once; so it depends on
nothing but the two vectors, and equal vectors tie exactly.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embstore.hashing import compiled

Metric = Literal["cosine", "dot", "l2"]
_TILE = 4096
_TILE_SCORES = 1 << 20  # float64, and as many int64 twice: about 24 MiB


def best(
    queries_QD: NDArray[np.float64], vectors_UD: NDArray[np.float32], k: int, metric: Metric
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` best vectors of each query by exhaustive search, best first, of equals the first first.

    Args:
        k: from 1 to U.

    Returns:
        Which vectors ``[Q, k]``, and their scores.
    """
    tile = max(_TILE, k)
    rows = max(1, _TILE_SCORES // tile)
    keys_QK = np.empty((len(queries_QD), k), dtype=np.int64)
    for start in range(0, len(queries_QD), rows):
        some_QD = queries_QD[start : start + rows]
        kept_QK = np.empty((len(some_QD), 0), dtype=np.int64)
        for first in range(0, len(vectors_UD), tile):
            tile_DB = np.ascontiguousarray(vectors_UD[first : first + tile].T, dtype=np.float64)
            scores_QB = np.empty((len(some_QD), tile_DB.shape[1]))
            _tile_scores(some_QD, tile_DB, metric == "l2", scores_QB)
            index_B = np.arange(first, first + tile_DB.shape[1])
            all_QC = np.concatenate([kept_QK, _keys(_rounded(scores_QB, metric), index_B)], axis=1)
            cut = all_QC.shape[1] - k
            kept_QK = np.partition(all_QC, cut, axis=1)[:, cut:] if cut > 0 else all_QC
        keys_QK[start : start + rows] = kept_QK
    return _read(keys_QK, k)


def best_of(
    queries_QD: NDArray[np.float64],
    vectors_UD: NDArray[np.float32],
    candidates_QC: NDArray[np.int64],
    k: int,
    metric: Metric,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As ``best`` among each query's own candidates (-1 for none), of which at least one query has ``k``."""
    scores_QC = np.empty(candidates_QC.shape)
    _pair_scores(queries_QD, vectors_UD, candidates_QC, metric == "l2", scores_QC)
    keys_QC = _keys(_rounded(scores_QC, metric), candidates_QC)
    keys_QC[candidates_QC < 0] = np.iinfo(np.int64).min
    return _read(keys_QC, k)


@compiled(nogil=True)
def spread(
    index_QK: NDArray[np.int64],
    scores_QK: NDArray[np.float32],
    starts_U1: NDArray[np.int64],
    order_N: NDArray[np.int64],
    excluded_Q: NDArray[np.int64],
    positions_QR: NDArray[np.int64],
    out_QR: NDArray[np.float32],
) -> None:  # pragma: no cover - compiled
    """From distinct vectors, best first, to the values that have them; ties between values go by position.

    Args:
        starts_U1, order_N: vector u is that of the values ``order_N[starts_U1[u]:starts_U1[u + 1]]``, which ascend.
        excluded_Q: a position each query leaves out, or -1.
        positions_QR, out_QR: filled from the left; the rest is left as it is.
    """
    wanted = positions_QR.shape[1]
    for q in range(len(index_QK)):
        done, begin = 0, 0
        while begin < index_QK.shape[1] and index_QK[q, begin] >= 0 and done < wanted:
            most = wanted - done + 1  # one of them may be the excluded
            end, count = begin, 0
            while end == begin or (
                end < index_QK.shape[1] and index_QK[q, end] >= 0 and scores_QK[q, end] == scores_QK[q, begin]
            ):
                u = index_QK[q, end]
                count += min(most, starts_U1[u + 1] - starts_U1[u])
                end += 1
            tied = np.empty(count, dtype=np.int64)
            count = 0
            for i in range(begin, end):
                u = index_QK[q, i]
                for n in range(starts_U1[u], min(starts_U1[u] + most, starts_U1[u + 1])):
                    tied[count] = order_N[n]
                    count += 1
            if end > begin + 1:
                tied.sort()
            for position in tied:
                if position != excluded_Q[q] and done < wanted:
                    positions_QR[q, done], out_QR[q, done] = position, scores_QK[q, begin]
                    done += 1
            begin = end


def _rounded(scores: NDArray[np.float64], metric: Metric) -> NDArray[np.float32]:
    """As float32, without -0; a cosine of rounded vectors may pass 1 by a hair."""
    if metric == "cosine":
        scores = np.clip(scores, -1, 1)
    rounded: NDArray[np.float32] = scores.astype(np.float32) + np.float32(0)
    return rounded


def _keys(scores: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """One integer for a score and where it is: greater for a greater score, of equal ones for the lesser index."""
    bits = scores.view(np.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats ascend as their bits descend
    keys: NDArray[np.int64] = (ordered.astype(np.int64) << 32) | (0xFFFFFFFF - index)
    return keys


def _read(keys_QC: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` greatest keys of each row, taken apart; -1 and -inf for those of no candidate."""
    keys_QK = np.sort(keys_QC, axis=1)[:, ::-1][:, :k]
    ordered = (keys_QK >> 32).astype(np.int32)
    scores = np.ascontiguousarray(ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(np.float32)
    index = 0xFFFFFFFF - (keys_QK & 0xFFFFFFFF)
    none = keys_QK == np.iinfo(np.int64).min
    index[none], scores[none] = -1, -np.inf
    return index, scores


@compiled(nogil=True)
def _tile_scores(
    queries_QD: NDArray[np.float64], tile_DB: NDArray[np.float64], squared: bool, out_QB: NDArray[np.float64]
) -> None:  # pragma: no cover - compiled
    for q in range(len(queries_QD)):
        out_QB[q] = 0.0
        for d in range(len(tile_DB)):
            x = queries_QD[q, d]
            if squared:
                for b in range(tile_DB.shape[1]):
                    apart = x - tile_DB[d, b]
                    out_QB[q, b] -= apart * apart
            else:
                for b in range(tile_DB.shape[1]):
                    out_QB[q, b] += x * tile_DB[d, b]


@compiled(nogil=True)
def _pair_scores(
    queries_QD: NDArray[np.float64],
    vectors_UD: NDArray[np.float32],
    index_QC: NDArray[np.int64],
    squared: bool,
    out_QC: NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    for q in range(len(index_QC)):
        for c in range(index_QC.shape[1]):
            u, score = index_QC[q, c], 0.0
            for d in range(queries_QD.shape[1] if u >= 0 else 0):
                if squared:
                    apart = queries_QD[q, d] - vectors_UD[u, d]
                    score -= apart * apart
                else:
                    score += queries_QD[q, d] * vectors_UD[u, d]
            out_QC[q, c] = score
