"""The same lookup and update, several times: pick one by name, or let the device, dtype and optimizer decide."""

from __future__ import annotations

import torch

from embstore.errors import ConfigError, KernelError, nearest
from embstore.kernels import fbgemm
from embstore.kernels.fbgemm import FbgemmKernel
from embstore.kernels.kernel import Kernel, Table
from embstore.kernels.optimizer import TableOptimizer
from embstore.kernels.plan import Lookup, LookupPlan, Request
from embstore.kernels.reference import ReferenceKernel

__all__ = ["KERNELS", "Kernel", "Lookup", "LookupPlan", "Request", "Table", "TableOptimizer", "choose"]

KERNELS: dict[str, type[Kernel]] = {"reference": ReferenceKernel, "fbgemm": FbgemmKernel}


def choose(
    name: str, *, optimizer: TableOptimizer, dtype: torch.dtype, device: torch.device, dim: int
) -> tuple[Kernel, str]:
    """The kernel of that name, and why; ``"auto"`` takes FBGEMM where it can do what is asked, else ``reference``.

    On CPU, FBGEMM rounds float16 to nearest, so that steps smaller than half the spacing are lost: ``auto`` leaves
    narrow tables to ``reference``, which rounds stochastically.

    Raises:
        ConfigError: no such kernel.
        KernelError: a kernel asked for by name can't do it.
    """
    if name == "auto":
        if device.type == "cpu" and dtype != torch.float32:
            return ReferenceKernel(), "on CPU it alone rounds narrow rows stochastically"
        try:
            fbgemm.check(optimizer, dtype, dim)
        except KernelError as error:
            return ReferenceKernel(), f"fbgemm not taken: {error.what}" + (f" ({error.found})" if error.found else "")
        return FbgemmKernel(), f"fbgemm has {optimizer.name} for {str(dtype).removeprefix('torch.')} on {device.type}"
    if name not in KERNELS:
        raise ConfigError(f"unknown kernel {name!r}", do=nearest(name, [*KERNELS, "auto"]))
    if name == "fbgemm":
        fbgemm.check(optimizer, dtype, dim)
    return KERNELS[name](), "asked for"
