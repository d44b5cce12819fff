"""``embstore plan``."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embstore.cli.store import LocalPath, as_json_option

if TYPE_CHECKING:
    from embstore.planning import Machine, TorchrecEstimate, Workload
    from embstore.planning.collisions import Sizing

_SUFFIXES = {"k": 3, "M": 6, "G": 9, "B": 9, "T": 12}
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@click.command(
    epilog="""\b
Examples:
  embstore plan --rows 10e9 --dim 64 --world 128 --device h100
  embstore plan --rows 10G --dim 64 --dtype fp16 --skew 1.05 --samples-per-second 20e6
  embstore plan --config config.yaml --rows 1e9 --device cpu --ranks-per-host 2
  embstore plan --rows 10e9 --dim 64 --world 16 --rates measured.json --json
  embstore plan --vocabulary vocabulary --target 0.1 --plot collisions.png
"""
)
@click.option(
    "--rows", help="Rows of the table: 10e9, 10G, 10_000_000_000.  [default: the config's, or what --target needs]"
)
@click.option("--dim", type=int, help="Numbers per row.")
@click.option("--dtype", help="fp32, fp16 or bf16.  [default: fp32]")
@click.option("--optimizer", help="rowwise_adagrad, adagrad, adam or sgd.  [default: rowwise_adagrad]")
@click.option("--lookups", type=float, help="Rows looked up for a sample.  [default: the schema's, or 26]")
@click.option("--batch", help="Samples per rank and step.  [default: the config's, or 4096]")
@click.option(
    "--skew", type=float, default=0.0, help="Exponent of Zipf's law over the rows; 0 is uniform.  [default: 0]"
)
@click.option("--dense-parameters", help="Of the network.  [default: the config's network's, or 0]")
@click.option("--flops", type=float, help="Of its forward pass for a sample.  [default: 2 per parameter]")
@click.option("--config", type=click.Path(path_type=Path), help="A run: its table, schema, network and batch size.")
@click.option("--schema", type=click.Path(path_type=Path), help="A schema file, to count lookups.")
@click.option("--world", type=int, help="Ranks.  [default: the smallest world that fits]")
@click.option("--max-world", type=int, default=1024, show_default=True, help="The largest world to look at.")
@click.option("--samples-per-second", help="Find the smallest world that reaches this.")
@click.option(
    "--device", default="cuda", show_default=True, help="cuda (an h100), h100, h200, a100 or cpu (this host)."
)
@click.option("--ranks-per-host", type=int, help="Ranks that share a host.  [default: cuda 8, cpu 1]")
@click.option("--memory-gb", type=float, help="Memory of a rank, GB.")
@click.option("--memory-gbps", type=float, help="Its bandwidth, GB/s.")
@click.option("--host-memory-gb", type=float, help="Host memory of a GPU's rank, GB, for tables too large for the GPU.")
@click.option("--intra-gbps", type=float, help="Link to the ranks of the host, GB/s in one direction.")
@click.option("--inter-gbps", type=float, help="Link to other hosts, GB/s in one direction and per rank.")
@click.option("--rates", type=click.Path(path_type=Path), help="JSON of measured numbers (embstore.planning.Machine).")
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path),
    help="Folder of one: say how many of its values share a row (and what it costs, with --dim or --config).",
)
@click.option(
    "--target",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of values that may share a row, for --vocabulary.",
)
@click.option("--plot", type=LocalPath(), help="Picture of it, .png or .svg; needs matplotlib.")
@as_json_option
def plan(
    config: Path | None,
    schema: Path | None,
    world: int | None,
    max_world: int,
    samples_per_second: str | None,
    device: str,
    ranks_per_host: int | None,
    rates: Path | None,
    vocabulary: Path | None,
    target: float,
    plot: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Say what a table sharded over many ranks needs, how long a step takes, and the smallest world that does.

    A cost model, not a measurement: all it assumes is printed with it, and --rates puts what you have measured in its
    place. The estimate of torchrec's own planner stands beside it.

    With --vocabulary it says how many values of a feature are expected to share a row in one table and in one for each
    feature, which features deserve exact rows, and how many rows a --target takes (docs/pruning.md).
    """
    from dataclasses import asdict

    from embstore.errors import ConfigError

    if plot is not None and vocabulary is None:
        raise ConfigError("--plot", expected="--vocabulary FOLDER with it", found="none")
    sizing = None if vocabulary is None else _sizing(vocabulary, config, schema, given["rows"], target, plot)
    if sizing is not None and given["dim"] is None and config is None:
        from embstore.cli.collision_report import show_collisions

        if as_json:
            click.echo(json.dumps({"collisions": asdict(sizing)}))
        else:
            show_collisions(sizing)
        return

    from embstore.cli.plan_report import show_cheapest, show_prediction, show_torchrec, show_worlds
    from embstore.errors import KernelError
    from embstore.planning import ask_torchrec, assumptions, cheapest, differences, predict, read_rates

    links = {key: given.pop(key) for key in ("memory_gb", "memory_gbps", "host_memory_gb", "intra_gbps", "inter_gbps")}
    speed = None if samples_per_second is None else float(count("--samples-per-second", samples_per_second))
    if sizing is not None and given["rows"] is None and config is None:
        if sizing.shared_rows is None:
            raise ConfigError("--target", expected="a share that some table has, or --rows", found=str(target))
        given["rows"] = str(sizing.rows)
    work = _workload(config, schema, given)
    on = _machine(device, ranks_per_host, read_rates(rates) if rates else {}, links)
    found = None if world is None else predict(work, on, world)
    best = cheapest(work, on, largest=max(max_world, world or 0), samples_per_second=speed)
    found = found or best.anyhow
    theirs: TorchrecEstimate | None = None
    missing = None
    try:
        theirs = ask_torchrec(work, on, found)
    except KernelError as error:
        missing = str(error)
    powers = [predict(work, on, 1 << power) for power in range(max_world.bit_length())]
    if as_json:
        answer = {
            "workload": asdict(work),
            "machine": asdict(on),
            "prediction": asdict(found),
            "torchrec": None if theirs is None else asdict(theirs),
            "torchrec_missing": missing,
            "differences": differences(work, on, found),
            "worlds": [asdict(each) for each in powers],
            "cheapest": {
                "in_memory": best.in_memory and best.in_memory.world,
                "fits": best.anyhow.world,
                "samples_per_second": speed,
                "fast_enough": best.fast_enough and best.fast_enough.world,
                "fastest": best.fastest.world,
            },
            "assumptions": assumptions(work, on),
            **({} if sizing is None else {"collisions": asdict(sizing)}),
        }
        click.echo(json.dumps(answer))
        return
    show_prediction(work, on, found)
    show_cheapest(best, speed)
    show_torchrec(found, theirs, missing, differences(work, on, found), on_gpus=on.kind == "cuda")
    show_worlds(powers)
    click.echo("\nassumed")
    for line in assumptions(work, on):
        click.echo(f"- {line}")
    if sizing is not None:
        from embstore.cli.collision_report import show_collisions

        click.echo()
        show_collisions(sizing)


def count(option: str, text: str) -> int:
    """A whole number as people write large ones.

    Raises:
        ConfigError: it is none.

    >>> count("--rows", "10e9"), count("--rows", "1_000_000"), count("--rows", "2.5M")
    (10000000000, 1000000, 2500000)
    """
    from embstore.errors import ConfigError

    digits, power = (text[:-1], _SUFFIXES[text[-1]]) if text[-1:] in _SUFFIXES else (text, 0)
    try:
        number = Decimal(digits.replace("_", "").replace(",", "")).scaleb(power)
        if number.is_finite() and number.adjusted() < 19 and number == number.to_integral_value():
            return int(number)
    except (InvalidOperation, ValueError):
        pass
    raise ConfigError(option, expected="a whole number of at most 19 digits, as 10e9, 10G or 10_000", found=repr(text))


def _workload(config: Path | None, schema_path: Path | None, given: dict[str, Any]) -> Workload:
    from embstore.errors import ConfigError
    from embstore.planning import Workload
    from embstore.schema import Schema

    settings: dict[str, Any] = {}
    schema = None if schema_path is None else Schema.from_yaml(schema_path)
    if config is not None:
        from embstore.settings import RunConfig

        run = RunConfig.from_yaml(config)
        schema = schema or run.read_schema()
        table = run.table
        settings = {
            "rows": table.rows,
            "dim": table.dim,
            "dtype": _DTYPES[table.dtype],
            "optimizer": table.optimizer.name,
            "l2": table.optimizer.l2 > 0,
            "tracked": run.publish is not None,
            "batch": run.training.batch_size,
        }
    if schema is not None:
        # A list is as long as it may be: how long lists are, only the log knows.
        settings["lookups"] = float(sum(each.lookups * (each.max_length or 1) for each in schema.features))
        outputs = sum(each.lookups for each in schema.features)
        settings["outputs"] = float(outputs if given["lookups"] is None else min(outputs, given["lookups"]))
    for key in ("rows", "batch", "dense_parameters"):
        if given[key] is not None:
            given[key] = count(f"--{key.replace('_', '-')}", given[key])
    settings |= {key: value for key, value in given.items() if value is not None}
    for key in ("rows", "dim"):
        if key not in settings:
            raise ConfigError("plan", expected=f"--{key}, or --config", found="neither")
    if config is not None and "dense_parameters" not in settings and schema is not None:
        settings["dense_parameters"] = _network_parameters(run.model, schema, settings["dim"])
    return Workload(**settings)


def _sizing(
    vocabulary: Path, config: Path | None, schema_path: Path | None, rows: str | None, target: float, plot: Path | None
) -> Sizing:
    """What a vocabulary does to a table: with the lookups and sub-tables of a schema or run, and without its exact
    features."""
    from embstore.planning import collisions
    from embstore.schema import Schema
    from embstore.vocabulary import Vocabulary

    values, tables = Vocabulary.from_parquet(vocabulary), 1
    asked = None if rows is None else count("--rows", rows)
    schema = None if schema_path is None else Schema.from_yaml(schema_path)
    if config is not None:
        from embstore.settings import RunConfig

        run = RunConfig.from_yaml(config)
        schema, tables = schema or run.read_schema(), run.table.num_tables
        asked = run.table.rows if asked is None else asked
    lookups = None if schema is None else {of.name: of.lookups for of in schema.features if not of.exact}
    features = [of for of in collisions.cardinalities(values, lookups) if lookups is None or of.name in lookups]
    sizing = collisions.advise(features, rows=asked, target=target, num_tables=tables)
    if plot is not None:
        collisions.plot(features, sizing, plot)
    return sizing


def _network_parameters(model: dict[str, Any], schema: Any, dim: int) -> int:
    """Of the config's network, which is described, not made."""
    import torch

    from embstore.models import build, parameter_count

    with torch.device("meta"):
        widths = [feature.lookups * dim for feature in schema.features]
        return int(parameter_count(build(dense_width=len(schema.dense), widths=widths, **model)))


def _machine(device: str, ranks: int | None, rates: dict[str, Any], links: dict[str, float | None]) -> Machine:
    from embstore.planning import machine, this_host

    if device == "cpu":
        shared = rates.get("ranks_per_host", 1) if ranks is None else ranks
        measured: dict[str, Any] = this_host(max(int(shared), 1))
        if links["memory_gbps"] is not None or "memory_gbps" in rates:
            del measured["stream_share"], measured["gather_share"]  # they are shares of the measured bandwidth
        rates = {**measured, **rates}
    return machine(device, rates, ranks_per_host=ranks, **links)
