"""Clients in processes of their own, each with one connection to each contender; all do a benchmark's cell at a time.

{"open": "Redis MGET", "start": 812.5, "rate": 250.0, "seconds": 4.0, "seed": 7}        one line asks
{"histogram": "634:12 635:8", "ended": 816.6, "cpu_seconds": 0.7}                        one line answers
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load.callers import VERSIONED, caller
from benchmarks.load.latency import Histogram, closed_loop, open_loop, poisson
from benchmarks.load.numbered import Numbered

_AHEAD = 0.05  # seconds from asking the clients to their common start
_WARM = 5  # requests before a cell, not counted
_TIMER_SLACK = 29  # prctl's PR_SET_TIMERSLACK


@dataclass
class Cell:
    """What clients found, together.

    Args:
        seconds: that the clients took, from the common start to the last answer.
        wrong: answers that were not those of the version that they named (soak.py).
        cpu_seconds: of the clients' processes.
        server_cpu_seconds: of the servers', where whoever asked has measured it.
    """

    latency: Histogram = field(default_factory=Histogram)
    seconds: float = 0.0
    errors: int = 0
    wrong: int = 0
    cpu_seconds: float = 0.0
    server_cpu_seconds: float = 0.0

    def merge(self, other: Cell) -> None:
        """Add another round."""
        self.latency.merge(other.latency)
        self.seconds += other.seconds
        self.errors += other.errors
        self.wrong += other.wrong
        self.cpu_seconds += other.cpu_seconds
        self.server_cpu_seconds += other.server_cpu_seconds

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.latency.count / self.seconds

    def milliseconds(self, share: float) -> float:
        """A quantile of the latency."""
        return self.latency.quantile(share) * 1e3

    def shown(self) -> dict[str, Any]:
        """For a report."""
        count = self.latency.count
        return {
            "requests": count,
            "per_second": round(self.rate, 1),
            **{f"p{share * 100:g}_ms": round(self.milliseconds(share), 4) for share in (0.5, 0.9, 0.99, 0.999)},
            "client_cpu_us": round(self.cpu_seconds / count * 1e6, 1),
            "server_cpu_us": round(self.server_cpu_seconds / count * 1e6, 1),
            "histogram": self.latency.text(),
        }


class Clients:
    """Processes that ask.

    Args:
        count: of them.
        addresses: of the servers, as ``callers.caller`` takes them.
        ids: file of int64 ``[requests, values]``, the numbers of the values asked for.
        numbered: for ``callers.VERSIONED``, the files of ``numbered.Numbered``: of versions, and of vectors (npy).
    """

    def __init__(
        self, count: int, addresses: dict[str, str], ids: Path, numbered: tuple[Path, Path] | None = None
    ) -> None:
        orders = {"addresses": addresses, "ids": str(ids), "numbered": [str(path) for path in numbered or ()]}
        self._processes = []
        for number in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.load.clients"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._processes.append(process)
            self._tell(process, {**orders, "number": number})
        for process in self._processes:
            self._hear(process)

    def open(
        self, name: str, *, rate: float, seconds: float, seed: int, meanwhile: Callable[[], object] = lambda: None
    ) -> Cell:
        """So many requests a second of all clients together, each due at a time of its own.

        Args:
            meanwhile: done here while they ask.
        """
        order = {"open": name, "rate": rate / len(self._processes), "seconds": seconds, "seed": seed}
        return self._cell(order, self._processes, meanwhile)

    def closed(self, name: str, *, seconds: float, clients: int, count: int | None = None) -> Cell:
        """One request after another, each client's as fast as it is answered.

        Args:
            count: of each client, if they have the time.
        """
        return self._cell({"closed": name, "seconds": seconds, "count": count}, self._processes[:clients])

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(timeout=30)

    def _cell(
        self,
        order: dict[str, Any],
        processes: Sequence[subprocess.Popen[str]],
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Cell:
        for process in processes:
            self._tell(process, {"warm": order.get("open") or order.get("closed")})
        for process in processes:  # all are warm before any starts
            self._hear(process)
        start = time.perf_counter() + _AHEAD
        for process in processes:
            self._tell(process, {**order, "start": start})
        meanwhile()
        return _together([self._hear(process) for process in processes], start)

    def _tell(self, process: subprocess.Popen[str], order: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()

    def _hear(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"a client ended with code {process.wait()}; the lines above say why")
        found: dict[str, Any] = json.loads(line)
        return found


def _together(answers: Sequence[dict[str, Any]], start: float) -> Cell:
    cell = Cell(seconds=max(answer["ended"] for answer in answers) - start)
    for answer in answers:
        cell.latency.merge(Histogram.parse(answer["histogram"]))
        cell.errors += answer["errors"]
        cell.wrong += answer["wrong"]
        cell.cpu_seconds += answer["cpu_seconds"]
    return cell


class _Client:
    """One process' side."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.addresses, self.number = orders["addresses"], orders["number"]
        self.requests = [[f"user_{number}" for number in ids] for ids in np.load(orders["ids"]).tolist()]
        self.callers: dict[str, Any] = {}
        self.numbered = orders["numbered"]
        self.errors = self.wrong = 0

    def do(self, order: dict[str, Any]) -> dict[str, Any]:
        if "warm" in order:
            ask = self._ask(order["warm"])
            for number in range(_WARM):
                ask(number)
            return {}
        self.errors = self.wrong = 0
        ask = self._ask(order.get("open") or order.get("closed"))
        turn = (np.arange(len(self.requests)) + 131 * self.number).tolist()
        cpu, start = time.process_time(), order["start"]
        if "open" in order:
            generator = np.random.default_rng([order["seed"], self.number])
            taken = open_loop(ask, turn, poisson(order["rate"], order["seconds"], generator), start)
        else:
            time.sleep(max(0.0, start - time.perf_counter()))
            taken = closed_loop(ask, turn, start + order["seconds"], count=order["count"])
        ended, cpu = time.perf_counter(), time.process_time() - cpu
        histogram = Histogram()
        histogram.add(taken)
        found = {"histogram": histogram.text(), "ended": ended, "cpu_seconds": cpu}
        return {**found, "errors": self.errors, "wrong": self.wrong}

    def _ask(self, name: str) -> Any:
        if name not in self.callers:
            self.callers[name] = caller(name, self.addresses)
        ask, requests = self.callers[name], self.requests
        if name == VERSIONED:
            return self._checked(ask)

        def answered(turn: int) -> None:
            try:
                ask(requests[turn % len(requests)])
            except Exception as error:
                self._count_error(error)

        return answered

    def _checked(self, ask: Any) -> Any:
        """Each answer compared, bit by bit, with what the version that it names must give."""
        versions, vectors = self.numbered
        numbered = Numbered(Path(versions), np.load(vectors, mmap_mode="r"))

        def answered(turn: int) -> None:
            number = turn % len(self.requests)
            try:
                vectors, version = ask(self.requests[number])
            except Exception as error:
                self._count_error(error)
                return
            self.wrong += not numbered.holds(number, vectors, version)

        return answered

    def _count_error(self, error: Exception) -> None:
        if not self.errors:
            print(f"client {self.number}: {type(error).__name__}: {error}", file=sys.stderr)
        self.errors += 1


def _main() -> None:
    # A sleep ends 50 us late by default, and every request that was early would be counted as so much slower.
    getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(_TIMER_SLACK, 1000, 0, 0, 0)
    client = _Client(json.loads(sys.stdin.readline()))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(client.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    _main()
