"""All commands as one group. The one place that puts library, models and pipelines together."""

from __future__ import annotations

import click

from embstore.cli.data import dataset, schema
from embstore.cli.demo import demo
from embstore.cli.failures import ON_PURPOSE, exit_code, say
from embstore.cli.loop import loop
from embstore.cli.node2vec import node2vec
from embstore.cli.plan import plan
from embstore.cli.prune import prune
from embstore.cli.select import select
from embstore.cli.serve import serve
from embstore.cli.store import compact, lookup, promote, publish, rollback
from embstore.cli.train import evaluate, train
from embstore.cli.upkeep import diff, gc, tag, untag, verify
from embstore.cli.vectors import export, import_
from embstore.cli.versions import versions
from embstore.cli.vocab import vocab


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
    *(demo, schema, dataset, vocab, select, prune, train, loop, evaluate, publish, versions, promote, rollback, lookup),
    *(export, import_, node2vec, verify, diff, tag, untag, compact, gc, plan, serve),
):
    cli.add_command(command)


def run() -> int:
    """Run the command of ``sys.argv`` and return its exit code; what goes wrong on purpose becomes one line."""
    try:
        code = cli(standalone_mode=False)
    except ON_PURPOSE as error:
        say(error)
        return exit_code(error)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return code or 0
