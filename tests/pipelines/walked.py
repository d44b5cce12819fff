"""A small node2vec job over users who like the items of their kind, and what its folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shown import Shown

from embstore.config import parse
from embstore.node2vec import pieces
from embstore.node2vec.settings import JobSettings
from embstore.pipelines import graphs
from embstore.pipelines.node2vec import run

USERS, ITEMS, ROWS = 120, 60, 3_000


def write_log(folder: Path) -> Path:
    """Files of several row groups, with a rating and a time."""
    draw = np.random.default_rng(0)
    user = draw.integers(USERS, size=ROWS)
    item = (draw.integers(ITEMS // 4, size=ROWS) * 4 + user % 4) % ITEMS
    table = pa.table(
        {
            "user": [f"u{number}" for number in user],
            "item": item,
            "rating": draw.integers(1, 6, size=ROWS).astype(np.float32),
            "time": draw.integers(0, 10_000, size=ROWS),
        }
    )
    for number, start in enumerate(range(0, ROWS, 1_000)):
        pq.write_table(table.slice(start, 1_000), folder / f"{number}.parquet", row_group_size=300)
    return folder


def settings(log: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Of a job: pairs and sessions, weighted; walks of several pieces, where ``make_small`` is called."""
    graph = {
        "log": str(log),
        "pairs": [["user", "item"]],
        "sessions": [{"column": "item", "by": "user", "time": "time", "window": 500}],
        "weight": "rating",
    }
    return {
        "graph": graph,
        "walks": {"p": 2.0, "q": 0.5, "length": 20, "num_walks": 10},
        "skip_gram": {"dim": 8, "window": 3, "epochs": 2},
        "output": str(output),
        **more,
    }


def job(log: Path, output: Path, **more: Any) -> JobSettings:
    return parse(JobSettings, settings(log, output, **more))


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that there are many."""
    monkeypatch.setattr(pieces, "_TRAINED", 64 * 20)
    monkeypatch.setattr(pieces, "_WALKED", 3 * 64 * 20)
    monkeypatch.setattr(graphs, "_ROWS", 300)


def files(folder: Path) -> dict[str, bytes]:
    """All that a job leaves, by name; but for curves for TensorBoard, which have times in them."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "tensorboard"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def command(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    process = started(config, *options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def started(config: Path, *options: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [Path(__file__).parents[2], *sys.path]))
    command = [sys.executable, "-m", "embstore", "node2vec", str(config), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(there: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    last = time.monotonic() + 240
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < last
        time.sleep(0.002)


def undisturbed_job(log: Path, folder: Path) -> dict[str, Any]:
    """A job that nothing disturbs, done by this process in whole pieces."""
    shown = Shown()
    result = run(job(log, folder), progress=shown)
    return {"folder": folder, "result": result, "shown": shown, "files": files(folder)}
