"""``embstore publish``, ``compact``, ``promote``, ``rollback`` and ``lookup``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from embstore.store import Version, VersionInfo

# As text, all the way to Store: a path would make one slash of the two in s3://.
store_option = click.option(
    "--store",
    "root",
    default="store",
    show_default=True,
    help="The store: a folder, or a URI such as s3://bucket/models.",
)
version_option = click.option(
    "--version", "ref", default="latest", show_default=True, help="Version id, unique prefix of one, alias or tag."
)


class LocalPath(click.Path):
    """A path to write to on this machine; a URI would become a folder ``s3:``."""

    name = "path"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As ``click.Path``, but for URIs."""
        if "://" in str(value):
            self.fail(
                f"{str(value)!r} is a URI: name a file or folder of this machine, and copy it from there", param, ctx
            )
        return super().convert(value, param, ctx)


_alias = click.option("--alias", default="production", show_default=True, help="The alias that moves.")
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

WHEN_DAMAGED = "roll back, or publish it again; `embstore verify --all` lists what is damaged"
ENCODINGS = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int8",
    "int4",
)  # embstore.store.quantization's, without torch


@click.command(
    epilog="""\b
Examples:
  embstore publish runs/first --store store
  embstore publish runs/first --store s3://bucket/models --encoding int8 --no-optimizer
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@store_option
@click.option("--parent", help="Version (id, prefix, alias or tag) it was trained on from.")
@click.option(
    "--encoding",
    type=click.Choice(ENCODINGS),
    help="How rows are stored; what it costs is said.  [default: as trained]",
)
@click.option(
    "--no-optimizer", is_flag=True, help="Leave out the optimizers' state: readers need none, but train --from does."
)
@as_json_option
def publish(run: Path, root: str, parent: str | None, encoding: str | None, no_optimizer: bool, as_json: bool) -> None:
    """Publish the trained table, schema and model of RUN as an immutable version.

    The version appears in the store all at once or, after a crash, not at all. Its manifest holds the sha256 of
    every file and where the version came from.
    """
    from dataclasses import replace

    from embstore.cli.console import bytes_bar
    from embstore.models import build
    from embstore.run import Run
    from embstore.store import Store

    trained = Run.open(run, build)
    bundle, parent = trained.bundle(), parent or trained.parent(root)
    if no_optimizer:
        bundle = replace(bundle, optimizer=None)
    with bytes_bar() as progress:
        version = Store(root).publish(bundle, parent=parent, encoding=encoding, progress=progress)
    _show_published(version, root, as_json)


def _show_published(version: Version, root: str, as_json: bool) -> None:
    from rich.filesize import decimal

    from embstore.cli.console import out
    from embstore.store.listing import bytes_of

    table = version.manifest["table"]
    if as_json:
        values: dict[str, Any] = {"version": version.id, "parent": version.parent, "digest": version.digest}
        values |= {"encoding": table["dtype"], "loss": table.get("loss"), "optimizer": version.optimizer is not None}
        where = version.source.where("").rstrip("/")
        click.echo(json.dumps({**values, "bytes": bytes_of(version.manifest), "folder": where}))
        return
    out.print(f"published {version.id} in {root}: {decimal(bytes_of(version.manifest))}", markup=False, highlight=False)
    _show_loss(version)


def _show_loss(version: Version) -> None:
    """What storing its rows in fewer bits has cost."""
    from embstore.cli.console import out

    table = version.manifest["table"]
    if loss := table.get("loss"):
        changed = f"numbers changed by {loss['largest']:.3g} at most, {loss['relative']:.3%} of their size in all"
        out.print(f"{table['dtype']}: {changed} (root mean square)", markup=False, highlight=False)


@click.command(
    epilog="""\b
Examples:
  embstore compact --store store
  embstore compact production --store store --encoding float32
"""
)
@click.argument("ref", default="latest")
@store_option
@click.option(
    "--encoding",
    type=click.Choice(ENCODINGS),
    help="How rows are stored; what it costs is said.  [default: as the whole version's that it is based on]",
)
@as_json_option
def compact(ref: str, root: str, encoding: str | None, as_json: bool) -> None:
    """Publish a delta's rows as a whole version, so that readers need none of those it is based on.

    REF is an id, a unique prefix of one, an alias or a tag; the latest version when absent. Aliases stay where they
    are: promote the new version where readers should use it. A version that is whole already is left as it is.
    """
    from rich.filesize import decimal

    from embstore.cli.console import bytes_bar, out
    from embstore.store import Store
    from embstore.store.listing import bytes_of

    store = Store(root)
    of = store.resolve(ref)
    with bytes_bar() as progress:
        version = store.compact(of, encoding=encoding, progress=progress)
    if as_json:
        values = {"version": version.id, "of": of, "compacted": version.id != of}
        table = version.manifest["table"]
        values |= {"encoding": table["dtype"], "loss": table.get("loss"), "bytes": bytes_of(version.manifest)}
        click.echo(json.dumps(values))
    elif version.id == of:
        out.print(f"{of} is whole already", markup=False, highlight=False)
    else:
        shown = f"published {version.id}, {of} whole: {decimal(bytes_of(version.manifest))}"
        out.print(shown, markup=False, highlight=False)
        _show_loss(version)


@click.command(
    epilog="""\b
Examples:
  embstore promote latest --store store
  embstore promote 20261124T034420Z --store store --alias canary
"""
)
@click.argument("version")
@store_option
@_alias
@as_json_option
def promote(version: str, root: str, alias: str, as_json: bool) -> None:
    """Let an alias mean VERSION (an id, a unique prefix of one, an alias or a tag) from now on.

    A reader that asks for the alias gets VERSION's table, schema and model together.
    """
    from embstore.store import Store

    _show_move(Store(root).promote(version, alias), alias, as_json)


@click.command(
    epilog="""\b
Example:
  embstore rollback --store store
"""
)
@store_option
@_alias
@as_json_option
def rollback(root: str, alias: str, as_json: bool) -> None:
    """Let an alias mean what it meant before; a second rollback undoes the first."""
    from embstore.store import Store

    _show_move(Store(root).rollback(alias), alias, as_json)


def _show_move(info: VersionInfo, alias: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"alias": alias, "version": info.id, "aliases": list(info.aliases)}))
    else:
        click.echo(f"{alias} is {info.id}")


@click.command(
    epilog="""\b
Examples:
  embstore lookup --store store user_id u17 u42
  embstore lookup --store store --version production item_id 4711 --json
  embstore lookup --store store delta -- -5 7                         negative numbers after --
  embstore lookup --store store timestamp_hour 2026-01-31T18:30       a timestamp, not the hour taken from it
"""
)
@click.argument("feature")
@click.argument("values", nargs=-1, required=True)
@store_option
@version_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, all numbers.")
def lookup(feature: str, values: tuple[str, ...], root: str, ref: str, as_json: bool) -> None:
    """Print the vectors of raw VALUES of FEATURE, straight from the version's files.

    VALUES are written as in the log's column: text, digits, true or false; for a feature taken from a timestamp, a
    timestamp in the column's own time zone. For a list feature each VALUE is a list of one. A hashed feature has a
    vector for any value: whether one is known, pruned or unseen is told by the version's vocabulary, if it has one.
    Every answer names the immutable version it came from.
    """
    from rich.table import Table

    from embstore.cli.console import out
    from embstore.encoding import encode_values
    from embstore.feature_values import ValueStatus
    from embstore.store import Store

    version = Store(root).open(ref)
    typed = _typed(values, version.manifest["columns"].get(feature, "string"), feature)
    vectors = version.lookup(feature, typed)
    tokens = encode_values(typed, version.schema.feature(feature)).values_N.numpy()
    statuses = [ValueStatus(status).name.lower() for status in version.status(feature, tokens)]
    if as_json:
        said = {"version": version.id, "feature": feature, "values": values, "status": statuses}
        click.echo(json.dumps({**said, "vectors": vectors.tolist()}))
        return
    shown = Table(title=f"{feature} in {version.id}", title_justify="left", box=None, header_style="bold")
    shown.add_column("value")
    shown.add_column("status")
    shown.add_column(f"vector of {vectors.shape[1]}")
    for value, status, vector in zip(values, statuses, vectors.tolist(), strict=True):
        numbers = " ".join(f"{number:+.4f}" for number in vector[:8])
        shown.add_row(value, status, numbers + (" …" if len(vector) > 8 else ""))
    out.print(shown)


def _typed(values: tuple[str, ...], kind: str, feature: str) -> Any:
    """The values as the log's column has them: an Arrow array, lists of one for list columns."""
    import pyarrow as pa

    from embstore.errors import SchemaError
    from embstore.store.values import element_type, text_type

    element, target = element_type(kind), text_type(kind)
    for value in values:
        try:
            pa.scalar(value).cast(target)
        except pa.ArrowInvalid as error:
            article = "an" if element.startswith("int") else "a"
            do = "write it as 2026-01-31T18:30:00" if pa.types.is_timestamp(target) else ""
            raise SchemaError(f"feature {feature!r}: value {value!r} is not {article} {element}", do=do) from error
    array = pa.array(values).cast(target)
    is_list = "list<" in kind
    return pa.ListArray.from_arrays(pa.array(range(len(array) + 1), pa.int32()), array) if is_list else array
