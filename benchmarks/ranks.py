"""Processes that train together, held ready to be timed in turns: the hands of ``benchmarks.scaling``.

    Ranks(2).steps("embstore", batch=4096, steps=10)      seconds of each step, as rank 0 saw them

Each rank has one thread. The others wait for rank 0, and it waits on its stdin: a group that has no turn uses no core.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers.per_feature import jagged, per_feature
from benchmarks.workloads import DIM, FEATURES, ROWS, draw_tokens, feature_list
from embstore.batch import Batch
from embstore.ctr import CtrModel
from embstore.distributed import ALONE, Group, joined
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.lookahead import look_ahead
from embstore.models import build
from embstore.normalization import StreamingNormalizer
from embstore.training import Trainer
from embstore.training_settings import TrainingSettings

OURS, PEER = "embstore", "torchrec, a table per feature"
HIDDEN = (256, 128)
_BATCHES = 8  # different ones, in turn
_FOREVER = 1 << 40
Step = Callable[[int], None]


class Ranks:
    """A group of processes on this machine, of one thread each."""

    def __init__(self, world: int) -> None:
        self.world = world
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), 1)
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "benchmarks.ranks"],
                env={**os.environ, **{k: str(v) for k, v in {**shared, **threads, "RANK": rank}.items()}},
                stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
            for rank in range(world)
        ]

    def steps(self, contender: str, batch: int, steps: int) -> list[float]:
        """Seconds of so many steps, with ``batch`` rows a rank."""
        return self._ask("steps", contender, batch, steps)

    def share(self, contender: str, batch: int, steps: int) -> float:
        """Share of the time of so many steps in which rank 0 had a collective under way."""
        return self._ask("share", contender, batch, steps)

    def close(self) -> None:
        """Let the processes go."""
        assert self._processes[0].stdin is not None
        self._processes[0].stdin.close()
        for process in self._processes:
            process.wait()

    def _ask(self, *what: Any) -> Any:
        first = self._processes[0]
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.write(json.dumps(what) + "\n")
        first.stdin.flush()
        answer = first.stdout.readline()
        if not answer:
            self.close()
            raise RuntimeError(f"a rank of {self.world} failed at {what}: see above")
        return json.loads(answer)


def _serve(group: Group) -> None:
    """Do what rank 0 is told to, all together, until it is told no more."""
    made: dict[tuple[str, int], Step] = {}
    while True:
        line = sys.stdin.readline() if group.first else ""
        what, contender, batch, steps = group.told(json.loads(line) if line else [""] * 4)
        if not what:
            return
        if (contender, batch) not in made:
            made[contender, batch] = (_ours if contender == OURS else _peer)(group, batch)
            for number in range(3):
                made[contender, batch](number)
        step = made[contender, batch]
        answer = _time(step, group, steps) if what == "steps" else _share(step, steps)
        if group.first:
            print(json.dumps(answer), flush=True)


def _time(step: Step, group: Group, steps: int) -> list[float]:
    taken = []
    for number in range(steps):
        group.barrier()
        start = time.perf_counter()
        step(number)
        group.barrier()
        taken.append(time.perf_counter() - start)
    return taken


def _share(step: Step, steps: int) -> float:
    """Of collectives that torch's profiler sees from their start to their end."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for number in range(steps):
            step(number)
        whole = time.perf_counter() - start
    spans = [event.time_range for event in profiler.events() if event.name.startswith("gloo:")]
    busy, end = 0.0, 0.0
    for span in sorted(spans, key=lambda span: span.start):
        busy += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return busy / 1e6 / whole


def _batches(group: Group, batch: int) -> list[Batch]:
    """Each rank's own: ids by Zipf's law, tokens as a log gives them."""
    generator = np.random.default_rng([1, group.rank])
    whole = None if group.alone else batch * group.world
    return [
        Batch(
            draw_tokens("zipf", generator, batch=batch),
            torch.empty(batch, 0),
            torch.from_numpy((generator.random(batch) < 0.25).astype(np.float32)),
            whole=whole,
        )
        for _ in range(_BATCHES)
    ]


def _network() -> torch.nn.Module:
    torch.manual_seed(1)
    return build("dnn", dense_width=0, widths=[DIM] * FEATURES, hidden=HIDDEN)


def _ours(group: Group, batch: int) -> Step:
    table = UnifiedEmbedding(feature_list(), ROWS, DIM, group=group)
    model = CtrModel(table, StreamingNormalizer([], group), _network()).train()
    trainer = Trainer(model, TrainingSettings(batch_size=batch * group.world), tempfile.gettempdir(), group=group)
    batches = cycle(_batches(group, batch))
    ready = batches if group.alone else look_ahead(batches, table)  # as ``Trainer.fit`` does
    return lambda _: _discard(trainer._step(next(ready), _FOREVER))


def _peer(group: Group, batch: int) -> Step:
    names = [feature.name for feature in feature_list()]
    rows = ROWS // FEATURES
    network = _network()
    model = per_feature(names, rows, DIM, network, batch=batch, learning_rate=0.02, eps=1e-8)
    dense = [parameter for name, parameter in model.named_parameters() if "network" in name]
    adam = torch.optim.Adam(dense, lr=1e-3, fused=True)
    batches = [
        (one.dense_BD, jagged(names, one.tokens.values_N.view(FEATURES, batch) % rows), one.label_B)
        for one in _batches(group, batch)
    ]

    def step(number: int) -> None:
        dense_BD, ids, label_B = batches[number % _BATCHES]
        adam.zero_grad(set_to_none=True)
        loss = functional.binary_cross_entropy_with_logits(model(dense_BD, ids), label_B)
        loss.backward()
        adam.step()
        float(loss.detach())

    return step


def _discard(_: object) -> None:
    return None


def _main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # torchrec's planner explains itself
    if int(os.environ["WORLD_SIZE"]) > 1:
        with joined() as group:
            _serve(group)
    else:  # torchrec's script needs a process group; ours needs none
        torch.distributed.init_process_group("gloo")
        _serve(ALONE)


if __name__ == "__main__":
    _main()
