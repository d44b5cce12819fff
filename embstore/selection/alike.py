"""Values that a trained model treats alike share a row: the most frequent of them stands in for the others.

    feature   value   vector        keep=0.5: of 4 rows 2
    user      ann     ( 1.0, 0.2)   kept
              bob     ( 1.1, 0.2)   dropped, looked up as ann
              eve     (-0.7, 0.9)   kept
              kim     (-0.7, 0.8)   dropped, looked up as eve

How far two values of a feature are apart is what the model makes of it: the mean square, over the log's entries of the
feature, of what the logit would change by if the one's vector took the place of the other's, to first order. With g
the logit's gradient by an entry's vector and M the mean of g g', that is (u - v)' M (u - v). Values come together by
Ward's agglomeration, each with weight 1, however often it occurs; those of all features until there are so many rows.

Rows of trained vectors are clustered, too, by Tsang & Ahle 2023, "Clustering the Sketch" (arXiv 2210.05974), whose
k-means takes the vectors as they are, a number of clusters for each feature, and goes on while a model is trained.

Suffixes: V values of a feature, K of them kept before, C clusters, B rows, E entries, W numbers of a row's vectors, D
of a value's vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.errors import DataError, SchemaError, nearest
from embstore.feature_values import FeatureValues
from embstore.selection.agglomeration import Merges, agglomerate, cut
from embstore.selection.methods.embedded import EmbeddedBatch, Trained, lookup
from embstore.selection.pruning import check_budget

_CHUNK = 65_536  # values looked up at once


class Shared(NamedTuple):
    """Which values of a feature have a row, and who stands in for the others.

    Args:
        kept_V: bool.
        stand_in_V: int64, the place of a kept value; -1 of those kept, and of those looked up as the pruned token.
    """

    kept_V: NDArray[np.bool_]
    stand_in_V: NDArray[np.int64]


def share_alike(
    source: Trained,
    vocabulary: Mapping[str, FeatureValues],
    *,
    keep: float | None = None,
    rows: int | None = None,
    per_feature: bool = False,
    at_least: int = 1,
    lookups: Mapping[str, int] | None = None,
) -> dict[str, Shared]:
    """Who shares a row with whom, in a vocabulary of fewer rows; by one pass over the log.

    Values that were dropped before stay so; if what stood in for one is dropped now, its stand-in takes both.

    Args:
        source: the model, and the log.
        vocabulary: of features of the model's table.
        keep: share of the rows to keep.
        rows: number of rows to keep.
        per_feature: the budget is each feature's, not that of all together.
        at_least: so many values of a feature are kept in any case, 1 or more, as far as it has them.
        lookups: of features: a value takes a row for each; those of the table where not given.

    Raises:
        ConfigError: no budget, or one that is none.
        SchemaError: a feature that the model doesn't read.
        DataError: no labels, or of one class; or a model whose vectors or gradients are not finite.
    """
    check_budget(keep, rows, None, at_least)
    table = source.model.table
    for name in vocabulary:
        if name not in table.plan.names:
            expected = "features of the model's table"
            raise SchemaError("values", expected=expected, found=name, do=nearest(name, table.plan.names))
    cost = {name: (lookups or {}).get(name, table.feature(name).lookups) for name in vocabulary}
    scales, merges = metrics(source), dict[str, Merges]()
    with source.progress("share", sum(int(of.kept.sum()) for of in vocabulary.values())) as bar:
        for name, of in vocabulary.items():
            if of.kept.any():
                vectors_KD = _vectors(source, of)
                _check_finite(vectors_KD, f"vectors of {name!r}")
                points_KD = vectors_KD @ scales[name]
                merges[name] = agglomerate(points_KD, _weights(of), threads=source.threads)
            bar.advance(int(of.kept.sum()))
    shared = {name: Shared(of.kept, of.stood_in) for name, of in vocabulary.items()}
    for group in [[name] for name in merges] if per_feature else [list(merges)]:
        there = sum(merges[name].points * cost[name] for name in group)
        budget = math.floor(there * keep + 1e-9) if keep is not None else rows
        assert budget is not None
        rows_of_cluster = [cost[name] for name in group]
        taken = cut([merges[name] for name in group], budget, rows_of_cluster=rows_of_cluster, at_least=at_least)
        for name, many in zip(group, taken, strict=True):
            shared[name] = _shared(vocabulary[name], merges[name].clusters(many))
    return shared


def metrics(source: Trained) -> dict[str, NDArray[np.float64]]:
    """Of each feature a root of M, float64 ``[D, D]``: differences of vectors times it are as long as M says.

    Raises:
        DataError: no labels, or of one class; or gradients that are not finite.
    """
    names = source.columns.layout.names
    sums = reduce(lambda one, other: [a + b for a, b in zip(one, other, strict=True)], source.each(_products))
    found = {}
    for name, sum_DD, weight in zip(names, sums[::2], sums[1::2], strict=True):
        mean_DD = (sum_DD / weight.clamp(min=1e-300)).numpy()
        _check_finite(mean_DD, f"gradients by vectors of {name!r}")
        values_D, axes_DD = np.linalg.eigh(mean_DD)
        found[name] = axes_DD * np.sqrt(np.maximum(values_D, 0.0))
    return found


def _check_finite(numbers: NDArray[np.float64], what: str) -> None:
    if not np.isfinite(numbers).all():
        do = "take a model whose training has not diverged"
        raise DataError(what, expected="finite numbers", found="others", do=do)


def _products(source: Trained, batch: EmbeddedBatch, number: int) -> list[Tensor]:
    """Of each feature the sum of g g' over a batch's entries, and their weight; g of an entry is a share of a row's."""
    embedded_BW = batch.embedded_BW.detach().requires_grad_()
    with torch.enable_grad():
        logits_B = source.model.network(batch.dense_BC, embedded_BW)
        (g_BW,) = torch.autograd.grad(logits_B.sum(), [embedded_BW], allow_unused=True)
    g_BW = torch.zeros_like(embedded_BW) if g_BW is None else g_BW
    found, weight_B = [], batch.weight_B.double().cpu().numpy()
    for name, entries in batch.fields.items():
        g_BD, row_E = g_BW[:, source.model.table.slices[name]].double(), entries.row_E.numpy()
        square_B = np.bincount(row_E, weights=entries.share_E.double().numpy() ** 2, minlength=len(weight_B))
        of_B1 = torch.from_numpy(square_B * weight_B)[:, None].to(g_BD.device)
        found += [((of_B1 * g_BD).T @ g_BD).cpu(), torch.tensor(weight_B[row_E].sum(), dtype=torch.float64)]
    return found


def _vectors(source: Trained, of: FeatureValues) -> NDArray[np.float64]:
    """Those of the kept values, ``[K, D]``."""
    tokens_K = torch.from_numpy(of.tokens[of.kept].view(np.int64))
    parts = (lookup(source.model.table, of.name, part) for part in tokens_K.split(_CHUNK))
    return np.concatenate([part.double().cpu().numpy() for part in parts])


def _weights(of: FeatureValues) -> NDArray[np.float64]:
    """Of each kept value, ``[K]``: 1, and 1 for each that it stands in for already."""
    stand_in_V = of.stood_in
    return np.bincount(stand_in_V[stand_in_V >= 0], minlength=len(of))[of.kept].astype(np.float64) + 1


def _shared(of: FeatureValues, cluster_K: NDArray[np.int64]) -> Shared:
    """By the clusters of the kept values; of equally frequent ones the first stands in."""
    place_K, before_V = np.flatnonzero(of.kept), of.stood_in
    order_K = np.lexsort((place_K, -of.count[place_K], cluster_K))
    first_C = order_K[np.searchsorted(cluster_K[order_K], np.arange(cluster_K.max() + 1))]
    kept_V, stand_in_V = np.zeros(len(of), np.bool_), before_V.copy()
    kept_V[place_K[first_C]] = True
    stand_in_V[place_K] = np.where(kept_V[place_K], -1, place_K[first_C][cluster_K])
    followers = np.flatnonzero(before_V >= 0)
    now = before_V[followers]
    stand_in_V[followers] = np.where(kept_V[now], now, stand_in_V[now])
    return Shared(kept_V, stand_in_V)
