"""What a server counts, for Prometheus. Several processes of a server add up through files of theirs."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


_KEPT = 4096
_QUANTILES = (0.5, 0.9, 0.99, 0.999)


class Recent:
    """How long the last requests took that were answered, in seconds."""

    def __init__(self) -> None:
        self.count, self._seconds = 0, array("d")

    def add(self, seconds: float) -> None:
        """One more."""
        if self.count < _KEPT:
            self._seconds.append(seconds)
        else:
            self._seconds[self.count % _KEPT] = seconds
        self.count += 1

    def quantiles(self, of: Iterable[float] = _QUANTILES) -> dict[str, float]:
        """``{"p50": seconds}`` and so on, and ``max``; empty before the first request."""
        if not self._seconds:
            return {}
        seconds, wanted = np.array(self._seconds), list(of)
        found = np.quantile(seconds, wanted)
        names = [f"p{100 * quantile:g}" for quantile in wanted]
        return {**dict(zip(names, found.tolist(), strict=True)), "max": float(seconds.max())}


class Metrics:
    """Counters of one process.

    ``text`` gives those of all processes of the server, where the variable ``PROMETHEUS_MULTIPROC_DIR`` names their
    folder (prometheus_client reads it when it is imported).
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"namespace": "embstore", "registry": self.registry}
        self._seconds = Histogram(
            "request_seconds", "From a whole request to its response.", ("protocol", "outcome"), buckets=_SECONDS, **of
        )
        self._values = Counter("values", "Values looked up.", **of)
        self._swaps = Counter("swaps", "Times that an alias came to mean another version.", ("alias",), **of)
        self._version = Gauge(
            "version_loaded",
            "1 for what an alias means.",
            ("alias", "version"),
            multiprocess_mode="livemostrecent",
            **of,
        )
        self._behind = Gauge(
            "swap_failing", "1 while an alias can't be swapped.", ("alias",), multiprocess_mode="livemax", **of
        )
        self._meant: dict[str, str] = {}
        self.recent = Recent()

    def request(self, protocol: str, outcome: str, seconds: float, values: int) -> None:
        """Count a request that ended."""
        self._seconds.labels(protocol, outcome).observe(seconds)
        self._values.inc(values)
        if outcome == "ok":
            self.recent.add(seconds)

    def swapped(self, alias: str, version: str) -> None:
        """An alias means another version."""
        before = self._meant.get(alias)
        if before is not None:
            self._version.labels(alias, before).set(0)
            self._swaps.labels(alias).inc()
        self._version.labels(alias, version).set(1)
        self._behind.labels(alias).set(0)
        self._meant[alias] = version

    def failing(self, alias: str, fails: bool) -> None:
        """Whether an alias can't be swapped."""
        self._behind.labels(alias).set(int(fails))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        if FOLDER not in os.environ:
            return generate_latest(self.registry)
        whole = CollectorRegistry()
        MultiProcessCollector(whole)
        return generate_latest(whole)
