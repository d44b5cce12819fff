"""What the entries of a store's log amount to, and the rules each entry is held to (``docs/store-format.md``, "Log").

The order of the log is what makes keeping and collecting safe: a lease that follows a retire of its version is refused,
and so is a retire that follows a lease.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from embstore.errors import LaterVersionError
from embstore.store.documents import Fields, shown
from embstore.store.manifest import SHA256, TIME, VERSION_ID

LATEST, PREVIOUS, PRODUCTION = "latest", "previous", "production"

ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
TAG = re.compile(r"[a-z][a-z0-9._-]{0,62}")
LEASE = re.compile(r"[0-9a-f]{16}")
HOLDER = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A version came to be."""

    number: int
    time: str
    version: str
    manifest_sha256: str
    parent: str | None


@dataclass(frozen=True, kw_only=True)
class Aliased:
    """An alias was set; ``was`` is what it meant before."""

    number: int
    time: str
    alias: str
    version: str
    was: str | None


@dataclass(frozen=True, kw_only=True)
class Leased:
    """A version was lent to ``holder``, who keeps it until ``until``."""

    number: int
    time: str
    lease: str
    version: str
    holder: str
    until: str


@dataclass
class State:
    """What the entries up to ``number`` amount to.

    Args:
        published: every version there ever was, in the order published.
        aliases: by name.
        tags: version by name.
        leases: by id, the expired among them: replaying asks no clock.
        retired: when each version that is no more was collected.
        number: of the last entry.
    """

    published: dict[str, Published] = field(default_factory=dict)
    aliases: dict[str, Aliased] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    leases: dict[str, Leased] = field(default_factory=dict)
    retired: dict[str, str] = field(default_factory=dict)
    number: int = 0

    def copy(self) -> State:
        """One that can be replayed upon."""
        return State(
            published=dict(self.published),
            aliases=dict(self.aliases),
            tags=dict(self.tags),
            leases=dict(self.leases),
            retired=dict(self.retired),
            number=self.number,
        )

    @property
    def living(self) -> list[str]:
        """The versions that exist, in the order published."""
        return [version for version in self.published if version not in self.retired]

    def version_of(self, alias: str) -> str | None:
        """The version an alias was set to, or ``None``."""
        return self.aliases[alias].version if alias in self.aliases else None

    def alias_targets(self) -> dict[str, str]:
        """Version by alias, ``latest`` and ``previous`` included when they mean one."""
        out = {alias: entry.version for alias, entry in self.aliases.items()}
        if self.published:
            out[LATEST] = next(reversed(self.published))  # never retired
        if PRODUCTION in self.aliases and (was := self.aliases[PRODUCTION].was):
            out[PREVIOUS] = was
        return out

    def held(self, time: str) -> dict[str, list[str]]:
        """The versions that may not be retired at ``time``, and why each.

        Held are what aliases mean, what a rollback of each would reach, tags, leases that run, and the last version.
        """
        out: dict[str, list[str]] = {}
        for alias, version in sorted(self.alias_targets().items()):
            if alias != PREVIOUS:
                out.setdefault(version, []).append(f"alias {alias}")
        for alias, entry in sorted(self.aliases.items()):
            if entry.was is not None:
                out.setdefault(entry.was, []).append(f"rollback of {alias}")
        for tag, version in sorted(self.tags.items()):
            out.setdefault(version, []).append(f"tag {tag}")
        for lease in self.leases.values():
            if lease.until > time:
                out.setdefault(lease.version, []).append(f"leased by {lease.holder} until {lease.until}")
        return out


def replay(state: State, number: int, entry: dict[str, Any], where: str) -> None:
    """Apply an entry to ``state``, in place.

    Args:
        number: of the entry, by its file name.
        where: that file, for messages.

    Raises:
        CorruptVersionError: it contradicts itself or an earlier entry.
        LaterVersionError: a later embstore wrote it.
    """
    fields = Fields(entry, where)
    fields.whole("number", number, number)
    time, verb = fields.text("time", TIME), entry.get("verb")
    if not isinstance(verb, str) or verb not in _VERBS:
        expected = f"one of {', '.join(_VERBS)}"
        raise LaterVersionError(f"{where}: verb {shown(verb)}", expected=expected, do="upgrade embstore")
    _VERBS[verb](state, fields, number, time)
    state.number = number


def _publish(state: State, fields: Fields, number: int, time: str) -> None:
    version, parent = fields.text("version", VERSION_ID), fields.text_or_null("parent", VERSION_ID)
    sha256 = fields.text("manifest_sha256", SHA256)
    if version in state.published:
        raise fields.wrong("version", "a new version", f"{version}, published before")
    if parent is not None and parent not in state.published:  # it may be retired: it says where this one came from
        raise fields.wrong("parent", "a version published before", parent)
    state.published[version] = Published(
        number=number, time=time, version=version, manifest_sha256=sha256, parent=parent
    )


def _alias(state: State, fields: Fields, number: int, time: str) -> None:
    version, alias = _living(state, fields), fields.text("alias", ALIAS)
    was = fields.text_or_null("was", VERSION_ID)
    if was != state.version_of(alias):
        raise fields.wrong("was", repr(state.version_of(alias)), repr(was))
    if alias in state.tags:
        raise fields.wrong("alias", "a name that is no tag", alias)
    state.aliases[alias] = Aliased(number=number, time=time, alias=alias, version=version, was=was)


def _tag(state: State, fields: Fields, number: int, time: str) -> None:
    version, tag = _living(state, fields), fields.text("tag", TAG)
    if tag in state.tags or tag in state.aliases or tag in (LATEST, PREVIOUS):
        raise fields.wrong("tag", "a name that is not taken", tag)
    state.tags[tag] = version


def _untag(state: State, fields: Fields, number: int, time: str) -> None:
    version, tag = fields.text("version", VERSION_ID), fields.text("tag", TAG)
    if state.tags.get(tag) != version:
        raise fields.wrong("tag", f"a tag of {version}", tag)
    del state.tags[tag]


def _lease(state: State, fields: Fields, number: int, time: str) -> None:
    version, lease = _living(state, fields), fields.text("lease", LEASE)
    holder, until = fields.text("holder", HOLDER), fields.text("until", TIME)
    if until <= time:
        raise fields.wrong("until", f"later than {time}", until)
    if before := state.leases.get(lease):
        if (before.version, before.holder) != (version, holder):
            raise fields.wrong("lease", f"{lease} of {before.version} and {before.holder!r}", f"{version}, {holder!r}")
        if until <= before.until:
            raise fields.wrong("until", f"later than {before.until}", until)
    state.leases[lease] = Leased(number=number, time=time, lease=lease, version=version, holder=holder, until=until)


def _release(state: State, fields: Fields, number: int, time: str) -> None:
    version, lease = fields.text("version", VERSION_ID), fields.text("lease", LEASE)
    if lease not in state.leases or state.leases[lease].version != version:
        raise fields.wrong("lease", f"a lease of {version}", lease)
    del state.leases[lease]


def _retire(state: State, fields: Fields, number: int, time: str) -> None:
    versions, held = fields.texts("versions", VERSION_ID), state.held(time)
    if not versions or len(set(versions)) != len(versions):
        raise fields.wrong("versions", "one or more, each once", shown(versions))
    for version in versions:
        if version not in state.published or version in state.retired:
            raise fields.wrong("versions", "versions that exist", version)
        if version in held:
            raise fields.wrong("versions", "versions that nothing holds", f"{version}: {held[version][0]}")
    state.retired.update(dict.fromkeys(versions, time))
    state.leases = {name: lease for name, lease in state.leases.items() if lease.version not in state.retired}


_VERBS: dict[str, Callable[[State, Fields, int, str], None]] = {
    "publish": _publish,
    "alias": _alias,
    "tag": _tag,
    "untag": _untag,
    "lease": _lease,
    "release": _release,
    "retire": _retire,
}


def _living(state: State, fields: Fields) -> str:
    version = fields.text("version", VERSION_ID)
    if version not in state.published:
        raise fields.wrong("version", "a version published before", version)
    if version in state.retired:
        raise fields.wrong("version", "a version that exists", f"{version}, retired on {state.retired[version]}")
    return version
