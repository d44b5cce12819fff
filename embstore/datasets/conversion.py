"""What all data sets share: finding raw files, dealing rows to splits, writing them.

target/
    train/part-00000.parquet ...    likewise valid/ and test/
    schema.yaml
    dataset.json                    rows of each split, the rule, size and sha256 of each source file
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.errors import DatasetError
from embstore.schema import Schema

SPLITS = ("train", "valid", "test")
GROUP_ROWS = 65_536  # rows of a row group
FILE_ROWS = 64 * GROUP_ROWS  # rows of a file, at most
# What the middle part is called in the wild.
VALID_NAMES = ("valid", "validation", "val", "dev")


@dataclass(frozen=True, kw_only=True)
class Raw:
    """Raw files that were recognised.

    Args:
        files: all that are read.
        schema: of the rows.
        rule: how rows go to the splits, in a sentence.
        rows: gives tables, each with the split it belongs to, of any size, in order.
    """

    files: tuple[Path, ...]
    schema: Schema
    rule: str
    rows: Callable[[], Iterator[tuple[str, pa.Table]]]


@dataclass(frozen=True, kw_only=True)
class Conversion(os.PathLike[str]):
    """A converted data set; stands for its folder wherever a path is taken.

    Args:
        path: the folder.
        schema: as in ``schema.yaml``.
        rows: of each split.
        rule: how rows went to the splits.
    """

    path: Path
    schema: Schema
    rows: Mapping[str, int]
    rule: str

    def __fspath__(self) -> str:
        return str(self.path)

    def split(self, name: str) -> Path:
        """The folder of ``train``, ``valid`` or ``test``."""
        return self.path / name


def write(
    name: str, open_raw: Callable[[], Raw], target: Path, *, progress: Callable[[int], object] | None = None
) -> Conversion:
    """Write all rows of raw files, schema and description to ``target``, which appears when it is whole.

    Raises:
        DatasetError: as ``embstore.datasets.convert``.
    """
    target = target.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise DatasetError(f"{target} is not empty", expected="a folder to make", do="remove it or name another")
    raw = open_raw()
    partial = target.parent / f".{target.name}.{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        writers = {split: _SplitWriter(partial / split) for split in SPLITS}
        try:
            for split, table in raw.rows():
                _check_label(name, table, raw.schema)
                writers[split].write(table)
                if progress is not None and table.num_rows:
                    progress(table.num_rows)
        finally:
            for writer in writers.values():
                writer.close()
        rows = {split: writer.rows for split, writer in writers.items()}
        if not all(rows.values()):
            raise DatasetError(
                f"{name}: too few rows to split",
                expected="at least one row in each of train, valid and test",
                found=str(rows),
            )
        (partial / "schema.yaml").write_text(raw.schema.to_yaml())
        source = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in raw.files}
        description = {"name": name, "rows": rows, "split": raw.rule, "source": source}
        (partial / "dataset.json").write_text(json.dumps(description, indent=2) + "\n")
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Conversion(path=target, schema=raw.schema, rows=rows, rule=raw.rule)


class _SplitWriter:
    """Tables of any size -> Parquet files with full row groups."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, 0
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._file: pq.ParquetWriter | None = None
        folder.mkdir()

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= GROUP_ROWS:
            waiting = pa.concat_tables(self._waiting)
            whole = waiting.num_rows - waiting.num_rows % GROUP_ROWS
            for start in range(0, whole, GROUP_ROWS):
                self._write_group(waiting.slice(start, GROUP_ROWS))
            self._waiting, self._waiting_rows = [waiting.slice(whole)], waiting.num_rows - whole

    def _write_group(self, table: pa.Table) -> None:
        if self.rows % FILE_ROWS == 0:
            self._close_file()
            path = self.folder / f"part-{self.rows // FILE_ROWS:05d}.parquet"
            self._file = pq.ParquetWriter(path, table.schema, compression="zstd")
        assert self._file is not None
        self._file.write_table(table, row_group_size=GROUP_ROWS)
        self.rows += table.num_rows

    def close(self) -> None:
        if self._waiting_rows:
            self._write_group(pa.concat_tables(self._waiting))
            self._waiting, self._waiting_rows = [], 0
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def find(folder: Path, *names: str) -> Path | None:
    """The first of ``names`` that is a file in ``folder``."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def find_splits(folder: Path, pattern: str, *suffixes: str) -> dict[str, Path] | None:
    """Files of data that is split already, by split, if all three are there; ``{}`` in ``pattern`` is the split."""
    found = {
        split: find(folder, *(pattern.format(name) + suffix for name in names for suffix in suffixes))
        for split, names in (("train", ("train",)), ("valid", VALID_NAMES), ("test", ("test",)))
    }
    paths = {split: path for split, path in found.items() if path is not None}
    return paths if len(paths) == len(SPLITS) else None


def not_found(name: str, source: Path, expected: str) -> DatasetError:
    """The error for a folder that holds something else."""
    present = sorted(path.name for path in source.iterdir()) if source.is_dir() else [source.name]
    found = ", ".join(present[:10]) + (f" and {len(present) - 10} more" if len(present) > 10 else "")
    return DatasetError(
        f"{name}: {source} holds no raw files that are known",
        expected=expected,
        found=found or "an empty folder",
        do="docs/datasets.md says where the files come from",
    )


def split_rows(
    tables: Iterable[pa.Table], part_of: Callable[[pa.Table, NDArray[np.int64]], NDArray[np.int64]]
) -> Iterator[tuple[str, pa.Table]]:
    """Deal rows out: ``part_of(table, row numbers)`` gives 0, 1 or 2 (of ``SPLITS``) for each row."""
    start = 0
    for table in tables:
        part = part_of(table, np.arange(start, start + table.num_rows))
        start += table.num_rows
        for number, split in enumerate(SPLITS):
            yield split, table.filter(pa.array(part == number))


def presplit_rows(
    paths: Mapping[str, Path], tables_of: Callable[[Path], Iterable[pa.Table]]
) -> Iterator[tuple[str, pa.Table]]:
    """Rows of files that are split already."""
    for split in SPLITS:
        for table in tables_of(paths[split]):
            yield split, table


def by_order(rows: int) -> Callable[[pa.Table, NDArray[np.int64]], NDArray[np.int64]]:
    """The first 80% to train, then 10% to valid and 10% to test, for ``split_rows``."""
    bounds = np.array([rows * 8 // 10, rows * 9 // 10])
    return lambda _, row: np.searchsorted(bounds, row, side="right")


def _check_label(name: str, table: pa.Table, schema: Schema) -> None:
    label = table.column(schema.label)
    wrong = pc.invert(pc.is_in(label, value_set=pa.array([0, 1], type=label.type)))
    if pc.any(wrong).as_py():
        found = label.filter(wrong)[0].as_py()
        raise DatasetError(
            f"{name}: {schema.label}", expected="0 or 1 in every row", found="none" if found is None else str(found)
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
