"""``embstore node2vec``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from embstore.cli.job import job_options, read_settings


@click.command(
    epilog="""\b
Examples:
  embstore node2vec config.yaml
  embstore node2vec config.yaml --set skip_gram.dim=64 --set walks.q=0.5 --output runs/far
  embstore node2vec config.yaml --workers 8
  embstore node2vec config.yaml --set start.vectors=runs/yesterday --output runs/today
"""
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Build the graph and walk by so many tasks of a Ray cluster (RAY_ADDRESS, or here).",
)
@click.option("--publish", "publish_to", help="Publish the vectors to this store (a folder or URI).")
@job_options(
    example="skip_gram.dim=64",
    folder="Folder of the job.",
    output="runs/node2vec",
    fresh="Forget what the folder holds instead of going on from it.",
)
def node2vec(
    config: Path,
    settings: tuple[str, ...],
    output: Path | None,
    workers: int | None,
    publish_to: str | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Learn vectors of a log's values by node2vec, as CONFIG (YAML) says.

    A graph of the log's values is built, walks go over it, and skip-gram learns a vector of each value from them. The
    vectors are Parquet in the job's folder (vectors/feature=NAME), which `embstore import` takes, too. Settings come
    from CONFIG, then --set, then the other options.

    A job that was stopped (Ctrl-C, a crash, kill -9) goes on when the same command is given again: behind the last
    stage that was done, and within training from its last checkpoint (every 5 minutes: checkpoint_minutes). It ends
    with the same bytes as one that was not, on any number of --workers. With deterministic: false training uses all
    cores without locks, which is faster, and no two runs are the same.
    """
    from embstore.cli.console import progress, show_notes
    from embstore.config import parse
    from embstore.folder_lock import alone_in
    from embstore.node2vec.folder import JobFolder
    from embstore.node2vec.settings import JobSettings
    from embstore.node2vec.sources import fingerprints
    from embstore.pipelines.node2vec import run

    data = read_settings(config, settings, output=output and str(output))
    if publish_to is not None:
        data["publish"] = {**(data.get("publish") or {}), "store": publish_to}
    job = parse(JobSettings, data)
    if fresh:
        fingerprints(job)  # what can't be read costs nobody what is there
        with alone_in(job.output):
            JobFolder(job.output).clear()
    with redirect_stdout(sys.stderr):  # what Ray says of lost workers
        result = run(job, workers=workers, progress=progress)
    if as_json:
        click.echo(json.dumps({"output": job.output, **result}))
    else:
        _show(job.output, result)
    show_notes(result)


def _show(folder: str, result: dict[str, Any]) -> None:
    """A finished job, for people."""
    from embstore.cli.console import out

    def line(text: str) -> None:
        out.print(text, highlight=False, markup=False)

    graph, walks, trained = result["graph"], result["walks"], result["train"]
    nodes = ", ".join(f"{count:,} {name}" for name, count in graph["nodes"].items())
    line(f"graph    {nodes}; {graph['edges']:,} edges")
    line(f"walks    {walks['count']:,}, {walks['visits']:,} visits")
    line(f"vectors  dim {trained['dim']}, loss {_number(trained['loss'])}; {folder}/vectors")
    if links := result.get("links"):
        best = max(links["baselines"], key=links["baselines"].get)
        beside = f"{best.replace('_', ' ')} {links['baselines'][best]:.4f}"
        if "common_neighbours" not in links["baselines"]:
            beside += "; no pair has neighbours in common"
        line(f"links    AUC {links['auc']:.4f} of {links['held_out']:,} held out (best of the baselines: {beside})")
    if version := result.get("version"):
        line(f"version  {version} in {result['store']}")


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
