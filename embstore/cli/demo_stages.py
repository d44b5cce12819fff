"""What ``embstore demo`` shows: each stage is a few calls of the library and some lines that say what came of it.

Suffixes: V values, D numbers of a vector, K neighbours.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import torch

from embstore.admission import Admission
from embstore.cli.console import metrics_table, out, progress, show_notes
from embstore.config import parse
from embstore.ctr import CtrModel
from embstore.logs import ParquetLog
from embstore.models import build
from embstore.node2vec.folder import JobFolder
from embstore.node2vec.settings import JobSettings
from embstore.pipelines import node2vec as walking
from embstore.pipelines import selection as choosing
from embstore.pipelines import vocabulary as counting
from embstore.planning.collisions import cardinalities, rows_for, shared
from embstore.run import Run
from embstore.schema import Schema
from embstore.selection.pruning import prune, summaries
from embstore.selection.score_files import read_scores
from embstore.serving.search import Neighbors, values_of, vectors_of
from embstore.settings import RunConfig
from embstore.store import Store, Version
from embstore.synthetic import SyntheticLog
from embstore.vocabulary import Vocabulary

DIM = 16
RUN: dict[str, Any] = {
    "table": {"dim": DIM, "optimizer": {"learning_rate": 0.3, "eps": 1e-5, "l2": 2e-5}},
    "model": {"name": "dcn", "cross_layers": 2, "low_rank": 32, "hidden": [128, 64], "dropout": 0.2},
    "training": {"epochs": 3, "batch_size": 1024, "learning_rate": 2e-3, "schedule": "linear"},
}
WALKS: dict[str, Any] = {
    "walks": {"length": 20, "num_walks": 10},
    "skip_gram": {"dim": DIM, "window": 4},
    "evaluate": {"links": 0.1},
}
SELECT: dict[str, Any] = {"options": {"level": "values"}}
KEEP = 0.98  # of the values
COLLISIONS = 0.06  # the share of values that may share a row with another of their feature
NEAREST = 3
_PARQUET = "**/*.parquet"


class Teller:
    """Prints numbered lines, with the seconds since the last one."""

    def __init__(self) -> None:
        self.number, self.started = 0, time.perf_counter()
        self.last = self.started

    def step(self, text: str, *, timed: bool = False) -> None:
        """What came of a stage."""
        self.number += 1
        now = time.perf_counter()
        took, self.last = f" ({now - self.last:.1f} s)" if timed else "", now
        self.more(f"{self.number}. {text}{took}", indent="")

    def more(self, text: str, indent: str = "   ") -> None:
        """A line below it."""
        out.print(indent + text, highlight=False, markup=False)

    def end(self) -> None:
        """The last line."""
        self.more(f"{time.perf_counter() - self.started:.0f} s in all", indent="")


@dataclass
class Demo:
    """A folder in which the stages follow each other.

    Args:
        folder: where all lies.
        log: the law.
        logs: by name, where its days are.
        tell: prints.
    """

    folder: Path
    log: SyntheticLog
    logs: dict[str, str]
    tell: Teller
    rows: int = 0
    vectors: str = ""

    @classmethod
    def begin(cls, folder: Path, rows: int, tell: Teller) -> Demo:
        """Write the logs; what an earlier demo made of others is cleared away."""
        log, logs = SyntheticLog(rows=rows), {}
        for name, days in (("train", (0, 6)), ("valid", (6, 7)), ("test", (7, 8))):
            logs[name] = str(folder / "logs" / name)
            with progress(f"write {name}", len(log.day_rows(*days))) as bar:
                log.write(logs[name], rows=log.day_rows(*days), progress=bar.advance)
        tell.step(f"{rows:,} rows of generated clicks over {log.days} days", timed=True)
        for name in ("vocabulary", "selection", "pruned"):
            if any((folder / name).glob(_PARQUET)):
                shutil.rmtree(folder / name)
        JobFolder(folder / "node2vec").clear()
        Run.clear(folder / "run")
        return cls(folder, log, logs, tell)

    @property
    def schema(self) -> Schema:
        """What the log's columns mean."""
        return self.log.schema()

    def count_values(self) -> None:
        """``embstore vocab``."""
        about: dict[str, Any] = {"schema": self.schema.to_dict(), "time": "timestamp"}
        output = str(self.folder / "vocabulary")
        settings = counting.VocabularySettings(
            log=self.logs["train"], admit=Admission(min_count=2), output=output, **about
        )
        features = counting.build(settings, progress=progress)["features"]
        values, kept = (sum(of[key] for of in features.values()) for key in ("values", "kept"))
        most = sorted(features, key=lambda name: -features[name]["values"])[:2]
        named = ", ".join(f"{features[name]['values']:,} of {name}" for name in most)
        self.tell.step(f"counted {values:,} values of {len(features)} features ({named}), {kept:,} kept", timed=True)

    def plan_rows(self) -> None:
        """As many rows as a wanted share of collisions takes, to a power of two."""
        sizes = cardinalities(self.vocabulary)
        self.rows = 1 << (rows_for(sizes, COLLISIONS) or 1).bit_length()
        share = shared(sizes, self.rows).share
        text = f"a table of {self.rows:,} rows of {DIM}: {share:.1%} of the values share a row within their feature"
        self.tell.step(text, timed=True)

    def walk(self) -> None:
        """``embstore node2vec``."""
        graph = {"log": self.logs["train"], "pairs": [["user_id", "item_id"]], "weight": "click"}
        places = {"output": str(self.folder / "node2vec"), "publish": {"store": str(self.folder / "store")}}
        found = walking.run(parse(JobSettings, {"graph": graph, **WALKS, **places}), progress=progress)
        self.vectors = found["version"]
        count, edges, auc = found["walks"]["count"], found["graph"]["edges"], found["links"]["auc"]
        text = f"node2vec: {count:,} walks over {edges:,} clicks of users on items"
        self.tell.step(f"{text}; tells held out clicks from none at AUC {auc:.3f}", timed=True)

    def select(self) -> None:
        """``embstore select``."""
        about = {"schema": self.schema.to_dict(), "vocabulary": str(self.folder / "vocabulary"), **SELECT}
        output = str(self.folder / "selection")
        settings = choosing.SelectionSettings(log=self.logs["train"], output=output, **about)
        choosing.select(settings, progress=progress)
        scores = read_scores(self.folder / "selection", self.vocabulary)
        best = {name: int(np.argmax(score_V)) for name, score_V in scores.items()}
        names = sorted(best, key=lambda name: -scores[name][best[name]])[:3]
        shown = ", ".join(f"{name}={self.vocabulary[name].values[best[name]].as_py()}" for name in names)
        self.tell.step(f"scored each value by what it says of a click; of their features the best: {shown}", timed=True)

    def prune(self) -> None:
        """``embstore prune``."""
        before = self.vocabulary
        scores = read_scores(self.folder / "selection", before)
        after = prune(before, scores, keep=KEEP)
        after.to_parquet(self.folder / "pruned")
        _, total = summaries(before, after)
        dropped = total.values - total.kept
        text = f"pruned the {dropped:,} that say least: they are looked up as one value of their feature"
        self.tell.step(text, timed=True)

    def train(self) -> None:
        """``embstore train``."""
        config = {"logs": self.logs, "schema": self.schema.to_dict(), "output": str(self.folder / "run"), **RUN}
        config["table"] = {**RUN["table"], "rows": self.rows, **self._warm_start()}
        config["vocabulary"] = str(self.folder / "pruned")
        run = Run(parse(RunConfig, config), build, progress=progress)
        result = run.train()
        parameters, best = result["parameters"]["total"], self.log.bayes_auc(self.logs["test"])
        text = f"trained {config['model']['name']} over one unified table, {parameters:,} parameters"
        self.tell.step(text, timed=True)
        out.print(metrics_table("", {name: result[name] for name in ("valid", "test")}))
        auc = result["test"]["auc"]
        text = f"[bold]test AUC {auc:.4f} of a possible {best:.4f}[/] (the law's own probabilities)"
        out.print("   " + text, highlight=False)
        show_notes(result)

    def publish(self) -> Version:
        """``embstore publish``."""
        run = Run.open(self.folder / "run", build, progress=progress)
        version = Store(self.folder / "store").publish(run.bundle())
        self.tell.step(f"published {version.id}: table, vocabulary, network", timed=True)
        return version

    def look_up(self, version: Version) -> None:
        """``embstore lookup``, and scores of a few rows, from the published files alone."""
        model = CtrModel.restore(version, build)
        lines = []
        for feature, value in (("category", "books"), ("device", "phone"), ("country", None)):
            vector_D = model.table.lookup(feature, [value])[0]
            numbers = " ".join(f"{number:+.3f}" for number in vector_D[:6].tolist())
            lines.append(f"lookup {feature}={value}: {numbers} … ({len(vector_D)} numbers)")
        batch = next(iter(ParquetLog(self.logs["test"], version.schema).batches(4)))
        with torch.no_grad():
            probabilities = torch.sigmoid(model(batch)).tolist()
        scores = ", ".join(f"{p:.3f}" for p in probabilities)
        self.tell.step("from the published version", timed=True)
        for line in (*lines, f"click probabilities of the first {len(batch)} test rows: {scores}"):
            self.tell.more(line)

    def find_neighbours(self, version: Version) -> None:
        """Nearest categories and items by the published vectors; the law says which categories are alike."""
        category = self._categories()
        pairs, likeness = self._near(version, "category", 1), self.log.likeness()
        each = {frozenset(pair[:2]): pair for pair in sorted(pairs, key=lambda pair: -pair[2])}
        shown = list(each.values())[:NEAREST]
        alike = float(np.mean([likeness[left][right] for left, right, _ in pairs]))
        usual = float(np.mean([of for left, row in likeness.items() for right, of in row.items() if left != right]))
        item = self._near(version, "item_id", NEAREST)[:NEAREST]
        self.tell.step("nearest neighbours by the published vectors (cosine)", timed=True)
        self.tell.more("categories: " + ", ".join(f"{left}-{right} {score:.2f}" for left, right, score in shown))
        text = f"in the law, the tastes for a category and for its nearest have cosine {alike:.2f}, any two {usual:.2f}"
        self.tell.more(text)
        near = ", ".join(f"{other} ({category[other]}) {_score(score)}" for _, other, score in item)
        self.tell.more(f"items: {item[0][0]} ({category[item[0][0]]}): {near}")

    def _near(self, version: Version, feature: str, count: int) -> list[tuple[Any, Any, float]]:
        """Value, near value and cosine: of each value the nearest, the most frequent one first."""
        assert version.vocabulary is not None
        known = version.vocabulary[feature]
        values = values_of(version, feature)
        vectors_VD = vectors_of(version, feature, values)
        order_V = np.argsort(-known.count[known.kept], kind="stable")
        places_VK, scores_VK = Neighbors.build(values, vectors_VD).positions(
            vectors_VD[order_V], count, exclude_Q=order_V
        )
        named = values.to_pylist()
        return [
            (named[at], named[place], float(score))
            for at, row, scores in zip(order_V, places_VK, scores_VK, strict=True)
            for place, score in zip(row, scores, strict=True)
            if place >= 0
        ]

    @property
    def vocabulary(self) -> Vocabulary:
        """The values of the training log."""
        return Vocabulary.from_parquet(self.folder / "vocabulary")

    def _warm_start(self) -> dict[str, Any]:
        entry = {"store": str(self.folder / "store"), "version": self.vectors, "features": ["user_id", "item_id"]}
        return {"warm_start": [entry]}

    def _categories(self) -> dict[int, str]:
        """Of each item, from the log."""
        table = pyarrow.dataset.dataset(self.logs["train"]).to_table(columns=["item_id", "category"])
        found = table.group_by("item_id").aggregate([("category", "min")])
        return dict(zip(found["item_id"].to_pylist(), found["category_min"].to_pylist(), strict=True))


def _score(cosine: float) -> str:
    return f"{cosine:.2f}" + (", the same row" if cosine > 1 - 1e-6 else "")
