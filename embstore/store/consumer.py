"""Following a store from elsewhere: what changed since a consumer's own position, in order.

A consumer keeps vectors somewhere else (a cache, a search index, another database). Its position, the version it has
applied last, is a small file of its own; any number of consumers follow one store at their own pace.

    position   v1                          v1 applied, and the file says so
    store      v1 <- v2 <- v3 = production    v2 and v3 are deltas: two updates of some rows
               v1 <- v2    w = production     w is no delta of v1: one update of the whole table
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from embstore.errors import CorruptVersionError, StoreError, VersionNotFoundError
from embstore.store.documents import Fields, read_json, write_json
from embstore.store.files import make_folder, read_small, replace_small
from embstore.store.manifest import SHA256, VERSION_ID
from embstore.store.registry import Store
from embstore.store.state import PRODUCTION
from embstore.store.version import Version

_MAX_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Update:
    """One step of a consumer.

    Args:
        version: what it will have applied.
        after: the version it must have applied before; ``None`` when ``whole``.
        whole: forget everything and take all rows of ``version.table``; the rows here are none.
        index_R: int64, ascending: rows that have changed.
        rows_RD: their vectors, in the table's dtype.
    """

    version: Version
    after: str | None
    whole: bool
    index_R: Tensor
    rows_RD: Tensor


class Consumer:
    """What is new for one consumer.

    Args:
        store: where versions come from.
        position: the consumer's file; made by the first ``commit``.
        ref: alias, tag or version to follow.

    >>> import tempfile
    >>> consumer = Consumer(Store(tempfile.mkdtemp()), Path(tempfile.mkdtemp()) / "position.json")
    >>> consumer.position is None
    True
    """

    def __init__(self, store: Store, position: str | Path, *, ref: str = PRODUCTION) -> None:
        self.store, self.path, self.ref = store, Path(position), ref

    @property
    def position(self) -> str | None:
        """The version applied last.

        Raises:
            CorruptVersionError: the file is damaged; delete it to take the whole table again.
        """
        return self._read()[0]

    def pending(self) -> Iterator[Update]:
        """Updates that lead from the position to what ``ref`` means now, in order; ``commit`` each when it is applied.

        A position that no chain of deltas leads from (a rollback, a version published whole, one that was collected)
        gives one whole update.

        Raises:
            VersionNotFoundError: ``ref`` means nothing.
            CorruptVersionError: a version is not what was published.
        """
        target = self.store.open(self.ref)
        position, digest = self._read()
        if position == target.id and digest == target.digest:
            return
        chain = self._chain(target, position, digest) if position is not None else None
        if chain is None:
            yield Update(version=target, after=None, whole=True, **_none(target))
            return
        after = position
        for version in chain:
            changes = version.changes() if version.delta is not None else None
            rows = {"index_R": changes.index_R, "rows_RD": changes.rows_RD} if changes is not None else _none(version)
            yield Update(version=version, after=after, whole=False, **rows)
            after = version.id

    def commit(self, update: Update) -> None:
        """Remember, durably, that an update has been applied.

        Raises:
            StoreError: another should have been applied before.
        """
        position = self.position
        if not update.whole and update.after != position:
            do = "apply updates in the order of pending()"
            raise StoreError(
                f"update to {update.version.id}", expected=f"after {update.after}", found=str(position), do=do
            )
        make_folder(self.path.parent)
        replace_small(self.path, write_json({"version": update.version.id, "digest": update.version.digest}))

    def _read(self) -> tuple[str | None, str | None]:
        if not self.path.exists():
            return None, None
        fields = Fields(read_json(read_small(self.path, _MAX_BYTES), str(self.path)), str(self.path))
        return fields.text("version", VERSION_ID), fields.text("digest", SHA256)

    def _chain(self, target: Version, position: str, digest: str | None) -> list[Version] | None:
        """Versions after the position up to the target, each a delta of the one before or the same rows compacted."""
        chain, at, seen = [], target, set()
        while at.id != position:
            if at.id in seen:
                raise CorruptVersionError(f"version {at.id}", expected="what it compacts to lie before", found="a ring")
            seen.add(at.id)
            chain.append(at)
            if at.base is not None:
                at = at.base
            elif at.compacts is not None and at.manifest["table"].get("loss") is None:  # the same rows, bit for bit
                try:
                    at = self.store.open(at.compacts)
                except VersionNotFoundError:
                    return None
            else:
                return None
        return chain[::-1] if at.digest == digest else None


def _none(version: Version) -> dict[str, Tensor]:
    empty_RD = torch.empty(0, version.table.dim, dtype=version.table.dtype)
    return {"index_R": torch.empty(0, dtype=torch.int64), "rows_RD": empty_RD}
