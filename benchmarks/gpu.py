"""The table on a CUDA GPU: whether its kernel is right, then how close it comes to the memory's bandwidth.

    python -m benchmarks.gpu --out DIR        in less than 8 minutes; writes gpu_contract.json, gpu_lookup.json and
                                              gpu_train_step.json; exit code 1 when a comparison fails, 2 without CUDA

- Contract: random batches against the float64 judge of ``tests/contract``, and the suite itself where pytest is.
- Speed: tables of ``TABLE_BYTES``, far beyond any L2 cache; batches of 26 x 65,536 tokens. Each call is timed by CUDA
  events behind ``SWEEPS`` over ``FLUSH_BYTES``, which empty the L2 cache and give the host time to queue the call's
  launches; then once more by the host's clock, launches included (samples ``wall``). Contenders share the table.
- Bandwidth: a claim's value is the rate of the bytes that *must* move, each distinct row once; its peer is the rate of
  a large copy within the device, measured in the same run. Rows of a Zipf batch repeat, so there ``must`` is less than
  what the lookups name.

FBGEMM's TBE takes part where it can be imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.judging import compare
from benchmarks.peers.bags import bag_parameter, bags
from benchmarks.report import Result, claim, document, median
from benchmarks.workloads import DISTRIBUTIONS, FEATURES, Case, draw_tokens, make_case, make_table, prepared
from embstore.batch import FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding

ROOT = Path(__file__).parents[1]
TABLE_BYTES, FLUSH_BYTES, BATCH, CASES = 8 * 2**30, 2**30, 65_536, 4
DIMS = (16, 32, 64, 128)
SWEEPS = 4  # some 2 ms: launching a step takes the host about one
OURS, BAG, TBE = "embstore gpu", "nn.EmbeddingBag", "FBGEMM TBE"
PACKAGES = ("triton", "fbgemm-gpu", "torchrec")

Contenders = dict[str, Callable[[Case], object]]


def main() -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the JSON files")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    failures = write(out, "gpu_contract", contract("cuda", seconds=90)).claims["failures"]["value"]
    copied = copy_rate("cuda")
    lookups, steps = speed("cuda", copied, seconds=180)
    write(out, "gpu_lookup", lookups)
    write(out, "gpu_train_step", steps)
    suite = run_suite(timeout=120)
    failures += suite["exit_code"] != 0  # a suite that did not run has shown nothing
    exit_code = {} if suite["exit_code"] is None else {"exit_code": claim(suite["exit_code"], "")}
    write(out, "gpu_suite", Result(claims=exit_code, samples=suite))
    return 1 if failures else 0


def write(folder: Path, name: str, found: Result) -> Result:
    """The report in a file of that name, at once, so that a run cut short leaves what it found."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document(name, found), indent=1) + "\n")
    print(name, *(f"  {label}: {one['value']:.4g} {one['unit']}" for label, one in found.claims.items()), sep="\n")
    return found


def contract(device: str, *, seconds: float, kernel: str = "gpu") -> Result:
    """Random comparisons with the judge: all optimizers and dtypes, lists and single values, exact and hashed."""
    done, failed = compare(kernel, device, seconds=seconds, generator=np.random.default_rng(1))
    return Result(
        claims={"comparisons": claim(len(done), ""), "failures": claim(len(failed), "")},
        samples={"comparisons": done, "failures": failed},
        packages=PACKAGES,
    )


def run_suite(*, timeout: float) -> dict[str, Any]:
    """``pytest tests/contract`` in a process of its own: exit code (``None``: not run) and the end of what it says."""
    try:
        import hypothesis
        import pytest
    except ImportError as missing:
        return {"exit_code": None, "says": f"not run: {missing}"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/contract", "-p", "no:cacheprovider"]
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"exit_code": None, "says": f"not finished after {timeout} s"}
    return {
        "exit_code": ran.returncode,
        "says": ran.stdout[-3000:],
        "versions": [pytest.__version__, hypothesis.__version__],
    }


def copy_rate(device: str, size: int = 4 * 2**30, repeats: int = 20) -> float:
    """Bytes per second of a large copy within the device, read and written bytes both counted; the median."""
    if device == "cuda":
        size = min(size, torch.cuda.mem_get_info()[0] // 4)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    to = torch.empty_like(source)
    return 2 * size / median([_timed(lambda: to.copy_(source), device) for _ in range(repeats)][2:])


def speed(
    device: str,
    copied: float,
    *,
    seconds: float,
    kernel: str = "gpu",
    table_bytes: int = TABLE_BYTES,
    batch: int = BATCH,
    features: int = FEATURES,
    vocabulary: int = 10_000_000,
    dims: tuple[int, ...] = DIMS,
    repeats: int = 20,
) -> tuple[Result, Result]:
    """Lookups and training steps for all dims and distributions that fit into ``seconds``."""
    if device == "cuda":
        table_bytes = min(table_bytes, torch.cuda.mem_get_info()[0] // 4)
    flush = torch.zeros(FLUSH_BYTES if device == "cuda" else 8, dtype=torch.uint8, device=device)
    generator = np.random.default_rng(1)
    sizes = {"features": features, "batch": batch, "vocabulary": vocabulary}
    batches = {d: [draw_tokens(d, generator, **sizes).to(device) for _ in range(CASES)] for d in DISTRIBUTIONS}
    settings = {
        **sizes,
        "table_bytes": table_bytes,
        "copy_bytes_per_second": copied,
        "kernel": kernel,
        "sweeps": SWEEPS,
    }
    settings["skipped"] = []
    lookups, steps = Result(claims={}, samples={}), Result(claims={}, samples={})
    end = time.perf_counter() + seconds
    for dim in dims:
        table = make_table(kernel, rows=table_bytes // (4 * dim), dim=dim, features=features, device=device)
        for distribution, drawn in batches.items():
            label = f"{distribution}_dim_{dim}"
            if time.perf_counter() > end:
                settings["skipped"].append(label)
                continue
            cases = [make_case(table, tokens) for tokens in drawn]
            distinct = int(np.mean([len(case.rows_T.unique()) for case in cases]))
            for kind, into, contenders, must in (
                ("forward", lookups, _lookups(table, cases), forward_bytes(cases[0].tokens, dim, distinct)),
                ("step", steps, _steps(table, cases), step_bytes(cases[0].tokens, dim, distinct)),
            ):
                taken = _interleave(contenders, cases, flush, device, repeats)
                into.samples[label] = {**taken, "distinct_rows": distinct, "bytes": must}
                into.claims.update(_claims(f"{kind}_{label}", taken["device"], must, copied))
            del cases
        del table
    return tuple(
        Result(claims=found.claims, samples=found.samples, settings=settings, packages=PACKAGES)
        for found in (lookups, steps)
    )


def forward_bytes(tokens: FeatureTokens, dim: int, distinct: int) -> int:
    """Tokens and distinct rows read, the output written (single values: as many rows as tokens)."""
    count = len(tokens.values_N)
    return 8 * count + 4 * dim * distinct + 4 * dim * count


def step_bytes(tokens: FeatureTokens, dim: int, distinct: int) -> int:
    """A forward; then tokens and gradient read, each distinct row and its row-wise state read and written."""
    count = len(tokens.values_N)
    return forward_bytes(tokens, dim, distinct) + 8 * count + 4 * dim * count + 2 * 4 * (dim + 1) * distinct


def _tbe(table: UnifiedEmbedding) -> Any:
    """FBGEMM's TBE on the table's memory, or ``None`` where FBGEMM isn't."""
    try:
        from benchmarks.peers.tbe import tbe
    except (ImportError, OSError, AttributeError, RuntimeError):
        return None
    return tbe(table, own_memory=False)


def _lookups(table: UnifiedEmbedding, cases: list[Case]) -> Contenders:
    def no_gradient(run: Callable[[Case], object]) -> Callable[[Case], object]:
        return torch.no_grad()(run)

    contenders: Contenders = {
        OURS: lambda case: table(case.tokens),
        BAG: lambda case: bags(table.weight, case),
        "torch.index_select": lambda case: table.weight.index_select(0, case.bag_rows_T),
    }
    module = _tbe(table)
    if module is not None:
        narrow = prepared(cases, lambda case: (case.rows_T.int(), case.offsets.int()))
        contenders[f"{TBE}, int64"] = lambda case: module(case.rows_T, case.offsets)
        contenders[f"{TBE}, int32"] = lambda case: module(*narrow[id(case)])
    contenders = {name: no_gradient(run) for name, run in contenders.items()}
    expected = contenders["torch.index_select"](cases[0]).view(cases[0].tokens.rows, -1)
    for name, run in contenders.items():  # all give the same numbers, or nothing is compared
        torch.testing.assert_close(run(cases[0]).view_as(expected), expected, msg=f"{name} gives other numbers")
    return contenders


def _steps(table: UnifiedEmbedding, cases: list[Case]) -> Contenders:
    generator = torch.Generator(table.weight.device).manual_seed(1)
    shape = cases[0].tokens.rows, table.width
    grad_BW = torch.randn(shape, generator=generator, device=table.weight.device).div_(shape[0])
    weight = bag_parameter(table)
    optimizer = torch.optim.SGD([weight], lr=0.02)

    def bag_step(case: Case) -> None:
        optimizer.zero_grad(set_to_none=True)
        bags(weight, case, sparse=True).backward(grad_BW)
        optimizer.step()

    contenders: Contenders = {OURS: lambda case: table(case.tokens).backward(grad_BW), f"{BAG} + sparse SGD": bag_step}
    module = _tbe(table)
    if module is not None:
        narrow = prepared(cases, lambda case: (case.rows_T.int(), case.offsets.int()))
        contenders[f"{TBE}, int64"] = lambda case: module(case.rows_T, case.offsets).backward(grad_BW)
        contenders[f"{TBE}, int32"] = lambda case: module(*narrow[id(case)]).backward(grad_BW)
    return contenders


def _interleave(
    contenders: Contenders, cases: list[Case], flush: torch.Tensor, device: str, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds on the device and by the host's clock, by contender, in turns and each call on the next batch."""
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in contenders} for kind in ("device", "wall")}
    for name in contenders:
        contenders[name](cases[0])
        contenders[name](cases[1])
    names, call, on_gpu = list(contenders), 0, device == "cuda"
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            run, case, other = contenders[name], cases[call % len(cases)], cases[(call + 1) % len(cases)]
            call += 1
            for _ in range(SWEEPS):
                flush.add_(1)
            found["device"][name].append(_timed(lambda run=run, case=case: run(case), device, queued=True))
            found["wall"][name].append(_timed(lambda run=run, case=other: run(case), "wall" if on_gpu else device))
    return found


def _timed(call: Callable[[], object], device: str, *, queued: bool = False) -> float:
    """Seconds of one call: on ``"cuda"`` by CUDA events, else by the host's clock; ``"wall"`` waits for the device.

    Args:
        queued: don't wait for the device first: the call's launches queue behind what it still does.
    """
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if not queued:
            torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    wait = torch.cuda.synchronize if device == "wall" else lambda: None
    wait()
    begin = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - begin


def _claims(label: str, taken: dict[str, list[float]], must: int, copied: float) -> dict[str, Any]:
    times = {name: median(seconds) for name, seconds in taken.items()}
    claims = {f"{label}_bandwidth": claim(must / times[OURS] / 1e9, "GB/s", "copy within the device", copied / 1e9)}
    others = sorted((name for name in times if name != OURS), key=times.__getitem__)
    for prefix, suffix in ((TBE, "tbe"), (BAG, "embeddingbag"), ("torch.index_select", "index_select")):
        peer = next((name for name in others if name.startswith(prefix)), None)
        if peer:
            ours, theirs = times[OURS] * 1e3, times[peer] * 1e3
            claims[f"{label}_vs_{suffix}"] = claim(ours, "ms", peer, theirs, higher_is_better=False)
    return claims


if __name__ == "__main__":
    sys.exit(main())
