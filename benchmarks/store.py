"""Saving and opening a table: the store against ``torch.save`` and torch's distributed checkpoint (DCP).

A table of 2 GiB (float32, dim 16). *Save* is ``Store.publish``: streamed out in buckets, hashed, fsynced, read back
and compared, named in the log; its peers write one file, or DCP's, and promise none of this: what they leave to be
written later is written (``sync``) before the next one's time begins. *Load* is opening the
version and having every row, each bucket's sha256 checked, in memory that is the process's own (mapped, copied where
it is written to); its peers read their files into memory. *Open* is ``Store.open`` alone; ``open_and_row`` reads a row,
too, and so checks its bucket. Files stay in the page cache, for all alike.

*Delta*: 1,000,000 changed rows of the same table, published as a delta of the one before and read by another ``Store``
that follows; how long one takes who opens the whole chain is among the samples.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint

from benchmarks.report import Result, claim, main, median
from benchmarks.workloads import extra_bytes
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.schema import Feature, Schema
from embstore.store import Bundle, Change, Store
from embstore.store.format import BUCKET_BYTES

DIM = 16
FEATURES = (Feature(name="item"),)
CHANGED = 1_000_000


def measure(quick: bool) -> Result:
    """2 GiB; the quick run repeats less."""
    repeats = 3 if quick else 7
    table = UnifiedEmbedding(FEATURES, (2 << 30) // (4 * DIM), DIM)
    with tempfile.TemporaryDirectory(dir=os.environ.get("EMBSTORE_BENCHMARK_DIR")) as folder:
        return _measure(table, Path(folder), repeats)


def _measure(table: UnifiedEmbedding, folder: Path, repeats: int) -> Result:
    bundle = _bundle(table)
    store = Store(folder / "store")
    state = {"weight": table.weight}

    def publish() -> None:
        shutil.rmtree(store.root, ignore_errors=True)
        Store(store.root).publish(bundle)

    def dcp_save() -> None:
        shutil.rmtree(folder / "dcp", ignore_errors=True)
        checkpoint.save(state, checkpoint_id=folder / "dcp", no_dist=True)

    def dcp_load() -> None:
        into = {"weight": torch.empty_like(table.weight)}
        checkpoint.load(into, checkpoint_id=folder / "dcp", no_dist=True)

    saving: dict[str, Callable[[], Any]] = {
        "embstore": publish,
        "torch.save": lambda: torch.save(state, folder / "table.pt"),
        "DCP": dcp_save,
    }
    loading: dict[str, Callable[[], Any]] = {
        "embstore": lambda: _read(Store(store.root)),
        "torch.load": lambda: torch.load(folder / "table.pt", weights_only=True),
        "DCP": dcp_load,
    }
    samples: dict[str, Any] = {"save": _times(saving, repeats), "load": _times(loading, repeats)}
    save, load = ({name: median(of) for name, of in samples[kind].items()} for kind in ("save", "load"))
    samples["open"] = _times({"embstore": lambda: Store(store.root).open()}, 20)["embstore"]
    samples["open_and_row"] = _times({"embstore": lambda: _row(Store(store.root))}, 5)["embstore"]
    samples["delta"] = _deltas(table, store, repeats)
    publish_memory = extra_bytes(publish, repeats=1)
    claims = {
        "save_vs_torch": claim(save["embstore"], "s", "torch.save", save["torch.save"], higher_is_better=False),
        "save_vs_dcp": claim(save["embstore"], "s", "torch DCP", save["DCP"], higher_is_better=False),
        "load_vs_torch": claim(load["embstore"], "s", "torch.load", load["torch.load"], higher_is_better=False),
        "load_vs_dcp": claim(load["embstore"], "s", "torch DCP", load["DCP"], higher_is_better=False),
        "open_milliseconds": claim(median(samples["open"]) * 1e3, "ms", "the bar", 100.0, higher_is_better=False),
        "delta_publish_to_readable_seconds": claim(
            median([delta["publish"] + delta["read"] for delta in samples["delta"]]),
            "s",
            "the bar",
            1.0,
            higher_is_better=False,
        ),
    }
    if publish_memory is not None:
        claims["publish_memory"] = claim(
            publish_memory / 2**20, "MiB", "a bucket", BUCKET_BYTES / 2**20, higher_is_better=False
        )
    settings = {"rows": table.num_rows, "dim": DIM, "changed": CHANGED, "folder": "a local disk"}
    return Result(claims=claims, samples=samples, settings=settings)


def _times(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds, interleaved."""
    out: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            gc.collect()
            os.sync()
            start = time.perf_counter()
            run()
            out[name].append(time.perf_counter() - start)
    return out


def _read(store: Store) -> None:
    store.open().table.own_rows()


def _row(store: Store) -> None:
    store.open().table.gather(torch.tensor([4711]))


def _deltas(table: UnifiedEmbedding, store: Store, count: int) -> list[dict[str, float]]:
    """A chain of deltas, each published on the last one and read by a follower, who has read what came before.

    Seconds: ``publish``; ``read``, from then to the follower's having its rows; ``newcomer``, to have them for one who
    opens the whole chain.
    """
    follower, out = Store(store.root), []
    base, seen = store.open(), follower.open()
    for version in (base, seen):
        version.table.read_rows(0, table.num_rows)
    for step in range(count):
        touched = torch.randperm(table.num_rows, generator=torch.Generator().manual_seed(step))[:CHANGED].sort().values
        table.weight[touched] += 1
        start = time.perf_counter()
        base = store.publish(_bundle(table), change=Change(base=base, touched=touched))
        published = time.perf_counter()
        seen = follower.open(base.id)
        rows_RD = seen.changes().rows_RD
        read = time.perf_counter()
        Store(store.root).open(base.id).changes()
        end = time.perf_counter()
        if not torch.equal(rows_RD, table.weight[touched]):
            raise AssertionError("the delta's rows are not the table's")
        out.append({"publish": published - start, "read": read - published, "newcomer": end - read})
    return out


def _bundle(table: UnifiedEmbedding) -> Bundle:
    return Bundle(
        table=table,
        schema=Schema(features=FEATURES, label="click"),
        dense_state={},
        model={"name": "none", "settings": {}, "dense_width": 0, "widths": list(table.widths)},
        metrics={},
        lineage={"space": "benchmark"},
    )


if __name__ == "__main__":
    main("store", measure)
