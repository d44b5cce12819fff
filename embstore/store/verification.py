"""Verifying many versions: which are damaged themselves, and which lie on one that is.

A delta is no better than the version it is a change of. So that one damaged file is one cause and not many, each
version is read once, before what lies on it, and a delta's own files apart from those of its base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from embstore.errors import CorruptVersionError, StoreError
from embstore.store import format
from embstore.store.bundle import Progress
from embstore.store.files import FileDigest
from embstore.store.gc import base_of
from embstore.store.log import Log
from embstore.store.manifest import MANIFEST, MAX_DEPTH
from embstore.store.place import Files
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
    held: list[Version] = []  # the last one, so that its bases aren't opened again for what lies on it
    for version in versions:
        for read in reversed(_line(log, state, version, found)):
            below, error = None, read.error
            if read.base is not None:
                under = found[read.base]
                below = under.version if under.error is not None else under.below
            try:
                if error is None and below is None:
                    held[:] = [open_version(read.version)]
                if error is None:
                    format.verify(read.source, read.files, read.digest, progress=progress)
            except StoreError as caught:
                error = caught
            found[read.version] = Finding(version=read.version, error=error, below=below)
    gone = log.state().retired  # by a gc meanwhile
    return tuple(finding for finding in found.values() if finding.whole or finding.version not in gone)


class _Read(NamedTuple):
    """What a version's manifest says, or why it can't be read."""

    version: str
    source: Files
    digest: str
    files: dict[str, FileDigest]
    base: str | None
    error: StoreError | None = None


def _line(log: Log, state: State, version: str, found: Mapping[str, Finding]) -> list[_Read]:
    """A version, what it is a delta of, and so on, down to a whole one or to one that is ``found`` already."""
    line: list[_Read] = []
    below: str | None = version
    while below is not None and below not in found:
        source, digest = log.place.files(below), state.published[below].manifest_sha256
        files, base, error = dict[str, FileDigest](), None, None
        try:
            manifest, files = read_body(source, version=below, digest=digest)
            base = base_of(manifest)
            if base is not None:
                _check_base(state, below, base, source.where(MANIFEST))
        except StoreError as caught:
            base, error = None, caught
        line.append(_Read(below, source, digest, files, base, error))
        below = base
        if base is not None and len(line) > MAX_DEPTH:
            where, expected = line[0].source.where(MANIFEST), f"at most {MAX_DEPTH} deltas from a whole version"
            return [line[0]._replace(base=None, error=CorruptVersionError(where, expected=expected, found="more"))]
    return line


def _check_base(state: State, version: str, base: str, where: str) -> None:
    known = base in state.published and base not in state.retired
    if not known or state.published[base].number >= state.published[version].number:
        expected, found = "its base in the store, published before", "another" if known else "none"
        raise CorruptVersionError(f"{where}: delta.base {base}", expected=expected, found=found)
