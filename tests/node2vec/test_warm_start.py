"""Runs whose rows start from vectors: what rows become, what a run is known by, resuming, and rows that stay."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from embstore import models
from embstore.config import parse
from embstore.continuous import StartSettings
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import CheckpointError, ConfigError, DataError, SchemaError, StoreError
from embstore.interruption import Interruption
from embstore.kernels import TableOptimizer
from embstore.node2vec import Graph
from embstore.node2vec.publishing import publish_vectors, vectors_table
from embstore.run import Run
from embstore.schema import Feature
from embstore.serving.reader import Reader
from embstore.settings import RunConfig
from embstore.store import Store, ValueVectors, set_rows
from embstore.warm_start import GivenVectors, WarmStartSettings

USERS, ITEMS, DIM = 20, 12, 8


def users() -> pa.Array:
    return pa.array([f"u{n}" for n in range(USERS)])


def make_graph() -> Graph:
    random = np.random.default_rng(1)
    source, target = random.integers(0, USERS, 150), USERS + random.integers(0, ITEMS, 150)
    nodes = {"user": users(), "film": pa.array(range(ITEMS), pa.int64())}
    return Graph.of_edges(source, target, np.ones(150), nodes=nodes)


def make_vectors(dim: int = DIM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 1.0, size=(USERS + ITEMS, dim)).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A log, and vectors of its values but for the last two users, as a store and as Parquet."""
    random = np.random.default_rng(2)
    user, film = random.integers(0, USERS + 2, 600), random.integers(0, ITEMS, 600)
    label = ((user + film) % 3 == 0).astype(np.int8)
    table = pa.table({"user": pa.array([f"u{n}" for n in user]), "film": pa.array(film), "click": label})
    pq.write_table(table, tmp_path / "log.parquet")
    publish_vectors(Store(tmp_path / "n2v"), make_graph(), make_vectors(), {"walks": {"q": 2.0}})
    for name, of in vectors_table(make_graph(), make_vectors()).items():
        (tmp_path / "vectors" / f"feature={name}").mkdir(parents=True)
        pq.write_table(of, tmp_path / "vectors" / f"feature={name}" / "part-0.parquet")
    return tmp_path


def make_config(place: Path, *entries: dict[str, Any], name: str = "run", **settings: Any) -> RunConfig:
    exact = any(entry.get("frozen") for entry in entries)
    features = [{"name": "user"}, {"name": "item", "column": "film"}]
    if exact:
        features.append({"name": "known", "column": "film", "exact": True, "lookups": 2})
    data = {
        "logs": {"train": str(place / "log.parquet"), "valid": str(place / "log.parquet")},
        "schema": {"label": "click", "features": features},
        "table": {"rows": 4096, "dim": 4, "warm_start": list(entries), **settings.pop("table", {})},
        "model": {"name": "dnn", "hidden": [8]},
        "training": {"batch_size": 100, "checkpoint_every": 2, **settings.pop("training", {})},
        "output": str(place / name),
        **settings,
    }
    return parse(RunConfig, data)


def at_start(config: RunConfig) -> UnifiedEmbedding:
    """The table as training begins: of a run whose steps are nought."""
    still = replace(config.table.optimizer, learning_rate=0.0)
    run = Run(replace(config, table=replace(config.table, optimizer=still)), models.build)
    run.train()
    return run.trained().table


def of_store(place: Path, **fields: Any) -> dict[str, Any]:
    return {"store": str(place / "n2v"), "features": {"user": "user", "item": "film"}, **fields}


def test_rows_start_as_principal_components_of_all_features_at_the_scale_of_first_rows(place: Path) -> None:
    table = at_start(make_config(place, of_store(place)))
    all_VW = make_vectors().astype(np.float64)
    centred = all_VW - all_VW.mean(axis=0)
    _, _, right = np.linalg.svd(centred, full_matrices=False)
    basis = right[:4].T
    basis *= np.sign(basis[np.abs(basis).argmax(axis=0), range(4)])
    expected = centred @ basis
    expected *= 0.01 / np.sqrt(np.square(expected).mean())
    np.testing.assert_allclose(table.lookup("item", range(ITEMS)).numpy(), expected[USERS:], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(table.lookup("user", users()).numpy(), expected[:USERS], rtol=1e-4, atol=1e-7)
    plain = at_start(make_config(place, name="plain"))
    assert torch.equal(table.lookup("user", ["u20", "u21"]), plain.lookup("user", ["u20", "u21"]))


def test_vectors_as_wide_as_the_rows_are_only_scaled(place: Path) -> None:
    table = at_start(make_config(place, of_store(place, scale=0.5), table={"dim": DIM}))
    expected = make_vectors() * (0.5 / np.sqrt(np.square(make_vectors(), dtype=np.float64).mean()))
    np.testing.assert_allclose(table.lookup("item", range(ITEMS)).numpy(), expected[USERS:], rtol=1e-5)


def test_a_row_of_values_of_several_features_is_their_weighted_mean() -> None:
    table = UnifiedEmbedding([Feature(name="a"), Feature(name="b", lookups=2)], 3, 2, init_std=1.0)
    random = np.random.default_rng(0)
    given = {
        name: ValueVectors.read(
            pa.table({"value": values, "vector": random.normal(size=(len(values), width)).tolist(), "weight": weights}),
            weight_column="weight",
        )
        for name, values, width, weights in (("a", [1, 2, 3], 2, [1.0, 5.0, 2.0]), ("b", [1, 2, 4], 4, [3.0, 1.0, 7.0]))
    }
    sums, weight = np.zeros((3, 2)), np.zeros(3)
    for name, of in given.items():
        for number, lookup in enumerate(table.plan.only(name).lookups):
            for row, vector, share in zip(
                table.plan.rows_of(lookup, torch.from_numpy(of.tokens_V)), of.vectors_VW, of.weights_V, strict=True
            ):
                sums[row] += share * vector[2 * number : 2 * number + 2]
                weight[row] += share
    done = set_rows(table, given)
    assert (done.values, done.unknown) == (6, 0)
    assert done.rows == (weight > 0).sum() == 3
    np.testing.assert_allclose(table.weight.numpy(), sums / weight[:, None], rtol=1e-5)


def test_each_shard_s_rows_are_those_of_the_whole_table() -> None:
    def make() -> UnifiedEmbedding:
        return UnifiedEmbedding([Feature(name="a", lookups=2)], 9, 2, init_std=1.0)

    values, vectors = list(range(6)), np.random.default_rng(0).normal(size=(6, 4)).tolist()
    given = {"a": ValueVectors.read(pa.table({"value": values, "vector": vectors}))}
    whole, parts, rows = make(), [], 0
    done = set_rows(whole, given)
    for shard in (range(0, 4), range(4, 9)):
        part = make()
        part.shard, part.weight = shard, part.weight[shard.start : shard.stop].clone()
        rows += set_rows(part, given).rows
        parts.append(part.weight)
    assert torch.equal(torch.cat(parts), whole.weight)
    assert rows == done.rows


def test_the_command_trains_a_config_with_the_key(place: Path) -> None:
    from click.testing import CliRunner

    from embstore.cli import cli

    config = asdict(make_config(place, of_store(place, scale=0.1)))
    del config["start"], config["publish"], config["label"]
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    ran = CliRunner().invoke(cli, ["train", str(place / "config.yaml"), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0
    kept = Run.open(place / "run", models.build)
    assert len(kept.config.table.warm_start[0].sha256 or "") == 64
    assert kept.files.lineage()["node2vec"]["warm_start"][0]["values"] == USERS + ITEMS


def test_a_store_and_parquet_of_the_same_vectors_are_the_same_run(place: Path) -> None:
    table = at_start(make_config(place, of_store(place)))
    parquet = {"vectors": str(place / "vectors"), "features": {"user": "user", "item": "film"}}
    again = at_start(make_config(place, parquet, name="again"))
    assert torch.equal(table.weight, again.weight)
    ours, theirs = (Run.open(place / name, models.build).config for name in ("run", "again"))
    assert ours.table.warm_start[0].sha256 == theirs.table.warm_start[0].sha256 is not None
    assert ours.identity(None) == theirs.identity(None)


def test_a_run_that_stopped_goes_on_bit_for_bit_and_needs_no_vectors_to_be_opened(place: Path) -> None:
    config = make_config(place, of_store(place, scale=0.1), of_store(place, features={"known": "film"}, frozen=True))
    whole = Run(config, models.build)
    result = whole.train()
    stopped = replace(config, output=str(place / "stopped"))

    class After(Interruption):
        def asked(self) -> bool:
            self.left = getattr(self, "left", 3) - 1
            return self.left < 0

    with pytest.raises(BaseException, match="stopped at step"):
        Run(stopped, models.build, interruption=After()).train()
    again = Run(stopped, models.build)
    assert again.train()["valid"] == result["valid"]
    assert torch.equal(whole.trained().table.weight, again.trained().table.weight)
    (place / "n2v").rename(place / "gone")
    assert torch.equal(Run.open(place / "stopped", models.build).trained().table.weight, whole.trained().table.weight)


def test_other_vectors_are_another_run(place: Path) -> None:
    config = make_config(place, of_store(place))
    Run(config, models.build).train()
    pinned = Run.open(place / "run", models.build).config
    newer = publish_vectors(Store(place / "n2v"), make_graph(), make_vectors(seed=1), {})
    assert Run(config, models.build).train()["steps"] == 6  # `latest` means what it meant
    other = make_config(place, of_store(place, version=newer.id))
    with pytest.raises(CheckpointError, match=r"another table\.warm_start"):
        Run(other, models.build).train()
    wrong = replace(pinned.table.warm_start[0], version=newer.id)
    with pytest.raises(ConfigError, match="sha256"):
        _ = GivenVectors(wrong).by_feature
    assert make_config(place).identity(None) == make_config(place, table={"warm_start": []}).identity(None)
    assert "warm_start" not in make_config(place).identity(None)


def test_what_is_published_says_what_it_started_from_and_scores_as_trained(place: Path) -> None:
    frozen = of_store(place, features={"known": "film"}, frozen=True)
    optimizer = {"learning_rate": 0.1, "l2": 0.1}
    publish = {"store": str(place / "store")}
    config = make_config(place, of_store(place), frozen, table={"optimizer": optimizer}, publish=publish)
    run = Run(config, models.build)
    run.train()
    version, model = Store(place / "store").open(), run.trained()
    assert run.files.result()["parameters"]["table"] == 4 * 4096
    warm, still = version.manifest["lineage"]["node2vec"]["warm_start"]
    assert warm["version"] == Store(place / "n2v").resolve("latest")
    assert warm["of"]["walks"] == {"q": 2.0}
    assert (warm["features"], warm["values"]) == ({"user": "user", "item": "film"}, USERS + ITEMS)
    assert 0 < warm["variance_kept"] < 1
    assert still["features"] == {"known": "film"}
    factor = 1 / np.sqrt(np.square(make_vectors()[USERS:], dtype=np.float64).mean())
    known = version.lookup("known", range(ITEMS))
    np.testing.assert_allclose(known.numpy(), make_vectors()[USERS:] * factor, rtol=1e-5)
    assert torch.equal(known, model.table.lookup("known", range(ITEMS)))
    assert not version.lookup("known", [ITEMS, None]).any()
    assert not torch.equal(
        version.lookup("item", [0]), at_start(make_config(place, of_store(place), frozen, name="s")).lookup("item", [0])
    )
    rows = pq.read_table(place / "log.parquet").slice(0, 50)
    scores = Reader(version, models.build).score(rows)
    from embstore.logs import ParquetLog

    batch = next(iter(ParquetLog(str(place / "log.parquet"), run.schema).batches(50)))
    with torch.no_grad():
        np.testing.assert_allclose(scores, model(batch).sigmoid().numpy(), rtol=1e-6)

    nextday = replace(make_config(place, name="next"), start=StartSettings(store=str(place / "store")))
    plain = replace(nextday, schema=None, table=type(nextday.table)())
    after = Run(plain, models.build)
    after.train()
    assert torch.equal(after.trained().table.lookup("known", range(ITEMS)), known)
    assert not torch.equal(after.trained().table.lookup("item", [0]), version.lookup("item", [0]))
    assert after.bundle().lineage["node2vec"] == version.manifest["lineage"]["node2vec"]
    other = replace(plain, table=replace(plain.table, warm_start=(WarmStartSettings(features=("user",), store="x"),)))
    with pytest.raises(ConfigError, match="rows go on from the version's"):
        Run(other, models.build)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["rowwise_adagrad", "adagrad"])
@pytest.mark.parametrize("kernel", ["cpu", "reference", "gpu", "fbgemm"])
def test_frozen_rows_stay_in_every_kernel(kernel: str, name: str, dtype: torch.dtype) -> None:
    if kernel == "fbgemm":
        pytest.importorskip("fbgemm_gpu")
        if dtype == torch.bfloat16:
            pytest.skip("a kernel without bfloat16")
    if kernel == "gpu" and dtype != torch.float32:
        pytest.skip("the interpreter is slow, and one dtype tells")
    features = [Feature(name="user"), Feature(name="known", exact=True, lookups=2)]
    l2 = 0.0 if kernel == "fbgemm" else 0.5
    table = UnifiedEmbedding(
        features,
        8,
        4,
        exact_tokens={"known": torch.arange(5)},
        frozen=["known"],
        init_std=1.0,
        dtype=dtype,
        kernel=kernel,
        optimizer=TableOptimizer(name=name, learning_rate=0.5, l2=l2),
    )
    from embstore.batch import FeatureTokens

    before = table.weight.clone()
    for step in range(3):
        tokens = torch.arange(6) + step
        batch = FeatureTokens.concatenate({"user": (tokens, None), "known": (tokens, None)}, 6)
        table.train()(batch).square().sum().backward()
    table.eval()
    assert torch.equal(table.weight[8:], before[8:])
    assert not torch.equal(table.weight[:8], before[:8])


def test_rows_that_cannot_be_frozen(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"an exact feature.*a feature of their own"):
        Run(make_config(place, of_store(place, features={"item": "film"}, frozen=True)), models.build)
    frozen = of_store(place, features={"known": "film"}, frozen=True)
    adam = {"optimizer": {"name": "adam", "learning_rate": 0.01}}
    with pytest.raises(ConfigError, match="rowwise_adagrad or adagrad"):
        Run(make_config(place, frozen, table=adam), models.build).train()
    with pytest.raises(ConfigError, match="shares rows"):
        UnifiedEmbedding([Feature(name="a")], 10, 2, frozen=["a"])


def test_vectors_that_cannot_be_taken(place: Path) -> None:
    def refused(error: type[Exception], message: str, *entries: dict[str, Any], **settings: Any) -> None:
        with pytest.raises(error, match=message):
            Run(make_config(place, *entries, **settings), models.build).train()

    refused(ConfigError, "16 numbers or more", of_store(place), table={"dim": 16})
    refused(ConfigError, "no feature 'itm'", of_store(place, features={"itm": "film"}))
    refused(ConfigError, "in several", of_store(place), of_store(place))
    refused(SchemaError, "'item'", of_store(place, features=["item"]))
    refused(SchemaError, "none of feature 'item'", {"vectors": str(place / "vectors"), "features": ["item"]})
    refused(SchemaError, "values of 'item'", of_store(place, features={"item": "user"}))
    for data, message in (
        ({"features": ["user"]}, "neither"),
        ({"features": ["user"], "store": "a", "vectors": "b"}, "both"),
        ({"features": [], "store": "a"}, "one or more"),
        ({"features": ["user"], "store": "a", "scale": 0}, "above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(WarmStartSettings, data)
    pq.write_table(pa.table({"value": ["u1"], "vector": [[1.0] * 5]}), place / "five.parquet")
    (place / "mixed" / "feature=user").mkdir(parents=True)
    (place / "mixed" / "feature=item").mkdir()
    (place / "five.parquet").rename(place / "mixed" / "feature=user" / "part.parquet")
    pq.write_table(pa.table({"value": [1], "vector": [[1.0] * 6]}), place / "mixed" / "feature=item" / "part.parquet")
    refused(DataError, "one width", {"vectors": str(place / "mixed"), "features": ["user", "item"]})
    run = Run(make_config(place, publish={"store": str(place / "bare")}, name="bare-run"), models.build)
    run.train()
    refused(StoreError, "a vocabulary of 'user'", {"store": str(place / "bare"), "features": ["user"]})
