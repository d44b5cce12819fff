"""Processes that publish and promote, to be killed or to run into each other.

    python publisher.py      reads orders, one JSON object a line; forks a process for each; says how it ended

Forking costs milliseconds where starting Python and torch costs seconds. The parent never touches a store: obstore's
threads don't live on in a fork.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import buckets
import torch
from disk import READS, Call, intercepted

from embstore.errors import StoreError
from embstore.schema import Feature, Schema
from embstore.store import Bundle, Store, format


class SmallTable:
    """Hashed rows of two numbers."""

    dim, dtype = 2, torch.float32

    def __init__(self, seed: int, rows: int = 8) -> None:
        self.num_rows = rows
        self._rows_ND = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))

    def describe(self) -> dict[str, Any]:
        rows = [{"base": 0, "size": self.num_rows}]
        feature = {"name": "user", "lookups": 1, "pooling": "sum", "exact": False, "rows": rows}
        return {"hash_spec": 1, "seed": 0, "hashed_rows": self.num_rows, "num_tables": 1, "features": [feature]}

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        return self._rows_ND[start:stop]

    def exact_tokens(self) -> dict[str, torch.Tensor]:
        return {}


def small_bundle(seed: int = 0, rows: int = 8) -> Bundle:
    """A bundle of one feature."""
    return Bundle(
        table=SmallTable(seed, rows),
        schema=Schema(features=(Feature(name="user"),)),
        dense_state={"network.w": torch.ones(3)},
        model={"name": "dnn", "settings": {}, "dense_width": 0, "widths": [2]},
        metrics={},
        lineage={},
    )


class Publisher:
    """The processes, as seen from a test."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def order(self, **order: Any) -> dict[str, Any]:
        """Fork, let it do as ordered, and wait for its end."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Let the parent end."""
        self._process.communicate()
        assert self._process.returncode == 0


def said(beside: Path) -> list[list[str]]:
    """What the processes said, in order: ``["begin", verb]`` and, once a call has returned, ``[verb, version]``.

    Args:
        beside: the store's folder; of one in a bucket, what the order said.
    """
    path = beside.with_suffix(".said")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _work(order: dict[str, Any], seed: int) -> None:
    out = os.open(_beside(order).with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(*words: str) -> None:
        os.write(out, (json.dumps(words) + "\n").encode())

    store = Store(order["root"], cache=_beside(order).with_suffix(".cache"))
    versions: list[str] = []
    for verb in order["verbs"]:
        say("begin", verb)
        if verb == "publish":
            versions.append(store.publish(small_bundle(seed + len(versions))).id)
            say(verb, versions[-1])
        elif verb == "rollback":
            say(verb, store.rollback().id)
        else:
            while True:
                try:
                    say(verb, store.promote(versions[-1], verb).id)
                    break
                except StoreError as error:
                    if "moved meanwhile" not in str(error):
                        raise


def _beside(order: dict[str, Any]) -> Path:
    return Path(order.get("beside", order["root"]))


def _killing(order: dict[str, Any], calls: list[str]) -> Any:
    """Make calls until the one numbered ``order["step"]``: die before it, after it, or in the midst of a write."""

    def react(call: Call) -> Any:
        if call.name in READS:
            return call.run()
        calls.append(call.name)
        if len(calls) == order.get("step"):
            if order["how"] == "after":
                call.run()
            elif order["how"] == "amid" and call.name == "write":
                call.run(len(call.data) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return call.run()

    return react


def _fork(order: dict[str, Any], seed: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        calls: list[str] = []
        if "step" in order:
            react = _killing(order, calls)
            if "beside" in order:
                caught = buckets.intercepted(lambda name, path, run: react(Call(name, Path(path), run)))
            else:
                caught = intercepted(Path(order["root"]), react)
            with caught:
                _work(order, seed)
            _beside(order).with_suffix(".calls").write_text(json.dumps(calls))
        else:
            _work(order, seed)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _warm() -> None:
    """Have imported whatever publishing imports late."""
    with tempfile.TemporaryDirectory() as folder:
        format.write(
            Path(folder),
            small_bundle(),
            version="20260101T000000Z-00000000",
            created="2026-01-01T00:00:00Z",
            space="x",
            parent=None,
        )


def main() -> None:
    """Take orders until there are no more."""
    torch.set_num_threads(1)
    _warm()
    for number, line in enumerate(sys.stdin):
        order = json.loads(line)
        start = time.perf_counter()
        children = [_fork(order, 1000 * number + 100 * i) for i in range(order.get("processes", 1))]
        if "seconds" in order:
            time.sleep(order["seconds"])
            os.kill(children[0], signal.SIGKILL)
        ends = Counter(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        end = {"killed": ends[-signal.SIGKILL], "done": ends[0], "failed": ends[1]}
        print(json.dumps({**end, "seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
