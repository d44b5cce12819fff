"""The job of ``embstore select`` on planted rows in Parquet: seconds and memory at several sizes, each in a process.

    python -m benchmarks.selections.scale SETTINGS

``SETTINGS`` is JSON: ``log`` (the files), ``features``, ``vocabulary``, ``warm`` (a log of a few rows, which compiles)
and ``output``. The last line printed is JSON: seconds and CPU seconds of each stage, and the greatest memory while the
job ran, less that before it.

    count     the log is read, and its columns are counted
    once      the largest eigenvalue is looked for in 16 batches, whatever the rows
    search    the log is read again, with a step of Adam every eight batches

A pass is ``count`` and ``search``: what is done to every row.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.graphs.processes import ended, judged
from benchmarks.report import claim
from benchmarks.selections.part import PLANTED, Part
from benchmarks.watching import Watched
from embstore.pipelines.selection import SelectionSettings, select
from embstore.progress import Bar, Progress
from embstore.selection.planted import PlantedBatches
from embstore.vocabulary import FeatureValues, Vocabulary

PROCESS = (sys.executable, "-m", "benchmarks.selections.scale")
FILES = (1, 2, 4, 8)  # of the log, that each size reads
ROW_GROUP = 16  # batches


def scale(work: Path, *, rows: int, columns: int, files: Sequence[int] = FILES) -> Part:
    """From an eighth of the rows to all.

    Args:
        work: folder of the log, which is made when it isn't there.
        rows: of all files together.
        columns: planted.
        files: of eight, for each size.
    """
    source = PlantedBatches(**{**PLANTED, "columns": columns, "batches": rows // PLANTED["rows"]})
    log = work / f"planted-{rows}-{columns}"
    if not log.exists():
        write(source, log)
    sizes = {}
    for number in files:
        output = work / "selected"
        shutil.rmtree(output, ignore_errors=True)
        settings = {
            "log": [str(log / f"{name}.parquet") for name in range(number)],
            "features": list(source.layout.names),
            "vocabulary": str(log / "vocabulary"),
            "warm": str(log / "warm.parquet"),
            "output": str(output),
        }
        sizes[rows // FILES[-1] * number] = ended(PROCESS, settings)
        shutil.rmtree(output)
    return measured(sizes, columns=source.layout.sparse)


def measured(sizes: dict[int, dict[str, Any]], *, columns: int) -> Part:
    """Claims of reports by rows, ascending."""
    fields = sum(PLANTED[name] for name in ("signal_fields", "mixed_fields", "noise_fields"))
    seconds = {rows: of["seconds"]["count"] + of["seconds"]["search"] for rows, of in sizes.items()}
    cpu = {rows: of["cpu_seconds"]["count"] + of["cpu_seconds"]["search"] for rows, of in sizes.items()}
    memory = {rows: of["memory"] / 2**20 for rows, of in sizes.items()}
    few, most = min(sizes), max(sizes)
    claims = {
        "exponent": claim(exponent(seconds), ""),
        "exponent_of_cpu_seconds": claim(exponent(cpu), ""),
        "log_nnz_per_second": claim(most * fields / seconds[most], "1/s"),
        "log_nnz_per_cpu_second": claim(most * fields / cpu[most], "1/s"),
        "job_seconds": claim(sizes[most]["whole"], "s"),
        "pass_memory": claim(memory[most], "MiB", f"{few:,} of {most:,} rows", memory[few], False),
    }
    claims, others = judged(claims, sizes.values())
    return Part(
        claims=claims,
        samples={
            "scale": {
                "columns": columns,
                "entries_of_a_row": fields,
                "by_rows": {str(rows): of for rows, of in sizes.items()},
                "seconds_by_rows": {str(rows): of for rows, of in seconds.items()},
                "cpu_seconds_by_rows": {str(rows): of for rows, of in cpu.items()},
                "memory_by_rows": {str(rows): of for rows, of in memory.items()},
                "share_of_cores_used_by_others": round(others, 3),
            }
        },
    )


def exponent(by_size: dict[int, float]) -> float:
    """Of a power of the size, by least squares of logarithms.

    >>> round(exponent({1_000: 2.0, 10_000: 20.0, 100_000: 200.0}), 6)
    1.0
    """
    return float(np.polyfit(np.log(list(by_size)), np.log(list(by_size.values())), 1)[0])


def write(source: PlantedBatches, folder: Path) -> None:
    """Planted batches as a log of eight files, a short one, and a vocabulary of all values; whole or not at all."""
    temporary, layout = folder.with_name(f"{folder.name}.new"), source.layout
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    each = source.batches // FILES[-1]
    parts = {str(number): range(number * each, (number + 1) * each) for number in range(FILES[-1])}
    for name, numbers in {**parts, "warm": range(1)}.items():
        with pq.ParquetWriter(temporary / f"{name}.parquet", _table(source, numbers[:1]).schema) as file:
            for at in range(0, len(numbers), ROW_GROUP):
                file.write_table(_table(source, numbers[at : at + ROW_GROUP]))
    values = zip(layout.names, np.diff(layout.bounds_F), strict=True)
    Vocabulary({name: FeatureValues.of(name, np.arange(size)) for name, size in values}).to_parquet(
        temporary / "vocabulary"
    )
    temporary.rename(folder)


def _table(source: PlantedBatches, numbers: Sequence[int]) -> pa.Table:
    layout, batches = source.layout, [source.batch(number) for number in numbers]
    codes_NF = np.concatenate([batch.indices_E.reshape(len(batch), -1) for batch in batches])
    values = {name: codes_NF[:, f] - np.int32(layout.bounds_F[f]) for f, name in enumerate(layout.names)}
    return pa.table({**values, "y": np.concatenate([batch.labels_N for batch in batches]).astype(np.int8)})


class Stages(Progress):
    """Seconds and CPU seconds of what the job shows bars for, and of what is between."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._at = time.perf_counter(), time.process_time()

    def __call__(self, label: str, total: int | None) -> Bar:
        return _Stage(self, label)

    def lap(self, name: str) -> None:
        """Since the lap before."""
        now = time.perf_counter(), time.process_time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now[0] - self._at[0]
        self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + now[1] - self._at[1]
        self._at = now


class _Stage(Bar):
    def __init__(self, stages: Stages, label: str) -> None:
        self.stages, self.label = stages, label

    def __enter__(self) -> Bar:
        self.stages.lap({"count": "open", "search": "once"}.get(self.label, "between"))
        return self

    def __exit__(self, *_: object) -> None:
        self.stages.lap(self.label)


def main(settings: dict[str, Any]) -> dict[str, Any]:
    how = {
        "schema": {"label": "y", "features": settings["features"]},
        "vocabulary": settings["vocabulary"],
        "options": {"level": "values"},
    }
    warm = f"{settings['output']}-warm"
    select(SelectionSettings(log=settings["warm"], output=warm, **how))
    shutil.rmtree(warm)
    stages, start = Stages(), time.perf_counter()
    with Watched() as watched:
        select(SelectionSettings(log=tuple(settings["log"]), output=settings["output"], **how), progress=stages)
    return {
        "seconds": stages.seconds,
        "cpu_seconds": stages.cpu_seconds,
        "whole": time.perf_counter() - start,
        "memory": watched.bytes,
        "cores": len(os.sched_getaffinity(0)),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
