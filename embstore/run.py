"""One training run, from a YAML file to a folder with everything that came of it.

    runs/frappe/
      config.yaml        the settings, complete
      schema.yaml        what the log's columns mean
      logs.json          fingerprints of the logs it learns from, and the type of each feature's values
      exact.safetensors  known tokens of the exact features
      metrics.jsonl  checkpoints/  tensorboard/     see ``embstore.training``
      result.json        the metrics of the finished run

``embstore`` doesn't know the networks (they are ``embstore.models``): whoever makes a ``Run`` passes the builder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from torch import Tensor

from embstore import training
from embstore.checkpoints import Checkpoints, adam_tensors
from embstore.config import load_yaml, parse
from embstore.continuous import Publisher, PublishSettings, StartSettings, load_version, place_of
from embstore.ctr import BuildNetwork, CtrModel, NetworkDescription, build_network
from embstore.embeddings.unified import DTYPES, UnifiedEmbedding
from embstore.errors import CheckpointError, ConfigError, SchemaError, nearest
from embstore.kernels import TableOptimizer
from embstore.logs import ParquetLog, check_alike
from embstore.metrics import finite
from embstore.normalization import StreamingNormalizer
from embstore.progress import Progress, no_progress
from embstore.schema import Schema
from embstore.store import Bundle, Store, Version
from embstore.store.tensors import open_tensors, write_tensors
from embstore.training import Trainer, TrainingSettings
from embstore.vocabulary import exact_tokens

FEW_STEPS = 100  # so few hardly move a network's weights


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Where the logs are: files, folders, globs or URIs; relative paths are relative to the working directory."""

    train: str
    valid: str | None = None
    test: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """The unified table; see ``UnifiedEmbedding``."""

    rows: int = 262_144
    dim: int = 16
    num_tables: int = 1
    dtype: str = "float32"
    init_std: float = 0.01
    kernel: str = "auto"
    seed: int = 0
    optimizer: TableOptimizer = field(default_factory=TableOptimizer)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError("table.seed", expected="0 to 2^63 - 1", found=str(self.seed))
        if self.dtype not in DTYPES:
            raise ConfigError(f"table.dtype: unknown {self.dtype!r}", do=nearest(self.dtype, DTYPES))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run, as its YAML file has it. The least there is:

        logs: {train: logs/train}
        label: click

    Args:
        logs: where.
        schema: a mapping as in a schema file, or the path of one; without, it is inferred from the training log.
        label: the column to predict; needed without a schema, and instead of the label of one.
        table: the unified table.
        model: ``name`` of a model in ``embstore.models`` (``dcn`` when not given) and its settings.
        training: how to train.
        start: a published version to go on from; its schema, table and model are the run's.
        publish: where to publish on the way and at the end.
        output: folder of the run.
    """

    logs: LogSettings
    schema: str | dict[str, Any] | None = None
    label: str | None = None
    table: TableSettings = field(default_factory=TableSettings)
    model: dict[str, Any] = field(default_factory=dict)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    start: StartSettings | None = None
    publish: PublishSettings | None = None
    output: str = "runs/default"

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", {"name": "dcn", **self.model})
        if not isinstance(self.model["name"], str):
            raise ConfigError("config.model.name", expected="the name of a model", found=repr(self.model["name"]))
        if self.schema is None and self.label is None and self.start is None:
            raise ConfigError("config", expected="a schema, or the label to infer one for", found="neither")

    @classmethod
    def from_yaml(cls, path: str | Path) -> RunConfig:
        """Parse a file.

        Raises:
            ConfigError: an unknown key (the nearest is named), a missing one, or a value of the wrong type.
        """
        return parse(cls, load_yaml(path))

    def with_seed(self, seed: int, output: str) -> RunConfig:
        """The same run with another seed for all that is drawn (hashes, first weights, order), in another folder."""
        return replace(
            self, table=replace(self.table, seed=seed), training=replace(self.training, seed=seed), output=output
        )

    def read_schema(self, warn: Callable[[str], object] | None = None) -> Schema:
        """The schema, from where it is declared, or inferred from the training log; ``warn`` as for ``infer``."""
        if self.schema is None:
            if self.label is None:  # with_start brings a schema
                raise ConfigError("config", expected="a schema, or the label to infer one for", found="neither")
            return Schema.infer(self.logs.train, label=self.label, warn=warn)
        schema = Schema.from_yaml(Path(self.schema)) if isinstance(self.schema, str) else Schema.from_dict(self.schema)
        return schema if self.label is None else replace(schema, label=self.label)

    def with_start(self, version: Version) -> RunConfig:
        """The same run on the schema, table and model of a version; its optimizer's settings where the run has none.

        Raises:
            ConfigError: the run asks for another table or model than the version's.
        """
        assert self.start is not None
        layout, lineage = version.table.layout, version.manifest["lineage"]["config"] or {}
        table = parse(TableSettings, lineage.get("table") or {}, where=f"version {version.id}: table")
        plain, asked = TableSettings(), self.table
        optimizer = table.optimizer if asked.optimizer == plain.optimizer else asked.optimizer
        table = replace(
            plain,
            rows=layout.hashed_rows,
            dim=layout.dim,
            num_tables=layout.num_tables,
            seed=layout.seed,
            dtype=str(layout.dtype).removeprefix("torch."),
            kernel=asked.kernel,
            optimizer=optimizer,
        )
        model = {"name": version.manifest["model"]["name"], **version.manifest["model"]["settings"]}
        for name, wanted, found in (
            *((f"table.{key}", getattr(asked, key), getattr(table, key)) for key in ("rows", "dim", "num_tables")),
            ("model", self.model, model),
        ):
            default = {"name": "dcn"} if name == "model" else getattr(plain, name.removeprefix("table."))
            if wanted not in (default, found):
                do = "leave it out: it is the version's"
                raise ConfigError(f"config.{name}", expected=f"{found} as in {version.id}", found=str(wanted), do=do)
        schema = version.schema if self.label is None else replace(version.schema, label=self.label)
        start = replace(self.start, version=version.id)
        return replace(self.with_schema(schema), table=table, model=model, start=start)

    def with_schema(self, schema: Schema) -> RunConfig:
        """The same run with this schema, written out."""
        return replace(self, schema=schema.to_dict(), label=None)


class Run:
    """A run and its folder.

    Args:
        config: its settings.
        build_network: ``embstore.models.build``, or anything called as it is.
        progress: how progress is shown.

    Raises:
        CheckpointError: the folder holds a run of other settings.
    """

    def __init__(self, config: RunConfig, build_network: BuildNetwork, *, progress: Progress = no_progress) -> None:
        self.folder = Path(config.output)
        self.start = None if config.start is None else self._open_start(config.start)
        if self.start is not None:
            config = config.with_start(self.start)
        self.schema = config.read_schema()
        self.config, self.build_network, self.progress = config.with_schema(self.schema), build_network, progress
        if self.schema.label is None:
            raise ConfigError(
                "schema", expected="a label to train on", found="none", do="add label: <column> to the schema"
            )

    @classmethod
    def open(cls, folder: str | Path, build_network: BuildNetwork, *, progress: Progress = no_progress) -> Run:
        """The run in a folder.

        Raises:
            CheckpointError: there is none.
        """
        path = Path(folder) / "config.yaml"
        if not path.exists():
            raise CheckpointError(f"{folder}", expected="the folder of a run (with config.yaml)", found="none")
        config = replace(RunConfig.from_yaml(path), output=str(folder))
        return cls(config, build_network, progress=progress)

    @staticmethod
    def clear(folder: str | Path) -> None:
        """Remove what an earlier run left in a folder (only files a run makes)."""
        folder = Path(folder)
        if not folder.is_dir():
            return
        for name in ("checkpoints", "tensorboard"):
            shutil.rmtree(folder / name, ignore_errors=True)
        names = "config.yaml schema.yaml logs.json exact.safetensors metrics.jsonl published.json result.json"
        for name in names.split():
            (folder / name).unlink(missing_ok=True)

    def train(self) -> dict[str, Any]:
        """Train (or go on), evaluate on valid and test, and return what ``result.json`` holds.

        Raises:
            Interrupted: Ctrl-C; the same call goes on.
        """
        logs = {
            name: ParquetLog(source, self.schema)
            for name, source in asdict(self.config.logs).items()
            if source is not None
        }
        check_alike(logs)
        self._begin(logs)
        model = self.build(self._exact(logs["train"]))
        publisher: Publisher | None = None
        before, trained = json.loads(self._read("result.json", "{}")).get("version"), False

        def after_step(rows: int) -> None:
            nonlocal trained
            trained = True
            if publisher is not None and (version := publisher.step(rows)) is not None:
                self.progress.say(f"published {version.id}")

        trainer = Trainer(
            model,
            self.config.training,
            self.folder,
            identity=self._identity(),
            progress=self.progress,
            begin=lambda: self._start(trainer),
            after_step=after_step,
        )
        if self.config.publish is not None:
            publisher = self._publisher(self.config.publish, trainer)
        result: dict[str, Any] = {"valid": trainer.fit(logs["train"], logs.get("valid"))}
        if "test" in logs:
            result["test"] = trainer.evaluate(logs["test"], label="test")
        result |= {
            "steps": trainer.at.step,
            "kernel": {"name": model.table.kernel.name, "reason": model.table.kernel_reason},
            "parameters": self.parameters(model),
            "logs": {name: {"fingerprint": log.fingerprint, "rows": log.rows} for name, log in logs.items()},
        }
        result = finite({**result, "notes": _notes(result, trainer)})
        self._write("result.json", json.dumps(result, indent=1))
        if publisher is not None:
            done = publisher.last is not None and publisher.last.id == before and not trained
            result["version"] = before if done else publisher.publish(restored=True).id
            self._write("result.json", json.dumps(result, indent=1))
            self.progress.say(f"published {'before, as ' if done else ''}{result['version']}")
        return result

    def _open_start(self, start: StartSettings) -> Version:
        """The version to go on from. An alias means what it meant when the folder's run began."""
        config, ref = self.folder / "config.yaml", start.version
        if not ref[:1].isdigit() and config.exists():
            begun = RunConfig.from_yaml(config).start
            if begun is not None and place_of(begun.store) == place_of(start.store):
                ref = begun.version
        return Store(start.store).open(ref)

    def _start(self, trainer: Trainer) -> None:
        if self.start is not None and not load_version(trainer.model, trainer.optimizer, self.start):
            self.progress.say(f"{self.start.id} has no optimizer's state: it starts afresh")

    def _publisher(self, settings: PublishSettings, trainer: Trainer) -> Publisher:
        place = place_of(settings.store)  # tried now, not when hours of training are over
        if isinstance(place, Path):
            make_output(place)
        else:
            Store(place).aliases()
        start = self.start if self.parent(settings.store) is not None else None
        return Publisher(settings, trainer.model, lambda: self._bundle(trainer), self.folder, start=start)

    def parent(self, store: str | Path) -> str | None:
        """The version of this store that the run goes on from, if there is one."""
        start = self.config.start
        return None if start is None or place_of(start.store) != place_of(store) else start.version

    def build(self, exact: Mapping[str, Tensor]) -> CtrModel:
        """The run's model before training."""
        settings = self.config.table
        table = UnifiedEmbedding(
            self.schema.features,
            settings.rows,
            settings.dim,
            num_tables=settings.num_tables,
            exact_tokens=exact,
            optimizer=settings.optimizer,
            dtype=DTYPES[settings.dtype],
            init_std=settings.init_std,
            kernel=settings.kernel,
            seed=settings.seed,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.training.seed)
            network = build_network(self.build_network, self._description(table))
        return CtrModel(table, StreamingNormalizer(self.schema.dense), network)

    def trained(self) -> CtrModel:
        """The finished run's model, in eval mode.

        Raises:
            CheckpointError: it has no checkpoint yet.
        """
        return self._restored().model

    def _restored(self) -> Trainer:
        model = self.build(self._saved_exact())
        trainer = Trainer(model, self.config.training, self.folder, identity=self._identity())
        trainer.restore()
        return trainer

    def evaluate(self, source: str) -> dict[str, float]:
        """Metrics of the trained model on another labelled log.

        Raises:
            CheckpointError: the run has no checkpoint.
            LogError, SchemaError, DataError: the log can't be used.
        """
        log = ParquetLog(source, self.schema)
        size = self.config.training.evaluation_batch_size
        return training.evaluate(self.trained(), log, size, progress=self.progress)

    def bundle(self) -> Bundle:
        """What ``embstore.store`` publishes of the trained run.

        Raises:
            CheckpointError: it isn't finished.
        """
        if not (self.folder / "result.json").exists():
            raise CheckpointError(
                f"{self.folder}",
                expected="a finished run",
                found="one without result.json",
                do="train it to its end first",
            )
        trainer = self._restored()
        return self._bundle(trainer)

    def _bundle(self, trainer: Trainer) -> Bundle:
        model, result = trainer.model, json.loads(self._read("result.json", "{}"))
        lineage: dict[str, Any] = {
            "logs": result.get("logs", {}),
            "config": yaml.safe_load(self._read("config.yaml", "{}")),
        }
        if self.start is not None:
            lineage["space"] = self.start.space
        return Bundle(
            table=model.table,
            schema=self.schema,
            columns=json.loads(self._read("logs.json", "{}")).get("columns", {}),
            dense_state=model.dense_state(),
            model=self._description(model.table),
            metrics={name: result[name] for name in ("valid", "test") if name in result},
            lineage=lineage,
            optimizer=model.table.optimizer_state(adam_tensors(trainer.optimizer)),
        )

    @staticmethod
    def parameters(model: CtrModel) -> dict[str, int]:
        """Trained numbers: in the table, in the network, in all."""
        table, network = model.table.weight.numel(), sum(p.numel() for p in model.network.parameters())
        return {"table": table, "network": network, "total": table + network}

    def _description(self, table: UnifiedEmbedding) -> NetworkDescription:
        settings = {key: value for key, value in self.config.model.items() if key != "name"}
        return {
            "name": self.config.model["name"],
            "settings": settings,
            "dense_width": len(self.schema.dense),
            "widths": list(table.widths),
        }

    def _identity(self) -> str:
        config = asdict(replace(self.config, output=""))
        del config["label"]  # it is in the schema
        # The log has its fingerprint, the trainer its settings; where versions lie and go decides nothing.
        config["logs"] = config["training"] = None
        del config["publish"], config["start"]
        if self.start is not None:
            config["start"] = self.start.digest
        return json.dumps(config, sort_keys=True)

    def _begin(self, logs: Mapping[str, ParquetLog]) -> None:
        """Make the folder this run's; files of a run that never came to a checkpoint are replaced."""
        config = self.folder / "config.yaml"
        learnt_from = {name: logs[name].fingerprint for name in ("train", "valid") if name in logs}
        if config.exists():
            changed = self._changed_from(RunConfig.from_yaml(config))
            before = json.loads(self._read("logs.json", "{}")).get("fingerprints", {})
            changed += [
                f"logs.{name}" for name in before.keys() | learnt_from if before.get(name) != learnt_from.get(name)
            ]
            if changed and Checkpoints(self.folder / "checkpoints").names():
                raise CheckpointError(
                    f"{self.folder} holds a run of other settings or logs",
                    expected=f"those in {config}",
                    found=f"another {', '.join(sorted(changed))}",
                    do="name another folder with --output, or start afresh with --fresh",
                )
            if changed:
                self.clear(self.folder)
        train = logs["train"]
        with pq.ParquetFile(train.paths[0], filesystem=train.filesystem) as file:
            columns = file.schema_arrow
        types = {feature.name: str(_plain(columns.field(feature.source).type)) for feature in self.schema.features}
        if self.start is not None:
            _check_types(types, self.start)
        make_output(self.folder)
        settings = asdict(self.config)
        del settings["label"]
        self._write("config.yaml", yaml.safe_dump(settings, sort_keys=False))
        self._write("schema.yaml", self.schema.to_yaml())
        self._write("logs.json", json.dumps({"fingerprints": learnt_from, "columns": types}))

    def _changed_from(self, other: RunConfig) -> list[str]:
        """The settings that decide the result and are not those of another run, e.g. ``["table.dim"]``."""
        theirs, ours = (_flat(asdict(c.with_schema(c.read_schema()))) for c in (other, self.config))
        differing = {key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)}
        differing -= {"training.checkpoint_every", "training.checkpoint_minutes"}
        return sorted(key for key in differing if key.split(".")[0] not in ("logs", "output", "publish"))

    def _exact(self, log: ParquetLog) -> dict[str, Tensor]:
        path = self.folder / "exact.safetensors"
        if not path.exists():
            tokens = None if self.start is None else self.start.table.exact_tokens()
            if tokens is None:
                with self.progress("exact", log.rows) as bar:
                    tokens = exact_tokens(log, progress=bar.advance)
            partial = self.folder / ".exact.safetensors"
            write_tensors(partial, tokens)
            os.replace(partial, path)
        return self._saved_exact()

    def _saved_exact(self) -> dict[str, Tensor]:
        path = self.folder / "exact.safetensors"
        if not path.exists():
            raise CheckpointError(
                f"{self.folder}", expected="a trained run", found="one without tokens of exact features"
            )
        return dict(open_tensors(path))

    def _read(self, name: str, default: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else default

    def _write(self, name: str, text: str) -> None:
        partial = self.folder / f".{name}"
        partial.write_text(text)
        os.replace(partial, self.folder / name)


def make_output(folder: Path) -> None:
    """Make the folder that was named for results, and those above it; fine when it exists.

    Raises:
        ConfigError: it can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        found = "a file" if folder.is_file() else str(error.strerror)
        raise ConfigError(
            f"output {folder}", expected="a folder that can be made and written to", found=found, do="name another"
        ) from error


def _notes(result: Mapping[str, Any], trainer: Trainer) -> list[str]:
    """What a person should know before trusting a result."""
    at, notes = trainer.at, []
    if at.positives != at.negatives:
        label = 1 if at.positives else 0
        notes.append(f"warning: every label of the training log is {label}; a model can't learn from one class")
    for name in ("valid", "test"):
        rate = (result.get(name) or {}).get("positives_rate")
        if rate in (0, 1):
            notes.append(f"warning: every label of the {name} log is {rate:.0f}; its AUC is undefined")
    if at.step < FEW_STEPS:
        steps = f"only {at.step} step" + "s" * (at.step != 1)
        notes.append(f"hint: {steps}; a smaller training.batch_size or more training.epochs may learn more")
    return notes


def _check_types(types: Mapping[str, str], start: Version) -> None:
    """A value of another type is another token: what a version has learnt of it would not be found again.

    Raises:
        SchemaError: a feature's column has not the type it had when the version was trained.
    """

    def written(kind: str) -> str:
        return re.sub(r"u?int(8|16|32|64)", "integer", kind.replace("large_", ""))

    for name, kind in types.items():
        before = start.manifest["columns"].get(name, kind)
        if written(kind) != written(before):
            raise SchemaError(
                f"feature {name!r} of the training log",
                expected=f"{before}, as when {start.id} was trained",
                found=kind,
                do="write the column as it was, or train a new table without --from",
            )


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without its dictionary: what the values are."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys; lists (of features, say) stay whole."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out
