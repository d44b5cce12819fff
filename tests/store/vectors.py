"""Tables of every sort of feature, published; what their exports hold. Made for the tests of export and warm start."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from hypothesis import strategies as st

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.schema import Feature, Schema
from embstore.store import Bundle, Store, Version
from embstore.tokens import token

FEATURES = (
    Feature(name="user", lookups=2),
    Feature(name="Straße/..=%", column="item"),
    Feature(name="tags", pooling="mean", max_length=2),
    Feature(name="hour", column="time", transform="hour"),
    Feature(name="day", exact=True, lookups=2),
    Feature(name="7"),
)
COLUMNS = {
    "user": "string",
    "Straße/..=%": "int64",
    "tags": "list<element: string>",
    "hour": "timestamp[us]",
    "day": "int64",
    "7": "bool",
}
KNOWN_DAYS = [1, 2, 7]
VALUES: dict[str, list[Any]] = {
    "user": ["ann", "", "été", "👩‍👩‍👧", "\ufeff\u202e", "nan", "null", " a ", "a\nb", "x" * 3000],
    "Straße/..=%": [0, -1, 2**63 - 1, -(2**63), 17],
    "tags": ["a", "b"],
    "hour": [0, 23, 5],
    "day": [1, 2, 7, 8],
    "7": [True, False],
}
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def tokens_of(values: list[Any]) -> torch.Tensor:
    return torch.tensor([np.uint64(token(value)).astype(np.int64) for value in values])


def make_table(dtype: torch.dtype = torch.float32, num_rows: int = 40, **options: Any) -> UnifiedEmbedding:
    days = {"day": tokens_of(KNOWN_DAYS)}
    return UnifiedEmbedding(FEATURES, num_rows, 3, exact_tokens=days, dtype=dtype, init_std=1.0, **options)


def publish(folder: Path, table: UnifiedEmbedding) -> Version:
    bundle = Bundle(
        table=table,
        schema=Schema(features=table.features, label="click"),
        dense_state={"network.weight": torch.arange(6.0).reshape(2, 3), "normalizer.count": torch.tensor(5)},
        model={"name": "dnn", "settings": {}, "dense_width": 0, "widths": list(table.widths)},
        metrics={},
        lineage={},
        columns={name: kind for name, kind in COLUMNS.items() if name in table.plan.names},
    )
    return Store(folder).publish(bundle)


def bits(vectors: Any) -> list[Any]:
    return np.asarray(vectors, dtype=np.float32).view(np.int32).tolist()


def looked_up(table: UnifiedEmbedding, feature: str, values: list[Any]) -> Any:
    if feature == "hour":
        values = pa.array([datetime(2026, 1, 2, hour) for hour in values], pa.timestamp("us"))
    return table.lookup(feature, values).numpy()


def read(folder: Path, feature: str) -> pa.Table:
    found = ds.dataset(folder, partitioning=ds.partitioning(pa.schema([("feature", pa.string())]), flavor="hive"))
    (path,) = [fragment.path for fragment in found.get_fragments(filter=ds.field("feature") == feature)]
    return pq.ParquetFile(path).read()
