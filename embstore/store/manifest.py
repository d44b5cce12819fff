"""The manifest of a version: its keys, and the rules a reader holds it to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from embstore.errors import CorruptVersionError, LaterVersionError
from embstore.hashing import HASH_SPEC
from embstore.schema import POOLINGS, Schema
from embstore.store.documents import Fields, shown
from embstore.store.files import FileDigest
from embstore.store.quantization import DTYPES, ENCODINGS, read_dtype, stored_dtype, stored_width

# 1 had no quantised rows, no deltas, no optimizer's state; 2 no vocabulary; 3 none that prunes unseen values; 4 no
# values that stand in for others.
FORMAT = 5
UNSEEN_FORMAT = 4  # of a version whose vocabulary prunes unseen values, and has no stand-ins
KEEPING_FORMAT = 3  # of one whose vocabulary prunes dropped values alone, which readers of it can use as well
PLAIN_FORMAT = 2  # of one without a vocabulary

MANIFEST, COMPAT, SCHEMA = "manifest.json", "compat.json", "schema.yaml"
TOKENS, DENSE = "exact/tokens.safetensors", "model/dense.safetensors"
DELTA, DENSE_OPTIMIZER = "delta/rows.safetensors", "optimizer/dense.safetensors"
LINEAGE = ("logs", "vocabulary", "selection", "node2vec", "config")
MAX_MANIFEST_BYTES = 100_000_000
MAX_SMALL_BYTES = 16 << 20  # of compat.json and schema.yaml

VERSION_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
SHA256 = re.compile(r"[0-9a-f]{64}")
SPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(r"[^\0]+")
# Lower case only, so that two names never meet on a file system that ignores case; no part is "." or "..".
_PART = r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"
_FILE = re.compile(rf"(?=.{{1,200}}$){_PART}(/{_PART}){{0,3}}")
_TENSOR = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_DEPTH = 100  # deltas on top of one another
VALUE_BYTES = {"int64": 17, "uint64": 17, "bool": 10, "string": 17, "binary": 17}  # of a vocabulary's, at least
UNSEEN = ("keep", "prune")
_MAX_ROWS, _MAX_DIM, _MAX_TABLE_BYTES = 2**48, 2**16, 2**62


@dataclass(frozen=True, kw_only=True)
class DeltaInfo:
    """What a delta holds.

    Args:
        base: version it is a change of.
        base_digest: sha256 of that one's manifest.
        rows: changed ones in it.
        encoding: of the changed rows.
        significance: rows that changed by no more (L2) than this are not in it; 0 when all are.
        depth: deltas from here to a whole version, this one included.
    """

    base: str
    base_digest: str
    rows: int
    encoding: str
    significance: float
    depth: int


@dataclass(frozen=True, kw_only=True)
class OptimizerInfo:
    """What of the optimizers' state a version holds.

    Args:
        name: of the table's optimizer.
        steps, rates: its updates done, and the sum of their learning rates.
        tensors: dtype and numbers a row of each of its tensors; 0 for ``[N]``.
    """

    name: str
    steps: int
    rates: float
    tensors: dict[str, tuple[torch.dtype, int]]

    @property
    def row_bytes(self) -> int:
        """Of a row of all its tensors."""
        return sum(dtype.itemsize * max(width, 1) for dtype, width in self.tensors.values())


@dataclass(frozen=True, kw_only=True)
class ValuesInfo:
    """What a version's vocabulary holds of a feature.

    Args:
        kind: of the values: ``int64``, ``uint64``, ``bool``, ``string`` or ``binary``.
        values: how many.
        kept: of them, not dropped.
        unseen: ``"prune"`` where values that are not in it are looked up as the pruned token, else ``"keep"``.
        stood_in: of those that are dropped, for how many another stands in.
    """

    kind: str
    values: int
    kept: int
    unseen: str = "keep"
    stood_in: int = 0

    @property
    def prunes(self) -> bool:
        """Whether any token is looked up as another."""
        return self.unseen == "prune" or self.kept < self.values


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of a table and of its buckets.

    Args:
        dim: numbers per row.
        encoding: how rows lie in files (``embstore.store.quantization``).
        rows: of the whole table; the first ``hashed_rows`` are shared, exact blocks follow.
        num_tables: equal parts of the hashed rows.
        bucket_rows: rows per file, a power of two; the last file holds what is left.
    """

    dim: int
    encoding: str
    rows: int
    hashed_rows: int
    num_tables: int
    hash_spec: int
    seed: int
    bucket_rows: int

    @property
    def dtype(self) -> torch.dtype:
        """What rows are read as."""
        return read_dtype(self.encoding)

    @property
    def stored(self) -> tuple[torch.dtype, int]:
        """Dtype and width of a row in a file."""
        return stored_dtype(self.encoding), stored_width(self.encoding, self.dim)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in a file."""
        dtype, width = self.stored
        return width * dtype.itemsize

    @property
    def buckets(self) -> int:
        """Number of files."""
        return -(-self.rows // self.bucket_rows)

    def bucket(self, number: int) -> tuple[int, int]:
        """First row of a bucket, and the one after its last."""
        return number * self.bucket_rows, min((number + 1) * self.bucket_rows, self.rows)


def bucket_name(number: int, folder: str = "table") -> str:
    """File of a bucket, relative to the version's folder."""
    return f"{folder}/bucket-{number:05d}.safetensors"


def vocabulary_name(number: int) -> str:
    """File of the values of the schema's feature of this number, relative to the version's folder."""
    return f"vocabulary/feature-{number:05d}.safetensors"


def is_bucket(name: str) -> bool:
    """Whether a file of a version holds a part of the table, or of its optimizer's tensors."""
    return name.partition("/")[2].startswith("bucket-")


def check_format(body: dict[str, Any], where: str) -> None:
    """Refuse what a later embstore wrote, before anything else is read from it.

    Raises:
        LaterVersionError: a format number this reader doesn't know.
        CorruptVersionError: no format number.
    """
    _refuse_later(body, where, format=FORMAT)


def check_reader(compat: dict[str, Any], where: str) -> None:
    """Refuse a version made for a later reader, before anything else is read from it.

    Raises:
        LaterVersionError: it needs a later embstore.
        CorruptVersionError: it doesn't say what it needs.
    """
    _refuse_later(compat, where, minimal_reader=FORMAT, hash_spec=HASH_SPEC)


def check_compat(compat: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """``compat.json`` says what the manifest and the schema do.

    Raises:
        CorruptVersionError: naming the key.
    """
    for key, value in expected.items():
        if compat.get(key) != value:
            raise Fields(compat, where).wrong(key, shown(value), shown(compat.get(key)))


def check_body(body: dict[str, Any], schema: Schema, where: str) -> Layout:
    """Check everything in a manifest but its files.

    Raises:
        CorruptVersionError: naming the key, what was expected and what was found.
    """
    fields = Fields(body, where)
    fields.text("version", VERSION_ID)
    fields.text("created", TIME)
    fields.text("space", SPACE)
    fields.text_or_null("parent", VERSION_ID)
    if body.get("compacts") is not None:
        fields.text("compacts", VERSION_ID)
    layout = _layout(Fields(fields.mapping("table"), f"{where}: table"))
    features, names = fields.entries("features"), [feature.name for feature in schema.features]
    if [entry.get("name") if isinstance(entry, dict) else None for entry in features] != names:
        raise fields.wrong("features", f"the schema's, {shown(names)}", shown(features))
    for entry, feature in zip(features, schema.features, strict=True):
        at = Fields(entry, f"{where}: feature {feature.name!r}")
        for key, found in (
            ("lookups", at.whole("lookups", 1, 2**16)),
            ("pooling", at.choice("pooling", POOLINGS)),
            ("exact", at.flag("exact")),
        ):
            if found != getattr(feature, key):
                raise at.wrong(key, f"{getattr(feature, key)!r} as in the schema", repr(found))
        _check_rows(at, layout, feature.lookups, feature.exact)
    columns = Fields(fields.mapping("columns"), f"{where}: columns")
    unknown = body["columns"].keys() - set(names)
    if unknown:
        raise fields.wrong("columns", "features of the schema", shown(min(unknown)))
    for name in body["columns"]:
        columns.text(name, _NAME)
    model = Fields(fields.mapping("model"), f"{where}: model")
    model.text("name", _NAME)
    model.mapping("settings")
    model.whole("dense_width", 0, 2**31)
    if len(model.wholes("widths", 1, 2**31, at_most=len(features))) != len(features):
        raise model.wrong("widths", "one for each feature", "fewer")
    lineage = fields.mapping("lineage")
    if lineage.keys() != set(LINEAGE):
        raise fields.wrong("lineage", ", ".join(LINEAGE), shown(sorted(lineage)))
    fields.mapping("metrics")
    return layout


def read_delta(body: dict[str, Any], where: str) -> DeltaInfo | None:
    """What a delta says of itself; ``None`` for a whole version.

    Raises:
        CorruptVersionError: naming the key.
    """
    if body.get("delta") is None:
        return None
    fields = Fields(body["delta"], f"{where}: delta")
    return DeltaInfo(
        base=fields.text("base", VERSION_ID),
        base_digest=fields.text("base_digest", SHA256),
        rows=fields.whole("rows", 0, _MAX_ROWS),
        encoding=fields.choice("encoding", ENCODINGS),
        significance=fields.number("significance"),
        depth=fields.whole("depth", 1, MAX_DEPTH),
    )


def read_optimizer(body: dict[str, Any], where: str) -> OptimizerInfo | None:
    """What of the optimizers' state is there; ``None`` for nothing.

    Raises:
        CorruptVersionError: naming the key.
    """
    if body.get("optimizer") is None:
        return None
    fields = Fields(body["optimizer"], f"{where}: optimizer")
    tensors = {}
    for name, entry in fields.mapping("tensors").items():
        at = Fields(entry, f"{where}: optimizer {shown(name)}")
        if not _TENSOR.fullmatch(name):
            raise fields.wrong("tensors", f"names like {_TENSOR.pattern}", shown(name))
        tensors[name] = DTYPES[at.choice("dtype", DTYPES)], at.whole("width", 0, _MAX_DIM)
    return OptimizerInfo(
        name=fields.text("name", _NAME),
        steps=fields.whole("steps", 0, 2**53),
        rates=fields.number("rates"),
        tensors=tensors,
    )


def read_vocabulary(body: dict[str, Any], files: dict[str, FileDigest], where: str) -> dict[str, ValuesInfo] | None:
    """What a version's own vocabulary holds, by feature; ``None`` where it has none of its own.

    Args:
        body: a manifest that ``check_body`` has passed.

    Raises:
        CorruptVersionError: naming the key or file.
    """
    fields = Fields(body, where)
    found: dict[str, ValuesInfo] | None = None
    wanted = {}
    if body.get("vocabulary") is not None:
        found, numbers = {}, {entry["name"]: number for number, entry in enumerate(body["features"])}
        if body["format"] <= PLAIN_FORMAT:
            raise fields.wrong("format", f"{PLAIN_FORMAT + 1} or more, with a vocabulary", str(body["format"]))
        for name, entry in fields.mapping("vocabulary").items():
            if name not in numbers:
                raise fields.wrong("vocabulary", "features of the schema", shown(name))
            at = Fields(entry, f"{where}: vocabulary {shown(name)}")
            values = at.whole("values", 0, _MAX_ROWS)
            kind = at.choice("kind", VALUE_BYTES)
            unseen = at.choice("unseen", UNSEEN) if "unseen" in entry else "keep"
            if unseen == "prune" and body["format"] <= KEEPING_FORMAT:
                raise fields.wrong(
                    "format", f"{KEEPING_FORMAT + 1}, where unseen values are pruned", str(body["format"])
                )
            kept = at.whole("kept", 0, values)
            stood_in = at.whole("stood_in", 0, values - kept) if "stood_in" in entry else 0
            if stood_in and body["format"] <= UNSEEN_FORMAT:
                found_format = str(body["format"])
                raise fields.wrong("format", f"{UNSEEN_FORMAT + 1}, where values have stand-ins", found_format)
            found[name] = ValuesInfo(kind=kind, values=values, kept=kept, unseen=unseen, stood_in=stood_in)
            wanted[vocabulary_name(numbers[name])] = values * (VALUE_BYTES[kind] + (8 if stood_in else 0))
    held = {name for name in files if name.startswith("vocabulary/")}
    if held != wanted.keys():
        raise CorruptVersionError(f"{where}: files", expected=shown(sorted(wanted)), found=shown(sorted(held)))
    for name, needed in wanted.items():
        if files[name].bytes < needed:
            expected = f"at most the {files[name].bytes:,} bytes of the file"
            raise CorruptVersionError(f"{where}: {name}", expected=expected, found=f"{needed:,}")
    return found


def format_of(vocabulary: Mapping[str, Mapping[str, Any]]) -> int:
    """The lowest format in which a vocabulary can be said, so that as many readers as can use it do.

    Args:
        vocabulary: what a manifest says of it.
    """
    if any("stood_in" in said for said in vocabulary.values()):
        return FORMAT
    return UNSEEN_FORMAT if any("unseen" in said for said in vocabulary.values()) else KEEPING_FORMAT


def read_files(body: dict[str, Any], where: str) -> dict[str, FileDigest]:
    """The files of a manifest, each under a name that stays inside the version's folder.

    Raises:
        CorruptVersionError: naming the file.
    """
    files, fields = {}, Fields(body, where)
    for name, entry in fields.mapping("files").items():
        if not _FILE.fullmatch(name) or name == MANIFEST:
            raise fields.wrong("files", "names inside the version", shown(name))
        at = Fields(entry, f"{where}: {name}")
        files[name] = FileDigest(at.whole("bytes", 0, _MAX_TABLE_BYTES), at.text("sha256", SHA256))
    for name in (COMPAT, SCHEMA, TOKENS, DENSE):
        if name not in files:
            raise fields.wrong("files", name, "no such entry")
    return files


def check_buckets(
    files: dict[str, FileDigest], layout: Layout, where: str, *, folder: str = "table", row_bytes: int
) -> None:
    """The files of ``table/``, or of another folder, are the table's buckets, and long enough for its rows.

    Raises:
        CorruptVersionError: one is missing, or another is there.
    """
    found = {name for name in files if name.startswith(f"{folder}/bucket-")}
    # Compared by number first: a huge declared table must not become a huge list of names.
    if len(found) != layout.buckets or found != {bucket_name(number, folder) for number in range(layout.buckets)}:
        names = f"{layout.buckets:,} buckets from {bucket_name(0, folder)}"
        raise CorruptVersionError(f"{where}: files", expected=names, found=f"{len(found):,}: {shown(sorted(found))}")
    held, needed = sum(files[name].bytes for name in found), layout.rows * row_bytes
    if held < needed:
        raise CorruptVersionError(
            f"{where}: {folder}", expected=f"at most the {held:,} bytes of its files", found=f"{needed:,}"
        )


def _refuse_later(body: dict[str, Any], where: str, **known: int) -> None:
    for key, highest in known.items():
        number = Fields(body, where).whole(key, 1, 2**31)
        if number > highest:
            do = "upgrade embstore to read it"
            raise LaterVersionError(f"{where}: {key}", expected=f"{highest} or less", found=str(number), do=do)


def _layout(fields: Fields) -> Layout:
    rows = fields.whole("rows", 1, _MAX_ROWS)
    layout = Layout(
        dim=fields.whole("dim", 1, _MAX_DIM),
        encoding=fields.choice("dtype", ENCODINGS),
        rows=rows,
        hashed_rows=fields.whole("hashed_rows", 0, rows),
        num_tables=fields.whole("num_tables", 1, max(rows, 1)),
        hash_spec=fields.whole("hash_spec", 1, 2**31),
        seed=fields.whole("seed", 0, 2**64 - 1),
        bucket_rows=fields.whole("bucket_rows", 1, _MAX_ROWS),
    )
    if layout.hashed_rows % layout.num_tables:
        raise fields.wrong("hashed_rows", f"a multiple of num_tables={layout.num_tables}", str(layout.hashed_rows))
    if layout.bucket_rows & (layout.bucket_rows - 1):
        raise fields.wrong("bucket_rows", "a power of two", str(layout.bucket_rows))
    return layout


def _check_rows(fields: Fields, layout: Layout, lookups: int, exact: bool) -> None:
    blocks = fields.entries("rows")
    if len(blocks) != lookups:
        raise fields.wrong("rows", f"{lookups} ranges, one for each lookup", str(len(blocks)))
    low, high = (layout.hashed_rows, layout.rows) if exact else (0, layout.hashed_rows)
    for block in blocks:
        at = Fields(block, "rows")
        base, size = at.whole("base", 0, _MAX_ROWS), at.whole("size", 1, _MAX_ROWS)
        if base < low or base + size > high:
            raise fields.wrong("rows", f"a range within {low} to {high}", f"{base} to {base + size}")
