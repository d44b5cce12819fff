"""A log of some days in two parts, and runs over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from embstore import models
from embstore.config import parse
from embstore.run import Run
from embstore.settings import RunConfig
from embstore.store import Version
from embstore.synthetic import SyntheticLog

LOG = SyntheticLog(rows=12_000, days=6, users=300, items=100)
OPTIMIZERS = [{"learning_rate": 0.1}, {"name": "adam", "learning_rate": 0.01}, {"learning_rate": 0.1, "l2": 1e-3}]


def make_run(logs: Path, name: str, folder: Path, **settings: Any) -> Run:
    config: dict[str, Any] = {
        "logs": {"train": str(logs / name)},
        "training": {"batch_size": 500, "checkpoint_every": 3},
        "output": str(folder / name),
        **settings,
    }
    return Run(parse(RunConfig, config), models.build)


def first_run(logs: Path, folder: Path, optimizer: dict[str, Any], **settings: Any) -> Run:
    schema = {"label": "click", "features": ["user_id", {"name": "category", "exact": True}], "dense": ["price"]}
    table = {"rows": 2000, "dim": 4, "seed": 3, "optimizer": optimizer}
    model = {"name": "dnn", "hidden": [8]}
    return make_run(logs, "first", folder, schema=schema, table=table, model=model, **settings)


def same_rows(version: Version, run: Run) -> None:
    table = run.trained().table
    assert torch.equal(version.table.read_rows(0, table.num_rows), table.read_rows(0, table.num_rows))
