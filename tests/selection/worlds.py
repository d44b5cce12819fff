"""Rows with known signal as a log, and models trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from embstore.ctr import CtrModel
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.kernels import TableOptimizer
from embstore.logs import ParquetLog
from embstore.models import build
from embstore.normalization import StreamingNormalizer
from embstore.schema import Schema
from embstore.selection import Columns
from embstore.selection.batches import SparseBatch
from embstore.selection.planted import PlantedBatches
from embstore.training import Trainer
from embstore.training_settings import TrainingSettings
from embstore.vocabulary import FeatureValues, Vocabulary


@dataclass(frozen=True)
class World:
    """Planted rows as training and validation logs, whose columns are the planted ones and two more a field."""

    planted: PlantedBatches
    train: ParquetLog
    valid: ParquetLog
    columns: Columns

    @classmethod
    def write(cls, folder: Path, planted: PlantedBatches, valid: int) -> World:
        """The last ``valid`` batches are for validation. Every value is in the vocabulary, seen or not."""
        layout = planted.layout
        schema = Schema.from_dict({"label": "y", "features": list(layout.names)})
        for name, numbers in (("train", range(planted.batches - valid)), ("valid", range(valid))):
            (folder / name).mkdir()
            offset = planted.batches - valid if name == "valid" else 0
            for number in numbers:
                batch = planted.batch(offset + number)
                codes_NF = batch.indices_E.reshape(len(batch), -1) - layout.bounds_F[:-1]
                columns = {field: codes_NF[:, f] for f, field in enumerate(layout.names)}
                table = pa.table({**columns, "y": batch.labels_N.astype(np.int8)})
                pq.write_table(table, folder / name / f"{number:03}.parquet")
        of = {name: range(size) for name, size in zip(layout.names, np.diff(layout.bounds_F), strict=True)}
        vocabulary = Vocabulary({name: FeatureValues.of(name, list(values)) for name, values in of.items()})
        train, valid_log = (ParquetLog(folder / name, schema) for name in ("train", "valid"))
        return cls(planted, train, valid_log, Columns(schema=schema, vocabulary=vocabulary))

    def batches(self) -> list[SparseBatch]:
        return [self.columns.batch(batch) for batch in self.train.batches(4096)]

    def planted_columns(self) -> set[int]:
        """In the log's layout."""
        return {int(self.column(column)) for column in self.planted.planted_columns}

    def judged_columns(self) -> set[int]:
        """The planted ones, and all that have no effect and rows to say so."""
        known = np.flatnonzero(self.planted.effect_D == 0)
        return self.planted_columns() | {int(self.column(column)) for column in known}

    def column(self, planted: int) -> int:
        field = int(np.searchsorted(self.planted.layout.bounds_F, planted, side="right")) - 1
        return int(planted - self.planted.layout.bounds_F[field] + self.columns.layout.bounds_F[field])

    def model(self, name: str = "dnn", **settings: object) -> CtrModel:
        schema = self.train.schema
        optimizer = TableOptimizer(learning_rate=0.05)
        table = UnifiedEmbedding(schema.features, 4096, 8, optimizer=optimizer, init_std=0.01)
        network = build(name, dense_width=len(schema.dense), widths=list(table.widths), **settings)
        return CtrModel(table, StreamingNormalizer(schema.dense), network)


def trained(world: World, folder: Path, epochs: int = 2) -> CtrModel:
    """A small DNN after some epochs."""
    torch.manual_seed(0)
    model = world.model(hidden=(32,), batch_norm=False)
    settings = TrainingSettings(batch_size=512, epochs=epochs, learning_rate=2e-3, checkpoint_minutes=None)
    Trainer(model, settings, folder).fit(world.train)
    return model
