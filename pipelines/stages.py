"""The stages of a loop's day: each is done once, and says what it came to in day.json (``days.py``).

A stage makes what it makes in the day's folder, by the library or a job that is a command of its own, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from embstore.ctr import CtrModel
from embstore.errors import ConfigError, GroupError
from embstore.evaluation import evaluate
from embstore.logs import ParquetLog
from embstore.metrics import finite
from embstore.models import build
from embstore.node2vec.folder import JobFolder
from embstore.planning.collisions import cardinalities, rows_for, shared
from embstore.progress import Progress
from embstore.run import Run
from embstore.run_folder import RunFolder
from embstore.schema import Schema
from embstore.selection.pruning import prune, summaries
from embstore.selection.score_files import read_scores
from embstore.settings import RunConfig
from embstore.store import Store
from embstore.store.files import sha256_file
from embstore.vocabulary import Vocabulary
from embstore.warm_start import check_features

from .cluster import cluster
from .days import DayFolder, LoopFolder
from .loop_settings import LoopSettings
from .node2vec import run as walk
from .selection import model_of, select
from .sharing import JudgedBy, share
from .train import load_ray
from .train import train as train_on_ray
from .vocabulary import VocabularySettings
from .vocabulary import build as build_vocabulary

_OUTGROWN = 1.5  # times the wanted share of collisions


@dataclass(frozen=True)
class Workers:
    """How many do what, of one cluster for all stages; this process where none are asked for.

    Args:
        tasks: of the stages before training.
        training: processes that train.

    Raises:
        GroupError: less than one.
    """

    tasks: int | None
    training: int | None

    def __post_init__(self) -> None:
        for name, count in (("workers", self.tasks), ("train workers", self.training)):
            if count is not None and count < 1:
                raise GroupError(name, expected="1 or more", found=str(count))

    @contextmanager
    def connected(self, address: str | None) -> Iterator[None]:
        """The cluster, while it is worked on."""
        most = max(self.tasks or 0, self.training or 0)
        if not most:
            yield
            return
        with cluster(load_ray(), address, cpus=most, processes=most, what="workers", error=GroupError):
            yield


class Day:
    """A day's stages, and what each hands to the next.

    Args:
        config: of the loop.
        folder: of the loop; what the columns mean is kept there.
        day: the folder of this one.
        source: its log.
        before: the folder of the day before, which is done.
        by: who does the work.
        progress: shown here.
    """

    def __init__(
        self,
        config: LoopSettings,
        folder: LoopFolder,
        day: DayFolder,
        source: str,
        before: DayFolder | None,
        by: Workers,
        progress: Progress,
    ) -> None:
        self.config, self.folder, self.day, self.source = config, folder, day, source
        self.before, self.by, self.progress = before, by, progress

    def run(self) -> None:
        """Do what is not done."""
        log = ParquetLog(self.source, self.schema)
        about = {"source": self.source, "fingerprint": log.fingerprint, "rows": log.rows}
        self.day.claim(about, self.config.deciding())
        self.progress.say(f"{self.day.path.name}: {self.source}, {log.rows:,} rows")
        if self.before is not None:
            self._evaluate(self.before)
        self._vocabulary()
        self._plan()
        self._node2vec()
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

    @property
    def _vectors(self) -> Path:
        return self.day.path / "node2vec"

    @property
    def _run(self) -> Path:
        return self.day.path / "run"

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
            manifest = build_vocabulary(settings, workers=self.by.tasks, progress=self.progress)
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

    def _node2vec(self) -> None:
        how = self.config.node2vec
        if how is None or self.day.done("node2vec") is not None:
            return
        if self.before is not None and how.publish is None:
            return  # rows go on from yesterday's, and nobody else asks for vectors
        if self._starts_from_vectors:  # what can't be is told before the work
            check_features(self._run_config(str(self.honoured), str(self._run)).table.warm_start, self.schema)
        former = None
        if self.before is not None and self.before.done("node2vec") is not None:
            former = self.before.path / "node2vec"
        job = how.job(self.source, former, str(self._vectors))
        found = walk(job, workers=self.by.tasks, progress=self.progress)
        for note in found["notes"]:
            self.progress.say(note)
        made = JobFolder(self._vectors)
        about = {
            name: found[name] for name in ("graph", "walks", "train", "links", "store", "version") if name in found
        }
        settings = made.manifest()["settings"]
        self.day.finish("node2vec", vectors=made.vectors_digest(), settings=settings, **about)
        walks, edges = found["walks"]["count"], found["graph"]["edges"]
        told = f", links AUC {found['links']['auc']:.4f}" if "links" in found else ""
        told += f", published {found['version']}" if "version" in found else ""
        self._say("node2vec", f"{walks:,} walks over {edges:,} edges{told}")

    def _select(self) -> None:
        if self.config.select is not None and self.day.done("select") is None:
            model = self._judging_model(self.config.select.method)
            if model is None:
                self._say("select", f"{self.config.select.method} wants a trained model: nothing on the first day")
                return
            target = str(self.day.room("selection"))
            job = self.config.select.job(self.source, self.schema, str(self.day.path / "vocabulary"), target, **model)
            searches = "run" in model  # by one process
            manifest = select(job, workers=None if searches else self.by.tasks, progress=self.progress)
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
        how = self.config.prune
        if how is None or self.day.done("prune") is not None:
            return
        if how.by == "scores" and self.day.done("select") is None:
            return  # nothing to prune by on the first day
        if how.by == "alike" and self.before is None:
            self._say("prune", "alike wants a trained model: nothing on the first day")
            return
        before, about = Vocabulary.from_parquet(self.day.path / "vocabulary"), dict[str, Any]()
        if how.by == "alike":
            assert self.before is not None
            by = JudgedBy(store=self.config.publish.store, version=_version(self.before), log=self.source)
            budget = {name: value for name, value in how.budget.items() if name != "threshold"}
            done = share(before, by, **budget, lookups=self._lookups, workers=self.by.tasks, progress=self.progress)
            after, about = done.vocabulary, {"lineage": done.lineage}
        else:
            scores = read_scores(self.day.path / "selection", before) if how.by == "scores" else None
            after = prune(before, scores, lookups=self._lookups, **how.budget)
        after.to_parquet(self.day.room("pruned"))
        _, total = summaries(before, after, self._lookups)
        self.day.finish("prune", sha256=after.digest(), settings=asdict(how), **asdict(total), **about)
        told = "" if total.occurrences is None else f", {total.occurrences:.1%} of what was seen"
        told += f", {total.sharing:,} share a row with others" if total.sharing else ""
        self._say("prune", f"{total.values - total.kept:,} values dropped, {total.kept:,} kept{told}")

    def _train(self) -> None:
        if self.day.done("train") is None:
            RunFolder(self._run).write_lineage(self._lineage())
            config = self._run_config(str(self.honoured), str(self._run))
            if self.by.training is None:
                result = Run(config, build, progress=self.progress).train()
            else:
                result = train_on_ray(config, build, workers=self.by.training, progress=self.progress)
            for note in result["notes"]:
                self.progress.say(note)
            kept = {name: result[name] for name in ("version", "steps", "valid", "test") if name in result}
            self.day.finish("train", **kept)
            found = (f"{name} AUC {_number(result[name]['auc'])}" for name in ("valid", "test") if result.get(name))
            self._say("train", ", ".join((f"{result['steps']:,} steps", *found, f"published {result['version']}")))

    @property
    def _starts_from_vectors(self) -> bool:
        """Whether rows of the table do: they are new, and node2vec is to set them."""
        return self.before is None and self.config.node2vec is not None and self.config.node2vec.sets_rows

    def _run_config(self, vocabulary: str, output: str) -> RunConfig:
        """The day's run."""
        if self.before is not None:
            return self.config.next_run(self.source, _version(self.before), vocabulary, output)
        plan, given = self.day.done("plan"), None
        assert plan is not None
        if self._starts_from_vectors:
            assert self.config.node2vec is not None
            given = self.config.node2vec.first_rows(self.schema, self._vectors)
        return self.config.first_run(self.source, self.schema, plan["rows"], vocabulary, output, first_rows=given)

    def _lineage(self) -> dict[str, Any]:
        """What the version's manifest says of the stages before it."""
        made = self.day.done("vocabulary")
        assert made is not None
        lineage: dict[str, Any] = {"vocabulary": {"built": {**made, "admission": asdict(self.config.admit)}}}
        if self._starts_from_vectors:
            lineage["node2vec"] = {"built": self.day.done("node2vec")}
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
