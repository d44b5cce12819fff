"""One training run: from its settings to a trained model, its metrics, and what of it is published.

    RunConfig ──> Run.train() ──> RunFolder          config, checkpoints, result
                    │       └───> Store              versions, on the way and at the end
                    └── build ──> CtrModel ──> Trainer

``embstore`` doesn't know the networks (they are ``embstore.models``): whoever makes a ``Run`` passes the builder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embstore.checkpoints import adam_tensors
from embstore.continuous import (
    Publisher,
    PublishSettings,
    StartSettings,
    check_columns,
    load_version,
    place_of,
    published,
)
from embstore.ctr import BuildNetwork, CtrModel, NetworkDescription, build_network
from embstore.distributed import ALONE, Group
from embstore.embeddings.unified import DTYPES, UnifiedEmbedding
from embstore.errors import CheckpointError, ConfigError, CorruptVersionError, GroupError
from embstore.evaluation import evaluate
from embstore.interruption import Interruption
from embstore.logs import ParquetLog, check_alike
from embstore.metrics import finite
from embstore.normalization import StreamingNormalizer
from embstore.progress import Progress, no_progress
from embstore.run_folder import RunFolder, make_output
from embstore.run_vocabulary import RunVocabulary
from embstore.settings import RunConfig
from embstore.sharding.batch_norm import share_batch_norm
from embstore.store import Bundle, Store, Version
from embstore.training import Trainer
from embstore.vocabulary import exact_tokens
from embstore.warm_start import FirstRows, check_features

FEW_STEPS = 100  # so few hardly move a network's weights


class Run:
    """A run and its folder.

    Args:
        config: its settings.
        build_network: ``embstore.models.build``, or anything called as it is.
        progress: how progress is shown.
        group: processes that run it together, each calling the same of ``train``'s; all see the same folder. The
            model lies on its device.
        interruption: says when training should stop, besides Ctrl-C and SIGTERM.

    Raises:
        CheckpointError: the folder holds a run of other settings.
    """

    def __init__(
        self,
        config: RunConfig,
        build_network: BuildNetwork,
        *,
        progress: Progress = no_progress,
        group: Group = ALONE,
        interruption: Interruption | None = None,
    ) -> None:
        self.group, self.interruption = group, interruption
        self.folder = Path(config.output)
        self.files = RunFolder(self.folder)
        self.start = None if config.start is None else self._open_start(config.start)
        if self.start is not None:
            config = config.with_start(self.start)
        there = self.files.config()
        self._first_rows = FirstRows(
            config.table.warm_start,
            () if there is None else there.table.warm_start,
            resumed=self.start is not None,
            group=group,
        )
        config = replace(config, table=replace(config.table, warm_start=self._first_rows.settings))
        self._inferred = config.schema is None
        self._warnings: list[str] = []  # of inference
        self.schema = config.read_schema(self._warnings.append)
        check_features(config.table.warm_start, self.schema)
        self._vocabulary = RunVocabulary(config, self.schema, self.files, start=self.start, group=group)
        config = replace(config, vocabulary=self._vocabulary.source)
        self.config, self.build_network = config.with_schema(self.schema), build_network
        self.progress = progress if group.first else no_progress
        if self.schema.label is None:
            raise ConfigError(
                "schema", expected="a label to train on", found="none", do="add label: <column> to the schema"
            )

    @classmethod
    def open(cls, folder: str | Path, build_network: BuildNetwork, *, progress: Progress = no_progress) -> Run:
        """The run in a folder.

        Raises:
            CheckpointError: there is none.
        """
        config = RunFolder(folder).config()
        if config is None:
            raise CheckpointError(f"{folder}", expected="the folder of a run (with config.yaml)", found="none")
        return cls(config, build_network, progress=progress)

    @staticmethod
    def clear(folder: str | Path) -> None:
        """Remove what an earlier run left in a folder (only files a run makes)."""
        RunFolder(folder).clear()

    def check(self) -> None:
        """Raise what ``train`` would before it trains, where settings, logs and what they name show it; no table is
        made, and nothing is written.

        Raises:
            LogError, SchemaError, ConfigError, StoreError, CheckpointError: as ``train``.
        """
        self._check_columns(self._logs()["train"].value_types())
        self._network()

    def train(self) -> dict[str, Any]:
        """Train (or go on), evaluate on valid and test, and return what ``result.json`` holds.

        Raises:
            Interrupted: Ctrl-C; the same call goes on.
            StoreError: it is trained, but can't be published, or promoted; how to do that is said.
        """
        logs = self._logs()
        if self.config.publish is not None:
            self._check_store(self.config.publish.store)
        self._begin(logs)
        model = self.build(self._collected_tokens(logs["train"]))
        self._vocabulary.collect(logs["train"], self.progress)
        before = self.group.lead(lambda: self.files.result().get("version"))
        publisher: Publisher | None = None
        trained = False

        def after_step(rows: int) -> None:
            nonlocal trained
            trained = True
            if publisher is not None:
                publisher.step(rows)

        trainer = Trainer(
            model,
            self.config.training,
            self.folder,
            identity=self.config.identity(self.start),
            progress=self.progress,
            begin=lambda: self._start(trainer),
            after_step=after_step,
            group=self.group,
            interruption=self.interruption,
        )
        if self.config.publish is not None:
            publisher = self._publisher(self.config.publish, trainer)
        with publisher or nullcontext():
            result = self._fit(trainer, logs)
            if publisher is not None:
                done = publisher.last is not None and publisher.last.id == before and not trained
                result["version"] = before if done else publisher.finish().id
                self._write_result(result)
                if done:
                    self.progress.say(f"published before, as {before}")
        return result

    def _fit(self, trainer: Trainer, logs: Mapping[str, ParquetLog]) -> dict[str, Any]:
        """Train, evaluate, and write the result down, whatever becomes of publishing it."""
        model = trainer.model
        result: dict[str, Any] = {"valid": trainer.fit(logs["train"], logs.get("valid"))}
        if "test" in logs:
            result["test"] = trainer.evaluate(logs["test"], label="test")
        result |= {
            "steps": trainer.at.step,
            "kernel": {"name": model.table.kernel.name, "reason": model.table.kernel_reason},
            "parameters": self.parameters(model),
            "logs": {name: {"fingerprint": log.fingerprint, "rows": log.rows} for name, log in logs.items()},
        }
        notes = _notes(result, trainer)
        if self.start is not None and self.start.optimizer is None:
            notes.insert(0, _stateless(self.start))
        result = finite({**result, "notes": notes})
        self._write_result(result)
        return result

    def build(self, exact: Mapping[str, Tensor], kernel: str | None = None) -> CtrModel:
        """The run's model before training; ``kernel`` instead of the settings' one."""
        settings = self.config.table
        table = UnifiedEmbedding(
            self.schema.features,
            settings.rows,
            settings.dim,
            num_tables=settings.num_tables,
            exact_tokens=exact,
            optimizer=settings.optimizer,
            dtype=DTYPES[settings.dtype],
            init_std=settings.init_std,
            frozen=settings.frozen,
            kernel=kernel or settings.kernel,
            seed=settings.seed,
            device=self.group.device,
            pruned=self._vocabulary.filter,
            group=self.group,
        )
        network = self._network()
        normalizer, device = StreamingNormalizer(self.schema.dense, self.group), self.group.device
        model = CtrModel(table, normalizer.to(device), share_batch_norm(network, self.group).to(device))
        if not self.group.alone:
            self._check_alike(model)
        return model

    def _network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.training.seed)
            return build_network(self.build_network, self._description())

    def _check_alike(self, model: CtrModel) -> None:
        """Ranks whose networks begin with other numbers would stay apart: only gradients are summed."""
        digest = hashlib.sha256()
        for tensor in model.dense_state().values():
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        if len(set(self.group.tell(digest.hexdigest()))) > 1:
            raise GroupError(
                "the network",
                expected="the same first weights on every rank",
                found="others",
                do="let them come from torch's default generator, which is seeded alike",
            )

    def trained(self) -> CtrModel:
        """The finished run's model, in eval mode.

        Raises:
            CheckpointError: it has no checkpoint yet.
        """
        return self._restored().model

    def finished(self) -> tuple[CtrModel, str]:
        """The finished run's model, in eval mode, and the sha256 of its checkpoint: of all files and numbers.

        Raises:
            CheckpointError: it isn't finished.
        """
        self._check_finished()
        trainer = self._restored()
        return trainer.model, trainer.checkpoints.digest(trainer.restored)

    def untrained(self) -> CtrModel:
        """The model that ``train`` begins with, for others to train; the folder becomes this run's.

        Raises:
            CheckpointError: the folder holds another run.
            LogError, SchemaError, DataError: the training log can't be used.
        """
        log = ParquetLog(self.config.logs.train, self.schema)
        self._begin({"train": log})
        model = self.build(self._collected_tokens(log))
        self._start(Trainer(model, self.config.training, self.folder, progress=self.progress, group=self.group))
        return model

    def evaluate(self, source: str) -> dict[str, float]:
        """Metrics of the trained model on another labelled log.

        Raises:
            CheckpointError: the run has no checkpoint.
            LogError, SchemaError, DataError: the log can't be used.
        """
        log = ParquetLog(source, self.schema)
        size = self.config.training.evaluation_batch_size
        return evaluate(self.trained(), log, size, progress=self.progress, group=self.group)

    def bundle(self) -> Bundle:
        """What ``embstore.store`` publishes of the trained run.

        Raises:
            CheckpointError: it isn't finished.
        """
        self._check_finished()
        return self._bundle(self._restored())

    def _check_finished(self) -> None:
        if not self.files.result():
            raise CheckpointError(
                f"{self.folder}",
                expected="a finished run",
                found="one without result.json",
                do="train it to its end first",
            )

    def parent(self, store: str | Path) -> str | None:
        """The version of this store that the run goes on from, if there is one."""
        start = self.config.start
        return None if start is None or place_of(start.store) != place_of(store) else start.version

    @staticmethod
    def parameters(model: CtrModel) -> dict[str, int]:
        """Trained numbers: in the table, in the network, in all."""
        table = (model.table.num_rows - model.table.frozen_rows) * model.table.dim
        network = sum(p.numel() for p in model.network.parameters())
        return {"table": table, "network": network, "total": table + network}

    def _open_start(self, start: StartSettings) -> Version:
        """The version to go on from. An alias means what it meant when the folder's run began."""
        there, ref = self.files.config(), start.version
        if there is not None and there.start is not None and not ref[:1].isdigit():
            same = place_of(there.start.store) == place_of(start.store)
            ref = there.start.version if same else ref
        return Store(start.store).open(ref, group=self.group)

    def _logs(self) -> dict[str, ParquetLog]:
        """Opened, by name."""
        sources = asdict(self.config.logs).items()
        logs = {name: ParquetLog(source, self.schema) for name, source in sources if source is not None}
        check_alike(logs)
        return logs

    def _check_columns(self, columns: Mapping[str, str]) -> None:
        """Refuse values of other types than what the run goes on from, starts from or honours."""
        if self.start is not None:
            do = "write the column as it was, or train a new table without --from"
            check_columns(columns, self.start.manifest["columns"], trained=self.start.id, do=do)
        elif not self.files.begun():  # a run that goes on needs no vectors
            self._first_rows.check_types(self.schema, columns)
        self._vocabulary.check_types(columns)

    def _begin(self, logs: Mapping[str, ParquetLog]) -> None:
        """Make the folder this run's."""
        columns = logs["train"].value_types()
        self._check_columns(columns)
        if self.files.begun():
            self._first_rows.forget()
        learnt_from = {name: logs[name].fingerprint for name in ("train", "valid") if name in logs}

        def claim() -> None:
            self.files.claim(self.config, self.schema, learnt_from, columns)
            self._vocabulary.keep(columns)

        self.group.lead(claim)

    def _start(self, trainer: Trainer) -> None:
        if self._inferred:
            for text in self._warnings:
                self.progress.say(f"warning: {text}")
            self.progress.say("schema, inferred (embstore schema prints it; edit it and give it with --schema):")
            self.progress.say(self.schema.to_yaml())
        if self.start is not None:
            if not load_version(trainer.model, trainer.optimizer, self.start):
                self.progress.say(_stateless(self.start))
        elif self._first_rows.settings:
            done = self._first_rows.set(trainer.model.table, self.config.table.init_std)
            self.group.lead(lambda: self.files.write_warm_start(done))

    def _check_store(self, store: str) -> None:
        """Try now what would fail when hours of training are over."""
        place = place_of(store)
        if isinstance(place, Path):
            self.group.lead(lambda: make_output(place))
        Store(place).check_group(self.group)
        if not isinstance(place, Path):
            self.group.together(Store(place).aliases)

    def _publisher(self, settings: PublishSettings, trainer: Trainer) -> Publisher:
        start = self.start if self.parent(settings.store) is not None else None
        return Publisher(
            settings,
            trainer.model,
            lambda: self._bundle(trainer),
            self.folder,
            start=start,
            say=self.progress.say,
            warn=trainer.warn,
            group=self.group,
        )

    def _restored(self) -> Trainer:
        exact = self.files.exact_tokens()
        if exact is None:
            raise CheckpointError(
                f"{self.folder}", expected="a trained run", found="one without tokens of exact features"
            )
        model = self.build(exact, kernel="auto")  # the settings' one may want the device it was trained on
        identity = self.config.identity(self.start)
        trainer = Trainer(model, self.config.training, self.folder, identity=identity, group=self.group)
        trainer.restore()
        return trainer

    def _bundle(self, trainer: Trainer) -> Bundle:
        def read() -> dict[str, Any]:
            lineage, result = self.files.lineage(), self.files.result()
            lineage["space"] = self.files.space(self._published_space) if self.start is None else self.start.space
            if self.start is not None:
                for name in ("node2vec", "vocabulary"):
                    lineage.setdefault(name, self.start.manifest["lineage"][name])
            metrics = {name: result[name] for name in ("valid", "test") if name in result}
            return {"lineage": lineage, "metrics": metrics, "columns": self.files.columns()}

        model, about = trainer.model, self.group.lead(read)
        return Bundle(
            table=model.table,
            schema=self.schema,
            columns=about["columns"],
            dense_state=model.dense_state(),
            model=self._description(),
            metrics=about["metrics"],
            lineage=about["lineage"],
            optimizer=model.table.optimizer_state(adam_tensors(trainer.optimizer)),
            vocabulary=self.group.together(lambda: self._vocabulary.published() if self.group.first else None),
            shard=None if self.group.alone else model.table.shard,
        )

    def _published_space(self) -> str | None:
        """Of the version this run published last on its way; ``None`` when nobody can tell any more."""
        if self.config.publish is None:
            return None
        try:
            last = published(Store(self.config.publish.store), self.folder)
        except CorruptVersionError:
            return None
        return None if last is None else last.space

    def _description(self) -> NetworkDescription:
        settings = {key: value for key, value in self.config.model.items() if key != "name"}
        return {
            "name": self.config.model["name"],
            "settings": settings,
            "dense_width": len(self.schema.dense),
            "widths": [feature.lookups * self.config.table.dim for feature in self.schema.features],
        }

    def _collected_tokens(self, log: ParquetLog) -> dict[str, Tensor]:
        """Known tokens of the exact features: of the version the run goes on from, or of the training log."""
        if not self.group.lead(lambda: self.files.exact_tokens() is not None):
            if self.start is not None:
                tokens = self.start.table.exact_tokens()
            else:
                own = sum(piece.rows for piece in log.pieces[self.group.rank :: self.group.world])
                with self.progress("exact", own) as bar:  # each rank reads a part
                    kept = self._vocabulary.filter
                    tokens = exact_tokens(log, pruned=kept, progress=bar.advance, group=self.group)
                tokens |= self._first_rows.frozen_tokens(kept)
            self.group.lead(lambda: self.files.write_exact_tokens(tokens))
        found = self.files.exact_tokens()
        if found is None:
            raise GroupError(
                f"{self.folder}", expected="one folder that all ranks see", found="none of what rank 0 wrote"
            )
        return found

    def _write_result(self, result: Mapping[str, Any]) -> None:
        self.group.lead(lambda: self.files.write_result(result))


def _stateless(start: Version) -> str:
    return (
        f"warning: {start.id} was published without the optimizers' state: they start from nothing, their first steps "
        "are large, and the model may end worse than it was; go on from a version published without --no-optimizer"
    )


def _notes(result: Mapping[str, Any], trainer: Trainer) -> list[str]:
    """What a person should know before trusting a result."""
    at, notes = trainer.at, []
    if at.positives != at.negatives:
        label = 1 if at.positives else 0
        notes.append(f"warning: every label of the training log is {label}; a model can't learn from one class")
    for name in ("valid", "test"):
        rate = (result.get(name) or {}).get("positives_rate")
        if rate in (0, 1):
            notes.append(f"warning: every label of the {name} log is {rate:.0f}; its AUC is undefined")
    if at.step < FEW_STEPS:
        notes.append(few_steps(at.step))
    return notes


def few_steps(steps: int) -> str:
    """What is said of less than ``FEW_STEPS``."""
    count = f"only {steps} step" + "s" * (steps != 1)
    return f"hint: {count}; a smaller training.batch_size or more training.epochs may learn more"
