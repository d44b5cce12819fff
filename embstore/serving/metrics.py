"""What a server counts, for Prometheus. Several processes of a server add up through files of theirs."""

from __future__ import annotations

import os
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


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
        self._running = Gauge("running_requests", "Requests being answered.", multiprocess_mode="livesum", **of)
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

    def request(self, protocol: str, outcome: str, seconds: float, values: int) -> None:
        """Count a request that ended."""
        self._seconds.labels(protocol, outcome).observe(seconds)
        self._values.inc(values)

    def running(self, change: int) -> None:
        """One more or one fewer."""
        self._running.inc(change)

    def swapped(self, alias: str, version: str) -> None:
        """An alias means another version."""
        before = self._meant.get(alias)
        if before is not None:
            self._version.labels(alias, before).set(0)
            self._swaps.labels(alias).inc()
        self._version.labels(alias, version).set(1)
        self._behind.labels(alias).set(0)
        self._meant[alias] = version

    def failing(self, alias: str) -> None:
        """An alias could not be swapped."""
        self._behind.labels(alias).set(1)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        if FOLDER not in os.environ:
            return generate_latest(self.registry)
        whole = CollectorRegistry()
        MultiProcessCollector(whole)
        return generate_latest(whole)
