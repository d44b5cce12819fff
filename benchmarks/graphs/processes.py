"""Processes that make vectors and end with a line of JSON."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.graphs.files import ROOT
from benchmarks.load.servers import busy_seconds

EMBED = (sys.executable, "-m", "benchmarks.graphs.embed")
CORES = 2
OTHERS = 0.1  # of the cores' time, used by other processes: more, and claims are ``disturbed``


def two_cores() -> None:
    """Hold this process and those it starts to ``CORES`` of the machine's."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def ended(command: Sequence[str | Path], settings: Mapping[str, Any], **environment: str) -> dict[str, Any]:
    """What a process reports: besides, ``process_seconds`` from start to end, and ``others_cpu_seconds``, the processor
    time that went to anybody else in the meantime."""
    busy, used, start = busy_seconds(), _children_seconds(), time.perf_counter()
    done = subprocess.run(
        [*command, json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, "NUMBA_NUM_THREADS": str(CORES), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, busy, used = time.perf_counter() - start, busy_seconds() - busy, _children_seconds() - used
    if done.returncode:
        raise RuntimeError(f"{command[-1]} failed:\n{done.stderr[-2000:]}")
    report = json.loads(done.stdout.splitlines()[-1])
    report["process_seconds"] = seconds
    report["others_cpu_seconds"] = max(0.0, busy - used)
    return report


def judged(
    claims: Mapping[str, dict[str, Any]], reports: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Any]], float]:
    """Claims, marked where others had too much of the cores while they were measured; and how much that was."""
    reports = list(reports)
    others = sum(one["others_cpu_seconds"] for one in reports)
    others /= CORES * sum(one["process_seconds"] for one in reports)
    if others <= OTHERS:
        return dict(claims), others
    print("the machine was busy, measure again", file=sys.stderr)
    return {name: {**of, "disturbed": True} for name, of in claims.items()}, others


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
