"""All commands as one group. The one place that puts library, models and pipelines together."""

from __future__ import annotations

import re

import click

from embstore.cli.data import dataset, schema
from embstore.cli.demo import demo
from embstore.cli.plan import plan
from embstore.cli.serve import serve
from embstore.cli.store import WHEN_DAMAGED, compact, lookup, promote, publish, rollback
from embstore.cli.train import evaluate, train
from embstore.cli.upkeep import diff, gc, tag, untag, verify
from embstore.cli.vectors import export, import_
from embstore.cli.versions import versions
from embstore.errors import CorruptVersionError, EmbstoreError, Interrupted


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="""\b
From nothing to a lookup:
  embstore demo
From your own logs:
  embstore schema logs/ --label click > schema.yaml      what embstore makes of the columns, and why
  embstore train --train logs/train --valid logs/valid --schema schema.yaml --output runs/first
  embstore publish runs/first --store store
  embstore lookup --store store user_id 42 7

A command that fails, with --json too, says why in a line of plain text on stderr; its exit code is not 0.
""",
)
@click.version_option(package_name="embstore")
def cli() -> None:
    """An embedding feature store for CTR and recommendation models.

    Every categorical feature of your logs is looked up in one hashed table, trained together with a CTR model,
    published as an immutable version, and looked up by raw value.
    """


for command in (
    *(demo, schema, dataset, train, evaluate, publish, versions, promote, rollback, lookup),
    *(export, import_, verify, diff, tag, untag, compact, gc, plan, serve),
):
    cli.add_command(command)


def run() -> int:
    """Run the command of ``sys.argv`` and return its exit code; what goes wrong on purpose becomes one line."""
    try:
        cli(standalone_mode=False)
    except CorruptVersionError as error:
        return _failed(type(error).__name__, str(error) if error.do else f"{error}; {_remedy(error)}")
    except EmbstoreError as error:
        return _failed(type(error).__name__, str(error))
    except Interrupted as stopped:
        click.echo(str(stopped), err=True)
        return 130
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OSError as error:  # a full disk, a folder that can't be read: nothing a traceback would explain
        return _failed("OSError", f"{error.filename or 'file'}; found {error.strerror or error}")
    return 0


def _remedy(error: CorruptVersionError) -> str:
    if re.search(r"(^|/)log(/\d{12}\.json)?(?![^:])", error.what):
        return "restore it from a copy of the store: nothing can be read without the log"
    return WHEN_DAMAGED


def _failed(kind: str, message: str) -> int:
    click.secho("error", fg="red", bold=True, nl=False, err=True)
    click.echo(f" {kind}: {message}", err=True)
    return 1
