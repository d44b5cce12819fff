"""``embstore demo``: the whole way on generated logs, from Parquet to a lookup."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click

from embstore.cli.store import LocalPath

SETTINGS: dict[str, Any] = {
    "table": {"rows": 32_768, "dim": 16, "optimizer": {"learning_rate": 0.3, "eps": 1e-5, "l2": 2e-5}},
    "model": {"name": "dcn", "cross_layers": 2, "low_rank": 32, "hidden": [128, 64], "dropout": 0.2},
    "training": {"epochs": 3, "batch_size": 1024, "learning_rate": 2e-3, "schedule": "linear"},
}


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
    """Generate click logs, train, evaluate, publish and look values up.

    Eight days of logs are drawn from a known law, so the best AUC any model can be expected to reach is known: six days
    train, one validates, the last is the test.
    """
    from embstore.cli.console import metrics_table, out, progress, show_notes
    from embstore.config import parse
    from embstore.models import build
    from embstore.run import Run
    from embstore.run_folder import make_output
    from embstore.settings import RunConfig
    from embstore.store import Store
    from embstore.synthetic import SyntheticLog

    started = time.perf_counter()
    make_output(folder)
    log = SyntheticLog(rows=rows)
    logs = {}
    for name, days in (("train", (0, 6)), ("valid", (6, 7)), ("test", (7, 8))):
        logs[name] = str(folder / "logs" / name)
        with progress(f"write {name}", len(log.day_rows(*days))) as bar:
            log.write(logs[name], rows=log.day_rows(*days), progress=bar.advance)
    out.print(f"1. {rows:,} rows of generated clicks over {log.days} days in {folder / 'logs'}", highlight=False)

    schema = log.schema()
    config = {"logs": logs, "schema": schema.to_dict(), "output": str(folder / "run"), **SETTINGS}
    Run.clear(folder / "run")
    run = Run(parse(RunConfig, config), build, progress=progress)
    result = run.train()
    parameters, best = result["parameters"]["total"], log.bayes_auc(logs["test"])
    out.print(
        f"2. trained {config['model']['name']} over one unified table, {parameters:,} parameters", highlight=False
    )
    out.print(metrics_table("", {name: result[name] for name in ("valid", "test")}))
    auc = result["test"]["auc"]
    out.print(f"   [bold]test AUC {auc:.4f} of a possible {best:.4f}[/] (the law's own probabilities)", highlight=False)
    show_notes(result)

    version = Store(folder / "store").publish(run.bundle())
    out.print(f"3. published {version.id}", highlight=False)
    _look_up(version, logs["test"], out)
    command = _command()
    store, train = (shlex.quote(str(folder / name)) for name in ("store", "logs/train"))
    out.print(
        f"""5. where things are
   logs     {folder}/logs
   run      {folder}/run      config.yaml, metrics.jsonl, checkpoints, tensorboard
   store    {folder}/store
   next     {command} versions --store {store}
            {command} lookup --store {store} category books music
            {command} schema {train} --label click
{time.perf_counter() - started:.0f} s in all""",
        highlight=False,
        markup=False,
    )


def _command() -> str:
    """How embstore is called here: by its path (``make demo``) unless its folder is on the PATH."""
    called = sys.argv[0]
    return shlex.quote(called) if Path(called).name == "embstore" and shutil.which("embstore") is None else "embstore"


def _look_up(version: Any, test: str, out: Any) -> None:
    """Vectors of a few values and scores of a few rows, from the published files alone."""
    import torch

    from embstore.ctr import CtrModel
    from embstore.logs import ParquetLog
    from embstore.models import build

    model = CtrModel.restore(version, build)
    out.print("4. from the published version")
    for feature, value in (("category", "books"), ("device", "phone"), ("country", None)):
        vector = model.table.lookup(feature, [value])[0]
        numbers = " ".join(f"{number:+.3f}" for number in vector[:6].tolist())
        out.print(f"   lookup {feature}={value}: {numbers} … ({len(vector)} numbers)", highlight=False, markup=False)
    batch = next(iter(ParquetLog(test, version.schema).batches(4)))
    with torch.no_grad():
        probabilities = torch.sigmoid(model(batch)).tolist()
    scores = ", ".join(f"{p:.3f}" for p in probabilities)
    out.print(f"   click probabilities of the first {len(batch)} test rows: {scores}", highlight=False)
