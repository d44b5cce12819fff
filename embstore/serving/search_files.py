"""The folder of a ``Neighbors``: written whole, believed only as far as it was checked.

    neighbors.json         what it is, and length and sha256 of the others
    values.arrow           Arrow IPC, one column "value" of N values
    vectors.safetensors    vectors: float32 [U, D], distinct; group: int64 [N], which of them each value has
    graph.usearch          usearch's own file, where there is a graph

Digests tell damage, not intent: whoever may write the folder may write all of it. So what native code would follow
(numbers of vectors, the graph's nodes) is checked besides, and a wrong folder can give wrong neighbours but no more;
those who keep the sha256 of ``neighbors.json`` elsewhere are told of that, too.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from embstore.counting import VALUE
from embstore.errors import CorruptVersionError, DataError, LaterVersionError, StoreError
from embstore.serving.graph import Graph
from embstore.serving.matrices import floats
from embstore.serving.scores import Metric
from embstore.serving.search import Neighbors
from embstore.store.documents import Fields, read_json, write_json
from embstore.store.files import (
    FileDigest,
    fsync_file,
    fsync_folder,
    make_folder,
    open_regular,
    read_small,
    sha256_file,
    unwritable,
    write_small,
)
from embstore.store.manifest import SHA256
from embstore.store.tensors import open_tensors, write_tensors

FORMAT = 1
ABOUT, VALUES, VECTORS, GRAPH = "neighbors.json", "values.arrow", "vectors.safetensors", "graph.usearch"
_MOST = 2**32 - 1  # vectors: usearch numbers its nodes in 32 bits


def write(near: Neighbors, folder: Path) -> FileDigest:
    """Write a new folder; see ``Neighbors.save``."""
    if os.path.lexists(folder):
        raise StoreError(f"target {folder}", expected="a new name", found="one that exists", do="name another")
    temporary = folder.parent / f".tmp-{secrets.token_hex(8)}"
    try:
        make_folder(folder.parent)
        temporary.mkdir()
        try:
            digest = _fill(near, temporary)
            os.rename(temporary, folder)  # fails on a folder that holds something by now
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_folder(folder.parent)
    except OSError as error:
        raise unwritable(folder, error) from error
    return digest


def _fill(near: Neighbors, folder: Path) -> FileDigest:
    with (folder / VALUES).open("xb") as file:
        table = pa.table({VALUE: near.values})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        fsync_file(file)
    tensors = {"vectors": torch.from_numpy(near.vectors_UD), "group": torch.from_numpy(near.group_N)}
    files = {VECTORS: write_tensors(folder / VECTORS, tensors), VALUES: sha256_file(folder / VALUES)}
    about: dict[str, Any] = {
        "format": FORMAT,
        "metric": near.metric,
        "values": len(near),
        "vectors": len(near.vectors_UD),
        "width": near.width,
        "expansion": near.expansion,
    }
    if near.graph is not None:
        try:
            near.graph.save(folder / GRAPH)
        except (ValueError, RuntimeError) as error:
            raise StoreError(str(folder / GRAPH), expected="a file that can be written", found=str(error)) from error
        with (folder / GRAPH).open("rb+") as file:
            os.fsync(file.fileno())
        files[GRAPH] = sha256_file(folder / GRAPH)
        about["usearch"] = metadata.version("usearch")
    about["files"] = {name: digest._asdict() for name, digest in files.items()}
    digest = write_small(folder / ABOUT, write_json(about))
    fsync_folder(folder)
    return digest


def read(folder: Path, sha256: str | None) -> Neighbors:
    """Open a folder; see ``Neighbors.open``."""
    where = str(folder / ABOUT)
    data = read_small(folder / ABOUT, 1 << 20)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        found = hashlib.sha256(data).hexdigest()
        raise CorruptVersionError(where, expected=f"sha256 {sha256}", found=found)
    about = Fields(read_json(data, where), where)
    if about.whole("format", 1, 2**31) > FORMAT:
        raise LaterVersionError(where, expected=f"format {FORMAT}", found="a later one", do="update embstore")
    metric: Metric = about.choice("metric", get_args(Metric))  # type: ignore[assignment]
    count, vectors = about.whole("values", 0, 2**48), about.whole("vectors", 0, _MOST)
    width, expansion = about.whole("width", 1, 2**24), about.whole("expansion", 1, 1 << 16)
    digests = {}
    for name, entry in about.mapping("files").items():
        if name not in (VALUES, VECTORS, GRAPH):
            raise about.wrong("files", f"{VALUES}, {VECTORS} and perhaps {GRAPH}", name[:80])
        fields = Fields(entry, f"{where}: {name}")
        digests[name] = FileDigest(fields.whole("bytes", 1, 2**62), fields.text("sha256", SHA256))
    if not {VALUES, VECTORS} <= digests.keys():
        raise about.wrong("files", f"{VALUES} and {VECTORS}", ", ".join(digests) or "none")
    vectors_UD, group_N = _vectors(folder / VECTORS, digests[VECTORS], (vectors, width), count)
    graph = None
    if GRAPH in digests:
        mapping = _mapped(folder / GRAPH, digests[GRAPH])
        graph = Graph.view(mapping, metric, vectors_UD, where=str(folder / GRAPH))
    return Neighbors.of_parts(
        values=_values(folder / VALUES, digests[VALUES], count),
        metric=metric,
        vectors_UD=vectors_UD,
        group_N=group_N,
        expansion=expansion,
        graph=graph,
    )


def _mapped(path: Path, digest: FileDigest) -> mmap.mmap:
    """A file's bytes, which are what the digest says."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != digest.bytes:
            raise CorruptVersionError(str(path), expected=f"{digest.bytes:,} bytes", found=f"{size:,}")
        try:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CorruptVersionError(str(path), expected="a file that can be mapped", found=str(error)) from error
    found = hashlib.sha256(mapping).hexdigest()
    if found != digest.sha256:
        raise CorruptVersionError(str(path), expected=f"sha256 {digest.sha256}", found=found)
    return mapping


def _values(path: Path, digest: FileDigest, count: int) -> pa.Array:
    mapping = _mapped(path, digest)
    try:
        table = pa.ipc.open_file(pa.py_buffer(mapping)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptVersionError(str(path), expected="an Arrow file", found=str(error)) from error
    if table.column_names != [VALUE] or table.num_rows != count or table.column(VALUE).null_count:
        found = (
            f"{table.num_rows:,} of {', '.join(table.column_names)}, {sum(c.null_count for c in table.columns)} null"
        )
        raise CorruptVersionError(str(path), expected=f"{count:,} of {VALUE!r}, none missing", found=found)
    chunks = table.column(VALUE).chunks
    return chunks[0] if len(chunks) == 1 else table.column(VALUE).combine_chunks()


def _vectors(
    path: Path, digest: FileDigest, shape: tuple[int, int], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    tensors = open_tensors(path, sha256=digest.sha256)
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    expected = {"vectors": (torch.float32, shape), "group": (torch.int64, (count,))}
    if found != expected:
        raise CorruptVersionError(str(path), expected=str(expected), found=str(found)[:200])
    vectors_UD, group_N = tensors["vectors"].numpy(), tensors["group"].numpy()
    first_U = np.full(shape[0], count)
    try:
        floats(vectors_UD, "vectors")
    except DataError as error:
        raise CorruptVersionError(f"{path}: {error.what}", expected=error.expected, found=error.found) from error
    inside = not count or (group_N.min() >= 0 and group_N.max() < shape[0])
    if inside:
        np.minimum.at(first_U, group_N, np.arange(count))
    if not inside or (first_U == count).any() or (np.diff(first_U) < 0).any():
        raise CorruptVersionError(f"{path}: group", expected="each vector, by first position", found="other numbers")
    return vectors_UD, group_N
