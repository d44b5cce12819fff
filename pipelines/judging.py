"""What selection by a model judges with: a trained model, or a new one that a search trains with gates.

    run: runs/first                          a finished run's                  ──┐
    store: store, version: production        a published version's             ──┴─> Trained
    run: config.yaml (or a run's folder)     the settings of a new one         ────> Search

The log, if none is named, is that which the run or version has learnt from; schema and types of values are theirs.
With workers a log's batches lie in Ray's object store, and so does the table, once a node, where workers read it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import torch

from embstore.batch import Batch
from embstore.config import parse
from embstore.continuous import check_columns
from embstore.ctr import CtrModel
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError, DataError, LogError
from embstore.logs import ParquetLog
from embstore.models import build
from embstore.progress import Progress, no_progress
from embstore.run import FEW_STEPS, Run, few_steps
from embstore.run_folder import RunFolder
from embstore.run_vocabulary import VocabularySource
from embstore.schema import Schema
from embstore.selection import Columns, Scores
from embstore.selection.methods import Search, Trained, score
from embstore.selection.methods.embedded import Others, Part, tried
from embstore.settings import RunConfig
from embstore.store import Store

from .runners import Runner, Serial

if TYPE_CHECKING:
    from embstore.feature_values import FeatureValues

    from .selection import SelectionSettings, Work


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """A trained model, or the settings of one to train, and what it has learnt from.

    Args:
        name: for messages.
        schema: of its log.
        lineage: what a manifest says of it.
        log: source of the log it has learnt from, or would, and its fingerprint, where these are known.
        columns: by feature the type of that log's values, where these are known.
        model: the trained one.
        config: of a new one.
    """

    name: str
    schema: Schema
    lineage: Mapping[str, Any]
    log: str | None
    fingerprint: str | None = None
    columns: Mapping[str, str]
    model: CtrModel | None = None
    config: RunConfig | None = None

    @classmethod
    def trained(cls, settings: SelectionSettings) -> Judge:
        """The model of a finished run, or of a published version.

        Raises:
            CheckpointError, StoreError: there is none, or it isn't finished.
            ConfigError: a version of vectors alone.
        """
        if settings.store is None:
            assert isinstance(settings.run, str)
            run = Run.open(settings.run, build)
            model, digest = run.finished()
            return cls(
                name=settings.run,
                schema=run.schema,
                lineage={"run": settings.run, "sha256": digest},
                log=run.config.logs.train,
                fingerprint=run.files.result()["logs"]["train"]["fingerprint"],
                columns=run.files.columns(),
                model=model,
            )
        version = Store(settings.store).open(settings.version)
        if not version.dense:
            raise ConfigError(f"version {version.id}", expected="a network", found="vectors alone")
        told = version.manifest["lineage"]
        source = ((told.get("config") or {}).get("logs") or {}).get("train")
        if source is None and settings.log is None:
            found = f"none, nor does {version.id} name one"
            raise ConfigError("config.log", expected="a log to judge by", found=found)
        return cls(
            name=version.id,
            schema=version.schema,
            lineage={"store": settings.store, "version": version.id, "sha256": version.digest},
            log=source,
            fingerprint=((told.get("logs") or {}).get("train") or {}).get("fingerprint"),
            columns=version.manifest["columns"],
            model=CtrModel.restore(version, build),
        )

    @classmethod
    def untrained(cls, settings: SelectionSettings) -> Judge:
        """A new model, by the settings of a run: a folder's, a YAML file's, or as they are.

        Raises:
            ConfigError: they can't be read; several logs.
        """
        given = settings.run
        assert given is not None
        folder = RunFolder(given) if isinstance(given, str) and Path(given).is_dir() else None
        config = folder.config() if folder is not None else None
        if config is None:
            config = RunConfig.from_yaml(given) if isinstance(given, str) else parse(RunConfig, given)
        if folder is not None and config.honoured is not None:  # wherever it came from may be gone
            honoured = VocabularySource(path=str(folder.path / "honoured"), sha256=config.honoured.sha256)
            config = replace(config, vocabulary=honoured)
        if settings.sources:
            if len(settings.sources) > 1:
                raise ConfigError("config.log", expected="one, to train on", found=f"{len(settings.sources):,}")
            config = replace(config, logs=replace(config.logs, train=settings.sources[0]))
        schema = Run(config, build).schema
        told = asdict(replace(config, output="").with_schema(schema))
        return cls(
            name="the run",
            schema=schema,
            lineage={
                "run": given if isinstance(given, str) else None,
                "settings": {name: told[name] for name in ("table", "model", "training", "vocabulary", "start")},
            },
            log=config.logs.train,
            columns={},
            config=config,
        )

    def schema_for(self, settings: SelectionSettings) -> Schema:
        """Its own; one that is given has the same columns.

        Raises:
            ConfigError: it has others, or features are chosen.
        """
        if settings.features is not None:
            do = "leave features out: the scores of those wanted are among them"
            raise ConfigError("config.features", expected="all that the model reads", found="some", do=do)
        given = settings.given_schema()
        if given is not None:
            ours, theirs = (
                {one.name for one in of.features} | {one.name for one in of.dense} for of in (self.schema, given)
            )
            if ours != theirs:
                found = f"{', '.join(sorted(ours ^ theirs))} in one of them"
                do = "leave the schema out: it is the model's"
                raise ConfigError(f"config.schema and {self.name}", expected="the same columns", found=found, do=do)
        label = settings.label or (given.label if given is not None else None) or self.schema.label
        return replace(self.schema, label=label, group=None)

    def check_log(self, log: ParquetLog, *, named: bool) -> None:
        """Refuse a log of other values, and one that was changed where it was not named.

        Raises:
            SchemaError, LogError: saying so.
        """
        do = "write the column as it was"
        check_columns(log.value_types(), self.columns, trained=self.name, do=do)
        if not named and self.fingerprint not in (None, log.fingerprint):
            raise LogError(
                f"log {self.log}",
                expected=f"that which {self.name} has learnt from, fingerprint {self.fingerprint}",
                found=log.fingerprint,
                do="name the log to judge by",
            )

    def unknown(self, vocabulary: Mapping[str, FeatureValues]) -> tuple[int, int]:
        """How many values the model can't tell from others, which it prunes or has no row for, and of how many.

        Raises:
            DataError: all of them.
        """
        unknown = kept = 0
        if self.model is not None:
            table = self.model.table
            exact = table.exact_tokens()
            for name, of in vocabulary.items():
                tokens_V = of.tokens[of.kept].view(np.int64)
                known_V = np.ones(len(tokens_V), bool)
                if table.pruned is not None:
                    known_V &= table.pruned.of_feature(name, tokens_V) == tokens_V
                if name in exact:
                    known_V &= np.isin(tokens_V, exact[name].numpy())
                kept += len(tokens_V)
                unknown += int((~known_V).sum())
        if unknown and unknown == kept:
            expected, do = f"some that {self.name} knows", "take the vocabulary of the log it was trained on"
            raise DataError("values of the vocabulary", expected=expected, found=f"none of {kept:,}", do=do)
        return unknown, kept


def trained(
    judge: Judge,
    log: ParquetLog,
    columns: Columns,
    how: SelectionSettings,
    *,
    by: Runner,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Trained:
    """The model, and rows to try it on; with workers they do the batches."""
    assert judge.model is not None
    source = Trained(
        model=judge.model,
        log=log,
        columns=columns,
        rows=how.rows,
        shuffle_window=how.shuffle_window,
        seed=how.seed,
        threads=threads,
        progress=progress,
    )
    return source if isinstance(by, Serial) else replace(source, others=_others(source, by))


def by_trained(work: Work, judge: Judge, options: Mapping[str, Any]) -> Scores:
    """Scores by a trained model.

    Args:
        options: of the method.

    Raises:
        ConfigError, SchemaError, DataError: as ``embstore.selection.methods.score``.
    """
    source = trained(
        judge, work.log, work.columns, work.settings, by=work.by, threads=work.threads, progress=work.progress
    )
    return score(work.settings.method, source, **options)


def by_search(work: Work, judge: Judge, options: Mapping[str, Any]) -> Scores:
    """Scores by the gates of a new model, trained here.

    Args:
        options: of the method.

    Raises:
        ConfigError, SchemaError, DataError: as ``embstore.selection.methods.score``.
    """
    assert judge.config is not None
    valid, how = judge.config.logs.valid, judge.config.training
    with TemporaryDirectory(prefix="embstore-search-") as scratch:
        run = Run(replace(judge.config, output=scratch), build, progress=work.progress)
        source = Search(
            build=run.untrained,
            train=work.log,
            valid=None if valid is None else ParquetLog(valid, work.columns.schema),
            columns=work.columns,
            batch_size=how.batch_size,
            epochs=how.epochs,
            learning_rate=how.learning_rate,
            network_l2=how.network_l2,
            shuffle_window=how.shuffle_window,
            seed=how.seed,
            progress=work.progress,
        )
        if source.steps < FEW_STEPS:
            work.progress.say(few_steps(source.steps))
        return score(work.settings.method, source, **options)


def _others(source: Trained, by: Runner) -> Others:
    order = (source.rows, source.shuffle_window, source.seed)
    windows = source.log.windows(source.rows, shuffle_window=source.shuffle_window)
    sent, shared = by.keep(_Sent.of(source)), by.keep((source.log, order))

    def do(part: Part, given: tuple[Any, ...]) -> Iterator[tuple[int, int, Any]]:
        kept = [by.keep(value) for value in given]
        lists = by.lists(_read, shared, (((start,), size) for start, size in windows))
        handles = enumerate(chain.from_iterable(lists))
        return by.map(_tried, sent, ((number, batch, part, *kept) for number, batch in handles))

    return do


def _read(shared: tuple[ParquetLog, tuple[int, int, int]], start: int) -> list[Batch]:
    """A task: the batches of a window."""
    log, (rows, window, seed) = shared
    whole, orders = next(log.rows_and_orders(rows, start=start, shuffle_window=window, seed=seed))
    return [whole.batch(order) for order in orders]


def _tried(sent: _Sent, number: int, batch: Batch, part: Part, *given: Any) -> tuple[int, int, Any]:
    """A task: what a batch adds."""
    return tried(sent.source(), batch, number, part, given)


_HERE: dict[str, Trained] = {}  # of a worker's process, the one it is at work on


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sent:
    """A source on its way to workers: its rows as an array, which they read where it lies in the object store.

    Args:
        key: its own.
        table: what it is made of, but for the rows.
        bits_NB, dtype: the rows' bytes, uint8 ``[N, B]``, and what they are.
        parts: normalizer and network.
        rest: of the source.
    """

    key: str
    table: Mapping[str, Any]
    bits_NB: Any
    dtype: torch.dtype
    parts: tuple[Any, Any]
    rest: Mapping[str, Any]

    @classmethod
    def of(cls, source: Trained) -> _Sent:
        model = source.model.eval()
        of = model.table
        table = {
            "features": of.features,
            "num_rows": of.hashed_rows,
            "dim": of.dim,
            "num_tables": of.num_tables,
            "exact_tokens": of.exact_tokens(),
            "kernel": of.kernel.name,
            "seed": of.seed,
            "pruned": of.pruned,
        }
        kept = ("log", "columns", "rows", "shuffle_window", "seed")
        return cls(
            key=uuid4().hex,
            table=table,
            bits_NB=of.weight.cpu().view(torch.uint8).numpy(),
            dtype=of.dtype,
            parts=(model.normalizer, model.network),
            rest={name: getattr(source, name) for name in kept},
        )

    def source(self) -> Trained:
        """The source, made once in a process."""
        if self.key not in _HERE:
            _HERE.clear()
            torch.set_num_threads(1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the rows can't be written to, and nobody does
                rows_ND = torch.from_numpy(self.bits_NB).view(self.dtype)
            model = CtrModel(UnifiedEmbedding(**self.table, rows=rows_ND), *self.parts).eval()
            _HERE[self.key] = Trained(model=model, **self.rest)
        return _HERE[self.key]
