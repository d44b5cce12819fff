"""How ``embstore plan`` prints what it finds."""

from __future__ import annotations

from embstore.cli.console import out, plain_table
from embstore.planning import Cheapest, Machine, Prediction, TorchrecEstimate, Workload


def show_prediction(work: Workload, on: Machine, found: Prediction) -> None:
    """Memory, step, traffic and cache of one world."""
    skew = f"Zipf {work.skew:g}" if work.skew else "uniform"
    out.print(
        f"{work.rows:,} rows x {work.dim} {work.dtype}, {work.optimizer}; {work.lookups:g} lookups x {work.batch:,} "
        f"samples a rank, {skew}\n{_size(found)} ({on.name}): {_verdict(found)}\n",
        highlight=False,
    )
    needs = [(part, _gb(size)) for part, size in found.memory.items() if size]
    needs += [("needed", _gb(sum(found.memory.values()))), ("there", _gb(found.capacity))]
    out.print(plain_table(("memory of a rank", "GB"), needs, numbers=True), highlight=False)
    sends = {f"{verb} {what}": size for what, size in found.exchanged.items() for verb in ("exchange", "reduce")}
    terms = [
        (term, f"{seconds * 1e3:,.3f}", f"{sends[term] / 1e6:,.2f}" if sends.get(term) else "")
        for term, seconds in found.seconds.items()
        if seconds
    ]
    terms.append(("step", f"{found.step_seconds * 1e3:,.3f}", f"{sum(found.exchanged.values()) / 1e6:,.2f}"))
    out.print("")
    out.print(plain_table(("step", "ms", "MB a rank sends"), terms, numbers=True), highlight=False)
    busy = sum(found.by_resource.values())
    shares = ", ".join(
        f"{resource} {seconds / busy:.0%}"
        for resource, seconds in sorted(found.by_resource.items(), key=lambda item: -item[1])
        if seconds / busy >= 0.005
    )
    out.print(
        f"\n{found.samples_per_second:,.0f} samples/s; limited by {found.limit} ({shares})\n"
        f"different rows: {found.unique_rows:,.0f} of a rank's {found.lookups_per_rank:,.0f} lookups, "
        f"{found.global_unique_rows:,.0f} of all ranks' {found.lookups_per_rank * found.world:,.0f}\n"
        f"sent to ranks of the host: {found.intra_bytes / 1e6:,.2f} MB, "
        f"to other hosts: {found.inter_bytes / 1e6:,.2f} MB",
        highlight=False,
    )
    if found.cache is not None:
        cache = found.cache
        out.print(
            f"\nUVM caching: {cache.host_share:.1%} of the rows in host memory only ({_gb(cache.host_bytes)} of "
            f"{_gb(cache.host_memory)} GB a rank), {cache.slots:,} cached a rank "
            f"(load factor {cache.load_factor:.3f})\n"
            f"the cache has {cache.lookup_hit_rate:.1%} of lookups, {cache.hit_rate:.1%} of a step's different rows; "
            f"{cache.pcie_bytes / 1e6:,.2f} MB over PCIe a step\n"
            f"step {found.step_seconds * 1e3:,.3f} ms, {cache.step_without * 1e3:,.3f} ms with all rows in GPU memory",
            highlight=False,
        )


def show_cheapest(best: Cheapest, target: float | None) -> None:
    """The smallest worlds."""
    out.print("")
    for what, world in (("all rows in memory", best.in_memory), ("fits", best.anyhow)):
        if world is not None and (what != "fits" or best.in_memory is None or world.world != best.in_memory.world):
            out.print(f"smallest world, {what}: {_world(world)}", highlight=False)
    if target is not None:
        said = f"none; the fastest is {_world(best.fastest)}" if best.fast_enough is None else _world(best.fast_enough)
        out.print(f"smallest world, {target:,.0f} samples/s: {said}", highlight=False)


def show_torchrec(
    found: Prediction, theirs: TorchrecEstimate | None, missing: str | None, reasons: list[str], *, on_gpus: bool
) -> None:
    """The estimate of torchrec's planner beside ours."""
    out.print("")
    if theirs is None:
        out.print(f"torchrec's planner was not asked: {missing}", markup=False, highlight=False)
        return
    needed, on_host = sum(found.memory.values()), 0.0
    if found.cache is not None:
        needed, on_host = found.cache.device_bytes, found.cache.host_bytes
    if on_gpus:
        memory = [
            ("GPU memory of a rank, GB", _gb(needed), _gb(theirs.device_bytes)),
            ("host memory of a rank, GB", _gb(on_host), _gb(theirs.host_bytes)),
        ]
    else:
        memory = [("memory of a rank, GB", _gb(needed), _gb(theirs.host_bytes))]
    rows = [
        *memory,
        ("step, ms", f"{found.step_seconds * 1e3:,.3f}", f"{theirs.step_seconds * 1e3:,.3f}"),
        ("fits", "no" if found.fits == "no" else "yes", f"{'yes' if theirs.fits else 'no'} ({theirs.kernel})"),
    ]
    out.print(plain_table(("", "embstore", "torchrec's planner"), rows, numbers=True), highlight=False)
    out.print("they differ because")
    for reason in reasons:
        out.print(f"- {reason}", markup=False, highlight=False)


def show_worlds(powers: list[Prediction]) -> None:
    """Worlds to choose among, a line each."""
    rows = (
        (
            f"{each.world:,}",
            f"{each.hosts:,}",
            {"memory": "yes", "uvm": "with UVM", "no": "no"}[each.fits],
            _gb(sum(each.memory.values())),
            f"{sum(each.exchanged.values()) / 1e6:,.2f}",
            *(("", "", "") if each.fits == "no" else _speed(each)),
        )
        for each in powers
    )
    columns = ("ranks", "hosts", "fits", "GB a rank", "MB sent", "step ms", "samples/s", "limited by")
    out.print("")
    out.print(plain_table(columns, rows, numbers=True), highlight=False)


def _speed(found: Prediction) -> tuple[str, str, str]:
    return f"{found.step_seconds * 1e3:,.3f}", f"{found.samples_per_second:,.0f}", found.limit


def _verdict(found: Prediction) -> str:
    ways = {"memory": "fits", "uvm": "fits, with rows in host memory (UVM caching)", "no": "does not fit"}
    return ways[found.fits]


def _world(found: Prediction) -> str:
    step = f"{found.step_seconds * 1e3:,.3f} ms a step, {found.samples_per_second:,.0f} samples/s"
    return f"{_size(found)}{' (UVM)' if found.fits == 'uvm' else ''}, {step}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3f}"


def _size(found: Prediction) -> str:
    ranks, hosts = ("rank" if found.world == 1 else "ranks"), ("host" if found.hosts == 1 else "hosts")
    return f"{found.world:,} {ranks} on {found.hosts:,} {hosts}"
