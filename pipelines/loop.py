"""The loop: day by day from a log to a published version, each stage done once.

    embstore loop loop.yaml --promote production --workers 8

    a day's log ──> evaluate     what yesterday's version is worth today, before it has learnt of it
                ──> vocabulary   yesterday's values and today's
                ──> plan         rows for a wanted share of collisions: the first day decides, later ones compare
                ──> node2vec     vectors of its values: first rows of the first day's table, versions to search
                ──> select       which fields and values say something of the label
                ──> prune        values that say little are dropped
                ──> train        goes on from yesterday's version, honours the vocabulary, publishes
                ──> promote      of the last day, when asked for

The folder (``days.py``) keeps what each stage made: the same command goes on behind the last one, within training from
its last checkpoint, and does the days that have come since. What is published says where it came from.

With workers the vocabulary, node2vec and the selection are tasks of a Ray cluster, and the bytes are the same. Training
by workers is asked for apart: it adds a step's sums up in another order.
"""

from __future__ import annotations

from typing import Any

from embstore.folder_lock import alone_in
from embstore.progress import Progress, no_progress
from embstore.store import Store

from .days import DayFolder, LoopFolder
from .loop_settings import LoopSettings
from .stages import Day, Workers


def run(
    config: LoopSettings,
    *,
    workers: int | None = None,
    train_workers: int | None = None,
    address: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Do the days that are not done, or go on with the one that was begun.

    Args:
        config: what, and in which folder.
        workers: of a Ray cluster, for the vocabulary, node2vec and the selection; this process does them when not
            given.
        train_workers: processes of the cluster that train; this one does it when not given.
        address: of the cluster, as for ``embstore.pipelines.train.train``.
        progress: shown here.

    Returns:
        ``days``: of each its ``log`` and ``stages``; ``version``, the last one's; ``promoted``: alias and version.

    Raises:
        CheckpointError: a day was begun with another log or other settings, or is damaged; another process works in
            the folder.
        LogError, SchemaError, DataError, ConfigError: logs or settings that can't be used.
        StoreError: a version can't be published or promoted.
        GroupError: no such cluster, or its workers died too often; the same call goes on.
        Interrupted: Ctrl-C or SIGTERM while training; the same call goes on.
    """
    sources, by = config.sources(), Workers(workers, train_workers)
    with alone_in(config.output):
        days = _do(config, sources, by, address, progress)
    result: dict[str, Any] = {"days": days, "version": days[-1]["stages"]["train"]["version"], "promoted": None}
    if config.promote is not None:
        Store(config.publish.store).promote(result["version"], config.promote)
        result["promoted"] = {"alias": config.promote, "version": result["version"]}
        progress.say(f"{config.promote} means {result['version']}")
    return result


def _do(
    config: LoopSettings, sources: list[str], by: Workers, address: str | None, progress: Progress
) -> list[dict[str, Any]]:
    """All days, those that were begun as they were begun; what day.json says of each."""
    folder = LoopFolder(config.output)
    there = {day.manifest()["log"]["source"]: day for day in folder.days()}
    new = [source for source in sources if source not in there]
    if new or not all(day.done("train") for day in there.values()):
        before: DayFolder | None = None
        with by.connected(address):
            for source, day in there.items():
                if day.done("train") is None:
                    Day(config, folder, day, source, before, by, progress).run()
                before = day
            for source in new:
                day = folder.next()
                Day(config, folder, day, source, before, by, progress).run()
                before = day
    return [day.manifest() for day in folder.days()]
