"""Summing up the values of a log's features: embstore against DuckDB, and in little memory.

Generated clicks in Parquet, eight features: text of few and of many values, integers, lists, parts of a timestamp. For
each feature its distinct values, how often each was seen, its clicks, first and last seen: embstore reads the log once,
for all; DuckDB answers a GROUP BY a feature, each to an Arrow table. Both have all cores. embstore's tables are sorted
by value, DuckDB's are not. ``vocabulary_time_vs_duckdb`` is of all features together.

*Memory*: the whole job, in a process of its own, with a limit for the values smaller than they and than the log: the
greatest resident size, less that of the process before it began.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from benchmarks.report import Result, claim, interleave, main, median
from embstore.counting import count
from embstore.logs import ParquetLog
from embstore.merging import merged
from embstore.synthetic import SyntheticLog
from embstore.threads import usable_cores

_VALUES = {"hour": "hour(timestamp)", "weekday": "isodow(timestamp) - 1"}
_JOB = """
import json, resource, sys, threading, time
from embstore.pipelines.vocabulary import VocabularySettings, build
log, output, schema, limit = json.loads(sys.argv[1])
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
before, most, over = resident(), 0, threading.Event()
def watch():
    global most
    while not over.wait(0.02):
        most = max(most, resident())
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
build(VocabularySettings(log=log, output=output, schema=schema, time="timestamp", memory_mb=limit))
seconds = time.perf_counter() - start
over.set()
watcher.join()
print(json.dumps({"bytes": most - before, "seconds": seconds}))
"""


def measure(quick: bool) -> Result:
    """4,000,000 rows; quick: 1,000,000."""
    rows, repeats, limit = (1_000_000, 3, 16) if quick else (4_000_000, 5, 64)
    generated = SyntheticLog(rows=rows, users=rows // 4, items=rows // 20)
    with tempfile.TemporaryDirectory(dir=os.environ.get("EMBSTORE_BENCHMARK_DIR")) as place:
        folder = Path(place)
        files = generated.write(folder / "log")
        schema = replace(generated.schema(), dense=(), group=None)
        connection = duckdb.connect()
        connection.execute(f"set threads = {usable_cores()}")
        queries = {feature.name: _query(feature.name, folder / "log") for feature in schema.features}

        def ours() -> dict[str, pa.Table]:
            log = ParquetLog(folder / "log", schema, also=("timestamp",))
            parts = count(log, time="timestamp").parts
            return {name: pa.concat_tables(list(merged(name, of))) for name, of in parts.items()}

        def theirs() -> dict[str, pa.Table]:
            return {name: connection.sql(query).to_arrow_table() for name, query in queries.items()}

        _check(ours(), theirs())
        samples = interleave({"embstore": ours, "DuckDB": theirs}, repeats=repeats)
        memory = {str(of): _job(folder, schema.to_dict(), of) for of in (limit, None)}
        log_bytes = sum(path.stat().st_size for path in files)
    seconds = {name: median(of) for name, of in samples.items()}
    limited, free = memory[str(limit)], memory["None"]
    return Result(
        claims={
            "vocabulary_time_vs_duckdb": claim(seconds["embstore"], "s", "DuckDB", seconds["DuckDB"], False),
            "memory_with_a_limit": claim(limited["bytes"] / 2**20, "MiB", "no limit", free["bytes"] / 2**20, False),
            "seconds_with_a_limit": claim(limited["seconds"], "s", "no limit", free["seconds"], False),
        },
        samples={"seconds": samples, "memory": memory},
        settings={"rows": rows, "repeats": repeats, "memory_mb": limit, "log_bytes": log_bytes},
        packages=("duckdb",),
    )


def _query(feature: str, folder: Path) -> str:
    rows = f"read_parquet('{folder}/*.parquet')"
    value = _VALUES.get(feature, feature)
    if feature == "tags":
        value, rows = "value", f"(select unnest(tags[1:5]) as value, click, timestamp from {rows})"
    sums = "count(*) as count, sum(click) as clicks, min(timestamp) as first_seen, max(timestamp) as last_seen"
    return f"select {value} as value, {sums} from {rows} where {value} is not null group by 1"


def _check(ours: dict[str, pa.Table], theirs: dict[str, pa.Table]) -> None:
    """Both say the same."""
    for name, table in ours.items():
        judge = theirs[name].sort_by("value")
        judge = judge.set_column(0, "value", judge.column("value").cast(table.schema.field(0).type))
        if not judge.cast(table.schema).combine_chunks().equals(table.combine_chunks()):
            raise AssertionError(f"{name}: embstore and DuckDB differ")


def _job(folder: Path, schema: dict[str, Any], limit: int | None) -> dict[str, float]:
    told = json.dumps([str(folder / "log"), str(folder / f"vocabulary-{limit}"), schema, limit])
    done = subprocess.run([sys.executable, "-c", _JOB, told], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main("vocabulary", measure)
