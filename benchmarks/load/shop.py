"""The store that serving benchmarks publish and serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.load.callers import DIM, FEATURE, MODEL
from benchmarks.workloads import zipf
from embstore.ctr import CtrModel
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.models import build
from embstore.normalization import StreamingNormalizer
from embstore.schema import Dense, Feature, Schema
from embstore.store import Bundle, Store

VALUES = 500  # of a request
_QUESTIONS = 512  # different ones
FEATURES = (Feature(name=FEATURE), Feature(name="item"))
_HIDDEN = (64, 32)


def published(folder: Path, rows: int, dim: int = DIM) -> Store:
    """A store with one version in production: a table of random rows, and a network to score with."""
    table = UnifiedEmbedding(FEATURES, rows, dim)
    table.weight.copy_(torch.randn(table.weight.shape, generator=torch.Generator().manual_seed(1)))
    store = Store(folder / MODEL)
    store.promote(store.publish(bundle(table)).id)
    return store


def bundle(table: UnifiedEmbedding) -> Bundle:
    """With a network, as a ranker's model is published."""
    schema = Schema(features=FEATURES, dense=(Dense(name="price"),), label="click")
    description = {"name": "dnn", "settings": {"hidden": list(_HIDDEN)}, "dense_width": 1, "widths": list(table.widths)}
    torch.manual_seed(1)
    network = build("dnn", dense_width=1, widths=list(table.widths), hidden=_HIDDEN)
    normalizer = StreamingNormalizer(schema.dense)
    normalizer.update(torch.rand(100, 1, generator=torch.Generator().manual_seed(1)) * 10)
    return Bundle(
        table=table,
        schema=schema,
        dense_state=CtrModel(table, normalizer, network).dense_state(),
        model=description,
        metrics={},
        lineage={"space": "benchmark"},
        columns={FEATURE: "string", "item": "string"},
    )


def questions(path: Path, vocabulary: int, count: int = VALUES) -> NDArray[np.int64]:
    """Numbers of the values of each request, by Zipf's law, also written to a file: ``[requests, count]``."""
    generator = np.random.default_rng(1)
    # Where a value lies in memory says nothing of how often it is asked for.
    shuffled = generator.permutation(vocabulary)
    ids_QN = shuffled[zipf(_QUESTIONS * count, generator, vocabulary)].reshape(_QUESTIONS, count)
    np.save(path, ids_QN)
    return ids_QN


def texts(ids: NDArray[np.int64]) -> list[str]:
    """The values of numbers."""
    return [f"user_{number}" for number in ids.tolist()]
