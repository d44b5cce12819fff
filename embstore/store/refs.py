"""What a ref means: a version's id, an alias, a tag, or a unique prefix of an id."""

from __future__ import annotations

import os
from pathlib import Path

from embstore.errors import StoreError, VersionNotFoundError, nearest
from embstore.store.state import State


def resolve(state: State, ref: str, root: Path) -> str:
    """The version id that ``ref`` means, by the log's ``state``; aliases go before tags, both before prefixes.

    Raises:
        VersionNotFoundError: none, several, or one that was collected; the nearest name is given.
    """
    aliases = state.alias_targets()
    for meaning in (aliases, state.tags):
        if ref in meaning:
            return meaning[ref]
    if ref in state.retired:
        raise collected(state, ref)
    if ref in state.published:
        return ref
    begun = [version for version in state.living if ref and version.startswith(ref)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        found = f"{len(begun)} versions: {', '.join(begun[:3])}{', ...' if len(begun) > 3 else ''}"
        raise VersionNotFoundError(f"version {ref!r} in {root}", expected="a unique prefix", found=found)
    gone = [version for version in state.retired if ref and version.startswith(ref)]
    if len(gone) == 1:
        raise collected(state, gone[0])
    if not root.is_dir():
        found = "not a folder" if root.exists() else "no such folder"
        raise VersionNotFoundError(f"no version {ref!r}: store {root}", expected="a folder", found=found)
    if not state.published:
        raise VersionNotFoundError(f"no version {ref!r}: store {root} is empty", do="publish one first")
    raise VersionNotFoundError(f"no version {ref!r} in {root}", do=nearest(ref, (*aliases, *state.tags, *state.living)))


def collected(state: State, version: str) -> VersionNotFoundError:
    """The error for a version that gc has retired."""
    when = state.retired[version]
    return VersionNotFoundError(
        f"version {version} was collected on {when}", do="a tag, an alias or a lease keeps a version"
    )


def check_living(state: State, version: str) -> None:
    """Refuse a version that gc has retired.

    Raises:
        VersionNotFoundError: it was collected; when is said.
    """
    if version in state.retired:
        raise collected(state, version)


def check_folder(root: Path) -> None:
    """Refuse a store that is not there.

    Raises:
        StoreError: no such folder, or no folder.
    """
    if not os.path.isdir(root):  # as no Path method does, it takes any name
        found = "not a folder" if os.path.exists(root) else "no such folder"
        raise StoreError(f"store {root}", expected="a folder", found=found, do="publish makes a store")
