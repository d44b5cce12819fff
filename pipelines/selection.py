"""The selection job: what a method says of the fields and values of a log.

    windows ──encode──> batches ──add──> statistics, merged in order ──┐
       └────encode──> batches ──gradient──> of 8 batches, in order ──> step of Adam ──> scores ──> folder
            tasks               tasks             here

A window is what the log shuffles together; its batches are the same whoever makes them, and what they give is added in
their order here. So the bytes are the same by this process or by any number of workers. Methods that only count take
the batches as they come. Those of a trained model (``judging.py``) add up what each batch loses without a value; those
that train one do so here. The folder appears when it is whole: a job that fails leaves none, and a task whose worker
died is run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embstore.config import parse
from embstore.continuous import place_of
from embstore.errors import ConfigError, GroupError, StoreError, nearest
from embstore.logs import ParquetLog
from embstore.progress import Progress, no_progress
from embstore.run_vocabulary import VocabularySource, check_kinds
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
from embstore.selection.feature_gradients import SAMPLE, few_steps, gradients
from embstore.selection.learnability import BatchGradient, Weights, batch_gradient
from embstore.selection.standardization import Standardization, Statistics
from embstore.store.export import appearing
from embstore.store.files import fsync_folder, sha256_file, write_small
from embstore.threads import usable_cores

from .log_job import LogJob
from .runners import Runner, Serial, runner

if TYPE_CHECKING:
    from .judging import Judge

FORMAT = 1
MANIFEST = "manifest.json"
FEATURE_GRADIENTS = "feature_gradients"


@dataclass(frozen=True, kw_only=True)
class SelectionSettings(LogJob):
    """A selection job, as its YAML file has it: ``LogJob``'s settings, and these.

    With a model the log is by default that which the model has learnt from, and the schema is the model's.

    Args:
        vocabulary: folder of the values that have a column each; a feature that is not there is hashed.
        hashed: columns of each of those.
        crosses: features whose values are taken together.
        method: ``feature_gradients``, or one that ``embstore.selection.methods`` names.
        options: the method's own settings.
        run: folder of the trained run to judge by; of methods that train a model: a run's folder, YAML file or
            settings, as which it is trained.
        store, version: a published version to judge by instead.
        rows: of a batch.
        shuffle_window: rows shuffled together; one task's work.
        seed: of the shuffle and the hashes.
        output: the folder to make.
    """

    vocabulary: str | None = None
    hashed: int = 65_536
    crosses: tuple[Cross, ...] = ()
    method: str = FEATURE_GRADIENTS
    options: dict[str, Any] = field(default_factory=dict)
    run: str | dict[str, Any] | None = None
    store: str | None = None
    version: str = "latest"
    rows: int = 8192
    shuffle_window: int = 262_144
    seed: int = 0
    output: str = "selection"

    def __post_init__(self) -> None:
        check_numbers(self, where="config")
        if self.run is None and self.store is None:
            if self.log is None:  # it may be a model that lacks, which has one
                _check_given(self, model_of(self.method))
            super().__post_init__()


def check_numbers(settings: Any, *, where: str) -> None:
    """Refuse numbers of a job, or of a loop's stage, that can't be.

    Raises:
        ConfigError: naming the setting.
    """
    for name in ("hashed", "rows", "shuffle_window"):
        if (found := getattr(settings, name)) < 1:
            raise ConfigError(f"{where}.{name}", expected="1 or more", found=str(found))
    if not 0 <= settings.seed < 2**63:
        raise ConfigError(f"{where}.seed", expected="0 to 2^63 - 1", found=str(settings.seed))


def method_settings(method: str, options: dict[str, Any], *, where: str = "config.options") -> Any:
    """A method's settings, of plain values.

    Raises:
        ConfigError: an unknown method or setting, or one that can't be.
    """
    kind: type = FeatureGradientsSettings
    if method != FEATURE_GRADIENTS:
        from embstore.selection.methods import described

        kind = described(method)[0]
    own, of_job = ({of.name for of in fields(each)} for each in (kind, SelectionSettings))
    for name in options:
        if name in of_job - own:
            do = "it is the job's: it stands beside options in the YAML (embstore select --config), not in it"
            raise ConfigError(f"{where}: {name!r} is no setting of method {method!r}", do=do)
    return parse(kind, options, where=where)


def model_of(method: str, *, where: str = "config.method") -> str | None:
    """The model that a method needs: ``"trained"``, or ``"run"``, one to train as that says; ``None``: rows alone."""
    if method == FEATURE_GRADIENTS:
        return None
    from embstore.selection.methods import Search, Trained, names

    if method not in names():
        known = (FEATURE_GRADIENTS, *names())
        raise ConfigError(f"{where}: unknown {method!r}", do=nearest(method, known))
    return "trained" if method in names(Trained) else "run" if method in names(Search) else None


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
    how = _how(settings, workers)
    judge = None if how.judge is None else how.judge(settings)
    schema = settings.read_schema() if judge is None else judge.schema_for(settings)
    source = settings.log if judge is None else settings.log or judge.log
    log = ParquetLog([place_of(of) for of in ([source] if isinstance(source, str) else source or ())], schema)
    if judge is not None:
        judge.check_log(log, named=settings.log is not None)
    vocabulary = None
    if settings.vocabulary is not None:
        vocabulary, _ = VocabularySource(path=settings.vocabulary).read(schema)
        check_kinds(vocabulary, schema, log.value_types())
    if judge is not None:
        unknown, kept = judge.unknown(vocabulary or {})
        if unknown:
            progress.say(f"warning: {unknown:,} of {kept:,} values have no vector of their own in {judge.name}")
    columns = Columns(
        schema=schema,
        vocabulary=vocabulary or {},
        hashed=settings.hashed,
        crosses=settings.crosses,
        seed=settings.seed,
    )
    with runner(workers, address) as by:
        work = Work(settings, log, columns, by, threads or usable_cores(), progress)
        try:
            scores, found = how.score(work, judge)
        except GroupError as error:
            do = "run it again: nothing was written"
            raise GroupError(error.what, expected=error.expected, found=error.found, do=do) from error
    about = {
        "format": FORMAT,
        "method": settings.method,
        "settings": _told(settings),
        "found": found,
        "lineage": {
            "log": {"source": source, "fingerprint": log.fingerprint, "rows": log.rows},
            "label": schema.label,
            "vocabulary": None
            if vocabulary is None
            else {"path": settings.vocabulary, "sha256": vocabulary.digest(), "features": list(vocabulary)},
            **({} if judge is None else {"model": judge.lineage}),
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


class Work:
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
        self.settings, self.log, self.columns, self.by = settings, log, columns, by
        self.threads, self.progress = threads, progress
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


@dataclass(frozen=True, kw_only=True)
class _How:
    """How a method goes about it: what opens the model it judges by, and what gives the scores, and what was found."""

    judge: Callable[[SelectionSettings], Judge] | None = None
    score: Callable[[Work, Any], tuple[Scores, dict[str, Any]]]


def _how(settings: SelectionSettings, workers: int | None) -> _How:
    """Unknown methods and settings, and a model that lacks or is one too many, are told before anything is read."""
    kind, method = model_of(settings.method), settings.method
    _check_given(settings, kind)
    how = method_settings(method, settings.options)
    if method == FEATURE_GRADIENTS:
        return _How(score=lambda work, _: _feature_gradients(work, how))
    from embstore.selection.methods import Rows, score

    options = vars(how)
    if kind is None:
        return _How(score=lambda work, _: (score(method, Rows(batches=work, layout=work.layout), **options), {}))
    from .judging import Judge, by_search, by_trained

    if kind == "trained":
        return _How(judge=Judge.trained, score=lambda work, judge: (by_trained(work, judge, options), {}))
    if workers is not None:
        expected, do = f"none: {method} trains one model here", "leave the workers out"
        raise ConfigError("workers", expected=expected, found=f"{workers}", do=do)
    return _How(judge=Judge.untrained, score=lambda work, judge: (by_search(work, judge, options), {}))


def _check_given(settings: SelectionSettings, kind: str | None) -> None:
    """Refuse a method's model that is not what it takes."""
    run = None if settings.run is None else "a run" if isinstance(settings.run, str) else "settings of a run"
    found = " and ".join(filter(None, (run, settings.store and "a store"))) or "none"
    expected, fitting = {
        None: ("none: it takes rows alone", ("none",)),
        "trained": ("a run (the folder of a trained one), or a store and a version", ("a run", "a store")),
        "run": ("a run (its YAML file or folder) that says how to train one", ("a run", "settings of a run")),
    }[kind]
    if found not in fitting:
        raise ConfigError(f"config: the model of method {settings.method!r}", expected=expected, found=found)


def _feature_gradients(work: Work, how: FeatureGradientsSettings) -> tuple[Scores, dict[str, Any]]:
    """As ``embstore.selection.fit``."""
    statistics = work.statistics()
    first = work.batches()
    sample = list(work.by.take(list(islice(first, SAMPLE))))
    first.close()
    standardization = Standardization.of(statistics, sample, rare=how.rare, seed=how.seed)
    del sample
    search, steps, last = FeatureGradients(work.layout, standardization, how), 0, None
    per_step = how.per_step(statistics.batches)
    with work.progress("search", work.rows * how.epochs) as bar:
        for _ in range(how.epochs):
            rest = work.batches()
            while group := list(islice(rest, per_step)):
                last = search.step(work.gradients(group, search.weights()))
                steps += 1
                bar.advance(last.rows)
    assert last is not None
    if (hint := few_steps(steps)) is not None:
        work.progress.say(hint)
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
    elsewhere = ("log", "schema", "label", "vocabulary", "method", "run", "store", "version", "output")
    return {one.name: asdict(settings)[one.name] for one in fields(settings) if one.name not in elsewhere}
