"""The frame of every benchmark: run it, print a table or JSON, keep the raw samples.

    python -m benchmarks.tokens                   a table
    python -m benchmarks.tokens --json --quick    JSON, in less than a minute
    python -m benchmarks.tokens --out FILE        the JSON in a file, too; where there is a plot, in FILE's .png

    {
      "benchmark": "tokens",
      "claims":    {"string_tokens_per_second": {"value": 8.8e7, "unit": "1/s",
                                                 "peer": "xxhash loop", "peer_value": 6.6e6, "ratio": 13.3}},
      "settings":  {"quick": false, "rows": 4000000, ...},
      "env":       {"revision": "539acba", "packages": {"numpy": "2.4.6", ...}, "cpu": "...", "cores": 2,
                    "ram_gib": 23.5, "python": "3.11.7", "platform": "Linux x86_64", "gpu": null},
      "samples":   {"strings": {"xxhash loop": [0.183, 0.179, ...], ...}, ...}
    }

``ratio`` says how many times better than the peer the claim is, for rates and for times alike; below 1 is worse.
A claim with ``"disturbed": true`` was measured while other processes had the cores (``workloads.undisturbed``):
measure it again before quoting it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("embstore", "numpy", "torch", "pyarrow", "numba")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a benchmark found.

    Args:
        claims: by name, each made by ``claim``.
        samples: raw measurements by contender, e.g. as ``interleave`` gives them.
        settings: sizes and options that decide the result.
        packages: distributions whose versions belong in the report, besides ``PACKAGES``.
        plot: draws the samples into a file.
    """

    claims: Mapping[str, dict[str, Any]]
    samples: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    plot: Callable[[Path], None] | None = None


def claim(
    value: float,
    unit: str,
    peer: str | None = None,
    peer_value: float | None = None,
    higher_is_better: bool = True,
) -> dict[str, Any]:
    """One claim: a value, the peer's in the same run, and how many times better than the peer that is."""
    ratio = None
    if peer_value:
        ratio = value / peer_value if higher_is_better else peer_value / value
    return {"value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio}


def interleave(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each run, by contender.

    Contenders take turns, starting with another one each round, so a slow spell of the machine meets all of them.
    """
    names = list(contenders)
    for name in names:
        for _ in range(warmup):
            contenders[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            contenders[name]()
            samples[name].append(time.perf_counter() - start)
    return samples


def median(samples: list[float]) -> float:
    """The median of raw samples."""
    return statistics.median(samples)


def main(name: str, measure: Callable[[bool], Result]) -> None:
    """Command line of a benchmark: ``measure(quick)`` does the work.

    Args:
        name: of the benchmark, e.g. ``"tokens"``.
        measure: takes whether to be quick (under a minute) and returns a ``Result``.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--out", type=Path, metavar="PATH", help="also write the JSON to this file")
    options = parser.parse_args()
    found = measure(options.quick)
    report = document(name, found, quick=options.quick)
    text = json.dumps(report, indent=1)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
        if found.plot is not None:
            found.plot(options.out.with_suffix(".png"))
    if options.json:
        print(text)
    else:
        Console().print(_table(name, report))


def document(name: str, found: Result, **settings: Any) -> dict[str, Any]:
    """The report as it is written; ``settings`` go before those found."""
    return {
        "benchmark": name,
        "claims": dict(found.claims),
        "settings": {**settings, **found.settings},
        "env": environment(found.packages),
        "samples": dict(found.samples),
    }


def environment(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Revision, versions and machine; nothing that names a host, a user or a folder."""
    return {
        "revision": _revision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*PACKAGES, *packages)},
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gib": _ram_gib(),
        "gpu": _gpu(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _revision() -> str:
    """The git revision, with ``+`` when files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _ram_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpu() -> str | None:
    # Only a benchmark that uses torch has a GPU to report; the others don't pay for its import.
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _table(name: str, report: dict[str, Any]) -> Table:
    env = report["env"]
    table = Table(title=name, caption=f"{env['cpu']}, {env['cores']} cores, revision {env['revision']}")
    for heading in ("claim", "value", "unit", "peer", "peer's value", "ratio"):
        number = heading in ("value", "peer's value", "ratio")
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for label, one in report["claims"].items():
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}x"
        table.add_row(label, _number(one["value"]), one["unit"], one["peer"] or "", _number(one["peer_value"]), ratio)
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
