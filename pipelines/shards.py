"""A table that no host can hold alone: its buckets shared out by row range, to processes that give rows of them.

    front     distinct rows of a request  3  9 | 517 | 801 803      one call a shard, with the version's id
    shards                                0        1     2          each maps, fetches and checks its buckets only

Who asks names the version, so an answer is of that one whole, whatever is promoted meanwhile: a shard keeps the
versions asked for last, and opens one that it no longer has. Fronts swap to a version when all shards have it.

Shape suffixes: T rows asked for, R distinct ones, ascending, D numbers of a row, K shards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embstore.ctr import BuildNetwork
from embstore.errors import DeadlineError, EmbstoreError, RequestError, UnavailableError
from embstore.kernels.plan import LookupPlan
from embstore.serving.reader import Reader
from embstore.serving.settings import ServeSettings
from embstore.serving.versions import Following, Versions
from embstore.serving.worker import WarmReader
from embstore.store import Store, Version
from embstore.store.manifest import Layout
from embstore.tokens import Tokens

ASK_SECONDS = 5.0  # for an answer of a shard, where a request has no deadline that is sooner
LOAD_SECONDS = 1800.0
_TRIES = 3  # of a call whose shard died; rows of a version are the same whoever gives them
_KEPT = 4  # versions: what aliases mean, and those that fronts go on answering from
_SMALL_ROWS = 4096  # more are gathered beside other requests


def buckets_of(layout: Layout, shard: int, shards: int) -> range:
    """The buckets of a shard, neighbours; as many as the others have, or one fewer."""
    return range(layout.buckets * shard // shards, layout.buckets * (shard + 1) // shards)


def bounds_of(layout: Layout, shards: int) -> torch.Tensor:
    """First row of each shard, and the table's rows, int64 ``[K + 1]``."""
    first = [min(buckets_of(layout, shard, shards).start * layout.bucket_rows, layout.rows) for shard in range(shards)]
    return torch.tensor([*first, layout.rows])


class PartReader(Reader):
    """A reader of some of a version's buckets.

    Args:
        shard, shards: which, of how many.
    """

    def __init__(self, version: Version, shard: int, shards: int) -> None:
        super().__init__(version)
        self.buckets = buckets_of(version.table.layout, shard, shards)

    def load(self, *, progress: Any = None) -> None:
        """Map, fetch and check them."""
        self.version.table.buckets.check(self.buckets, progress=progress)

    def gather(self, rows_R: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Rows of these buckets, as ``VersionTable.gather`` gives them, ``[R, bytes]``.

        Raises:
            RequestError: rows of other buckets.
        """
        table, own = self.version.table, self.buckets
        first, last = own.start * table.layout.bucket_rows, own.stop * table.layout.bucket_rows
        if len(rows_R) and not first <= rows_R.min() <= rows_R.max() < last:
            found = f"{rows_R.min():,} to {rows_R.max():,}"
            raise RequestError("rows of a shard", expected=f"{first:,} to {last - 1:,}", found=found)
        rows_RD = table.gather(torch.tensor(rows_R))
        return rows_RD.contiguous().view(torch.uint8).numpy()


class Shard:
    """What one of the processes that hold the table does.

    Args:
        settings: of the server.
        shard, shards: which, of how many.
    """

    def __init__(self, settings: ServeSettings, shard: int, shards: int) -> None:
        self._versions = Versions(
            Store(settings.store),
            Following(alias=settings.alias, seconds=settings.poll_seconds, kept=_KEPT),
            open_reader=lambda version: PartReader(version, shard, shards),
        )
        self._versions.follow()

    def close(self) -> None:
        """End watching."""
        self._versions.close()

    async def load(self, version: str) -> None:
        """Have a version at hand."""
        await self._reader(version)

    async def gather(self, version: str, rows_R: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Rows of a version, ``[R, bytes]``."""
        reader = await self._reader(version)
        if len(rows_R) <= _SMALL_ROWS:
            return reader.gather(rows_R)
        return await asyncio.to_thread(reader.gather, rows_R)

    async def _reader(self, version: str) -> PartReader:
        reader = self._versions.ready(version)
        if reader is None:
            reader = await asyncio.to_thread(self._versions.get, version)
        assert isinstance(reader, PartReader)
        return reader


@dataclass(frozen=True)
class Rows:
    """Rows of a version that were asked for.

    Args:
        row_R: int64, ascending.
        rows_RD: in the table's dtype.
    """

    row_R: torch.Tensor
    rows_RD: torch.Tensor

    def has(self, rows_T: torch.Tensor) -> bool:
        """Whether all of these are among them."""
        place_T = torch.searchsorted(self.row_R, rows_T)
        if not len(rows_T):
            return True
        return int(place_T.max()) < len(self.row_R) and torch.equal(self.row_R[place_T], rows_T)

    def gather(self, rows_T: torch.Tensor) -> torch.Tensor:
        """As ``VersionTable.gather``, of rows that are among them."""
        return self.rows_RD.index_select(0, torch.searchsorted(self.row_R, rows_T))


class Shards:
    """All of a table's shards, asked at once.

    Args:
        handles: of their deployments, in the order of their rows.
    """

    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles = handles

    def load(self, version: str) -> None:
        """Have every shard load a version.

        Raises:
            UnavailableError: one can't be asked.
            EmbstoreError: as a shard raised it.
        """
        calls = dict.fromkeys(range(len(self._handles)), ("load", (version,)))
        self._ask(calls, monotonic() + LOAD_SECONDS)

    def gather(self, version: Version, rows_T: torch.Tensor, deadline: float | None = None) -> Rows:
        """Rows of a version.

        Raises:
            DeadlineError: they came too late.
            UnavailableError: a shard can't be asked.
            EmbstoreError: as a shard raised it.
        """
        table, row_R = version.table, rows_T.unique()
        cuts = torch.searchsorted(row_R, bounds_of(table.layout, len(self._handles))).tolist()
        parts = {shard: row_R[cuts[shard] : cuts[shard + 1]].numpy() for shard in range(len(self._handles))}
        calls = {shard: ("gather", (version.id, rows)) for shard, rows in parts.items() if len(rows)}
        until = monotonic() + ASK_SECONDS
        found = self._ask(calls, until if deadline is None else min(until, deadline), is_late=deadline is not None)
        rows_RD = torch.empty(len(row_R), table.dim, dtype=table.dtype)
        into = rows_RD.view(torch.uint8).numpy()
        for shard, rows in found.items():
            into[cuts[shard] : cuts[shard + 1]] = rows
        return Rows(row_R, rows_RD)

    def _ask(
        self, calls: Mapping[int, tuple[str, tuple[Any, ...]]], until: float, *, is_late: bool = False
    ) -> dict[int, Any]:
        """Call shards, each by a method and its arguments; those that died meanwhile again."""
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import RayServeException

        found: dict[int, Any] = {}
        last: Exception | None = None
        for _ in range(_TRIES):
            left = {shard: call for shard, call in calls.items() if shard not in found}
            asked = {shard: getattr(self._handles[shard], name).remote(*of) for shard, (name, of) in left.items()}
            for shard, response in asked.items():
                try:
                    found[shard] = response.result(timeout_s=max(0.0, until - monotonic()))
                except TimeoutError as error:
                    for other in asked.values():
                        other.cancel()
                    raise _late(shard, is_late) from error
                except RayTaskError as error:  # its text is a traceback
                    if isinstance(error.cause, EmbstoreError):
                        raise error.cause from None
                    raise
                except (RayActorError, RayServeException) as error:
                    last = error
            if len(found) == len(calls):
                return found
        missing = min(calls.keys() - found.keys())
        raise UnavailableError(f"shard {missing}", expected="rows", found="none", do="ask again") from last


class DistantReader(WarmReader):
    """A reader of a version whose rows are the shards'; what it gives is the same, bit for bit.

    Args:
        version: opened; its table is not read.
        build: as of ``Reader``.
        shards: asked for rows.
    """

    waits = True

    def __init__(self, version: Version, build: BuildNetwork | None, shards: Shards) -> None:
        super().__init__(version, build)
        self._table, self._shards = None, shards
        self._rows: Rows | None = None  # that were read ahead

    def load_rows(self, *, progress: Any = None) -> None:
        """Have the shards load them."""
        self._shards.load(self.version.id)

    def ahead(self, tokens: Mapping[str, Tokens], deadline: float | None = None) -> DistantReader:
        """A reader that has the rows of these tokens, from one call of each shard.

        Raises:
            DeadlineError, UnavailableError: as ``Shards.gather``.
        """
        plan = self.version.plan.only(*tokens)
        tokens_of = {name: torch.from_numpy(of.values.view(np.int64)) for name, of in tokens.items()}
        rows = [plan.rows_of(lookup, tokens_of[lookup.feature]) for lookup in plan.lookups]
        near = copy(self)
        near._rows = self._shards.gather(self.version, torch.cat(rows), deadline)
        return near

    def vectors(self, plan: LookupPlan, tokens: Mapping[str, Tokens], rows: int) -> NDArray[np.float32]:
        """As ``Reader.vectors``."""
        if self._rows is None:
            return self.ahead({name: tokens[name] for name in plan.names}).vectors(plan, tokens, rows)
        return super().vectors(plan, tokens, rows)

    def _gather(self, rows_T: torch.Tensor) -> torch.Tensor:
        rows = self._rows
        if rows is None or not rows.has(rows_T):
            rows = self._shards.gather(self.version, rows_T)
        rows_TD = rows.gather(rows_T)
        return rows_TD.float() if rows_TD.dtype == torch.float64 else rows_TD


def _late(shard: int, is_late: bool) -> EmbstoreError:
    if is_late:
        return DeadlineError("request", expected="rows in time", found=f"none of shard {shard}", do="give it more time")
    return UnavailableError(f"shard {shard}", expected=f"rows in {ASK_SECONDS:g} s", found="none", do="ask again")
