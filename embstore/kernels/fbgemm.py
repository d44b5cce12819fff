"""The table in FBGEMM's table-batched embedding (TBE): one TBE table that every lookup reads.

TBE takes one pooled feature per lookup, all mapped to table 0 (``feature_table_map=[0] * lookups``), and fuses the
optimizer into the backward pass. It is created empty and then made to work on the module's own tensors, so the table's
state looks the same under every kernel.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from embstore.errors import KernelError
from embstore.kernels.kernel import Kernel, Table
from embstore.kernels.optimizer import TableOptimizer
from embstore.kernels.plan import LookupPlan, Request
from embstore.kernels.reference import pooled

# Not Adam: on CPU TBE has none, and on a GPU it counts steps outside of the state that can be saved.
OPTIMIZERS = ("rowwise_adagrad", "adagrad", "sgd")
DTYPES = {torch.float32: "FP32", torch.float16: "FP16"}
# Which of our state tensors TBE keeps under which name.
_MOMENTS = {
    "rowwise_adagrad": ("sum",),
    "adagrad": ("sum",),
    "sgd": (),
}


def load() -> Any:
    """FBGEMM's training module.

    Raises:
        KernelError: not installed, or built for another torch.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fbgemm warns about its own imports
            import fbgemm_gpu.split_table_batched_embeddings_ops_training as training
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise KernelError(
            "kernel 'fbgemm' can't be loaded",
            expected=f"an fbgemm-gpu built for torch {torch.__version__} (1.6 goes with torch 2.11, 1.8 with 2.13)",
            found=str(error).split("\n")[0],
            do="install the matching pair, or take kernel='reference'",
        ) from error
    return training


def check(optimizer: TableOptimizer, dtype: torch.dtype, dim: int, device: torch.device) -> None:
    """Whether TBE can train such a table.

    Raises:
        KernelError: TBE has no such optimizer, dtype or dim there, or can't be loaded.
    """
    if dim % 4:
        raise KernelError(
            "kernel 'fbgemm': dim", expected="a multiple of 4", found=str(dim), do="take kernel='reference'"
        )
    if dtype not in DTYPES:
        raise KernelError(
            "kernel 'fbgemm': dtype", expected="float32 or float16", found=str(dtype), do="take kernel='reference'"
        )
    if optimizer.name not in OPTIMIZERS:
        raise KernelError(
            f"kernel 'fbgemm' has no {optimizer.name}",
            expected=" or ".join(OPTIMIZERS),
            found=optimizer.name,
            do="take kernel='reference', which has all",
        )
    load()
    if device.type == "cuda" and _variant() == "cpu":
        raise KernelError(
            "kernel 'fbgemm': its build",
            expected="one for CUDA",
            found="one for CPU",
            do="install fbgemm-gpu (make setup FLAVOR=cuda), or take kernel='gpu'",
        )


def _variant() -> str:
    import fbgemm_gpu

    return str(getattr(fbgemm_gpu, "__variant__", ""))


class FbgemmKernel(Kernel):
    """FBGEMM's TBE behind the kernel interface."""

    name = "fbgemm"

    def __init__(self) -> None:
        self._tbe: Any = None
        self._bound: tuple[Any, ...] = ()

    def __deepcopy__(self, memo: object) -> FbgemmKernel:
        # The copy's tensors are new: it binds a TBE of its own when first used.
        return FbgemmKernel()

    def forward(self, request: Request, table: Table) -> Tensor:
        if torch.is_inference_mode_enabled():  # TBE saves its inputs for a backward, which that mode forbids
            return pooled(request, table.weight_ND.__getitem__)
        with torch.no_grad():
            return self._output(request, table)

    def train(self, request: Request, table: Table) -> Tensor:
        with torch.no_grad():
            table.pay(request)
            table.touch(request)
        return self._output(request, table)

    def _output(self, request: Request, table: Table) -> Tensor:
        if not request.tokens.rows or not request.plan.lookups:
            out_BW = (
                torch.zeros(request.tokens.rows, request.plan.width, device=table.weight_ND.device)
                + table.trigger.sum()
            )
        else:
            tbe = self._bind(request.plan, table)
            tbe.set_learning_rate(table.learning_rate)
            out_BW = tbe(request.rows_T, _offsets(request), per_sample_weights=_per_sample_weights(request))
        if out_BW.requires_grad:
            out_BW.register_hook(lambda _: table.end_step())
        return out_BW

    def _bind(self, plan: LookupPlan, table: Table) -> Any:
        """A TBE whose weights and moments are the table's own memory."""
        tensors = {"weights": table.weight_ND}
        for number, name in enumerate(_MOMENTS[table.optimizer.name], start=1):
            tensors[f"momentum{number}"] = table.state[name]
        bound = (plan, table.optimizer, *(tensor.data_ptr() for tensor in tensors.values()))
        if bound != self._bound:
            self._tbe = _create(plan, table)
            location = "host" if table.weight_ND.device.type == "cpu" else "dev"
            for name, tensor in tensors.items():
                theirs = getattr(self._tbe, f"{name}_{location}")
                theirs.data = tensor.detach().view(theirs.shape)
            self._bound = bound
        return self._tbe


def _create(plan: LookupPlan, table: Table) -> Any:
    training = load()
    device = table.weight_ND.device
    check(table.optimizer, table.weight_ND.dtype, plan.dim, device)
    on_cpu = device.type == "cpu"
    kinds = {"rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD", "adagrad": "EXACT_ADAGRAD", "sgd": "EXACT_SGD"}
    precision = getattr(training.SparseType, DTYPES[table.weight_ND.dtype])
    place = training.EmbeddingLocation.HOST if on_cpu else training.EmbeddingLocation.DEVICE
    compute = training.ComputeDevice.CPU if on_cpu else training.ComputeDevice.CUDA
    optimizer = table.optimizer
    return training.SplitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[(plan.num_rows, plan.dim, place, compute)],
        feature_table_map=[0] * len(plan.lookups),
        weights_precision=precision,
        output_dtype=training.SparseType.FP32,
        optimizer=getattr(training.OptimType, kinds[optimizer.name]),
        learning_rate=optimizer.learning_rate,
        eps=optimizer.eps,
        pooling_mode=training.PoolingMode.SUM,
        device=device,
        bounds_check_mode=training.BoundsCheckMode.NONE,  # rows come from the plan, always in range
    )


def _offsets(request: Request) -> Tensor:
    """TBE's offsets: ``[lookups * B + 1]`` into ``rows_T``."""
    rows, device = request.tokens.rows, request.tokens.values_N.device
    each = torch.arange(rows, device=device)
    out, start = [], 0
    for _, part, offsets in request.parts:
        out.append((each if offsets is None else offsets[:-1]) + start)
        start += len(part)
    return torch.cat([*out, torch.tensor([start], device=device)])


def _per_sample_weights(request: Request) -> Tensor | None:
    """1 / length for averaged lists, 1 elsewhere; ``None`` when nothing is averaged."""
    if not any(lookup.mean and offsets is not None for lookup, _, offsets in request.parts):
        return None
    weights = []
    for lookup, part, offsets in request.parts:
        if offsets is None or not lookup.mean:
            weights.append(torch.ones(len(part), device=part.device))
        else:
            lengths = offsets.diff()
            weights.append((1.0 / lengths.float()).repeat_interleave(lengths))
    return torch.cat(weights)
