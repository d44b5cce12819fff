"""Tensors in safetensors files: streamed out, mapped in.

    8 bytes    n, the header's length, little-endian
    n bytes    JSON: {"name": {"dtype": "F32", "shape": [rows, dim], "data_offsets": [begin, end]}, ...}, spaces
    the rest   each tensor's numbers, little-endian, row-major, no gaps

Any safetensors reader reads these files, and any safetensors file of our dtypes is read here. Two habits are ours: the
header is padded so that the data starts at a multiple of ``alignment``, and the widest dtype comes first, so every
tensor lies at a multiple of its item size.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from embstore.errors import CorruptVersionError, StoreError
from embstore.store.documents import Fields, read_json, shown
from embstore.store.files import FileDigest, fsync_file, open_regular, unreadable, unwritable
from embstore.store.mapping import Region

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_MAX_DIMENSIONS = 32
_MAX_BYTES = 2**62
_PIECE_BYTES = 1 << 20  # copied, hashed, written and read back at a time: small enough to stay in a core's cache


class SafetensorsWriter:
    """Writes a safetensors file piece by piece, taking its sha256 on the way and reading back what it wrote.

    What is given may change meanwhile (a table in training): each piece is copied once, and the copy is what is hashed,
    what is written, and what the bytes read back are compared with.

    Args:
        path: a file that doesn't exist yet.
        tensors: ``{name: (dtype, shape)}``, written in the order of ``names``: widest dtype first, else as given.
        metadata: ``{text: text}`` for the header.
        alignment: the data starts at a multiple of this many bytes.

    As a context manager it closes the file at the end and removes it when an error leaves the block.

    Raises:
        StoreError: the file exists, the disk doesn't take it, a dtype has no code, or what is written isn't what was
            announced.
        CorruptVersionError: what was read back isn't what was written, or the disk doesn't give it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "table.safetensors"
    >>> with SafetensorsWriter(path, {"rows": (torch.float32, (4, 2))}) as writer:
    ...     writer.write("rows", torch.zeros(3, 2))
    ...     writer.write("rows", torch.ones(1, 2))
    >>> open_tensors(path)["rows"][2:].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]],
        *,
        metadata: Mapping[str, str] | None = None,
        alignment: int = 64,
    ) -> None:
        for name, (dtype, _) in tensors.items():
            if dtype not in _CODES:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _CODES)
                raise StoreError(f"{path}: tensor {name!r}", expected=f"dtype {known}", found=str(dtype))
        self.path = path
        self.names = tuple(sorted(tensors, key=lambda name: -tensors[name][0].itemsize))
        self._tensors = {name: (tensors[name][0], tuple(tensors[name][1])) for name in self.names}
        self._left = {name: math.prod(shape) for name, (_, shape) in self._tensors.items()}
        header = _header(self._tensors, metadata or {}, alignment)
        numbers = sum(math.prod(shape) * dtype.itemsize for dtype, shape in self._tensors.values())
        size = min(_PIECE_BYTES, max(len(header), numbers))
        self._piece, self._found = bytearray(size), bytearray(size)
        self._sha256, self._bytes = hashlib.sha256(), 0
        self._digest: FileDigest | None = None
        try:
            self._file: io.FileIO = path.open("x+b", buffering=0)
        except FileExistsError as error:
            raise StoreError(str(path), expected="a new file", found="one that exists") from error
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            self._put(np.frombuffer(header, np.uint8))
        except BaseException:  # no block has been entered yet that would clean up
            self._abandon()
            raise

    def write(self, name: str, chunk: Tensor) -> None:
        """The next rows of tensor ``name``: its dtype, and its shape except for the first dimension."""
        dtype, shape = self._tensors.get(name, (None, None))
        unfinished = next((name for name in self.names if self._left[name]), None)
        if shape is None or (name != unfinished and chunk.numel()):
            raise StoreError(f"{self.path}: write", expected=f"tensor {unfinished!r}", found=repr(name))
        if chunk.dtype != dtype or chunk.dim() != len(shape) or chunk.shape[1:] != shape[1:]:
            found = f"{chunk.dtype} {list(chunk.shape)}"
            raise StoreError(f"{self.path}: part of tensor {name!r}", expected=f"{dtype} {list(shape)}", found=found)
        if chunk.numel() > self._left[name]:
            raise StoreError(
                f"{self.path}: tensor {name!r}",
                expected=f"{self._left[name]:,} more numbers",
                found=f"{chunk.numel():,}",
            )
        self._left[name] -= chunk.numel()
        if chunk.numel():
            flat = chunk.detach().cpu().contiguous().reshape(-1)
            self._put(flat.view(torch.uint8).numpy())

    def close(self) -> FileDigest:
        """Fsync and close; the file's length and sha256. The folder's fsync is the caller's.

        Raises:
            StoreError: a tensor was not written to its end, or the disk doesn't take it.
        """
        if self._digest is None:
            short = [name for name in self.names if self._left[name]]
            if short:
                found = f"{self._left[short[0]]:,} numbers missing"
                raise StoreError(f"{self.path}: tensor {short[0]!r}", expected="all of it", found=found)
            try:
                fsync_file(self._file)
                self._file.close()
            except OSError as error:
                raise unwritable(self.path, error) from error
            self._digest = FileDigest(self._bytes, self._sha256.hexdigest())
        return self._digest

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            if self._digest is None:
                self._abandon()

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):  # the file goes either way
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _put(self, data: np.ndarray) -> None:
        into = np.frombuffer(self._piece, np.uint8)
        for start in range(0, len(data), len(into)):
            part = data[start : start + len(into)]
            np.copyto(into[: len(part)], part)
            piece = memoryview(self._piece)[: len(part)]
            self._sha256.update(piece)
            done = 0
            try:
                while done < len(piece):
                    done += self._file.write(piece[done:])
            except OSError as error:
                raise unwritable(self.path, error) from error
            self._read_back(len(piece))
            self._bytes += len(piece)

    def _read_back(self, size: int) -> None:
        """Compare the ``size`` bytes written last with what the file now holds."""
        done, found = 0, memoryview(self._found)
        while done < size:
            try:
                read = os.preadv(self._file.fileno(), [found[done:size]], self._bytes + done)
            except OSError as error:
                raise unreadable(self.path, error) from error
            if not read:
                raise CorruptVersionError(
                    str(self.path), expected=f"{self._bytes + size:,} bytes", found=f"{self._bytes + done:,}"
                )
            done += read
        # Of bytearrays the comparison is memcmp; of views it would go byte by byte.
        whole = size == len(self._piece)
        if (self._piece if whole else self._piece[:size]) != (self._found if whole else self._found[:size]):
            expected = f"from byte {self._bytes:,}, the {size:,} bytes that were written"
            raise CorruptVersionError(str(self.path), expected=expected, found="others")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> FileDigest:
    """Write tensors to a new safetensors file, read back and fsynced.

    Raises:
        StoreError: the file exists, the disk doesn't take it, or a dtype has no code.
        CorruptVersionError: what was read back isn't what was written.
    """
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with SafetensorsWriter(path, specs, metadata=metadata) as writer:
        for name in writer.names:
            writer.write(name, tensors[name])
        return writer.close()


@dataclass(frozen=True, kw_only=True)
class TensorSpan:
    """Where a tensor lies in a file: ``nbytes`` from byte ``offset`` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def open_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped: nothing is read before it is looked at.

    Writing to one changes this process's view only, never the file.

    Args:
        sha256: what the file's must be; then all of it is read at once.

    Raises:
        CorruptVersionError: the file is not what its header or ``sha256`` says.
    """
    with open_regular(path) as file:
        _, spans = read_header(file, path)
        size = os.fstat(file.fileno()).st_size
        region = Region(size)
        region.place(0, file.fileno(), 0, size)
    data = region.bytes()
    if sha256 is not None:
        found = hashlib.sha256(data.numpy().data).hexdigest()
        if found != sha256:
            raise CorruptVersionError(str(path), expected=f"sha256 {sha256}", found=found)
    return {name: _tensor(data, span) for name, span in spans.items()}


def read_header(file: BinaryIO, path: Path) -> tuple[bytes, dict[str, TensorSpan]]:
    """Check a safetensors header in full: its bytes, length included, and where the tensors lie.

    Raises:
        CorruptVersionError: bytes that the disk can't read, a header longer than the file or the limit, not JSON, a
            key twice, an unknown dtype, a shape that doesn't fit its span, or spans that overlap, leave gaps or leave
            the file.
    """
    size = os.fstat(file.fileno()).st_size
    first = _read(file, 8, path)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        limit = f"a header of at most {min(MAX_HEADER_BYTES, max(size - 8, 0)):,} bytes"
        raise CorruptVersionError(str(path), expected=limit, found=f"{length:,} in a file of {size:,}")
    text = _read(file, length, path)
    header = read_json(text, f"{path} header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptVersionError(f"{path} header: __metadata__", expected="texts by name", found=shown(metadata))
    start, spans = 8 + length, {}
    for name, entry in header.items():
        spans[name] = _span(Fields(entry, f"{path} tensor {shown(name)}"), start, size)
    end = start
    for name, span in sorted(spans.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if span.offset != end:
            found = f"{span.offset - start:,}"
            raise CorruptVersionError(f"{path} tensor {shown(name)}: begin", expected=f"{end - start:,}", found=found)
        end += span.nbytes
    if end != size:
        raise CorruptVersionError(str(path), expected=f"{end:,} bytes, as its tensors take", found=f"{size:,}")
    return first + text, spans


def _read(file: BinaryIO, nbytes: int, path: Path) -> bytes:
    try:
        return file.read(nbytes)
    except OSError as error:
        raise unreadable(path, error) from error


def _span(fields: Fields, start: int, size: int) -> TensorSpan:
    code = fields.choice("dtype", DTYPES)
    shape = fields.wholes("shape", 0, _MAX_BYTES, at_most=_MAX_DIMENSIONS)
    # Zeros count as ones here: [0, 2**40, 2**40] holds nothing, yet no tensor can have it as its shape.
    if math.prod(max(n, 1) for n in shape) > _MAX_BYTES // DTYPES[code].itemsize:
        raise fields.wrong("shape", f"at most {_MAX_BYTES:,} bytes", shown(shape))
    nbytes = math.prod(shape) * DTYPES[code].itemsize
    offsets = fields.wholes("data_offsets", 0, size - start, at_most=2)
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise fields.wrong("data_offsets", f"two that are {nbytes:,} bytes apart", shown(offsets))
    return TensorSpan(dtype=DTYPES[code], shape=tuple(shape), offset=start + offsets[0], nbytes=nbytes)


def _header(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str], alignment: int
) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


def _tensor(data: Tensor, span: TensorSpan) -> Tensor:
    part = data[span.offset : span.offset + span.nbytes]
    if span.offset % span.dtype.itemsize:
        part = part.clone()  # another writer's layout: torch can't view numbers that lie across their size
    return part.view(span.dtype).reshape(span.shape)
