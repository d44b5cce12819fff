"""Summing up the values of a log's features: embstore against DuckDB, in memory and in less of it than the values take.

    vocabulary_time_vs_duckdb   generated clicks in Parquet, eight features: text of few and of many values, integers,
                                lists, parts of a timestamp. For each feature its distinct values, how often each was
                                seen, its clicks, first and last seen, as Arrow tables. embstore's are sorted by value.
    job_time_vs_duckdb          the whole job on a log (``benchmarks.wide_log``) that is larger than the memory both may
                                use: to sorted Parquet files. DuckDB: ``memory_limit``, a ``COPY`` a feature
    memory_with_a_limit         the same jobs: the greatest resident size, less that before
    incremental_time            the job on the last of eight days with the vocabulary of the others, against one on
                                all; both in the same limit. Their files are the same

embstore reads a log once, for all features; DuckDB answers a query a feature. Both have all cores. A job has a process
of its own, which has imported what it needs and done a small one before. What all say is compared, value by value.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.report import Result, claim, interleave, main, median
from benchmarks.wide_log import WideLog
from embstore.counting import count
from embstore.logs import ParquetLog
from embstore.merging import merged
from embstore.schema import Schema
from embstore.synthetic import SyntheticLog
from embstore.threads import usable_cores

DAYS = 8  # of the wide log, a file each
_VALUES = {"hour": "hour(timestamp)", "weekday": "isodow(timestamp) - 1"}
_PROCESS = """
import json, resource, sys, time
from benchmarks.watching import Watched
def seconds_of_cores():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
{job}
small, large = json.loads(sys.argv[1])
job(**small)
cores, start = seconds_of_cores(), time.perf_counter()
with Watched() as watched:
    job(**large)
seconds = time.perf_counter() - start
print(json.dumps({{"seconds": seconds, "core_seconds": seconds_of_cores() - cores, "bytes": watched.bytes}}))
"""
_EMBSTORE = """
from embstore.pipelines.vocabulary import VocabularySettings, build
def job(**settings):
    build(VocabularySettings(time="timestamp", **settings))
"""
_DUCKDB = """
import duckdb
def job(queries, threads, memory_mb, scratch):
    with duckdb.connect() as connection:
        connection.execute(f"set threads = {threads}")
        connection.execute("set enable_progress_bar = false")
        connection.execute(f"set memory_limit = '{memory_mb}MiB'")
        connection.execute(f"set temp_directory = '{scratch}'")
        for query in queries:
            connection.execute(query)
"""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Rows of both logs, how often each is counted, and the limit of memory on the wide one."""

    rows: int
    repeats: int
    wide_rows: int
    wide_repeats: int
    memory_mb: int


FULL = Sizes(rows=4_000_000, repeats=5, wide_rows=20_000_000, wide_repeats=2, memory_mb=512)
QUICK = Sizes(rows=1_000_000, repeats=3, wide_rows=2_000_000, wide_repeats=1, memory_mb=64)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some claims, and what they come from."""

    claims: Mapping[str, dict[str, Any]]
    samples: Mapping[str, Any]
    settings: Mapping[str, Any]


def measure(quick: bool) -> Result:
    """All of it."""
    sizes = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(dir=os.environ.get("EMBSTORE_BENCHMARK_DIR")) as place:
        parts = [_in_memory(Path(place), sizes), _in_a_limit(Path(place), sizes)]
    return Result(
        claims={name: of for part in parts for name, of in part.claims.items()},
        samples={name: of for part in parts for name, of in part.samples.items()},
        settings={name: of for part in parts for name, of in part.settings.items()},
        packages=("duckdb",),
    )


def _in_memory(folder: Path, sizes: Sizes) -> Part:
    generated = SyntheticLog(rows=sizes.rows, users=sizes.rows // 4, items=sizes.rows // 20)
    files = generated.write(folder / "clicks")
    schema = replace(generated.schema(), dense=(), group=None)
    with duckdb.connect() as connection:
        connection.execute(f"set threads = {usable_cores()}")
        queries = _queries(schema, folder / "clicks")

        def ours() -> dict[str, pa.Table]:
            log = ParquetLog(folder / "clicks", schema, also=("timestamp",))
            parts = count(log, time="timestamp").parts
            return {name: pa.concat_tables(list(merged(name, of))) for name, of in parts.items()}

        def theirs() -> dict[str, pa.Table]:
            return {name: connection.sql(query).to_arrow_table() for name, query in queries.items()}

        judge = theirs()
        for name, table in ours().items():
            _check(name, table, judge[name].sort_by("value"))
        samples = interleave({"embstore": ours, "DuckDB": theirs}, repeats=sizes.repeats)
    seconds = {name: median(of) for name, of in samples.items()}
    return Part(
        claims={"vocabulary_time_vs_duckdb": claim(seconds["embstore"], "s", "DuckDB", seconds["DuckDB"], False)},
        samples={"seconds": samples},
        settings={
            "rows": sizes.rows,
            "repeats": sizes.repeats,
            "log_bytes": sum(path.stat().st_size for path in files),
        },
    )


def _in_a_limit(folder: Path, sizes: Sizes) -> Part:
    generated, cores = WideLog(rows=sizes.wide_rows, days=DAYS), usable_cores()
    files = generated.write(folder / "days", files=DAYS, threads=cores)
    WideLog(rows=10_000).write(folder / "warm", files=1, threads=1)
    schema, (past, today) = generated.schema(), (list(map(str, files[:-1])), str(files[-1]))
    given = {"schema": schema.to_dict(), "memory_mb": sizes.memory_mb}
    warm = {**given, "log": str(folder / "warm")}

    def ours(output: str, log: str | Sequence[str], **settings: Any) -> dict[str, float]:
        small, large = f"{folder}/warm-{output}", f"{folder}/{output}"
        return _run(_EMBSTORE, {**warm, "output": small}, {**given, "log": log, "output": large, **settings})

    def theirs(output: str) -> dict[str, float]:
        both = []
        for log, to in (("warm", f"warm-{output}"), ("days", output)):
            (folder / to).mkdir()
            queries = [
                f"copy ({query} order by 1) to '{folder / to / name}.parquet' (compression zstd)"
                for name, query in _queries(schema, folder / log).items()
            ]
            both.append(
                {"queries": queries, "threads": cores, "memory_mb": sizes.memory_mb, "scratch": str(folder / to)}
            )
        return _run(_DUCKDB, *both)

    samples: dict[str, list[dict[str, float]]] = {"embstore": [], "DuckDB": []}
    for turn in range(sizes.wide_repeats):
        samples["embstore"].append(ours(f"ours-{turn}", str(folder / "days")))
        samples["DuckDB"].append(theirs(f"theirs-{turn}"))
    for feature in schema.features:
        table = pq.read_table(folder / "ours-0" / f"feature={feature.name}" / "part-0.parquet").drop_columns("kept")
        _check(feature.name, table, pq.read_table(folder / "theirs-0" / f"{feature.name}.parquet"))
    ours("past", past)
    samples["incremental"] = [ours("both", today, previous=f"{folder}/past")]
    samples["no limit"] = [ours("free", str(folder / "days"), memory_mb=None)]
    manifests = {json.dumps(_manifest(folder / name)["files"]) for name in ("ours-0", "both", "free")}
    if len(manifests) > 1:
        raise AssertionError("a limit, or counting day by day, gave other files")
    values = sum(of["values"] for of in _manifest(folder / "free")["features"].values())
    typical = {name: {what: median([one[what] for one in of]) for what in of[0]} for name, of in samples.items()}
    embstore, peer = typical["embstore"], typical["DuckDB"]
    mib = {name: of["bytes"] / 2**20 for name, of in typical.items()}
    return Part(
        claims={
            "job_time_vs_duckdb": claim(embstore["seconds"], "s", "DuckDB", peer["seconds"], False),
            "job_core_seconds_vs_duckdb": claim(embstore["core_seconds"], "s", "DuckDB", peer["core_seconds"], False),
            "memory_with_a_limit": claim(mib["embstore"], "MiB", "DuckDB", mib["DuckDB"], False),
            "memory_without_a_limit": claim(mib["no limit"], "MiB", "with it", mib["embstore"], False),
            "incremental_time": claim(
                typical["incremental"]["seconds"], "s", "from scratch", embstore["seconds"], False
            ),
        },
        samples={"jobs": samples},
        settings={
            "wide_rows": sizes.wide_rows,
            "wide_repeats": sizes.wide_repeats,
            "wide_values": values,
            "wide_bytes": sum(path.stat().st_size for path in files),
            "wide_decoded_bytes": generated.table(0).nbytes * sizes.wide_rows // generated.table(0).num_rows,
            "memory_mb": sizes.memory_mb,
        },
    )


def _run(job: str, small: Mapping[str, Any], large: Mapping[str, Any]) -> dict[str, float]:
    """What a job takes, in a process of its own."""
    told = [sys.executable, "-c", _PROCESS.format(job=job), json.dumps([small, large])]
    done = subprocess.run(told, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _queries(schema: Schema, folder: Path) -> dict[str, str]:
    """By feature what DuckDB is asked."""
    out = {}
    for feature in schema.features:
        rows, value = f"read_parquet('{folder}/*.parquet')", _VALUES.get(feature.name, feature.name)
        if feature.name == "tags":
            taken = f"unnest(tags[1:{feature.max_length}]) as value"
            value, rows = "value", f"(select {taken}, click, timestamp from {rows})"
        sums = "count(*) as count, sum(click)::bigint as clicks"
        times = "min(timestamp) as first_seen, max(timestamp) as last_seen"
        out[feature.name] = f"select {value} as value, {sums}, {times} from {rows} where {value} is not null group by 1"
    return out


def _check(name: str, ours: pa.Table, theirs: pa.Table) -> None:
    """Both say the same."""
    if not theirs.cast(ours.schema).equals(ours):
        raise AssertionError(f"{name}: embstore and DuckDB differ")


def _manifest(folder: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return said


if __name__ == "__main__":
    main("vocabulary", measure)
