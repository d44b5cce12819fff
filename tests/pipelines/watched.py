"""A small run on a Ray cluster whose workers are watched and killed: its builder writes down what a process trains.

    folder/seen-<began>-<pid>.jsonl    one line before each training step: its epoch, its last row, the ids of its rows

The log's group is the id of a row.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from runs import LOG, config
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from embstore import models
from embstore.batch import Batch
from embstore.config import parse
from embstore.ctr import CtrModel
from embstore.settings import RunConfig

WORKERS = 2


def write_logs(folder: Path) -> Path:
    """Logs whose rows have a number, in several files."""
    for name, days in (("train", (0, 3)), ("valid", (3, 4))):
        (folder / name).mkdir()
        table = LOG.table(LOG.day_rows(*days))
        table = table.append_column("number", pa.array(np.arange(len(table))))
        for start in range(0, len(table), 1_100):
            pq.write_table(table.slice(start, 1_100), folder / name / f"{start:06d}.parquet", row_group_size=500)
    return folder


def run_config(logs: Path, output: Path, **training: Any) -> RunConfig:
    """The run: a checkpoint every three steps, the row's number as group."""
    data = config(logs, output)
    data["schema"] = {**data["schema"], "group": "number"}
    data["training"] = {**data["training"], "checkpoint_every": 3, **training}
    data["model"] = {**data["model"], "dropout": 0.1}
    return parse(RunConfig, data)


@dataclass(frozen=True)
class Recording:
    """Builds as ``models.build`` does, in a process whose steps are written down."""

    folder: Path
    here: int = field(default_factory=os.getpid)  # where it is made, and only looked at

    def __call__(self, name: str, **settings: Any) -> nn.Module:
        if os.getpid() == self.here:
            return models.build(name, **settings)
        path = self.folder / f"seen-{time.time_ns()}-{os.getpid()}.jsonl"
        with open(path, "x"):
            pass

        def write(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(module, CtrModel) and module.training:
                (batch,) = inputs
                assert isinstance(batch, Batch)
                step = {"epoch": batch.cursor.epoch, "row": batch.cursor.row, "ids": batch.group_B.tolist()}
                with open(path, "a") as out:
                    out.write(json.dumps(step) + "\n")

        register_module_forward_pre_hook(write)
        return models.build(name, **settings)


@dataclass(frozen=True)
class Breaking:
    """A builder with a bug that workers alone come to."""

    text: str = "a bug of the network"
    here: int = field(default_factory=os.getpid)

    def __call__(self, name: str, **settings: Any) -> nn.Module:
        if os.getpid() == self.here:
            return models.build(name, **settings)
        raise ZeroDivisionError(self.text)


def recorded(folder: Path) -> list[tuple[int, int, list[dict[str, Any]]]]:
    """``(began, pid, steps)`` of each process, in the order they began."""
    out = []
    for path in folder.glob("seen-*.jsonl"):
        began, pid = (int(part) for part in path.stem.split("-")[1:])
        lines = path.read_text().split("\n")[:-1]  # without a line that was being written
        out.append((began, pid, [json.loads(line) for line in lines]))
    return sorted(out)
