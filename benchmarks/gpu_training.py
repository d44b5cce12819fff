"""Training a CTR model on a CUDA GPU: samples per second, against other tables there and against this host's CPU.

    python -m benchmarks.gpu_training --json

DCN-V2 (three crosses, two hidden layers of 400) over 13 dense columns and 26 features in one table of 5,000,000 rows of
16 numbers. Batches lie on the host and are copied as training copies them, ahead of their step
(``embstore.lookahead``); each step's loss is brought to the host, as the ``Trainer`` does. Reading logs is left out.
Each contender has a table and a network of its own. Samples are seconds of ``STEPS`` steps, in turns.

    train_B_vs_cpu           embstore on the GPU by the kernel ``auto`` takes, and by ``cpu`` on all of the host's cores
    train_B_vs_dense_adam    and ``nn.Embedding`` with a dense gradient and torch's fused Adam, on the GPU
    train_B_vs_KERNEL        and embstore by its other kernels, on the GPU
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.report import Result, claim, interleave, main, median
from benchmarks.workloads import DIM, FEATURES, draw_tokens, make_table
from embstore.batch import Batch
from embstore.ctr import CtrModel
from embstore.errors import KernelError
from embstore.kernels import Request
from embstore.lookahead import look_ahead
from embstore.models import build
from embstore.normalization import StreamingNormalizer
from embstore.schema import Dense

ROWS, DENSE, BATCHES, STEPS = 5_000_000, 13, 8, {4096: 60, 65_536: 15}
NETWORK: dict[str, Any] = {"cross_layers": 3, "hidden": (400, 400)}
KERNELS = ("gpu", "fbgemm", "reference")


def measure(quick: bool) -> Result:
    """Both batch sizes; in a quick run the larger one alone."""
    if not torch.cuda.is_available():
        raise KernelError("benchmarks.gpu_training", expected="a CUDA GPU", found="none that torch sees")
    claims: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    for batch, steps in STEPS.items() if not quick else list(STEPS.items())[-1:]:
        batches = drawn(batch)
        contenders, auto = on_gpu(batches, steps)
        taken = interleave(contenders, repeats=5)
        rates = {name: steps * batch / median(seconds) for name, seconds in taken.items()}
        few = max(2, steps // 8)
        on_cpu = interleave({"embstore cpu": trainer("cpu", batches, few)}, repeats=3)
        rates["embstore cpu"] = few * batch / median(on_cpu["embstore cpu"])
        for peer, suffix in (("embstore cpu", "cpu"), ("nn.Embedding + dense fused Adam", "dense_adam")):
            claims[f"train_{batch}_vs_{suffix}"] = claim(rates[auto], "samples/s", peer, rates[peer])
        for name in rates:
            kernel = name.removeprefix("embstore ")
            if kernel in KERNELS and name != auto:
                claims[f"train_{batch}_vs_{kernel}"] = claim(rates[auto], "samples/s", name, rates[name])
        samples[str(batch)] = {"steps": {"gpu": steps, "cpu": few}, "auto": auto, "seconds": taken | on_cpu}
    settings = {"rows": ROWS, "dim": DIM, "features": FEATURES, "dense": DENSE, "network": NETWORK}
    settings["cpu_threads"] = torch.get_num_threads()
    return Result(claims=claims, samples=samples, settings=settings, packages=("triton", "fbgemm-gpu"))


def drawn(rows: int) -> list[Batch]:
    """Batches on the host: Zipf ids, normal numbers, a quarter of the labels positive."""
    draw, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    return [
        Batch(
            tokens=draw_tokens("zipf", draw, batch=rows),
            dense_BD=torch.randn(rows, DENSE, generator=generator),
            label_B=(torch.rand(rows, generator=generator) < 0.25).float(),
        )
        for _ in range(BATCHES)
    ]


def on_gpu(batches: list[Batch], steps: int) -> tuple[dict[str, Callable[[], None]], str]:
    """Contenders, and which of them ``auto`` is."""
    contenders: dict[str, Callable[[], None]] = {}
    for kernel in KERNELS:
        try:
            contenders[f"embstore {kernel}"] = trainer(kernel, batches, steps, device="cuda")
        except KernelError:  # FBGEMM isn't there
            continue
    contenders["nn.Embedding + dense fused Adam"] = dense_trainer(batches, steps)
    return contenders, f"embstore {make_table('auto', rows=1000, device='cuda').kernel.name}"


def trainer(kernel: str, batches: list[Batch], steps: int, device: str = "cpu") -> Callable[[], None]:
    """``steps`` steps of an embstore model."""
    table = make_table(kernel, rows=ROWS, device=device)
    model = CtrModel(table, normalizer(device), network(table.widths, device)).train()
    adam = torch.optim.Adam(model.network.parameters(), lr=1e-3, fused=True)
    endless: Iterator[Batch] = itertools.cycle(batches)

    def run() -> None:
        some = itertools.islice(endless, steps)
        for batch in look_ahead(some, table) if device == "cuda" else some:
            adam.zero_grad(set_to_none=True)
            loss = binary_cross_entropy_with_logits(model(batch), batch.label_B)
            loss.backward()
            float(loss.detach())
            adam.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def dense_trainer(batches: list[Batch], steps: int) -> Callable[[], None]:
    """The same network on ``nn.Embedding``, given the rows, hashed beforehand."""
    table = make_table("reference", rows=ROWS, device="cuda")
    embedding = nn.Embedding.from_pretrained(table.weight, freeze=False)
    of, scale = network(table.widths, "cuda"), normalizer("cuda")
    adam = torch.optim.Adam([*embedding.parameters(), *of.parameters()], lr=1e-3, fused=True)
    hashed = [
        replace(batch, tokens=replace(batch.tokens, values_N=Request(batch.tokens, table.plan).rows_T))
        for batch in batches
    ]
    endless = itertools.cycle(hashed)

    def run() -> None:
        for batch in look_ahead(itertools.islice(endless, steps), table):
            rows_BF = batch.tokens.values_N.view(FEATURES, -1).t()
            adam.zero_grad(set_to_none=True)
            scale.update(batch.dense_BD)
            logits_B = of(scale(batch.dense_BD), embedding(rows_BF).flatten(1))
            loss = binary_cross_entropy_with_logits(logits_B, batch.label_B)
            loss.backward()
            float(loss.detach())
            adam.step()
        torch.cuda.synchronize()

    return run


def network(widths: tuple[int, ...], device: str) -> nn.Module:
    """DCN-V2; its first weights are the same for all."""
    torch.manual_seed(1)
    return build("dcn", dense_width=DENSE, widths=list(widths), **NETWORK).to(device)


def normalizer(device: str) -> StreamingNormalizer:
    """Of the dense columns."""
    return StreamingNormalizer([Dense(name=f"d{i}") for i in range(DENSE)]).to(device)


if __name__ == "__main__":
    main("gpu_training", measure)
