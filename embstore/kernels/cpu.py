"""The table on CPU: one compiled pass from tokens to output, one from gradients to updated rows.

    forward    tokens ──> rows, prefetched ──> pooled output          and, to train: hits sorted by part of the table
    backward   part by part: sum the gradients of each row ──> one step of its optimizer

The passes are in ``cpu_lookup`` and ``cpu_update``; here they are given their arrays and threads. Results are the same
bits for any number of threads (``torch.set_num_threads``).

Shape suffixes: B rows of the batch, L lookups, T hits, D dim, N table rows, W output width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore import threads
from embstore.errors import KernelError
from embstore.kernels import cpu_lookup, cpu_update
from embstore.kernels.cpu_lookup import Hits, Input, Memory
from embstore.kernels.cpu_update import Penalty, Step
from embstore.kernels.kernel import Table, TwoPassKernel
from embstore.kernels.native import mixed_seed
from embstore.kernels.outputs import Outputs
from embstore.kernels.plan import LookupPlan, Request

CHUNK_HITS = 2048  # of a thread's claim
AHEAD_BYTES = 1 << 13  # of table rows on their way to the cache while one is read
PART_HITS = 512  # of a part on average: its rows and gradients fit the second-level cache
MAX_PARTS = 1 << 14
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FIXED_DIMS = (8, 16, 32, 64, 128)  # of float32 rows: passes are compiled for each of these, and one for all others

_KINDS = {
    "rowwise_adagrad": cpu_update.ROWWISE_ADAGRAD,
    "adagrad": cpu_update.ADAGRAD,
    "adam": cpu_update.ADAM,
    "sgd": cpu_update.SGD,
}
_NO_ROWS, _NO_STATE = np.empty(0, dtype=np.int64), (np.uint64(0), 0)
_NO_ENTRIES, _NO_SCALES = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.float32)
_NO_BOUNDS = np.empty((0, 1), dtype=np.int64)


class CpuKernel(TwoPassKernel):
    """Fused, threaded and deterministic; every optimizer, dtype and dim."""

    name = "cpu"

    def __init__(self) -> None:
        self._outputs = Outputs()

    def __reduce__(self) -> tuple[Any, ...]:
        return CpuKernel, ()  # a copy has outputs of its own

    def forward(self, request: Request, table: Table) -> Tensor:
        return _Pass(request, table, self._outputs).output(sort=False)

    def begin(self, request: Request, table: Table) -> tuple[Tensor, Hits]:
        lookup = _Pass(request, table, self._outputs)
        if table.paid_N is not None:
            lookup.pay()
        return lookup.output(sort=True), lookup.hits

    def update(self, request: Request, table: Table, grad_BW: Tensor, saved: Any) -> None:
        hits: Hits = saved
        if not len(hits.entries_T):
            return
        optimizer, step = table.optimizer, table.step
        settings = Step(
            learning_rate=np.float32(table.learning_rate),
            eps=np.float32(optimizer.eps),
            add1=np.float32(1 - optimizer.beta1),
            keep2=np.float32(optimizer.beta2),
            add2=np.float32(1 - optimizer.beta2),
            unbias1=np.float32(1 - optimizer.beta1**step),
            unbias2=np.float32(1 - optimizer.beta2**step),
            seed=mixed_seed(table.rounding_seed + 2 * step),
        )
        grad_BW = grad_BW.float().contiguous()  # itself, where it is so already
        memory, grad = _memory(table), np.uint64(grad_BW.data_ptr())
        update = cpu_update.update_of(_KINDS[optimizer.name], _fixed_dim(memory))
        _run(update, len(hits.entries_T), hits, memory, settings, grad)


class _Pass:
    """One lookup of a request in a table."""

    def __init__(self, request: Request, table: Table, outputs: Outputs) -> None:
        plan, tokens = request.plan, request.tokens
        _check_size(plan, tokens.rows)
        self.table, self.plan, self.index, self.outputs = table, plan.arrays, plan.known_index, outputs
        self.batch, self.total = _input(request)
        per_row = max(1.0, self.total / max(tokens.rows, 1))
        self.ahead = _ahead(plan.dim * table.weight_ND.element_size())
        # Larger chunks for larger batches, whose hits have more parts: each chunk has bounds for each part.
        chunk_hits = max(CHUNK_HITS, self.total // PART_HITS)
        self.hits = Hits(_NO_ENTRIES, _NO_SCALES, _NO_BOUNDS, 0, max(int(chunk_hits / per_row), 1))
        self.rows_T, self.found = _NO_ROWS, False

    def pay(self) -> None:
        """Let the rows that will be read pay what they owe."""
        table = self.table
        assert table.paid_N is not None
        self._make_room()
        self.rows_T = np.empty(self.total, dtype=np.int64)
        _run(cpu_lookup.find, self.total, self.plan, self.index, self.batch, self.rows_T, self.hits)
        self.found = True
        penalty = Penalty(
            kind=_KINDS[table.optimizer.name],
            l2=table.optimizer.l2,
            owed=float(table.progress[1]),
            eps=np.float32(table.optimizer.eps),
            seed=mixed_seed(table.rounding_seed + 2 * table.step + 1),
        )
        memory, paid = _memory(table), np.uint64(table.paid_N.data_ptr())
        _run(cpu_update.pay, self.total, self.hits, memory, penalty, paid)

    def output(self, *, sort: bool) -> Tensor:
        """float32 ``[B, W]``; with ``sort``, the hits are sorted for the update, too."""
        if sort and not self.found:
            self._make_room()
        memory, sort = _memory(self.table), sort and not self.found
        out_BW = self.outputs.take(self.batch.rows, len(self.plan.salt_L) * memory.dim)
        pool = cpu_lookup.pool_of(_fixed_dim(memory))
        where = self.plan, self.index, self.batch, memory, self.ahead, self.found, self.rows_T
        _run(pool, self.total, *where, self.hits, sort, np.uint64(out_BW.data_ptr()))
        return out_BW

    def _make_room(self) -> None:
        """Arrays for the sorted hits."""
        table_rows = self.table.weight_ND.shape[0]
        parts = min(max(self.total // PART_HITS, 1), MAX_PARTS)
        # The lower bits of a row share 64 bits with its slot.
        shift = min(max((table_rows - 1).bit_length() - parts.bit_length() + 1, 0), 32)
        parts = ((table_rows - 1) >> shift) + 1 if table_rows else 1
        chunks = -(-self.batch.rows // self.hits.chunk_rows)
        scaled = len(self.batch.offsets) > 0 and bool(self.plan.mean_L.any())
        self.hits = self.hits._replace(
            entries_T=np.empty(self.total, dtype=np.uint64),
            scale_T=np.empty(self.total, dtype=np.float32) if scaled else _NO_SCALES,
            bounds_CP=np.empty((chunks, parts + 1), dtype=np.int64),
            shift=shift,
        )


def _check_size(plan: LookupPlan, rows: int) -> None:
    if rows * len(plan.lookups) > 1 << 32:
        found = f"{rows:,} rows of {len(plan.lookups)} lookups"
        raise KernelError("batch", expected="at most 2^32 lookups", found=found, do="give smaller batches")


def _ahead(row_bytes: int) -> int:
    """Table rows to fetch ahead of the one that is read."""
    return max(AHEAD_BYTES // row_bytes, 4)


def _input(request: Request) -> tuple[Input, int]:
    """The batch as arrays, and the number of hits."""
    tokens, feature_L = request.tokens, request.plan.arrays.feature_L
    start_F, at_F = _starts(tokens.starts)
    offsets, hits = _NO_ROWS, tokens.rows * len(feature_L)
    if tokens.offsets:
        at_F = at_F.copy()
        listed = [f for f, name in enumerate(tokens.names) if name in tokens.offsets]
        at_F[listed] = np.arange(len(listed)) * (tokens.rows + 1)
        offsets = np.concatenate([tokens.offsets[tokens.names[f]].numpy() for f in listed])
        hits = int(np.diff(start_F)[feature_L].sum())
    return Input(tokens.values_N.contiguous().numpy(), start_F, offsets, at_F, tokens.rows), hits


@lru_cache(maxsize=64)
def _starts(starts: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A batch's starts as an array, and that no feature has offsets: the same at every step of most runs."""
    return np.array(starts, dtype=np.int64), np.full(len(starts) - 1, -1, dtype=np.int64)


def _memory(table: Table) -> Memory:
    """Where the table's tensors lie.

    Raises:
        KernelError: a tensor is elsewhere, of another type or size, or strided.
    """
    tensors = [table.weight_ND, *table.state.values()]
    tensors += [tensor for tensor in (table.paid_N, table.touched_N) if tensor is not None]
    # Looked at each time, for a tensor's memory may be exchanged under it; checked when it was.
    seen = [(tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device) for tensor in tensors]
    known: tuple[Any, Memory] | None = table.places.get(CpuKernel.name)
    if known is None or known[0] != seen:
        known = table.places[CpuKernel.name] = seen, _checked_memory(table)
    return known[1]


def _checked_memory(table: Table) -> Memory:
    """As ``_memory``, checked: compiled code believes what it is told."""
    weight_ND = table.weight_ND
    _check("weight", weight_ND, len(weight_ND), DTYPES)
    for name, tensor in table.state.items():
        _check(f"state {name!r}", tensor, len(weight_ND), (torch.float32,))
    if table.paid_N is not None:
        _check("paid", table.paid_N, len(weight_ND), (torch.float64,))
    if table.touched_N is not None:
        _check("touched", table.touched_N, len(weight_ND), (torch.uint8,))
    state = [
        (np.uint64(tensor.data_ptr()), tensor.shape[1] if tensor.dim() > 1 else 1) for tensor in table.state.values()
    ]
    (one, one_width), (two, two_width) = (*state, _NO_STATE, _NO_STATE)[:2]
    return Memory(
        weight=np.uint64(weight_ND.data_ptr()),
        dim=weight_ND.shape[1],
        row_bytes=weight_ND.shape[1] * weight_ND.element_size(),
        narrow=weight_ND.element_size() == 2,
        half=weight_ND.dtype == torch.float16,
        one=one,
        one_width=one_width,
        two=two,
        two_width=two_width,
        touched=np.uint64(0 if table.touched_N is None else table.touched_N.data_ptr()),
        first=table.first_row,
    )


def _check(name: str, tensor: Tensor, rows: int, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype in dtypes and len(tensor) == rows and tensor.is_contiguous() and tensor.device.type == "cpu":
        return
    layout = "contiguous" if tensor.is_contiguous() else "strided"
    raise KernelError(
        f"kernel 'cpu': the table's {name}",
        expected=f"{' or '.join(str(dtype) for dtype in dtypes)}, {rows} rows, contiguous, on cpu",
        found=f"{tensor.dtype}, {list(tensor.shape)}, {layout}, on {tensor.device}",
        do="load or assign such a tensor",
    )


def _fixed_dim(memory: Memory) -> int:
    """The dim a pass is compiled for; 0 where one serves all."""
    return memory.dim if memory.dim in FIXED_DIMS and not memory.narrow else 0


def _run(run: Any, hits: int, *args: Any) -> None:
    """Run a pass on as many threads as pay."""
    counter = np.zeros(2, dtype=np.int64)  # of claims; whether a thread failed
    args, failed = (*args, counter), np.uint64(counter.ctypes.data + 8)
    team, count = threads.team(), min(torch.get_num_threads(), max(1, hits // CHUNK_HITS))
    if team:
        run(np.uint64(team), count, failed, args)
    else:
        threads.share(lambda: run(np.uint64(0), 1, failed, args), count)
    if counter[1]:
        raise MemoryError("no memory for the scratch arrays of a table's pass; its output and rows are not to be used")
