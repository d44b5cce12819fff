"""A version's vocabulary: a file for each feature, read when it is first asked for.

    vocabulary/feature-00003.safetensors     of the schema's feature 3
        value            int64 [V], ascending; of uint64 their bits; of bool uint8 [V]
        offset, bytes    of text and binary: int64 [V + 1] and uint8: value v is bytes[offset[v]:offset[v + 1]]
        count            int64 [V]
        kept             uint8 [V]: 1, or 0 where the value was dropped
        stand_in         int64 [V], where any has one: the number of the kept value it is looked up as, or -1

Not Parquet, as logs are: its readers take the memory that headers inside the file ask for (0.1 MB that unfold to 300 MB
need no compression), and nothing before them can say how much that is. Here it is the file's own size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.errors import CorruptVersionError, DataError, StoreError, nearest
from embstore.feature_values import TYPES, FeatureValues
from embstore.schema import Schema
from embstore.store.files import FileDigest
from embstore.store.manifest import ValuesInfo, vocabulary_name
from embstore.store.place import Files
from embstore.store.tensors import SafetensorsWriter, open_tensors
from embstore.store.values import check_values

if TYPE_CHECKING:
    from embstore.vocabulary import Vocabulary

_PIECE = 1 << 20  # numbers copied at a time: Arrow's memory can't be written to, and torch wants some that can


def write_vocabulary(
    folder: Path, vocabulary: Vocabulary, schema: Schema, columns: Mapping[str, str]
) -> tuple[dict[str, FileDigest], dict[str, dict[str, Any]]]:
    """Write the files of a version's vocabulary; they, by name, and what the manifest says of it.

    Args:
        columns: the log's column type of each feature, as far as known.

    Raises:
        StoreError: a feature that is not in the schema, or a disk that doesn't take it.
        SchemaError: values of another type than the feature was trained on.
    """
    names = [feature.name for feature in schema.features]
    for name in vocabulary:
        if name not in names:
            raise StoreError(f"vocabulary of {name!r}", expected="a feature of the schema", do=nearest(name, names))
    files, said = {}, {}
    for number, feature in enumerate(schema.features):
        if feature.name in vocabulary:
            of = vocabulary[feature.name]
            check_values(of.values.type, feature, columns.get(feature.name))
            files[vocabulary_name(number)] = _write(folder / vocabulary_name(number), of)
            said[feature.name] = {"kind": of.kind, "values": len(of), "kept": int(of.kept.sum())}
            if of.unseen != "keep":
                said[feature.name]["unseen"] = of.unseen
            if of.stand_in is not None:
                said[feature.name]["stood_in"] = int((of.stand_in >= 0).sum())
    return files, said


class StoredVocabulary(Mapping[str, FeatureValues]):
    """The values of a version's features; a file is fetched, checked and mapped when its feature is first asked for.

    Args:
        source: the version's files.
        files: what its manifest says of them.
        said: what it says of the vocabulary.
        schema: the version's.
    """

    def __init__(
        self, source: Files, files: Mapping[str, FileDigest], said: Mapping[str, ValuesInfo], schema: Schema
    ) -> None:
        self._source, self._files, self._said = source, files, said
        self._numbers = {feature.name: number for number, feature in enumerate(schema.features)}
        self._read: dict[str, FeatureValues] = {}

    def __getitem__(self, name: str) -> FeatureValues:
        if name not in self._read:
            file, info = vocabulary_name(self._numbers[name]), self._said[name]
            path = self._source.fetch(file, self._files[file])
            tensors = open_tensors(path, sha256=self._files[file].sha256)
            self._read[name] = _values(name, tensors, info, self._source.where(file))
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._said)

    def __len__(self) -> int:
        return len(self._said)

    def __contains__(self, name: object) -> bool:
        return name in self._said


def _write(path: Path, of: FeatureValues) -> FileDigest:
    arrays: dict[str, NDArray[Any]] = {}
    if of.kind == "bool":
        arrays["value"] = of.values.to_numpy(zero_copy_only=False).astype(np.uint8)
    elif of.kind in ("int64", "uint64"):
        arrays["value"] = of.values.to_numpy().view(np.int64)
    else:
        _, offsets, data = of.values.buffers()
        arrays["offset"] = offset = np.zeros(len(of) + 1, np.int64)
        if len(of):
            found = np.frombuffer(offsets, np.int64, len(of) + 1, 8 * of.values.offset)
            offset[:] = found - found[0]
            data = np.frombuffer(data or b"", np.uint8)[found[0] : found[-1]]
        arrays["bytes"] = data if len(of) else np.empty(0, np.uint8)
    arrays |= {"count": of.count, "kept": of.kept.view(np.uint8)}
    if of.stand_in is not None:
        arrays["stand_in"] = of.stand_in
    dtypes = {np.dtype(np.int64): torch.int64, np.dtype(np.uint8): torch.uint8}
    specs = {name: (dtypes[array.dtype], array.shape) for name, array in arrays.items()}
    with SafetensorsWriter(path, specs) as writer:
        for name in writer.names:
            for start in range(0, len(arrays[name]), _PIECE):
                writer.write(name, torch.from_numpy(arrays[name][start : start + _PIECE].copy()))
        return writer.close()


def _values(name: str, tensors: dict[str, Tensor], info: ValuesInfo, where: str) -> FeatureValues:
    """The values in a file, mapped, once they are found to be what they should."""
    size, text = info.values, info.kind in ("string", "binary")
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "count": (torch.int64, (size,)),
        "kept": (torch.uint8, (size,)),
    }
    if info.stood_in:
        expected["stand_in"] = torch.int64, (size,)
    if text:
        held = len(tensors["bytes"]) if "bytes" in tensors and tensors["bytes"].dim() == 1 else 0
        expected |= {"offset": (torch.int64, (size + 1,)), "bytes": (torch.uint8, (held,))}
    else:
        expected["value"] = (torch.uint8 if info.kind == "bool" else torch.int64), (size,)
    found = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    if found != expected:
        raise CorruptVersionError(where, expected=f"tensors {expected}", found=f"{found}"[:300])
    flags = [tensors["kept"]] + ([tensors["value"]] if info.kind == "bool" else [])
    if any(len(of) and int(of.max()) > 1 for of in flags) or int(tensors["kept"].sum()) != info.kept:
        raise CorruptVersionError(where, expected=f"flags of 0 and 1, {info.kept:,} values kept", found="others")
    stand_in = tensors["stand_in"].clone().numpy() if info.stood_in else None  # as with offsets
    if stand_in is not None and (stand_in >= 0).sum() != info.stood_in:
        raise CorruptVersionError(where, expected=f"stand-ins for {info.stood_in:,} values", found="others")
    try:
        return FeatureValues(
            name=name,
            values=_text(tensors, info) if text else _numbers(tensors["value"], info),
            count=tensors["count"].numpy(),
            kept=tensors["kept"].numpy().view(np.bool_),
            stand_in=stand_in,
            unseen=info.unseen,
        )
    except DataError as error:
        raise CorruptVersionError(where, expected=error.expected, found=error.found) from error


def _numbers(value_V: Tensor, info: ValuesInfo) -> pa.Array:
    if info.kind == "bool":
        return pa.array(value_V.numpy().view(np.bool_))
    return pa.Array.from_buffers(TYPES[info.kind], info.values, [None, pa.py_buffer(value_V.numpy())])


def _text(tensors: dict[str, Tensor], info: ValuesInfo) -> pa.Array:
    # A copy: what is checked once must not change, or whoever follows it later leaves the bytes.
    offset, data = tensors["offset"].clone(), tensors["bytes"]
    if len(offset) and (int(offset[0]) != 0 or int(offset[-1]) != len(data) or bool((offset[1:] < offset[:-1]).any())):
        raise DataError("offsets", expected=f"ascending, from 0 to {len(data):,}", found="others")
    return pa.Array.from_buffers(
        TYPES[info.kind], info.values, [None, pa.py_buffer(offset.numpy()), pa.py_buffer(data.numpy())]
    )
