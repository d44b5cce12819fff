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
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from embstore.errors import CheckpointError, ConfigError, CorruptVersionError, GroupError, nearest
from embstore.evaluation import evaluate
from embstore.interruption import Interruption
from embstore.logs import ParquetLog, check_alike
from embstore.metrics import finite
from embstore.normalization import StreamingNormalizer
from embstore.progress import Progress, no_progress
from embstore.run_folder import RunFolder, make_output
from embstore.run_vocabulary import VocabularySource, check_kinds
from embstore.settings import RunConfig
from embstore.sharding.batch_norm import share_batch_norm
from embstore.store import Bundle, Store, Version
from embstore.token_filter import TokenFilter
from embstore.training import Trainer
from embstore.vocabulary import Vocabulary, exact_tokens
from embstore.warm_start import GivenVectors, check_features

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
        self._given = self._open_given(config)
        config = replace(config, table=replace(config.table, warm_start=tuple(of.settings for of in self._given)))
        self._inferred = config.schema is None
        self._warnings: list[str] = []  # of inference
        self.schema = config.read_schema(self._warnings.append)
        check_features(config.table.warm_start, self.schema)
        self._read: Vocabulary | None = None  # on rank 0, until it lies in the folder
        config = self._with_vocabulary(config)
        self.config, self.build_network = config.with_schema(self.schema), build_network
        self.progress = progress if group.first else no_progress
        known = [feature.name for feature in self.schema.features]
        for name in self._counted():
            if name not in known:
                raise ConfigError(f"publish.vocabulary: no feature {name!r}", do=nearest(name, known))
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

    def train(self) -> dict[str, Any]:
        """Train (or go on), evaluate on valid and test, and return what ``result.json`` holds.

        Raises:
            Interrupted: Ctrl-C; the same call goes on.
            StoreError: it is trained, but can't be published, or promoted; how to do that is said.
        """
        logs = {
            name: ParquetLog(source, self.schema)
            for name, source in asdict(self.config.logs).items()
            if source is not None
        }
        check_alike(logs)
        if self.config.publish is not None:
            self._check_store(self.config.publish.store)
        self._begin(logs)
        model = self.build(self._collected_tokens(logs["train"]))
        self._collect_vocabulary(logs["train"])
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
            pruned=self._pruned,
            group=self.group,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.training.seed)
            network = build_network(self.build_network, self._description(table))
        normalizer, device = StreamingNormalizer(self.schema.dense, self.group), self.group.device
        model = CtrModel(table, normalizer.to(device), share_batch_norm(network, self.group).to(device))
        if not self.group.alone:
            self._check_alike(model)
        return model

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
        if not self.files.result():
            raise CheckpointError(
                f"{self.folder}",
                expected="a finished run",
                found="one without result.json",
                do="train it to its end first",
            )
        return self._bundle(self._restored())

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

    def _open_given(self, config: RunConfig) -> list[GivenVectors]:
        """What rows start from, by digest. An alias means what it meant when the folder's run began."""
        entries = config.table.warm_start
        if self.start is not None:  # which says what is frozen; nothing is read again
            return [GivenVectors(entry) for entry in entries]
        there = self.files.config()
        before = () if there is None else there.table.warm_start
        out = []
        for number, entry in enumerate(entries):
            if entry.store is not None and not entry.version[:1].isdigit() and number < len(before):
                was = before[number]
                if was.store is not None and place_of(was.store) == place_of(entry.store):
                    entry = replace(entry, version=was.version)
            given = GivenVectors(entry, self.group)
            given.settings = given.pinned()
            out.append(given)
        return out

    def _with_vocabulary(self, config: RunConfig) -> RunConfig:
        """The settings with the digest of the vocabulary they name, which rank 0 reads."""
        source = config.honoured
        if source is None or source.sha256 is not None:
            return config
        pinned = self.group.lead(lambda: asdict(self._read_vocabulary(source)))
        return replace(config, vocabulary=VocabularySource(**pinned))

    def _read_vocabulary(self, source: VocabularySource) -> VocabularySource:
        there = self.files.config()
        was = None if there is None else there.honoured
        stores = source.store, None if was is None else was.store
        if was is not None and stores[0] is not None and stores[1] is not None and not source.version[:1].isdigit():
            same = place_of(stores[0]) == place_of(stores[1])  # an alias means what it meant when the run began
            source = replace(source, version=was.version if same else source.version)
        self._read, pinned = source.read(self.schema)
        return pinned

    @cached_property
    def _honoured(self) -> Vocabulary | None:
        """The vocabulary that its settings name, as it lies in the folder.

        Raises:
            CheckpointError: another lies there, or none.
        """
        source = self.config.honoured
        if source is None:
            return None
        found = self.files.honoured()
        digest = None if found is None else found.digest()
        if found is None or digest != source.sha256:
            do = "start afresh with --fresh"
            expected = f"its vocabulary, sha256 {source.sha256}"
            raise CheckpointError(f"{self.folder}", expected=expected, found=digest or "none", do=do)
        return found

    @cached_property
    def _pruned(self) -> TokenFilter | None:
        """Which values are looked up as the pruned token: by its own vocabulary, or that of its version."""
        if self.config.honoured is None:
            return None if self.start is None else self.start.pruned
        own = self.group.together(lambda: self._honoured)
        return None if own is None else TokenFilter.of(own)

    def _begin(self, logs: Mapping[str, ParquetLog]) -> None:
        """Make the folder this run's."""
        columns = logs["train"].value_types()
        if self.start is not None:
            check_columns(columns, self.start)
        else:
            for given in self._given:
                if self.files.begun():  # a run that goes on needs no vectors
                    given.forget()
                else:
                    given.check_types(self.schema, columns)
        learnt_from = {name: logs[name].fingerprint for name in ("train", "valid") if name in logs}

        def claim() -> None:
            if self._read is not None:
                check_kinds(self._read, self.schema, columns)
            self.files.claim(self.config, self.schema, learnt_from, columns)
            source = self.config.honoured
            if source is None or (self._read is None and self.files.honoured() is not None):
                return
            if self._read is None:
                self._read, _ = source.read(self.schema)
                check_kinds(self._read, self.schema, columns)
            self.files.write_honoured(self._read)
            self._read = None

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
        elif self._given:
            done = [given.set_rows(trainer.model.table, self.config.table.init_std) for given in self._given]
            self.group.lead(lambda: self.files.write_warm_start(done))
            for given in self._given:
                given.forget()

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
            model=self._description(model.table),
            metrics=about["metrics"],
            lineage=about["lineage"],
            optimizer=model.table.optimizer_state(adam_tensors(trainer.optimizer)),
            vocabulary=self.group.together(lambda: self._vocabulary if self.group.first else None),
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

    def _description(self, table: UnifiedEmbedding) -> NetworkDescription:
        settings = {key: value for key, value in self.config.model.items() if key != "name"}
        return {
            "name": self.config.model["name"],
            "settings": settings,
            "dense_width": len(self.schema.dense),
            "widths": list(table.widths),
        }

    def _collected_tokens(self, log: ParquetLog) -> dict[str, Tensor]:
        """Known tokens of the exact features: of the version the run goes on from, or of the training log."""
        if not self.group.lead(lambda: self.files.exact_tokens() is not None):
            if self.start is not None:
                tokens = self.start.table.exact_tokens()
            else:
                own = sum(piece.rows for piece in log.pieces[self.group.rank :: self.group.world])
                with self.progress("exact", own) as bar:  # each rank reads a part
                    tokens = exact_tokens(log, pruned=self._pruned, progress=bar.advance, group=self.group)
                for given in self._given:  # the values that have vectors, be they in the log or not
                    if given.settings.frozen:
                        found = {name: self._kept(name, of.tokens_V) for name, of in given.by_feature.items()}
                        tokens |= {name: of.unique() for name, of in found.items()}
            self.group.lead(lambda: self.files.write_exact_tokens(tokens))
        kept = self.files.exact_tokens()
        if kept is None:
            raise GroupError(
                f"{self.folder}", expected="one folder that all ranks see", found="none of what rank 0 wrote"
            )
        return kept

    def _kept(self, feature: str, tokens_V: NDArray[np.int64]) -> Tensor:
        """Those that are looked up as they are."""
        if self._pruned is not None:
            tokens_V = tokens_V[self._pruned.of_feature(feature, tokens_V) == tokens_V]
        return torch.from_numpy(tokens_V)

    def _counted(self) -> tuple[str, ...]:
        """The features whose values are published."""
        asked = False if self.config.publish is None else self.config.publish.vocabulary
        return tuple(feature.name for feature in self.schema.features) if asked is True else tuple(asked or ())

    def _collect_vocabulary(self, log: ParquetLog) -> None:
        """Count the values that are published, unless the folder has them."""
        if not self._counted():
            return

        def missing() -> list[str]:
            found, own = self.files.vocabulary(), self._honoured or ()
            names = [name for name in self._counted() if name not in own]
            return [] if found is not None and found.keys() >= set(names) else names

        names = tuple(self.group.lead(missing))
        if not names:
            return
        with self.progress("values", log.rows) as bar:
            counted = Vocabulary.collect(log, names, progress=bar.advance, group=self.group)
        self.group.lead(lambda: self.files.write_vocabulary(counted))

    @cached_property
    def _vocabulary(self) -> Vocabulary | None:
        """What is published: that which it honours, its own or of the version it goes on from, and what was counted.

        Of features in its own, nothing is added: what that doesn't know is unseen.
        """
        own, names = self._honoured, self._counted()
        before = self.start.vocabulary if own is None and self.start is not None else own
        found = self.files.vocabulary() if names else None
        if found is None:
            return before
        counted = Vocabulary({name: found[name] for name in names if name in found and name not in (own or ())})
        return counted if before is None else before.merged(counted)

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
        steps = f"only {at.step} step" + "s" * (at.step != 1)
        notes.append(f"hint: {steps}; a smaller training.batch_size or more training.epochs may learn more")
    return notes
