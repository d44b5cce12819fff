"""The command line: ``embstore COMMAND``. The one place that puts library, models and pipelines together."""

from __future__ import annotations

import sys

import click

from embstore.cli.data import dataset, schema
from embstore.cli.demo import demo
from embstore.cli.store import lookup, publish, versions
from embstore.cli.train import evaluate, train
from embstore.errors import EmbstoreError

__all__ = ["cli", "main"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
From nothing to a lookup:
  embstore demo
From your own logs:
  embstore schema logs/ --label click > schema.yaml      what embstore makes of the columns, and why
  embstore train --train logs/train --valid logs/valid --schema schema.yaml --output runs/first
  embstore publish runs/first --store store
  embstore lookup --store store user_id 42 7
""",
)
@click.version_option(package_name="embstore")
def cli() -> None:
    """An embedding feature store for CTR and recommendation models.

    Every categorical feature of your logs is looked up in one hashed table, trained together with a CTR model,
    published as an immutable version, and looked up by raw value.
    """


for command in (demo, schema, dataset, train, evaluate, publish, lookup, versions):
    cli.add_command(command)


def main() -> None:
    """Entry point: errors embstore raises on purpose become one line and exit code 1."""
    from embstore.cli.console import errors
    from embstore.training import Interrupted

    try:
        cli(standalone_mode=False)
    except EmbstoreError as error:
        errors.print(f"[bold red]error[/] {type(error).__name__}: ", end="", highlight=False)
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except Interrupted as stopped:
        errors.print(str(stopped), markup=False)
        sys.exit(130)
    except click.exceptions.Abort:
        errors.print("stopped")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
