"""Verifying many versions: which are damaged themselves, and which lie on one that is.

A delta is no better than the version it is a change of. So that one damaged file is one cause and not many, each
version is read once, before what lies on it, and a delta's own files apart from those of its base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from embstore.errors import CorruptVersionError, StoreError
from embstore.store import format
from embstore.store.bundle import Progress
from embstore.store.gc import base_of
from embstore.store.log import Log
from embstore.store.manifest import MANIFEST
from embstore.store.state import State
from embstore.store.version import Version, read_body


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What verifying a version has found.

    Args:
        version: its id.
        error: what is wrong with its own files: ``CorruptVersionError`` when they are damaged, another ``StoreError``
            when they couldn't be read.
        below: the version with such an error that it is a delta of, be it through others.
    """

    version: str
    error: StoreError | None = None
    below: str | None = None

    @property
    def whole(self) -> bool:
        """Whether it can be read, and is what was published."""
        return self.error is None and self.below is None


def verify(
    log: Log, versions: Iterable[str], open_version: Callable[[str], Version], progress: Progress | None
) -> tuple[Finding, ...]:
    """See ``Store.verify_all``."""
    state, found = log.state(), dict[str, Finding]()
    held: Version | None = None  # so that its bases aren't opened again for what lies on it

    def visit(version: str) -> Finding:
        nonlocal held
        if version in found:
            return found[version]
        below, error = None, None
        source, digest = log.place.files(version), state.published[version].manifest_sha256
        try:
            manifest, files = read_body(source, version=version, digest=digest)
            base = base_of(manifest)
            if base is not None:
                _check_base(state, version, base, source.where(MANIFEST))
                under = visit(base)
                below = base if under.error is not None else under.below
            if below is None:
                held = open_version(version)
            format.verify(source, files, digest, progress=progress)
        except StoreError as caught:
            error = caught
        found[version] = Finding(version=version, error=error, below=below)
        return found[version]

    for version in versions:
        visit(version)
    gone = log.state().retired  # by a gc meanwhile
    return tuple(finding for finding in found.values() if finding.whole or finding.version not in gone)


def _check_base(state: State, version: str, base: str, where: str) -> None:
    known = base in state.published and base not in state.retired
    if not known or state.published[base].number >= state.published[version].number:
        expected, found = "its base in the store, published before", "another" if known else "none"
        raise CorruptVersionError(f"{where}: delta.base {base}", expected=expected, found=found)
