"""What a ref means: a version's id, an alias, a tag, or a unique prefix of an id."""

from __future__ import annotations

import shlex

from embstore.errors import StoreError, VersionNotFoundError, nearest
from embstore.store.place import Place
from embstore.store.state import PREVIOUS, PRODUCTION, State


def resolve(state: State, ref: str, place: Place) -> str:
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
        raise VersionNotFoundError(f"version {ref!r} in {place}", expected="a unique prefix", found=found)
    gone = [version for version in state.retired if ref and version.startswith(ref)]
    if len(gone) == 1:
        raise collected(state, gone[0])
    if ref == PREVIOUS and state.published:
        found = "one version so far" if PRODUCTION in aliases else "none yet"
        raise VersionNotFoundError(
            f"no version {ref!r} in {place}", expected=f"a version that {PRODUCTION} meant before", found=found
        )
    if missing := place.missing():
        raise VersionNotFoundError(f"no version {ref!r}: store {place}", expected=missing[0], found=missing[1])
    if not state.published:
        raise VersionNotFoundError(f"no version {ref!r}: store {place} is empty", do="publish one first")
    do = nearest(ref, state.living, also=(*aliases, *state.tags))
    if ref == PRODUCTION:  # what readers ask for who name nothing: it is known by no other name
        command = shlex.join(["embstore", "promote", "latest", "--store", str(place)])
        do = f"`{command}` lets it mean the last version, which latest means by itself (serve --alias latest); {do}"
    raise VersionNotFoundError(f"no version {ref!r} in {place}", do=do)


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


def check_store(place: Place) -> None:
    """Refuse a store that is not there.

    Raises:
        StoreError: there is none.
    """
    if missing := place.missing():
        raise StoreError(
            f"store {place}", expected=missing[0], found=missing[1], do="name another; publish makes a store"
        )
