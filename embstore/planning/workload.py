"""What is to be trained, and what it needs in the memory of a rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

from embstore.errors import ConfigError, nearest
from embstore.planning.skew import expected_unique

DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# Numbers of float32 state: per row, per weight.
STATE_NUMBERS = {"rowwise_adagrad": (1, 0), "adagrad": (0, 1), "adam": (0, 2), "sgd": (0, 0)}

ID_BYTES = 8
WIRE_BYTES = 4  # vectors and gradients travel as float32, whatever the table's dtype
DENSE_BYTES = 20  # per parameter: weight, gradient, DDP's bucket, Adam's two moments
BATCHES_IN_FLIGHT = 2  # ids of the next batch travel while this one is computed


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be trained.

    Args:
        rows: of the unified table.
        dim: numbers per row; TBE takes multiples of 4.
        dtype: ``fp32``, ``fp16`` or ``bf16``.
        optimizer: ``rowwise_adagrad``, ``adagrad``, ``adam`` or ``sgd``.
        lookups: rows looked up for a sample: the lookups of each feature, times its values.
        outputs: vectors of a sample after pooling, at most ``lookups``; as many without lists.
        batch: samples per rank and step.
        skew: exponent of Zipf's law over the rows; 0 is uniform.
        dense_parameters: of the network.
        flops: of the network's forward pass for a sample; backward takes twice as many. Without, 2 per parameter.
        l2: the table has a penalty: 8 bytes a row for what it owes.
        tracked: changed rows are remembered for deltas: 1 byte a row.

    Raises:
        ConfigError: a value that can't be.
    """

    rows: int
    dim: int
    dtype: str = "fp32"
    optimizer: str = "rowwise_adagrad"
    lookups: float = 26.0
    outputs: float | None = None
    batch: int = 4096
    skew: float = 0.0
    dense_parameters: int = 0
    flops: float | None = None
    l2: bool = False
    tracked: bool = False

    def __post_init__(self) -> None:
        if self.dim < 4 or self.dim % 4:
            lower, upper = max(self.dim // 4 * 4, 4), max(-(-self.dim // 4) * 4, 4)
            do = f"take {upper}" if lower == upper else f"take {lower} or {upper}"
            raise ConfigError("dim", expected="a multiple of 4, as FBGEMM's TBE needs", found=str(self.dim), do=do)
        for name, least in (("rows", 1), ("batch", 1), ("lookups", 0), ("skew", 0), ("dense_parameters", 0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least) or (name == "lookups" and value == 0):
                expected = "more than 0" if name == "lookups" else f"{least} or more"
                raise ConfigError(name, expected=expected, found=str(value))
        if self.outputs is not None and not 0 <= self.outputs <= self.lookups:
            raise ConfigError("outputs", expected=f"0 to the lookups, {self.lookups:g}", found=str(self.outputs))
        if self.flops is not None and not (math.isfinite(self.flops) and self.flops >= 0):
            raise ConfigError("flops", expected="0 or more", found=str(self.flops))
        for name, known in (("dtype", DTYPE_BYTES), ("optimizer", STATE_NUMBERS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}", do=nearest(getattr(self, name), known))

    @property
    def row_bytes(self) -> int:
        """Of a row's weights."""
        return self.dim * DTYPE_BYTES[self.dtype]

    @property
    def state_bytes(self) -> int:
        """Of a row's optimizer state."""
        per_row, per_weight = STATE_NUMBERS[self.optimizer]
        return 4 * (per_row + per_weight * self.dim)

    @property
    def output_bytes(self) -> float:
        """Of a batch's pooled vectors."""
        outputs = self.lookups if self.outputs is None else self.outputs
        return self.batch * outputs * self.dim * WIRE_BYTES

    @property
    def flops_per_sample(self) -> float:
        """Forward and backward."""
        return 3 * (2 * self.dense_parameters if self.flops is None else self.flops)


def memory(work: Workload, world: int) -> dict[str, float]:
    """Bytes per rank by what takes them; buffers are counted as if none were used twice."""
    rows = -(-work.rows // world)
    L = work.batch * work.lookups
    U = expected_unique(work.rows, L, work.skew)
    return {
        "rows": float(rows * work.row_bytes),
        "optimizer state": float(rows * work.state_bytes),
        "marks": float(rows * (8 * work.l2 + work.tracked)),
        "activations": 2 * work.output_bytes,  # the table's output, and its gradient
        "dense model": float(work.dense_parameters * DENSE_BYTES),
        # ids: of each lookup its row and its place among the different ones; both sides of the exchange
        "exchange buffers": BATCHES_IN_FLIGHT * ID_BYTES * (2 * L + 2 * U) + 2 * 2 * U * work.dim * WIRE_BYTES,
    }
