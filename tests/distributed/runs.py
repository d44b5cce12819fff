"""A small run that every test of training by ranks starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embstore.synthetic import SyntheticLog

LOG = SyntheticLog(rows=6_200, days=4, users=150, items=80)


def write_logs(folder: Path) -> Path:
    """Logs of an odd number of rows, in several files."""
    for name, days in (("train", (0, 3)), ("valid", (3, 4))):
        LOG.write(folder / name, rows=LOG.day_rows(*days), rows_per_file=1_100)
    return folder


def config(logs: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Hashed, exact and list features, dense columns, batch norm, penalty, shuffle, a last batch of another size."""
    return {
        "logs": {name: str(logs / name) for name in ("train", "valid")},
        "schema": {
            "label": "click",
            "group": "user_id",
            "features": [
                {"name": "user_id", "lookups": 2},
                "item_id",
                {"name": "category", "exact": True},
                {"name": "tags", "pooling": "mean"},
            ],
            "dense": ["price", {"name": "age", "scale": "linear"}],
        },
        "table": {"rows": 999, "dim": 8, "num_tables": 3, "optimizer": {"learning_rate": 0.1, "l2": 1e-3, "eps": 1e-3}},
        "model": {"name": "dcn", "hidden": [16], "cross_layers": 1},
        "training": {
            "batch_size": 257,
            "epochs": 2,
            "schedule": "plateau",
            "evaluate_every": 8,
            "shuffle_window": 1000,
            "evaluation_batch_size": 1001,
            "seed": 5,
        },
        "output": str(output),
        **more,
    }
