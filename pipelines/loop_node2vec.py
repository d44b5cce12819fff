"""What a loop does with node2vec: vectors of a day's values, for the first day's rows or for those who search.

node2vec:
  graph: {pairs: [[user_id, item_id]], weight: click}      of the day's log; see ``embstore.node2vec.graph_settings``
  skip_gram: {dim: 16}                                      walks, skip_gram, start, ...: as of a node2vec job
  features: [user_id, item_id]                              whose rows start from the vectors, on the first day
  publish: {store: vectors}                                 every day a version of vectors alone
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from embstore.config import parse
from embstore.errors import ConfigError
from embstore.node2vec.graph_settings import GraphSettings
from embstore.node2vec.settings import EvaluateSettings, JobSettings, PublishSettings, StartSettings
from embstore.node2vec.skipgram import SkipGramSettings
from embstore.node2vec.walks import WalkSettings
from embstore.schema import Schema
from embstore.warm_start import WarmStartSettings, check_features

_OF_ROWS = ("features", "scale", "frozen")
_NOT_DECIDING = ("publish", "threads", "checkpoint_minutes")


@dataclass(frozen=True, kw_only=True)
class Node2vecSettings:
    """How vectors of a day's values are learnt, and what becomes of them.

    Args:
        graph: as of a job, of the day's log.
        walks, skip_gram, propagation, evaluate, deterministic, threads, checkpoint_minutes: as of a job.
        start: the first day's; each later day's vectors start from those of the day before.
        features: of the table, whose rows start from the first day's vectors; a mapping where the graph's feature has
            another name: ``{movie_id: item}``. All that read a column of the graph when not given; none of ``[]``.
        scale, frozen: of these rows, see ``embstore.warm_start``.
        publish: where each day's vectors are published. Without, only the first day learns any.
    """

    graph: dict[str, Any]
    walks: WalkSettings = field(default_factory=WalkSettings)
    skip_gram: SkipGramSettings = field(default_factory=SkipGramSettings)
    start: StartSettings = field(default_factory=StartSettings)
    propagation: float = 0.0
    evaluate: EvaluateSettings | None = None
    deterministic: bool = True
    threads: int | None = None
    checkpoint_minutes: float | None = 5.0
    features: tuple[str, ...] | dict[str, str] | None = None
    scale: float | None = None
    frozen: bool = False
    publish: PublishSettings | None = None

    def __post_init__(self) -> None:
        of = [name for name in ("log", "edges", "graph") if name in self.graph]
        if of:
            do = "leave it out: the graph is of the day's log"
            raise ConfigError(f"config.node2vec.graph.{of[0]}", expected="none", found=str(self.graph[of[0]]), do=do)
        self.job("log", None, "")
        if not self.sets_rows and self.publish is None:
            do = "let features be those whose rows start from the vectors, or name a store in publish"
            raise ConfigError("config.node2vec", expected="a use of the vectors", found="none", do=do)
        if self.features:
            self._entry(self.features, "")

    @property
    def sets_rows(self) -> bool:
        """Whether the first day's rows start from the vectors."""
        return self.features is None or bool(self.features)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what comes of it, as plain values."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_DECIDING}

    def job(self, log: str, before: Path | None, output: str) -> JobSettings:
        """Of a day's log.

        Args:
            before: folder of the job whose vectors these start from, instead of those of ``start``.
        """
        own = {of.name: getattr(self, of.name) for of in fields(self) if of.name not in ("graph", *_OF_ROWS)}
        if before is not None:
            own["start"] = replace(self.start, vectors=str(before))
        graph = parse(GraphSettings, {"log": log, **self.graph}, where="config.node2vec.graph")
        return JobSettings(graph=graph, output=output, **own)

    def first_rows(self, schema: Schema, folder: Path) -> WarmStartSettings:
        """What rows of the table start from.

        Args:
            folder: of the job.

        Raises:
            ConfigError: features that the schema or the graph hasn't.
        """
        nodes = parse(GraphSettings, {"log": "log", **self.graph}).features
        features = self.features
        if features is None:
            plain = (feature for feature in schema.features if feature.transform is None)
            features = {feature.name: feature.source for feature in plain if feature.source in nodes}
            if not features:
                expected, do = "a feature that reads one of them", "name features: {feature: column}"
                raise ConfigError(
                    f"config.node2vec.graph of {', '.join(nodes)}", expected=expected, found="none", do=do
                )
        entry = self._entry(features, str(folder / "vectors"))
        for name in entry.names.values():
            if name not in nodes:
                expected = f"values of {' or '.join(nodes)}"
                raise ConfigError("config.node2vec.features", expected=expected, found=name)
        check_features([entry], schema)
        return entry

    def _entry(self, features: tuple[str, ...] | dict[str, str], vectors: str) -> WarmStartSettings:
        return WarmStartSettings(features=features, vectors=vectors, scale=self.scale, frozen=self.frozen)
