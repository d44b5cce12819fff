"""Latencies of requests that are due at fixed times, and histograms of them.

*Open loop*: a request is due when the schedule says, whether or not the one before has been answered, and its latency
counts from then: what waits in the client because a server stalls is part of it. A client that sends the next request
only when it has an answer (closed loop) would leave that out ("coordinated omission", Gil Tene).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

PER_OCTAVE = 64  # buckets: a bucket's bounds differ by 1.1%
FLOOR = 1e-6  # seconds: shorter ones count as this
_BUCKETS = 64 * 27  # up to 134 s


@dataclass
class Histogram:
    """Counts of seconds in buckets that grow: bucket i begins at ``FLOOR * 2 ** (i / PER_OCTAVE)``.

    >>> histogram = Histogram()
    >>> histogram.add([0.001] * 99 + [0.1])
    >>> round(histogram.quantile(0.5), 4), histogram.count
    (0.001, 100)
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BUCKETS, dtype=np.int64))

    def add(self, seconds: Sequence[float] | NDArray[np.float64]) -> None:
        """Count some more."""
        buckets = np.floor(np.log2(np.maximum(seconds, FLOOR) / FLOOR) * PER_OCTAVE).astype(np.int64)
        self.counts += np.bincount(buckets.clip(max=_BUCKETS - 1), minlength=_BUCKETS)

    def merge(self, other: Histogram) -> None:
        """Add another's."""
        self.counts += other.counts

    @property
    def count(self) -> int:
        """Of all buckets."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """Seconds that this share of all are no longer than: within the bucket, where its count says."""
        if not self.count:
            raise ValueError("an empty histogram has no quantiles")
        cumulated = self.counts.cumsum()
        wanted = share * self.count
        bucket = int(np.searchsorted(cumulated, wanted))
        before = int(cumulated[bucket - 1]) if bucket else 0
        within = (wanted - before) / max(1, int(self.counts[bucket]))
        return float(FLOOR * 2 ** ((bucket + within) / PER_OCTAVE))

    def text(self) -> str:
        """Buckets that have any, ``bucket:count`` each, in one line."""
        return " ".join(f"{bucket}:{self.counts[bucket]}" for bucket in self.counts.nonzero()[0])

    @classmethod
    def parse(cls, text: str) -> Histogram:
        """From what ``text`` gave."""
        histogram = cls()
        for pair in text.split():
            bucket, _, count = pair.partition(":")
            histogram.counts[int(bucket)] = int(count)
        return histogram


def poisson(rate: float, seconds: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """When requests are due, in seconds from a start: independent of one another, ``rate`` a second on average."""
    gaps = generator.exponential(1 / rate, int(rate * seconds + 10 * (rate * seconds) ** 0.5) + 10)
    due = gaps.cumsum()
    return due[due < seconds]


def open_loop(
    ask: Callable[[Any], object],
    requests: Sequence[Any],
    due: NDArray[np.float64],
    start: float,
    *,
    clock: Callable[[], float] = perf_counter,
    wait: Callable[[float], object] = sleep,
) -> NDArray[np.float64]:
    """Ask each request when it is due, or as soon after as the one before is answered: seconds from due to answered.

    Args:
        requests: taken in turn, from the first again after the last.
        due: seconds after ``start``, which is a time of ``clock``; ascending.
    """
    taken = np.empty(len(due))
    for number, at in enumerate((due + start).tolist()):
        early = at - clock()
        if early > 0:
            wait(early)
        ask(requests[number % len(requests)])
        taken[number] = clock() - at
    return taken


def closed_loop(
    ask: Callable[[Any], object],
    requests: Sequence[Any],
    until: float,
    *,
    count: int | None = None,
    clock: Callable[[], float] = perf_counter,
) -> NDArray[np.float64]:
    """Ask one request after another until a time of ``clock``, or until ``count`` are answered: seconds of each."""
    taken: list[float] = []
    before = clock()
    while before < until and (count is None or len(taken) < count):
        ask(requests[len(taken) % len(requests)])
        now = clock()
        taken.append(now - before)
        before = now
    return np.array(taken)
