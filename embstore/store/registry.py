"""The store: a folder of immutable versions and the log that says which exist and what their aliases are.

    store/
        log/000000000001.json ...      append-only; an entry is the one point at which a version exists
        versions/<id>/                 see embstore.store.format
        versions/.tmp-<id>/            being written, or left by a crash
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from embstore.errors import StoreError, VersionNotFoundError, nearest
from embstore.store import format
from embstore.store.files import fsync_folder, make_folder
from embstore.store.format import Bundle, Progress
from embstore.store.log import ALIAS, Log, State
from embstore.store.manifest import SPACE
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

    def publish(self, bundle: Bundle, *, progress: Progress | None = None, parent: str | None = None) -> Version:
        """Make a version of ``bundle``: all of it or, after an error or crash, nothing.

        Args:
            progress: called as bytes are written and read back.
            parent: ref of the version it was trained on from.

        Raises:
            StoreError: parts that don't fit together, or a disk that can't be written.
            VersionNotFoundError: no such parent.
        """
        above = None if parent is None else self.resolve(parent)
        now = datetime.now(UTC)
        version, created = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}", _stamp(now)
        space = bundle.lineage.get("space") or new_space()
        folder = self.root / "versions" / f".tmp-{version}"
        try:
            make_folder(folder)
            try:
                manifest = format.write(
                    folder, bundle, version=version, created=created, space=space, parent=above, progress=progress
                )
                os.rename(folder, self._folder(version))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            fsync_folder(folder.parent)
            digest = hashlib_sha256(manifest)
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
        return Version.open(self._folder(version), version=version, digest=digest)
