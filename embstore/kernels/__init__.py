"""The same lookup and update, several times: pick one by name, or let the device, dtype and optimizer decide."""

from __future__ import annotations

import torch

from embstore.errors import ConfigError, KernelError, nearest
from embstore.kernels import fbgemm, gpu
from embstore.kernels.cpu import CpuKernel
from embstore.kernels.fbgemm import FbgemmKernel
from embstore.kernels.gpu import GpuKernel
from embstore.kernels.kernel import Kernel, Table
from embstore.kernels.optimizer import TableOptimizer
from embstore.kernels.plan import Lookup, LookupPlan, Request
from embstore.kernels.reference import ReferenceKernel

__all__ = ["KERNELS", "Kernel", "Lookup", "LookupPlan", "Request", "Table", "TableOptimizer", "choose"]

KERNELS: dict[str, type[Kernel]] = {
    "cpu": CpuKernel,
    "gpu": GpuKernel,
    "fbgemm": FbgemmKernel,
    "reference": ReferenceKernel,
}


def choose(
    name: str, *, optimizer: TableOptimizer, dtype: torch.dtype, device: torch.device, dim: int, shared: bool = False
) -> tuple[Kernel, str]:
    """The kernel of that name, and why; ``"auto"`` takes the fastest that can do what is asked.

    On CPU that is ``cpu``, on a GPU ``gpu``, in every case measured (``benchmarks/results``: ``lookup.json``,
    ``train_step.json``, ``gpu_train_step.json``). FBGEMM goes first for a table that is shared out (``shared``), which
    ``gpu`` can't read.

    Raises:
        ConfigError: no such kernel.
        KernelError: a kernel asked for by name can't do it.
    """
    if name not in KERNELS and name != "auto":
        raise ConfigError(f"unknown kernel {name!r}", do=nearest(name, [*KERNELS, "auto"]))
    if name != "auto":
        _check(name, optimizer, dtype, device, dim)
        return KERNELS[name](), "asked for"
    why_not = []
    for candidate in ("cpu", "fbgemm") if shared else ("cpu", "gpu", "fbgemm"):
        try:
            _check(candidate, optimizer, dtype, device, dim)
        except KernelError as error:
            why_not.append(f"{candidate} not taken: {error.what}" + (f" ({error.found})" if error.found else ""))
        else:
            why = f"the first choice for {optimizer.name} on {device.type}"
            return KERNELS[candidate](), "; ".join([why, *(reason for reason in why_not if device.type != "cpu")])
    return ReferenceKernel(), "; ".join(why_not)


def _check(name: str, optimizer: TableOptimizer, dtype: torch.dtype, device: torch.device, dim: int) -> None:
    """Raise ``KernelError`` unless the kernel can train such a table."""
    if name == "cpu" and device.type != "cpu":
        raise KernelError("kernel 'cpu'", expected="a table on cpu", found=str(device), do="take kernel='auto'")
    if name == "fbgemm":
        fbgemm.check(optimizer, dtype, dim, device)
    if name == "gpu":
        gpu.check(optimizer, dtype, device)
