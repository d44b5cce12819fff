"""A loop's settings: what its YAML file holds.

days: logs/day-*                            Parquet, a log a day: a glob, or a list, the oldest first
schema: schema.yaml                         or label: click
time: timestamp
admit: {min_count: 2, expire_after: 30d}    which values the vocabulary keeps
collisions: 0.1                             the first day takes as many rows as that needs, unless table.rows says
node2vec: {graph: {pairs: [[user, item]]}}  rows start from vectors of a graph; see ``loop_node2vec``
select: {options: {level: values}}          scores of fields and values; without, nothing is selected
prune: {keep: 0.9}                          drops values: of the least scores or counts, or alike to others
table: {dim: 16}                            table, model, training: as of a run
publish: {store: store}
output: runs/loop
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal

from embstore.admission import Admission
from embstore.config import load_yaml, parse
from embstore.continuous import PublishSettings, StartSettings
from embstore.errors import ConfigError, LogError
from embstore.schema import Schema
from embstore.selection import Cross
from embstore.selection.pruning import check_budget
from embstore.settings import RunConfig, TableSettings
from embstore.training_settings import TrainingSettings
from embstore.warm_start import WarmStartSettings

from .loop_node2vec import Node2vecSettings
from .selection import FEATURE_GRADIENTS, SelectionSettings, check_numbers, method_settings, model_of

_NOT_DECIDING = ("days", "publish", "promote", "output")


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """How each day's fields and values are scored: as of a selection job, see ``embstore.pipelines.selection``.

    Methods of a trained model judge by yesterday's version, on today's log, which is what is learnt next; those that
    train one train it as today's run would.
    """

    method: str = FEATURE_GRADIENTS
    options: dict[str, Any] = field(default_factory=dict)
    rows: int = 8192
    shuffle_window: int = 262_144
    hashed: int = 65_536
    crosses: tuple[Cross, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        needs = model_of(self.method, where="config.select.method")
        method_settings(self.method, self.options, where="config.select.options")
        check_numbers(self, where="config.select")
        if self.crosses and needs is not None:
            found = f"method {self.method!r}"
            raise ConfigError(
                "config.select.crosses", expected="a method of rows alone", found=found, do="leave them out"
            )

    def job(self, log: str, schema: Schema, vocabulary: str, output: str, **model: Any) -> SelectionSettings:
        """Of a day's log; ``model`` is what of ``run``, ``store`` and ``version`` the method judges by."""
        own = {of.name: getattr(self, of.name) for of in fields(self)}
        return SelectionSettings(log=log, schema=schema.to_dict(), vocabulary=vocabulary, output=output, **model, **own)


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """Which values are dropped: as of ``embstore.selection.pruning.prune``.

    Args:
        by: ``scores`` of the selection, or ``count``; or ``alike``: those that yesterday's version treats as others, on
            today's log, share their rows (``embstore.selection.alike``). On the first day none are dropped then.
        keep, rows, threshold: share of the rows to keep, or so many; and the least score (count) that is kept.
        per_feature: the budget is each feature's, not that of all together.
        at_least: so many values of a feature are kept in any case.
    """

    by: Literal["scores", "count", "alike"] = "scores"
    keep: float | None = None
    rows: int | None = None
    threshold: float | None = None
    per_feature: bool = False
    at_least: int = 1

    def __post_init__(self) -> None:
        check_budget(self.keep, self.rows, self.threshold, self.at_least)
        if self.by == "alike" and self.threshold is not None:
            found = f"threshold {self.threshold}"
            raise ConfigError("config.prune by: alike", expected="keep or rows", found=found)

    @property
    def budget(self) -> dict[str, Any]:
        """What ``prune`` takes."""
        return {of.name: getattr(self, of.name) for of in fields(self) if of.name != "by"}


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """A loop, as its YAML file has it.

    Args:
        days: logs, one a day, in their order: a glob, or a list of files, folders, globs or URIs.
        schema: a mapping as in a schema file, or the path of one; without, it is inferred from the first day.
        label: the column to predict; needed without a schema, and instead of the label of one.
        valid, test: logs, as of a run.
        time: column of timestamps, dates or integers; without, nobody knows when a value was seen.
        admit: which values are kept; of all days until each.
        unseen: what becomes of values that the vocabulary doesn't know: see ``embstore.run_vocabulary``.
        collisions: the share of values that may share a row with another of their feature, which says how many rows
            the table has, unless ``table.rows`` does.
        node2vec: how vectors of the values are learnt, and what becomes of them; none are, when not given.
        select: how fields and values are scored by each day's log; they are not, when not given.
        prune: which values are dropped; none, when not given.
        table, model, training: as of a run. The table and the model are those of the first day.
        publish: where to, and how; see ``embstore.continuous``.
        promote: alias that the last version gets; none when not given.
        output: the loop's folder.
    """

    days: str | tuple[str, ...]
    publish: PublishSettings
    schema: str | dict[str, Any] | None = None
    label: str | None = None
    valid: str | None = None
    test: str | None = None
    time: str | None = None
    admit: Admission = field(default_factory=Admission)
    unseen: Literal["keep", "prune"] = "keep"
    collisions: float = 0.1
    node2vec: Node2vecSettings | None = None
    select: SelectSettings | None = None
    prune: PruneSettings | None = None
    table: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    promote: str | None = None
    output: str = "runs/loop"

    def __post_init__(self) -> None:
        if self.schema is None and self.label is None:
            raise ConfigError("config", expected="a schema, or the label to infer one for", found="neither")
        if not 0 < self.collisions < 1:
            raise ConfigError("config.collisions", expected="a share between 0 and 1", found=str(self.collisions))
        if self.publish.vocabulary:
            do = "leave it out: what the loop counts is published"
            raise ConfigError("config.publish.vocabulary", expected="none", found=str(self.publish.vocabulary), do=do)
        if self.admit.timed and self.time is None:
            raise ConfigError("config.admit by age, or expiry", expected="a time column", found="none", do="add time")
        if self.prune is not None and self.prune.by == "scores" and self.select is None:
            do = "add select, or by: count"
            raise ConfigError("config.prune", expected="select, which scores the values", found="none", do=do)
        if self.select is not None and self.select.method == "autofield" and self.valid is None:
            raise ConfigError("config.select.method 'autofield'", expected="a log valid", found="none", do="add valid")
        table, of = parse(TableSettings, self.table, where="config.table"), self.node2vec
        if of is not None and of.sets_rows and of.skip_gram.dim < table.dim:
            expected, do = f"{table.dim} (table.dim) or more", "rows can't start from narrower vectors"
            raise ConfigError("config.node2vec.skip_gram.dim", expected=expected, found=str(of.skip_gram.dim), do=do)

    @classmethod
    def from_yaml(cls, path: str | Path) -> LoopSettings:
        """Parse a file.

        Raises:
            ConfigError: an unknown key (the nearest is named), a missing one, or a value of the wrong type.
        """
        return parse(cls, load_yaml(path))

    def sources(self) -> list[str]:
        """The days' logs, in order.

        Raises:
            LogError: a glob that nothing matches, or a log twice.
        """
        out: list[str] = []
        for source in [self.days] if isinstance(self.days, str) else self.days:
            matched = sorted(glob(source)) if has_magic(source) and "://" not in source else [source]
            if not matched:
                raise LogError(f"days {source}", expected="logs", found="none")
            out += matched
        if len(set(out)) < len(out) or not out:
            twice = next((source for source in out if out.count(source) > 1), "none")
            raise LogError("days", expected="logs, each once", found=twice)
        return out

    def read_schema(self, log: str) -> Schema:
        """From where it is declared, or inferred from a log."""
        return self._run(log, output="").read_schema()

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what a day comes to, as plain values."""
        settings = {name: value for name, value in asdict(self).items() if name not in _NOT_DECIDING}
        return {**settings, "node2vec": None if self.node2vec is None else self.node2vec.deciding()}

    def first_run(
        self,
        log: str,
        schema: Schema,
        rows: int,
        vocabulary: str,
        output: str,
        first_rows: WarmStartSettings | None = None,
    ) -> RunConfig:
        """The run of the first day.

        Args:
            rows: of the table.
            vocabulary: the folder of what it honours.
            first_rows: vectors that rows start from, besides those of ``table.warm_start``.
        """
        config = self._run(log, output=output, vocabulary=vocabulary).with_schema(schema)
        given = config.table.warm_start + (() if first_rows is None else (first_rows,))
        return replace(config, table=replace(config.table, rows=rows, warm_start=given))

    def next_run(self, log: str, version: str, vocabulary: str, output: str) -> RunConfig:
        """The run of a later day, which goes on from a version; its schema, table and model are that version's."""
        config = self._run(log, output=output, vocabulary=vocabulary)
        plain, asked = TableSettings(), config.table
        table = replace(plain, kernel=asked.kernel, optimizer=asked.optimizer)
        start = StartSettings(store=self.publish.store, version=version)
        return replace(config, schema=None, label=None, table=table, model={}, start=start)

    def _run(self, log: str, *, output: str, vocabulary: str | None = None) -> RunConfig:
        honoured = None if vocabulary is None else {"path": vocabulary, "unseen": self.unseen}
        return parse(
            RunConfig,
            {
                "logs": {"train": log, "valid": self.valid, "test": self.test},
                "schema": self.schema,
                "label": self.label,
                "table": self.table,
                "model": self.model,
                "training": asdict(self.training),
                "publish": asdict(self.publish),
                "vocabulary": honoured,
                "output": output,
            },
        )
