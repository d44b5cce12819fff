"""``embstore select``: which fields and values of a log say something of its label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from embstore.cli.log_job import log_job_options, log_job_settings

_SHOWN = 20


@click.command(
    epilog="""\b
Examples:
  embstore select logs/ --label click --vocabulary vocabulary --to scores
  embstore select logs/ --schema schema.yaml --vocabulary vocabulary --set level=values --set order=4 --to scores
  embstore select logs/ --schema schema.yaml --vocabulary vocabulary --method mutual_information --to information
  embstore select --vocabulary vocabulary --method leave_one_out --run runs/first --to worth
  embstore select --vocabulary vocabulary --method leave_out_together --keep 0.5 --store store --version production
  embstore select --vocabulary vocabulary --method optfs --run config.yaml --to gates
  embstore select --config selection.yaml --workers 8
"""
)
@log_job_options(
    click.option("--vocabulary", help="Folder of the values that are judged; other features are hashed."),
    click.option("--method", help="How they are judged.  [default: feature_gradients]"),
    click.option("--run", help="Folder of the trained run to judge by; to train one: a run's YAML file or folder."),
    click.option("--store", help="Store of the published version to judge by."),
    click.option("--version", help="Version id, unique prefix of one, alias or tag.  [default: latest]"),
    click.option("--keep", type=float, metavar="SHARE", help="Of leave_out_together: the share that will be kept."),
    click.option(
        "--set",
        "options",
        multiple=True,
        metavar="KEY=VALUE",
        help="A setting of the method, e.g. order=2; the job's are in --config.",
    ),
)
def select(
    logs: tuple[str, ...],
    config: Path | None,
    options: tuple[str, ...],
    keep: float | None,
    workers: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Score the fields and the values of LOGS: Parquet files, folders, globs or URIs.

    Methods that take rows: feature_gradients, frequency, lasso, lift, mutual_information, random. By a trained model
    (--run, or --store and --version), on the log it has learnt from unless LOGS are given: leave_one_out,
    leave_out_together, permutation, sfs, shark. By gates of a new model, trained as --run says: autofield, lpfs, optfs.
    docs/selection.md tells them apart.

    The folder holds the scores (fields.parquet, columns.parquet) and what they come from (manifest.json). They are the
    same bytes on any number of --workers.
    """
    from contextlib import redirect_stdout
    from sys import stderr

    from embstore.cli.console import out, plain_table, progress
    from embstore.cli.train import override
    from embstore.config import parse
    from embstore.pipelines import selection as job

    data = log_job_settings(config, logs, given)
    if keep is not None:
        options = (*options, f"keep={keep}")
    for option in options:
        override(data, f"options.{option}")
    settings = parse(job.SelectionSettings, data)
    with redirect_stdout(stderr):  # what Ray says of lost workers
        manifest = job.select(settings, workers=workers, progress=progress)
    if as_json:
        click.echo(json.dumps({"folder": settings.output, **manifest}))
        return
    best = sorted(manifest["fields"], key=lambda one: -one["score"])
    rows = [[one["name"], f"{one['columns']:,}", f"{one['score']:.4f}"] for one in best[:_SHOWN]]
    out.print(plain_table(["field", "columns", "score"], rows, numbers=True))
    if len(best) > _SHOWN:
        out.print(f"and {len(best) - _SHOWN:,} more", highlight=False, markup=False)
    out.print(f"wrote {settings.output}", highlight=False, markup=False)
