"""Training that goes on: from a published version, publishing what changes as deltas on its way.

    store     v1 ──start──> run over the next log ──every 10 minutes──> v2 (delta of v1), v3 (delta of v2), ...
                                                  └─every 10 versions─> a whole one

A run that began nowhere begins with a whole version. A version that can't be published, or not promoted, doesn't end
the training: it is warned of, and the next is tried when it is due. Only at the end is either an error.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch

from embstore.checkpoints import load_adam
from embstore.ctr import CtrModel
from embstore.distributed import ALONE, Group
from embstore.errors import (
    ConfigError,
    CorruptVersionError,
    EmbstoreError,
    GroupError,
    SchemaError,
    StoreError,
    VersionNotFoundError,
    nearest,
)
from embstore.store import Bundle, Change, Lease, Store, Version
from embstore.store.documents import Fields, read_json
from embstore.store.files import read_small, replace_small
from embstore.store.manifest import MAX_SMALL_BYTES, VERSION_ID
from embstore.store.place import location
from embstore.store.quantization import ENCODINGS, check_dim
from embstore.store.state import ALIAS, LATEST, PREVIOUS

LEASE_SECONDS = 6 * 3600.0  # so long gc leaves the base of a run that died; a run renews it well before
PUBLISHED = "published.json"  # in the run's folder
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
        whole_every: versions from one that is whole to the next; those between are deltas, where that is smaller.
        significance: of deltas: rows that changed by no more (L2) wait until they have. A penalty on the table (``l2``)
            moves every row a little at every step: without, such deltas hold them all, and are published whole.
        encoding: of deltas' rows: a dtype, ``int8`` or ``int4``; the table's own dtype when not given.
        alias: what to promote each version to, e.g. ``"canary"``.
        vocabulary: publish the values of the training log, counted once, as the vocabulary: of all features, or of
            those named. To that of a version the run goes on from they are added; it is published in any case.
    """

    store: str
    every_minutes: float | None = None
    every_rows: int | None = None
    whole_every: int = 10
    significance: float = 0.0
    encoding: str | None = None
    alias: str | None = None
    vocabulary: bool | tuple[str, ...] = False

    def __post_init__(self) -> None:
        for name, least in (("every_minutes", 0.0), ("every_rows", 0), ("whole_every", 0)):
            value = getattr(self, name)
            if value is not None and not value > least:
                raise ConfigError(f"publish.{name}", expected=f"more than {least:g}", found=str(value))
        if not 0 <= self.significance < float("inf"):
            raise ConfigError("publish.significance", expected="0 or more", found=str(self.significance))
        # Known now, not when hours of training are over.
        if self.encoding is not None and self.encoding not in ENCODINGS:
            raise ConfigError(f"publish.encoding: unknown {self.encoding!r}", do=nearest(self.encoding, ENCODINGS))
        if self.alias is not None and (not ALIAS.fullmatch(self.alias) or self.alias in (LATEST, PREVIOUS)):
            expected = f"a lower-case word other than {LATEST} and {PREVIOUS}"
            raise ConfigError("publish.alias", expected=expected, found=repr(self.alias))


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
    model.load_dense(version.dense, origin=f"version {version.id}")
    if version.optimizer is None:
        return False
    state = version.optimizer_state(table.shard)
    table.load_optimizer_state(state)
    load_adam(adam, state.dense)
    return True


def check_columns(types: Mapping[str, str], before: Mapping[str, str], *, trained: str, do: str) -> None:
    """A value of another type is another token: what a model has learnt of it would not be found again.

    Args:
        types: by feature, of its values in a log (``ParquetLog.value_types``).
        before: the same of the log that the model was trained on.
        trained: the model, for messages.
        do: what to do.

    Raises:
        SchemaError: a feature's column has not the type it had when the model was trained.
    """

    def written(kind: str) -> str:
        return re.sub(r"u?int(8|16|32|64)", "integer", kind.replace("large_", ""))

    for name, kind in types.items():
        expected = before.get(name, kind)
        if written(kind) != written(expected):
            raise SchemaError(
                f"feature {name!r} of the log", expected=f"{expected}, as when {trained} was trained", found=kind, do=do
            )


def published(store: Store, folder: Path, group: Group = ALONE) -> Version | None:
    """The version published last of the run in a folder, as its ``published.json`` says, if it is in this store.

    Args:
        group: processes that open it together; rank 0 reads the file.

    Raises:
        CorruptVersionError: the file can't be read or says something else, or the version is not what was published.
    """
    path = folder / PUBLISHED

    def recorded() -> str | None:
        if not path.exists():
            return None
        return Fields(read_json(read_small(path, MAX_SMALL_BYTES), str(path)), str(path)).text("version", VERSION_ID)

    version = group.lead(recorded)
    try:
        return None if version is None else store.open(version, group=group)
    except VersionNotFoundError:  # another store, or collected
        return None


class Publisher:
    """Publishes a model while it is trained, and holds what the next version may be a delta of, so that gc leaves it.

    A context manager: entering the block takes the lease of it, leaving the block lets go of it.

    Args:
        settings: when and how.
        model: whose table is tracked from now on.
        bundle: makes what is published of the model as it is.
        folder: of the run; ``published.json`` there names the version published last.
        start: the version the run began from, if it lies in the same store.
        say: told what was published.
        warn: told what went wrong, though training goes on.
        group: processes that train the model together; they publish together, or none of them does.

    ``last`` is the version published last, or ``start``.

    Raises:
        ConfigError: settings that don't fit the table or the store.
    """

    def __init__(
        self,
        settings: PublishSettings,
        model: CtrModel,
        bundle: Callable[[], Bundle],
        folder: Path,
        *,
        start: Version | None = None,
        say: Callable[[str], object] = lambda text: None,
        warn: Callable[[str], object] = lambda text: None,
        group: Group = ALONE,
    ) -> None:
        self.settings, self.model, self.bundle, self.folder = settings, model, bundle, folder
        self.store, self.path, self.group = Store(settings.store), folder / PUBLISHED, group
        self._say, self._warn = say, warn
        if settings.encoding is not None:
            check_dim(settings.encoding, model.table.dim)
        if group.lead(lambda: settings.alias in self.store.tags()):
            raise ConfigError("publish.alias", expected="a name that is no tag", found=f"the tag {settings.alias}")
        # What a crashed run trained after its last checkpoint is gone, though it may have been published: only rows
        # touched by this process since a version of its own are known.
        self._tracked = self._whole = False
        self.last = self._published() or start
        self._lease: Lease | None = None
        self._renewal = float("inf")
        self._rows, self._due = 0, self._next()
        model.table.track_changes()

    def __enter__(self) -> Publisher:
        self._hold()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lease is not None:
            self._let_go(self._lease)

    def step(self, rows: int) -> Version | None:
        """After a training step of so many rows: the version that was due, if one was and could be published."""
        self._rows += rows
        if monotonic() >= self._renewal:
            self._renew()
        if not self._is_due():
            return None
        before = self.last
        try:
            version = self.publish()
        except GroupError:  # another rank has failed for good
            raise
        except (EmbstoreError, OSError) as error:
            self._rows, self._due = 0, self._next()
            self._warn(f"not published: {error}; tried again when the next version is due")
            return None
        return None if version is before else version

    def _is_due(self) -> bool:
        settings, due = self.settings, False
        if settings.every_minutes is not None:  # clocks differ
            (due,) = self.group.any(monotonic() >= self._due)
        return due or (settings.every_rows is not None and self._rows >= settings.every_rows)

    def finish(self) -> Version:
        """Publish the model as training has left it: maybe an earlier one put back.

        Raises:
            StoreError: it can't be published; or it is, but not promoted.
        """
        try:
            version = self._publish(restored=True)
        except GroupError:
            raise
        except (EmbstoreError, OSError) as error:
            command = shlex.join(["embstore", "publish", str(self.folder), "--store", self.settings.store])
            do = f"nothing that was trained is lost: publish it with `{command}`"
            raise StoreError(f"{self.folder} is trained, but not published", found=str(error), do=do) from error
        self._promote(version)
        return version

    def publish(self, *, restored: bool = False) -> Version:
        """Publish now: a delta of the last version where it can be one and is smaller than the whole.

        Args:
            restored: the model isn't the trained one any more but an earlier one put back.

        Returns:
            The version; ``last`` when it would be a delta of that, and nothing has changed.

        Raises:
            StoreError: it can't be published.
        """
        version = self._publish(restored)
        try:
            self._promote(version)
        except StoreError as error:
            self._warn(str(error))
        return version

    def _publish(self, restored: bool) -> Version:
        table, before, training = self.model.table, self.last, self.model.table.training
        change, parent = self._change(restored), None if before is None else before.id
        try:
            version = self.store.publish(self.bundle(), parent=parent, change=change, group=self.group)
        except (VersionNotFoundError, CorruptVersionError) as error:  # its base was collected, or is damaged
            if change is None:
                raise
            self._warn(f"no delta of {parent}: {error}; publishing whole")
            change = None
            version = self.store.publish(self.bundle(), parent=parent, group=self.group)
        finally:
            table.train(training)
        if before is not None and version.id == before.id:
            version = before
            self._say(f"nothing has changed since {version.id}: not published again")
        else:
            self.last, self._whole = version, False
            self._hold()
            self._record(version)
            whole = change is not None and version.delta is None
            self._say(f"published {version.id}{', whole: a delta would be no smaller' if whole else ''}")
        table.forget_changes()
        self._tracked = True
        self._rows, self._due = 0, self._next()
        return version

    def _change(self, restored: bool) -> Change | None:
        """What the next version is a delta of, if it may be one."""
        settings, last = self.settings, self.last
        if self._whole or last is None or last.optimizer is None:
            return None
        if (0 if last.delta is None else last.delta.depth) >= settings.whole_every - 1:
            return None
        known = self._tracked and not restored and settings.significance == 0
        return Change(
            base=last,
            touched=self.model.table.changed_rows() if known else None,
            significance=settings.significance,
            encoding=settings.encoding,
            smallest=True,
        )

    def _promote(self, version: Version) -> None:
        alias = self.settings.alias
        if alias is None:
            return
        try:
            self.group.lead(lambda: self.store.promote(version.id, alias).id)
        except (StoreError, OSError) as error:
            command = shlex.join(["embstore", "promote", version.id, "--alias", alias, "--store", self.settings.store])
            what, do = f"{version.id} is published, but not {alias}", f"`{command}` promotes it"
            raise StoreError(what, found=str(error), do=do) from error

    def _next(self) -> float:
        minutes = self.settings.every_minutes
        return float("inf") if minutes is None else monotonic() + 60 * minutes

    def _hold(self) -> None:
        """Lease what the next version may be a delta of, and let go of what was leased before: rank 0, for all."""
        if not self.group.first:
            return
        before, self._lease = self._lease, None
        if self.last is not None:
            self._renewal = monotonic() + LEASE_SECONDS / 3
            try:
                self._lease = self.store.lease(self.last.id, seconds=LEASE_SECONDS)
            except (StoreError, OSError) as error:
                self._warn(f"{self.last.id} can't be kept from gc: {error}; if it goes, the next version is whole")
        if before is not None:
            self._let_go(before)

    def _renew(self) -> None:
        if self._lease is None:
            return self._hold()
        self._renewal = monotonic() + LEASE_SECONDS / 3
        try:
            self._lease.renew()
        except (StoreError, OSError) as error:
            self._warn(f"{self._lease.version} can't be kept from gc: {error}; if it goes, the next version is whole")

    def _let_go(self, lease: Lease) -> None:
        try:
            lease.release()
        except (StoreError, OSError) as error:
            self._warn(f"{lease.version} is kept from gc until {lease.until}: {error}")

    def _record(self, version: Version) -> None:
        if not self.group.first:
            return
        try:
            replace_small(self.path, json.dumps({"version": version.id}).encode())
        except OSError as error:  # the file of an earlier one, then: a resumed run compares all rows with that
            self._warn(f"{self.path} can't be written: {error}; {version.id} is published all the same")

    def _published(self) -> Version | None:
        """What ``published.json`` names; when that is damaged the next version is whole."""
        try:
            return published(self.store, self.folder, self.group)
        except CorruptVersionError as error:
            self._whole = True
            self._warn(f"{error}; the next version is whole")
            return None
