"""Machines to plan for: capacities and rates per rank, the makers' figures and the shares of them that are assumed.

A rank is one GPU, or one process on CPUs. Sizes are in GB of 10^9 bytes, rates in GB/s in one direction.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from embstore.config import parse
from embstore.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one rank has.

    Args:
        name: for messages.
        kind: ``"cuda"`` or ``"cpu"``.
        memory_gb: where the table lies: GPU memory, or this rank's share of the host's.
        host_memory_gb: the rank's share of host memory, where a table too large for the GPU can lie.
        reserved_gb: what the runtime takes: CUDA context, allocator, communicators.
        ranks_per_host: ranks that share a host and its inner links.
        memory_gbps: memory bandwidth.
        intra_gbps: to the other ranks of the host together (NVLink; shared memory).
        inter_gbps: to other hosts, this rank's share of the network.
        pcie_gbps: between the GPU and host memory.
        tflops: float32 peak of the dense network.
        dedup_mps: millions of row ids sorted out (unique and inverse) a second.
        stream_share: share of ``memory_gbps`` that sequential reads and writes reach.
        gather_share: share that rows at random places reach.
        link_share: share of the links' rates that a collective reaches.
        flops_share: share of ``tflops`` that the dense network reaches.
        collective_us: microseconds that starting a collective takes.
        peer_us: microseconds more for each other rank in it.
        pipelined: the next batch's ids are exchanged while this one is computed.
    """

    name: str
    kind: str
    memory_gb: float
    memory_gbps: float
    intra_gbps: float
    inter_gbps: float
    tflops: float
    dedup_mps: float
    host_memory_gb: float = 0.0
    reserved_gb: float = 1.0
    ranks_per_host: int = 1
    pcie_gbps: float = 0.0
    stream_share: float = 0.8
    gather_share: float = 0.5
    link_share: float = 0.7
    flops_share: float = 0.4
    collective_us: float = 200.0
    peer_us: float = 20.0
    pipelined: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("cuda", "cpu"):
            raise ConfigError("machine kind", expected="'cuda' or 'cpu'", found=repr(self.kind))
        may_be_zero = {"host_memory_gb", "reserved_gb", "pcie_gbps", "collective_us", "peer_us"}
        for name, value in asdict(self).items():
            if name in ("name", "kind", "pipelined"):
                continue
            if not math.isfinite(value) or value < 0 or (value == 0 and name not in may_be_zero):
                expected = "0 or more" if name in may_be_zero else "more than 0"
                raise ConfigError(f"machine {name}", expected=f"a number, {expected}", found=str(value))
            if name.endswith("_share") and value > 1:
                raise ConfigError(f"machine {name}", expected="at most 1", found=str(value))


def _gpu(
    name: str,
    *,
    memory_gb: float,
    memory_gbps: float,
    intra_gbps: float,
    inter_gbps: float,
    pcie_gbps: float,
    tflops: float,
) -> Machine:
    return Machine(
        name=name,
        kind="cuda",
        memory_gb=memory_gb,
        memory_gbps=memory_gbps,
        intra_gbps=intra_gbps,
        inter_gbps=inter_gbps,
        pcie_gbps=pcie_gbps,
        tflops=tflops,
        host_memory_gb=256,  # 2 TB for the eight GPUs of a DGX
        reserved_gb=3,
        ranks_per_host=8,
        dedup_mps=1000,
        collective_us=20,
        peer_us=1,
    )


# Figures of NVIDIA's data sheets, SXM modules in a DGX: one network port of 400 (A100: 200) Gbit/s for each GPU;
# NVLink's and PCIe's rates halved, as they are given for both directions. TFLOPS are plain float32, torch's default.
MACHINES = {
    "h100": _gpu("h100", memory_gb=80, memory_gbps=3350, intra_gbps=450, inter_gbps=50, pcie_gbps=64, tflops=67),
    "h200": _gpu("h200", memory_gb=141, memory_gbps=4800, intra_gbps=450, inter_gbps=50, pcie_gbps=64, tflops=67),
    "a100": _gpu("a100", memory_gb=80, memory_gbps=2039, intra_gbps=300, inter_gbps=25, pcie_gbps=32, tflops=19.5),
    "cpu": Machine(
        name="cpu",
        kind="cpu",
        memory_gb=64,
        memory_gbps=20,
        intra_gbps=1.5,  # gloo over loopback
        inter_gbps=1.25,  # 10 Gbit/s Ethernet
        tflops=0.2,
        dedup_mps=20,
    ),
}


def machine(name: str, rates: Mapping[str, Any] | None = None, **overrides: float | None) -> Machine:
    """The machine of that name, some of its numbers replaced.

    Args:
        name: of ``MACHINES``; ``"cuda"`` is the h100.
        rates: measured ones (``read_rates``).
        overrides: single numbers; ``None`` leaves one as it is.

    Raises:
        ConfigError: an unknown name or number (the nearest is named), or a value that can't be.

    >>> machine("cuda", inter_gbps=25).inter_gbps
    25.0
    """
    known = "h100" if name == "cuda" else name
    if known not in MACHINES:
        raise ConfigError(f"unknown device {name!r}", do=nearest(name, [*MACHINES, "cuda"]))
    given = {**(rates or {}), **{key: value for key, value in overrides.items() if value is not None}}
    for key in given:
        if key not in {f.name for f in fields(Machine)}:
            raise ConfigError(f"machine: unknown rate {key!r}", do=nearest(key, [f.name for f in fields(Machine)]))
    return parse(Machine, {**asdict(MACHINES[known]), **given}, where="machine")


def read_rates(path: str | Path) -> dict[str, Any]:
    """Measured numbers of a machine: a JSON object of ``Machine``'s names; ``MACHINES`` has the others.

    Raises:
        ConfigError: not there, not JSON, not an object, or a name that a machine doesn't have.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"rates {path}", expected="a JSON file", found=str(error.strerror)) from error
    except ValueError as error:
        raise ConfigError(f"rates {path}", expected="valid JSON", found=str(error)) from error
    if not isinstance(data, dict):
        raise ConfigError(f"rates {path}", expected="an object of names and numbers", found=type(data).__name__)
    machine("cpu", data)
    return data


def this_host(ranks: int = 1) -> dict[str, float]:
    """Measured rates of the CPUs this runs on, for ``machine("cpu", ...)``; links can't be measured by one process.

    The best of three runs of each: a copy of 256 MB (read and write counted), a gather of rows of 256 bytes at random
    places in them, ``unique`` of a million ids, a product of matrices of 1,024 x 1,024; all threads at work.

    Args:
        ranks: processes that share the host, and its rates.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    source = torch.ones(1 << 20, 64)
    target = torch.zeros_like(source)
    places = torch.randint(len(source), (len(source),), generator=generator)
    square = torch.ones(1024, 1024)
    copy = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    gather = 2 * source.nbytes / _seconds(lambda: torch.index_select(source, 0, places, out=target))
    return {
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 / ranks,
        "memory_gbps": copy / 1e9 / ranks,
        "stream_share": 1.0,
        "gather_share": min(gather / copy, 1.0),
        "dedup_mps": len(places) / _seconds(lambda: torch.unique(places, return_inverse=True)) / 1e6 / ranks,
        "tflops": 2 * 1024**3 / _seconds(lambda: square @ square) / 1e12 / ranks,
        "flops_share": 1.0,
    }


def _seconds(work: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
