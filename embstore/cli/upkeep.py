"""``embstore verify``, ``gc``, ``tag``, ``untag`` and ``diff``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from embstore.cli.store import as_json_option, store_option

if TYPE_CHECKING:
    from embstore.store import Difference, Finding, RowChanges


@click.command(
    epilog="""\b
Examples:
  embstore verify production --store store
  embstore verify --all --store store --json
"""
)
@click.argument("ref", default="latest")
@store_option
@click.option("--all", "every", is_flag=True, help="All versions, each to its end, whatever is found in another.")
@as_json_option
def verify(ref: str, root: str, every: bool, as_json: bool) -> None:
    """Read every byte of a version and compare it with what its manifest and the log promise.

    REF is an id, a unique prefix of one, an alias or a tag; the latest version when absent. What a delta is based on is
    verified with it, and each version once. The exit code is 1 if anything differs.
    """
    from embstore.cli.console import bytes_bar
    from embstore.store import Store

    with bytes_bar() as progress:
        found = Store(root).verify_all(None if every else [ref], progress=progress)
    if as_json:
        rows = ((one.version, None if one.error is None else str(one.error), one.below) for one in found)
        click.echo(json.dumps([dict(zip(("version", "damaged", "depends_on"), row, strict=True)) for row in rows]))
    else:
        for one in found:
            click.echo(f"{one.version}  {_said_of(one, found)}")
    _raise_for(found)


def _said_of(one: Finding, found: Sequence[Finding]) -> str:
    """A version's line: what is wrong with it, and with what else for that reason."""
    if one.error is None:
        return "whole" if one.below is None else f"can't be read: it depends on {one.below}"
    above = [other.version for other in found if other.below == one.version]
    verb = "depends" if len(above) == 1 else "depend"
    consequence = f"; {', '.join(above)} {verb} on it" if above else ""
    return f"{'damaged' if _is_damaged(one) else 'not verified'}: {one.error}{consequence}"


def _is_damaged(one: Finding) -> bool:
    from embstore.errors import CorruptVersionError

    return isinstance(one.error, CorruptVersionError)


def _raise_for(found: Sequence[Finding]) -> None:
    from embstore.errors import CorruptVersionError, StoreError

    above = sum(one.error is None and one.below is not None for one in found)
    also = f", and {above} more based on what is" if above else ""
    if damaged := sum(_is_damaged(one) for one in found):
        do = "restore the files from a copy of the store; or promote a whole version, and publish what is damaged again"
        raise CorruptVersionError(
            f"{damaged} of {len(found)} versions", expected="whole", found=f"damaged{also}", do=do
        )
    if unread := sum(one.error is not None for one in found):
        raise StoreError(f"{unread} of {len(found)} versions", expected="whole", found=f"some that can't be read{also}")


@click.command(
    epilog="""\b
Examples:
  embstore gc --store store --dry-run
  embstore gc --store store --keep 10
"""
)
@store_option
@click.option("--keep", default=3, show_default=True, help="How many of the newest versions stay.")
@click.option(
    "--grace",
    default=86400.0,
    show_default=True,
    help="Seconds for which nothing was written to a leftover before it goes; more than any publisher pauses.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@as_json_option
def gc(root: str, keep: int, grace: float, dry_run: bool, as_json: bool) -> None:
    """Collect the versions that nothing holds, and what crashes left behind.

    Aliases (and what a rollback of each would reach), tags, leases and the newest versions hold what they mean.
    """
    from rich.filesize import decimal

    from embstore.cli.console import out, plain_table
    from embstore.store import Store

    found = Store(root).gc(keep=keep, grace_seconds=grace, dry_run=dry_run)
    if as_json:
        values = {"retired": found.retired, "removed": found.removed, "bytes": found.bytes, "kept": found.kept}
        click.echo(json.dumps({"dry_run": dry_run, **values}))
        return
    goes = "would go" if dry_run else "gone"
    rows = [
        *((version, goes, "nothing holds it") for version in found.retired),
        *((version, "kept", ", ".join(reasons)) for version, reasons in found.kept.items()),
        *((path, goes, "left behind") for path in found.removed),
    ]
    out.print(plain_table(("version", "", "why"), rows) if rows else f"no versions in {root}", highlight=False)
    out.print(f"{decimal(found.bytes)} {'would be ' if dry_run else ''}freed", highlight=False)


@click.command(
    epilog="""\b
Example:
  embstore tag spring-2026 production --store store
"""
)
@click.argument("name")
@click.argument("version")
@store_option
@as_json_option
def tag(name: str, version: str, root: str, as_json: bool) -> None:
    """Give VERSION (an id, a unique prefix of one, an alias or a tag) a NAME that never moves and keeps it from gc."""
    from embstore.store import Store

    store = Store(root)
    before = store.tags().get(name)
    meant = store.tag(name, version).id
    _show_tag(name, meant, "is already" if before == meant else "is", as_json)


@click.command(
    epilog="""\b
Example:
  embstore untag spring-2026 --store store
"""
)
@click.argument("name")
@store_option
@as_json_option
def untag(name: str, root: str, as_json: bool) -> None:
    """Take the tag NAME off its version, which gc may then collect."""
    from embstore.store import Store

    _show_tag(name, Store(root).untag(name).id, "is no longer", as_json)


def _show_tag(name: str, version: str, verb: str, as_json: bool) -> None:
    click.echo(json.dumps({"tag": name, "version": version}) if as_json else f"{name} {verb} {version}")


@click.command(
    epilog="""\b
Example:
  embstore diff previous production --store store
"""
)
@click.argument("old")
@click.argument("new")
@store_option
@as_json_option
def diff(old: str, new: str, root: str, as_json: bool) -> None:
    """Show what changed from version OLD to NEW: features, settings, metrics, and how far the rows moved.

    Rows are compared, as they are read, where row numbers mean the same in both; where they don't, it says why. OLD and
    NEW are ids, unique prefixes of them, aliases or tags; `previous` is what `production` meant before.
    """
    from dataclasses import asdict

    from embstore.cli.console import bytes_bar
    from embstore.store import Store

    with bytes_bar() as progress:
        found = Store(root).diff(old, new, progress=progress)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        _show_difference(found)


def _show_difference(found: Difference) -> None:
    from embstore.cli.console import out, plain_table

    out.print(f"old  {found.old}\nnew  {found.new}  {_descent(found.steps)}", highlight=False)
    if not found.same_space:
        out.print("another space: vectors of the two can't be compared", highlight=False)
    changes: dict[str, tuple[Any, Any]] = {}
    for kind, mapping in (
        ("", found.schema),
        ("table.", found.table),
        ("vocabulary.", found.vocabulary),
        ("model.", found.model),
        ("lineage.", found.lineage),
    ):
        changes |= {f"{kind}{key}": change for key, change in mapping.items()}
    for name, keys in found.features_changed.items():
        changes |= {f"feature {name}: {key}": change for key, change in keys.items()}
    for kind, added, removed in (
        ("feature", found.features_added, found.features_removed),
        ("dense", found.dense_added, found.dense_removed),
    ):
        changes |= {f"{kind} {name}": ("", "added") for name in added}
        changes |= {f"{kind} {name}": ("", "removed") for name in removed}
    for title, values in (("changed", changes), ("metrics", found.metrics)):
        if values:
            rows = ((key, *("" if one is None else _shown(one) for one in change)) for key, change in values.items())
            out.print(plain_table((title, "old", "new"), rows), highlight=False)
    _show_rows(found)


def _descent(steps: int | None) -> str:
    """How the new version comes from the old one."""
    if not steps:
        return "does not descend from it" if steps is None else "the same version"
    return "its child" if steps == 1 else f"descends from it, {steps} versions on"


def _show_rows(found: Difference) -> None:
    from embstore.cli.console import out, plain_table
    from embstore.store.diff import QUANTILES

    rows = {**found.features, **({} if found.rows is None else {"all": found.rows})}
    if rows and found.encodings[0] != found.encodings[1]:
        old, new = found.encodings
        out.print(
            f"rows are stored as {old}, now as {new}: compared are the numbers read, which storing alone has changed"
        )
    if rows:
        moves = [f"{name} move" for name in ("mean", *(f"p{share * 100:g}" for share in QUANTILES), "max")]
        columns = ("rows", "", "changed", *moves, "norm", "norm now")
        table = plain_table(columns, (_cells(name, part) for name, part in rows.items()), numbers=True)
        out.print(table, highlight=False)
    for name, reason in found.incomparable.items():
        out.print(f"rows: {name} can't be compared: {reason}", markup=False, highlight=False)
    for name, part in rows.items():
        if part.not_finite:
            out.print(f"{part.not_finite:,} rows of {name} are not finite", markup=False, highlight=False)


def _cells(name: str, part: RowChanges) -> list[str]:
    numbers = (part.mean, *part.quantiles.values(), part.max, part.norm_before, part.norm_after)
    cells = ("" if number is None else f"{number:.4g}" for number in numbers)
    return [name, f"{part.rows:,}", f"{part.changed:,}", *cells]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.5f}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
