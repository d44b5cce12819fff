"""A run's settings: what its YAML file holds.

logs: {train: logs/train, valid: logs/valid}      LogSettings
schema: schema.yaml                               see ``embstore.schema``
table: {rows: 1000000, dim: 16}                   TableSettings
model: {name: dcn, hidden: [512, 256]}            see ``embstore.models``
training: {epochs: 2}                             see ``embstore.training_settings``
vocabulary: pruned                                see ``embstore.run_vocabulary``
start: {store: store}                             see ``embstore.continuous``
publish: {store: store, every_minutes: 10}
output: runs/first
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from embstore.config import load_yaml, parse
from embstore.continuous import PublishSettings, StartSettings
from embstore.embeddings.unified import DTYPES
from embstore.errors import ConfigError, nearest
from embstore.kernels import TableOptimizer
from embstore.run_vocabulary import VocabularySource
from embstore.schema import Schema
from embstore.store import Version
from embstore.training_settings import TrainingSettings
from embstore.warm_start import WarmStartSettings, frozen_features


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Where the logs are: files, folders, globs or URIs; relative paths are relative to the working directory."""

    train: str
    valid: str | None = None
    test: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """The unified table; see ``UnifiedEmbedding``, and ``embstore.warm_start`` for what rows start from."""

    rows: int = 262_144
    dim: int = 16
    num_tables: int = 1
    dtype: str = "float32"
    init_std: float = 0.01
    kernel: str = "auto"
    seed: int = 0
    optimizer: TableOptimizer = field(default_factory=TableOptimizer)
    warm_start: tuple[WarmStartSettings, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError("table.seed", expected="0 to 2^63 - 1", found=str(self.seed))
        if self.dtype not in DTYPES:
            raise ConfigError(f"table.dtype: unknown {self.dtype!r}", do=nearest(self.dtype, DTYPES))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Features whose rows are never trained."""
        return frozen_features(self.warm_start)


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
        vocabulary: a folder (or ``{path:}``, ``{store:, version:}``) whose dropped values are looked up as their
            stand-ins, or as their feature's pruned token. A run that goes on from a version has the version's, unless
            it names one.
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
    vocabulary: str | VocabularySource | None = None
    start: StartSettings | None = None
    publish: PublishSettings | None = None
    output: str = "runs/default"

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", {"name": "dcn", **self.model})
        if not isinstance(self.model["name"], str):
            raise ConfigError("config.model.name", expected="the name of a model", found=repr(self.model["name"]))
        if isinstance(self.vocabulary, str):
            object.__setattr__(self, "vocabulary", VocabularySource(path=self.vocabulary))
        if self.schema is None and self.label is None and self.start is None:
            raise ConfigError("config", expected="a schema, or the label to infer one for", found="neither")

    @property
    def honoured(self) -> VocabularySource | None:
        """``vocabulary``, which a text stands for, too."""
        return VocabularySource(path=self.vocabulary) if isinstance(self.vocabulary, str) else self.vocabulary

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
            ConfigError: the run asks for another table or model than the version's, or its rows are float64, which no
                kernel trains.
        """
        assert self.start is not None
        layout, lineage = version.table.layout, version.manifest["lineage"]["config"] or {}
        dtype = str(layout.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            expected, do = f"rows of {', '.join(DTYPES)}", 'publish it with encoding="float32" and start from that'
            raise ConfigError(f"start from version {version.id}", expected=expected, found=dtype, do=do)
        if not version.dense:
            do = "name it in table.warm_start: rows can start from its vectors"
            raise ConfigError(f"start from version {version.id}", expected="a network", found="vectors alone", do=do)
        table = parse(TableSettings, lineage.get("table") or {}, where=f"version {version.id}: table")
        plain, asked = TableSettings(), self.table
        optimizer = table.optimizer if asked.optimizer == plain.optimizer else asked.optimizer
        table = replace(
            plain,
            rows=layout.hashed_rows,
            dim=layout.dim,
            num_tables=layout.num_tables,
            seed=layout.seed,
            dtype=dtype,
            kernel=asked.kernel,
            optimizer=optimizer,
            warm_start=table.warm_start,  # for what is frozen; the rows are the version's
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
        if asked.warm_start and [of.names for of in asked.warm_start] != [of.names for of in table.warm_start]:
            do = "leave it out: rows go on from the version's (embstore import sets some of a version)"
            raise ConfigError("config.table.warm_start", expected=f"that of {version.id}", found="another", do=do)
        schema = version.schema if self.label is None else replace(version.schema, label=self.label)
        start = replace(self.start, version=version.id)
        return replace(self.with_schema(schema), table=table, model=model, start=start)

    def with_schema(self, schema: Schema) -> RunConfig:
        """The same run with this schema, written out."""
        return replace(self, schema=schema.to_dict(), label=None)

    def identity(self, start: Version | None) -> str:
        """What a checkpoint belongs to: the same text for runs whose trained numbers are the same.

        The log has its fingerprint, the trainer its settings; where versions lie and go decides nothing.

        Args:
            start: the version the run goes on from.
        """
        settings = asdict(replace(self, output=""))
        del settings["label"]  # it is in the schema
        settings["logs"] = settings["training"] = None
        settings["table"]["warm_start"] = [entry.deciding for entry in self.table.warm_start]
        if not self.table.warm_start:  # as before there was any
            del settings["table"]["warm_start"]
        del settings["publish"], settings["start"], settings["vocabulary"]
        if self.honoured is not None:
            settings["vocabulary"] = self.honoured.deciding
        if start is not None:
            settings["start"] = start.digest
        return json.dumps(settings, sort_keys=True)

    def changed_from(self, other: RunConfig) -> list[str]:
        """The settings that decide the result and are not those of another run, e.g. ``["table.dim"]``."""
        theirs, ours = (_flat(_deciding(c.with_schema(c.read_schema()))) for c in (other, self))
        differing = {key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)}
        differing -= {"training.checkpoint_every", "training.checkpoint_minutes", "start.store"}
        return sorted(key for key in differing if key.split(".")[0] not in ("logs", "output", "publish"))


def _deciding(config: RunConfig) -> dict[str, Any]:
    settings = asdict(config)
    settings["table"]["warm_start"] = [entry.deciding for entry in config.table.warm_start]
    settings["vocabulary"] = None if config.honoured is None else config.honoured.deciding
    return settings


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys; lists (of features, say) stay whole."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out
