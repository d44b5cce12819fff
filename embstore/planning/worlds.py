"""Which worlds fit, and which is the smallest that does."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from embstore.errors import ConfigError
from embstore.planning.cost import Prediction, predict
from embstore.planning.machines import Machine
from embstore.planning.workload import Workload, memory

_MOST = 1 << 40  # ranks: more than any table needs
_MOST_TRIED = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Cheapest:
    """The smallest worlds, of part of a host or of whole hosts.

    Args:
        in_memory: all rows in the ranks' memory; ``None`` if no world of up to the largest does.
        anyhow: the same, or with rows in host memory.
        fast_enough: fits anyhow and reaches the wanted samples per second; ``None`` if none does or none are wanted.
        fastest: of the worlds that fit; for who wants more than any reaches.
    """

    in_memory: Prediction | None
    anyhow: Prediction
    fast_enough: Prediction | None
    fastest: Prediction


def worlds(machine: Machine, largest: int) -> list[int]:
    """Sizes that can be rented: up to a host's ranks any, then whole hosts.

    >>> from embstore.planning import MACHINES
    >>> worlds(MACHINES["h100"], 24)
    [1, 2, 3, 4, 5, 6, 7, 8, 16, 24]
    """
    host = machine.ranks_per_host
    return [*range(1, min(host, largest) + 1), *range(2 * host, largest + 1, host)]


def cheapest(
    work: Workload, machine: Machine, *, largest: int = 1024, samples_per_second: float | None = None
) -> Cheapest:
    """The smallest world that fits, and the smallest that is fast enough.

    Raises:
        ConfigError: none of up to ``largest`` ranks fits; it says what would.
    """
    if largest < 1:
        raise ConfigError("max world", expected="1 rank or more", found=str(largest))
    if samples_per_second is not None and not 0 < samples_per_second < float("inf"):
        raise ConfigError("samples per second", expected="a number, more than 0", found=str(samples_per_second))
    tried = [predict(work, machine, world) for world in worlds(machine, largest)]
    fitting = [found for found in tried if found.fits != "no"]
    if not fitting:
        raise _nothing_fits(work, machine, tried[-1])
    fast = [] if samples_per_second is None else fitting
    return Cheapest(
        in_memory=next((found for found in fitting if found.fits == "memory"), None),
        anyhow=fitting[0],
        fast_enough=next((found for found in fast if found.samples_per_second >= samples_per_second), None),  # type: ignore[operator]
        fastest=max(fitting, key=lambda found: found.samples_per_second),
    )


def smallest_world(work: Workload, machine: Machine) -> int | None:
    """Ranks needed to hold all rows in memory; ``None`` if what doesn't shrink with more ranks is too much already.

    Memory per rank never grows with the world, so this is a binary search; a world larger than a host is whole hosts.
    """

    def fits(world: int) -> bool:
        return sum(memory(work, world).values()) <= (machine.memory_gb - machine.reserved_gb) * 1e9

    if not fits(_MOST):
        return None
    low, high = 0, _MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    host = machine.ranks_per_host
    return high if high <= host else -(-high // host) * host


def _nothing_fits(work: Workload, machine: Machine, last: Prediction) -> ConfigError:
    needed = smallest_world(work, machine)
    ways = []
    if needed is None:
        fixed = sum(last.memory.values()) - sum(last.memory[part] for part in ("rows", "optimizer state", "marks"))
        ways.append(
            f"{fixed / 1e9:,.1f} GB of a rank's needs don't shrink with more ranks: take a smaller batch, or a machine "
            "with more memory"
        )
    else:
        ways.append(f"{needed:,} ranks would")
        sizes = worlds(machine, min(needed, _MOST_TRIED))
        cached = bisect_left(sizes, True, key=lambda world: predict(work, machine, world).fits != "no")
        if cached < len(sizes) and sizes[cached] < needed:
            ways.append(f"with rows in host memory (UVM) {sizes[cached]:,}")
        for what, other in (("fp16", replace(work, dtype="fp16")), ("sgd", replace(work, optimizer="sgd"))):
            fewer = smallest_world(other, machine)
            if fewer is not None and fewer < needed:
                ways.append(f"with {what} {fewer:,}")
    return ConfigError(
        f"no world of up to {last.world:,} ranks of {machine.name} holds the table",
        expected=f"at most {last.capacity / 1e9:,.1f} GB a rank",
        found=f"{sum(last.memory.values()) / 1e9:,.1f} GB a rank at {last.world:,}",
        do=", ".join(ways),
    )
