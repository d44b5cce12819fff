"""The vocabulary job: what values a log's features take, how often, since when, and which are kept.

    serial     row groups ──threads──> Counting ──merging──> sorted tables ──Admission──> folder
    on Ray     row groups ──tasks──> sorted parts by key range ──a task a range──> sorted tables ──> the same folder

Both write the same bytes, whatever the number of workers. The folder appears when it is whole: a job that fails leaves
none. A task whose worker died is run again, and gives what it would have given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from embstore.admission import Admission
from embstore.aggregates import VALUE, Kinds, Summary
from embstore.continuous import place_of
from embstore.counting import Counting, count, time_type
from embstore.errors import ConfigError, EmbstoreError, GroupError, SchemaError
from embstore.logs import ParquetLog, Piece
from embstore.merging import Partial, merged, resized, split
from embstore.progress import Progress, no_progress
from embstore.schema import Schema
from embstore.threads import usable_cores
from embstore.vocabulary_files import Lineage, VocabularyFolder, told_of, write_vocabulary

from .cluster import cluster
from .log_job import LogJob

_TASKS = 4  # of reading, for each worker
_SAMPLES = 8  # row groups whose beginnings say where the ranges of values are cut


@dataclass(frozen=True, kw_only=True)
class VocabularySettings(LogJob):
    """A vocabulary job, as its YAML file has it: ``LogJob``'s settings, and these.

    Args:
        time: column of timestamps, dates or integers; without, nobody knows when a value was seen.
        admit: which values are kept.
        previous: folder of the vocabulary that this log is added to.
        memory_mb: of the values while they are counted; what is more goes to temporary files (not with workers).
        output: the folder to make.
    """

    time: str | None = None
    admit: Admission = field(default_factory=Admission)
    previous: str | None = None
    memory_mb: int | None = None
    output: str = "vocabulary"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory_mb is not None and self.memory_mb < 1:
            raise ConfigError("config.memory_mb", expected="1 or more", found=str(self.memory_mb))
        if self.admit.timed and self.time is None:
            raise ConfigError("config.admit by age, or expiry", expected="a time column", found="none", do="add time")

    def read_schema(self) -> Schema:
        """The features that are counted, and the label."""
        schema = super().read_schema()
        if not schema.features:
            raise SchemaError("schema", expected="at least one feature", found="none")
        return replace(schema, dense=())


def build(
    settings: VocabularySettings,
    *,
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    restarts: int = 3,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Count a log and write its vocabulary.

    Args:
        settings: what, and where to.
        workers: processes of a Ray cluster; without, threads of this process.
        threads: of this process; all cores by default.
        address: of the cluster, as for ``embstore.pipelines.train.train``.
        restarts: of a task whose worker died, before the job is given up.
        progress: shown here.

    Returns:
        The manifest (docs/vocabulary.md).

    Raises:
        LogError, SchemaError, DataError, ConfigError: the log, the settings or the previous vocabulary can't be used;
            a log that the previous vocabulary has counted.
        StoreError: the folder exists, or can't be written.
        GroupError: Ray isn't there, or workers died too often.
    """
    if workers is not None and workers < 1:
        raise GroupError("workers", expected="1 or more", found=str(workers))
    if workers is not None and settings.memory_mb is not None:
        do = "leave it out: Ray's object store writes to disk what it has no room for"
        raise ConfigError("config.memory_mb", expected="none with workers", found=str(settings.memory_mb), do=do)
    schema, sources = settings.read_schema(), settings.sources
    log = ParquetLog(
        [place_of(source) for source in sources],
        schema,
        labelled=schema.label is not None,
        also=() if settings.time is None else (settings.time,),
    )
    kind = None if settings.time is None else str(time_type(log.types.field(settings.time).type, settings.time))
    lineage = Lineage(
        logs=(
            {"source": sources if len(sources) > 1 else sources[0], "fingerprint": log.fingerprint, "rows": log.rows},
        ),
        label=schema.label,
        time=settings.time,
        time_type=kind,
        features=tuple(told_of(feature) for feature in schema.features),
    )
    previous = None if settings.previous is None else VocabularyFolder.open(settings.previous)
    if previous is not None:
        previous.check(schema.features, label=schema.label, time=settings.time, time_type=kind)
        lineage = _after(previous, lineage)
    target = Path(settings.output)
    writers = max(1, min(len(schema.features), usable_cores() if threads is None else threads))
    with ExitStack() as stack:
        if workers is None:
            scratch = None
            if settings.memory_mb is not None:
                near = target.parent if target.parent.is_dir() else None
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".tmp-vocabulary-", dir=near)))
            room = None if settings.memory_mb is None else settings.memory_mb << 20
            with progress("count", log.rows) as bar:
                counted = count(
                    log, time=settings.time, threads=threads, room=room, folder=scratch, progress=bar.advance
                )
            parts, latest = counted.parts, counted.latest
            if previous is not None:
                for number, (name, of) in enumerate(parts.items()):
                    of.append(previous.partial(name, scratch and scratch / f"previous-{number}.arrow"))
            kinds = {name: Partial.of(pa.table({}), *of).kinds for name, of in parts.items()}
            # A value's entry, its place among others and its text, copied once or twice.
            rows = {} if room is None else {"range_rows": max(1 << 14, room // (400 * writers))}
            tables = {name: lambda name=name: merged(name, parts.pop(name), **rows) for name in parts}
        else:
            scratch = None
            job = _OnRay(log, settings.time, workers, restarts, progress)
            stack.enter_context(job.connected(address))
            tables, kinds, latest = job.run(previous)
        known = [at for at in (lineage.latest, latest) if at is not None]
        lineage = replace(lineage, latest=max(known, default=None))
        with progress("write", len(kinds)) as bar:
            return write_vocabulary(
                target,
                tables,
                kinds,
                lineage,
                settings.admit,
                scratch=scratch,
                threads=writers,
                progress=bar.advance,
            )


def _after(previous: VocabularyFolder, lineage: Lineage) -> Lineage:
    """What a vocabulary is counted from that goes on from another."""
    before = previous.lineage
    (log,) = lineage.logs
    if log["fingerprint"] in {of["fingerprint"] for of in before.logs}:
        raise ConfigError(
            f"log {log['source']}",
            expected=f"one that {previous.path} has not counted",
            found=f"fingerprint {log['fingerprint']}, which it has",
            do="name the next day's log",
        )
    return replace(lineage, logs=(*before.logs, log), latest=before.latest, parent=previous.digest)


class _OnRay:
    """The job's tasks on a Ray cluster."""

    def __init__(self, log: ParquetLog, time: str | None, workers: int, restarts: int, progress: Progress) -> None:
        self.log, self.time, self.workers, self.restarts, self.progress = log, time, workers, restarts, progress
        self.ray = _load_ray()

    def connected(self, address: str | None) -> Any:
        """The cluster, as a context."""
        processes = {"cpus": self.workers, "processes": self.workers}
        return cluster(self.ray, address, **processes, what="workers", error=GroupError)

    def run(self, previous: VocabularyFolder | None) -> tuple[dict[str, Any], dict[str, Kinds], int | None]:
        """By feature what gives its sorted tables, and the kinds of its values; the latest time."""
        ray, pieces = self.ray, self.log.pieces
        cuts = _cuts(self.log, self.time, self.workers)
        ranges = 1 + max(map(len, cuts.values()))
        options = {"max_retries": self.restarts, "num_cpus": 1}
        read = ray.remote(**options, num_returns=ranges + 1)(_read)
        merge = ray.remote(**options, num_returns=2)(_merge)
        log, size = ray.put(self.log), -(-len(pieces) // (_TASKS * self.workers))
        groups = [pieces[at : at + size] for at in range(0, len(pieces), size)]
        read_parts: list[list[Any]] = []
        latest: list[int | None] = []
        with self.progress("count", self.log.rows) as bar:
            tasks = (read.remote(log, group, self.time, cuts, ranges) for group in groups)
            for (told, *parts), rows in self._done(tasks, [sum(piece.rows for piece in group) for group in groups]):
                latest.append(self._get(told))
                read_parts.append(parts)
                bar.advance(rows)
        if previous is not None:
            read_parts.append([ray.put(part) for part in _split(_told(previous, cuts), cuts, ranges)])
        with self.progress("merge", ranges) as bar:
            tasks = (merge.remote(*column) for column in zip(*read_parts, strict=True))
            found = []
            for (told, part), _ in self._done(tasks, [1] * ranges):
                found.append((self._get(told), part))
                bar.advance(1)
        names = list(cuts)
        kinds = {name: Partial.of(pa.table({}), *(Partial(told[name]) for told, _ in found)).kinds for name in names}

        def tables(name: str) -> Iterator[pa.Table]:
            agreed = Summary(name)
            agreed.agree(kinds[name])
            whole = (_as(self._get(part)[name], agreed.type) for _, part in found)
            return resized(whole)

        return (
            {name: lambda name=name: tables(name) for name in names},
            kinds,
            max((at for at in latest if at is not None), default=None),
        )

    def _done(self, tasks: Iterator[list[Any]], sizes: Sequence[int]) -> Iterator[tuple[list[Any], int]]:
        """Tasks in order, with their sizes, as they end; as many at a time as there are workers."""
        waiting = [*islice(tasks, self.workers)]
        for size in sizes:
            refs = waiting.pop(0)
            self._get(refs[0])
            waiting += islice(tasks, 1)
            yield refs, size

    def _get(self, ref: Any) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(ref)
        except errors.RayTaskError as error:
            if isinstance(error.cause, EmbstoreError):
                raise error.cause from None
            raise
        except errors.RayError as error:
            found = str(error).strip().split("\n")[0] or type(error).__name__
            do = "run it again: nothing was written"
            raise GroupError("the vocabulary job was given up", expected="its workers", found=found, do=do) from error


def _read(log: ParquetLog, pieces: Sequence[Piece], time: str | None, cuts: dict[str, list[Any]], ranges: int) -> Any:
    """A task: the latest time of some row groups, and for each range what they hold of each feature."""
    counted = count(log, time=time, pieces=pieces, threads=1)
    whole = {
        name: Partial.of(pa.concat_tables(list(merged(name, parts))), *parts) for name, parts in counted.parts.items()
    }
    return counted.latest, *_split(whole, cuts, ranges)


def _merge(*parts: dict[str, Partial]) -> tuple[dict[str, Kinds], dict[str, pa.Table]]:
    """A task: what all parts of a range hold of each feature."""
    kinds, tables = {}, {}
    for name in parts[0]:
        of = [part[name] for part in parts]
        kinds[name] = Partial.of(pa.table({}), *of).kinds
        tables[name] = pa.concat_tables(list(merged(name, of))).combine_chunks()
    return kinds, tables


def _split(whole: dict[str, Partial], cuts: dict[str, list[Any]], ranges: int) -> list[dict[str, Partial]]:
    """By range a part of each feature; features with fewer cuts have nothing in the last ranges."""
    out: list[dict[str, Partial]] = [{} for _ in range(ranges)]
    for name, partial in whole.items():
        table = partial.table
        assert table is not None
        parts = split(table, cuts[name])
        parts += [table.slice(0, 0)] * (ranges - len(parts))
        for number, part in enumerate(parts):
            out[number][name] = replace(partial, table=part.combine_chunks())
    return out


def _told(previous: VocabularyFolder, names: dict[str, Any]) -> dict[str, Partial]:
    return {name: previous.partial(name) for name in names}


def _cuts(log: ParquetLog, time: str | None, workers: int) -> dict[str, list[Any]]:
    """Of each feature values that cut its range in parts of about as many values, by a sample."""
    counting = Counting(log)
    step = max(1, len(log.pieces) // _SAMPLES)
    for piece in log.pieces[::step]:
        for table, origin in islice(log.tables_from(pieces=[piece]), 1):
            counting.add(table, origin)
    out = {}
    for feature in log.schema.features:
        tables = merged(feature.name, counting.parts(feature.name))
        values = pa.concat_tables(list(tables)).column(VALUE)
        at = [len(values) * part // (2 * workers) for part in range(1, 2 * workers)]
        out[feature.name] = list(dict.fromkeys(values[row].as_py() for row in at if 0 < row < len(values)))
    return out


def _as(table: pa.Table, kind: pa.DataType) -> pa.Table:
    """The table with values of a type."""
    at = table.schema.get_field_index(VALUE)
    return table if table.schema.field(at).type == kind else table.set_column(at, VALUE, table.column(at).cast(kind))


def _load_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        found, do = str(error), "pip install 'ray>=2.50'"
        raise GroupError("Ray can't be loaded", expected="ray", found=found, do=do) from error
    return ray
