"""What a second process buys in training: embstore's shared-out table against the usual torchrec script.

A step is a whole one: lookup of 26 features in 1,000,000 rows of 16 float32, Zipf ids, a network of two hidden layers,
backward, row-wise Adagrad on the rows, gradients of the network summed over the ranks, Adam. embstore starts from raw
tokens (``Trainer``'s own step, one table of all features, sharded by rows); the peer has ids that are rows already, and
a table of 1/26 of the rows for each feature (``benchmarks.peers.per_feature``: ``EmbeddingBagCollection``, torchrec's
planner, ``DistributedModelParallel``). Two processes of embstore look a batch ahead, as ``Trainer`` does; the peer's
script has no pipelined step. A process has one thread: two use twice the cores of one. Batches lie in memory.

    two_process_speedup         the same batch (8,192) shared by two, against one
    weak_scaling_efficiency     twice the batch for two: samples/s of two over twice those of one
    samples_per_second_...      of two processes, 4,096 rows each

Groups of one and of two processes take turns, round by round. ``share_in_exchange`` in the samples is the part of a
step of two in which a collective is under way on rank 0, by torch's profiler: waiting for the other rank included.
"""

from __future__ import annotations

from typing import Any

from benchmarks.ranks import HIDDEN, OURS, PEER, Ranks
from benchmarks.report import Result, claim, main, median
from benchmarks.workloads import DIM, EXPONENT, FEATURES, ROWS, VOCABULARY

BATCH = 4096
CELLS = [
    (OURS, 1, BATCH),
    (OURS, 1, 2 * BATCH),
    (OURS, 2, BATCH),
    (PEER, 1, BATCH),
    (PEER, 1, 2 * BATCH),
    (PEER, 2, BATCH),
]


def measure(quick: bool) -> Result:
    """Steps of one and two processes, ours and the peer's, in turns."""
    rounds, steps = (3, 5) if quick else (12, 10)
    groups = {world: Ranks(world) for world in (1, 2)}
    seconds: dict[tuple[str, int, int], list[float]] = {cell: [] for cell in CELLS}
    try:
        for _ in range(rounds):
            for contender, world, batch in CELLS:
                seconds[contender, world, batch] += groups[world].steps(contender, batch, steps)
        share = {name: groups[2].share(name, BATCH, 3 * steps) for name in (OURS, PEER)}
    finally:
        for group in groups.values():
            group.close()
    rate = {cell: cell[1] * cell[2] / median(of) for cell, of in seconds.items()}
    return Result(
        claims=_claims(rate),
        samples={"seconds": {_label(cell): of for cell, of in seconds.items()}, "share_in_exchange": share},
        settings={
            "rows": ROWS,
            "dim": DIM,
            "features": FEATURES,
            "batch": BATCH,
            "vocabulary": VOCABULARY,
            "zipf_exponent": EXPONENT,
            "hidden": HIDDEN,
            "threads_per_process": 1,
        },
        packages=("torchrec", "fbgemm-gpu-cpu"),
    )


def _claims(rate: dict[tuple[str, int, int], float]) -> dict[str, Any]:
    weak = {name: rate[name, 2, BATCH] / (2 * rate[name, 1, BATCH]) for name in (OURS, PEER)}
    ours, alone = rate[OURS, 2, BATCH], rate[OURS, 1, 2 * BATCH]
    return {
        "two_process_speedup": claim(ours, "samples/s", "embstore, 1 process", alone),
        "weak_scaling_efficiency": claim(weak[OURS], "", PEER, weak[PEER]),
        "samples_per_second_vs_torchrec_per_feature": claim(ours, "samples/s", PEER, rate[PEER, 2, BATCH]),
        "one_process_vs_torchrec_per_feature": claim(rate[OURS, 1, BATCH], "samples/s", PEER, rate[PEER, 1, BATCH]),
    }


def _label(cell: tuple[str, int, int]) -> str:
    contender, world, batch = cell
    return f"{contender}, {world} process{'es' * (world > 1)} x {batch}"


if __name__ == "__main__":
    main("scaling", measure)
