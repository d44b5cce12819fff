"""``embstore loop``."""

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
  embstore loop loop.yaml
  embstore loop loop.yaml --promote production
  embstore loop loop.yaml --workers 8
  embstore loop loop.yaml --set collisions=0.05 --output runs/wide
The least a loop.yaml says:
  days: logs/day-*                 # a log a day, in the order of their names; or a list
  label: click                     # or schema: schema.yaml
  publish: {store: store}
"""
)
@click.option("--promote", metavar="ALIAS", help="Let this alias mean the last day's version, e.g. production.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Do the vocabulary, node2vec and the selection by so many of a Ray cluster (RAY_ADDRESS, or here).",
)
@click.option(
    "--train-workers",
    type=click.IntRange(min=1),
    help="Train by so many processes of it; the table then depends on their number.",
)
@job_options(
    example="collisions=0.05",
    folder="Folder of the loop.",
    output="runs/loop",
    fresh="Forget the days that the folder holds; what was published stays.",
)
def loop(
    config: Path,
    settings: tuple[str, ...],
    output: Path | None,
    promote: str | None,
    workers: int | None,
    train_workers: int | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Do all there is to do with the logs of CONFIG (YAML), day by day: values, rows, selection, training, publishing.

    Of each day: what yesterday's version is worth on it, the vocabulary (yesterday's and today's), the rows that a
    table needs, vectors by node2vec (where CONFIG asks for them), which values to keep, training that goes on from
    yesterday's version, and what comes of it, published.

    What was done is not done again: the same command does the days that have come since, and one that was stopped
    (Ctrl-C, a crash, kill -9) goes on behind the last stage that was done, and within training from its last
    checkpoint. Each stage's work is in the folder, and the published version's lineage names it (embstore versions).
    It is the same bytes on any number of --workers, but depends on that of --train-workers.
    """
    from embstore.cli.console import out, plain_table, progress
    from embstore.config import parse
    from embstore.folder_lock import alone_in
    from embstore.pipelines.days import LoopFolder
    from embstore.pipelines.loop import run
    from embstore.pipelines.loop_settings import LoopSettings

    job = parse(LoopSettings, read_settings(config, settings, output=output and str(output), promote=promote))
    if fresh:
        with alone_in(job.output):
            LoopFolder(job.output).clear()
    with redirect_stdout(sys.stderr):  # what Ray says of lost workers
        result = run(job, workers=workers, train_workers=train_workers, progress=progress)
    if as_json:
        click.echo(json.dumps({"output": job.output, **result}))
        return
    columns = ["day", "rows", "values", "kept", "auc before", "auc valid", "version"]
    out.print(plain_table(columns, (_cells(day) for day in result["days"])))
    if (promoted := result["promoted"]) is not None:
        out.print(f"{promoted['alias']} means {promoted['version']}", highlight=False, markup=False)


def _cells(day: dict[str, Any]) -> list[str]:
    """A line about a day."""
    stages = day["stages"]
    before, valid = (stages.get("evaluate") or {}).get("metrics"), stages["train"].get("valid")
    counted = stages["prune"] if stages.get("prune") else stages["vocabulary"]
    return [
        day["log"]["source"],
        f"{day['log']['rows']:,}",
        f"{stages['vocabulary']['values']:,}",
        f"{counted['kept']:,}",
        *("" if not of or of["auc"] is None else f"{of['auc']:.5f}" for of in (before, valid)),
        stages["train"]["version"],
    ]
