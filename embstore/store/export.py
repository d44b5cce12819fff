"""A version's vectors as files that others read: Parquet by value, or the whole table as one safetensors file.

    vectors/feature=user_id/part-0.parquet       value: string, vector: fixed_size_list<float>[8], created
    vectors/feature=hour/part-0.parquet          value: int64,  vector: fixed_size_list<float>[4], created

What is written appears all at once, under a name that was free, or not at all.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from embstore.counting import COUNT, VALUE
from embstore.errors import SchemaError, StoreError, nearest
from embstore.store.files import fsync_file, fsync_folder, make_folder
from embstore.store.tensors import SafetensorsWriter
from embstore.store.values import FEATURE, TextLines, ValueColumn, check_values, in_memory, open_values
from embstore.store.version import Version

_PIECE_BYTES = 16 << 20
_PIECE_ROWS = 65_536

Values = Mapping[str, Any] | str | Path
"""By feature an Arrow array, or a table of ``value`` and perhaps ``count``; or where a file of these is."""


def export_parquet(
    version: Version,
    values: Values,
    target: str | Path,
    *,
    features: Sequence[str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, int]:
    """Write the vectors of these values to a new folder, a Parquet file for each feature.

    Each file has ``value`` (of its own type), ``vector`` (fixed_size_list<float32>[lookups * dim], bit for bit what
    ``Version.lookup`` gives for the value), ``count`` where the values have one, and ``created``, when the
    version was. It is written piece by piece: memory is about 50 MiB and, where
    values come from Parquet, a row group of those. The
    files' metadata names the version (``docs/export.md``).

    Args:
        version: what is exported.
        values: by feature the distinct values: an Arrow array, or a table of ``value`` and ``count`` as
            ``vocabulary_of`` gives; or a file or folder of them (``open_values``). For a list feature, what its
            lists hold; for a timestamp with a transform, what the transform gives, or timestamps.
        target: a folder that doesn't exist yet.
        features: export only these.
        progress: called with the number of vectors after each piece written.

    Returns:
        How many vectors each feature got.

    Raises:
        SchemaError: no such feature, no values for one asked for, or values of another type than it was trained on.
        DataError: a missing value.
        LogError: a file that can't be read.
        StoreError: ``target`` exists, or can't be written.
    """
    chosen = chosen_values(version, values, features)
    written = {}
    with appearing(Path(target)) as temporary:
        temporary.mkdir()
        for name, column in chosen.items():
            folder = temporary / f"{FEATURE}={escaped(name)}"
            folder.mkdir()
            written[name] = _write_feature(folder / "part-0.parquet", version, name, column, progress)
            fsync_folder(folder)
        fsync_folder(temporary)
    return written


def export_safetensors(
    version: Version, target: str | Path, *, progress: Callable[[int], object] | None = None
) -> None:
    """Write everything a version has learnt to one new safetensors file, in bounded memory.

    Tensors: ``rows`` ``[N, dim]`` in the table's dtype, ``exact.FEATURE`` int64 (the sorted known tokens), and
    ``dense.NAME`` for each tensor of ``dense_state``. The metadata holds the version's id and what finds a row
    (``docs/export.md``).

    Args:
        target: a file that doesn't exist yet.
        progress: called with the number of rows of the table after each piece written.

    Raises:
        StoreError: ``target`` exists, or can't be written.
    """
    table = version.table
    tensors = {f"exact.{name}": tokens for name, tokens in table.exact_tokens().items()}
    tensors |= {f"dense.{name}": tensor for name, tensor in version.dense_state().items()}
    specs: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"rows": (table.dtype, (table.num_rows, table.dim))}
    specs |= {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    about = {f"embstore.{key}": json.dumps(version.manifest[key]) for key in ("table", "features", "columns", "model")}
    step = max(1, _PIECE_BYTES // (table.dim * table.dtype.itemsize))
    with (
        appearing(Path(target)) as temporary,
        SafetensorsWriter(temporary, specs, metadata=_identity(version) | about) as writer,
    ):
        for name in writer.names:
            if name != "rows":
                writer.write(name, tensors[name])
                continue
            for start in range(0, table.num_rows, step):
                rows = table.read_rows(start, min(start + step, table.num_rows))
                writer.write(name, rows)
                if progress is not None:
                    progress(len(rows))


def chosen_values(
    version: Version, values: Values, features: Sequence[str] | None = None
) -> dict[str, ValueColumn | TextLines]:
    """The values to be exported by feature, checked as ``export_parquet`` does; nothing is written.

    Raises:
        SchemaError, LogError, DataError: as ``export_parquet``.
    """
    nameless = elsewhere = ""
    specs = {feature.name: feature for feature in version.schema.features}
    known: dict[str, ValueColumn | TextLines]
    if isinstance(values, Mapping):
        known = {
            name: column if isinstance(column, (ValueColumn, TextLines)) else in_memory(column, name)
            for name, column in values.items()
        }
    else:
        alone = features[0] if features is not None and len(set(features)) == 1 else None
        known = open_values(values, feature=alone, trained_on=version.manifest["columns"].get(alone), known=specs)
        one = VALUE in known and (known.keys() <= {VALUE, COUNT} or known.keys().isdisjoint(specs))
        nameless = "name one feature, whose values these are" if one else ""
        elsewhere = "; values of one feature alone may be in a column 'value', or in a .txt"
    for name in known if features is None else features:
        if name not in specs and nameless:
            raise SchemaError(f"no feature {name!r} in version {version.id}", do=nameless)
        version.schema.feature(name, of=f"version {version.id}")
        if name not in known:
            raise SchemaError(f"no values of feature {name!r}", do=nameless or nearest(name, known) + elsewhere)
    chosen = {name: known[name] for name in (known if features is None else dict.fromkeys(features))}
    if not chosen:
        raise SchemaError("values", expected="those of at least one feature", found="none")
    for name, column in chosen.items():
        check_values(column.type, specs[name], version.manifest["columns"].get(name))
    return chosen


def _write_feature(
    path: Path,
    version: Version,
    name: str,
    column: ValueColumn | TextLines,
    progress: Callable[[int], object] | None,
) -> int:
    """Write one feature's file; the number of its vectors."""
    width = version.schema.feature(name).lookups * version.table.dim
    created = pa.scalar(datetime.fromisoformat(version.manifest["created"]), pa.timestamp("us", tz="UTC"))
    fields = [pa.field(VALUE, column.type), pa.field("vector", pa.list_(pa.float32(), width))]
    fields += [pa.field(COUNT, pa.int64())] if column.count else []
    fields += [pa.field("created", created.type)]
    schema = pa.schema(fields, metadata=_identity(version) | {"embstore.feature": name})
    step = min(_PIECE_ROWS, max(1, _PIECE_BYTES // (4 * width)))
    done = 0
    with path.open("xb") as file:
        # Vectors hardly ever repeat: a dictionary of their numbers costs time and gains nothing.
        options = {"compression": "zstd", "use_dictionary": ["created"], "write_statistics": [VALUE, "created"]}
        with pq.ParquetWriter(file, schema, **options) as writer:
            for piece in column.pieces(step):
                arrays = dict(zip(piece.column_names, piece.columns, strict=True))
                numbers = version.lookup(name, piece.column(VALUE)).numpy().reshape(-1)
                arrays["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(numbers), width)
                arrays["created"] = pa.repeat(created, piece.num_rows)
                writer.write_table(pa.table([arrays[field.name] for field in schema], schema=schema))
                done += piece.num_rows
                if progress is not None:
                    progress(piece.num_rows)
        fsync_file(file)
    return done


def _identity(version: Version) -> dict[str, str]:
    """What a file says of where it came from: texts by name."""
    table = version.manifest["table"]
    widths = {feature["name"]: feature["lookups"] * table["dim"] for feature in version.manifest["features"]}
    return {
        "embstore.version": version.id,
        "embstore.digest": version.digest,
        "embstore.space": version.manifest["space"],
        "embstore.dim": str(table["dim"]),
        "embstore.widths": json.dumps(widths),
    }


def escaped(name: str) -> str:
    """A name as Hive writes it in a path. Beyond ASCII it stays as it is: Spark decodes characters, not UTF-8."""
    return re.sub(r"[^A-Za-z0-9_.\-\x80-\U0010ffff]", lambda found: f"%{ord(found[0]):02X}", name)


def refuse_existing(target: Path, cause: OSError | None = None) -> None:
    """Raise ``StoreError`` if something has that name."""
    if os.path.lexists(target):
        raise StoreError(
            f"target {target}", expected="a new name", found="one that exists", do="name another"
        ) from cause


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` to make a file or folder at, which then becomes ``target``, durably."""
    refuse_existing(target)
    temporary = target.parent / f".tmp-{secrets.token_hex(8)}"
    try:
        make_folder(target.parent)
        try:
            yield temporary
            _name(temporary, target)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
        fsync_folder(target.parent)
    except OSError as error:
        raise StoreError(f"target {target}", expected="a place that can be written", found=str(error)) from error


def _name(temporary: Path, target: Path) -> None:
    try:
        if temporary.is_dir():
            os.rename(temporary, target)  # fails on a file, and on a folder that holds something by now
        else:
            os.link(temporary, target)  # fails on anything
    except OSError as error:
        refuse_existing(target, error)
        raise
