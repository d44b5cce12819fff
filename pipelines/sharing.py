"""Values that a trained model treats alike share a row: by a finished run or a published version, and its log.

    vocabulary + run, or store and version ──Judge──> Trained ──share_alike──> vocabulary of fewer rows

With workers these do the log's batches, as for a selection by a model; the same bytes come of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embstore.continuous import place_of
from embstore.errors import ConfigError
from embstore.logs import ParquetLog
from embstore.progress import Progress, no_progress
from embstore.run_vocabulary import check_kinds
from embstore.selection import Columns
from embstore.selection.alike import share_alike
from embstore.vocabulary import Vocabulary

from .judging import Judge, trained
from .runners import runner
from .selection import SelectionSettings


@dataclass(frozen=True, kw_only=True)
class JudgedBy:
    """What says which values are alike.

    Args:
        run: folder of a finished run.
        store, version: a published version instead.
        log: labelled rows; those that the model has learnt from when not given.

    Raises:
        ConfigError: neither a run nor a store, or both.
    """

    run: str | None = None
    store: str | None = None
    version: str = "latest"
    log: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        if (self.run is None) == (self.store is None):
            expected = "a run (the folder of a trained one), or a store and a version"
            found = "none" if self.run is None else "both"
            raise ConfigError("a model to say which values are alike", expected=expected, found=found)


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What came of it.

    Args:
        vocabulary: the same values, those that another one stands in for not kept.
        lookups: of the model's features.
        lineage: model and log.
    """

    vocabulary: Vocabulary
    lookups: Mapping[str, int]
    lineage: Mapping[str, Any]


def share(
    vocabulary: Vocabulary,
    by: JudgedBy,
    *,
    keep: float | None = None,
    rows: int | None = None,
    per_feature: bool = False,
    at_least: int = 1,
    lookups: Mapping[str, int] | None = None,
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    progress: Progress = no_progress,
) -> Sharing:
    """Let the values of a vocabulary share rows, as ``embstore.selection.alike.share_alike`` says.

    Args:
        vocabulary: of features of the model.
        by: which model, and which log.
        keep, rows, per_feature, at_least, lookups: as of ``share_alike``.
        workers: tasks of a Ray cluster; without, threads of this process.
        threads: of this process; all cores by default.
        address: of the cluster, as for ``embstore.pipelines.train.train``.
        progress: shown here.

    Raises:
        CheckpointError, StoreError: there is no such run or version, or it isn't finished.
        LogError, SchemaError, DataError, ConfigError: the log, the vocabulary or the budget can't be used.
        GroupError: Ray isn't there, or workers died too often.
    """
    named = None if by.log is None else by.log if isinstance(by.log, str) else tuple(by.log)
    settings = SelectionSettings(run=by.run, store=by.store, version=by.version, log=named)
    judge = Judge.trained(settings)
    assert judge.model is not None
    schema, source = judge.schema_for(settings), named or judge.log
    log = ParquetLog([place_of(of) for of in ([source] if isinstance(source, str) else source or ())], schema)
    judge.check_log(log, named=named is not None)
    check_kinds(vocabulary, schema, log.value_types())
    unknown, kept = judge.unknown(vocabulary)
    if unknown:
        progress.say(f"warning: {unknown:,} of {kept:,} values have no vector of their own in {judge.name}")
    lookups = {of.name: of.lookups for of in judge.model.table.features} | dict(lookups or {})
    columns = Columns(schema=schema, vocabulary=vocabulary)
    with runner(workers, address) as others:
        rows_to_try = trained(judge, log, columns, settings, by=others, threads=threads, progress=progress)
        shared = share_alike(
            rows_to_try, vocabulary, keep=keep, rows=rows, per_feature=per_feature, at_least=at_least, lookups=lookups
        )
    return Sharing(
        vocabulary=Vocabulary({name: vocabulary[name].keep(*of) for name, of in shared.items()}),
        lookups={name: lookups[name] for name in vocabulary},
        lineage={"model": judge.lineage, "log": {"source": source, "fingerprint": log.fingerprint, "rows": log.rows}},
    )
