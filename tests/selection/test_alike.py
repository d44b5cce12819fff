"""Who shares a row with whom: what a model's vectors and gradients say, and the rules for what stands in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embstore.ctr import CtrModel
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError, DataError, SchemaError
from embstore.feature_values import FeatureValues
from embstore.logs import ParquetLog
from embstore.models import build
from embstore.normalization import StreamingNormalizer
from embstore.schema import Schema
from embstore.selection import Columns
from embstore.selection.agglomeration import agglomerate
from embstore.selection.alike import Shared, metrics, share_alike
from embstore.selection.methods import Trained
from embstore.token_filter import TokenFilter
from embstore.vocabulary import Vocabulary

ROWS, USERS, TAGS = 300, 40, 30


@pytest.fixture(params=["sum", "mean"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Trained:
    """One value, lists of two lookups (some empty, some with a value twice), a dense column, weights."""
    rng = np.random.default_rng(3)
    table = pa.table(
        {
            "user": rng.zipf(1.6, ROWS) % USERS,
            "tags": [rng.integers(0, TAGS, rng.integers(0, 4)).tolist() for _ in range(ROWS)],
            "price": rng.normal(size=ROWS),
            "weight": rng.uniform(0.5, 2, ROWS),
            "y": rng.integers(0, 2, ROWS),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    features = ["user", {"name": "tags", "pooling": request.param, "lookups": 2}]
    schema = Schema.from_dict({"label": "y", "weight": "weight", "features": features, "dense": ["price"]})
    torch.manual_seed(0)
    embedding = UnifiedEmbedding(schema.features, 50_000, 4, init_std=1.0)
    network = build("dnn", dense_width=1, widths=list(embedding.widths), hidden=(8,), batch_norm=False)
    log = ParquetLog(tmp_path, schema)
    columns = Columns(schema=schema, vocabulary=Vocabulary.collect(log))
    model = CtrModel(embedding, StreamingNormalizer(schema.dense), network)
    return Trained(model=model, log=log, columns=columns, rows=70, threads=1)


def _vocabulary(source: Trained) -> dict[str, FeatureValues]:
    return dict(source.columns.vocabulary)


def _rows(shared: dict[str, Shared]) -> int:
    return int(shared["user"].kept_V.sum() + 2 * shared["tags"].kept_V.sum())


def _check(vocabulary: dict[str, FeatureValues], shared: dict[str, Shared]) -> None:
    """Each dropped value has a kept stand-in that is no rarer."""
    for name, (kept_V, stand_in_V) in shared.items():
        assert (stand_in_V[kept_V] == -1).all()
        assert kept_V.any()
        of, dropped = vocabulary[name], ~kept_V
        assert kept_V[stand_in_V[dropped]].all()
        assert (of.count[stand_in_V[dropped]] >= of.count[dropped]).all()


def test_the_metric_is_the_mean_square_of_an_entry_s_gradient(source: Trained) -> None:
    """By the network in float64, entry by entry, by finite differences of the entry's vector."""
    found, table = metrics(source), source.model.table
    pooling = {feature.name: feature.pooling for feature in table.features}
    sums = {name: np.zeros((of.stop - of.start,) * 2) for name, of in table.slices.items()}
    total = dict.fromkeys(sums, 0.0)
    batches = list(source.each(lambda _, batch, number: batch))
    network = source.model.network.double()
    with torch.no_grad():
        for batch in batches:
            dense, embedded, weight = batch.dense_BC.double(), batch.embedded_BW.double(), batch.weight_B.numpy()
            slopes = []
            for w in range(embedded.shape[1]):
                step = torch.zeros_like(embedded)
                step[:, w] = 1e-5
                slopes.append(((network(dense, embedded + step) - network(dense, embedded - step)) / 2e-5).numpy())
            g_BW = np.stack([of.reshape(-1) for of in slopes], axis=1)
            for name, entries in batch.fields.items():
                length = np.bincount(entries.row_E, minlength=len(weight))
                for row in entries.row_E.tolist():
                    share = 1 / length[row] if pooling[name] == "mean" else 1.0
                    g_D = share * g_BW[row, table.slices[name]]
                    sums[name] += weight[row] * np.outer(g_D, g_D)
                    total[name] += weight[row]
    for name, sum_DD in sums.items():
        np.testing.assert_allclose(found[name] @ found[name].T, sum_DD / total[name], rtol=1e-3, atol=1e-6)


def test_values_share_as_the_cheapest_merges_say(source: Trained) -> None:
    vocabulary, table = _vocabulary(source), source.model.table
    shared, scales = share_alike(source, vocabulary, keep=0.6), metrics(source)
    there = len(vocabulary["user"]) + 2 * len(vocabulary["tags"])
    assert int(0.6 * there) - 1 <= _rows(shared) <= 0.6 * there
    _check(vocabulary, shared)
    taken, left = [], []
    for name, cost in (("user", 1), ("tags", 2)):
        values = vocabulary[name].values
        vectors = table.lookup(name, values if name == "user" else pa.array([[v] for v in values.to_pylist()]))
        merges = agglomerate(vectors.double().numpy() @ scales[name])
        kept_V, stand_in_V = shared[name]
        many = int((~kept_V).sum())
        cluster_V = merges.clusters(many)
        of_V = np.where(kept_V, np.arange(len(kept_V)), stand_in_V)
        assert len(set(zip(cluster_V.tolist(), of_V.tolist(), strict=True))) == len(set(of_V.tolist()))
        taken += (merges.cost_M[:many] / cost).tolist()
        left += (merges.cost_M[many:] / cost).tolist()
    assert max(taken) <= min(left)


def test_who_stands_in_is_the_most_frequent(source: Trained) -> None:
    """Values of one vector: those the model prunes. Of equally frequent ones it is the first."""
    vocabulary = _vocabulary(source)
    users = vocabulary["user"]
    dropped_V = np.arange(len(users)) % 2 == 0
    source.model.table.pruned = TokenFilter.of({"user": users.keep(~dropped_V)})
    shared = share_alike(source, vocabulary, rows=len(users) - int(dropped_V.sum()) + 1 + 2 * len(vocabulary["tags"]))
    kept_V, stand_in_V = shared["user"]
    assert shared["tags"].kept_V.all()
    candidates = np.flatnonzero(dropped_V)
    first = candidates[np.argmax(users.count[candidates])]
    assert kept_V[first]
    assert kept_V[~dropped_V].all()
    assert int(kept_V.sum()) == int((~dropped_V).sum()) + 1
    assert set(stand_in_V[dropped_V].tolist()) == {-1, int(first)}
    even = {**vocabulary, "user": replace(users, count=np.ones(len(users), np.int64))}
    again = share_alike(source, even, rows=1, per_feature=True)
    assert again["user"].kept_V.tolist() == [True] + [False] * (len(users) - 1)


@pytest.mark.parametrize("budget", [{"keep": 0.0}, {"keep": 0.3}, {"keep": 1.0}, {"rows": 45}, {"rows": 10_000}])
def test_budgets(source: Trained, budget: dict[str, Any]) -> None:
    vocabulary = _vocabulary(source)
    users, tags = len(vocabulary["user"]), len(vocabulary["tags"])
    wanted = min(budget.get("rows", 10_000), int(budget.get("keep", 1) * (users + 2 * tags) + 1e-9))
    shared = share_alike(source, vocabulary, **budget)
    _check(vocabulary, shared)
    assert wanted - 1 <= _rows(shared) <= max(wanted, 3)
    each = share_alike(source, vocabulary, per_feature=True, at_least=3, **budget)
    for name, size, cost in (("user", users, 1), ("tags", tags, 2)):
        rows = min(budget.get("rows", 10_000), int(budget.get("keep", 1) * size * cost + 1e-9))
        assert int(each[name].kept_V.sum()) == min(max(rows // cost, 3), size)
    two = share_alike(source, vocabulary, lookups={"user": 2, "tags": 1}, keep=0.5)
    assert 2 * two["user"].kept_V.sum() + two["tags"].kept_V.sum() <= 0.5 * (2 * users + tags)


def test_threads_decide_nothing(source: Trained) -> None:
    one = share_alike(source, _vocabulary(source), keep=0.5)
    other = share_alike(replace(source, threads=3), _vocabulary(source), keep=0.5)
    for name in one:
        assert np.array_equal(one[name].stand_in_V, other[name].stand_in_V)


def test_dropped_values_stay_so(source: Trained) -> None:
    vocabulary = _vocabulary(source)
    kept_V = np.arange(len(vocabulary["user"])) % 3 > 0
    vocabulary["user"] = vocabulary["user"].keep(kept_V)
    vocabulary["tags"] = vocabulary["tags"].keep(np.zeros(len(vocabulary["tags"]), np.bool_))
    shared = share_alike(source, vocabulary, keep=0.5)
    assert not shared["tags"].kept_V.any()
    assert (shared["tags"].stand_in_V == -1).all()
    found = shared["user"]
    assert int(found.kept_V.sum()) == kept_V.sum() // 2
    assert not found.kept_V[~kept_V].any()
    assert (found.stand_in_V[~kept_V] == -1).all()
    assert (found.stand_in_V[kept_V & ~found.kept_V] >= 0).all()


def test_a_value_weighs_what_it_stands_in_for(source: Trained) -> None:
    vocabulary = _vocabulary(source)
    users, number = vocabulary["user"], np.arange(len(vocabulary["user"]))
    stand_in_V = np.where(number % 4 == 1, number - 1, -1)
    vocabulary["user"] = users.keep(stand_in_V < 0, stand_in_V)
    found = share_alike(source, {"user": vocabulary["user"]}, keep=0.5)["user"]
    points_KD = source.model.table.lookup("user", users.values).double().numpy()[stand_in_V < 0]
    weights_K = 1.0 + (np.bincount(stand_in_V[stand_in_V >= 0], minlength=len(number)))[stand_in_V < 0]
    merges = agglomerate(points_KD @ metrics(source)["user"], weights_K)
    cluster_K = merges.clusters(merges.points - int(found.kept_V.sum()))
    of_K = np.where(found.kept_V, number, found.stand_in_V)[stand_in_V < 0]
    assert len(set(zip(cluster_K.tolist(), of_K.tolist(), strict=True))) == found.kept_V.sum() == len(set(cluster_K))
    was = stand_in_V[stand_in_V >= 0]
    now = np.where(found.kept_V[was], was, found.stand_in_V[was])
    assert np.array_equal(found.stand_in_V[stand_in_V >= 0], now)


def test_what_does_not_fit_is_refused(source: Trained) -> None:
    with pytest.raises(ConfigError, match="keep"):
        share_alike(source, _vocabulary(source))
    with pytest.raises(ConfigError, match="both"):
        share_alike(source, _vocabulary(source), keep=0.5, rows=3)
    with pytest.raises(SchemaError, match="did you mean 'user'"):
        share_alike(source, {"users": FeatureValues.of("users", [1, 2])}, keep=0.5)


def test_models_that_have_diverged_are_refused(source: Trained) -> None:
    """By a value's vector, though the log lacks the value, and by gradients."""
    table, users = source.model.table, source.columns.vocabulary["user"]
    absent = next(value for value in range(1000, 2000) if _rows_of(table, [value]).isdisjoint(_rows_of(table, users)))
    table.weight[list(_rows_of(table, [absent]))] = torch.inf
    with pytest.raises(DataError, match="vectors of 'user'"):
        share_alike(source, {"user": FeatureValues.of("user", [1, absent])}, keep=0.5)
    with torch.no_grad():
        next(source.model.network.parameters()).fill_(torch.inf)
    with pytest.raises(DataError, match="gradients by vectors of 'user'"):
        share_alike(source, _vocabulary(source), keep=0.5)


def _rows_of(table: UnifiedEmbedding, values: Any) -> set[int]:
    tokens = values.tokens if isinstance(values, FeatureValues) else FeatureValues.of("user", values).tokens
    (lookup,) = table.plan.only("user").lookups
    return set(table.plan.only("user").rows_of(lookup, torch.from_numpy(tokens.view(np.int64))).tolist())
