"""Swaps under load: 60 s at 70% of saturation over HTTP, and 100 promotes, rollbacks and deltas meanwhile.

Every version's rows are a known function of the row and the version's number (``benchmarks.load.numbered``), so each
answer is compared, bit by bit, with what the version that it names must give. A third of the swaps publish a delta of
1% of the rows and promote it, a third roll back, a third promote the newest again; whoever publishes shares the
machine's cores with servers and clients, niced.

    errors, wrong_answers           of all requests, before and during; 0
    swaps_seen                      of those made, how many a worker has followed on average, as the metrics say
    p99_during_vs_steady            open loop, the same rate and clients, without swaps and with them
    memory_growth                   Pss of all server processes: after, with the first version again, over before
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import torch

from benchmarks.load import numbered, servers, shop
from benchmarks.load.callers import DIM, FEATURE, MODEL, VERSIONED
from benchmarks.load.clients import Cell, Clients
from benchmarks.report import Result, claim, main
from benchmarks.serving import PACKAGES
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.serving.reader import Reader
from embstore.serving.versions import Following
from embstore.store import Change, Store

WORKERS, CLIENTS, LOAD = 2, 4, 0.7
_POLL = 0.1  # seconds between two looks of a worker at the alias
_SETTLE = 3.0  # seconds for requests to let go of a version
_LINGERS = Following().lingers  # seconds that workers keep one that was swapped out


class _Versions:
    """The store, and the file that tells clients what each version's number is."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.store, self.path = Store(folder / MODEL), folder / "versions.txt"
        self.bundle = shop.bundle(UnifiedEmbedding(shop.FEATURES, rows, DIM))
        self.bundle.table.weight.copy_(torch.from_numpy(numbered.base(np.arange(rows), DIM)))
        self.newest, self.number, self.swaps = self.store.publish(self.bundle), 0, 0
        self.first = self.newest
        self._told()
        self.promote(self.first.id)

    def delta(self) -> None:
        """Publish the next version and promote it."""
        self.number += 1
        table = self.bundle.table
        rows = numbered.changed(table.num_rows, self.number)
        values = numbered.base(rows, DIM) + numbered.added(rows, self.number)[:, None]
        touched = torch.from_numpy(rows)
        table.weight[touched] = torch.from_numpy(values)
        self.newest = self.store.publish(self.bundle, change=Change(base=self.newest, touched=touched))
        self._told()
        self.promote(self.newest.id)

    def rollback(self) -> None:
        """To what production was before."""
        self.store.rollback()
        self.swaps += 1

    def again(self) -> None:
        """Promote the newest."""
        self.promote(self.newest.id)

    def promote(self, version: str) -> None:
        """Make it production."""
        self.store.promote(version)
        self.swaps += 1

    def _told(self) -> None:
        with self.path.open("a") as file:
            file.write(f"{self.newest.id} {self.number}\n")


def measure(quick: bool) -> Result:
    """Steady traffic, then swaps under the same; the quick run is 8 s with 10 swaps."""
    rows, seconds, swaps = (100_000, 8.0, 10) if quick else (1_000_000, 60.0, 100)
    load = [servers.load_average()]
    with tempfile.TemporaryDirectory(dir=os.environ.get("EMBSTORE_BENCHMARK_DIR")) as name, ExitStack() as stack:
        folder = Path(name)
        versions = _Versions(folder, rows)
        ids, vectors = folder / "ids.npy", folder / "vectors.npy"
        ids_QN = shop.questions(ids, rows)
        reader = Reader(versions.first)
        np.save(vectors, np.stack([reader.lookup(FEATURE, pa.array(shop.texts(of))).vectors_BW for of in ids_QN]))
        server = stack.enter_context(
            servers.embstore(versions.store.root, folder / "serve.log", workers=WORKERS, options=("--poll", str(_POLL)))
        )
        clients = Clients(CLIENTS, server.addresses, ids, (versions.path, vectors))
        stack.callback(clients.close)
        saturation = clients.closed(VERSIONED, seconds=seconds / 10, clients=CLIENTS)
        rate = LOAD * saturation.rate
        _there_and_back(versions)
        steady = clients.open(VERSIONED, rate=rate, seconds=seconds / 3, seed=1)
        before, made, seen = _memory(server), versions.swaps, _seen(server)
        during = clients.open(
            VERSIONED, rate=rate, seconds=seconds, seed=2, meanwhile=lambda: _swap(versions, swaps, seconds)
        )
        made, seen = versions.swaps - made, _seen(server) - seen
        versions.promote(versions.first.id)
        time.sleep(_LINGERS)
        after_swaps = clients.open(VERSIONED, rate=rate, seconds=_SETTLE, seed=3)
        after = _memory(server)
    cells = {"saturation": saturation, "steady": steady, "during": during, "after": after_swaps}
    requests = sum(cell.latency.count for cell in cells.values())
    settings = {
        "rows": rows,
        "values": shop.VALUES,
        "dim": DIM,
        "workers": WORKERS,
        "clients": f"{CLIENTS} Python processes, on the machine's cores as servers and publisher are",
        "seconds": seconds,
        "swaps": made,
        "poll_seconds": _POLL,
        "load": LOAD,
        "requests_checked": requests,
        "load_average": [*load, servers.load_average()],
    }
    samples = {name: cell.shown() for name, cell in cells.items()}
    samples["memory_bytes"] = {"before": before, "after": after}
    return Result(
        claims=_claims(cells, before, after, seen, made), samples=samples, settings=settings, packages=PACKAGES
    )


def _claims(cells: dict[str, Cell], before: int, after: int, seen: int, made: int) -> dict[str, Any]:
    during, steady = (cells[name].milliseconds(0.99) for name in ("during", "steady"))
    errors, wrong = (sum(getattr(cell, name) for cell in cells.values()) for name in ("errors", "wrong"))
    return {
        "errors": claim(errors, "requests", "the bar", 0),
        "wrong_answers": claim(wrong, "requests", "the bar", 0),
        "swaps_seen": claim(seen, "swaps", "made", made),
        "p99_during_vs_steady": claim(during, "ms", "steady", steady, higher_is_better=False),
        "memory_growth": claim(after / before, "times", "the bar", 1.05, higher_is_better=False),
    }


def _there_and_back(versions: _Versions) -> None:
    """What a first swap builds once is not growth."""
    versions.delta()
    time.sleep(1)
    versions.promote(versions.first.id)
    time.sleep(1)


def _swap(versions: _Versions, count: int, seconds: float) -> None:
    """So many swaps, evenly over the time; late ones follow at once. The server goes first, as beside any batch job."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    turns = _turns(versions)
    start = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, start + seconds * number / count - time.monotonic()))
        next(turns)()


def _turns(versions: _Versions) -> Iterator[Callable[[], None]]:
    while True:
        yield from (versions.delta, versions.rollback, versions.again)


def _seen(server: servers.Process) -> int:
    """Swaps that the workers have counted, of each on average."""
    with urlopen(f"http://{server.addresses['http']}/metrics") as answer:
        text = answer.read().decode()
    return int(sum(float(of) for of in re.findall(r"^embstore_swaps_total\S* (\S+)$", text, re.M))) // WORKERS


def _memory(server: servers.Process) -> int:
    time.sleep(_SETTLE)
    return server.memory_bytes()


if __name__ == "__main__":
    main("soak", measure)
