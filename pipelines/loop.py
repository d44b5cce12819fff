"""The loop: day by day from a log to a published version, each stage done once.

    embstore loop loop.yaml --promote production

    a day's log ──> evaluate     what yesterday's version is worth today, before it has learnt of it
                ──> vocabulary   yesterday's values and today's
                ──> plan         rows for a wanted share of collisions: the first day decides, later ones compare
                ──> select       which fields and values say something of the label
                ──> prune        values that say little are dropped
                ──> train        goes on from yesterday's version, honours the vocabulary, publishes
                ──> promote      of the last day, when asked for

The folder (``days.py``) keeps what each stage made: the same command goes on behind the last one, within training from
its last checkpoint, and does the days that have come since. What is published says where it came from.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from embstore.ctr import CtrModel
from embstore.errors import ConfigError
from embstore.evaluation import evaluate
from embstore.logs import ParquetLog
from embstore.metrics import finite
from embstore.models import build
from embstore.planning.collisions import cardinalities, rows_for, shared
from embstore.progress import Progress, no_progress
from embstore.run import Run
from embstore.run_folder import RunFolder
from embstore.schema import Schema
from embstore.selection.pruning import prune, summaries
from embstore.selection.score_files import read_scores
from embstore.settings import RunConfig
from embstore.store import Store
from embstore.store.files import sha256_file
from embstore.vocabulary import Vocabulary

from .days import DayFolder, LoopFolder
from .loop_settings import LoopSettings
from .selection import model_of, select
from .vocabulary import VocabularySettings
from .vocabulary import build as build_vocabulary

_OUTGROWN = 1.5  # times the wanted share of collisions


def run(config: LoopSettings, *, progress: Progress = no_progress) -> dict[str, Any]:
    """Do the days that are not done, or go on with the one that was begun.

    Args:
        config: what, and in which folder.
        progress: shown here.

    Returns:
        ``days``: of each its ``log`` and ``stages``; ``version``, the last one's; ``promoted``: alias and version.

    Raises:
        CheckpointError: a day was begun with another log or other settings, or is damaged.
        LogError, SchemaError, DataError, ConfigError: logs or settings that can't be used.
        StoreError: a version can't be published or promoted.
        Interrupted: Ctrl-C or SIGTERM while training; the same call goes on.
    """
    folder = LoopFolder(config.output)
    there = {day.manifest()["log"]["source"]: day for day in folder.days()}
    before: DayFolder | None = None
    for source, day in there.items():  # as they were begun; new ones follow
        if day.done("train") is None:
            _Day(config, folder, day, source, before, progress).run()
        before = day
    for source in config.sources():
        if source not in there:
            day = folder.next()
            _Day(config, folder, day, source, before, progress).run()
            before = day
    days = [day.manifest() for day in folder.days()]
    result: dict[str, Any] = {"days": days, "version": days[-1]["stages"]["train"]["version"], "promoted": None}
    if config.promote is not None:
        Store(config.publish.store).promote(result["version"], config.promote)
        result["promoted"] = {"alias": config.promote, "version": result["version"]}
        progress.say(f"{config.promote} means {result['version']}")
    return result


class _Day:
    """A day's stages, and what each hands to the next."""

    def __init__(
        self,
        config: LoopSettings,
        folder: LoopFolder,
        day: DayFolder,
        source: str,
        before: DayFolder | None,
        progress: Progress,
    ) -> None:
        self.config, self.folder, self.day, self.source = config, folder, day, source
        self.before, self.progress = before, progress

    def run(self) -> None:
        log = ParquetLog(self.source, self.schema)
        about = {"source": self.source, "fingerprint": log.fingerprint, "rows": log.rows}
        self.day.claim(about, self.config.deciding())
        self.progress.say(f"{self.day.path.name}: {self.source}, {log.rows:,} rows")
        if self.before is not None:
            self._evaluate(self.before)
        self._vocabulary()
        self._plan()
        self._select()
        self._prune()
        self._train()

    @cached_property
    def schema(self) -> Schema:
        """Of all days."""
        found = self.folder.schema()
        if found is None:
            found = self.config.read_schema(self.source)
            self.folder.write_schema(found)
        return found

    @property
    def _lookups(self) -> dict[str, int]:
        return {feature.name: feature.lookups for feature in self.schema.features}

    @property
    def honoured(self) -> Path:
        """The vocabulary that is trained and published."""
        return self.day.path / ("vocabulary" if self.day.done("prune") is None else "pruned")

    def _evaluate(self, before: DayFolder) -> None:
        if self.day.done("evaluate") is None:
            version = Store(self.config.publish.store).open(_version(before))
            model, log = CtrModel.restore(version, build), ParquetLog(self.source, version.schema)
            size = self.config.training.evaluation_batch_size
            metrics = finite(evaluate(model, log, size, progress=self.progress))
            self.day.finish("evaluate", version=version.id, metrics=metrics)
            self._say("evaluate", f"{version.id} before it learns of it: AUC {_number(metrics['auc'])}")

    def _vocabulary(self) -> None:
        if self.day.done("vocabulary") is None:
            target = self.day.room("vocabulary")
            settings = VocabularySettings(
                log=self.source,
                schema=self.schema.to_dict(),
                time=self.config.time,
                admit=self.config.admit,
                previous=None if self.before is None else str(self.before.path / "vocabulary"),
                output=str(target),
            )
            manifest = build_vocabulary(settings, progress=self.progress)
            values, kept = (sum(of[key] for of in manifest["features"].values()) for key in ("values", "kept"))
            logs = manifest["lineage"]["logs"]
            sha256 = sha256_file(target / "manifest.json").sha256
            self.day.finish("vocabulary", sha256=sha256, logs=logs, values=values, kept=kept)
            self._say("vocabulary", f"{values:,} values of {_days(len(logs))}, {kept:,} kept")

    def _plan(self) -> None:
        if self.day.done("plan") is None:
            whole = Vocabulary.from_parquet(self.day.path / "vocabulary")
            hashed = {of.name: whole[of.name] for of in self.schema.features if of.name in whole and not of.exact}
            wanted, sizes = self.config.collisions, cardinalities(hashed, self._lookups)
            needed = rows_for(sizes, wanted) if sizes else 1
            first = (self.day if self.before is None else self.folder.days()[0]).done("plan")
            rows = first["rows"] if first else self.config.table.get("rows") or needed
            if rows is None:
                raise ConfigError("config.collisions", expected="a share that some table has", found=str(wanted))
            share = shared(sizes, rows).share
            values = sum(of.values for of in sizes)
            self.day.finish("plan", rows=rows, needed=needed, values=values, collisions=share, wanted=wanted)
            self._say(
                "plan", f"{rows:,} rows: {share:.1%} of {values:,} values share one with another of their feature"
            )
            if share > _OUTGROWN * wanted:
                text = f"warning: {wanted:.1%} wanted; a table of {needed:,} rows would have that"
                self.progress.say(f"  {text}: begin another loop with it")

    def _select(self) -> None:
        if self.config.select is not None and self.day.done("select") is None:
            model = self._judging_model(self.config.select.method)
            if model is None:
                self._say("select", f"{self.config.select.method} wants a trained model: nothing on the first day")
                return
            target = str(self.day.room("selection"))
            job = self.config.select.job(self.source, self.schema, str(self.day.path / "vocabulary"), target, **model)
            manifest = select(job, progress=self.progress)
            fields = {of["name"]: of["score"] for of in manifest["fields"]}
            sha256 = sha256_file(Path(target) / "manifest.json").sha256
            about = {name: manifest[name] for name in ("method", "settings", "lineage")}
            self.day.finish("select", sha256=sha256, fields=fields, **about)
            best = sorted(fields, key=lambda name: -fields[name])
            self._say("select", f"{manifest['method']}: most {', '.join(best[:3])}; least {', '.join(best[-2:])}")

    def _judging_model(self, method: str) -> dict[str, Any] | None:
        """What a selection judges by: nothing, yesterday's version, or today's run; ``None`` before there is one."""
        needs = model_of(method)
        if needs is None:
            return {}
        if needs == "run":
            return {"run": asdict(self._run_config(str(self.day.path / "vocabulary"), output=""))}
        if self.before is None:
            return None
        return {"store": self.config.publish.store, "version": _version(self.before)}

    def _prune(self) -> None:
        if self.config.prune is not None and self.config.prune.by == "scores" and self.day.done("select") is None:
            return  # nothing to prune by on the first day
        if self.config.prune is not None and self.day.done("prune") is None:
            before, how = Vocabulary.from_parquet(self.day.path / "vocabulary"), self.config.prune
            scores = None
            if how.by == "scores":
                scores = read_scores(self.day.path / "selection", before)
            after = prune(before, scores, lookups=self._lookups, **how.budget)
            after.to_parquet(self.day.room("pruned"))
            _, total = summaries(before, after, self._lookups)
            self.day.finish("prune", sha256=after.digest(), settings=asdict(how), **asdict(total))
            share = "" if total.occurrences is None else f", {total.occurrences:.1%} of what was seen"
            self._say("prune", f"{total.values - total.kept:,} values dropped, {total.kept:,} kept{share}")

    def _train(self) -> None:
        if self.day.done("train") is None:
            output = self.day.path / "run"
            RunFolder(output).write_lineage(self._lineage())
            config = self._run_config(str(self.honoured), str(output))
            result = Run(config, build, progress=self.progress).train()
            for note in result["notes"]:
                self.progress.say(note)
            kept = {name: result[name] for name in ("version", "steps", "valid", "test") if name in result}
            self.day.finish("train", **kept)
            found = (f"{name} AUC {_number(result[name]['auc'])}" for name in ("valid", "test") if result.get(name))
            self._say("train", ", ".join((f"{result['steps']:,} steps", *found, f"published {result['version']}")))

    def _run_config(self, vocabulary: str, output: str) -> RunConfig:
        """The day's run."""
        if self.before is not None:
            return self.config.next_run(self.source, _version(self.before), vocabulary, output)
        plan = self.day.done("plan")
        assert plan is not None
        return self.config.first_run(self.source, self.schema, plan["rows"], vocabulary, output)

    def _lineage(self) -> dict[str, Any]:
        """What the version's manifest says of the stages before it."""
        made = self.day.done("vocabulary")
        assert made is not None
        lineage: dict[str, Any] = {"vocabulary": {"built": {**made, "admission": asdict(self.config.admit)}}}
        chosen = {stage: of for stage in ("select", "prune") if (of := self.day.done(stage)) is not None}
        return {**lineage, "selection": chosen} if chosen else lineage

    def _say(self, stage: str, text: str) -> None:
        self.progress.say(f"  {stage:<10} {text}")


def _version(day: DayFolder) -> str:
    done = day.done("train")
    if done is None:
        raise ConfigError(f"{day.path}", expected="a day that is done", found="none")
    version: str = done["version"]
    return version


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count:,} days"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.5f}"
