"""``embstore vocab``: what values a log's features take, and how two vocabularies differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from embstore.cli.log_job import log_job_options, log_job_settings
from embstore.cli.store import as_json_option


class _Group(click.Group):
    """``embstore vocab logs/`` is ``embstore vocab build logs/``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As ``click.Group``, with the command that is left out."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["build", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Group,
    epilog="""\b
Examples:
  embstore vocab logs/ --label click --time timestamp --to vocabulary
  embstore vocab logs/day-2 --schema schema.yaml --time timestamp --from vocabulary --to vocabulary-2
  embstore vocab diff logs/day-1 logs/day-2 --schema schema.yaml
""",
)
def vocab() -> None:
    """Count the values of a log's features, and say which are kept."""


@vocab.command(
    epilog="""\b
Examples:
  embstore vocab build logs/ --label click --min-count 5 --to vocabulary
  embstore vocab build --config vocabulary.yaml --workers 8
"""
)
@log_job_options(
    click.option("--time", help="Column of timestamps, dates or integers: first and last seen."),
    click.option("--min-count", type=int, help="Keep values seen at least so often."),
    click.option("--min-age", help="Keep values first seen so long before the latest row, e.g. 2d."),
    click.option("--expire-after", help="Drop values last seen longer before it, e.g. 30d."),
    click.option("--probability", type=float, help="Each sighting admits a value with this probability."),
    click.option("--max-values", type=int, help="Keep at most so many of a feature, the most frequent."),
    click.option("--from", "previous", help="Folder of a vocabulary that the log is added to."),
    click.option("--memory-mb", type=int, help="Of values in memory; what is more goes to temporary files."),
)
def build(logs: tuple[str, ...], config: Path | None, workers: int | None, as_json: bool, **given: Any) -> None:
    """Write the vocabulary of LOGS: Parquet files, folders, globs or URIs.

    Values that are not kept stay in the vocabulary with their counts, so that what a later day adds is exact: what
    --from makes is what all logs at once would.
    """
    from contextlib import redirect_stdout
    from sys import stderr

    from embstore.cli.console import out, plain_table, progress
    from embstore.config import parse
    from embstore.pipelines import vocabulary as job

    rules = ("min_count", "min_age", "expire_after", "probability", "max_values")
    asked = {name: given.pop(name) for name in rules if given[name] is not None}
    for name in ("min_age", "expire_after"):
        if asked.get(name, "").lstrip("-").isdigit():
            asked[name] = int(asked[name])
    data = log_job_settings(config, logs, given)
    if asked and isinstance(data.get("admit", {}), dict):
        data["admit"] = {**data.get("admit", {}), **asked}
    settings = parse(job.VocabularySettings, data)
    with redirect_stdout(stderr):  # what Ray says of lost workers
        manifest = job.build(settings, workers=workers, progress=progress)
    if as_json:
        click.echo(json.dumps({"folder": settings.output, **manifest}))
        return
    rows = [
        [name, f"{of['values']:,}", f"{of['kept']:,}", f"{of['count']:,}"] for name, of in manifest["features"].items()
    ]
    out.print(plain_table(["feature", "values", "kept", "seen"], rows, numbers=True))
    out.print(f"wrote {settings.output}", highlight=False, markup=False)


@vocab.command(
    epilog="""\b
Examples:
  embstore vocab diff monday tuesday
  embstore vocab diff logs/monday logs/tuesday --schema schema.yaml
"""
)
@click.argument("before")
@click.argument("after")
@click.option("--schema", type=click.Path(path_type=Path), help="YAML of what the columns mean, to compare logs.")
@as_json_option
def diff(before: str, after: str, schema: Path | None, as_json: bool) -> None:
    """Say which values are new in AFTER, gone or shifted, and how far each feature has drifted.

    BEFORE and AFTER are vocabularies or, with --schema, logs. The stability index (psi) is defined in
    docs/vocabulary.md; above 0.25 a feature is commonly said to have drifted. Nothing is gone from a vocabulary made
    --from BEFORE: compare days that were counted alone.
    """
    from dataclasses import asdict

    from embstore.cli.console import out, plain_table
    from embstore.drift import drift
    from embstore.vocabulary import Vocabulary

    if schema is None:
        both = [Vocabulary.from_parquet(of) for of in (before, after)]
    else:
        both = [Vocabulary.collect(_log(of, schema)) for of in (before, after)]
    found = drift(*both)
    if as_json:
        click.echo(json.dumps({name: asdict(of) for name, of in found.items()}, default=_plain))
        return
    rows = [
        [
            *(name, f"{of.before:,}", f"{of.after:,}", f"{of.new:,} ({of.new_share:.1%})"),
            *(f"{of.gone:,} ({of.gone_share:.1%})", f"{of.shifted:,}", "" if of.psi is None else f"{of.psi:.4f}"),
        ]
        for name, of in found.items()
    ]
    columns = ["feature", "before", "after", "new (of seen)", "gone (of seen)", "shifted", "psi"]
    out.print(plain_table(columns, rows, numbers=True))
    for name, of in found.items():
        for one in of.most[:3]:
            line = f"{name} {one.value!r}: {one.before:.4%} of what was seen, then {one.after:.4%}"
            out.print(line, highlight=False, markup=False)


def _log(source: str, path: Path) -> Any:
    from dataclasses import replace

    from embstore.logs import ParquetLog
    from embstore.schema import Schema

    return ParquetLog(source, replace(Schema.from_yaml(path), dense=()), labelled=False)


def _plain(value: Any) -> Any:
    """Bytes, which JSON can't hold, as hex digits."""
    return value.hex() if isinstance(value, bytes) else str(value)
