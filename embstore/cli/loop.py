"""``embstore loop``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from embstore.cli.store import LocalPath, as_json_option
from embstore.cli.train import override


@click.command(
    epilog="""\b
Examples:
  embstore loop loop.yaml
  embstore loop loop.yaml --promote production
  embstore loop loop.yaml --set collisions=0.05 --output runs/wide
The least a loop.yaml says:
  days: logs/day-*                 # a log a day, in the order of their names; or a list
  label: click                     # or schema: schema.yaml
  publish: {store: store}
"""
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one setting, e.g. collisions=0.05."
)
@click.option("--output", type=LocalPath(), help="Folder of the loop.  [default: runs/loop]")
@click.option("--promote", metavar="ALIAS", help="Let this alias mean the last day's version, e.g. production.")
@click.option("--fresh", is_flag=True, help="Forget the days that the folder holds; what was published stays.")
@as_json_option
def loop(
    config: Path,
    settings: tuple[str, ...],
    output: Path | None,
    promote: str | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Do all there is to do with the logs of CONFIG (YAML), day by day: values, rows, selection, training, publishing.

    Of each day: what yesterday's version is worth on it, the vocabulary (yesterday's and today's), the rows that a
    table needs, which values to keep, training that goes on from yesterday's version, and what comes of it, published.

    What was done is not done again: the same command does the days that have come since, and one that was stopped
    (Ctrl-C, a crash, kill -9) goes on behind the last stage that was done, and within training from its last
    checkpoint. Each stage's work is in the folder, and the published version's lineage names it (embstore versions).
    """
    from embstore.cli.console import out, plain_table, progress
    from embstore.config import load_yaml, parse
    from embstore.pipelines.days import LoopFolder
    from embstore.pipelines.loop import run
    from embstore.pipelines.loop_settings import LoopSettings

    data = load_yaml(config)
    for setting in settings:
        override(data, setting)
    if output is not None:
        data["output"] = str(output)
    if promote is not None:
        data["promote"] = promote
    job = parse(LoopSettings, data)
    if fresh:
        LoopFolder(job.output).clear()
    result = run(job, progress=progress)
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
