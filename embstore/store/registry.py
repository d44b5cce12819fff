"""The store: immutable versions, in a folder or a bucket, and the log that says which exist and what aliases mean.

    store/
        log/000000000001.json ...      append-only; an entry is the one point at which a version exists
        versions/<id>/                 see embstore.store.format
        versions/.tmp-<id>/            being written, or left by a crash

A version goes when no alias, tag or lease holds it, nor a later version that is based on it (``embstore.store.gc``).
What no entry of the log names does not exist: it is never read, and may be swept away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from obstore.store import ObjectStore
from torch import Tensor

from embstore.distributed import ALONE, Group
from embstore.errors import CorruptVersionError, StoreError, VersionNotFoundError, nearest
from embstore.store import gc, lease, verification
from embstore.store.bundle import Bundle, Change, Progress
from embstore.store.diff import Difference, diff
from embstore.store.gc import Collected
from embstore.store.lease import Lease
from embstore.store.local import LocalPlace
from embstore.store.log import Clock, Log, stamp, utc_now
from embstore.store.manifest import DeltaInfo
from embstore.store.objects import ObjectPlace
from embstore.store.place import Place, location
from embstore.store.publish import check_group, publish
from embstore.store.refs import check_living, check_store, resolve
from embstore.store.state import ALIAS, LATEST, PREVIOUS, PRODUCTION, TAG, State
from embstore.store.verification import Finding
from embstore.store.version import Version, read_body

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class VersionInfo:
    """What the log says of a version.

    Args:
        id: e.g. ``"20261124T034420Z-1f0c2a9b"``.
        number: of its log entry.
        created: UTC, e.g. ``"2026-11-24T03:44:20Z"``.
        parent: the version it was trained on from.
        digest: sha256 of its manifest.
        aliases: names that mean it now, ``latest`` included.
        tags: names that mean it until they are taken off.
    """

    id: str
    number: int
    created: str
    parent: str | None
    digest: str
    aliases: tuple[str, ...]
    tags: tuple[str, ...]


class Store:
    """Versions in a folder or a bucket.

    A ref is a version's id, a unique prefix of it, an alias or a tag. Two aliases need no setting: ``latest`` is the
    version published last, ``previous`` what ``production`` was before. A tag never moves.

    Args:
        path: a folder; a URI such as ``file:///srv/store``, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or
            ``az://container/prefix``; or an ``obstore`` store with credentials of its own. The first publish makes it.
        cache: of stores in buckets, where this machine keeps what it fetched, each store's in a folder of its own;
            ``$EMBSTORE_CACHE`` or the user's cache folder when not given.
        clock: what time it is; leases and the grace of gc go by it, so the clocks of those who write should agree.

    Raises:
        StoreError: a URI of another kind, or one that names no bucket and prefix.
    """

    def __init__(self, path: str | Path | ObjectStore, *, cache: Path | None = None, clock: Clock = utc_now) -> None:
        self.place = _place(path, cache)
        self._log = Log(self.place, clock)
        self._opened: WeakValueDictionary[str, Version] = WeakValueDictionary()

    @property
    def root(self) -> Path:
        """Its folder on this machine; of a store in a bucket, its part of the cache."""
        return self.place.folder

    def publish(
        self,
        bundle: Bundle,
        *,
        parent: str | None = None,
        encoding: str | None = None,
        change: Change | None = None,
        progress: Progress | None = None,
        group: Group = ALONE,
    ) -> Version:
        """Make a version of ``bundle``: all of it or, after an error or crash, nothing.

        Args:
            parent: ref of the version it was trained on from, the id of a collected one will do; a delta's base when
                not given.
            encoding: how rows are stored: ``int8``, ``int4`` (quantised row by row) or a dtype; the table's own dtype
                when not given. What it costs is in the manifest, ``table.loss``.
            change: publish a delta: only the rows that changed since a version of this store.
            progress: called as bytes are written and read back.
            group: processes that publish together, each a bundle with its own ``shard``: all write the buckets that
                begin among their rows, rank 0 the rest. The bytes are those that one process would have written.

        Returns:
            The version, opened; where ``change.smallest`` and nothing has changed, ``change.base`` itself.

        Raises:
            CorruptVersionError: what these are changes of is damaged (``Version.check``).
            StoreError: parts that don't fit together, or a disk that can't be written; or gc took the files, or the
                version these are changes of, from a publish that took longer than its grace.
            VersionNotFoundError: no such parent.
        """
        version = publish(
            self.place, self._log, bundle, change, parent=parent, encoding=encoding, progress=progress, group=group
        )
        if change is not None:
            if version == change.base.id:
                return change.base
            if change.base.source == self.place.files(change.base.id):  # not in a copy of this store
                self._opened.setdefault(change.base.id, change.base)
        try:
            return self._open(version) if group.alone else self._open_by_all(version, group)
        except StoreError as error:
            raise StoreError(f"{version} is published, but can't be opened", found=str(error)) from error

    def check_group(self, group: Group) -> None:
        """Whether these processes could publish together: each must see what rank 0 writes before it is published.

        Raises:
            GroupError: they can't; the hosts are named.
            StoreError: nothing can be written.
        """
        check_group(self.place, group, utc_now())

    def compact(self, ref: str = LATEST, *, encoding: str | None = None, progress: Progress | None = None) -> Version:
        """Publish a delta's rows as a whole version, so that readers need no chain; a whole version is left as it is.

        Args:
            encoding: how rows are stored, as for ``publish``; as in the whole version it is based on when not given.
                What quantising them costs, those of a quantised base once more, is in the manifest, ``table.loss``.
            progress: as for ``publish``.

        Raises:
            VersionNotFoundError: no such version.
            CorruptVersionError: it is not what was published.
            StoreError: a whole version of another encoding.
        """
        version = self.open(ref)
        if version.delta is not None:
            bundle, encoding = replace(version.bundle(), compacts=version.id), encoding or version.table.encoding
            return self.publish(bundle, parent=version.id, encoding=encoding, progress=progress)
        if encoding not in (None, version.table.encoding):
            expected, do = f"a delta, to store its rows as {encoding}", f"publish its run with --encoding {encoding}"
            found = f"a whole version, {version.table.encoding}"
            raise StoreError(f"compact {version.id}", expected=expected, found=found, do=do)
        return version

    def versions(self) -> list[VersionInfo]:
        """Every version that exists, in the order published.

        Raises:
            StoreError: there is no such folder.
        """
        check_store(self.place)
        state = self._log.state()
        return [_info(state, version) for version in state.living]

    def aliases(self) -> dict[str, str]:
        """Version by alias, ``latest`` and ``previous`` included when they mean one."""
        return self._log.state().alias_targets()

    def resolve(self, ref: str) -> str:
        """The version id that ``ref`` means now.

        Raises:
            VersionNotFoundError: none, several, or one that was collected; the nearest name is given.
        """
        return resolve(self._log.state(), ref, self.place)

    def open(self, ref: str = LATEST, *, group: Group = ALONE) -> Version:
        """Open a version: its table is mapped, not read. One that someone still holds is checked again, and given back.

        Args:
            group: processes that open it together: the version that ``ref`` means to rank 0.

        Raises:
            VersionNotFoundError: no such version.
            CorruptVersionError: it is not what the log and its manifest say; ``verify`` also compares every byte.
        """
        if not group.alone:
            return self._open_by_all(ref, group)
        version = self.resolve(ref)
        try:
            return self._open(version)
        except (CorruptVersionError, VersionNotFoundError):
            if version in self._log.state().retired:  # meanwhile: the ref means another version now, or none
                return self.open(ref)
            raise

    def lookup(self, ref: str, feature: str, values: pa.Array | pa.ChunkedArray | Iterable[Any]) -> Tensor:
        """The vectors of raw values of one feature, float32 ``[len(values), lookups * dim]``; see ``Version.lookup``.

        A version that someone still holds is not opened again.

        Raises:
            VersionNotFoundError: no such version.
            SchemaError, DataError, CorruptVersionError, StoreError: as ``Version.lookup``.
        """
        return (self._opened.get(self.resolve(ref)) or self.open(ref)).lookup(feature, values)

    def _open_by_all(self, ref: str, group: Group) -> Version:
        """What rank 0 knows of the log, the others may not see yet."""
        version, number = group.lead(lambda: [self.resolve(ref), self._log.state().number])

        def work() -> Version:
            self._log.state(least=number)
            return self._open(version)

        return group.together(work)

    def _open(self, version: str, depth: int | None = None) -> Version:
        digest, files = self._log.state().published[version].manifest_sha256, self.place.files(version)
        opened = Version.open(files, version=version, digest=digest, open_base=self._open_base, depth=depth)
        return self._opened.setdefault(version, opened)

    def _open_base(self, delta: DeltaInfo) -> Version:
        """A base that someone still holds is not opened again: its deltas need not be laid over one another anew."""
        version = self.resolve(delta.base)
        return self._opened.get(version) or self._open(version, delta.depth - 1)

    def manifest(self, ref: str = LATEST) -> dict[str, Any]:
        """What a version says of itself, without opening it (or what it is a delta of); its files are all there.

        Raises:
            VersionNotFoundError: no such version.
            CorruptVersionError: its manifest is not what the log says, or a file is missing or of another length.
        """
        version = self.resolve(ref)
        digest = self._log.state().published[version].manifest_sha256
        return read_body(self.place.files(version), version=version, digest=digest)[0]

    def verify(self, ref: str = LATEST, *, progress: Progress | None = None) -> None:
        """Read every file of a version and compare it with the manifest, and the manifest with the log.

        Raises:
            VersionNotFoundError: no such version.
            CorruptVersionError: naming the file, what was expected and what was found; of what it is based on, too.
        """
        for finding in self.verify_all([ref], progress=progress):
            if finding.error is not None:
                raise finding.error

    def verify_all(self, refs: Iterable[str] | None = None, *, progress: Progress | None = None) -> tuple[Finding, ...]:
        """Verify every version to its end, whatever is found in another, and each once, however many lie on it.

        Args:
            refs: only these and what they are based on.
            progress: as for ``publish``.

        Returns:
            A finding for each version, a base before what lies on it.

        Raises:
            StoreError: no such store.
            VersionNotFoundError: no such version, or gc collected it meanwhile.
        """
        check_store(self.place)
        wanted = None if refs is None else [self.resolve(ref) for ref in refs]
        versions = self._log.state().living if wanted is None else wanted
        found = verification.verify(self._log, versions, self._open, progress)
        verified = {finding.version for finding in found}
        for version in wanted or ():
            if version not in verified:
                check_living(self._log.state(), version)
        return found

    def promote(self, ref: str, alias: str = PRODUCTION) -> VersionInfo:
        """Let ``alias`` mean a version from now on; no change when it does already.

        Raises:
            StoreError: not a name for an alias, a tag's name, the alias itself, or someone else moved it meanwhile.
            VersionNotFoundError: no such version.
        """
        if not ALIAS.fullmatch(alias) or alias in (LATEST, PREVIOUS):
            expected = f"a lower-case word other than {LATEST} and {PREVIOUS}"
            raise StoreError("alias", expected=expected, found=repr(alias))
        if ref == alias:
            do = f"name that, as in `embstore promote {LATEST}`"
            raise StoreError(f"promote {ref}", expected="the version it should mean", found="the alias itself", do=do)
        before = self._log.state()
        version = self.open(ref).id  # a version that can't be opened is not promoted
        return self._move(alias, version, before)

    def rollback(self, alias: str = PRODUCTION) -> VersionInfo:
        """Promote what ``alias`` was before; a second rollback undoes the first.

        Raises:
            StoreError: no such store, it was nothing before, or someone else moved it meanwhile.
        """
        check_store(self.place)
        before = self._log.state()
        if alias not in before.aliases:
            raise StoreError(f"no alias {alias!r} to roll back", do=nearest(alias, before.aliases))
        was = before.aliases[alias].was
        if was is None:
            raise StoreError(f"alias {alias!r}", expected="a version before the present one", found="none")
        return self._move(alias, self.open(was).id, before)

    def tags(self) -> dict[str, str]:
        """Version by tag."""
        return dict(self._log.state().tags)

    def tag(self, name: str, ref: str) -> VersionInfo:
        """Give a version a name that means it, and keeps it, until it is taken off again; a tag never moves.

        No change when the version has it already.

        Raises:
            StoreError: not a name for a tag, or one that is taken.
            VersionNotFoundError: no such version.
        """
        if not TAG.fullmatch(name) or name in (LATEST, PREVIOUS):
            expected = f"a lower-case letter, then up to 62 of a-z 0-9 . _ -, other than {LATEST} and {PREVIOUS}"
            raise StoreError("tag", expected=expected, found=repr(name))

        version = ""

        def entry(state: State) -> dict[str, Any] | None:
            nonlocal version
            version = resolve(state, ref, self.place)
            if state.tags.get(name) == version:
                return None
            for kind, taken in (("a tag", state.tags), ("an alias", state.alias_targets())):
                if name in taken:
                    found = f"{kind} of {taken[name]}"
                    raise StoreError(f"tag {name!r}", expected="a name not taken", found=found, do="use another")
            return self._entry("tag", tag=name, version=version)

        self._log.add(entry)
        return _info(self._log.state(), version)

    def untag(self, name: str) -> VersionInfo:
        """Take a tag off its version, which gc may then collect.

        Raises:
            StoreError: no such tag.
        """
        check_store(self.place)

        def entry(state: State) -> dict[str, Any]:
            if name not in state.tags:
                raise StoreError(f"no tag {name!r}", do=nearest(name, state.tags))
            return self._entry("untag", tag=name, version=state.tags[name])

        added = self._log.add(entry)
        assert added
        return _info(self._log.state(), added["version"])

    def lease(self, ref: str, *, seconds: float, holder: str | None = None) -> Lease:
        """Keep a version from gc for a while: for a job that reads it, or trains on from it.

        Args:
            ref: of the version; the lease is of what it means now.
            seconds: 1 to 31,622,400 (366 days), from now; ``Lease.renew`` starts them anew.
            holder: who keeps it, for people to read; host and process when absent.

        Raises:
            VersionNotFoundError: no such version, or it was collected.
            StoreError: seconds or a holder that can't be.

        ::

            with store.lease("production", seconds=3600) as lease:
                version = store.open(lease.version)
        """
        return lease.take(self._log, ref, seconds=seconds, holder=holder)

    def gc(self, *, keep: int = 3, grace_seconds: float = 86400, dry_run: bool = False) -> Collected:
        """Collect the versions that nothing holds, and what crashes left behind.

        Kept are: what aliases mean and what a rollback of each would reach, what is tagged or leased, the newest
        ``keep``, and what a kept version's rows are changes of. A version that others were trained on from may go.
        It may be called again after a crash, and by several processes at once.

        Args:
            keep: how many of the newest versions stay, 1 or more.
            grace_seconds: leftovers of publishes go when nothing was written to them for so long; more than a publisher
                may ever pause.
            dry_run: only say what would be done.

        Raises:
            StoreError: no such store, or a file that can't be removed.
        """
        check_store(self.place)
        return gc.collect(self._log, keep=keep, grace_seconds=grace_seconds, dry_run=dry_run)

    def lineage(self, ref: str = LATEST) -> tuple[str, ...]:
        """A version's id, then the one it was trained on from, and so on up; collected ones too.

        Raises:
            VersionNotFoundError: no such version.
        """
        version: str | None = self.resolve(ref)
        state, out = self._log.state(), []
        while version is not None:
            out.append(version)
            version = state.published[version].parent
        return tuple(out)

    def diff(self, old: str, new: str = LATEST, *, progress: Progress | None = None) -> Difference:
        """What changed from one version to another; see ``embstore.store.diff``.

        Raises:
            VersionNotFoundError: no such version.
            CorruptVersionError: one of them is damaged.
        """
        return diff(self.open(old), self.open(new), ancestors=self.lineage(new)[1:], progress=progress)

    def _move(self, alias: str, version: str, before: State) -> VersionInfo:
        was = before.version_of(alias)

        def entry(state: State) -> dict[str, Any] | None:
            if state.aliases.get(alias) != before.aliases.get(alias):
                found = repr(state.version_of(alias))
                raise StoreError(
                    f"alias {alias!r} was moved meanwhile", expected=repr(was), found=found, do="look again"
                )
            if alias in state.tags:
                raise StoreError(f"alias {alias!r}", expected="a name that is no tag", found="a tag", do="use another")
            check_living(state, version)
            return None if version == was else self._entry("alias", alias=alias, version=version, was=was)

        self._log.add(entry)
        return _info(self._log.state(), version)

    def _entry(self, verb: str, **values: Any) -> dict[str, Any]:
        return {"time": stamp(self._log.clock()), "verb": verb, **values}


def _info(state: State, version: str) -> VersionInfo:
    entry = state.published[version]
    return VersionInfo(
        id=version,
        number=entry.number,
        created=entry.time,
        parent=entry.parent,
        digest=entry.manifest_sha256,
        aliases=tuple(sorted(alias for alias, meant in state.alias_targets().items() if meant == version)),
        tags=tuple(sorted(tag for tag, meant in state.tags.items() if meant == version)),
    )


def _place(store: str | Path | ObjectStore, cache: Path | None) -> Place:
    if not isinstance(store, (str, Path)):
        return ObjectPlace(store, repr(store), cache)
    where = location(store)
    return LocalPlace(where) if isinstance(where, Path) else ObjectPlace.at(where, cache)
