"""What the columns of a log mean: features, dense columns, label, weight, group.

A log is Parquet. Each *feature* is a categorical column (integers, strings, booleans, or lists of them) that is
looked up in the table; each *dense* column is a number given to the model directly. Nothing else in the log is
read.

    schema.yaml
        label: click
        group: user_id                 # GAUC is averaged over its values
        features:
          - {name: user_id, lookups: 2}
          - {name: genres, pooling: mean, max_length: 20}
          - {name: hour, column: timestamp, transform: hour}
        dense:
          - {name: price, scale: log}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from embstore.config import parse, parse_yaml, read_text
from embstore.errors import ConfigError, SchemaError, nearest

POOLINGS = ("sum", "mean")
SCALES = ("log", "linear")


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A categorical feature: ``lookups`` rows of the table, concatenated.

    Args:
        name: the feature's name; its rows depend on it (and on nothing else in the schema).
        column: the log's column; the name when not given, so two features can read one column.
        transform: how to turn a timestamp into an integer first, see ``embstore.transforms``.
        lookups: rows per value; the feature's width is ``lookups * dim``.
        pooling: how the values of a list are reduced, ``"sum"`` or ``"mean"``; an empty list gives zeros.
        max_length: keep the first ``max_length`` values of a list.
        exact: give the values seen in the training log rows of their own, never shared (for low cardinality).
    """

    name: str
    column: str | None = None
    transform: str | None = None
    lookups: int = 1
    pooling: str = "sum"
    max_length: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        from embstore.transforms import TRANSFORMS

        if not self.name or "\0" in self.name:
            raise ConfigError("feature name", expected="a non-empty text without NUL", found=repr(self.name))
        if self.lookups < 1:
            raise ConfigError(f"feature {self.name!r}: lookups", expected="1 or more", found=str(self.lookups))
        if self.pooling not in POOLINGS:
            raise ConfigError(
                f"feature {self.name!r}: pooling", expected=" or ".join(POOLINGS), found=repr(self.pooling)
            )
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"feature {self.name!r}: max_length", expected="1 or more", found=str(self.max_length))
        if self.transform is not None and self.transform not in TRANSFORMS:
            raise ConfigError(
                f"feature {self.name!r}: unknown transform {self.transform!r}", do=nearest(self.transform, TRANSFORMS)
            )

    @property
    def source(self) -> str:
        """The log's column this feature reads."""
        return self.column or self.name


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A numeric column given to the model directly.

    Args:
        name: the column's name for the model.
        column: the log's column; the name when not given.
        scale: ``"log"`` takes sign(x) * log(1 + |x|) before standardising (counts, prices); ``"linear"`` takes x.
    """

    name: str
    column: str | None = None
    scale: str = "log"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ConfigError(f"dense {self.name!r}: scale", expected=" or ".join(SCALES), found=repr(self.scale))

    @property
    def source(self) -> str:
        """The log's column."""
        return self.column or self.name


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the columns of a log mean.

    Args:
        features: categorical features, in the order of the model's embedded input.
        dense: numeric columns, in the order of the model's dense input.
        label: the 0/1 column to predict; ``None`` for logs that are only scored.
        weight: a non-negative sample weight, or ``None``.
        group: the column whose values GAUC averages over (usually the user), or ``None``.
        reasons: for an inferred schema, why each column was taken as it was (or left out).

    Raises:
        ConfigError: two features (or dense columns) share a name.
    """

    features: tuple[Feature, ...] = ()
    dense: tuple[Dense, ...] = ()
    label: str | None = None
    weight: str | None = None
    group: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for kind, entries in (("feature", self.features), ("dense column", self.dense)):
            names = [entry.name for entry in entries]
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ConfigError(f"{kind} {min(twice)!r} is declared twice", do="give each its own name")
        leaks = {self.label, self.weight} & {entry.source for entry in self._inputs} - {None}
        if leaks:
            raise ConfigError(
                f"column {min(map(str, leaks))!r} is the label or weight and also an input",
                do="remove it from features and dense; a model that sees its label learns nothing",
            )

    @classmethod
    def infer(cls, logs: Any, *, label: str, **options: Any) -> Schema:
        """Read a sample of ``logs`` and say what each column is, and why; see ``embstore.inference.infer``."""
        from embstore.inference import infer

        return infer(logs, label=label, **options)

    @classmethod
    def from_yaml(cls, source: str | Path) -> Schema:
        """Parse a YAML file (a ``Path``) or YAML text (a ``str``).

        Raises:
            ConfigError: not YAML, an unknown key (the nearest known one is named), or a value of the wrong type.
        """
        if isinstance(source, Path):
            return cls.from_dict(parse_yaml(read_text(source, what="schema"), where=f"schema {source}"))
        return cls.from_dict(parse_yaml(source, where="schema"))

    @classmethod
    def from_dict(cls, data: Any) -> Schema:
        """The schema of a plain mapping, as ``to_dict`` makes; a bare name stands for a feature with defaults."""
        if isinstance(data, Mapping):
            data = dict(data)
            for key in ("features", "dense"):
                if isinstance(data.get(key), Sequence) and not isinstance(data[key], str):
                    data[key] = [{"name": entry} if isinstance(entry, str) else entry for entry in data[key]]
        return parse(cls, data, where="schema")

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping with only the values that differ from their defaults."""
        out: dict[str, Any] = {
            key: value for key in ("label", "weight", "group") if (value := getattr(self, key)) is not None
        }
        if self.features:
            out["features"] = [_changed(feature) for feature in self.features]
        if self.dense:
            out["dense"] = [_changed(column) for column in self.dense]
        return out

    def to_yaml(self) -> str:
        """YAML text, one line per column, with the reasons as comments."""
        lines = [f"{key}: {_scalar(value)}" for key, value in self.to_dict().items() if isinstance(value, str)]
        taken = set()
        for key, entries in (("features", self.features), ("dense", self.dense)):
            if entries:
                lines.append(f"{key}:")
            for entry in entries:
                taken.add(entry.source)
                reason = " ".join(self.reasons.get(entry.source, "").split())
                lines.append(f"  - {_flow(_changed(entry))}" + (f"  # {reason}" if reason else ""))
        left_out = [name for name in self.reasons if name not in taken | {self.label, self.weight}]
        lines += [f"# {_scalar(name)}: {' '.join(self.reasons[name].split())}" for name in left_out]
        return "\n".join(lines) + "\n"

    @property
    def _inputs(self) -> tuple[Feature | Dense, ...]:
        return (*self.features, *self.dense)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the log that is read, each once."""
        sources = [entry.source for entry in self._inputs]
        extra = [name for name in (self.label, self.weight, self.group) if name is not None]
        return tuple(dict.fromkeys(sources + extra))

    def feature(self, name: str, *, of: str = "") -> Feature:
        """The feature of that name.

        Args:
            of: what the schema is of, for messages, e.g. a version.

        Raises:
            SchemaError: there is none.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        is_dense = any(column.name == name for column in self.dense)
        raise SchemaError(
            f"no feature {name!r}{of and f' in {of}'}",
            found="a dense column; it has no vectors" if is_dense else "",
            do=nearest(name, [feature.name for feature in self.features]),
        )


def _changed(entry: Feature | Dense) -> dict[str, Any]:
    defaults = {f.name: f.default for f in fields(entry)}
    return {key: value for key, value in asdict(entry).items() if key == "name" or value != defaults[key]}


def _flow(entry: dict[str, Any]) -> str:
    """One line of YAML for an entry's plain values."""
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in entry.items()) + "}"


def _scalar(value: Any) -> str:
    """A plain word as it is, else quoted: any name (spaces, line breaks) comes back as it was."""
    if not isinstance(value, str):
        return json.dumps(value)
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", value) and yaml.safe_load(value) == value:
        return value
    text = yaml.safe_dump(value, default_style='"', allow_unicode=value.isprintable(), width=float("inf"))
    return text.strip("\n")
