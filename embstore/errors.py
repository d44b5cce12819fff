"""Every error embstore raises on purpose.

    EmbstoreError
    ├── ConfigError          a setting, YAML key or argument is wrong
    ├── SchemaError          the schema and the log disagree (missing column, wrong type)
    ├── LogError             a log can't be read (empty, truncated, mixed schemas, moved under a cursor)
    ├── DataError            a value in a log can't be trained on (NaN label, label not 0/1, value too long)
    ├── KernelError          a kernel can't do what was asked (optimizer, dtype, device, missing package)
    ├── GroupError           processes that train together can't (one is missing, or is of another version)
    │   └── LostRankError          one left, hangs or could not go on: the group may be started again
    ├── CheckpointError      a checkpoint is absent, broken or of another run
    ├── StoreError           the store refused an operation
    │   ├── VersionNotFoundError   no version, alias or unique prefix of that name
    │   ├── CorruptVersionError    bytes differ from what the manifest promises
    │   └── LaterVersionError      a later embstore wrote it
    ├── GraphError           a graph is not one, or none to walk on
    ├── DatasetError         raw files are not the data set they were said to be
    └── ServingError         a server can't answer a request
        ├── RequestError           it is not a request, or none that the model can answer
        │   └── UnknownModelError      the server has no such model
        ├── LimitError             it asks for more than the server gives
        ├── AccessError            who asks may not
        │   └── UnknownCallerError     no token, or not one of the server's
        ├── DeadlineError          its time was over
        └── UnavailableError       not now: it has no room for more, or doesn't answer

Catch ``EmbstoreError`` to catch them all; ``Interrupted`` (Ctrl-C while training) is none of them. Each message says
what was expected, what was found, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class EmbstoreError(Exception):
    """Base of all embstore errors.

    Args:
        what: one line naming the thing that is wrong.
        expected: what would have been right.
        found: what was there instead.
        do: what the reader can do about it.
    """

    def __init__(self, what: str, *, expected: str = "", found: str = "", do: str = "") -> None:
        parts = [what.rstrip(".")]
        if expected:
            parts.append(f"expected {expected}")
        if found:
            parts.append(f"found {found}")
        if do:
            parts.append(do)
        super().__init__("; ".join(parts))
        self.what, self.expected, self.found, self.do = what, expected, found, do


class ConfigError(EmbstoreError):
    """A setting, YAML key or argument is wrong."""


class SchemaError(EmbstoreError):
    """The schema and the log disagree."""


class LogError(EmbstoreError):
    """A log can't be read."""


class DataError(EmbstoreError):
    """A value in a log can't be trained on."""


class KernelError(EmbstoreError):
    """A kernel can't do what was asked."""


class GroupError(EmbstoreError):
    """Processes that train together can't."""


class LostRankError(GroupError):
    """One of them left, hangs or could not go on; started again, they go on from the last checkpoint."""


class CheckpointError(EmbstoreError):
    """A checkpoint is absent, broken or of another run."""


class StoreError(EmbstoreError):
    """The store refused an operation."""


class VersionNotFoundError(StoreError):
    """No version, alias or unique prefix of that name."""


class CorruptVersionError(StoreError):
    """Bytes differ from what the manifest promises."""


class LaterVersionError(StoreError):
    """A later embstore wrote it."""


class GraphError(EmbstoreError):
    """A graph is not one, or none to walk on."""


class DatasetError(EmbstoreError):
    """Raw files are not the data set they were said to be."""


class ServingError(EmbstoreError):
    """A server can't answer a request."""


class RequestError(ServingError):
    """It is not a request, or none that the model can answer."""


class UnknownModelError(RequestError):
    """The server has no such model."""


class LimitError(ServingError):
    """It asks for more than the server gives."""


class AccessError(ServingError):
    """Who asks may not."""


class UnknownCallerError(AccessError):
    """No token, or not one of the server's."""


class DeadlineError(ServingError):
    """Its time was over."""


class UnavailableError(ServingError):
    """Not now: it has no room for more, or doesn't answer."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop, and can go on
    """A run was asked to stop and has saved a checkpoint."""


_COMPARED = 200  # characters of a name: comparing takes as long as it is


def nearest(name: str, known: Iterable[str], *, also: Iterable[str] = ()) -> str:
    """A hint for a misspelt name: ``"did you mean 'user_id'?"``; when none is near, the known names or, where they are
    too many for a message, the nearest few and how many there are.

    Args:
        also: other names for those that are known, which may be meant but are not counted.
    """
    name, known = name[:_COMPARED], sorted(known)
    count, known = len(known), sorted({*known, *also})
    close = get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    if not known:
        return "none are known"
    whole = f"known: {', '.join(known)}"
    few = get_close_matches(name, known, n=3, cutoff=0)
    return whole if len(known) <= len(few) or len(whole) <= 120 else f"{count:,} are known, e.g. {', '.join(few)}"
