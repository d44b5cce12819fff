"""Deltas: a version published as the rows that changed since another one.

    delta/rows.safetensors
        index            int64 [R], ascending: which rows of the table
        rows             [R, width]: their new values, as the manifest's delta.encoding says
        optimizer.NAME   the same rows of the optimizer's tensors, when the version has its state

The dense model is small and always whole. A delta names its base and the sha256 of the base's manifest, so it can't be
applied to anything else; readers lay deltas over the whole version at the end of the chain, oldest first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embstore.distributed import ALONE, Group
from embstore.errors import CorruptVersionError, StoreError
from embstore.store.bundle import Bundle, Change, Progress
from embstore.store.files import FileDigest
from embstore.store.manifest import MAX_DEPTH, DeltaInfo, Layout, OptimizerInfo
from embstore.store.overlays import Overlay
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
from embstore.store.tensors import open_tensors, write_tensors

_CHUNK_ROWS = 1 << 17  # compared at a time
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def changed_rows(bundle: Bundle, layout: Layout, change: Change, progress: Progress | None) -> Tensor:
    """int64, ascending: rows of the bundle's that differ from the base's by more than ``significance`` or, when that is
    0, at all.

    So must what readers would have of them in the delta's encoding: else a quantised row, which is never quite the
    trained one, would be published again for ever. A row that waits keeps its optimizer state, too: nearly every state
    of a row that was trained differs in a bit.

    Raises:
        StoreError: the base has another layout, or a setting can't be.
    """
    _check(bundle, layout, change)
    base, table = change.base, bundle.table
    states = {} if bundle.optimizer is None or change.significance else bundle.optimizer.table
    encoding = change.encoding or encoding_of(table.dtype)
    found = []
    for index_R in _candidates(change, bundle.rows):
        ours_RD, theirs_RD = table.gather(index_R), base.table.gather(index_R)
        changed_R = _moved(ours_RD, theirs_RD, change.significance)
        if encoding != encoding_of(table.dtype):
            stored_RS = encode(ours_RD[changed_R], encoding)
            read_RD = decode(stored_RS, encoding, layout.dim).to(layout.dtype)
            changed_R[changed_R.clone()] = _moved(read_RD, theirs_RD[changed_R], change.significance)
        before = base.optimizer_rows.gather(index_R) if states else {}
        for name, tensor in states.items():
            changed_R |= _differ(_of_rows(tensor, index_R - bundle.rows.start), before[name])
        found.append(index_R[changed_R])
        if progress:
            progress("compare", int(index_R[-1]) + 1, table.num_rows)
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def is_smaller(bundle: Bundle, change: Change, rows: int) -> bool:
    """Whether a delta of so many rows takes fewer bytes than the whole table as it was trained."""
    table, state = bundle.table, 0 if bundle.optimizer is None else bundle.optimizer.row_bytes
    encoding = change.encoding or encoding_of(table.dtype)
    in_delta = 8 + stored_width(encoding, table.dim) * stored_dtype(encoding).itemsize + state  # 8: of its index
    return rows * in_delta < table.num_rows * (table.dim * table.dtype.itemsize + state)


def write_delta(
    path: Path,
    bundle: Bundle,
    layout: Layout,
    change: Change,
    index_R: Tensor,
    body: dict[str, Any],
    group: Group = ALONE,
) -> FileDigest:
    """Write the changed rows of ``bundle``; what the delta is, is written into ``body``.

    Rank 0 of a group gathers those of all and writes them; its ``body`` alone says so.
    """
    base = change.base
    encoding = change.encoding or encoding_of(bundle.table.dtype)
    rows_RD = bundle.table.gather(index_R)
    state = {} if bundle.optimizer is None else bundle.optimizer.table
    state = {name: _of_rows(of, index_R - bundle.rows.start) for name, of in state.items()}
    index_R, rows_RD, *states = (torch.cat(group.collect(of)) for of in (index_R, rows_RD, *state.values()))

    def write() -> FileDigest:
        stored_RS = encode(rows_RD, encoding)
        body["delta"] = {
            "base": base.id,
            "base_digest": base.digest,
            "rows": len(index_R),
            "encoding": encoding,
            "significance": float(change.significance),
            "depth": 1 + (base.delta.depth if base.delta is not None else 0),
        }
        if encoding != encoding_of(bundle.table.dtype):
            body["delta"]["loss"] = Loss.of_rows(rows_RD, decode(stored_RS, encoding, layout.dim)).report()
        tensors = {"index": index_R, "rows": stored_RS}
        tensors |= {f"optimizer.{name}": of for name, of in zip(state, states, strict=True)}
        return write_tensors(path, tensors)

    return FileDigest(*group.lead(write))


def read_delta_rows(
    path: Path, sha256: str, delta: DeltaInfo, layout: Layout, optimizer: OptimizerInfo | None
) -> tuple[Overlay, dict[str, Tensor]]:
    """The changed rows, and those of the optimizer's tensors.

    Raises:
        CorruptVersionError: the file is not what the manifest says.
    """
    tensors = open_tensors(path, sha256=sha256)
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "index": (torch.int64, (delta.rows,)),
        "rows": (stored_dtype(delta.encoding), (delta.rows, stored_width(delta.encoding, layout.dim))),
    }
    for name, (dtype, width) in ({} if optimizer is None else optimizer.tensors).items():
        expected[f"optimizer.{name}"] = dtype, (delta.rows, width) if width else (delta.rows,)
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != expected:
        raise CorruptVersionError(str(path), expected=f"tensors {expected}", found=f"{found}")
    index_R = tensors["index"]
    ascending = bool((index_R[1:] > index_R[:-1]).all())
    if len(index_R) and not (ascending and int(index_R[0]) >= 0 and int(index_R[-1]) < layout.rows):
        raise CorruptVersionError(f"{path}: index", expected=f"ascending rows of {layout.rows:,}", found="others")
    rows_RD = decode(tensors["rows"], delta.encoding, layout.dim).to(layout.dtype)
    state = {name: tensors[f"optimizer.{name}"] for name in ({} if optimizer is None else optimizer.tensors)}
    return Overlay(index_R, rows_RD), state


def _check(bundle: Bundle, layout: Layout, change: Change) -> None:
    base, table = change.base, bundle.table
    encoding = change.encoding or encoding_of(table.dtype)
    if encoding not in ENCODINGS:
        raise StoreError("delta encoding", expected=", ".join(ENCODINGS), found=repr(encoding))
    check_dim(encoding, table.dim)
    if not 0 <= change.significance < float("inf"):
        raise StoreError("delta significance", expected="0 or more", found=str(change.significance))
    do = "publish it whole"
    if layout != base.table.layout or table.dtype != base.table.dtype:
        found = f"{layout}, rows of {table.dtype}"
        raise StoreError(f"a delta of {base.id}", expected=f"its layout {base.table.layout}", found=found, do=do)
    if table.describe()["features"] != base.table.describe()["features"]:
        raise StoreError(f"a delta of {base.id}", expected="its features", found="others", do=do)
    tokens = table.exact_tokens()
    if any(not torch.equal(known, tokens[name]) for name, known in base.table.exact_tokens().items()):
        raise StoreError(f"a delta of {base.id}", expected="its exact tokens", found="others", do=do)
    if base.delta is not None and base.delta.depth >= MAX_DEPTH:
        full = f"publish it whole, or make its base whole first: embstore compact {base.id}"
        raise StoreError(f"a delta of {base.id}", expected=f"at most {MAX_DEPTH} in a chain", found="more", do=full)
    ours = None if bundle.optimizer is None else (bundle.optimizer.name, bundle.optimizer.kinds(len(bundle.rows)))
    theirs = None if base.optimizer is None else (base.optimizer.name, base.optimizer.tensors)
    if ours is not None and ours != theirs:
        expected = f"a base with the optimizer's state, {ours}"
        raise StoreError(f"a delta of {base.id}", expected=expected, found=str(theirs), do=do)


def _candidates(change: Change, rows: range) -> Iterator[Tensor]:
    if change.touched is None:
        for start in range(rows.start, rows.stop, _CHUNK_ROWS):
            yield torch.arange(start, min(start + _CHUNK_ROWS, rows.stop))
        return
    touched_R = change.touched.cpu()
    ascending = bool((touched_R[1:] > touched_R[:-1]).all())
    inside = not len(touched_R) or (int(touched_R[0]) >= rows.start and int(touched_R[-1]) < rows.stop)
    if touched_R.dtype != torch.int64 or touched_R.dim() != 1 or not (ascending and inside):
        raise StoreError("touched rows", expected=f"int64, ascending, of {len(rows):,}", found=f"{touched_R.dtype}")
    yield from (part for part in touched_R.split(_CHUNK_ROWS) if len(part))


def _of_rows(tensor: Tensor, index_R: Tensor) -> Tensor:
    return tensor.detach().index_select(0, index_R.to(tensor.device)).cpu()


def _moved(ours_RD: Tensor, theirs_RD: Tensor, significance: float) -> Tensor:
    """Which rows are others: by more than ``significance`` (L2), or in a bit when that is 0."""
    if significance:
        return (ours_RD.double() - theirs_RD.double()).norm(dim=1) > significance
    return _differ(ours_RD, theirs_RD)


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Which rows differ in a bit (as numbers, -0 and 0 or two NaNs would not do)."""
    kind = _BITS[one.dtype.itemsize]
    different = one.contiguous().view(kind) != other.contiguous().view(kind)
    return different.reshape(len(one), -1).any(dim=1)
