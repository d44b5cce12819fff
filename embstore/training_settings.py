"""How to train: what ``embstore.training`` does is a function of these, the log and the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from embstore.errors import ConfigError

SCHEDULES = ("constant", "linear", "plateau")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train.

    Args:
        batch_size: rows per step.
        epochs: passes over the log, at most.
        learning_rate: of Adam on the network; the table has its own (``TableOptimizer``).
        network_l2: Adam's ``weight_decay`` on the network.
        schedule: of both learning rates: ``constant``; ``linear`` down to 0 at the last step; ``plateau``: times 0.1
            after each evaluation that wasn't better.
        evaluate_every: steps between evaluations; ``None`` is once per epoch.
        metric: evaluations are compared by this one.
        patience: stop after this many evaluations in a row without a better one; ``None`` never stops early.
        checkpoint_minutes: a checkpoint is taken when so many minutes have passed since the last, besides the one at
            each evaluation; ``None`` for none. It is taken later where saving would take more than a tenth of the time.
        checkpoint_every: steps between checkpoints, besides those. When checkpoints are taken changes no result, and a
            run may go on with other values of these two.
        shuffle_window: rows shuffled together; 0 trains in the log's order.
        evaluation_batch_size: rows per step of an evaluation.
        seed: of shuffling, dropout and the network's first weights.
    """

    batch_size: int = 4096
    epochs: int = 1
    learning_rate: float = 1e-3
    network_l2: float = 0.0
    schedule: Literal["constant", "linear", "plateau"] = "constant"
    evaluate_every: int | None = None
    metric: Literal["auc", "gauc", "logloss", "normalized_entropy"] = "auc"
    patience: int | None = None
    checkpoint_minutes: float | None = 5.0
    checkpoint_every: int | None = None
    shuffle_window: int = 1_000_000
    evaluation_batch_size: int = 16_384
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "evaluation_batch_size", "evaluate_every", "patience", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"training.{name}", expected="1 or more", found=str(value))
        for name in ("learning_rate", "network_l2", "shuffle_window", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"training.{name}", expected="0 or more", found=str(getattr(self, name)))
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            found = str(self.checkpoint_minutes)
            raise ConfigError("training.checkpoint_minutes", expected="more than 0, or null", found=found)
        if self.seed >= 2**63:
            raise ConfigError("training.seed", expected="less than 2^63", found=str(self.seed))
        if self.schedule not in SCHEDULES:
            raise ConfigError("training.schedule", expected=" or ".join(SCHEDULES), found=repr(self.schedule))
