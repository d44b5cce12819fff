"""The selection job: what a method says of the fields and values of a log.

    windows ──encode──> batches ──add──> statistics, merged in order ──┐
       └────encode──> batches ──gradient──> of 8 batches, in order ──> step of Adam ──> scores ──> folder
            tasks               tasks             here

A window is what the log shuffles together; its batches are the same whoever makes them, and what they give is added in
their order here. So the bytes are the same by this process or by any number of workers. Methods that only count take
the batches as they come. The folder appears when it is whole: a job that fails leaves none, and a task whose worker
died is run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from embstore.config import parse
from embstore.continuous import place_of
from embstore.errors import ConfigError, GroupError, StoreError, nearest
from embstore.logs import ParquetLog
from embstore.progress import Progress, no_progress
from embstore.schema import Schema
from embstore.selection import (
    Columns,
    Cross,
    FeatureGradients,
    FeatureGradientsSettings,
    Layout,
    LogBatches,
    Scores,
    SparseBatch,
)
from embstore.selection.feature_gradients import SAMPLE, gradients
from embstore.selection.learnability import BatchGradient, Weights, batch_gradient
from embstore.selection.standardization import Standardization, Statistics
from embstore.store.export import appearing
from embstore.store.files import fsync_folder, sha256_file, write_small
from embstore.threads import usable_cores
from embstore.vocabulary import Vocabulary

from .runners import Runner, Serial, runner

FORMAT = 1
MANIFEST = "manifest.json"
FEATURE_GRADIENTS = "feature_gradients"


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """A selection job, as its YAML file has it.

    Args:
        log: a file, folder, glob or URI, or a list of these.
        schema: a mapping as in a schema file, or the path of one; without, it is inferred from the log.
        label: the column of labels; needed without a schema, and instead of the label of one.
        features: only these; all of the schema by default.
        vocabulary: folder of the values that have a column each; a feature that is not there is hashed.
        hashed: columns of each of those.
        crosses: features whose values are taken together.
        method: ``feature_gradients``, or one that ``embstore.selection.methods`` names and that takes rows.
        options: the method's own settings.
        rows: of a batch.
        shuffle_window: rows shuffled together; one task's work.
        seed: of the shuffle and the hashes.
        output: the folder to make.
    """

    log: str | tuple[str, ...]
    schema: str | dict[str, Any] | None = None
    label: str | None = None
    features: tuple[str, ...] | None = None
    vocabulary: str | None = None
    hashed: int = 65_536
    crosses: tuple[Cross, ...] = ()
    method: str = FEATURE_GRADIENTS
    options: dict[str, Any] = field(default_factory=dict)
    rows: int = 8192
    shuffle_window: int = 262_144
    seed: int = 0
    output: str = "selection"

    def __post_init__(self) -> None:
        for name in ("hashed", "rows", "shuffle_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config.{name}", expected="1 or more", found=str(getattr(self, name)))
        if self.schema is None and self.label is None:
            raise ConfigError("config", expected="a schema, or the label to infer one for", found="neither")
        if self.features is not None and not self.features:
            raise ConfigError("config.features", expected="at least one", found="none")
        if not 0 <= self.seed < 2**63:
            raise ConfigError("config.seed", expected="0 to 2^63 - 1", found=str(self.seed))

    @property
    def sources(self) -> list[str]:
        """Of the log."""
        return [self.log] if isinstance(self.log, str) else list(self.log)

    def read_schema(self) -> Schema:
        """The features that are judged, the dense columns, and the label."""
        if self.schema is None:
            schema = Schema.infer(self.sources, label=self.label or "")
        else:
            given = self.schema
            schema = Schema.from_yaml(Path(given)) if isinstance(given, str) else Schema.from_dict(given)
            schema = schema if self.label is None else replace(schema, label=self.label)
        if self.features is not None:
            schema = replace(schema, features=tuple(schema.feature(name) for name in dict.fromkeys(self.features)))
        return replace(schema, weight=None, group=None)


def select(
    settings: SelectionSettings,
    *,
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Score the fields and values of a log, and write the scores.

    Args:
        settings: what, how, and where to.
        workers: tasks of a Ray cluster; without, threads of this process.
        threads: of this process; all cores by default.
        address: of the cluster, as for ``embstore.pipelines.train.train``.
        progress: shown here.

    Returns:
        The manifest (docs/selection.md).

    Raises:
        LogError, SchemaError, DataError, ConfigError: the log, the vocabulary or the settings can't be used.
        StoreError: the folder exists, or can't be written.
        GroupError: Ray isn't there, or workers died too often.
    """
    target = Path(settings.output)
    if target.exists():
        raise StoreError(f"{target}", expected="a name that is free", found="something there", do="name another folder")
    judge = _judge(settings)
    schema = settings.read_schema()
    vocabulary = None
    if settings.vocabulary is not None:
        whole = Vocabulary.from_parquet(settings.vocabulary)
        names = [feature.name for feature in schema.features if feature.name in whole]
        if not names:
            expected = f"one of the features {', '.join(feature.name for feature in schema.features)}"
            raise ConfigError(f"vocabulary {settings.vocabulary}", expected=expected, found=", ".join(whole))
        vocabulary = Vocabulary({name: whole[name] for name in names})
    log = ParquetLog([place_of(source) for source in settings.sources], schema)
    columns = Columns(
        schema=schema,
        vocabulary=vocabulary or {},
        hashed=settings.hashed,
        crosses=settings.crosses,
        seed=settings.seed,
    )
    with runner(workers, address) as by:
        work = _Work(settings, log, columns, by, threads or usable_cores(), progress)
        try:
            scores, found = judge(work)
        except GroupError as error:
            do = "run it again: nothing was written"
            raise GroupError(error.what, expected=error.expected, found=error.found, do=do) from error
    about = {
        "format": FORMAT,
        "method": settings.method,
        "settings": _told(settings),
        "found": found,
        "lineage": {
            "log": {"source": settings.log, "fingerprint": log.fingerprint, "rows": log.rows},
            "label": schema.label,
            "vocabulary": None
            if vocabulary is None
            else {"path": settings.vocabulary, "sha256": vocabulary.digest(), "features": list(vocabulary)},
        },
        "fields": [
            {"name": name, "columns": int(stop - start), "score": float(score)}
            for name, score, (start, stop) in zip(
                scores.layout.fields, scores.field_F, pairwise(scores.layout.all_bounds_F), strict=True
            )
        ],
    }
    with progress("write", 1) as bar, appearing(target) as temporary:
        scores.to_parquet(temporary)
        files = {path.name: sha256_file(path)._asdict() for path in sorted(temporary.iterdir())}
        text = json.dumps({**about, "files": files}, indent=1)
        write_small(temporary / MANIFEST, text.encode() + b"\n")
        fsync_folder(temporary)
        bar.advance(1)
    said: dict[str, Any] = json.loads(text)
    return said


class _Work:
    """A log's batches, and who makes them."""

    def __init__(
        self,
        settings: SelectionSettings,
        log: ParquetLog,
        columns: Columns,
        by: Runner,
        threads: int,
        progress: Progress,
    ) -> None:
        self.settings, self.columns, self.by, self.threads, self.progress = settings, columns, by, threads, progress
        self.layout, self.rows = columns.layout, log.rows
        self._batches = LogBatches(
            log=log,
            columns=columns,
            rows=settings.rows,
            shuffle_window=settings.shuffle_window,
            seed=settings.seed,
        )
        self._windows = log.windows(settings.rows, shuffle_window=settings.shuffle_window)
        self._shared = by.keep(self._batches)

    def batches(self) -> Generator[Any, None, None]:
        """Handles of all batches, in order."""
        if isinstance(self.by, Serial):  # which reads on where it is, not each window from its row group's start
            yield from self._batches
            return
        pieces = (((start,), size) for start, size in self._windows)
        for handles in self.by.lists(_encode, self._shared, pieces):
            yield from handles

    def statistics(self) -> Statistics:
        """Of the whole log, one window after the other."""
        total = Statistics(self.layout)
        with self.progress("count", self.rows) as bar:
            for part in self._parts():
                total.merge(part)
                bar.advance(part.rows)
        return total

    def _parts(self) -> Iterator[Statistics]:
        if isinstance(self.by, Serial):
            return (_sums(window, self.layout) for window in self._batches.windows())
        return self.by.map(_count, self._shared, ((start,) for start, _ in self._windows))

    def gradients(self, handles: Sequence[Any], weights: Weights) -> list[BatchGradient]:
        """Of batches, in their order."""
        if isinstance(self.by, Serial):
            return gradients(list(self.by.take(handles)), weights, self.threads)
        return list(self.by.map(_gradient, self.by.keep(weights), ((handle,) for handle in handles)))

    def __iter__(self) -> Iterator[SparseBatch]:
        """All batches."""
        with self.progress("read", self.rows) as bar:
            for handle in self.batches():
                (batch,) = self.by.take([handle])
                yield batch
                bar.advance(len(batch))


def _judge(settings: SelectionSettings) -> Callable[[_Work], tuple[Scores, dict[str, Any]]]:
    """What gives the scores; unknown methods and settings are told before anything is read."""
    if settings.method == FEATURE_GRADIENTS:
        how = parse(FeatureGradientsSettings, settings.options, where="config.options")
        return lambda work: _feature_gradients(work, how)
    from embstore.selection.methods import Rows, names, score

    if settings.method not in names(Rows):
        known = (FEATURE_GRADIENTS, *names(Rows))
        raise ConfigError(
            f"config.method: {settings.method!r} is none that takes rows", do=nearest(settings.method, known)
        )
    return lambda work: (score(settings.method, Rows(batches=work, layout=work.layout), **settings.options), {})


def _feature_gradients(work: _Work, how: FeatureGradientsSettings) -> tuple[Scores, dict[str, Any]]:
    """As ``embstore.selection.fit``."""
    statistics = work.statistics()
    first = work.batches()
    sample = list(work.by.take(list(islice(first, SAMPLE))))
    first.close()
    standardization = Standardization.of(statistics, sample, rare=how.rare, seed=how.seed)
    del sample
    search, steps, last = FeatureGradients(work.layout, standardization, how), 0, None
    with work.progress("search", work.rows * how.epochs) as bar:
        for _ in range(how.epochs):
            rest = work.batches()
            while group := list(islice(rest, how.batches_per_step)):
                last = search.step(work.gradients(group, search.weights()))
                steps += 1
                bar.advance(last.rows)
    assert last is not None
    return search.scores(), {"steps": steps, "loss": last.loss, "learnability": last.learnability}


def _encode(batches: LogBatches, start: int) -> list[SparseBatch]:
    """A task: the batches of a window."""
    return batches.window(start)


def _count(batches: LogBatches, start: int) -> Statistics:
    """A task: sums over a window."""
    return _sums(_encode(batches, start), batches.columns.layout)


def _sums(batches: Iterable[SparseBatch], layout: Layout) -> Statistics:
    statistics = Statistics(layout)
    for batch in batches:
        statistics.add(batch)
    return statistics


def _gradient(weights: Weights, batch: SparseBatch) -> BatchGradient:
    """A task: of one batch."""
    return batch_gradient(batch, weights)


def _told(settings: SelectionSettings) -> dict[str, Any]:
    """The settings that decide the scores."""
    elsewhere = ("log", "schema", "label", "vocabulary", "method", "output")
    return {one.name: asdict(settings)[one.name] for one in fields(settings) if one.name not in elsewhere}
