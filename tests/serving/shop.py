"""A small bundle with each kind of column, and what its versions are asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from embstore.ctr import CtrModel
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.models import build
from embstore.normalization import StreamingNormalizer
from embstore.schema import Dense, Feature, Schema
from embstore.store import Bundle
from embstore.tokens import token
from embstore.vocabulary import FeatureValues, Vocabulary

FEATURES = (
    Feature(name="user", lookups=2),
    Feature(name="item"),
    Feature(name="tags", pooling="mean", max_length=3),
    Feature(name="country", exact=True),
    Feature(name="hour", column="time", transform="hour"),
)
SCHEMA = Schema(features=FEATURES, dense=(Dense(name="price", scale="log"), Dense(name="age")), label="click")
COLUMNS = {
    "user": "string",
    "item": "int64",
    "tags": "list<element: string>",
    "country": "string",
    "time": "timestamp[us]",
}
RECORDS: dict[str, Any] = {
    "user": ["ann", "bob", None, "", "zoë"],
    "item": [1, -7, 2**62, None, 0],
    "tags": [["a", "b"], [], None, ["a", None, "c", "d", "e"], ["x"]],
    "country": ["de", "fr", "never seen", None, "de"],
    "hour": [0, 23, None, 5, 7],
    "price": [1.5, None, 0.0, -3.0, 1e9],
    "age": [33.0, 41.0, None, 0.0, 17.0],
}
DIM = 8


VOCABULARY = Vocabulary(
    {
        "user": FeatureValues.of("user", ["ann", "bob", "zoë", "eve"], kept=[True, True, True, False]),
        "item": FeatureValues.of("item", [1, -7, 2**62, 0]),
    }
)


def bundle(seed: int = 0, dtype: torch.dtype = torch.float32, vocabulary: Vocabulary | None = None) -> Bundle:
    """A model whose every number is random."""
    exact = {"country": _tokens("de", "fr", "us")}
    table = UnifiedEmbedding(FEATURES, 1000, DIM, exact_tokens=exact, seed=3, dtype=dtype, init_std=1.0)
    generator = torch.Generator().manual_seed(seed)
    table.weight.copy_(torch.randn(table.weight.shape, generator=generator).to(dtype))
    description = {"name": "dnn", "settings": {"hidden": [16]}, "dense_width": 2, "widths": list(table.widths)}
    torch.manual_seed(seed)
    network = build("dnn", dense_width=2, widths=list(table.widths), hidden=(16,))
    normalizer = StreamingNormalizer(SCHEMA.dense)
    normalizer.update(torch.rand(100, 2, generator=generator) * 50)
    model = CtrModel(table, normalizer, network)
    return Bundle(
        table=table,
        schema=SCHEMA,
        dense_state=model.dense_state(),
        model=description,
        metrics={},
        lineage={},
        vocabulary=vocabulary,
        columns={("hour" if name == "time" else name): kind for name, kind in COLUMNS.items()},
    )


def _tokens(*values: str) -> torch.Tensor:
    return torch.from_numpy(np.array([token(value) for value in values], dtype=np.uint64).view(np.int64))
