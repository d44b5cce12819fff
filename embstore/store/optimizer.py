"""What a version's optimizer remembers of the table's rows.

    stored     optimizer/bucket-00000 | bucket-00001 | ...    of the whole version at the chain's end, mapped
    changes    rows 3, 17, 4711                               of each delta since, oldest first

As with the table's rows, a bucket's bytes are compared with their sha256 when a row of it is first asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from embstore.errors import CorruptVersionError
from embstore.store.files import FileDigest
from embstore.store.manifest import Layout, OptimizerInfo, bucket_name
from embstore.store.overlays import Overlays, Part
from embstore.store.place import Files
from embstore.store.tensors import open_tensors
from embstore.threads import usable_cores


class OptimizerBuckets:
    """The optimizer's stored tensors of a whole version, a file for each bucket of rows.

    Args:
        source: where the files of the version are.
        layout: of its table.
        files: its manifest's.
        info: which tensors there are.
    """

    def __init__(self, source: Files, layout: Layout, files: Mapping[str, FileDigest], info: OptimizerInfo) -> None:
        self.layout, self.info = layout, info
        self._source, self._files = source, files
        self._opened: list[dict[str, Tensor] | None] = [None] * layout.buckets
        self._locks = [threading.Lock() for _ in range(layout.buckets)]

    def bucket(self, number: int) -> dict[str, Tensor]:
        """The tensors of one bucket, mapped; the first time, all its bytes are checked.

        Raises:
            CorruptVersionError: it is not what was published.
        """
        with self._locks[number]:
            found = self._opened[number]
            if found is None:
                found = self._opened[number] = self._open(number)
            return found

    def empty(self, rows: int) -> dict[str, Tensor]:
        """Tensors for so many rows, not filled."""
        shapes = self._shapes(rows)
        return {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}

    def _shapes(self, rows: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        tensors = self.info.tensors.items()
        return {name: (dtype, (rows, width) if width else (rows,)) for name, (dtype, width) in tensors}

    def _open(self, number: int) -> dict[str, Tensor]:
        first, last = self.layout.bucket(number)
        name = bucket_name(number, "optimizer")
        tensors = open_tensors(self._source.fetch(name, self._files[name]), sha256=self._files[name].sha256)
        expected = self._shapes(last - first)
        found = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
        if found != expected:
            raise CorruptVersionError(self._source.where(name), expected=f"tensors {expected}", found=f"{found}")
        return tensors


@dataclass(frozen=True)
class OptimizerRows:
    """The optimizer's tensors of a version's table.

    Args:
        buckets: of the whole version at the end of its chain.
        overlays: which rows each delta since has changed.
        changes: of each delta, the tensors' values of these rows.

    Both methods raise ``CorruptVersionError`` when what they read is not what was published.
    """

    buckets: OptimizerBuckets
    overlays: Overlays
    changes: tuple[dict[str, Tensor], ...] = ()

    def gather(self, rows_R: Tensor) -> dict[str, Tensor]:
        """By name, the values of these rows (int64, ascending): ``[R]`` or ``[R, width]``, a copy.

        Read are only the buckets of rows that no delta has changed.
        """
        out, found = self.buckets.empty(len(rows_R)), self.overlays.find(rows_R)
        self._put(found.parts, out)
        left = (~found.hit_N).nonzero().flatten()
        asked, size = rows_R[left], self.buckets.layout.bucket_rows
        numbers, counts = torch.unique_consecutive(asked // size, return_counts=True)
        for number, at, of in zip(
            numbers.tolist(), left.split(counts.tolist()), asked.split(counts.tolist()), strict=True
        ):
            for name, tensor in self.buckets.bucket(number).items():
                out[name][at] = tensor[of - number * size]
        return out

    def whole(self) -> dict[str, Tensor]:
        """By name, the values of all rows, a copy."""
        layout = self.buckets.layout
        out = self.buckets.empty(layout.rows)

        def copy(number: int) -> None:
            first, last = layout.bucket(number)
            for name, tensor in self.buckets.bucket(number).items():
                out[name][first:last] = tensor

        with ThreadPoolExecutor(min(layout.buckets, usable_cores())) as pool:
            list(pool.map(copy, range(layout.buckets)))
        self._put(self.overlays.within(0, layout.rows), out)
        return out

    def _put(self, parts: Iterable[Part], into: dict[str, Tensor]) -> None:
        for part in parts:
            for name, tensor in into.items():
                part.put(self.changes[part.delta][name], tensor)
