"""A small bundle to publish, made of nothing but tensors; and a bucket to publish it to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import buckets
import pytest
import torch
from torch import Tensor

from embstore.schema import Dense, Feature, Schema
from embstore.store import Bundle, Version

SCHEMA = Schema(
    features=(
        Feature(name="user", lookups=2),
        Feature(name="Straße/..", pooling="mean"),
        Feature(name="day", exact=True),
    ),
    dense=(Dense(name="price"),),
    label="click",
)
TOKENS = torch.tensor([-(2**63), -5, 0, 7, 2**63 - 1])


class MemoryTable:
    """Rows in memory: hashed ones, then the exact block of ``day``."""

    def __init__(self, rows_ND: Tensor) -> None:
        self.rows_ND = rows_ND
        self.largest_read = 0

    @property
    def dim(self) -> int:
        return self.rows_ND.shape[1]

    @property
    def num_rows(self) -> int:
        return len(self.rows_ND)

    @property
    def dtype(self) -> torch.dtype:
        return self.rows_ND.dtype

    def describe(self) -> dict[str, Any]:
        hashed = self.num_rows - len(TOKENS) - 1
        ranges = {"user": [(0, hashed)] * 2, "Straße/..": [(0, hashed)], "day": [(hashed, len(TOKENS) + 1)]}
        features = []
        for feature in SCHEMA.features:
            rows = [{"base": base, "size": size} for base, size in ranges[feature.name]]
            features.append({**asdict(feature), "rows": rows})
        return {"hash_spec": 1, "seed": 2**64 - 1, "hashed_rows": hashed, "num_tables": 1, "features": features}

    def read_rows(self, start: int, stop: int) -> Tensor:
        self.largest_read = max(self.largest_read, stop - start)
        return self.rows_ND[start:stop]

    def gather(self, rows: Tensor) -> Tensor:
        return self.rows_ND[rows]

    def exact_tokens(self) -> Mapping[str, Tensor]:
        return {"day": TOKENS}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def version(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """A published table of every sort of feature (``vectors.py``)."""
    from vectors import make_table, publish

    return publish(tmp_path_factory.mktemp("store"), make_table(request.param))


@pytest.fixture
def make_bundle() -> Callable[..., Bundle]:
    """``make_bundle(rows=40, dim=3, dtype=torch.float32, seed=0, rows_ND=None, **fields_of_the_bundle)``."""

    def make(
        *,
        rows: int = 40,
        dim: int = 3,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        rows_ND: Tensor | None = None,
        **fields: Any,
    ) -> Bundle:
        random = torch.Generator().manual_seed(seed)
        drawn_ND = torch.randn(rows, dim, generator=random).to(dtype)
        whole: dict[str, Any] = {
            "table": MemoryTable(drawn_ND if rows_ND is None else rows_ND),
            "schema": SCHEMA,
            "dense_state": {
                "normalizer.count": torch.tensor(5, dtype=torch.int64),
                "network.out.weight": torch.randn(1, 4, generator=random),
                "network.out.bias": torch.zeros(1, dtype=torch.float16),
            },
            "model": {
                "name": "dnn",
                "settings": {"hidden": [4], "dropout": 0.1},
                "dense_width": 1,
                "widths": [6, 3, 3],
            },
            "metrics": {"valid": {"auc": 0.75, "gauc": float("nan")}},
            "lineage": {"logs": {"train": "days/*.parquet"}, "config": {"seed": 1}},
            "columns": {"user": "int64", "day": "list<item: string>"},
        }
        return Bundle(**{**whole, **fields})

    return make


@pytest.fixture(scope="session")
def server() -> Iterator[buckets.Server]:
    pytest.importorskip("moto", reason="moto is not installed: no S3 server to test against")
    server = buckets.Server()
    yield server
    server.close()


@pytest.fixture
def s3(server: buckets.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A prefix in the server's bucket that nothing lies under."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EMBSTORE_CACHE", str(tmp_path / "cache"))
    return buckets.new_uri()
