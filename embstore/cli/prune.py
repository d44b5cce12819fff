"""``embstore prune``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from embstore.cli.store import LocalPath, as_json_option


@click.command(
    epilog="""\b
Examples:
  embstore prune vocabulary --keep 0.5 --to pruned
  embstore prune vocabulary --rows 10e6 --by scores --scores scores --to pruned
  embstore prune vocabulary --keep 0.5 --by alike --run runs/first --to pruned
  embstore prune vocabulary --keep 0.9 --per-feature --drop-field hour --schema schema.yaml \\
    --to pruned --to-schema pruned.yaml
  embstore train config.yaml --vocabulary pruned --set schema=pruned.yaml
"""
)
@click.argument("vocabulary", type=click.Path(path_type=Path))
@click.option("--keep", type=float, metavar="SHARE", help="Of the rows, 0 to 1: a row for each lookup of each value.")
@click.option("--rows", help="So many rows instead: 10e6, 10M.")
@click.option("--threshold", type=float, help="Keep values with this score or more; with a budget, both must hold.")
@click.option("--per-feature", is_flag=True, help="The budget is each feature's, not that of all together.")
@click.option("--at-least", type=click.IntRange(min=0), default=1, show_default=True, help="Values of a feature kept.")
@click.option(
    "--by",
    type=click.Choice(["count", "scores", "alike"]),
    default="count",
    show_default=True,
    help="What ranks them; or alike: those that a trained model treats alike share a row.",
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    help="A folder of embstore select, or folders feature=NAME of Parquet: value, score.",
)
@click.option("--run", help="Of --by alike: folder of the trained run that says so.")
@click.option("--store", help="Of --by alike: store of the published version that says so.")
@click.option("--version", help="Of --store: version id, unique prefix of one, alias or tag.  [default: latest]")
@click.option(
    "--log", "logs", multiple=True, help="Of --by alike: the log it is tried on.  [default: the one it learnt]"
)
@click.option("--workers", type=click.IntRange(min=1), help="Of --by alike: by so many tasks of a Ray cluster.")
@click.option("--drop-field", "drop_fields", multiple=True, help="A field to leave out altogether; again for more.")
@click.option("--keep-fields", type=click.IntRange(min=1), help="Keep so many, the best by fields.parquet of --scores.")
@click.option("--schema", type=click.Path(path_type=Path), help="What the columns mean: lookups, and for --to-schema.")
@click.option("--table-rows", help="Rows of the table as it is, for the rows suggested.")
@click.option("--target", type=float, default=0.1, show_default=True, help="Share of values that may share a row.")
@click.option(
    "--to", "target_folder", required=True, type=LocalPath(), help="Folder to make, of the pruned vocabulary."
)
@click.option("--to-schema", type=LocalPath(), help="File to write, of the schema without dropped fields.")
@as_json_option
def prune(
    vocabulary: Path,
    keep: float | None,
    rows: str | None,
    threshold: float | None,
    per_feature: bool,
    at_least: int,
    by: str,
    scores: Path | None,
    run: str | None,
    store: str | None,
    version: str | None,
    logs: tuple[str, ...],
    workers: int | None,
    drop_fields: tuple[str, ...],
    keep_fields: int | None,
    schema: Path | None,
    table_rows: str | None,
    target: float,
    target_folder: Path,
    to_schema: Path | None,
    as_json: bool,
) -> None:
    """Drop values of VOCABULARY, a folder that embstore vocab or Vocabulary.to_parquet wrote.

    The values stay in it, marked: a run that is given it looks them up as their feature's pruned token, or (--by alike)
    as the value that stands in for them (docs/pruning.md).
    """
    from dataclasses import asdict

    from embstore.cli.plan import count
    from embstore.errors import ConfigError
    from embstore.planning.collisions import cardinalities, rows_for, shared
    from embstore.schema import Schema
    from embstore.selection import pruning
    from embstore.selection.score_files import read_field_scores, read_scores
    from embstore.store.export import refuse_existing
    from embstore.store.files import replace_small
    from embstore.vocabulary import Vocabulary

    if (by == "scores" or keep_fields is not None) and scores is None:
        raise ConfigError("prune", expected="--scores FOLDER", found="none")
    model = {"run": run, "store": store, "version": version, "log": logs or None, "workers": workers}
    if by != "alike" and (found := [name for name, given in model.items() if given is not None]):
        raise ConfigError(f"--{found[0]}", expected="--by alike with it", found=f"--by {by}")
    if version is not None and store is None:
        raise ConfigError("--version", expected="--store with it", found="none")
    if by != "scores" and scores is not None and keep_fields is None:
        raise ConfigError("--scores", expected="--by scores or --keep-fields with it", found=f"--by {by}")
    if by == "alike" and threshold is not None:
        raise ConfigError("--by alike", expected="--keep or --rows", found="--threshold")
    if to_schema is not None and schema is None:
        raise ConfigError("--to-schema", expected="--schema FILE with it", found="none")
    refuse_existing(target_folder)  # not after minutes of work
    declared = None if schema is None else Schema.from_yaml(schema)
    before = Vocabulary.from_parquet(vocabulary)
    dropped = list(drop_fields)
    if keep_fields is not None and scores is not None:
        fields = read_field_scores(scores)
        best = pruning.best_fields(fields, keep=keep_fields)
        dropped += [name for name in fields if name not in best and name not in dropped]
    # A dense column, or a feature that was not counted, is dropped from the schema alone.
    declared_only: set[str] = set()
    if declared is not None:
        declared_only = {of.name for of in declared.features} | {of.name for of in declared.dense}
        declared_only -= set(before)
    lookups = {} if declared is None else {of.name: of.lookups for of in declared.features}
    budget: dict[str, Any] = {
        "keep": keep if keep is not None or rows is not None or threshold is not None else 1.0 if dropped else None,
        "rows": None if rows is None else count("--rows", rows),
        "per_feature": per_feature,
        "at_least": at_least,
    }
    drop_fields = tuple(name for name in dropped if name not in declared_only)
    lineage: dict[str, Any] = {}
    if by == "alike":
        from contextlib import redirect_stdout
        from sys import stderr

        from embstore.cli.console import progress
        from embstore.pipelines import sharing

        judged = sharing.JudgedBy(run=run, store=store, version=version or "latest", log=logs or None)
        pruning.check_budget(budget["keep"], budget["rows"], None, at_least)
        rest = pruning.prune(before, keep=1.0, drop_fields=drop_fields)
        with redirect_stdout(stderr):  # what Ray says of lost workers
            done = sharing.share(rest, judged, **budget, lookups=lookups, workers=workers, progress=progress)
        after, lookups, lineage = done.vocabulary, dict(done.lookups), {"lineage": done.lineage}
    else:
        scored = read_scores(scores, before) if by == "scores" and scores is not None else None
        after = pruning.prune(before, scored, **budget, threshold=threshold, lookups=lookups, drop_fields=drop_fields)
    smaller = None if declared is None else pruning.without_fields(declared, dropped)
    after.to_parquet(target_folder)
    if to_schema is not None and smaller is not None:
        replace_small(to_schema, smaller.to_yaml().encode())
    each, whole = pruning.summaries(before, after, lookups)
    hashed = [name for name in before if declared is None or name not in _exact(declared)]
    were, are = ([of for of in cardinalities(part, lookups) if of.name in hashed] for part in (before, after))
    now = None if table_rows is None else count("--table-rows", table_rows)
    share = target if now is None or not were else shared(were, now).share
    suggested = rows_for(are, share) if are and share > 0 else None
    gone = {name: int(before[name].kept.sum()) for name in before if name not in after}
    if as_json:
        told: dict[str, Any] = {
            "folder": str(target_folder),
            "schema": None if to_schema is None else str(to_schema),
            "sha256": after.digest(),
            "dropped_fields": dropped,
            "features": {name: asdict(of) for name, of in each.items()},
            "total": asdict(whole),
            "colliding_share": share,
            "table_rows": suggested,
            **lineage,
        }
        click.echo(json.dumps(told))
        return
    _show(each, whole, gone, dropped)
    from embstore.cli.console import out

    if suggested is not None:
        why = f"{share:.1%} of the values of a feature share a row" + ("" if now is None else f", as before in {now:,}")
        out.print(f"table rows suggested: {suggested:,} ({why})", highlight=False, markup=False)
    out.print(f"wrote {target_folder}" + (f" and {to_schema}" if to_schema else ""), highlight=False, markup=False)


def _exact(schema: Any) -> set[str]:
    return {of.name for of in schema.features if of.exact}


def _show(each: Any, whole: Any, gone: dict[str, int], dropped: list[str]) -> None:
    from embstore.cli.console import out, plain_table

    def line(name: str, of: Any) -> list[str]:
        share = "" if of.occurrences is None else f"{of.occurrences:.2%}"
        return [name, f"{of.values:,}", f"{of.kept:,}", f"{of.rows:,}", f"{of.kept_rows:,}", share]

    rows = [line(name, of) for name, of in each.items()] + [line("all", whole)]
    titles = ["feature", "values", "kept", "rows", "rows kept", "of occurrences"]
    if whole.sharing:
        titles.append("sharing")
        rows = [[*row, f"{of.sharing:,}"] for row, of in zip(rows, [*each.values(), whole], strict=True)]
    out.print(plain_table(titles, rows, numbers=True), highlight=False)
    if dropped:
        values = sum(gone.values())
        out.print(f"dropped fields: {', '.join(dropped)} ({values:,} values)", highlight=False, markup=False)
