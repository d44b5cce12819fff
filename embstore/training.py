"""The training loop: batches in, a trained model and its measurements out, resumable at any moment.

A run is a function of (log, schema, settings, seed). Random numbers of a step come from ``(seed, step)``, the order
of the log from ``(seed, epoch)``, so a checkpoint needs no generator state, and a run that was killed and resumed
ends bit-equal to one that was not (on CPU).

    run/
      metrics.jsonl      one line per evaluation, and per warning
      tensorboard/       the same as curves, when tensorboard is installed
      checkpoints/       see ``embstore.checkpoints``
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge
from torch.nn.functional import binary_cross_entropy_with_logits

from embstore.batch import Batch
from embstore.checkpoints import Checkpoints, Loaded, adam_tensors, load_adam, load_rows
from embstore.ctr import CtrModel
from embstore.distributed import ALONE, Group
from embstore.errors import CheckpointError, ConfigError, DataError, GroupError, Interrupted, LogError
from embstore.evaluation import evaluate
from embstore.interruption import Interruption
from embstore.logs import Cursor, ParquetLog
from embstore.lookahead import look_ahead
from embstore.metrics import finite
from embstore.progress import Progress, no_progress
from embstore.sharding.draws import whole_batch_draws
from embstore.training_settings import TrainingSettings


@dataclass
class _Progress:
    """Where a run stands; every field is part of its checkpoints."""

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    factor: float = 1.0
    best: float | None = None
    best_name: str | None = None
    worse: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    log_bytes: int = 0
    finished: bool = False
    negatives: bool = False  # whether a row of that label was seen
    positives: bool = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> _Progress:
        return cls(**{**data, "cursor": Cursor(**data["cursor"])})


class Trainer:
    """Trains a ``CtrModel``.

    Args:
        model: what to train, in place.
        settings: how.
        folder: of the run.
        identity: digest of everything else that decides the result (schema, table, model); a checkpoint of another
            identity is refused.
        progress: how progress is shown; nothing by default.
        begin: called when a run starts, not when it goes on from a checkpoint.
        after_step: called after each step with the number of its rows.
        group: processes that train the model together, each with its own shard of the table and its part of every
            batch; the model's table, normalizer and batch norms know of it. Rank 0 shows, and writes files.
        interruption: says when to stop, besides Ctrl-C and SIGTERM.

    Raises:
        CheckpointError: the folder holds another run.
    """

    def __init__(
        self,
        model: CtrModel,
        settings: TrainingSettings,
        folder: str | Path,
        *,
        identity: str = "",
        progress: Progress = no_progress,
        begin: Callable[[], object] = lambda: None,
        after_step: Callable[[int], object] = lambda rows: None,
        group: Group = ALONE,
        interruption: Interruption | None = None,
    ) -> None:
        self.model, self.settings, self.folder, self.group = model, settings, Path(folder), group
        self.show = progress if group.first else no_progress
        self._begin, self._after_step = begin, after_step
        self.device = model.table.weight.device
        self.checkpoints = Checkpoints(self.folder / "checkpoints", group)
        self.optimizer = torch.optim.Adam(
            [*model.normalizer.parameters(), *model.network.parameters()],
            lr=settings.learning_rate,
            weight_decay=settings.network_l2,
            fused=True,
        )
        deciding = asdict(replace(settings, checkpoint_every=None))  # when checkpoints are taken decides nothing
        del deciding["checkpoint_minutes"]
        self.identity = hashlib.sha256(f"{identity}\n{json.dumps(deciding, sort_keys=True)}".encode()).hexdigest()
        self.at, self.restored = _Progress(), ""  # the checkpoint that was loaded last
        self._save_due = math.inf
        self._interruption = interruption or Interruption()
        self._resumed, self._unwritten = False, list[str]()  # warnings wait until it is known where metrics go on

    def fit(self, train: ParquetLog, valid: ParquetLog | None = None) -> dict[str, float]:
        """Train until the epochs are over or patience is, then put the best evaluated model back.

        Goes on from the folder's last checkpoint when there is one. Ctrl-C saves a checkpoint first.

        Returns:
            The metrics on ``valid`` of the model as it is left (empty without ``valid``).

        Raises:
            Interrupted: Ctrl-C; calling ``fit`` again goes on.
            LogError: the log changed since the checkpoint.
            ConfigError: the schema has no label, or no group though ``metric`` is ``gauc``.
            DataError: a row that can't be used, or a loss or metric that is not a number.
            GroupError: too few rows for so many ranks.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        settings, at = self.settings, self.at
        if at.cursor.fingerprint not in ("", train.fingerprint):
            raise LogError(
                f"the training log is not the one {self.folder} learnt from",
                expected=f"fingerprint {at.cursor.fingerprint}",
                found=train.fingerprint,
                do="restore the log, or start afresh in another folder",
            )
        if valid is not None and settings.metric == "gauc" and valid.schema.group is None:
            raise ConfigError(
                "training.metric: gauc", expected="a schema with a group", found="none", do="add group: <column>"
            )
        if min(train.rows, settings.batch_size) < self.group.world:
            raise GroupError(
                f"batches of {min(train.rows, settings.batch_size):,} rows",
                expected=f"a row for each of {self.group.world:,} ranks",
                found="fewer",
                do="take fewer ranks, or larger batches (training.batch_size) of a longer log",
            )
        per_epoch = train.batch_count(settings.batch_size)
        total = per_epoch * settings.epochs
        if at.finished:
            self.show.say(f"already finished, at step {at.step:,}; --fresh (or another folder) trains it again")
        elif at.step:
            self.show.say(f"going on from step {at.step:,} of {total:,}")
        every = settings.evaluate_every or per_epoch
        batches = train.batches(
            settings.batch_size,
            cursor=at.cursor,
            epochs=settings.epochs,
            shuffle_window=settings.shuffle_window,
            seed=settings.seed,
            rank=self.group.rank,
            world_size=self.group.world,
        )
        alone = self.group.alone and self.device.type == "cpu"  # then there is nothing to wait for
        ready = batches if alone else look_ahead(batches, self.model.table)
        self.model.train()
        with (
            self._interruption.watched(),
            torch.random.fork_rng(devices=_cuda(self.device)),
            self.show("train", train.rows * settings.epochs) as bar,
        ):
            bar.resume(at.cursor.epoch * train.rows + at.cursor.row)
            self._save_due = self._next_save()
            try:
                for batch in () if at.finished else ready:
                    label_B, logits_B = self._step(batch, total)
                    bar.step(batch.step_rows, label_B, logits_B, at.loss_sum / max(at.loss_rows, 1))
                    self._after_step(batch.step_rows)
                    last = at.step == total
                    stop, due = self.group.any(self._interruption.asked(), self._is_save_due())
                    if at.step % every == 0 or last:
                        at.finished = last
                        self._evaluate(valid)
                        self._save()
                    elif stop or due:
                        self._save()
                    if at.finished:
                        break
                    if stop:
                        raise Interrupted(f"stopped at step {at.step:,}; the checkpoint is saved, run again to go on")
            finally:
                batches.close()
                self.show.finish(self.folder)
        self._restore_best()
        self.model.eval()
        return self.evaluate(valid) if valid is not None else {}

    def evaluate(self, log: ParquetLog, *, label: str = "evaluate") -> dict[str, float]:
        """Metrics of the model as it is on a labelled log, streamed and exact (``embstore.metrics``)."""
        return evaluate(
            self.model, log, self.settings.evaluation_batch_size, progress=self.show, label=label, group=self.group
        )

    def restore(self) -> None:
        """Load the folder's run as ``fit`` left it: its best model, or its last when none was evaluated.

        Raises:
            CheckpointError: there is no checkpoint, or it is of another run.
        """
        last = self._last()
        if last is None:
            raise CheckpointError(
                f"{self.folder}", expected="a run with a checkpoint", found="none", do="train it first"
            )
        self._load_last(last)
        self._restore_best()
        self.model.eval()

    def _step(self, batch: Batch, total: int) -> tuple[torch.Tensor, torch.Tensor]:
        at, settings = self.at, self.settings
        if batch.label_B is None:
            raise _no_label()
        factor = max(0.0, 1 - at.step / total) if settings.schedule == "linear" else at.factor
        self.optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
        self.model.table.learning_rate = self.model.table.optimizer.learning_rate * factor
        torch.manual_seed(_step_seed(settings.seed, at.step))
        on_device = batch.to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with whole_batch_draws(batch.whole, self.group):
            logits_B = self.model(on_device)
            loss = _loss(logits_B, on_device)
            torch.autograd.backward(get_gradient_edge(loss))  # loss.backward() would leave the context
        value, positives, negatives = self._reduce(loss, on_device.label_B)
        if not math.isfinite(value):
            raise DataError(
                f"training diverged at step {at.step + 1:,}",
                expected="a finite loss",
                found=str(value),
                do="lower the learning rates, or look for extreme dense values",
            )
        self.optimizer.step()
        at.step += 1
        at.cursor = batch.cursor
        at.loss_sum += value * batch.step_rows
        at.loss_rows += batch.step_rows
        at.positives, at.negatives = at.positives or positives, at.negatives or negatives
        return batch.label_B, logits_B.detach()

    def _reduce(self, loss: torch.Tensor, label_B: torch.Tensor | None) -> tuple[float, bool, bool]:
        """Sum the network's gradients over the ranks; the loss of the whole batch, and which labels it has."""
        assert label_B is not None
        own = [loss.detach(), (label_B == 1).any().to(loss.dtype), (label_B == 0).any().to(loss.dtype)]
        more = torch.stack(own)  # brought to the host at once: a GPU is waited for each time
        if self.group.alone:
            value, positives, negatives = more.tolist()
            return value, bool(positives), bool(negatives)
        grads = []
        for parameter in (of for group in self.optimizer.param_groups for of in group["params"]):
            if parameter.grad is None:  # not used for this rank's rows, maybe for those of others
                parameter.grad = torch.zeros_like(parameter)
            grads.append(parameter.grad)
        *summed, more = self.group.sum(torch.cat([*(grad.flatten() for grad in grads), more])).split(
            [*(grad.numel() for grad in grads), len(more)]
        )
        for grad, found in zip(grads, summed, strict=True):
            grad.copy_(found.view_as(grad))
        value, positives, negatives = more.tolist()
        return value, bool(positives), bool(negatives)

    def _evaluate(self, valid: ParquetLog | None) -> None:
        """Evaluate, write the metrics down, and update best, patience and schedule."""
        at, settings = self.at, self.settings
        record: dict[str, Any] = {
            "step": at.step,
            "epoch": at.cursor.epoch,
            "train_loss": at.loss_sum / max(at.loss_rows, 1),
        }
        at.loss_sum, at.loss_rows = 0.0, 0
        self.model.eval()
        if valid is not None:
            result = self.evaluate(valid)
            record |= {f"valid_{name}": value for name, value in result.items()}
            value = result[settings.metric]
            if not math.isfinite(value):
                raise DataError(
                    f"{settings.metric} on the validation log",
                    expected="rows of both labels",
                    found=f"{result['positives_rate']:.0%} positives",
                    do="give another validation log",
                )
            sign = -1 if settings.metric in ("logloss", "normalized_entropy") else 1
            if at.best is None or sign * value > sign * at.best:
                at.best, at.best_name, at.worse = value, self.checkpoints.name(at.step), 0
            else:
                at.worse += 1
                at.factor *= 0.1 if settings.schedule == "plateau" else 1.0
                at.finished |= settings.patience is not None and at.worse >= settings.patience
        self.model.train()
        record = finite(record)
        self._write(record)
        self.show.record(record, self.folder)

    def warn(self, text: str) -> None:
        """Say what went wrong, and write it down beside the metrics, if that can be done: training goes on."""
        self.show.say(f"warning: {text}")
        self._unwritten.append(text)
        if self._resumed:
            self._write_warnings()

    def _write_warnings(self) -> None:
        with suppress(OSError):
            while self._unwritten:
                self._write({"step": self.at.step, "warning": self._unwritten.pop(0)})

    def _write(self, record: dict[str, Any]) -> None:
        if not self.group.first:
            return
        with open(self.folder / "metrics.jsonl", "ab") as out:
            out.write(json.dumps(record).encode() + b"\n")
            self.at.log_bytes = out.tell()

    def _is_save_due(self) -> bool:
        every = self.settings.checkpoint_every
        return bool(every and self.at.step % every == 0) or monotonic() >= self._save_due

    def _next_save(self, took: float = 0.0) -> float:
        """When a checkpoint is due that follows one which took so many seconds."""
        minutes = self.settings.checkpoint_minutes
        return math.inf if minutes is None else monotonic() + max(60 * minutes, 9 * took)

    def _save(self) -> None:
        at, started = self.at, monotonic()
        state = {"identity": self.identity, "at": asdict(at)}
        dense = self.model.dense_state()
        table = self.model.table
        tensors = {"table": table.state_dict(), "dense": dense, "adam": adam_tensors(self.optimizer)}
        name = self.checkpoints.save(at.step, state, tensors, table.shard)
        self.checkpoints.prune({name, at.best_name or name})
        self._save_due = self._next_save(monotonic() - started)

    def _resume(self) -> None:
        """Go on from the last checkpoint, if any; lines written after it are cut off the metrics."""
        last = self._last()
        if last is None:
            self._begin()
        else:
            self._load_last(last)
        if self.group.first:
            with suppress(FileNotFoundError):
                os.truncate(self.folder / "metrics.jsonl", self.at.log_bytes)
        self._resumed = True
        self._write_warnings()

    def _last(self) -> str | None:
        """The last checkpoint, the same for all ranks: they may not see a new one at the same time."""
        name: str | None = self.group.lead(lambda: next(reversed(self.checkpoints.names()), None))
        return name

    def _load_last(self, name: str) -> None:
        loaded = self._read(name)
        if loaded.state.get("identity") != self.identity:
            raise CheckpointError(
                f"{self.folder} holds another run",
                expected="the settings, schema and model it was started with",
                found="others",
                do="name another folder, or start it afresh",
            )
        self._load(loaded, name)
        self.at = _Progress.from_dict(loaded.state["at"])

    def _restore_best(self) -> None:
        if self.at.best_name is not None and self.at.best_name != self.checkpoints.name(self.at.step):
            self._load(self._read(self.at.best_name), self.at.best_name)

    def _read(self, name: str) -> Loaded:
        table = self.model.table
        return self.checkpoints.load(name, table.num_rows, table.shard)

    def _load(self, loaded: Loaded, name: str) -> None:
        self.restored = name
        origin = f"checkpoint {name}"
        load_rows(self.model.table, loaded.table, origin=origin)
        self.model.load_dense(loaded.tensors["dense"], origin=origin)
        load_adam(self.optimizer, loaded.tensors["adam"])


def _no_label() -> ConfigError:
    return ConfigError("schema", expected="a label", found="none", do="add label: <column> to the schema")


def _loss(logits_B: torch.Tensor, batch: Batch) -> torch.Tensor:
    """This rank's part of the mean over the whole batch."""
    assert batch.label_B is not None
    if batch.whole is None:
        return binary_cross_entropy_with_logits(logits_B, batch.label_B, weight=batch.weight_B)
    summed = binary_cross_entropy_with_logits(logits_B, batch.label_B, weight=batch.weight_B, reduction="sum")
    return summed / batch.whole


def _step_seed(seed: int, step: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
