"""The table of a version: mapped, checked where it is first read, with the changes of deltas laid over it.

    stored    bucket 0 | bucket 1 | ...       files as they lie, mapped side by side
    overlays  rows 3, 17, 4711                changed since, by each delta, in memory

A bucket's bytes are compared with their sha256 when a row of it is first asked for: opening a version takes no longer
for a large table, and yet nothing that is not what was published is ever given.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embstore.errors import CorruptVersionError, StoreError
from embstore.store.files import FileDigest, open_regular, unreadable
from embstore.store.manifest import Layout, bucket_name
from embstore.store.mapping import Region
from embstore.store.overlays import Overlays
from embstore.store.place import TRANSFERS, Files
from embstore.store.quantization import decode, encoding_of
from embstore.store.tensors import read_header
from embstore.threads import usable_cores


class Buckets:
    """The stored rows of a version: ``[N, S]`` over all its files, mapped; those in a bucket, when first read.

    Args:
        source: where the files of the version are.
        layout: of its table.
        files: its manifest's.

    ``complete``: whether all were checked.

    Raises:
        CorruptVersionError: a file is not what its header and the layout say.
    """

    def __init__(self, source: Files, layout: Layout, files: dict[str, FileDigest]) -> None:
        dtype, width = layout.stored
        self._source, self._layout, self._files = source, layout, files
        self._region = Region(layout.rows * layout.row_bytes)
        self._headers: dict[int, bytes] = {}  # of those that are mapped
        self._inodes: dict[int, tuple[int, int]] = {}
        if source.at_hand:  # from now on they are ours, whatever happens to their names
            for number in range(layout.buckets):
                self._map(number)
        self.bytes = self._region.bytes()
        self.rows = self.bytes.view(dtype).view(layout.rows, width)
        self._checked = [False] * layout.buckets
        self.complete = False
        self._lock = threading.Lock()

    def check(self, numbers: Sequence[int], *, progress: Callable[[int], object] | None = None) -> None:
        """Compare these buckets with their sha256, those that were not before.

        Raises:
            CorruptVersionError: one differs.
        """
        if self.complete or all(self._checked[number] for number in numbers):
            return
        with self._lock:
            left = [number for number in numbers if not self._checked[number]]
            at_once = usable_cores() if self._source.at_hand else TRANSFERS
            with ThreadPoolExecutor(min(len(left), at_once) or 1) as pool:
                for number in pool.map(self._check, left):
                    self._checked[number] = True
                    if progress:
                        progress(number)
        self.complete = all(self._checked)

    def _check(self, number: int) -> int:
        if number not in self._headers:
            self._map(number)
            if not self._source.at_hand:  # compared as it was fetched
                return number
        name = bucket_name(number)
        expected, found = self._files[name].sha256, self._hash(number)
        if found != expected:
            raise CorruptVersionError(self._source.where(name), expected=f"sha256 {expected}", found=found)
        return number

    def _hash(self, number: int) -> str:
        """Of the file, read: of one that was cut short or can't be read, mapped memory would end the process."""
        path = self._source.folder / bucket_name(number)
        try:
            with open_regular(path) as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) == self._inodes[number]:
                    return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error) from error
        except CorruptVersionError:  # its name is gone, the file is not
            pass
        first, last = self._layout.bucket(number)
        digest = hashlib.sha256(self._headers[number])
        digest.update(self.bytes[first * self._layout.row_bytes : last * self._layout.row_bytes].numpy().data)
        return digest.hexdigest()

    def _map(self, number: int) -> None:
        layout, name = self._layout, bucket_name(number)
        first, last = layout.bucket(number)
        dtype, width = layout.stored
        path = self._source.fetch(name, self._files[name])
        with open_regular(path) as file:
            header, spans = read_header(file, path)
            expected = {"rows": (dtype, (last - first, width))}
            found = {name: (span.dtype, span.shape) for name, span in spans.items()}
            if found != expected:
                raise CorruptVersionError(str(path), expected=f"tensors {expected}", found=f"{found}")
            span = spans["rows"]
            self._region.place(first * layout.row_bytes, file.fileno(), span.offset, span.nbytes)
            status = os.fstat(file.fileno())
        self._headers[number], self._inodes[number] = header, (status.st_dev, status.st_ino)

    def again(self) -> Buckets:
        """The same rows in memory of their own, to be written to; not checked yet.

        Raises:
            CorruptVersionError: the files are gone.
        """
        return Buckets(self._source, self._layout, self._files)


@dataclass(frozen=True, eq=False)
class VersionTable:
    """The table of a version: rows are read, and checked, when they are asked for. It can be published again.

    Args:
        layout: its shape.
        features: the manifest's.
        tokens: the sorted int64 tokens of each exact feature.
        buckets: the stored rows.
        overlays: rows changed since, by each delta, oldest first.

    Every method that reads rows raises ``CorruptVersionError`` when they are not what was published.
    """

    layout: Layout
    features: list[dict[str, Any]]
    tokens: dict[str, Tensor]
    buckets: Buckets
    overlays: Overlays

    @property
    def dim(self) -> int:
        """D: numbers per row."""
        return self.layout.dim

    @property
    def num_rows(self) -> int:
        """N: rows, exact blocks included."""
        return self.layout.rows

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows as they are read."""
        return self.layout.dtype

    @property
    def encoding(self) -> str:
        """How they are stored: the dtype's name, or ``int8`` or ``int4``."""
        return self.layout.encoding

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``, ``[stop - start, dim]``: a view of the file if it holds them as they are read.

        Not to be written to: it is what every other reader of this version in the process sees (``own_rows``).

        Raises:
            StoreError: a range that is not within the table.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise StoreError("rows", expected=f"a range within 0 to {self.num_rows}", found=f"{start} to {stop}")
        size = self.layout.bucket_rows
        self.buckets.check(range(start // size, -(-stop // size) if stop > start else start // size))
        rows_ND = decode(self.buckets.rows[start:stop], self.encoding, self.dim)
        if self.overlays:
            rows_ND = rows_ND.clone()
        for part in self.overlays.within(start, stop):
            part.put(self.overlays[part.delta].rows_RD, rows_ND)
        return rows_ND

    def own_rows(self) -> Tensor:
        """All rows, ``[N, dim]``, to be written to: mapped anew if files hold them as they are read, else a copy."""
        if self.overlays or self.encoding != encoding_of(self.dtype):
            return self.read_rows(0, self.num_rows)
        try:
            own = self.buckets.again()
        except CorruptVersionError:  # the files have gone; what is mapped has not
            return self.read_rows(0, self.num_rows).clone()
        own.check(range(self.layout.buckets))
        return own.rows

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of these numbers.

        Args:
            rows: int64 ``[N]``; may repeat.

        Returns:
            ``[N, dim]`` in the table's dtype, a copy.

        Raises:
            StoreError: not int64 ``[N]``, or a number outside the table.
        """
        if rows.dtype != torch.int64 or rows.dim() != 1:
            raise StoreError("rows to gather", expected="int64 [N]", found=f"{rows.dtype} {list(rows.shape)}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.num_rows:
            found = f"{int(rows.min())} to {int(rows.max())}"
            raise StoreError("rows to gather", expected=f"0 to {self.num_rows - 1}", found=found)
        if not self.overlays:
            return self.stored(rows)
        changed = self.overlays.find(rows)
        left = rows[~changed.hit_N]
        if len(left):  # in place of changed rows one of these is read: buckets of changed rows alone are not
            rows_ND = self.stored(rows.masked_fill(changed.hit_N, int(left[0])))
        else:
            rows_ND = torch.empty(len(rows), self.dim, dtype=self.dtype)
        self.overlays.put(changed, rows_ND)
        return rows_ND

    def stored(self, rows: Tensor) -> Tensor:
        """Rows as they lie below all deltas, a copy.

        Args:
            rows: as ``gather``'s, which are not looked at.
        """
        if not self.buckets.complete:
            asked = torch.zeros(self.layout.buckets, dtype=torch.bool)
            asked[rows // self.layout.bucket_rows] = True
            self.buckets.check(asked.nonzero().flatten().tolist())
        return decode(self.buckets.rows.index_select(0, rows), self.encoding, self.dim)

    def describe(self) -> dict[str, Any]:
        """As the table that was published said."""
        return {
            "hash_spec": self.layout.hash_spec,
            "seed": self.layout.seed,
            "hashed_rows": self.layout.hashed_rows,
            "num_tables": self.layout.num_tables,
            "features": self.features,
        }

    def exact_tokens(self) -> dict[str, Tensor]:
        """Sorted int64 tokens of each exact feature."""
        return dict(self.tokens)
