"""What jobs over a log have in common: which log, and which of its columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embstore.errors import ConfigError
from embstore.schema import Schema


@dataclass(frozen=True, kw_only=True)
class LogJob:
    """The settings of all jobs over a log.

    Args:
        log: a file, folder, glob or URI, or a list of these.
        schema: a mapping as in a schema file, or the path of one; without, it is inferred from the log.
        label: the column of labels; needed without a schema, and instead of the label of one.
        features: only these; all of the schema by default.
    """

    log: str | tuple[str, ...] | None = None
    schema: str | dict[str, Any] | None = None
    label: str | None = None
    features: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.log:
            raise ConfigError("config: key 'log' is missing", do="add log: <a file, folder, glob or URI>")
        if self.schema is None and self.label is None:
            raise ConfigError("config", expected="a schema, or the label to infer one for", found="neither")
        if self.features is not None and not self.features:
            raise ConfigError("config.features", expected="at least one", found="none")

    @property
    def sources(self) -> list[str]:
        """Of the log."""
        if self.log is None:
            return []
        return [self.log] if isinstance(self.log, str) else list(self.log)

    def read_schema(self) -> Schema:
        """The features that are asked for, the dense columns, and the label."""
        schema = self.given_schema() or Schema.infer(self.sources, label=self.label or "")
        if self.features is not None:
            schema = replace(schema, features=tuple(schema.feature(name) for name in dict.fromkeys(self.features)))
        return replace(schema, weight=None, group=None)

    def given_schema(self) -> Schema | None:
        """As it is declared, if it is."""
        if self.schema is None:
            return None
        schema = Schema.from_yaml(Path(self.schema)) if isinstance(self.schema, str) else Schema.from_dict(self.schema)
        return schema if self.label is None else replace(schema, label=self.label)
