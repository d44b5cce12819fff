"""The table on a GPU, in Triton: one pass from tokens to the pooled output, and an update fused with the optimizer.

    forward   tokens -> salt -> row -> gather -> pool -> output         one launch, and one more for list features
    update    tokens -> hits (row, slot) -> sort by row -> segments -> sum and update each distinct row once

Nothing waits for the device: what the host must know (how many tokens a feature has) is in ``FeatureTokens.starts``,
and how many distinct rows there are stays on the device, where programs beyond it end at once. Sums have a fixed order,
so two runs give the same bits; rows of up to ``HEAVY`` hits are summed as ``ReferenceKernel`` does on CPU.

Triton is imported when the kernel is first used. Under its interpreter (``TRITON_INTERPRET=1``) the same code runs on
CPU tensors, slowly: for tests.

Shape suffixes: B rows of the batch, L lookups, T hits (uses of a table row), R distinct rows, N table rows, D dim,
W output width, K known tokens, J list features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.errors import KernelError
from embstore.kernels.kernel import Table, TwoPassKernel
from embstore.kernels.optimizer import TableOptimizer
from embstore.kernels.plan import Request

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Numbers a program handles at once, chosen for 4 warps (128 threads) on A100 and H100: enough 16-byte loads are under
# way to cover the latency of memory, few enough registers for 12 or more programs to share a multiprocessor.
COPY_TILE = 2048  # 16 a thread
POOL_TILE = 512  # of several values of each list at once, and of sums in float64: twice the registers
UPDATE_TILE = 1024  # each with its gradient, weight and up to two moments
SUM_TILE = 2048  # of gradients, of parts
MOST_ROWS = 128  # of a tile, when the dim is small
TOKENS = 512  # a program hashes, marks or counts, where no rows are read
# Hits of a row up to which one program sums them; beyond, programs share the work in windows of as many.
HEAVY = 128

# The optimizer's state in the order of the functions' arguments.
_STATE = {"rowwise_adagrad": ("sum",), "adagrad": ("sum",), "adam": ("exp_avg", "exp_avg_sq"), "sgd": ()}
# So that no product and sum become one operation, rounded once where the other kernels round twice.
_UNFUSED = {"enable_fp_fusion": False}

# Rows, slots and scales; running count of segments, where they start, how many there are.
_Hits: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
_Segments: TypeAlias = tuple[Tensor, Tensor, Tensor]


def functions() -> Any:
    """The module of Triton functions.

    Raises:
        KernelError: Triton isn't installed, or can't be loaded.
    """
    try:
        from embstore.kernels import triton_functions
    except (ImportError, OSError, AttributeError) as error:
        raise KernelError(
            "kernel 'gpu' can't be loaded",
            expected="Triton, which CUDA builds of torch bring along",
            found=str(error).split("\n")[0],
            do="install triton, or take kernel='reference'",
        ) from error
    return triton_functions


def interpreted() -> bool:
    """Whether the functions run under Triton's interpreter, which is settled when they are first loaded."""
    return type(functions().copy_rows).__name__ == "InterpretedFunction"


def check(optimizer: TableOptimizer, dtype: torch.dtype, device: torch.device) -> None:
    """Whether this kernel can train such a table; it has every optimizer.

    Raises:
        KernelError: no such dtype, no CUDA device, or no Triton.
    """
    if dtype not in DTYPES:
        raise KernelError(
            f"kernel 'gpu' ({optimizer.name}): dtype",
            expected="float32, float16 or bfloat16",
            found=str(dtype),
            do="take kernel='reference'",
        )
    functions()
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        raise KernelError(
            "kernel 'gpu': device",
            expected="cuda",
            found=str(device),
            do="move the table to a GPU, take kernel='reference', or set TRITON_INTERPRET=1 to try the code out",
        )


class GpuKernel(TwoPassKernel):
    """Hash, gather and pool in one pass; sort, sum and update in the backward pass. Deterministic."""

    name = "gpu"

    def __init__(self) -> None:
        self._lookups: _Lookups | None = None

    def __deepcopy__(self, memo: object) -> GpuKernel:
        # What it holds is made again from the copy's plan.
        return GpuKernel()

    def forward(self, request: Request, table: Table) -> Tensor:
        return _forward(request, table, self._place(request, table))

    def begin(self, request: Request, table: Table) -> tuple[Tensor, Any]:
        table.pay(request)
        place = self._place(request, table)
        return _forward(request, table, place), place

    def update(self, request: Request, table: Table, grad_BW: Tensor, saved: Any) -> None:
        table.touch(request)
        place: _Place = saved
        if not place.lookups.hits:
            return
        most = min(place.lookups.hits, len(table.weight_ND))
        with torch.cuda.device_of(table.weight_ND):
            hits, segments = _segments(_hits(request, place), most)
            _update(request, table, grad_BW if grad_BW.stride(1) == 1 else grad_BW.contiguous(), hits, segments)

    def _place(self, request: Request, table: Table) -> _Place:
        """Where the request's tokens lie on the device. The lookups are the last request's where they are the same.

        Raises:
            KernelError: the table's rows don't lie one after the other.
        """
        weight_ND = table.weight_ND
        if not weight_ND.is_contiguous():
            found = f"strides {weight_ND.stride()}"
            raise KernelError("kernel 'gpu': rows", expected="contiguous", found=found, do="take kernel='reference'")
        lookups = self._lookups  # another thread may replace them
        if lookups is None or not lookups.fit(request, weight_ND.device):
            lookups = self._lookups = _Lookups(request, weight_ND.device, lookups)
        tokens, names = request.tokens, lookups.list_names
        offset_JB = torch.stack([tokens.offsets[name] for name in names]) if names else None
        return _Place(lookups, tokens.values_N.contiguous(), offset_JB)


class _Lookups:
    """A request's lookups on the device, those of single-valued features first, then those of lists."""

    def __init__(self, request: Request, device: torch.device, last: _Lookups | None) -> None:
        plan, arrays = request.plan, request.plan.arrays
        if arrays.given_L.any():
            do = "take kernel='fbgemm' or 'reference' for a sharded table"
            raise KernelError("kernel 'gpu'", expected="lookups of tokens", found="lookups of rows", do=do)
        self.plan, self.device, self.stream = plan, device, _stream(device)
        self.starts, self.list_names = request.tokens.starts, _list_names(request)
        starts_F = np.array(self.starts, dtype=np.int64)
        places = {name: place for place, name in enumerate(self.list_names)}
        list_L = np.array([places.get(name, -1) for name in plan.names], dtype=np.int64)[arrays.feature_L]
        count_L = np.diff(starts_F)[arrays.feature_L]
        # The columns are named in ``triton_functions``.
        record_LX = np.stack(
            [
                arrays.salt_L.view(np.int64),
                arrays.base_L,
                arrays.size_L,
                arrays.exact_L.astype(np.int64),
                arrays.known_start_F[arrays.feature_L],
                arrays.known_start_F[arrays.feature_L + 1],
                arrays.mean_L.astype(np.int64),
                np.arange(len(list_L), dtype=np.int64),
                starts_F[arrays.feature_L],
                count_L,
                np.cumsum(count_L) - count_L,
                list_L,
            ],
            axis=1,
        )
        self.record_LX = _sent(record_LX[np.argsort(list_L >= 0, kind="stable")], device)
        self.singles, self.lists = int((list_L < 0).sum()), int((list_L >= 0).sum())
        self.hits, self.longest = int(count_L.sum()), int(count_L[list_L >= 0].max(initial=0))
        self.scaled = bool((arrays.mean_L & (list_L >= 0)).any())
        known = int(np.diff(arrays.known_start_F).max(initial=0))
        self.steps = max(1, known.bit_length()) if arrays.exact_L.any() else 0  # of a binary search
        same = last is not None and last.plan is plan and last.device == device
        self.known_K: Tensor = last.known_K if last is not None and same else _sent(arrays.known_K, device)

    def fit(self, request: Request, device: torch.device) -> bool:
        """Whether they are the request's too: the same plan, as many tokens of each feature, the same lists."""
        return (
            self.plan is request.plan
            and self.device == device
            and self.stream == _stream(device)
            and self.starts == request.tokens.starts
            and self.list_names == _list_names(request)
        )


@dataclass(frozen=True)
class _Place:
    """A request on the device; ``offset_JB``, int64 ``[J, B + 1]``, when it has list features."""

    lookups: _Lookups
    value_N: Tensor
    offset_JB: Tensor | None

    @property
    def singles(self) -> tuple[Tensor | None, ...]:
        return self.lookups.record_LX, self.lookups.known_K, self.value_N, None

    @property
    def lists(self) -> tuple[Tensor | None, ...]:
        return self.lookups.record_LX[self.lookups.singles :], self.lookups.known_K, self.value_N, self.offset_JB


def _forward(request: Request, table: Table, place: _Place) -> Tensor:
    rows, plan, at = request.tokens.rows, request.plan, place.lookups
    out_BW = torch.empty(rows, plan.width, device=at.device)
    if not out_BW.numel():
        return out_BW
    run = functions()
    shape = {"STEPS": at.steps, "SHAPE": (len(plan.lookups), plan.dim), **_UNFUSED}
    with torch.cuda.device_of(out_BW):
        if at.singles:
            block = _tile_rows(COPY_TILE, plan.dim)
            run.copy_rows[(at.singles * _ceil(rows, block),)](
                place.singles, table.weight_ND, out_BW, at.singles, rows, **shape, BLOCK=block
            )
        if at.lists:
            block = _tile_rows(POOL_TILE, plan.dim)
            run.pool_lists[(at.lists * _ceil(rows, block),)](
                place.lists, table.weight_ND, out_BW, at.lists, rows, **shape, BLOCK=block
            )
    return out_BW


def _hits(request: Request, place: _Place) -> _Hits:
    """The hits of all lookups, in the plan's order: row, slot, and scale when lists are averaged."""
    run, at = functions(), place.lookups
    rows, lookups = request.tokens.rows, len(request.plan.lookups)
    # Rows in 32 bits where they fit: half the passes of the sort, which takes longest.
    row_T = torch.empty(at.hits, dtype=_index(request.plan.num_rows), device=at.device)
    slot_T = torch.empty(at.hits, dtype=_index(rows * lookups), device=at.device)
    hits = row_T, slot_T, torch.empty(at.hits, device=at.device) if at.scaled else None
    shape = {"STEPS": at.steps, "LOOKUPS": lookups, "BLOCK": TOKENS, **_UNFUSED}
    if at.singles:
        run.find_hits[(at.singles * _ceil(rows, TOKENS),)](place.singles, hits, at.singles, rows, **shape)
    if at.longest:
        halvings = (rows - 1).bit_length()
        run.find_list_hits[(at.lists * _ceil(at.longest, TOKENS),)](
            place.lists, hits, at.lists, rows, HALVINGS=halvings, **shape
        )
    return hits


def _segments(hits: _Hits, most: int) -> tuple[_Hits, _Segments]:
    """The hits sorted by row, and the segments, at most ``most``: how many there are only the device knows."""
    run, (row_T, slot_T, scale_T) = functions(), hits
    count, index, device = len(row_T), _index(len(row_T)), row_T.device
    # Stable: the hits of a row stay in the order of the lookups.
    row_T, order_T = torch.sort(row_T, stable=True)
    ordered = row_T, torch.empty_like(slot_T), None if scale_T is None else torch.empty_like(scale_T)
    head_T = torch.empty(count, dtype=index, device=device)
    grid = (_ceil(count, TOKENS),)
    run.mark_segments[grid](hits, order_T, ordered, head_T, count, BLOCK=TOKENS, **_UNFUSED)
    start_R, total = (torch.empty(size, dtype=index, device=device) for size in (most + 1, 1))
    segments = torch.cumsum(head_T, dim=0, dtype=index), start_R, total
    run.bound_segments[grid](segments, count, BLOCK=TOKENS, **_UNFUSED)
    return ordered, segments


def _update(request: Request, table: Table, grad_BW: Tensor, hits: _Hits, segments: _Segments) -> None:
    """Sum each row's gradients and update it: rows of few hits in one launch, the others in two."""
    run, plan, count = functions(), request.plan, len(hits[0])
    grads = grad_BW, grad_BW.stride(0)
    tensors = [table.weight_ND, *(table.state[name] for name in _STATE[table.optimizer.name])]
    tensors += tensors[:1] * (3 - len(tensors))  # what the optimizer doesn't have isn't read
    seed = ((table.rounding_seed + 2 * table.step) * 0x9E3779B1) & 0x7FFFFFFF  # as ``optimizer._uniform`` mixes it
    change = tuple(tensors), _step(table), seed
    shape = {"SHAPE": (len(plan.lookups), plan.dim), "HEAVY": HEAVY, **_UNFUSED}
    block = _tile_rows(UPDATE_TILE, plan.dim)
    run.update_light[(_ceil(len(segments[1]) - 1, block),)](
        hits, segments, grads, *change, OPTIMIZER=table.optimizer.name, BLOCK=block, **shape
    )
    if count <= HEAVY:
        return
    windows, block = _ceil(count, HEAVY), _tile_rows(SUM_TILE, plan.dim)
    part_PD = torch.empty(2 * windows, plan.dim, dtype=torch.float64, device=grad_BW.device)
    run.sum_windows[(2 * windows,)](hits, segments, grads, part_PD, count, BLOCK=block, **shape)
    run.update_heavy[(windows,)](
        hits, segments, part_PD, count, *change, OPTIMIZER=table.optimizer.name, BLOCK=block, **shape
    )


def _step(table: Table) -> tuple[float, ...]:
    """Learning rate, eps, and for Adam 1 - beta1, beta2, 1 - beta2 and the two corrections of the bias."""
    optimizer, step = table.optimizer, max(1, table.step)
    beta1, beta2 = optimizer.beta1, optimizer.beta2
    numbers = table.learning_rate, optimizer.eps, 1 - beta1, beta2, 1 - beta2, 1 - beta1**step, 1 - beta2**step
    return tuple(map(float, numbers))


def _list_names(request: Request) -> tuple[str, ...]:
    return tuple(name for name in request.plan.names if name in request.tokens.offsets)


def _sent(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """To the device; from pinned memory, so that the host doesn't wait for what the device is doing."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _stream(device: torch.device) -> int:
    """The stream that work is queued on; what was sent on another may not have arrived."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _index(count: int) -> torch.dtype:
    """The integers that count up to ``count``."""
    return torch.int32 if count < 2**31 else torch.int64


def _tile_rows(tile: int, dim: int) -> int:
    """Rows of a tile of about ``tile`` numbers, a power of two."""
    return min(max(1, tile // _power_of_2(dim)), MOST_ROWS)


def _power_of_2(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _ceil(count: int, block: int) -> int:
    return -(-count // block)
