"""The judge: the table in float64 and plain Python, one row, one value and one step at a time; and what it judges.

The contract suite, the tests of single kernels and ``benchmarks.judging`` share the features and their known tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from embstore import hashing
from embstore.batch import FeatureTokens
from embstore.kernels import TableOptimizer
from embstore.schema import Feature

Column = list[list[int]]  # a feature's tokens (uint64 values) in each row of the batch
Batch = dict[str, Column]

OPTIMIZERS = ("rowwise_adagrad", "adagrad", "adam", "sgd")
RATES = {"rowwise_adagrad": 0.1, "adagrad": 0.1, "adam": 0.01, "sgd": 0.5}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FEATURES = [
    Feature(name="user", lookups=2),
    Feature(name="tags", lookups=2),
    Feature(name="genres", pooling="mean"),
    Feature(name="hour", exact=True, lookups=2),
    Feature(name="colours", exact=True, pooling="mean"),
    Feature(name="nothing", exact=True),
]
LISTS = ("tags", "genres", "colours")
EXACT: dict[str, list[int]] = {"hour": [3, 2**63 + 5, 7], "colours": [1, 2**64 - 1], "nothing": []}


def int64(tokens: list[int]) -> torch.Tensor:
    """The bits of uint64 tokens."""
    return torch.from_numpy(np.array(tokens, dtype=np.uint64).view(np.int64))


def exact_tokens() -> dict[str, torch.Tensor]:
    """The known tokens as a table takes them."""
    return {name: int64(tokens) for name, tokens in EXACT.items()}


def feature_tokens(batch: Batch) -> FeatureTokens:
    """A batch as a table takes it."""
    columns: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for name, lists in batch.items():
        offsets = torch.tensor(np.cumsum([0, *map(len, lists)]), dtype=torch.int64) if name in LISTS else None
        columns[name] = int64([token for one in lists for token in one]), offsets
    return FeatureTokens.concatenate(columns, len(batch["user"]))


@dataclass
class Judge:
    """A table and its training, from first principles."""

    features: list[Feature]
    num_rows: int
    num_tables: int
    seed: int
    exact: dict[str, list[int]]
    optimizer: TableOptimizer
    weight: np.ndarray
    state: dict[str, np.ndarray] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        shape = self.weight.shape
        self.weight = self.weight.astype(np.float64)
        self.state = {name: np.zeros(shape) for name in ("sum", "exp_avg", "exp_avg_sq")}

    def rows(self, feature: Feature, lookup: int, token: int) -> int:
        """The row of one token, by the words of the hash spec."""
        salt = hashing.salt(feature.name, lookup, self.seed)
        if not feature.exact:
            size = self.num_rows // self.num_tables
            table = _mulhi(_mix(salt), self.num_tables)
            return table * size + _mulhi(_mix(token ^ salt), size)
        base = self.num_rows
        for other in self.features:
            if other.name == feature.name:
                break
            if other.exact:
                base += other.lookups * (len(self.exact[other.name]) + 1)
        known = sorted(self.exact[feature.name], key=lambda t: t - 2**64 if t >= 2**63 else t)
        rank = known.index(token) if token in known else len(known)
        return base + lookup * (len(known) + 1) + rank

    def forward(self, batch: Batch) -> np.ndarray:
        """The output ``[B, W]``."""
        out = []
        for i in range(len(next(iter(batch.values())))):
            blocks = []
            for feature in self.features:
                for lookup in range(feature.lookups):
                    block = np.zeros(self.weight.shape[1])
                    tokens = batch[feature.name][i]
                    for token in tokens:
                        block += self.weight[self.rows(feature, lookup, token)] / _divisor(feature, tokens)
                    blocks.append(block)
            out.append(np.concatenate(blocks))
        return np.array(out)

    def train(self, batch: Batch, grad: np.ndarray) -> None:
        """One step: coalesce, update each hit row once, then the penalty on every row."""
        dim = self.weight.shape[1]
        grads: dict[int, np.ndarray] = {}
        for i in range(len(grad)):
            column = 0
            for feature in self.features:
                for lookup in range(feature.lookups):
                    part = grad[i, column : column + dim].astype(np.float64)
                    column += dim
                    tokens = batch[feature.name][i]
                    for token in tokens:
                        row = self.rows(feature, lookup, token)
                        grads[row] = grads.get(row, np.zeros(dim)) + part / _divisor(feature, tokens)
        self.step += 1
        for row, g in grads.items():
            self._update(row, g)
        if self.optimizer.l2:
            self._decay()

    def _update(self, row: int, g: np.ndarray) -> None:
        o, lr, w = self.optimizer, self.optimizer.learning_rate, self.weight
        if o.name == "sgd":
            w[row] -= lr * g
        elif o.name == "adam":
            m, v = self.state["exp_avg"], self.state["exp_avg_sq"]
            m[row] = o.beta1 * m[row] + (1 - o.beta1) * g
            v[row] = o.beta2 * v[row] + (1 - o.beta2) * g * g
            m_hat, v_hat = m[row] / (1 - o.beta1**self.step), v[row] / (1 - o.beta2**self.step)
            w[row] -= lr * m_hat / (np.sqrt(v_hat) + o.eps)
        else:
            self.state["sum"][row] += np.mean(g * g) if o.name == "rowwise_adagrad" else g * g
            w[row] -= lr * g / (np.sqrt(self.state["sum"][row]) + o.eps)

    def _decay(self) -> None:
        o = self.optimizer
        for row in range(len(self.weight)):
            rate = o.learning_rate
            if o.name in ("adagrad", "rowwise_adagrad"):
                rate = rate / (np.sqrt(self.state["sum"][row]) + o.eps)
            self.weight[row] *= np.exp(-o.l2 * rate)


def _divisor(feature: Feature, tokens: list[int]) -> int:
    return len(tokens) if feature.pooling == "mean" else 1


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def _mulhi(a: int, b: int) -> int:
    return (a * b) >> 64
