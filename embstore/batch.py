"""A batch of log rows as tensors: feature tokens, dense values, labels.

``FeatureTokens`` is the table's input. Values lie feature by feature; only list features carry offsets:

    names    ("user", "genres")           3 rows
    values   [u0 u1 u2 | a b c d]         user has one token a row; genres has lists [a b], [], [c d]
    starts   (0, 3, 7)
    offsets  {"genres": [0 2 2 4]}

Shape suffixes: B rows, N tokens, D dense columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from embstore.errors import DataError, SchemaError, nearest

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor

    from embstore.schema import Feature


@dataclass(frozen=True)
class FeatureTokens:
    """The tokens of several features for ``rows`` rows.

    Args:
        names: features, in order.
        values_N: int64, the bits of uint64 tokens (``embstore.tokens``), feature by feature.
        starts: where each feature's tokens start in ``values_N``, and the end: ``len(names) + 1`` numbers.
        offsets: for list features only, int64 ``[rows + 1]`` from 0 within the feature.
        rows: B.
    """

    names: tuple[str, ...]
    values_N: Tensor
    starts: tuple[int, ...]
    offsets: Mapping[str, Tensor]
    rows: int

    @classmethod
    def concatenate(cls, columns: Mapping[str, tuple[Tensor, Tensor | None]], rows: int) -> FeatureTokens:
        """From ``{feature: (values, offsets or None)}``, checked.

        Raises:
            DataError: values or offsets of another dtype, or of lengths that don't fit ``rows``.
        """
        for name, (values, offsets) in columns.items():
            _check(name, values, offsets, rows)
        return cls._join(columns, rows)

    @classmethod
    def _join(cls, columns: Mapping[str, tuple[Tensor, Tensor | None]], rows: int) -> FeatureTokens:
        starts = [0]
        for values, _ in columns.values():
            starts.append(starts[-1] + len(values))
        parts = [values for values, _ in columns.values()]
        return cls(
            names=tuple(columns),
            values_N=torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64),
            starts=tuple(starts),
            offsets={name: offsets for name, (_, offsets) in columns.items() if offsets is not None},
            rows=rows,
        )

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any], features: Sequence[Feature] | None = None) -> FeatureTokens:
        """From raw values, a column for each name: what ``UnifiedEmbedding.lookup`` would find for the same values.

        Args:
            columns: ``{column: values}``, Python lists or Arrow arrays of one length, as a log would hold them:
                integers, booleans, text, or lists of these; ``None`` is a missing value.
            features: e.g. ``table.features``, for their columns, transforms and lengths; when not given, each column
                is a feature of its own name.

        Raises:
            SchemaError: a feature's column is missing, or its values have a type that is not categorical.
            DataError: columns of different lengths.

        >>> tokens = FeatureTokens.from_columns({"user": ["ann", "bob"], "tags": [["a"], ["b", "c"]]})
        >>> tokens.names, tokens.rows, tokens.starts, tokens.offsets
        (('user', 'tags'), 2, (0, 2, 5), {'tags': tensor([0, 1, 3])})
        """
        from embstore.encoding import encode_columns  # which itself makes batches

        return encode_columns(columns, features)

    @classmethod
    def from_kjt(cls, kjt: KeyedJaggedTensor) -> FeatureTokens:
        """From a torchrec ``KeyedJaggedTensor`` whose values are tokens (int64 bits).

        Raises:
            SchemaError: values of another dtype, or weighted.
            DataError: lengths that are not those of the values.
        """
        if kjt.values().dtype != torch.int64 or kjt.weights_or_none() is not None:
            raise SchemaError(
                "KeyedJaggedTensor",
                expected="int64 tokens without weights",
                found=f"{kjt.values().dtype}" + (" with weights" if kjt.weights_or_none() is not None else ""),
            )
        names, rows = tuple(kjt.keys()), kjt.stride()
        starts = tuple(kjt.offset_per_key())
        kjt_offsets = kjt.offsets().to(torch.int64)
        if int(kjt_offsets[-1]) != len(kjt.values()) or bool((kjt_offsets.diff() < 0).any()):
            raise DataError(
                "KeyedJaggedTensor",
                expected=f"lengths that sum to {len(kjt.values())} values",
                found=str(int(kjt_offsets[-1])),
            )
        offsets = {}
        for i, name in enumerate(names):
            bounds = kjt_offsets[i * rows : (i + 1) * rows + 1]
            if starts[i + 1] - starts[i] != rows or bool((bounds.diff() != 1).any()):
                offsets[name] = bounds - starts[i]
        return cls(names=names, values_N=kjt.values(), starts=starts, offsets=offsets, rows=rows)

    def to_kjt(self) -> KeyedJaggedTensor:
        """The same tokens as a torchrec ``KeyedJaggedTensor`` with int64 lengths."""
        from torchrec import KeyedJaggedTensor

        ones = torch.ones(self.rows, dtype=torch.int64, device=self.values_N.device)
        lengths = [self.offsets[name].diff() if name in self.offsets else ones for name in self.names]
        return KeyedJaggedTensor(keys=list(self.names), values=self.values_N, lengths=torch.cat(lengths))

    def feature(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Tokens and, for a list feature, offsets ``[rows + 1]``.

        Raises:
            SchemaError: no such feature.
        """
        if name not in self.names:
            raise SchemaError(f"no feature {name!r} in the batch", do=nearest(name, self.names))
        i = self.names.index(name)
        return self.values_N[self.starts[i] : self.starts[i + 1]], self.offsets.get(name)

    def select(self, names: tuple[str, ...]) -> FeatureTokens:
        """These features only, in this order; itself when that is what it holds."""
        if names == self.names:
            return self
        return FeatureTokens._join({name: self.feature(name) for name in names}, self.rows)

    def slice(self, start: int, stop: int) -> FeatureTokens:
        """Rows ``start`` to ``stop``."""
        columns: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name in self.names:
            values, offsets = self.feature(name)
            if offsets is None:
                columns[name] = values[start:stop], None
            else:
                bounds = offsets[start : stop + 1]
                columns[name] = values[int(bounds[0]) : int(bounds[-1])], bounds - bounds[0]
        return FeatureTokens._join(columns, stop - start)

    def to(self, device: torch.device | str) -> FeatureTokens:
        """The same on another device; itself when already there."""
        if self.values_N.device == torch.device(device):
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def record_stream(self, stream: torch.Stream) -> None:
        """As ``Tensor.record_stream``: the stream uses it, too."""
        self._each(lambda tensor: _recorded(tensor, stream))

    def _each(self, change: Callable[[Tensor], Tensor]) -> FeatureTokens:
        offsets = {name: change(bounds) for name, bounds in self.offsets.items()}
        return replace(self, values_N=change(self.values_N), offsets=offsets)


@dataclass(frozen=True)
class Batch:
    """Rows of a log, ready for a model.

    Args:
        tokens: the features.
        dense_BD: float32 ``[B, D]``, NaN where missing.
        label_B: float32 0/1, or ``None`` for logs without a label.
        weight_B: float32 sample weights, or ``None``.
        group_B: int64 group tokens for GAUC, or ``None``.
        cursor: where reading goes on after this batch (``embstore.logs.Cursor``), or ``None``.
        whole: rows of the batch of which these are one rank's part, or ``None`` when they are all.
        asked: how far its lookup has come (``UnifiedEmbedding.prepare``), or ``None``.
    """

    tokens: FeatureTokens
    dense_BD: Tensor
    label_B: Tensor | None = None
    weight_B: Tensor | None = None
    group_B: Tensor | None = None
    cursor: Any = field(default=None, compare=False)
    whole: int | None = None
    asked: Any = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return self.tokens.rows

    @property
    def step_rows(self) -> int:
        """Rows of all ranks together."""
        return len(self) if self.whole is None else self.whole

    def slice(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop``; the cursor is dropped."""
        return Batch(
            tokens=self.tokens.slice(start, stop),
            dense_BD=self.dense_BD[start:stop],
            label_B=_cut(self.label_B, start, stop),
            weight_B=_cut(self.weight_B, start, stop),
            group_B=_cut(self.group_B, start, stop),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device; groups stay where they are (metrics run on the host)."""
        if self.dense_BD.device == torch.device(device):
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in pinned memory, which a GPU copies from while the host goes on; groups stay where they are."""
        return self._each(Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """As ``Tensor.record_stream``: the stream uses it, too."""
        self._each(lambda tensor: _recorded(tensor, stream))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            tokens=self.tokens._each(change),
            dense_BD=change(self.dense_BD),
            label_B=None if self.label_B is None else change(self.label_B),
            weight_B=None if self.weight_B is None else change(self.weight_B),
        )


def _recorded(tensor: Tensor, stream: torch.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor


def _cut(values: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if values is None else values[start:stop]


def _check(name: str, values: Tensor, offsets: Tensor | None, rows: int) -> None:
    """Kernels read where offsets point without looking: what users hand in is checked here."""
    if values.dtype != torch.int64 or values.dim() != 1:
        raise DataError(f"tokens of {name!r}", expected="int64 [N]", found=f"{values.dtype} {list(values.shape)}")
    if offsets is None:
        if len(values) != rows:
            raise DataError(f"tokens of {name!r}", expected=f"one a row, {rows}", found=str(len(values)))
        return
    if offsets.dtype != torch.int64 or offsets.shape != (rows + 1,):
        found = f"{offsets.dtype} {list(offsets.shape)}"
        raise DataError(f"offsets of {name!r}", expected=f"int64 [{rows + 1}]", found=found)
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(values) or bool((offsets.diff() < 0).any()):
        raise DataError(f"offsets of {name!r}", expected=f"ascending from 0 to {len(values)}", found="others")
