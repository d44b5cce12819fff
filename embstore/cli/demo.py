"""``embstore demo``: the whole way on generated logs, from Parquet to nearest neighbours."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import click

from embstore.cli.store import LocalPath


@click.command(
    epilog="""\b
Example:
  embstore demo --to /tmp/demo
"""
)
@click.option("--to", "folder", default="demo", show_default=True, type=LocalPath(), help="Folder to work in.")
@click.option(
    "--rows", default=560_000, show_default=True, type=click.IntRange(min=10_000), help="Rows of log to generate."
)
def demo(folder: Path, rows: int) -> None:
    """Generate click logs, decide what a table should hold, train, publish, look values and neighbours up.

    Eight days of logs are drawn from a known law, so the best AUC any model can be expected to reach is known: six days
    train, one validates, the last is the test.
    """
    from embstore.cli.demo_stages import Demo, Teller
    from embstore.run_folder import make_output

    tell = Teller()
    make_output(folder)
    shown = Demo.begin(folder, rows, tell)
    shown.count_values()
    shown.plan_rows()
    shown.walk()
    shown.select()
    shown.prune()
    shown.train()
    version = shown.publish()
    shown.look_up(version)
    shown.find_neighbours(version)
    command = _command()
    store, train = (shlex.quote(str(folder / name)) for name in ("store", "logs/train"))
    tell.step(
        f"""where things are
   logs     {folder}/logs
   values   {folder}/vocabulary, selection, pruned      counts and times, scores, what is kept
   node2vec {folder}/node2vec      graph, vectors
   run      {folder}/run      config.yaml, metrics.jsonl, checkpoints, tensorboard
   store    {folder}/store
   next     {command} versions --store {store}
            {command} lookup --store {store} category books music
            {command} schema {train} --label click""",
    )
    tell.end()


def _command() -> str:
    """How embstore is called here: by its path (``make demo``) unless its folder is on the PATH."""
    called = sys.argv[0]
    return shlex.quote(called) if Path(called).name == "embstore" and shutil.which("embstore") is None else "embstore"
