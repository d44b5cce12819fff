"""``embstore train`` and ``embstore evaluate``."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embstore.cli.failures import ON_PURPOSE, exit_code, say
from embstore.cli.store import LocalPath, as_json_option

if TYPE_CHECKING:
    from embstore.distributed import Group


@click.command(
    epilog="""\b
Examples:
  embstore train config.yaml
  embstore train --train logs/train --valid logs/valid --label click --output runs/first
  embstore train config.yaml --set table.dim=32 --set training.epochs=3 --output runs/wide
  embstore train config.yaml --seeds 5
  embstore train --from production --store store --train logs/tomorrow --output runs/next
  embstore train config.yaml --publish store --publish-every 10
  embstore train config.yaml --vocabulary pruned
The least a config.yaml says, as the flags do (a table of 262,144 rows of 16 numbers, one epoch of DCN-V2):
  logs: {train: logs/train, valid: logs/valid}
  label: click                     # or schema: schema.yaml
  output: runs/first
"""
)
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--train", "train_logs", help="Training log: a Parquet file, folder, glob or URI.")
@click.option("--valid", help="Validation log, for early stopping and the best model.")
@click.option("--test", help="Log to evaluate the finished model on.")
@click.option("--schema", "schema_path", help="Schema file (see: embstore schema).")
@click.option("--label", help="The column to predict; without a schema, the rest is inferred.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one setting, e.g. model.name=dlrm."
)
@click.option("--output", type=LocalPath(), help="Folder of the run.  [default: runs/default]")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    metavar="INTEGER",
    help="Seed of everything drawn: hashes, first weights, order.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), help="Train this many times, seeds 0, 1, ...; print mean and deviation."
)
@click.option(
    "--vocabulary",
    help="Folder of a vocabulary (embstore prune) whose dropped values are looked up as one pruned value.",
)
@click.option("--from", "start", help="Go on from a version: an id, a unique prefix of one, or an alias.")
@click.option("--store", help="The store of --from: a folder or URI.  [default: store]")
@click.option(
    "--publish", "publish_to", help="Publish to this store (a folder or URI) at the end, and on the way with:"
)
@click.option("--publish-every", type=float, metavar="MINUTES", help="A version every so many minutes, as a delta.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Train by so many processes of a Ray cluster (RAY_ADDRESS, or here)."
)
@click.option("--gpus", is_flag=True, help="A GPU for each of the --workers.")
@click.option(
    "--device", default="cpu", show_default=True, help="Where table and network lie: cpu, cuda, or cuda:1 and so on."
)
@click.option(
    "--restarts",
    type=click.IntRange(min=-1),
    default=3,
    show_default=True,
    help="Of the --workers, from the last checkpoint, when one was lost; -1 for any number.",
)
@click.option("--fresh", is_flag=True, help="Forget what the folder holds instead of going on from its checkpoint.")
@as_json_option
def train(
    config: Path | None,
    train_logs: str | None,
    valid: str | None,
    test: str | None,
    schema_path: str | None,
    label: str | None,
    settings: tuple[str, ...],
    output: Path | None,
    seed: int | None,
    seeds: int | None,
    vocabulary: str | None,
    start: str | None,
    store: str | None,
    publish_to: str | None,
    publish_every: float | None,
    workers: int | None,
    gpus: bool,
    device: str,
    restarts: int,
    fresh: bool,
    as_json: bool,
) -> None:
    """Train a CTR model over one unified table, as CONFIG (YAML) says.

    Settings come from CONFIG, then --set, then the other options. Without CONFIG, give at least --train and either
    --schema or --label. A run that was stopped (Ctrl-C, a crash, kill -9) goes on from its last checkpoint when the
    same command is given again, and ends as if it had never stopped. A checkpoint is taken at each evaluation (once an
    epoch, or every training.evaluate_every steps), on Ctrl-C, and every 5 minutes (training.checkpoint_minutes, or
    training.checkpoint_every in steps); the last and the best are kept.

    With --from a run goes on from a published version: its schema, table, network and the state of both optimizers are
    the run's. A version published with --no-optimizer lacks that state: the optimizers start from nothing, which costs
    quality and is warned of. With --publish it publishes its model when it is finished and, every so often, the rows
    that have changed since (publish.every_minutes, publish.every_rows; publish.whole_every deltas apart, the whole
    table). Rows that changed by no more than publish.significance (L2) wait. A version that can't be published on the
    way is warned of, and the next one tried when it is due.

    --workers 4 trains one model by four processes, which Ray starts, and starts again when one is lost; torchrun
    --nproc-per-node 4 -m embstore train ... does so without Ray. Each holds a part of the table and takes a part of
    every batch (docs/scaling.md).
    """
    from embstore.cli.console import progress, show_notes
    from embstore.config import load_yaml, parse
    from embstore.errors import ConfigError
    from embstore.models import build
    from embstore.pipelines.train import train as on_ray
    from embstore.run import Run
    from embstore.run_folder import RunFolder
    from embstore.settings import RunConfig

    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError("--device", expected="cpu, cuda or cuda:1", found=device)
    if workers is not None and device != "cpu":
        raise ConfigError("--device", expected="--gpus, which gives each of the --workers one", found=device)
    with _ranks(device) as group:
        data = load_yaml(config) if config else {}
        for setting in settings:
            override(data, setting)
        for key, value in (("train", train_logs), ("valid", valid), ("test", test)):
            if value is not None:
                data["logs"] = {**(data.get("logs") or {}), key: value}
        if schema_path is not None:
            data["schema"] = schema_path
        if label is not None:
            data["label"] = label
        if output is not None:
            data["output"] = str(output)
        if vocabulary is not None:
            before = data.get("vocabulary")
            kept = {"unseen": before["unseen"]} if isinstance(before, dict) and "unseen" in before else {}
            data["vocabulary"] = {"path": vocabulary, **kept}
        if start is not None or store is not None:
            data["start"] = {"store": "store", **(data.get("start") or {}), **_given(version=start, store=store)}
        if gpus and workers is None:
            raise ConfigError("--gpus", expected="--workers N with it", found="none")
        if publish_every is not None and publish_to is None and not data.get("publish"):
            raise ConfigError("--publish-every", expected="--publish STORE with it", found="none")
        if publish_to is not None or publish_every is not None:
            data["publish"] = {**(data.get("publish") or {}), **_given(store=publish_to, every_minutes=publish_every)}
        if data.get("start") and not (data.get("logs") or {}).get("train"):
            do = "give it with --train LOGS, or as logs.train in CONFIG"
            raise ConfigError("train --from", expected="a log to train on", found="none", do=do)
        if config is None and not ("logs" in data and data.keys() & {"schema", "label", "start"}):
            raise ConfigError(
                "train",
                expected="a CONFIG file, or --train with --schema, --label or --from",
                found="neither",
                do="see embstore train --help",
            )
        run_config = parse(RunConfig, data)
        if workers is not None and not group.alone:
            raise ConfigError("--workers", expected="torchrun or Ray to start the processes", found="both")
        if seed is not None:
            run_config = run_config.with_seed(seed, run_config.output)
        runs = [run_config]
        if seeds is not None:
            runs = [run_config.with_seed(number, f"{run_config.output}/seed-{number}") for number in range(seeds)]
        results: list[dict[str, Any]] = []
        for each in runs:
            if results and each.schema is None and each.start is None:  # what was inferred is that of all seeds
                first = RunFolder(runs[0].output).config()
                assert first is not None
                each = each.with_schema(first.read_schema())
            if fresh:
                group.lead(partial(Run.clear, each.output))
            if workers is None:
                result = Run(each, build, progress=progress, group=group).train()
            else:
                with redirect_stdout(sys.stderr):  # what Ray says of lost workers
                    result = on_ray(each, build, workers=workers, gpus=gpus, restarts=restarts, progress=progress)
            results.append(result)
            if group.first:
                if not as_json:
                    _show(each.output, result)
                show_notes(result)
        if group.first:
            only = results[0] if seeds is None else _summarise(run_config.output, results, quiet=as_json)
            if as_json:
                click.echo(json.dumps({"output": run_config.output, **only}))


@contextmanager
def _ranks(device: str) -> Iterator[Group]:
    """The processes that torchrun has started, if it has; of what ends all alike rank 0 alone speaks."""
    from embstore.distributed import joined

    by_ranks = False
    try:
        with joined(device=device, report=say) as group:
            by_ranks = not group.alone
            yield group
    except ON_PURPOSE as error:
        if not by_ranks:
            raise
        raise click.exceptions.Exit(exit_code(error)) from error


def _show(folder: str, result: dict[str, Any]) -> None:
    """A finished run, for people."""
    from embstore.cli.console import metrics_table, out

    shown = {name: result[name] for name in ("valid", "test") if result.get(name)}
    parameters = result["parameters"]
    out.print(
        f"{folder}: {parameters['total']:,} parameters "
        f"(table {parameters['table']:,}, network {parameters['network']:,})",
        highlight=False,
    )
    out.print(f"kernel {result['kernel']['name']} ({result['kernel']['reason']})", highlight=False)
    if shown:
        out.print(metrics_table("", shown))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _summarise(folder: str, results: list[dict[str, Any]], *, quiet: bool) -> dict[str, Any]:
    """Mean and deviation over the seeds: what is written to ``summary.json`` and, unless ``quiet``, printed."""
    from embstore.cli.console import metrics_table, out

    columns: dict[str, dict[str, float | None]] = {}
    for split in ("valid", "test"):
        if results[0].get(split):
            values = {key: [result[split][key] for result in results] for key in results[0][split]}
            columns[f"{split} mean"] = {key: _of(statistics.fmean, of) for key, of in values.items()}
            columns[f"{split} std"] = {
                key: _of(statistics.stdev, of) if len(of) > 1 else 0.0 for key, of in values.items()
            }
    summary = {"seeds": len(results), **columns, "runs": results}
    (Path(folder) / "summary.json").write_text(json.dumps(summary, indent=1))
    if not quiet:
        out.print(metrics_table(f"{len(results)} seeds", columns))
    return summary


def _of(statistic: Callable[[list[Any]], float], values: list[float | None]) -> float | None:
    """Nothing when one of the values is undefined."""
    return None if None in values else statistic(values)


def override(data: dict[str, Any], setting: str) -> None:
    """Put one ``KEY=VALUE`` of the command line into a config."""
    from embstore.config import parse_yaml
    from embstore.errors import ConfigError

    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError("--set", expected="KEY=VALUE, e.g. table.dim=32", found=setting)
    *path, last = key.split(".")
    for part in path:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {setting}", expected=f"{part} to be a mapping", found=repr(inner))
        data[part] = dict(inner)
        data = data[part]
    data[last] = parse_yaml(text, where=f"--set {setting}")


@click.command(
    epilog="""\b
Example:
  embstore evaluate runs/first --log logs/next-day
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--log", "source", required=True, help="A labelled log: a Parquet file, folder, glob or URI.")
@as_json_option
def evaluate(run: Path, source: str, as_json: bool) -> None:
    """Measure the trained model of RUN on another log.

    AUC, logloss, normalized entropy (logloss over that of always saying the mean), calibration, and GAUC when the
    schema names a group: computed exactly, over all rows.
    """
    from embstore.cli.console import metrics_table, out, progress
    from embstore.metrics import finite
    from embstore.models import build
    from embstore.run import Run

    result = Run.open(run, build, progress=progress).evaluate(source)
    if as_json:
        click.echo(json.dumps(finite(result)))
    else:
        out.print(metrics_table(str(run), {source: result}))
