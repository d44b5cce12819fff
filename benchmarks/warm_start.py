"""What node2vec's vectors buy a CTR model: test AUC with rows that start from them, and with them as frozen features.

The graph is of users and items, an edge where a training row is positive: nothing of valid or test is in it. MovieLens
100K is split by time (80:10:10, liked is a rating of 4 or more), so that its test part has new and rare items; Frappe
as it is split, at random. Items are *cold* with 1 to 5 training rows, *new* with none (which no node stands for: there
are no vectors of them), else *warm*. Arms share everything but what they say; their seeds are those of hashes, first
weights, order and walks.

    random          rows start as normal numbers of deviation 0.01
    random_wide     of 0.1: the control of a wide start
    warm            the rows of users and items start from their vectors, scaled to 0.01
    warm_wide       scaled to 0.1
    frozen          the vectors are two more features that are not trained
    frozen_shuffled as frozen, each value with another's vector: the control of two more inputs

Needs raw files in ``data/raw``: ``movielens-100k/ratings.parquet`` (joined), ``frappe-x1r/{train,valid,test}.parquet``.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from benchmarks.report import Result, claim, main
from embstore import models
from embstore.config import parse
from embstore.errors import DatasetError
from embstore.logs import ParquetLog
from embstore.metrics import auc
from embstore.node2vec import Graph, SkipGram, SkipGramSettings, Walker, WalkSettings
from embstore.node2vec.publishing import publish_vectors
from embstore.run import Run
from embstore.settings import RunConfig
from embstore.store import Store

RAW = Path(__file__).resolve().parent.parent / "data" / "raw"
SEEDS, COLD = 3, 5
STD, WIDE = 0.01, 0.1
ARMS = ("random", "random_wide", "warm", "warm_wide", "frozen", "frozen_shuffled")
WALKS: dict[str, Any] = {"length": 40, "num_walks": 10}
SKIP_GRAM: dict[str, Any] = {"window": 5, "epochs": 5}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A data set, and the run that is trained on it."""

    name: str
    user: str
    item: str
    features: tuple[dict[str, Any], ...]
    vectors: int
    frozen_lookups: int
    arms: tuple[str, ...] = ARMS
    settings: dict[str, Any]


STUDIES = (
    Study(
        name="movielens_100k",
        user="user_id",
        item="movie_id",
        features=(
            *({"name": name, "lookups": 2, "exact": True} for name in ("user_id", "movie_id")),
            *({"name": name, "exact": True} for name in ("gender", "occupation", "age")),
            {"name": "genres", "pooling": "mean", "exact": True},
        ),
        vectors=32,
        frozen_lookups=2,
        settings={
            "table": {"rows": 0, "dim": 16, "optimizer": {"learning_rate": 0.01, "eps": 1e-5, "l2": 0.02}},
            "model": {"name": "dcn", "structure": "parallel", "cross_layers": 2, "low_rank": 16, "hidden": [128, 64]},
            "training": {"batch_size": 1024, "epochs": 6, "learning_rate": 0.002, "schedule": "linear"},
        },
    ),
    Study(
        name="frappe",
        user="user",
        item="item",
        features=(
            *({"name": name, "lookups": 4, "exact": True} for name in ("user", "item")),
            *({"name": name, "exact": True} for name in ("daytime", "weekday", "isweekend", "homework", "cost")),
            *({"name": name, "exact": True} for name in ("weather", "country", "city")),
        ),
        vectors=32,
        frozen_lookups=4,
        arms=("random", "warm_wide", "frozen"),
        settings={
            "table": {"rows": 0, "dim": 8, "optimizer": {"learning_rate": 0.01, "eps": 1e-5, "l2": 0.02}},
            "model": {"name": "dcn", "structure": "parallel", "cross_layers": 2, "low_rank": 16, "hidden": [128, 64]},
            "training": {"batch_size": 2048, "epochs": 4, "learning_rate": 0.003, "schedule": "linear"},
        },
    ),
)


def measure(quick: bool) -> Result:
    """Train the arms of both studies; ``quick``: one seed of three arms of the first."""
    claims, samples = {}, {}
    for study in STUDIES[:1] if quick else STUDIES:
        arms = ("random", "warm", "frozen") if quick else study.arms
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
        with tempfile.TemporaryDirectory() as folder:
            logs = _logs(study, Path(folder))
            for seed in range(1 if quick else SEEDS):
                _vectors(study, logs, Path(folder), seed)
                for arm in arms:
                    found[arm].append(_run(study, arm, logs, Path(folder), seed))
        for arm, results in found.items():
            for part in ("all", "warm", "cold", "new"):
                values, peer = [of[part] for of in results], [of[part] for of in found["random"]]
                if None not in values:
                    name = f"{study.name}_{arm}_{part}_auc"
                    claims[name] = claim(_mean(values), "AUC", "random", None if arm == "random" else _mean(peer))
                    samples[name] = {"test": values, "deviation": _deviation(values)}
            samples[f"{study.name}_{arm}"] = results
    settings = {"studies": {study.name: study.settings for study in STUDIES}, "cold": f"1 to {COLD} training rows"}
    return Result(claims=claims, samples=samples, settings={**settings, "walks": WALKS, "skip_gram": SKIP_GRAM})


def _mean(values: list[float]) -> float:
    return statistics.fmean(values)


def _deviation(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _logs(study: Study, folder: Path) -> dict[str, str]:
    """train, valid and test as Parquet."""
    if study.name == "frappe":
        parts = {split: _raw("frappe-x1r", split) for split in ("train", "valid", "test")}
    else:
        ratings = _raw("movielens-100k", "ratings")
        ratings = ratings.rename_columns([{"item_id": "movie_id"}.get(name, name) for name in ratings.column_names])
        label = pc.greater_equal(ratings.column("rating"), 4).cast(pa.int8())
        ratings = ratings.append_column("label", label)
        ratings = ratings.take(
            pc.sort_indices(ratings, [(key, "ascending") for key in ("timestamp", "user_id", "movie_id")])
        )
        bounds = [0, int(0.8 * len(ratings)), int(0.9 * len(ratings)), len(ratings)]
        names = ("train", "valid", "test")
        parts = {name: ratings.slice(bounds[i], bounds[i + 1] - bounds[i]) for i, name in enumerate(names)}
    for split, table in parts.items():
        pq.write_table(table, folder / f"{split}.parquet")
    return {split: str(folder / f"{split}.parquet") for split in parts}


def _raw(data_set: str, name: str) -> pa.Table:
    path = RAW / data_set / f"{name}.parquet"
    if not path.exists():
        raise DatasetError(f"raw files of {data_set}", expected=str(path.relative_to(RAW.parent.parent)), found="none")
    return pq.read_table(path).replace_schema_metadata()


def _vectors(study: Study, logs: dict[str, str], folder: Path, seed: int) -> None:
    """Learn vectors of the training part, and publish them and their shuffled twins."""
    rows = pq.read_table(logs["train"], columns=["label", study.user, study.item])
    liked = rows.filter(pc.equal(rows.column("label"), 1))
    nodes, numbers, first = {}, [], 0
    for name in (study.user, study.item):
        coded = liked.column(name).combine_chunks().dictionary_encode()
        nodes[name] = coded.dictionary
        numbers.append(coded.indices.to_numpy().astype(np.int64) + first)
        first += len(coded.dictionary)
    graph = Graph.of_edges(*numbers, np.ones(len(liked)), nodes=nodes)
    walker = Walker(graph, WalkSettings(seed=seed, **WALKS))
    walks_WL = walker.walks(0, walker.num_walks)
    visits_N = np.bincount(walks_WL[walks_WL >= 0], minlength=graph.num_nodes)
    how = SkipGramSettings(dim=study.vectors, seed=seed, **SKIP_GRAM)
    skip_gram = SkipGram(visits_N, walker.num_walks, how)
    for epoch in range(how.epochs):
        loss = skip_gram.train(walks_WL, 0, epoch=epoch)
    vectors_ND = skip_gram.vectors.copy()
    lineage = {"walks": {**WALKS, "seed": seed}, "skip_gram": SKIP_GRAM}
    publish_vectors(Store(folder / f"vectors-{seed}"), graph, vectors_ND, lineage, metrics={"loss": loss})
    generator = np.random.Generator(np.random.Philox(key=[seed, 1]))
    for part in graph.parts().values():
        vectors_ND[part.start : part.stop] = generator.permutation(vectors_ND[part.start : part.stop])
    publish_vectors(Store(folder / f"shuffled-{seed}"), graph, vectors_ND, lineage)


def _run(study: Study, arm: str, logs: dict[str, str], folder: Path, seed: int) -> dict[str, Any]:
    """Test AUC of one run: of all rows, and of those of cold, new and warm items."""
    ids, features, entries = [study.user, study.item], list(study.features), []
    store = str(folder / f"{'shuffled' if arm.endswith('shuffled') else 'vectors'}-{seed}")
    if arm.startswith("warm"):
        entries = [{"store": store, "features": ids, "scale": WIDE if arm.endswith("wide") else STD}]
    elif arm.startswith("frozen"):
        names = {f"{name}_vector": name for name in ids}
        lookups = study.frozen_lookups
        features += [{"name": own, "column": of, "exact": True, "lookups": lookups} for own, of in names.items()]
        entries = [{"store": store, "features": names, "frozen": True}]
    table = {**study.settings["table"], "warm_start": entries, "init_std": WIDE if arm == "random_wide" else STD}
    config = parse(
        RunConfig,
        {
            **study.settings,
            "logs": logs,
            "schema": {"label": "label", "features": features},
            "table": table,
            "output": str(folder / f"{arm}-{seed}"),
        },
    )
    run = Run(config.with_seed(seed, config.output), models.build)
    result = run.train()
    scores = _scores(run, logs["test"])
    test, train = (pq.read_table(logs[split], columns=["label", study.item]) for split in ("test", "train"))
    label, item = test.column("label").to_numpy(), test.column(study.item).to_numpy()
    seen = np.bincount(train.column(study.item).to_numpy(), minlength=int(item.max()) + 1)[item]
    parts = {"warm": seen > COLD, "cold": (seen > 0) & (seen <= COLD), "new": seen == 0}
    out: dict[str, Any] = {"all": result["test"]["auc"], "valid": result["valid"]["auc"]}
    out |= {part: auc(label[of], scores[of]) if len(set(label[of])) == 2 else None for part, of in parts.items()}
    return {**out, "rows": {part: int(of.sum()) for part, of in parts.items()}, "parameters": result["parameters"]}


@torch.no_grad()
def _scores(run: Run, log: str) -> np.ndarray:
    """The trained model's logits, in the order of the log."""
    model = run.trained()
    return torch.cat([model(batch) for batch in ParquetLog(log, run.schema).batches(4096)]).numpy()


if __name__ == "__main__":
    main("warm_start", measure)
