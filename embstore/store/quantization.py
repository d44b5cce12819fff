"""How a table's rows lie in files: as numbers of a dtype, or quantised row by row.

Quantised rows are FBGEMM's, as torch ships them: each row is cut into 2^bits equal steps from its smallest to its
largest number, and carries its own step and smallest number behind the codes.

    int8    [ dim bytes           | step float32 | smallest float32 ]
    int4    [ dim/2 bytes, two a byte | step float16 | smallest float16 ]

Source: Guan, Malevich, Yang et al., "Post-training 4-bit quantization on embedding tables", 2019 (row-wise, ASYM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from embstore.errors import StoreError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SCALES = {"int8": 8, "int4": 4}  # bytes of a row's step and smallest number
ENCODINGS = (*DTYPES, *_SCALES)


def encoding_of(dtype: torch.dtype) -> str:
    """The encoding that keeps a dtype as it is.

    Raises:
        StoreError: tables have no such dtype.
    """
    if dtype not in _NAMES:
        raise StoreError("table dtype", expected=", ".join(DTYPES), found=str(dtype))
    return _NAMES[dtype]


def read_dtype(encoding: str) -> torch.dtype:
    """What rows are read as."""
    return DTYPES.get(encoding, torch.float32)


def stored_dtype(encoding: str) -> torch.dtype:
    """What rows are in files: bytes where they are quantised."""
    return DTYPES.get(encoding, torch.uint8)


def stored_width(encoding: str, dim: int) -> int:
    """Numbers, or bytes, of a row in a file."""
    return dim if encoding in DTYPES else math.ceil(dim * int(encoding[3:]) / 8) + _SCALES[encoding]


def check_dim(encoding: str, dim: int) -> None:
    """Raises:
    StoreError: rows of this dim can't be encoded so.
    """
    if encoding == "int4" and dim % 2:
        raise StoreError("table quantised to int4", expected="an even dim", found=str(dim), do="take int8")


def encode(rows_ND: Tensor, encoding: str) -> Tensor:
    """Rows as they are stored, ``[N, stored_width]``.

    Raises:
        StoreError: numbers that are not finite can't be quantised.
    """
    if encoding in DTYPES:
        return rows_ND.to(DTYPES[encoding])
    wide_ND = rows_ND.detach().to("cpu", torch.float32).contiguous()
    if not bool(torch.isfinite(wide_ND).all()):
        raise StoreError(f"table quantised to {encoding}", expected="finite numbers", found="others")
    if not len(wide_ND):
        return torch.empty(0, stored_width(encoding, wide_ND.shape[1]), dtype=torch.uint8)
    if encoding == "int8":
        return torch.ops.quantized.embedding_bag_byte_prepack(wide_ND)
    return torch.ops.quantized.embedding_bag_4bit_prepack(wide_ND)


def decode(stored_NS: Tensor, encoding: str, dim: int) -> Tensor:
    """What ``encode`` was given: itself for a dtype's rows, float32 within half a step for quantised ones."""
    if encoding in DTYPES:
        return stored_NS
    if not len(stored_NS):
        return torch.empty(0, dim)
    if encoding == "int8":
        return torch.ops.quantized.embedding_bag_byte_unpack(stored_NS.contiguous())
    return torch.ops.quantized.embedding_bag_4bit_unpack(stored_NS.contiguous())


@dataclass
class Loss:
    """What storing rows has cost, summed over rows."""

    largest: float = 0.0
    squares: float = 0.0
    of: float = 0.0

    @classmethod
    def of_rows(cls, rows_ND: Tensor, read_ND: Tensor) -> Loss:
        """Of rows as they were, and as they will be read."""
        exact_ND = rows_ND.detach().double().cpu()
        change_ND = read_ND.double() - exact_ND
        largest = float(change_ND.abs().max()) if change_ND.numel() else 0.0
        return cls(largest=largest, squares=float(change_ND.square().sum()), of=float(exact_ND.square().sum()))

    def add(self, other: Loss) -> None:
        """That of other rows."""
        self.largest = max(self.largest, other.largest)
        self.squares += other.squares
        self.of += other.of

    def report(self) -> dict[str, float]:
        """``largest``: of any number. ``relative``: root of the squared changes' sum over that of the numbers."""
        return {"largest": self.largest, "relative": math.sqrt(self.squares / self.of) if self.of else 0.0}
