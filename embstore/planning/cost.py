"""The cost model: memory, bytes exchanged and seconds of a training step, per rank.

One step of a table sharded by rows over W ranks, as ``embstore.sharding`` does it:

    rank                                        owner of the rows
      L lookups (batch x lookups)
      dedup: U different rows    ── ids ──>       gathers U rows (each owner serves all ranks: U on average)
      pools L vectors            <── vectors ──
      dense network
      sums gradients by row: U   ── gradients ──> sums those of one row, updates its share of G, the rows that the
                                                  batches of all ranks touch

Rows are hashed, so each rank owns as many popular ones as any other: loads are taken to be equal. After dedup the most
popular row is asked for once by each rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from embstore.errors import ConfigError
from embstore.planning.machines import Machine
from embstore.planning.skew import expected_unique, popular_share
from embstore.planning.workload import DENSE_BYTES, ID_BYTES, WIRE_BYTES, Workload, memory

CACHE_ROW_BYTES, CACHE_SLOT_BYTES = 4, 16  # fbgemm: index map of each row; id and age of each cached one


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """A table in host memory, its popular rows cached on the GPU (FBGEMM's UVM caching).

    Args:
        slots: rows cached, per rank.
        load_factor: the same as a share of the rank's rows (FBGEMM's ``cache_load_factor``).
        host_share: share of the rows that lie in host memory only.
        host_bytes: host memory per rank: all its rows, and state that is not row-wise.
        host_memory: what the rank has.
        device_bytes: GPU memory per rank, with the cache.
        lookup_hit_rate: share of lookups whose row is cached.
        hit_rate: the same of a step's different rows, which is what the cache is asked for.
        pcie_bytes: per step and rank, both ways.
        step_without: seconds a step would take if all rows were in GPU memory.
    """

    slots: int
    load_factor: float
    host_share: float
    host_bytes: float
    host_memory: float
    device_bytes: float
    lookup_hit_rate: float
    hit_rate: float
    pcie_bytes: float
    step_without: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a step takes in one world; sizes in bytes, per rank.

    Args:
        world, hosts: ranks, and hosts they need.
        unique_rows: U, expected different rows in a rank's batch, of ``lookups_per_rank``.
        global_unique_rows: G, in the batches of all ranks.
        memory: by what takes it, with all rows in the rank's memory.
        capacity: the rank's memory less what is reserved.
        fits: ``"memory"``, ``"uvm"`` (host memory, cached) or ``"no"``.
        exchanged: bytes a rank sends in a step, by what.
        intra_bytes, inter_bytes: the same by link: to ranks of the host, to other hosts.
        seconds: by term; with overlap they add up to more than ``step_seconds``.
        by_resource: seconds by what limits them.
        limit: the resource most time goes to.
        step_seconds, samples_per_second: of the whole world.
        cache: where ``fits`` isn't ``"memory"`` on a GPU.
    """

    world: int
    hosts: int
    lookups_per_rank: float
    unique_rows: float
    global_unique_rows: float
    memory: dict[str, float]
    capacity: float
    fits: str
    exchanged: dict[str, float]
    intra_bytes: float
    inter_bytes: float
    seconds: dict[str, float]
    by_resource: dict[str, float]
    limit: str
    step_seconds: float
    samples_per_second: float
    cache: CacheUse | None


def predict(work: Workload, machine: Machine, world: int) -> Prediction:
    """Memory, traffic and time of a step of ``world`` ranks.

    Raises:
        ConfigError: a world of less than one rank.

    >>> from embstore.planning import MACHINES
    >>> found = predict(Workload(rows=10_000_000_000, dim=64), MACHINES["h100"], 128)
    >>> found.fits, round(found.memory["rows"] / 1e9)
    ('memory', 20)
    """
    if world < 1:
        raise ConfigError("world", expected="1 rank or more", found=str(world))
    L = work.batch * work.lookups
    U = expected_unique(work.rows, L, work.skew)
    G = expected_unique(work.rows, L * world, work.skew)
    needs = memory(work, world)
    capacity = (machine.memory_gb - machine.reserved_gb) * 1e9
    inside = sum(needs.values()) <= capacity

    step = _Step(machine, world)
    vectors = U * work.dim * WIRE_BYTES
    step.spend("dedup", "compute", L / (machine.dedup_mps * 1e6))
    step.exchange("exchange ids", "ids", U * ID_BYTES, collectives=3)  # sizes, lengths, ids
    step.gather("lookup", U * work.row_bytes)
    # torchrec puts vectors into the batch's order after the exchange, gradients into the owners' before
    step.stream("lookup", 3 * vectors + L * work.dim * WIRE_BYTES + work.output_bytes)
    step.exchange("exchange vectors", "vectors", vectors)
    step.exchange("exchange gradients", "gradients", vectors)
    step.stream("update", work.output_bytes + 4 * vectors)
    step.gather("update", 2 * G / world * (work.row_bytes + work.state_bytes))
    work_flops = work.flops_per_sample * work.batch
    step.spend("dense network", "compute", work_flops / (machine.tflops * 1e12 * machine.flops_share))
    if work.dense_parameters:
        step.reduce("dense gradients", work.dense_parameters * WIRE_BYTES)
    without = step.total()
    cache = None
    if not inside and machine.kind == "cuda" and machine.pcie_gbps:
        cache = _cache(work, machine, world, needs, capacity, G, without)
        if cache is not None:
            step.spend("cache misses", "PCIe", cache.pcie_bytes / (2 * machine.pcie_gbps * 1e9 * machine.gather_share))
    in_host = cache is not None and cache.host_bytes <= cache.host_memory
    total = step.total()
    return Prediction(
        world=world,
        hosts=-(-world // machine.ranks_per_host),
        lookups_per_rank=L,
        unique_rows=U,
        global_unique_rows=G,
        memory=needs,
        capacity=capacity,
        fits="memory" if inside else "uvm" if in_host else "no",
        exchanged=step.sent,
        intra_bytes=step.by_link["intra-host link"],
        inter_bytes=step.by_link["inter-host link"],
        seconds=step.seconds,
        by_resource=step.by_resource,
        limit=max(step.by_resource, key=step.by_resource.__getitem__),
        step_seconds=total,
        samples_per_second=work.batch * world / total,
        cache=cache,
    )


class _Step:
    """Adds a step's seconds up, by term and by resource."""

    def __init__(self, machine: Machine, world: int) -> None:
        self.machine, self.world = machine, world
        # The last host may be filled in part; its ranks send most to others.
        here = world % machine.ranks_per_host or min(world, machine.ranks_per_host)
        self.intra, self.inter = (here - 1) / world, (world - here) / world
        self.seconds: dict[str, float] = {}
        self.by_resource: dict[str, float] = {}
        self.sent: dict[str, float] = {}
        self.by_link = {"intra-host link": 0.0, "inter-host link": 0.0}

    def spend(self, term: str, resource: str, seconds: float) -> None:
        self.seconds[term] = self.seconds.get(term, 0) + seconds
        self.by_resource[resource] = self.by_resource.get(resource, 0) + seconds

    def stream(self, term: str, size: float) -> None:
        self.spend(term, "memory", size / (self.machine.memory_gbps * 1e9 * self.machine.stream_share))

    def gather(self, term: str, size: float) -> None:
        self.spend(term, "memory", size / (self.machine.memory_gbps * 1e9 * self.machine.gather_share))

    def exchange(self, term: str, what: str, size: float, *, collectives: int = 1) -> None:
        """All to all: both kinds of links work at once, and the slower one is waited for."""
        self.sent[what] = size * (self.intra + self.inter)
        self.by_link["intra-host link"] += size * self.intra
        self.by_link["inter-host link"] += size * self.inter
        share = self.machine.link_share * 1e9
        inside, outside = (
            size * self.intra / (self.machine.intra_gbps * share),
            size * self.inter / (self.machine.inter_gbps * share),
        )
        self.spend(term, "intra-host link" if inside >= outside else "inter-host link", max(inside, outside))
        self._start(term, collectives)

    def reduce(self, what: str, size: float) -> None:
        """All-reduce in a ring: each rank passes every number on twice, over the slowest link there is."""
        self.sent[what] = size * 2 * (self.world - 1) / self.world
        link = "inter-host link" if self.inter else "intra-host link"
        self.by_link[link] += self.sent[what]
        rate = self.machine.inter_gbps if self.inter else self.machine.intra_gbps
        self.spend(f"reduce {what}", link, self.sent[what] / (rate * 1e9 * self.machine.link_share))
        self._start(f"reduce {what}", 1)

    def _start(self, term: str, collectives: int) -> None:
        if self.world > 1:
            once = self.machine.collective_us + self.machine.peer_us * (self.world - 1)
            self.spend(term, "latency", collectives * once * 1e-6)

    def total(self) -> float:
        """Seconds of the step; ids hide behind all that doesn't use the links, where the machine is pipelined."""
        everything = sum(self.seconds.values())
        if not self.machine.pipelined:
            return everything
        links = sum(seconds for term, seconds in self.seconds.items() if term.startswith(("exchange", "reduce")))
        return max(everything - self.seconds["exchange ids"], links)


def _cache(
    work: Workload,
    machine: Machine,
    world: int,
    needs: dict[str, float],
    capacity: float,
    global_unique: float,
    without: float,
) -> CacheUse | None:
    """FBGEMM's UVM caching with all the memory that is left; ``None`` if none is.

    Row-wise state stays on the GPU, other state lies in host memory uncached (``construct_split_state``).
    """
    rows = -(-work.rows // world)
    rowwise = work.optimizer == "rowwise_adagrad"
    taken = sum(needs.values()) - needs["rows"] - (0 if rowwise else needs["optimizer state"])
    slots = min(int((capacity - taken - CACHE_ROW_BYTES * rows) / (work.row_bytes + CACHE_SLOT_BYTES)), rows)
    if slots < 1:
        return None
    missed = expected_unique(
        work.rows, work.batch * work.lookups * world, work.skew, beyond=min(slots * world, work.rows)
    )
    managed = 0 if rowwise else work.state_bytes
    return CacheUse(
        slots=slots,
        load_factor=slots / rows,
        host_share=1 - slots / rows,
        host_bytes=needs["rows"] + rows * managed,
        host_memory=machine.host_memory_gb * 1e9,
        device_bytes=taken + CACHE_ROW_BYTES * rows + slots * (work.row_bytes + CACHE_SLOT_BYTES),
        lookup_hit_rate=popular_share(work.rows, work.skew, slots * world),
        hit_rate=1 - missed / global_unique,
        # a missed row comes in and another, trained one goes out; uncached state is read and written
        pcie_bytes=2 * (missed * work.row_bytes + global_unique * managed) / world,
        step_without=without,
    )


def assumptions(work: Workload, machine: Machine) -> list[str]:
    """What a prediction rests on, with its numbers, one line each."""
    m = machine
    skew = "uniform" if work.skew == 0 else f"Zipf with exponent {work.skew:g}"
    lines = [
        f"rows are drawn independently, {skew} over all {work.rows:,}; ranks own equal shares of the popular ones",
        f"{work.lookups:g} lookups a sample, {work.batch:,} samples a rank; each rank asks once for a row of its batch",
        f"ids travel as {ID_BYTES} bytes, vectors and gradients as float32; the table's output and gradient are kept",
        f"dense network: {work.dense_parameters:,} parameters of {DENSE_BYTES} bytes (weight, gradient, DDP's bucket, "
        f"Adam), {work.flops_per_sample:,.0f} FLOPs a sample (backward twice forward); its activations are not counted",
        f"{m.name}: {m.memory_gb:,.1f} GB a rank, {m.reserved_gb:g} of them the runtime's; {m.memory_gbps:,.1f} GB/s, "
        f"of which sequential access reaches {m.stream_share:.0%}, rows at random places {m.gather_share:.0%}",
        f"links, one direction, per rank: {m.intra_gbps:g} GB/s within a host of {m.ranks_per_host} ranks, "
        f"{m.inter_gbps:g} GB/s between hosts; collectives reach {m.link_share:.0%}",
        f"a collective starts in {m.collective_us:g} us and {m.peer_us:g} us for each other rank",
        f"{m.dedup_mps:,.1f} million ids deduplicated a second; {m.tflops:.3g} TFLOPS, of which networks reach "
        f"{m.flops_share:.0%}",
        "the next batch's ids travel while this one is computed" if m.pipelined else "nothing overlaps",
    ]
    if m.kind == "cuda":
        lines.append(
            f"UVM: {m.host_memory_gb:g} GB of host memory a rank, PCIe {m.pcie_gbps:g} GB/s each way, of which "
            f"rows reach {m.gather_share:.0%}; the cache holds the most popular rows, nothing of a miss overlaps"
        )
    return lines
