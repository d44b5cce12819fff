"""What the nodes and edges of a graph are: the ``graph`` part of a job's YAML file.

log: logs/train                                                  Parquet; or edges: FILE, or graph: FILE
pairs: [[user_id, item_id]]                                      edges between values of two columns of a row
sessions: [{column: item_id, by: user_id, time: ts, window: 30m}]    between values of rows of one session
weight: rating                                                   a column; without, how often
decay: {time: ts, half_life: 7d}
min_weight: 2
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from embstore.errors import ConfigError
from embstore.node2vec.graph import NODE

SECOND = 1_000_000  # times are whole microseconds
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST = 2**62 // SECOND  # seconds


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """Values that come near each other in a session: an edge from each to those that follow it.

    Args:
        column: whose values; of a list its elements, in order. A value makes no edge with itself.
        by: whose equal values make a session, e.g. the user; without, each row (of lists) is one.
        time: timestamps, dates or whole seconds that order a session; without, and among equals, the log's order.
        window: most time between two rows, seconds or text such as ``90s``, ``30m``, ``12h``, ``7d``; needs ``time``.
        steps: most steps between two rows (1: neighbours only). One of ``window`` and ``steps`` is needed, since
            without them edges are as many as the square of a session.
    """

    column: str
    by: str | None = None
    time: str | None = None
    window: float | str | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.window is None and self.steps is None:
            raise ConfigError("sessions", expected="a window or steps", found="neither", do="e.g. window: 30m")
        if self.window is not None:
            microseconds(self.window, "sessions.window")
            if self.time is None:
                raise ConfigError("sessions.window", expected="the time column it is measured in", found="no time")
        if self.steps is not None and not 1 <= self.steps < 2**31:
            raise ConfigError("sessions.steps", expected="1 to 2^31 - 1", found=str(self.steps))
        if self.column in (self.by, self.time):
            raise ConfigError("sessions.column", expected="a column apart from by and time", found=repr(self.column))


@dataclass(frozen=True, kw_only=True)
class DecaySettings:
    """What is older weighs less: ``0.5 ^ (age / half_life)``.

    Args:
        time: timestamps, dates or whole seconds.
        half_life: seconds, or text such as ``7d``.
        now: from when ages count: seconds since 1970 or a date; the log's last time when not given. What is later has
            age 0.
    """

    time: str
    half_life: float | str
    now: int | date | str | None = None

    def __post_init__(self) -> None:
        if not microseconds(self.half_life, "decay.half_life"):
            raise ConfigError("decay.half_life", expected="more than 0", found=str(self.half_life))
        if isinstance(self.now, date):  # as YAML reads 2024-05-01; text stays the same in any record of the settings
            object.__setattr__(self, "now", self.now.isoformat())
        self.moment  # noqa: B018 - whether it can be read

    @property
    def half_life_us(self) -> int:
        """In microseconds."""
        return microseconds(self.half_life, "decay.half_life")

    @property
    def moment(self) -> int | None:
        """``now`` in microseconds since 1970; dates without a zone are UTC."""
        if self.now is None:
            return None
        try:
            at = self.now if isinstance(self.now, int) else datetime.fromisoformat(str(self.now))
        except ValueError as error:
            expected = "seconds since 1970 or a date such as 2024-05-01T12:00:00"
            raise ConfigError("decay.now", expected=expected, found=repr(self.now)) from error
        if isinstance(at, int):
            if not -_LONGEST <= at <= _LONGEST:
                raise ConfigError("decay.now", expected="seconds since 1970", found=str(at))
            return at * SECOND
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        since = at - datetime.combine(date(1970, 1, 1), time(), UTC)
        return (since.days * 86_400 + since.seconds) * SECOND + since.microseconds


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """A graph. One of ``log`` (with ``pairs``, ``sessions`` or both), ``edges`` and ``graph`` says of what.

    Args:
        log: Parquet: a file, a folder, a glob, a URI, or a list of these.
        pairs: pairs of columns; of a list each element has an edge with the other side's. Directed: from the first.
        sessions: see ``SessionSettings``. Directed: from the earlier.
        weight: a column of numbers, added up over the rows that make an edge (of two rows of a session: the later
            one's); without, rows are counted. Rows without weight, or of weight 0, make no edge.
        decay: see ``DecaySettings``; of two rows the later one decides.
        edges: a list of edges, text or Parquet, see ``embstore.node2vec.graph_files.read_edges``.
        separator: what is between the fields of a text of edges; found out when not given.
        graph: a graph or sparse matrix, npz, see ``embstore.node2vec.graph_files.read_npz``.
        feature: whose values the nodes of ``edges`` or ``graph`` are, where the file doesn't say.
        loops: whether edges from a node to itself are kept; a log has none.
        directed: whether edges are arcs.
        min_weight: edges of less are left out, when all have been added up, and nodes that then have none.
    """

    log: str | tuple[str, ...] | None = None
    pairs: tuple[tuple[str, ...], ...] = ()
    sessions: tuple[SessionSettings, ...] = ()
    weight: str | None = None
    decay: DecaySettings | None = None
    edges: str | None = None
    separator: str | None = None
    graph: str | None = None
    feature: str = NODE
    loops: bool = True
    directed: bool = False
    min_weight: float = 0.0

    def __post_init__(self) -> None:
        given = [name for name in ("log", "edges", "graph") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ConfigError("graph", expected="one of log, edges and graph", found=found)
        if self.log is None:
            for name in ("pairs", "sessions", "weight", "decay"):
                if getattr(self, name):
                    raise ConfigError(f"graph.{name}", expected="a log that it is of", found=f"{given[0]} alone")
        elif not self.pairs and not self.sessions:
            do = "e.g. pairs: [[user_id, item_id]]"
            raise ConfigError("graph", expected="pairs or sessions of the log's columns", found="neither", do=do)
        if self.separator is not None and (self.edges is None or len(self.separator.encode()) != 1):
            raise ConfigError("graph.separator", expected="one character, for edges", found=repr(self.separator))
        for pair in self.pairs:
            if len(pair) != 2 or pair[0] == pair[1]:
                do = "edges between values of one column are sessions"
                raise ConfigError("graph.pairs", expected="two different columns", found=str(list(pair)), do=do)
        if not 0 <= self.min_weight < math.inf:
            raise ConfigError("graph.min_weight", expected="0 or more", found=str(self.min_weight))

    @property
    def features(self) -> tuple[str, ...]:
        """The columns of the log whose values are nodes, in the order of nodes."""
        named = [name for pair in self.pairs for name in pair] + [session.column for session in self.sessions]
        return tuple(dict.fromkeys(named))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the log that are read."""
        times = [name for session in self.sessions for name in (session.by, session.time)]
        named = [*self.features, *times, self.weight, None if self.decay is None else self.decay.time]
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @property
    def counts(self) -> bool:
        """Whether weights are numbers of rows."""
        return self.weight is None and self.decay is None


def microseconds(duration: float | str, what: str) -> int:
    """Of seconds, or of text with a unit: ``90s``, ``30m``, ``12h``, ``7d``, ``2w``.

    Raises:
        ConfigError: another text, less than 0 or endless.
    """
    found = (
        re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([smhdw]?)\s*", str(duration))
        if isinstance(duration, str)
        else None
    )
    seconds = float(found[1]) * _UNITS[found[2]] if found else duration
    if isinstance(seconds, str) or not 0 <= seconds <= _LONGEST:
        expected = "seconds, or a number with a unit: 90s, 30m, 12h, 7d, 2w"
        raise ConfigError(what, expected=expected, found=repr(duration))
    return round(seconds * SECOND)
