"""What changed from one version to another: settings, features, metrics, and how far the rows moved.

Rows are compared where row ``i`` means the same in both: the hashed rows when the hash and its sizes are the same, and
each exact feature's block when its tokens are. ``Difference.incomparable`` says where that is not so, and why. What is
compared are the numbers that readers get, decoded: between two encodings most rows differ by what storing them has
cost, and ``Difference.encodings`` says which they are. Tables are streamed, some MiB at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch

from embstore.store.bundle import Progress, TableSource
from embstore.store.version import Version

QUANTILES = (0.5, 0.9, 0.99)
SHARED = "(shared rows)"
_CHUNK_BYTES = 8 << 20
# The upper bits of a positive float32 order it among others: these bins are at most 1/256 of their value wide.
_BIN_SHIFT = 15
_HASH = ("hash_spec", "seed", "hashed_rows", "num_tables")

Change = tuple[Any, Any]
"""A value in the old version and in the new; ``None`` where there is none."""


@dataclass(frozen=True, kw_only=True)
class RowChanges:
    """How far rows moved, by the L2 norm of new row minus old row.

    Args:
        rows: compared.
        changed: of them, not equal in every number.
        not_finite: rows with NaN or infinity, old or new; the numbers below leave them out, and are ``None`` when no
            row is left.
        mean: of the norm of the change, over all rows.
        max: of the same.
        quantiles: of the same, by share of rows; each the norm of some row, to within 1 part in 256.
        norm_before: mean norm of the old rows.
        norm_after: mean norm of the new rows.
    """

    rows: int
    changed: int
    not_finite: int
    mean: float | None
    max: float | None
    quantiles: dict[float, float | None]
    norm_before: float | None
    norm_after: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What changed; a mapping holds only what did, under dotted keys, as ``(old, new)``.

    Args:
        old: version id.
        new: version id.
        same_space: whether vectors of the two can be compared at all.
        steps: from parent to child that lead from old to new, 0 for the same version; ``None`` if new does not descend
            from old.
        features_added: names, in the new schema's order.
        features_removed: names, in the old schema's order.
        features_changed: by feature, keys of its schema entry, ``rows``, and ``type``, the Arrow type in the log.
        dense_added: dense columns.
        dense_removed: dense columns.
        schema: all else that the schema says, e.g. ``label``.
        table: dim, dtype, rows and what else makes its layout.
        encodings: how rows are stored in the old and in the new; where the two differ, storing alone changes most rows.
        vocabulary: by feature, the kind of its values, how many there are and how many are kept.
        model: name, settings and widths.
        metrics: every number of either version, changed or not.
        lineage: logs, configuration and the like.
        rows: over all rows that can be compared; ``None`` when none can.
        features: the same for each feature that shares its rows with no other, and for the shared ones together.
        incomparable: why not, by feature or ``"(shared rows)"``.
    """

    old: str
    new: str
    same_space: bool
    steps: int | None
    features_added: tuple[str, ...]
    features_removed: tuple[str, ...]
    features_changed: dict[str, dict[str, Change]]
    dense_added: tuple[str, ...]
    dense_removed: tuple[str, ...]
    schema: dict[str, Change]
    table: dict[str, Change]
    encodings: tuple[str, str]
    vocabulary: dict[str, Change]
    model: dict[str, Change]
    metrics: dict[str, Change]
    lineage: dict[str, Change]
    rows: RowChanges | None
    features: dict[str, RowChanges]
    incomparable: dict[str, str]


def diff(
    old: Version, new: Version, *, ancestors: Sequence[str] | None = None, progress: Progress | None = None
) -> Difference:
    """Compare two versions; reads both tables once where they can be compared.

    Args:
        ancestors: of ``new``, the nearest first, as far as known; its parent when absent (``Store.diff`` knows all).
        progress: called with ``"diff"``, bytes of the old table compared, and bytes to compare.
    """
    if ancestors is None:
        ancestors = () if new.parent is None else (new.parent,)
    line = (new.id, *ancestors)
    rows, features, incomparable = _rows(old.table, new.table, progress)
    before, after = _features(old), _features(new)
    dense = [[column.name for column in version.schema.dense] for version in (old, new)]
    metrics = _changes(old.manifest["metrics"], new.manifest["metrics"], all_keys=True)
    return Difference(
        old=old.id,
        new=new.id,
        same_space=old.space == new.space,
        steps=line.index(old.id) if old.id in line else None,
        features_added=tuple(name for name in after if name not in before),
        features_removed=tuple(name for name in before if name not in after),
        features_changed={
            name: changes for name in after if name in before and (changes := _changes(before[name], after[name]))
        },
        dense_added=tuple(name for name in dense[1] if name not in dense[0]),
        dense_removed=tuple(name for name in dense[0] if name not in dense[1]),
        schema=_changes(*(_rest(version, set(dense[0]) & set(dense[1])) for version in (old, new))),
        table=_changes(old.manifest["table"], new.manifest["table"]),
        encodings=(old.table.encoding, new.table.encoding),
        vocabulary=_changes(*({name: asdict(of) for name, of in v.vocabulary_info.items()} for v in (old, new))),
        model=_changes(old.manifest["model"], new.manifest["model"]),
        metrics={key: pair for key, pair in metrics.items() if {} not in pair},  # a log nothing was measured on
        lineage=_changes(old.manifest["lineage"], new.manifest["lineage"]),
        rows=rows,
        features=features,
        incomparable=incomparable,
    )


def _features(version: Version) -> dict[str, dict[str, Any]]:
    types = version.manifest["columns"]
    return {entry["name"]: {**entry, "type": types.get(entry["name"])} for entry in version.manifest["features"]}


def _rest(version: Version, dense: set[str]) -> dict[str, Any]:
    """What the schema says but its features, and of dense columns but these."""
    values = {key: value for key, value in version.schema.to_dict().items() if key not in ("features", "dense")}
    columns = {column.name: asdict(column) for column in version.schema.dense if column.name in dense}
    return {**values, "dense": columns}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], *, all_keys: bool = False) -> dict[str, Change]:
    before, after = dict(_flat(old)), dict(_flat(new))
    pairs = {key: (before.get(key), after.get(key)) for key in {**before, **after}}
    return {key: pair for key, pair in pairs.items() if all_keys or pair[0] != pair[1]}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


@dataclass(frozen=True)
class _Piece:
    """Rows of one part: where they begin in the old table and in the new."""

    part: str
    old: int
    new: int
    size: int


def _rows(
    old: TableSource, new: TableSource, progress: Progress | None
) -> tuple[RowChanges | None, dict[str, RowChanges], dict[str, str]]:
    pieces, incomparable = _pieces(old, new)
    row_bytes = old.dim * old.dtype.itemsize
    total, done = sum(piece.size for piece in pieces) * row_bytes, 0
    step = max(1, _CHUNK_BYTES // (old.dim * 8))
    whole, features = _Moves(), {}
    for name, own in groupby(sorted(pieces, key=lambda piece: piece.part), lambda piece: piece.part):
        part = _Moves()
        for piece in own:
            for start in range(0, piece.size, step):
                stop = min(start + step, piece.size)
                before = old.read_rows(piece.old + start, piece.old + stop)
                part.add(before, new.read_rows(piece.new + start, piece.new + stop))
                done += (stop - start) * row_bytes
                if progress:
                    progress("diff", done, total)
        whole.merge(part)
        features[name] = part.summary()
    return whole.summary() if pieces else None, features, incomparable


def _pieces(old: TableSource, new: TableSource) -> tuple[list[_Piece], dict[str, str]]:
    """The rows that mean the same in both, each once, and why others don't."""
    ours, theirs = old.describe(), new.describe()
    if old.dim != new.dim:
        return [], {SHARED: f"{old.dim} numbers a row, now {new.dim}"}
    before = {entry["name"]: entry for entry in ours["features"]}
    after = {entry["name"]: entry for entry in theirs["features"]}
    out: list[_Piece] = []
    why: dict[str, str] = {}
    changed = [key for key in _HASH if ours[key] != theirs[key]]
    if changed:
        why[SHARED] = ", ".join(f"{key} {ours[key]}, now {theirs[key]}" for key in changed)
    else:
        # A range may have changed hands; then only what a feature has to itself in both is called by its name.
        owners = [_owners(described) for described in (ours, theirs)]
        bounds = sorted({0, ours["hashed_rows"], *(edge for known in owners for span in known for edge in span)})
        for low, high in pairwise(bounds):
            names = {_owner(known, low) for known in owners}
            name = names.pop() if len(names) == 1 else SHARED
            out.append(_Piece(name, low, low, high - low))
    tokens = old.exact_tokens(), new.exact_tokens()
    for name in sorted(tokens[0].keys() & tokens[1].keys()):
        known = tokens[0][name], tokens[1][name]
        if not torch.equal(*known):
            either = len(torch.cat(known).unique())
            why[name] = f"{either - len(known[0]):,} tokens added, {either - len(known[1]):,} removed"
        elif len(before[name]["rows"]) != len(after[name]["rows"]):
            why[name] = f"{len(before[name]['rows'])} lookups, now {len(after[name]['rows'])}"
        else:
            blocks = {
                (was["base"], now["base"], was["size"])
                for was, now in zip(before[name]["rows"], after[name]["rows"], strict=True)
            }
            out += [_Piece(name, *block) for block in sorted(blocks)]
    for name in sorted(before.keys() & after.keys()):
        if before[name]["exact"] != after[name]["exact"]:
            why[name] = "exact, now hashed" if before[name]["exact"] else "hashed, now exact"
    return out, why


def _owners(described: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    """Who has each stretch of the hashed rows: a feature, or several."""
    spans: dict[tuple[int, int], set[str]] = {}
    ranges = [
        (block["base"], block["base"] + block["size"], entry["name"])
        for entry in described["features"]
        if not entry["exact"]
        for block in entry["rows"]
    ]
    edges = sorted({edge for low, high, _ in ranges for edge in (low, high)})
    for low, high in pairwise(edges):
        spans[low, high] = {name for start, stop, name in ranges if start <= low and high <= stop}
    shared = {name for names in spans.values() if len(names) > 1 for name in names}
    return {
        span: next(iter(names)) if len(names) == 1 and not names & shared else SHARED for span, names in spans.items()
    }


def _owner(owners: Mapping[tuple[int, int], str], row: int) -> str:
    return next((name for (low, high), name in owners.items() if low <= row < high), SHARED)


class _Moves:
    """Counts, sums and a histogram over pairs of rows."""

    def __init__(self) -> None:
        self.rows = self.changed = self.finite = 0
        self.sums = np.zeros(3)  # of the norm of the change, of old rows, of new rows
        self.max = 0.0
        self.bins = np.zeros(1 << (31 - _BIN_SHIFT), np.int64)

    def add(self, old_ND: torch.Tensor, new_ND: torch.Tensor) -> None:
        """Rows, in the order of both."""
        old, new = (rows.to(torch.float64).numpy() for rows in (old_ND, new_ND))
        same = (old == new) | (np.isnan(old) & np.isnan(new))
        finite = np.isfinite(old).all(1) & np.isfinite(new).all(1)
        self.rows, self.changed = self.rows + len(old), self.changed + int((~same.all(1)).sum())
        if not finite.all():
            old, new = old[finite], new[finite]
        if not len(old):
            return
        moved, before, after = (np.sqrt(np.einsum("nd,nd->n", rows, rows)) for rows in (new - old, old, new))
        self.finite += len(old)
        self.sums += moved.sum(), before.sum(), after.sum()
        self.max = max(self.max, float(moved.max()))
        bits = np.minimum(moved, np.finfo(np.float32).max).astype(np.float32).view(np.uint32)
        self.bins += np.bincount(bits >> _BIN_SHIFT, minlength=len(self.bins))

    def merge(self, other: _Moves) -> None:
        """Those of other rows."""
        self.rows, self.changed = self.rows + other.rows, self.changed + other.changed
        self.finite, self.max = self.finite + other.finite, max(self.max, other.max)
        self.sums += other.sums
        self.bins += other.bins

    def summary(self) -> RowChanges:
        mean, before, after = (float(value) / self.finite if self.finite else None for value in self.sums)
        return RowChanges(
            rows=self.rows,
            changed=self.changed,
            not_finite=self.rows - self.finite,
            mean=mean,
            max=self.max if self.finite else None,
            quantiles={share: self._quantile(share) for share in QUANTILES},
            norm_before=before,
            norm_after=after,
        )

    def _quantile(self, share: float) -> float | None:
        if not self.finite:
            return None
        wanted = max(1, int(np.ceil(share * self.finite)))
        place = int(np.searchsorted(np.cumsum(self.bins), wanted))
        if place == 0:  # zero, and what is hardly more
            return 0.0
        middle = np.array([(place << _BIN_SHIFT) | (1 << (_BIN_SHIFT - 1))], np.uint32).view(np.float32)
        return min(float(middle[0]), self.max)
