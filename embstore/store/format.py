"""What one version looks like on disk (``docs/store-format.md``): its rules, and how it is written and verified.

    versions/20261124T034420Z-1f0c2a9b/
        manifest.json                       what it is, and the length and sha256 of every other file
        compat.json                         what a reader must know to use it
        schema.yaml
        table/bucket-00000.safetensors      "rows": rows [b * bucket_rows, (b + 1) * bucket_rows) of the table
        exact/tokens.safetensors            sorted tokens of each exact feature
        model/dense.safetensors             "normalizer.*" and "network.*"
        vocabulary/feature-00000.safetensors    the values of a feature (``embstore.store.vocabulary``)

What a manifest must say is in ``embstore.store.manifest``; opening a version, in ``embstore.store.version``.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from embstore.distributed import ALONE, Group
from embstore.errors import CorruptVersionError, StoreError, nearest
from embstore.metrics import finite
from embstore.schema import Schema
from embstore.store.bundle import Bundle, Change, OptimizerState, Progress
from embstore.store.delta import changed_rows, is_smaller, write_delta
from embstore.store.documents import canonical_json, write_json
from embstore.store.files import FileDigest, fsync_folder, write_small
from embstore.store.local import LocalFiles
from embstore.store.manifest import (
    COMPAT,
    DELTA,
    DENSE,
    DENSE_OPTIMIZER,
    LINEAGE,
    MANIFEST,
    PLAIN_FORMAT,
    SCHEMA,
    TOKENS,
    Layout,
    bucket_name,
    check_body,
    format_of,
)
from embstore.store.place import Files
from embstore.store.quantization import (
    ENCODINGS,
    Loss,
    check_dim,
    decode,
    encode,
    encoding_of,
    stored_dtype,
    stored_width,
)
from embstore.store.sharded import BucketRows, begun_in
from embstore.store.tensors import SafetensorsWriter, write_tensors
from embstore.threads import usable_cores

if TYPE_CHECKING:
    from embstore.vocabulary import Vocabulary

BUCKET_BYTES = 64 << 20
# Bucket data starts on a page of every common machine (4 KiB; 16 KiB on Apple's), so it can be mapped where it belongs.
BUCKET_ALIGNMENT = 16 << 10
_CHUNK_BYTES = 2 << 20
# Files written at a time: more than cores, so that all are busy while some files wait for their fsync, and few enough
# that a chunk of each, quantised, takes less memory than a bucket.
_WRITERS = min(usable_cores() + 2, 8)


def write(
    folder: Path,
    bundle: Bundle,
    *,
    version: str,
    created: str,
    space: str,
    parent: str | None,
    encoding: str | None = None,
    change: Change | None = None,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> bytes:
    """Write a version into an empty folder, read it back, compare, and fsync it.

    Args:
        encoding: how the rows are stored: ``int8``, ``int4`` or a dtype; the table's own dtype when not given.
        change: write only what changed.
        group: who write it together, each its shard.

    Returns:
        The bytes of its manifest.

    Raises:
        StoreError: a bundle whose parts don't fit together.
        CorruptVersionError: what was read back is not what was written.
    """
    if change is not None:
        encoding = change.base.table.encoding  # of the rows that stay
    body = _body(bundle, encoding, version=version, created=created, space=space, parent=parent)
    layout = _checked(bundle, body)
    changed_R = None
    if change is not None:
        changed_R = group.together(lambda: changed_rows(bundle, layout, change, progress))
        if change.smallest and not is_smaller(bundle, change, sum(group.tell(len(changed_R)))):
            inherited = change.base.vocabulary if bundle.vocabulary is None else bundle.vocabulary
            return write(
                folder,
                replace(bundle, vocabulary=inherited),
                version=version,
                created=created,
                space=space,
                parent=parent,
                progress=progress,
                group=group,
            )
    if bundle.optimizer is not None:
        body["optimizer"] = _said_of(bundle.optimizer, bundle.rows)
    group.lead(lambda: _make_folders(folder))
    files: dict[str, FileDigest] = {}
    if change is None or changed_R is None:
        files |= _write_table(folder, bundle, layout, body, progress, group)
        if bundle.optimizer is not None:
            files |= _write_optimizer(folder, bundle.optimizer, bundle.rows, layout, group)
    else:
        files[DELTA] = write_delta(folder / DELTA, bundle, layout, change, changed_R, body, group)
    manifest: str = group.lead(lambda: _write_rest(folder, bundle, layout, body, files, change).decode())
    return manifest.encode()


def _make_folders(folder: Path) -> None:
    for name in ("table", "exact", "model", "delta", "optimizer", "vocabulary"):
        (folder / name).mkdir()


def _write_rest(
    folder: Path,
    bundle: Bundle,
    layout: Layout,
    body: dict[str, Any],
    files: dict[str, FileDigest],
    change: Change | None,
) -> bytes:
    """All but the table's files, and the manifest last; its bytes."""
    vocabulary = _own_vocabulary(bundle, change)
    if vocabulary is not None:
        from embstore.store.vocabulary import write_vocabulary  # only those who have one pay for Arrow

        written, body["vocabulary"] = write_vocabulary(folder, vocabulary, bundle.schema, bundle.columns)
        files |= written
        body["format"] = format_of(body["vocabulary"])
    if change is not None:
        body["format"] = max(body["format"], change.base.manifest["format"])
    if bundle.optimizer is not None:
        files[DENSE_OPTIMIZER] = write_tensors(folder / DENSE_OPTIMIZER, bundle.optimizer.dense)
    files[TOKENS] = write_tensors(folder / TOKENS, bundle.table.exact_tokens())
    files[DENSE] = write_tensors(folder / DENSE, bundle.dense_state)
    files[SCHEMA] = write_small(folder / SCHEMA, bundle.schema.to_yaml().encode())
    files[COMPAT] = write_small(folder / COMPAT, write_json(compat(bundle.schema, layout, body["format"])))
    body["files"] = {name: digest._asdict() for name, digest in sorted(files.items())}
    manifest = write_json(body)
    about = write_small(folder / MANIFEST, manifest)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif path.is_dir():
            fsync_folder(path)
    fsync_folder(folder)
    source = LocalFiles(folder)
    _check_lengths(source, files)
    # Files of tensors were read back as they were written.
    for name, digest in {SCHEMA: files[SCHEMA], COMPAT: files[COMPAT], MANIFEST: about}.items():
        _check_file(source, name, digest)
    return manifest


def _own_vocabulary(bundle: Bundle, change: Change | None) -> Vocabulary | None:
    """What of a vocabulary is to be written: nothing where a delta has its base's, or there is none."""
    ours, theirs = bundle.vocabulary, None if change is None else change.base.vocabulary
    if not ours and not theirs:
        return None
    same = ours is not None and theirs is not None and ours.same(theirs)
    return None if same else ours


def verify(source: Files, files: Mapping[str, FileDigest], manifest: str, *, progress: Progress | None = None) -> None:
    """Read every file and compare its length and sha256; and nothing else may lie there but the manifest.

    Args:
        manifest: its sha256.

    Raises:
        CorruptVersionError: naming the file, what was expected and what was found.
    """
    found = source.digest(MANIFEST).sha256
    if found != manifest:
        raise CorruptVersionError(source.where(MANIFEST), expected=f"sha256 {manifest}", found=found)
    _check_lengths(source, files)
    check_contents(source, files, progress)


def check_contents(source: Files, files: Mapping[str, FileDigest], progress: Progress | None = None) -> None:
    """Read these files and compare their lengths and sha256.

    Raises:
        CorruptVersionError: naming the file, what was expected and what was found.
    """
    total, done = sum(digest.bytes for digest in files.values()), 0
    # sha256 and reading both release the interpreter lock.
    with ThreadPoolExecutor(usable_cores()) as pool:
        for digest in pool.map(lambda name: _check_file(source, name, files[name]), files):
            done += digest.bytes
            if progress:
                progress("verify", done, total)


def _check_lengths(source: Files, files: Mapping[str, FileDigest]) -> None:
    """The manifest's files are there, each with its length, and no other file is."""
    sizes = source.sizes()
    check_files(source, files, sizes)
    stray = sizes.keys() - files.keys() - {MANIFEST}
    if stray:
        raise CorruptVersionError(source.where(min(stray)), expected="only files of the manifest", found="another file")


def _check_file(source: Files, name: str, digest: FileDigest) -> FileDigest:
    found = source.digest(name)
    if found != digest:
        raise CorruptVersionError(source.where(name), expected=str(digest), found=str(found))
    return found


def check_files(source: Files, files: Mapping[str, FileDigest], sizes: Mapping[str, int]) -> None:
    """Every file of the manifest is among those that ``source`` has, with its length; no contents are read.

    Raises:
        CorruptVersionError: naming the file.
    """
    for name, digest in files.items():
        if name not in sizes:
            raise CorruptVersionError(source.where(name), expected=f"{digest.bytes:,} bytes", found="no file")
        if sizes[name] != digest.bytes:
            found = f"{sizes[name]:,}"
            raise CorruptVersionError(source.where(name), expected=f"{digest.bytes:,} bytes", found=found)


def bucket_rows(rows: int, row_bytes: int) -> int:
    """Rows per bucket: the largest power of two within ``BUCKET_BYTES``; for a small table, the first that holds it."""
    fit = 1 << max(0, (BUCKET_BYTES // row_bytes).bit_length() - 1)
    return min(fit, 1 << (rows - 1).bit_length())


def compat(schema: Schema, layout: Layout, number: int) -> dict[str, Any]:
    """What a reader must know to use a version of a format: the contents of ``compat.json``."""
    return {
        "format": number,
        "minimal_reader": number,
        "hash_spec": layout.hash_spec,
        "features": [feature.name for feature in schema.features],
        "dense": [column.name for column in schema.dense],
        "schema_sha256": schema_sha256(schema),
    }


def schema_sha256(schema: Schema) -> str:
    """Digest of what a schema means: comments and the way it is written don't matter."""
    return hashlib.sha256(canonical_json(schema.to_dict())).hexdigest()


def _body(
    bundle: Bundle, encoding: str | None, *, version: str, created: str, space: str, parent: str | None
) -> dict[str, Any]:
    table, described = bundle.table, bundle.table.describe()
    encoding = encoding or encoding_of(table.dtype)
    if encoding not in ENCODINGS:
        raise StoreError("table encoding", expected=", ".join(ENCODINGS), found=repr(encoding))
    check_dim(encoding, table.dim)
    if table.num_rows < 1 or table.dim < 1:
        raise StoreError("table", expected="a row or more", found=f"{table.num_rows} rows x {table.dim}")
    for name in bundle.lineage:
        if name not in (*LINEAGE, "space"):
            raise StoreError(f"lineage has an unknown entry {name!r}", do=nearest(name, (*LINEAGE, "space")))
    return {
        "format": PLAIN_FORMAT,
        "version": version,
        "created": created,
        "space": space,
        "parent": parent,
        "table": {
            "dim": table.dim,
            "dtype": encoding,
            "rows": table.num_rows,
            "hashed_rows": described.get("hashed_rows"),
            "num_tables": described.get("num_tables"),
            "hash_spec": described.get("hash_spec"),
            "seed": described.get("seed"),
            "bucket_rows": bucket_rows(
                table.num_rows, stored_width(encoding, table.dim) * stored_dtype(encoding).itemsize
            ),
        },
        "features": described.get("features"),
        "columns": dict(bundle.columns),
        "model": dict(bundle.model),
        "lineage": {name: bundle.lineage.get(name) for name in LINEAGE},
        "metrics": finite(bundle.metrics),
        "compacts": bundle.compacts,
        "delta": None,
        "optimizer": None,
    }


def _checked(bundle: Bundle, body: dict[str, Any]) -> Layout:
    """The layout of a bundle that a reader would accept; the rules are the reader's own."""
    try:
        write_json(body)
        layout = check_body(body, bundle.schema, "bundle")
        check_tokens(bundle.table.exact_tokens(), body["features"], "bundle: exact tokens")
        check_dense(bundle.dense_state, "bundle: dense state")
    except CorruptVersionError as error:
        raise StoreError(error.what, expected=error.expected, found=error.found) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError("bundle", expected="values that JSON can hold", found=str(error)) from error
    return layout


def check_tokens(tokens: Mapping[str, Tensor], features: list[dict[str, Any]], where: str) -> None:
    """Each exact feature has its strictly ascending int64 tokens, and a row for each and one more.

    Raises:
        CorruptVersionError: naming the feature.
    """
    exact = {entry["name"]: entry["rows"] for entry in features if entry["exact"]}
    if tokens.keys() != exact.keys():
        raise CorruptVersionError(where, expected=f"those of {sorted(exact)}", found=f"those of {sorted(tokens)}")
    for name, known in tokens.items():
        if known.dtype != torch.int64 or known.dim() != 1 or bool((known[1:] <= known[:-1]).any()):
            raise CorruptVersionError(f"{where} of {name!r}", expected="ascending int64", found=f"{known.dtype}")
        for block in exact[name]:
            if block["size"] != len(known) + 1:
                found = f"{block['size']:,} rows"
                raise CorruptVersionError(f"{where} of {name!r}", expected=f"{len(known) + 1:,} rows", found=found)


def check_dense(state: Mapping[str, Tensor], where: str) -> None:
    """Every tensor of the dense state is the normalizer's or the network's, by its name.

    Raises:
        CorruptVersionError: naming the tensor.
    """
    for name in state:
        if not re.match(r"(normalizer|network)\..", name):
            raise CorruptVersionError(where, expected="names from 'normalizer.' or 'network.'", found=repr(name))


def _write_table(
    folder: Path, bundle: Bundle, layout: Layout, body: dict[str, Any], progress: Progress | None, group: Group
) -> dict[str, FileDigest]:
    """The buckets, some at a time; what storing the rows so has cost is written into ``body``."""
    table = bundle.table
    rows = BucketRows(group, bundle.rows, layout, table.read_rows)
    loss = None if layout.encoding == encoding_of(table.dtype) else Loss()
    step = max(1, _CHUNK_BYTES // (layout.dim * table.dtype.itemsize))
    dtype, width = layout.stored
    one_at_a_time, done = threading.Lock(), 0

    def write_bucket(number: int) -> FileDigest:
        nonlocal done
        first, last = layout.bucket(number)
        spec = {"rows": (dtype, (last - first, width))}
        with SafetensorsWriter(folder / bucket_name(number), spec, alignment=BUCKET_ALIGNMENT) as writer:
            for start in range(first, last, step):
                stop = min(start + step, last)
                with one_at_a_time:  # a table may change as it is read
                    rows_ND = rows.read(start, stop)
                stored_NS = encode(rows_ND, layout.encoding)
                lost = None if loss is None else Loss.of_rows(rows_ND, decode(stored_NS, layout.encoding, layout.dim))
                writer.write("rows", stored_NS)
                with one_at_a_time:
                    if loss is not None and lost is not None:
                        loss.add(lost)
                    done += (stop - start) * layout.row_bytes
                    if progress:
                        progress("write", done, layout.rows * layout.row_bytes)
            return writer.close()

    digests = _for_each_bucket(write_bucket, rows.numbers, group, "table")
    if loss is not None:
        whole = Loss()
        for theirs in group.tell(asdict(loss)):
            whole.add(Loss(**theirs))
        body["table"]["loss"] = whole.report()
    return digests


def _write_optimizer(
    folder: Path, optimizer: OptimizerState, shard: range, layout: Layout, group: Group
) -> dict[str, FileDigest]:
    def rows_of(tensor: Tensor) -> BucketRows:
        return BucketRows(
            group, shard, layout, lambda start, stop: tensor[start - shard.start : stop - shard.start].detach().cpu()
        )

    rows = {name: rows_of(tensor) for name, tensor in optimizer.table.items()}

    def write_bucket(number: int) -> FileDigest:
        tensors = {name: of.read(*layout.bucket(number)) for name, of in rows.items()}
        return write_tensors(folder / bucket_name(number, "optimizer"), tensors)

    numbers = begun_in(shard, layout)
    return _for_each_bucket(write_bucket, numbers, group, "optimizer")


def _for_each_bucket(
    write_bucket: Callable[[int], FileDigest], numbers: range, group: Group, folder: str
) -> dict[str, FileDigest]:
    """By name, the files of the buckets of all ranks, after each has written its own."""

    def write() -> dict[str, list[Any]]:
        # Copying, hashing, writing, reading and fsyncing all release the interpreter lock.
        with ThreadPoolExecutor(min(len(numbers), _WRITERS) or 1) as pool:
            digests = zip(numbers, pool.map(write_bucket, numbers), strict=True)
            return {bucket_name(number, folder): list(digest) for number, digest in digests}

    return {name: FileDigest(*digest) for theirs in group.each(write) for name, digest in theirs.items()}


def _said_of(optimizer: OptimizerState, rows: range) -> dict[str, Any]:
    kinds = optimizer.kinds(len(rows)).items()
    tensors = {name: {"dtype": encoding_of(dtype), "width": width} for name, (dtype, width) in kinds}
    return {"name": optimizer.name, "steps": optimizer.steps, "rates": optimizer.rates, "tensors": tensors}
