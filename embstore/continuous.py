"""Training that goes on: from a published version, publishing what changes as deltas on its way.

    store     v1 ──start──> run over the next log ──every 10 minutes──> v2 (delta of v1), v3 (delta of v2), ...
                                                  └─every 10 versions─> a whole one

A run that began nowhere begins with a whole version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch

from embstore.checkpoints import load_adam, load_into
from embstore.ctr import CtrModel
from embstore.distributed import ALONE, Group
from embstore.errors import ConfigError, SchemaError, VersionNotFoundError
from embstore.store import Bundle, Change, Store, Version
from embstore.store.files import replace_small
from embstore.store.place import location

_CHUNK_ROWS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """What a run goes on from: table, network, normalizer, and the state of both optimizers if the version has it.

    Args:
        store: its folder or URI.
        version: id, unique prefix of one, or alias; the run's ``config.yaml`` has the id it meant.
    """

    store: str
    version: str = "latest"


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """What a run publishes while it trains, and at its end.

    Args:
        store: its folder or URI; made when it doesn't exist.
        every_minutes, every_rows: publish when so much time or so many rows have passed since the last version;
            without either, only at the end.
        whole_every: versions from one that is whole to the next; those between are deltas.
        significance: of deltas: rows that changed by no more (L2) wait until they have.
        encoding: of deltas' rows: a dtype, ``int8`` or ``int4``; the table's own dtype when not given.
        alias: what to promote each version to, e.g. ``"canary"``.
    """

    store: str
    every_minutes: float | None = None
    every_rows: int | None = None
    whole_every: int = 10
    significance: float = 0.0
    encoding: str | None = None
    alias: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("every_minutes", 0.0), ("every_rows", 0), ("whole_every", 0)):
            value = getattr(self, name)
            if value is not None and not value > least:
                raise ConfigError(f"publish.{name}", expected=f"more than {least:g}", found=str(value))
        if not 0 <= self.significance < float("inf"):
            raise ConfigError("publish.significance", expected="0 or more", found=str(self.significance))


def place_of(store: str | Path) -> Path | str:
    """Where a store is, the same for all the names it has: a folder as a whole path, anything else as a URI.

    >>> place_of("s3://bucket/models/")
    's3://bucket/models'
    >>> place_of("file:///models") == place_of("/models/")
    True
    """
    where = location(store)
    return where.resolve() if isinstance(where, Path) else where


@torch.no_grad()
def load_version(model: CtrModel, adam: torch.optim.Optimizer, version: Version) -> bool:
    """Let a model be what a version is, in place.

    Args:
        model: with a table of the version's layout.
        adam: the network's optimizer.

    Returns:
        Whether the version had the optimizers' state, and it is theirs now.

    Raises:
        CheckpointError: another network.
        ConfigError: the state of another optimizer.
        CorruptVersionError: the version is not what was published.
    """
    table, first = model.table, model.table.shard.start
    for start in range(first, table.shard.stop, _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, table.shard.stop)
        table.weight[start - first : stop - first] = version.table.read_rows(start, stop).to(table.dtype)
    dense = torch.nn.ModuleDict({"normalizer": model.normalizer, "network": model.network})
    load_into(dense, version.dense, origin=f"version {version.id}")
    if version.optimizer is None:
        return False
    state = version.optimizer_state(table.shard)
    table.load_optimizer_state(state)
    load_adam(adam, state.dense)
    return True


def check_columns(types: Mapping[str, str], start: Version) -> None:
    """A value of another type is another token: what a version has learnt of it would not be found again.

    Args:
        types: by feature, of its values in the training log (``ParquetLog.value_types``).
        start: the version.

    Raises:
        SchemaError: a feature's column has not the type it had when the version was trained.
    """

    def written(kind: str) -> str:
        return re.sub(r"u?int(8|16|32|64)", "integer", kind.replace("large_", ""))

    for name, kind in types.items():
        before = start.manifest["columns"].get(name, kind)
        if written(kind) != written(before):
            raise SchemaError(
                f"feature {name!r} of the training log",
                expected=f"{before}, as when {start.id} was trained",
                found=kind,
                do="write the column as it was, or train a new table without --from",
            )


class Publisher:
    """Publishes a model while it is trained.

    Args:
        settings: when and how.
        model: whose table is tracked from now on.
        bundle: makes what is published of the model as it is.
        folder: of the run; ``published.json`` there names the version published last.
        start: the version the run began from, if it lies in the same store.
        group: processes that train the model together; they publish together.

    ``last`` is the version published last, or ``start``.
    """

    def __init__(
        self,
        settings: PublishSettings,
        model: CtrModel,
        bundle: Callable[[], Bundle],
        folder: Path,
        *,
        start: Version | None = None,
        group: Group = ALONE,
    ) -> None:
        self.settings, self.model, self.bundle, self.group = settings, model, bundle, group
        self.store, self.path = Store(settings.store), folder / "published.json"
        self.last = self._published() or start
        # What a crashed run trained after its last checkpoint is gone, though it may have been published: only rows
        # touched by this process since a version of its own are known.
        self._tracked = False
        self._rows, self._due = 0, self._next()
        model.table.track_changes()

    def step(self, rows: int) -> Version | None:
        """After a training step of so many rows: the version that was due, if one was."""
        self._rows += rows
        settings, due = self.settings, False
        if settings.every_minutes is not None:
            (due,) = self.group.any(monotonic() >= self._due)
        if due or (settings.every_rows is not None and self._rows >= settings.every_rows):
            return self.publish()
        return None

    def publish(self, *, restored: bool = False) -> Version:
        """Publish now: a delta of the last version where it can be one.

        Args:
            restored: the model isn't the trained one any more but an earlier one put back.
        """
        settings, table, last = self.settings, self.model.table, self.last
        change = None
        if last is not None and last.optimizer is not None and (last.delta is None or self._depth(last) < self._most):
            known = self._tracked and not restored and settings.significance == 0
            change = Change(
                base=last,
                touched=table.changed_rows() if known else None,
                significance=settings.significance,
                encoding=settings.encoding,
            )
        training, parent = table.training, None if last is None else last.id
        try:
            version = self.store.publish(self.bundle(), parent=parent, change=change, group=self.group)
        except VersionNotFoundError:
            if change is None:
                raise
            version = self.store.publish(
                self.bundle(), parent=parent, group=self.group
            )  # its base was collected: whole, then
        finally:
            table.train(training)
        if self.group.first:
            self._write(version)
        table.forget_changes()
        self.last, self._tracked = version, True
        self._rows, self._due = 0, self._next()
        if settings.alias is not None and self.group.first:
            self.store.promote(version.id, settings.alias)
        return version

    @property
    def _most(self) -> int:
        return self.settings.whole_every - 1

    @staticmethod
    def _depth(version: Version) -> int:
        return 0 if version.delta is None else version.delta.depth

    def _next(self) -> float:
        minutes = self.settings.every_minutes
        return float("inf") if minutes is None else monotonic() + 60 * minutes

    def _published(self) -> Version | None:
        if not self.path.exists():
            return None
        try:
            return self.store.open(json.loads(self.path.read_text())["version"])
        except VersionNotFoundError:  # another store, or collected
            return None

    def _write(self, version: Version) -> None:
        replace_small(self.path, json.dumps({"version": version.id}).encode())
