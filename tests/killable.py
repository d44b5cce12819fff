"""A small training run in a process of its own, to be killed: ``python killable.py LOGS FOLDER``."""

from __future__ import annotations

import sys

from embstore import models
from embstore.config import parse
from embstore.run import Run
from embstore.settings import RunConfig


def config(logs: str, folder: str) -> RunConfig:
    """The run: hashed, exact and list features, dense columns, dropout, a penalty, a shuffle, frequent checkpoints."""
    return parse(
        RunConfig,
        {
            "logs": {name: f"{logs}/{name}" for name in ("train", "valid", "test")},
            "schema": {
                "label": "click",
                "group": "user_id",
                "features": [
                    {"name": "user_id", "lookups": 2},
                    "item_id",
                    {"name": "category", "exact": True},
                    {"name": "tags", "pooling": "mean"},
                    {"name": "hour", "column": "timestamp", "transform": "hour"},
                ],
                "dense": ["price", {"name": "age", "scale": "linear"}],
            },
            "table": {
                "rows": 3000,
                "dim": 8,
                "num_tables": 2,
                "optimizer": {"learning_rate": 0.1, "l2": 1e-3, "eps": 1e-4},
            },
            "model": {"name": "dcn", "hidden": [32], "cross_layers": 1, "dropout": 0.2},
            "training": {
                "batch_size": 250,
                "epochs": 2,
                "schedule": "plateau",
                "evaluate_every": 30,
                "checkpoint_every": 7,
                "shuffle_window": 3000,
                "seed": 5,
            },
            "output": folder,
        },
    )


if __name__ == "__main__":
    Run(config(*sys.argv[1:]), models.build).train()
