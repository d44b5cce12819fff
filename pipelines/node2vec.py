"""node2vec as a job: from a log to vectors of its values, in stages that are each done once.

    embstore node2vec config.yaml --workers 8

    graph ──> visits ──> train ──> evaluate ──> publish
      │          │         └─ walks in order, a few pieces ahead of the one trainer; a checkpoint every few minutes
      └──────────┴─ pieces, by this process or tasks of a Ray cluster (runners.py)

The folder keeps what each stage came to (``embstore.node2vec.folder``): the same call goes on behind the last one, and
within training from the last checkpoint. All that is drawn depends on seeds and numbers of walks: the bytes are the
same for any runner and number of workers, and for a job that was killed; but for training by several threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.continuous import place_of
from embstore.errors import Interrupted, StoreError
from embstore.folder_lock import alone_in
from embstore.interruption import Interruption
from embstore.node2vec import Graph, SkipGram, Walker
from embstore.node2vec.edges import build_graph
from embstore.node2vec.folder import STAGES, JobFolder, Position
from embstore.node2vec.links import LinkSplit, baseline_auc, operator_auc, split_links
from embstore.node2vec.pieces import prepared, trained_at_once, visits_of, walked_at_once, walks_of
from embstore.node2vec.plots import plot_loss
from embstore.node2vec.propagation import propagated
from embstore.node2vec.settings import JobSettings, PublishSettings
from embstore.node2vec.sources import fingerprints
from embstore.node2vec.start import starting_vectors
from embstore.progress import Bar, Progress, no_progress
from embstore.store import Store
from embstore.store.files import fsync_folder
from embstore.threads import usable_cores

from .graphs import graph_of_log
from .runners import Runner, Serial, runner

_LINES, _SHOWN = 100, 10  # of the metrics, and how many of them are shown
_GO_ON = "the same command goes on"


def run(
    config: JobSettings,
    *,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress = no_progress,
    interruption: Interruption | None = None,
) -> dict[str, Any]:
    """Do a node2vec job, or go on with it.

    Args:
        config: what, and in which folder.
        workers: tasks of a Ray cluster that build the graph and walk; this process does it when not given. Training is
            always done here.
        address: of the cluster, as for ``embstore.pipelines.train.train``.
        progress: shown here.
        interruption: says when to stop, besides Ctrl-C and SIGTERM.

    Returns:
        What the job came to: ``graph``, ``walks``, ``loss``, ``links`` where evaluated, ``version`` where published,
        ``notes``.

    Raises:
        CheckpointError: the folder holds another job, another process works there, or it is damaged.
        GraphError, LogError, SchemaError, ConfigError: a log or setting that can't be used.
        GroupError: no such cluster, or its workers died too often.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    if config.publish is not None:
        _check_store(config.publish)
    sources = fingerprints(config)
    with alone_in(config.output):
        folder = JobFolder(config.output)
        folder.claim(config.deciding(), sources)
        before = folder.result()
        if before and (config.publish is None or before.get("store") == _store(config.publish)):
            progress.say(f"{folder.path}: already finished; --fresh (or another folder) does it again")
            return before
        if done := [stage for stage in STAGES if stage in folder.manifest()["stages"]]:
            progress.say(f"going on in {folder.path}: {', '.join(done)} done before")
        asked = interruption or Interruption()
        with asked.watched(), runner(workers, address) as by:
            return _Job(config=config, folder=folder, by=by, progress=progress, asked=asked).run()


@dataclass(kw_only=True)
class _Job:
    """The stages, and what each hands to the next."""

    config: JobSettings
    folder: JobFolder
    by: Runner
    progress: Progress
    asked: Interruption
    notes: list[str] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        graph = walked = self._graph()
        if (judged := self.config.evaluate) is not None:
            links = split_links(graph, judged.links, seed=judged.seed)
            walked = links.residual
        walker = prepared(walked, self.config.walks)
        shared = self.by.keep(walker)
        visits_N = self._visits(walker, shared)
        vectors_ND = self._train(walked, walker, shared, visits_N)
        self._heed()
        result: dict[str, Any] = {
            "graph": self.folder.done("graph"),
            "walks": {"count": walker.num_walks, "visits": int(visits_N.sum())},
            "train": self.folder.done("train"),
        }
        if judged is not None:
            result["links"] = self._evaluate(links, vectors_ND)
            self._heed()
            if self.config.publish is not None:
                self.notes.append(
                    "the published vectors never saw the links held out: leave evaluate out of the last run"
                )
        if self.config.publish is not None:
            result |= self._publish(graph, vectors_ND)
        for stage in ("graph", "train"):
            del result[stage]["files"]
        self._plot()
        result["notes"] = self.notes
        self.folder.write_result(result)
        self.progress.finish(self.folder.path)
        return result

    def _graph(self) -> Graph:
        if self.folder.done("graph") is not None:
            return self.folder.read_graph()
        with self.progress("graph", None) as bar:

            def tell(rows: int) -> None:
                bar.advance(rows)
                self._heed()

            how = self.config.graph
            here = isinstance(self.by, Serial) or how.log is None
            graph = build_graph(how, tell) if here else graph_of_log(how, self.by, tell)
        nodes = {name: len(numbers) for name, numbers in graph.parts().items()}
        about = {"nodes": nodes, "edges": graph.num_edges, "weighted": graph.weights_E is not None}
        name = self.folder.write_graph(graph)
        self.folder.finish("graph", [name], **about, directed=graph.directed, bytes=graph.nbytes)
        self.progress.say(f"graph: {_nodes(nodes)}, {graph.num_edges:,} edges")
        return graph

    def _visits(self, walker: Walker, shared: Any) -> NDArray[np.int64]:
        if self.folder.done("visits") is not None:
            return self.folder.read_visits()
        keep = None
        if self.config.keep_walks:
            walks = self.folder.path.resolve() / "walks"
            walks.mkdir(exist_ok=True)
            keep = str(walks)
        threads = self.config.threads or usable_cores() if isinstance(self.by, Serial) else 1
        bounds = list(walker.chunks(walked_at_once(walker.settings.length)))
        visits_N = np.zeros(walker.graph.num_nodes, dtype=np.int64)
        with self._bar("visits", walker.num_walks) as bar:
            counted = self.by.map(visits_of, shared, ((*of, threads, keep) for of in bounds))
            for (begin, end), part_N in zip(bounds, counted, strict=True):
                visits_N += part_N
                bar.advance(end - begin)
                self._heed()
        if keep is not None:
            fsync_folder(walks)
        self.folder.finish("visits", [self.folder.write_visits(visits_N)], sum=int(visits_N.sum()))
        return visits_N

    def _train(self, graph: Graph, walker: Walker, shared: Any, visits_N: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.folder.done("train") is not None:
            self.folder.forget_checkpoints()
            found = self.folder.read_vectors()
            return np.concatenate([found[feature].vectors for feature in graph.parts()])
        trainer = _Trainer(self, walker, shared, visits_N, lambda: starting_vectors(graph, self.config, self.progress))
        trainer.train()
        vectors_ND = propagated(graph, trainer.model.vectors, self.config.propagation, threads=usable_cores())
        files = self.folder.write_vectors(graph, vectors_ND, trainer.model.contexts, visits_N)
        losses = [line["train_loss"] for line in self.folder.metrics() if line["train_loss"] is not None]
        self.folder.finish("train", files, loss=losses[-1] if losses else None, dim=vectors_ND.shape[1])
        self.folder.forget_checkpoints()
        return vectors_ND

    def _evaluate(self, links: LinkSplit, vectors_ND: NDArray[np.float32]) -> dict[str, Any]:
        judged = self.config.evaluate
        assert judged is not None
        if (done := self.folder.done("evaluate")) is None:
            with self.progress("evaluate", None):
                auc = operator_auc(vectors_ND, links, judged.operator, seed=judged.seed)
                about = {"held_out": len(links.test_edges), "auc": auc, "baselines": baseline_auc(links)}
            done = self.folder.finish("evaluate", links=about)
        found: dict[str, Any] = done["links"]
        return found

    def _publish(self, graph: Graph, vectors_ND: NDArray[np.float32]) -> dict[str, str]:
        from embstore.node2vec.publishing import publish_vectors

        assert self.config.publish is not None
        where = _store(self.config.publish)
        done = self.folder.done("publish")
        if done is None or done["store"] != where:
            manifest, store = self.folder.manifest(), Store(where)
            about = {"settings": manifest["settings"], "vectors": self.folder.vectors_digest()}
            version = _published(store, about["vectors"])
            if version is None:
                logs = {name: {"fingerprint": of} for name, of in manifest["sources"].items()}
                links = manifest["stages"].get("evaluate", {}).get("links", {})
                metrics = {"links_auc": links["auc"]} if links else {}
                with self.progress("publish", None):
                    version = publish_vectors(store, graph, vectors_ND, about, logs=logs, metrics=metrics).id
            done = self.folder.finish("publish", store=where, version=version)
        return {"store": done["store"], "version": done["version"]}

    def _plot(self) -> None:
        if not plot_loss(self.folder.metrics(), self.folder.path / "loss.png"):
            self.notes.append("no loss.png: matplotlib isn't installed (pip install 'embstore[graphs]')")

    def _bar(self, label: str, total: int) -> Bar:
        bar = self.progress(label, total)
        bar.unit = "walks"
        return bar

    def _heed(self) -> None:
        """Stop where that is asked for: what the stage did so far is lost."""
        if self.asked.asked():
            raise Interrupted(f"stopped; {_GO_ON} behind the last stage that was done")


class _Trainer:
    """Trains on the walks of all epochs in order, and keeps where it stands."""

    def __init__(
        self,
        job: _Job,
        walker: Walker,
        shared: Any,
        visits_N: NDArray[np.int64],
        start: Callable[[], tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]],
    ) -> None:
        how = job.config.skip_gram
        self.job, self.walker, self.shared = job, walker, shared
        self.at, vectors, contexts = job.folder.saved() or (Position(), None, None)
        if vectors is None:
            vectors, contexts = start()
        else:
            job.progress.say(f"going on from walk {self.at.walks:,} of {self.total:,}")
        self.model = SkipGram(visits_N, self.walker.num_walks, how, vectors=vectors, contexts=contexts)
        self.threads = 1 if job.config.deterministic else job.config.threads or usable_cores()
        self.step = trained_at_once(self.walker.settings.length)

    @property
    def total(self) -> int:
        """Walks of all epochs."""
        return self.walker.num_walks * self.job.config.skip_gram.epochs

    def train(self) -> None:
        due = self._next_save()
        with self.job._bar("train", self.total) as bar:
            bar.resume(self.at.walks)
            for walks_WL, first in self._walks():
                epoch, number = divmod(first, self.walker.num_walks)
                loss = self.model.train(walks_WL, number, epoch=epoch, threads=self.threads)
                self._note(first + len(walks_WL), loss)
                bar.note(f"loss {loss:.4f}")
                bar.advance(len(walks_WL))
                if self.job.asked.asked() and self.at.walks < self.total:
                    self._save()
                    raise Interrupted(f"stopped at walk {self.at.walks:,} of {self.total:,}; {_GO_ON} from there")
                if monotonic() >= due:
                    due = self._next_save(self._save())
        self.model.check()

    def _walks(self) -> Iterator[tuple[NDArray[np.int32], int]]:
        """Walks from where training stands, each call's, and the number of the first over all epochs."""
        each, size = self.walker.num_walks, walked_at_once(self.walker.settings.length)
        bounds: list[tuple[int, int, int]] = []
        for epoch in range(self.at.walks // each, self.job.config.skip_gram.epochs):
            begin = max(self.at.walks - epoch * each, 0)
            bounds += [(epoch, *of) for of in self.walker.chunks(size, begin=begin)]
        walked = self.job.by.map(walks_of, self.shared, ((begin, end, 1) for _, begin, end in bounds))
        for (epoch, begin, _), walks_WL in zip(bounds, walked, strict=True):
            for first in range(0, len(walks_WL), self.step):
                yield walks_WL[first : first + self.step], epoch * each + begin + first

    def _note(self, walks: int, loss: float) -> None:
        """A line of the metrics for each hundredth of the walks."""
        each = self.walker.num_walks
        before, losses = self.at.walks, (*self.at.losses, *([] if math.isnan(loss) else [loss]))
        self.at = Position(walks, self.at.log_bytes, losses)
        if walks * _LINES // self.total == before * _LINES // self.total:
            return
        mean = math.fsum(losses) / len(losses) if losses else None
        record = {"step": walks, "epoch": (walks - 1) // each, "train_loss": mean}
        self.at = Position(walks, self.job.folder.write_metrics(record))
        if mean is not None and walks * _SHOWN // self.total != before * _SHOWN // self.total:
            self.job.progress.record(record, self.job.folder.path)

    def _save(self) -> float:
        """Seconds that it took."""
        started = monotonic()
        self.job.folder.save(self.at, self.model.vectors, self.model.contexts)
        return monotonic() - started

    def _next_save(self, took: float = 0.0) -> float:
        minutes = self.job.config.checkpoint_minutes
        return math.inf if minutes is None else monotonic() + max(60 * minutes, 9 * took if minutes else 0)


def _store(settings: PublishSettings) -> str:
    return str(place_of(settings.store))


def _check_store(settings: PublishSettings) -> None:
    """Raise what publishing would, before the work, where a look at the store shows it."""
    where, store = place_of(settings.store), Store(settings.store)
    if not isinstance(where, Path):
        return  # a bucket may be one that only publishing can make
    if where.is_dir() and any(where.iterdir()):
        store.versions()
        return
    above = next(folder for folder in (where, *where.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise StoreError(f"store {where}", expected="a folder that can be made", found=f"{above}, which can't hold it")


def _published(store: Store, vectors: str) -> str | None:
    """The version of these vectors, if a job that was killed has just published it."""
    try:
        last = store.open("latest")
    except StoreError:  # none yet; what else is wrong, publishing says
        return None
    about = (last.manifest["lineage"] or {}).get("node2vec") or {}
    return last.id if about.get("vectors") == vectors else None


def _nodes(nodes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} of {name}" for name, count in nodes.items())
