"""Serving 500 vectors of 32 float32 over the loopback: embstore against Redis's MGET and Feast's feature server.

The values are text, drawn by Zipf's law from a vocabulary of which Redis has the same vectors that embstore gives.
Every client is a Python process with one open connection, and ends with one numpy array (``benchmarks.load.callers``);
clients and servers share the machine's cores. Contenders take turns, cell by cell and round by round.

    p50_vs_redis, p99_vs_redis                 open loop, as many requests a second of both: ``FRACTIONS[0]`` of what
                                               saturates Redis; latency from when a request is due (``load.latency``)
    p50_closed_loop_vs_redis, ...              one connection, one request after another
    ..._vs_hiredis                             the same against redis-py with its C parser, an extra of it
    throughput_vs_redis                        vectors a second when clients ask as fast as they are answered, with as
                                               many clients as are best for each
    grpc_..., tritonclient_..._vs_redis        the same over gRPC, and with the stock tritonclient
    score_500_milliseconds                     closed loop: probabilities of 500 rows of two features, a dense column
    in_process_p99_milliseconds                ``Reader.lookup`` of 1,000 values, 64 floats each, no server
    throughput_vs_feast                        vectors a second at saturation

``samples`` has each cell's histogram as ``bucket:count``: a bucket begins at ``2 ** (bucket / 64)`` microseconds. The
processor time of a request, the servers' and the clients', is there too: it says more than latency does when the
machine is shared with others. Claims' ratios say how many times better than the peer: at most 0.6 of Redis's p50 is a
ratio of 1.67 or more. What isn't installed is left out, and ``settings["left_out"]`` says so.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.load import servers, shop
from benchmarks.load.callers import (
    DIM,
    FEAST,
    FEATURE,
    GRPC,
    HIREDIS,
    HTTP,
    REDIS,
    SCORE,
    TRITON_GRPC,
    TRITON_HTTP,
    caller,
)
from benchmarks.load.clients import Cell, Clients
from benchmarks.load.latency import Histogram
from benchmarks.peers import feast_server, redis_server
from benchmarks.report import Result, claim, main
from benchmarks.workloads import EXPONENT
from embstore.serving.reader import Reader
from embstore.threads import usable_cores

WORKERS = 2  # processes of embstore serve
CLIENTS = (2, 4)  # tried for saturation; the load of the open loop comes from OPEN of them
OPEN = 4
FRACTIONS = (0.5, 0.9)  # of what saturates Redis, for all; of what saturates embstore over HTTP, for it alone
IN_PROCESS = (1_000, 64)
CONTENDERS = (HTTP, REDIS, HIREDIS, GRPC, TRITON_HTTP, TRITON_GRPC)
PEERS = {REDIS: "redis", HIREDIS: "hiredis"}
OTHERS = 0.1  # of the cores' time, used by other processes: more, and claims are ``disturbed``
PACKAGES = ("pyarrow", "uvicorn", "httptools", "orjson", "grpcio", "protobuf", "tritonclient", "redis", "hiredis")
_SHORT = {HTTP: "", GRPC: "grpc_", TRITON_HTTP: "tritonclient_http_", TRITON_GRPC: "tritonclient_grpc_"}


class Sizes:
    """How much is measured: ``requests`` a cell or more in the full run, what half a minute allows in the quick one."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.rows = self.vocabulary = 100_000 if quick else 1_000_000
        self.feast_values = 1_000 if quick else 100_000
        self.feast_workers = 1 if quick else WORKERS
        self.rounds = 2 if quick else 10
        self.requests = 400 if quick else 100_000
        self.most_seconds = 1.0 if quick else 60.0  # of a round of a cell
        self.closed_requests = 400 if quick else 20_000
        self.saturation_seconds = 1.0 if quick else 4.0
        self.clients = (OPEN,) if quick else CLIENTS
        self.fractions = FRACTIONS[:1] if quick else FRACTIONS


def measure(quick: bool) -> Result:
    """All contenders; the quick run has few requests a cell, and its tails mean little."""
    sizes = Sizes(quick)
    with tempfile.TemporaryDirectory(dir=os.environ.get("EMBSTORE_BENCHMARK_DIR")) as folder, ExitStack() as stack:
        return _Run(sizes, Path(folder), stack).result()


class _Run:
    """Servers, clients and what has been found."""

    def __init__(self, sizes: Sizes, folder: Path, stack: ExitStack) -> None:
        self.sizes, self.folder, self.stack = sizes, folder, stack
        self.claims: dict[str, Any] = {}
        self.samples: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        self.loads = [servers.load_average()]
        self.others = self.measured = 0.0  # seconds of the cores: used by other processes while cells were, and in all
        self.ids = folder / "ids.npy"
        self.ids_QN = shop.questions(self.ids, sizes.vocabulary)
        self.store = shop.published(folder, sizes.rows)
        values = shop.texts(np.arange(sizes.vocabulary))
        self.vectors_VD = Reader(self.store.open()).lookup(FEATURE, pa.array(values)).vectors_BW
        ours = stack.enter_context(servers.embstore(self.store.root, folder / "serve.log", workers=WORKERS))
        self.servers: dict[str, servers.Process] = dict.fromkeys((HTTP, GRPC, TRITON_HTTP, TRITON_GRPC, SCORE), ours)
        absent = redis_server.missing()
        if absent is None:
            redis = stack.enter_context(redis_server.redis(folder, values, self.vectors_VD))
            self.servers |= dict.fromkeys(PEERS, redis)
        else:
            self.left_out["..._vs_redis"] = absent
        self.names = [name for name in CONTENDERS if name in self.servers]
        self.addresses = {name: at for of in self.servers.values() for name, at in of.addresses.items()}
        self._check(self.names)
        self.clients = Clients(max(sizes.clients), self.addresses, self.ids)
        stack.callback(self.clients.close)

    def result(self) -> Result:
        in_process(self.folder, self.sizes, self.claims, self.samples)
        saturated = self._saturation([HTTP, GRPC, *PEERS])
        self._closed([*self.names, SCORE])
        self._open(saturated)
        self._feast(saturated[HTTP])
        self.loads.append(servers.load_average())
        if self.others > OTHERS * self.measured:
            print("the machine was busy, measure again", file=sys.stderr)
            self.claims = {name: {**of, "disturbed": True} for name, of in self.claims.items()}
        return Result(claims=self.claims, samples=self.samples, settings=self._settings(), packages=PACKAGES)

    def _settings(self) -> dict[str, Any]:
        sizes = self.sizes
        return {
            "rows": sizes.rows,
            "vocabulary": sizes.vocabulary,
            "zipf_exponent": EXPONENT,
            "values": shop.VALUES,
            "dim": DIM,
            "requests": "few: the quick run's tails mean little"
            if sizes.quick
            else f"{sizes.requests:,} a cell of the open loop, {sizes.closed_requests:,} of the closed one",
            "workers": WORKERS,
            "clients": "Python processes with a connection each; they and the servers share the machine's cores",
            "open_loop_clients": OPEN,
            "redis": "one process, no persistence; redis-py as pip installs it, and with hiredis",
            "feast": f"{sizes.feast_values:,} entities, SQLite, workers: {sizes.feast_workers}",
            "left_out": self.left_out,
            "load_average": self.loads,
            "share_of_cores_used_by_others": round(self.others / self.measured, 3),
        }

    def _check(self, names: Iterable[str]) -> None:
        """All give the same numbers, or nothing is compared."""
        values, expected = shop.texts(self.ids_QN[0]), self.vectors_VD[self.ids_QN[0]]
        for name in names:
            np.testing.assert_array_equal(caller(name, self.addresses)(values), expected, err_msg=name)

    def _saturation(self, names: Sequence[str]) -> dict[str, Cell]:
        """What each answers when it is asked as fast as it answers, by the number of clients that gets the most."""
        names = [name for name in names if name in self.servers]
        cells = {(name, count): Cell() for count in self.sizes.clients for name in names}
        for _ in range(1 if self.sizes.quick else 3):
            for (name, count), cell in cells.items():
                seconds = self.sizes.saturation_seconds
                self._take(cell, self.clients.closed, name, seconds=seconds, clients=count)
        self.samples["saturation"] = {f"{name}, {count} clients": cell.shown() for (name, count), cell in cells.items()}
        best = {
            name: max((cells[name, count] for count in self.sizes.clients), key=lambda cell: cell.rate)
            for name in names
        }
        for peer in (of for of in PEERS if of in best):
            for name in (of for of in names if of in _SHORT):
                rates = (best[of].rate * shop.VALUES for of in (name, peer))
                self._claim(f"{_SHORT[name]}throughput_vs_{PEERS[peer]}", *rates, "vectors/s", peer=peer)
        return best

    def _closed(self, names: Sequence[str]) -> None:
        """One connection; each round a share of the requests."""
        cells = {name: Cell() for name in names}
        for turn in range(self.sizes.rounds):
            for name in _turned(names, turn):
                count = self.sizes.closed_requests // self.sizes.rounds
                seconds = self.sizes.most_seconds
                self._take(cells[name], self.clients.closed, name, seconds=seconds, clients=1, count=count)
        self.samples["closed_loop"] = {name: cell.shown() for name, cell in cells.items()}
        self._latency_claims(cells, "_closed_loop")
        score = cells[SCORE]
        self.claims["score_500_milliseconds"] = claim(score.milliseconds(0.5), "ms")
        self.claims["score_500_p99_milliseconds"] = claim(score.milliseconds(0.99), "ms")

    def _open(self, saturated: Mapping[str, Cell]) -> None:
        """The sweep of rates: fractions of Redis's saturation for all, and of embstore's for it alone."""
        sweep: dict[str, Any] = {}
        reference = REDIS if REDIS in saturated else HTTP
        for fraction in self.sizes.fractions:
            cells = self._at_rate(list(saturated), fraction * saturated[reference].rate)
            sweep[f"{fraction} of {reference}'s saturation"] = {name: cell.shown() for name, cell in cells.items()}
            suffix = "" if fraction == FRACTIONS[0] else f"_at_{fraction}"
            self._latency_claims(cells, suffix)
        if reference == REDIS and not self.sizes.quick:
            for fraction in FRACTIONS[:1]:
                cells = self._at_rate([HTTP], fraction * saturated[HTTP].rate)
                sweep[f"{fraction} of {HTTP}'s saturation"] = {name: cell.shown() for name, cell in cells.items()}
        self.samples["open_loop"] = sweep

    def _at_rate(self, names: Sequence[str], rate: float) -> dict[str, Cell]:
        cells = {name: Cell() for name in names}
        sizes = self.sizes
        seconds = min(sizes.most_seconds, sizes.requests / rate / sizes.rounds)
        rounds = sizes.rounds if sizes.quick else int(np.ceil(sizes.requests / rate / seconds * 1.01))
        for turn in range(rounds):
            for name in _turned(names, turn):
                self._take(cells[name], self.clients.open, name, rate=rate, seconds=seconds, seed=turn)
        return cells

    def _latency_claims(self, cells: Mapping[str, Cell], suffix: str) -> None:
        for peer in (of for of in PEERS if of in cells):
            for name in (of for of in cells if of in _SHORT):
                for label, share in (("p50", 0.5), ("p99", 0.99)):
                    ours, theirs = (cells[of].milliseconds(share) for of in (name, peer))
                    claimed = f"{_SHORT[name]}{label}{suffix}_vs_{PEERS[peer]}"
                    self._claim(claimed, ours, theirs, "ms", peer=peer, higher_is_better=False)

    def _feast(self, ours: Cell) -> None:
        absent = feast_server.missing()
        if absent is not None:
            self.left_out["throughput_vs_feast"] = absent
            return
        count, ids = self.sizes.feast_values, self.folder / "feast_ids.npy"
        shop.questions(ids, count)
        workers = self.sizes.feast_workers
        with feast_server.feast(self.folder / "feast", self.vectors_VD[:count], workers=workers) as server:
            self.servers[FEAST] = server
            addresses = {**self.addresses, **server.addresses}
            values, expected = shop.texts(np.arange(shop.VALUES)), self.vectors_VD[: shop.VALUES]
            np.testing.assert_allclose(caller(FEAST, addresses)(values), expected, rtol=1e-6)
            clients = Clients(max(self.sizes.clients), addresses, ids)
            try:
                cells = {}
                for clients_count in self.sizes.clients:
                    cell = cells[clients_count] = Cell()
                    seconds = 3 * self.sizes.saturation_seconds
                    self._take(cell, clients.closed, FEAST, seconds=seconds, clients=clients_count)
            finally:
                clients.close()
        self.samples["saturation"] |= {f"{FEAST}, {of} clients": cell.shown() for of, cell in cells.items()}
        best = max(cells.values(), key=lambda cell: cell.rate)
        self._claim("throughput_vs_feast", ours.rate * shop.VALUES, best.rate * shop.VALUES, "vectors/s", peer=FEAST)

    def _claim(
        self, name: str, ours: float, theirs: float, unit: str, *, peer: str = REDIS, higher_is_better: bool = True
    ) -> None:
        self.claims[name] = claim(ours, unit, peer, theirs, higher_is_better=higher_is_better)

    def _take(self, cell: Cell, ask: Callable[..., Cell], name: str, **how: Any) -> None:
        """Add a round to a cell."""
        start, busy, before = perf_counter(), servers.busy_seconds(), self.servers[name].cpu_seconds()
        found = ask(name, **how)
        if found.errors:
            raise RuntimeError(f"{name}: {found.errors:,} requests failed; the lines above say why")
        found.server_cpu_seconds = self.servers[name].cpu_seconds() - before
        busy = servers.busy_seconds() - busy
        self.others += max(0.0, busy - found.server_cpu_seconds - found.cpu_seconds)
        self.measured += (perf_counter() - start) * usable_cores()
        cell.merge(found)


def in_process(folder: Path, sizes: Sizes, claims: dict[str, Any], samples: dict[str, Any]) -> None:
    """Lookups without a server, of values in an Arrow array and in a list."""
    count, dim = IN_PROCESS
    reader = Reader(shop.published(folder / "wide", sizes.rows, dim).open())
    reader.load()
    ids_QN = shop.questions(folder / "wide.npy", sizes.vocabulary, count)
    lists = [shop.texts(ids) for ids in ids_QN[:64]]
    asked: dict[str, list[Any]] = {"Arrow array": [pa.array(values) for values in lists], "list of str": lists}
    found = {name: Histogram() for name in asked}
    for turn in range(sizes.rounds):
        for name in _turned(list(asked), turn):
            found[name].add(_lookups(reader, asked[name], max(sizes.requests // sizes.rounds, 1000)))
    samples["in_process"] = {
        name: {"p50_ms": of.quantile(0.5) * 1e3, "p99_ms": of.quantile(0.99) * 1e3, "histogram": of.text()}
        for name, of in found.items()
    }
    p99 = found["Arrow array"].quantile(0.99) * 1e3
    claims["in_process_p99_milliseconds"] = claim(p99, "ms", "the bar", 0.5, higher_is_better=False)


def _lookups(reader: Reader, requests: Sequence[Any], count: int) -> list[float]:
    taken = []
    for number in range(count):
        start = perf_counter()
        reader.lookup(FEATURE, requests[number % len(requests)])
        taken.append(perf_counter() - start)
    return taken


def _turned(names: Sequence[str], turn: int) -> list[str]:
    """Starting with another one each round."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


if __name__ == "__main__":
    main("serving", measure)
