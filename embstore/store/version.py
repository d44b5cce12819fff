"""A version, opened: its table mapped, its schema parsed, everything it says of itself checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embstore.errors import ConfigError, CorruptVersionError, StoreError
from embstore.schema import Schema
from embstore.store import format
from embstore.store.documents import read_json
from embstore.store.files import FileDigest, open_regular, read_small
from embstore.store.manifest import (
    COMPAT,
    DENSE,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_SMALL_BYTES,
    SCHEMA,
    TOKENS,
    Layout,
    bucket_name,
    check_body,
    check_buckets,
    check_compat,
    check_format,
    check_reader,
    read_files,
)
from embstore.store.mapping import Region
from embstore.store.tensors import open_tensors, read_spans


@dataclass(frozen=True, eq=False)
class VersionTable:
    """The table of a version, mapped: rows are read when they are looked at. It can be published again.

    Args:
        layout: its shape.
        rows: ``[N, D]``, one tensor over all buckets. Writing to it changes this process's view only.
        features: the manifest's.
        tokens: the sorted int64 tokens of each exact feature.
    """

    layout: Layout
    rows: Tensor
    features: list[dict[str, Any]]
    tokens: dict[str, Tensor]

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
        """Of the rows."""
        return self.layout.dtype

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop``, ``[stop - start, dim]``, a view.

        Raises:
            StoreError: a range that is not within the table.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise StoreError("rows", expected=f"a range within 0 to {self.num_rows}", found=f"{start} to {stop}")
        return self.rows[start:stop]

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
        try:
            return self.rows.index_select(0, rows)
        except (IndexError, RuntimeError) as error:
            raise StoreError("rows to gather", expected=f"0 to {self.num_rows - 1}", found=str(error)) from error

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


@dataclass(frozen=True, eq=False, kw_only=True)
class Version:
    """An immutable bundle {table, schema, dense model}; open one with ``Store.open``.

    It stays usable while it is held, whatever happens to its files' names (a gc, a rename).

    Args:
        id: e.g. ``"20261124T034420Z-1f0c2a9b"``.
        digest: sha256 of its manifest, which holds the sha256 of all else.
        manifest: ``docs/store-format.md`` has its keys.
        schema: of the logs it was trained on.
        table: its rows.
        folder: where it lies.
        files: length and sha256 of each file but the manifest.
        dense: the dense model's tensors, mapped; ``dense_state`` copies them.
    """

    id: str
    digest: str
    manifest: dict[str, Any]
    schema: Schema
    table: VersionTable
    folder: Path
    files: dict[str, FileDigest]
    dense: dict[str, Tensor]

    @classmethod
    def open(cls, folder: Path, *, version: str, digest: str) -> Version:
        """Open the version in ``folder``, checking all but the bytes of tensors (``verify`` does those).

        Raises:
            CorruptVersionError: naming the file, what was expected and what was found.
            StoreError: a later embstore wrote it.
        """
        path = folder / MANIFEST
        sizes = format.scan(folder)  # before any file is opened: no folder or file in it is a link
        data = read_small(path, MAX_MANIFEST_BYTES)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise CorruptVersionError(str(path), expected=f"sha256 {digest}, as the log says", found=found)
        manifest = read_json(data, str(path))
        check_format(manifest, str(path))
        if manifest.get("version") != version:
            raise CorruptVersionError(str(path), expected=f"version {version}", found=repr(manifest.get("version")))
        files = read_files(manifest, str(path))
        format.check_files(folder, files, sizes)
        compat = read_json(_read_whole(folder, COMPAT, files), str(folder / COMPAT))
        check_reader(compat, str(folder / COMPAT))
        schema = _parse_schema(_read_whole(folder, SCHEMA, files), folder / SCHEMA)
        layout = check_body(manifest, schema, str(path))
        check_buckets(files, layout, str(path))
        check_compat(compat, format.compat(schema, layout), str(folder / COMPAT))
        tokens, dense = open_tensors(folder / TOKENS), open_tensors(folder / DENSE)
        format.check_tokens(tokens, manifest["features"], str(folder / TOKENS))
        format.check_dense(dense, str(folder / DENSE))
        table = VersionTable(layout, _map_rows(folder, layout), manifest["features"], tokens)
        return cls(
            id=version,
            digest=digest,
            manifest=manifest,
            schema=schema,
            table=table,
            folder=folder,
            files=files,
            dense=dense,
        )

    @property
    def space(self) -> str:
        """Versions of one space have vectors that can be compared."""
        return self.manifest["space"]

    @property
    def parent(self) -> str | None:
        """The version it was trained on from."""
        return self.manifest["parent"]

    def dense_state(self) -> dict[str, Tensor]:
        """The dense model and normalizer, names from ``"normalizer."`` and ``"network."``; a copy to train on."""
        return {name: tensor.clone() for name, tensor in self.dense.items()}

    def verify(self, *, progress: format.Progress | None = None) -> None:
        """Read every file again and compare its length and sha256.

        Raises:
            CorruptVersionError: naming the file, what was expected and what was found.
        """
        found = hashlib.sha256(read_small(self.folder / MANIFEST, MAX_MANIFEST_BYTES)).hexdigest()
        if found != self.digest:
            raise CorruptVersionError(str(self.folder / MANIFEST), expected=f"sha256 {self.digest}", found=found)
        format.verify(self.folder, self.files, progress=progress)


def _read_whole(folder: Path, name: str, files: dict[str, FileDigest]) -> bytes:
    data = read_small(folder / name, MAX_SMALL_BYTES)
    found = hashlib.sha256(data).hexdigest()
    if found != files[name].sha256:
        raise CorruptVersionError(str(folder / name), expected=f"sha256 {files[name].sha256}", found=found)
    return data


def _parse_schema(data: bytes, path: Path) -> Schema:
    try:
        return Schema.from_yaml(data.decode("utf-8"))
    except (ConfigError, UnicodeDecodeError, TypeError) as error:
        raise CorruptVersionError(str(path), expected="a schema", found=str(error)) from error


def _map_rows(folder: Path, layout: Layout) -> Tensor:
    region = Region(layout.rows * layout.row_bytes)
    for number in range(layout.buckets):
        first, last = layout.bucket(number)
        path = folder / bucket_name(number)
        with open_regular(path) as file:
            spans = read_spans(file, path)
            expected = {"rows": (layout.dtype, (last - first, layout.dim))}
            found = {name: (span.dtype, span.shape) for name, span in spans.items()}
            if found != expected:
                raise CorruptVersionError(str(path), expected=f"tensors {expected}", found=f"{found}")
            region.place(first * layout.row_bytes, file.fileno(), spans["rows"].offset, spans["rows"].nbytes)
    return region.bytes().view(layout.dtype).view(layout.rows, layout.dim)
