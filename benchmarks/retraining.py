"""A model trained again on part of its values: what ``benchmarks.selection`` compares methods by.

    Retraining ──train(None)──> the full model ──a method──> scores ──train(kept)──> AUC on valid and test

``configs/CONFIG.yaml`` says how, alike for all methods: the same rows in the same order from the same seed. A dropped
value is looked up as its feature's pruned token, or as its stand-in, by the run's own ``vocabulary``; it has no row.
The share of values is that of all features' together.

Suffixes: V values of a feature, D columns of a layout, A values of all features.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore import models
from embstore.ctr import CtrModel
from embstore.errors import DatasetError
from embstore.logs import ParquetLog
from embstore.run import Run
from embstore.schema import Schema
from embstore.selection import Columns, Scores
from embstore.settings import RunConfig
from embstore.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A training: AUC on both logs, the rows of its table, seconds, and the model."""

    valid: float
    test: float
    rows: int
    seconds: float
    model: CtrModel

    def told(self) -> dict[str, float]:
        """But for the model."""
        return {"valid": self.valid, "test": self.test, "rows": self.rows, "seconds": round(self.seconds, 2)}


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """Trainings of ``configs/CONFIG.yaml`` from one seed.

    Args:
        config: its name.
        seed: of all that is drawn.
        folder: for the runs.
    """

    config: str
    seed: int
    folder: Path

    @cached_property
    def settings(self) -> RunConfig:
        """With paths of the logs.

        Raises:
            DatasetError: they aren't there.
        """
        config = RunConfig.from_yaml(ROOT / "configs" / f"{self.config}.yaml")
        logs = {split: str(ROOT / path) for split, path in vars(config.logs).items()}
        if not Path(logs["train"]).is_dir():
            name = Path(config.logs.train).parent
            raise DatasetError(
                f"logs of {self.config}",
                expected=config.logs.train,
                found="no such folder",
                do=f"make them: embstore dataset {name.name} --from RAW --to {name}",
            )
        return replace(config, logs=replace(config.logs, **logs))

    @cached_property
    def schema(self) -> Schema:
        """Of the logs."""
        return self.settings.read_schema()

    def log(self, split: str = "train") -> ParquetLog:
        """One of them."""
        return ParquetLog(getattr(self.settings.logs, split), self.schema)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """All values of the training log."""
        return Vocabulary.collect(self.log())

    @cached_property
    def columns(self) -> Columns:
        """Of these values."""
        return Columns(schema=self.schema, vocabulary=self.vocabulary)

    @cached_property
    def values_A(self) -> NDArray[np.int64]:
        """The column of each value, without those for missing and for other ones."""
        bounds = self.columns.layout.bounds_F
        parts = [
            start + np.arange(len(self.vocabulary[name]))
            for name, start in zip(self.columns.layout.names, bounds[:-1], strict=True)
        ]
        return np.concatenate(parts)

    def best_D(self, scores: Scores, share: float) -> NDArray[np.bool_]:
        """Which columns are kept: this share of all values, the best; of equals, those that come first."""
        order_A = np.argsort(-scores.log_column_D[self.values_A], kind="stable")
        kept_D = np.zeros(self.columns.layout.columns, bool)
        kept_D[self.values_A[order_A[: round(share * len(order_A))]]] = True
        return kept_D

    def pruned(self, kept_D: NDArray[np.bool_]) -> Vocabulary:
        """The vocabulary with the values of these columns alone kept."""
        out = {}
        for name, start in zip(self.columns.layout.names, self.columns.layout.bounds_F[:-1], strict=True):
            of = self.vocabulary[name]
            out[name] = of.keep(kept_D[start : start + len(of)].copy())
        return Vocabulary(out)

    def train(self, name: str, kept: Vocabulary | None = None) -> Outcome:
        """Train by a vocabulary of fewer values, or on all."""
        folder = self.folder / f"{self.config}-{self.seed}-{name}"
        config = self.settings.with_seed(self.seed, str(folder))
        if kept is not None:
            where = self.folder / f"{self.config}-{self.seed}-{name}-vocabulary"
            kept.to_parquet(where)
            config = replace(config, vocabulary=str(where))
        start = time.perf_counter()
        run = Run(config, models.build)
        result: dict[str, Any] = run.train()
        model = run.trained()
        return Outcome(
            valid=result["valid"]["auc"],
            test=result["test"]["auc"],
            rows=model.table.num_rows,
            seconds=time.perf_counter() - start,
            model=model,
        )
