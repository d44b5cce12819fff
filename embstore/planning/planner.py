"""What torchrec's own planner makes of the same table: its storage and time per rank, to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embstore.planning.cost import Prediction
from embstore.planning.machines import Machine
from embstore.planning.row_wise import load_torchrec, plan_row_wise, quiet
from embstore.planning.workload import Workload

_KILO_SECONDS = 1e-3  # its bandwidths are in bytes per millisecond
_UNBOUNDED = 1 << 60


@dataclass(frozen=True, kw_only=True)
class TorchrecEstimate:
    """Of the fullest and the slowest rank.

    Args:
        fits: whether its planner made a plan with the rank's memory; if not, the numbers are of one without limit.
        kernel: of the compute kernels it chooses among, ``fused`` or ``fused_uvm_caching``.
        device_bytes, host_bytes: storage, in GPU and in host memory.
        seconds: by its own terms; their sum is its step.
        step_seconds: the sum.
    """

    fits: bool
    kernel: str
    device_bytes: int
    host_bytes: int
    seconds: dict[str, float]
    step_seconds: float


def ask_torchrec(work: Workload, machine: Machine, found: Prediction) -> TorchrecEstimate:
    """Let ``EmbeddingShardingPlanner`` plan the table on the meta device, row-wise, after dedup.

    Needs no process group and no memory, whatever the rows.

    Args:
        found: ours, for the world, the different rows per batch, and the cache.

    Raises:
        KernelError: torchrec can't be loaded.
    """
    load_torchrec()
    with quiet():
        from torchrec.distributed.planner.types import PlannerError

        capacity = int(found.capacity)
        host = int(machine.host_memory_gb * 1e9) if machine.kind == "cuda" else capacity
        cached = None if found.fits == "memory" else found.cache
        load_factor = None if cached is None else cached.load_factor
        try:
            fits, option = True, _plan(work, machine, found, capacity, host, load_factor)
        except PlannerError:
            fits, option = False, _plan(work, machine, found, _UNBOUNDED, _UNBOUNDED, load_factor)
    perfs = [shard.perf for shard in option.shards]
    slowest = max(perfs, key=lambda perf: perf.total)
    terms = ("input_dist_comms", "prefetch_compute", "fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms")
    seconds = {term: getattr(slowest, term) * _KILO_SECONDS for term in terms}
    return TorchrecEstimate(
        fits=fits,
        kernel=option.compute_kernel,
        device_bytes=max(shard.storage.hbm for shard in option.shards),
        host_bytes=max(shard.storage.ddr for shard in option.shards),
        seconds=seconds,
        step_seconds=sum(seconds.values()),
    )


def differences(work: Workload, machine: Machine, found: Prediction) -> list[str]:
    """Why its estimate isn't ours, one line each; only what holds here."""
    saved = f"{found.lookups_per_rank:,.0f} lookups were {found.unique_rows:,.0f}"
    cached = found.fits != "memory" and found.cache is not None
    reasons = [
        (True, f"it knows nothing of dedup, so it is asked with the rows that are left ({saved})"),
        (True, "it counts one buffer of ids and one of vectors, we both sides of each exchange and what dedup keeps"),
        (work.dtype != "fp32", "it counts vectors and optimizer state in the table's dtype, not in float32"),
        (work.l2 or work.tracked, "it doesn't know what we keep of each row for the penalty and for deltas"),
        (work.dense_parameters > 0, "it knows no dense network"),
        (found.world > 1, f"it multiplies the ids that a rank exchanges by the world ({found.world:,})"),
        (found.world > 1, "it takes one rate for all peers, that of the slowest link; we send to each by its own"),
        (found.world == 1, "it exchanges over the inner link in a world of one, too"),
        (True, "its rates are the peaks; we assume shares of them, and time for starting a collective"),
        (machine.pipelined and found.world > 1, "it sees no overlap of exchange and compute"),
        (cached, "it reads at a tenth of the cache's and PCIe's rates, weighted by load factor, not by hits"),
        (cached, "it counts optimizer state in host memory, and for the cached rows once more"),
    ]
    return [reason for holds, reason in reasons if holds]


def _plan(
    work: Workload, machine: Machine, found: Prediction, capacity: int, host: int, load_factor: float | None
) -> Any:
    """The planner's one sharding option for the table."""
    from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, TopologyFactory, TrainerConfig

    rate = 1e9 * _KILO_SECONDS  # bytes per millisecond
    topology = TopologyFactory.create_topology(
        TrainerConfig(
            world_size=found.world,
            local_world_size=min(machine.ranks_per_host, found.world),
            hbm_cap_bytes=capacity,
            ddr_cap_bytes=host,
        ),
        HardwareConfig(
            intra_host_bw=machine.intra_gbps * rate,
            inter_host_bw=machine.inter_gbps * rate,
            hbm_mem_bw=machine.memory_gbps * rate,
            ddr_mem_bw=machine.memory_gbps * rate,
            hbm_to_ddr_mem_bw=(machine.pcie_gbps or machine.memory_gbps) * rate,
        ),
        KernelConfig(compute_device=machine.kind),
    )
    return plan_row_wise(
        rows=work.rows,
        dim=work.dim,
        dtype=work.dtype,
        optimizer=work.optimizer,
        batch=work.batch,
        pooling=found.unique_rows / work.batch,
        topology=topology,
        load_factor=load_factor,
    ).option
