"""The store: a folder of immutable versions and the log that says which exist and what their aliases are.

    store/
        log/000000000001.json ...      append-only; an entry is the one point at which a version exists
        versions/<id>/                 see embstore.store.format
        versions/.tmp-<id>/            being written, or left by a crash

What no entry of the log names does not exist: it is never read, and may be swept away.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from embstore.errors import StoreError, VersionNotFoundError, nearest
from embstore.store import format
from embstore.store.bundle import Bundle, Change, Progress
from embstore.store.files import fsync_folder, make_folder
from embstore.store.log import ALIAS, Log, State
from embstore.store.manifest import DeltaInfo
from embstore.store.version import Version

LATEST, PREVIOUS, PRODUCTION = "latest", "previous", "production"


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
    """

    id: str
    number: int
    created: str
    parent: str | None
    digest: str
    aliases: tuple[str, ...]


class Store:
    """Versions in a folder.

    A ref is a version's id, a unique prefix of it, or an alias. Two aliases need no setting: ``latest`` is the version
    published last, ``previous`` what ``production`` was before.

    Args:
        path: a folder or ``file://`` URI; the first publish creates it.

    Raises:
        StoreError: a URI of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = _local(path)
        self._log = Log(self.root)

    def publish(
        self,
        bundle: Bundle,
        *,
        parent: str | None = None,
        encoding: str | None = None,
        change: Change | None = None,
        progress: Progress | None = None,
    ) -> Version:
        """Make a version of ``bundle``: all of it or, after an error or crash, nothing.

        Args:
            parent: ref of the version it was trained on from; a delta's base when not given.
            encoding: how rows are stored: ``int8``, ``int4`` (quantised row by row) or a dtype; the table's own dtype
                when not given. What it costs is in the manifest, ``table.loss``.
            change: publish a delta: only the rows that changed since a version of this store.
            progress: called as bytes are written and read back.

        Raises:
            StoreError: parts that don't fit together, or a disk that can't be written.
            VersionNotFoundError: no such parent.
        """
        if change is not None:
            parent = parent or change.base.id
            if self._log.state().published[self.resolve(change.base.id)].manifest_sha256 != change.base.digest:
                raise StoreError(f"delta of {change.base.id}", expected="a version of this store", found="another's")
        above = None if parent is None else self.resolve(parent)
        now = datetime.now(UTC)
        version, created = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}", _stamp(now)
        space = bundle.lineage.get("space") or (change.base.space if change is not None else new_space())
        folder = self.root / "versions" / f".tmp-{version}"
        try:
            make_folder(folder.parent)
        except OSError as error:
            found = "not a folder" if self.root.exists() and not self.root.is_dir() else str(error.strerror)
            raise StoreError(
                f"store {self.root}", expected="a folder that can be made", found=found, do="name another"
            ) from error
        try:
            try:
                folder.mkdir()
                manifest = format.write(
                    folder,
                    bundle,
                    version=version,
                    created=created,
                    space=space,
                    parent=above,
                    encoding=encoding,
                    change=change,
                    progress=progress,
                )
                os.rename(folder, self._folder(version))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            fsync_folder(folder.parent)
            digest = hashlib.sha256(manifest).hexdigest()
            entry = {
                "time": created,
                "verb": "publish",
                "version": version,
                "manifest_sha256": digest,
                "parent": above,
            }
            # Another writer's number says nothing against this version, so the next one will do.
            while not self._log.append(self._log.state().number + 1, entry):
                pass
        except OSError as error:
            raise StoreError(f"publish {version}", found=str(error), do="see whether `versions` has it") from error
        return self._open(version)

    def compact(self, ref: str = LATEST, *, progress: Progress | None = None) -> Version:
        """Publish a delta's rows as a whole version, so that readers need no chain; a whole version is left as it is.

        Raises:
            VersionNotFoundError: no such version.
            CorruptVersionError: it is not what was published.
        """
        version = self.open(ref)
        if version.delta is None:
            return version
        return self.publish(replace(version.bundle(), compacts=version.id), parent=version.id, progress=progress)

    def versions(self) -> list[VersionInfo]:
        """Every version, in the order published.

        Raises:
            StoreError: there is no such folder.
        """
        self._require_folder()
        state = self._log.state()
        return [_info(state, version) for version in state.published]

    def aliases(self) -> dict[str, str]:
        """Version by alias, ``latest`` and ``previous`` included when they mean one."""
        return _aliases(self._log.state())

    def resolve(self, ref: str) -> str:
        """The version id that ``ref`` means now.

        Raises:
            VersionNotFoundError: none, or several; the nearest name is given.
        """
        state = self._log.state()
        aliases = _aliases(state)
        if ref in aliases:
            return aliases[ref]
        if ref in state.published:
            return ref
        begun = [version for version in state.published if ref and version.startswith(ref)]
        if len(begun) == 1:
            return begun[0]
        if begun:
            found = f"{len(begun)} versions: {', '.join(begun[:3])}{', ...' if len(begun) > 3 else ''}"
            raise VersionNotFoundError(f"version {ref!r} in {self.root}", expected="a unique prefix", found=found)
        if not self.root.is_dir():
            found = "not a folder" if self.root.exists() else "no such folder"
            raise VersionNotFoundError(f"no version {ref!r}: store {self.root}", expected="a folder", found=found)
        if not state.published:
            raise VersionNotFoundError(f"no version {ref!r}: store {self.root} is empty", do="publish one first")
        raise VersionNotFoundError(f"no version {ref!r} in {self.root}", do=nearest(ref, (*aliases, *state.published)))

    def open(self, ref: str = LATEST) -> Version:
        """Open a version: its table is mapped, not read.

        Raises:
            VersionNotFoundError: no such version.
            CorruptVersionError: it is not what the log and its manifest say; ``verify`` also compares every byte.
        """
        return self._open(self.resolve(ref))

    def _open(self, version: str) -> Version:
        digest = self._log.state().published[version].manifest_sha256
        return Version.open(self._folder(version), version=version, digest=digest, open_base=self._open_base)

    def _open_base(self, delta: DeltaInfo) -> Version:
        return self._open(self.resolve(delta.base))

    def verify(self, ref: str = LATEST, *, progress: Progress | None = None) -> None:
        """Read every file of a version and compare it with the manifest, and the manifest with the log.

        Raises:
            CorruptVersionError: naming the file, what was expected and what was found.
        """
        self.open(ref).verify(progress=progress)

    def promote(self, ref: str, alias: str = PRODUCTION) -> VersionInfo:
        """Let ``alias`` mean a version from now on; no change when it does already.

        Raises:
            StoreError: not a name for an alias, or someone else moved it meanwhile.
            VersionNotFoundError: no such version.
        """
        if not ALIAS.fullmatch(alias) or alias in (LATEST, PREVIOUS):
            expected = f"a lower-case word other than {LATEST} and {PREVIOUS}"
            raise StoreError("alias", expected=expected, found=repr(alias))
        before = self._log.state()
        version = self.open(ref).id  # a version that can't be opened is not promoted
        return self._move(alias, version, before)

    def rollback(self, alias: str = PRODUCTION) -> VersionInfo:
        """Promote what ``alias`` was before; a second rollback undoes the first.

        Raises:
            StoreError: no such store, it was nothing before, or someone else moved it meanwhile.
        """
        self._require_folder()
        before = self._log.state()
        if alias not in before.aliases:
            raise StoreError(f"no alias {alias!r} to roll back", do=nearest(alias, before.aliases))
        was = before.aliases[alias].was
        if was is None:
            raise StoreError(f"alias {alias!r}", expected="a version before the present one", found="none")
        return self._move(alias, self.open(was).id, before)

    def _move(self, alias: str, version: str, before: State) -> VersionInfo:
        was = before.version_of(alias)
        while True:
            state = self._log.state()
            if state.aliases.get(alias) != before.aliases.get(alias):
                found = repr(state.version_of(alias))
                raise StoreError(
                    f"alias {alias!r} was moved meanwhile", expected=repr(was), found=found, do="look again"
                )
            entry = {"time": _stamp(datetime.now(UTC)), "verb": "alias", "alias": alias, "version": version, "was": was}
            # A lost race for the number may be about another alias or a publish: then the next number will do.
            if version == was or self._log.append(state.number + 1, entry):
                return _info(self._log.state(), version)

    def _require_folder(self) -> None:
        if not self.root.is_dir():
            found = "not a folder" if self.root.exists() else "no such folder"
            raise StoreError(f"store {self.root}", expected="a folder", found=found, do="publish makes a store")

    def _folder(self, version: str) -> Path:
        return self.root / "versions" / version


def new_space() -> str:
    """A new id for vectors that compare with no others: what a freshly made table gets."""
    return secrets.token_hex(16)


def _aliases(state: State) -> dict[str, str]:
    out = {alias: entry.version for alias, entry in state.aliases.items()}
    if state.published:
        out[LATEST] = next(reversed(state.published))
    if PRODUCTION in state.aliases and (was := state.aliases[PRODUCTION].was):
        out[PREVIOUS] = was
    return out


def _info(state: State, version: str) -> VersionInfo:
    entry = state.published[version]
    return VersionInfo(
        id=version,
        number=entry.number,
        created=entry.time,
        parent=entry.parent,
        digest=entry.manifest_sha256,
        aliases=tuple(sorted(alias for alias, meant in _aliases(state).items() if meant == version)),
    )


def _local(path: str | Path) -> Path:
    uri = urlsplit(str(path))
    if isinstance(path, Path) or "://" not in path:
        return Path(path)
    if uri.scheme != "file" or uri.netloc not in ("", "localhost"):
        raise StoreError(
            f"store {path}", expected="a folder or file:// URI", found=f"{uri.scheme}://", do="object stores come later"
        )
    return Path(unquote(uri.path))


def _stamp(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
