"""A table whose rows are shared out: torchrec carries rows and gradients, our kernels look up, pool and update.

    rank       tokens ──> rows of all hits ──> distinct ones ──┐ ids              ┌──> pooled output
                                                               v                  │ vectors
    torchrec             RwSparseFeaturesDist ──────────────── all to all ── RwSequenceEmbeddingDist
                                                               │ ids              ^ vectors
    owner                                                      └──> its kernel ───┘

What is asked doesn't depend on the rows' values, so that it may be asked for a batch ahead (``embstore.lookahead``):

    batch n        vectors ──> network ──> gradients ──> updated rows
    batch n + 1    rows of all hits, how many are asked of whom │ which ─────────────> vectors ──> ...
                   before batch n's forward                     │ since its vectors left

The backward pass goes the same way: a rank sums the gradients of each distinct row over its hits, torchrec takes them
to the row's owner, and the owner's kernel updates a row once with the sum over all ranks, by the fused optimizer.

All lookups of all features are one key of one ``EmbeddingCollection`` table: a row that several of them hit travels
once, and there is one exchange whatever the number of features.

Shape suffixes: T hits, U distinct rows of them, R rows asked of this rank, B batch rows, W output width, D dim.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embstore.distributed import Group
from embstore.errors import ConfigError, GroupError
from embstore.kernels import Kernel, Request, Table, TableOptimizer
from embstore.kernels.cpu import CpuKernel
from embstore.kernels.distinct import distinct
from embstore.kernels.kernel import TwoPassKernel
from embstore.kernels.reference import ReferenceKernel
from embstore.planning.row_wise import load_torchrec, plan_row_wise, quiet

_SUM = TableOptimizer(name="sgd", learning_rate=0.0)
_BATCH, _POOLING = 4096, 32  # what the planner is told of the batches; with one way to shard, nothing hangs on it


class Exchange:
    """The way between the ranks of a group and the rows of a table.

    Args:
        group: with a process group.
        rows: of the whole table.
        dim: D.
        dtype: of the rows.
        optimizer: of the table.
        device: where the shards lie.

    ``shards`` are the rows of each rank, equal blocks as torchrec's planner cuts them; ``shard`` those of this one.

    Raises:
        ConfigError: the table doesn't fit the ranks' memory.
        GroupError: a rank would have no rows.
        KernelError: torchrec can't be loaded.
    """

    def __init__(
        self, group: Group, rows: int, dim: int, dtype: torch.dtype, optimizer: TableOptimizer, device: torch.device
    ) -> None:
        self.group, self.dim = group, dim
        load_torchrec()
        self._block = block = -(-rows // group.world)
        if block * (group.world - 1) >= rows:
            found = f"{group.world:,} ranks, of which {max(-(-rows // max(block, 1)), 0):,} would hold some"
            raise GroupError(
                f"table of {rows:,} rows", expected="rows for each rank", found=found, do="take fewer ranks"
            )
        with quiet():
            sharding = self._shard(rows, dtype, optimizer, device)
            self._input_dist, self._output_dist = sharding.create_input_dist(), sharding.create_output_dist()
            self._asked: list[Asked] = []  # and maybe not sent yet
            self.ask(Request.of_rows(torch.empty(0, dtype=torch.int64, device=device), dim, rows)).wait()
            self._asked.clear()
        bounds = [(of.shard_offsets[0], of.shard_sizes[0]) for of in self.plan.sharding_spec.shards]
        self.shards = [range(start, start + size) for start, size in bounds]
        self.shard = self.shards[group.rank]
        self._pooling: TwoPassKernel = CpuKernel() if device.type == "cpu" else ReferenceKernel()

    def _shard(self, rows: int, dtype: torch.dtype, optimizer: TableOptimizer, device: torch.device) -> Any:
        from torchrec.distributed.embedding import ShardedEmbeddingCollection
        from torchrec.distributed.planner import Topology
        from torchrec.distributed.planner.types import PlannerError
        from torchrec.distributed.types import ShardingEnv

        group = self.group
        own = _capacity(device)
        capacity = min(int(theirs) for theirs in group.tell(own))  # the same plan everywhere
        topology = Topology(
            world_size=group.world,
            local_world_size=min(int(os.environ.get("LOCAL_WORLD_SIZE", group.world)), group.world),
            compute_device=device.type,
            hbm_cap=capacity if device.type == "cuda" else 0,
            ddr_cap=capacity,
        )
        try:
            found = plan_row_wise(
                rows=rows,
                dim=self.dim,
                dtype={torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype],
                optimizer=optimizer.name,
                batch=_BATCH,
                pooling=_POOLING,
                topology=topology,
            )
        except PlannerError as error:
            raise ConfigError(
                f"table of {rows:,} rows x {self.dim} over {group.world:,} ranks",
                expected=f"at most {capacity / 1e9:,.1f} GB a rank",
                found="more, as torchrec's planner counts",
                do="take more ranks, or a smaller table (embstore plan says how many)",
            ) from error
        self.plan = found.plan["table"]
        infos = ShardedEmbeddingCollection.create_grouped_sharding_infos(found.module, found.plan, {})
        ((kind, of_kind),) = infos.items()
        assert group.process_group is not None
        env = ShardingEnv.from_process_group(group.process_group)
        return ShardedEmbeddingCollection.create_embedding_sharding(kind, of_kind, env, device)

    def ask(self, request: Request) -> Asked:
        """Begin to tell the rows of a request to their owners; called by all ranks, before or amid other requests.

        On a GPU the current stream does it, which need not be the one that looks them up.
        """
        from torchrec import KeyedJaggedTensor
        from torchrec.distributed.sharding.sequence_sharding import SequenceShardingContext

        rows_U, number_T = distinct(request.rows_T, self._block, self.group.world)
        lengths = torch.tensor([len(rows_U)], device=rows_U.device)
        keyed = KeyedJaggedTensor(keys=["table"], values=rows_U, lengths=lengths)
        with torch.no_grad():
            sizes = self._input_dist(keyed)
        # The rows lie by owner already, and on a CPU stay as they lie: their vectors come in that order.
        permute = None if rows_U.device.type == "cpu" else self._input_dist.unbucketize_permute_tensor
        context = SequenceShardingContext(features_before_input_dist=keyed, unbucketize_permute_tensor=permute)
        asked = Asked(request.by_row(number_T), sizes, context)
        self._asked.append(asked)
        return asked

    def forward(self, asked: Asked, table: Table, kernel: Kernel, *, pay: bool) -> Tensor:
        """The output of a request, float32 ``[B, W]``, without a gradient; called by all ranks.

        Args:
            asked: of all ranks, the same one in their order.
            table: this rank's shard.
            kernel: of the shard.
            pay: whether rows pay the penalty they owe before they are read.
        """
        with torch.no_grad():
            return self._output(asked, table, kernel.forward, self._pooling.forward, pay=pay)

    def train(self, asked: Asked, table: Table, kernel: Kernel) -> Tensor:
        """The same with a gradient: its backward, called by all ranks, updates the rows of all."""

        from torchrec.distributed.comm_ops import get_gradient_division

        divided = float(self.group.world) if get_gradient_division() else 1.0

        def pool(request: Request, of: Table) -> Tensor:
            out_BW: Tensor = _Pool.apply(of.weight_ND, self._pooling, request, divided)
            return out_BW

        return self._output(asked, table, kernel.train, pool, pay=False)

    def _output(
        self,
        asked: Asked,
        table: Table,
        read: Callable[[Request, Table], Tensor],
        pool: Callable[[Request, Table], Tensor],
        *,
        pay: bool,
    ) -> Tensor:
        rows_R, context = asked.wait()
        own = Request.of_rows(rows_R, self.dim, len(table.weight_ND))
        if pay:
            table.pay(own)
        coming = self._output_dist(read(own, table), context)
        while self._asked:  # those asked ahead: their sizes have come meanwhile
            self._asked.pop(0).send()
        return pool(asked.request, _as_table(coming.wait().view(-1, self.dim)))


class Asked:
    """Rows on their way to their owners since ``Exchange.ask``: first how many, then which.

    Args:
        request: the lookups, with the rows' places among the distinct ones.
        sizes: torchrec's, to be waited for twice.
        context: torchrec's, of how they are answered.
    """

    def __init__(self, request: Request, sizes: Any, context: Any) -> None:
        from torchrec.distributed.embedding import EmbeddingCollectionContext
        from torchrec.distributed.embedding_sharding import KJTListSplitsAwaitable

        self.request, self._context = request, EmbeddingCollectionContext([context])
        self._sizes = KJTListSplitsAwaitable([sizes], self._context)
        self._rows: Any = None
        device = request.tokens.values_N.device
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def send(self) -> None:
        """Wait until it is known how many rows are asked of whom, and begin to send which."""
        if self._rows is None:
            with torch.cuda.stream(self._stream):
                self._rows = self._sizes.wait()

    @torch.no_grad()
    def wait(self) -> tuple[Tensor, Any]:
        """The rows that are asked of this rank, counted from its first; torchrec's context to answer them by."""
        self.send()
        (found,), (context,) = self._rows.wait(), self._context.sharding_contexts
        context.lengths_after_input_dist = found.lengths().view(-1, found.stride())
        if self._stream is not None:  # its memory is not to be used again before the present stream is done with it
            present = torch.cuda.current_stream(self._stream.device)
            for of in (found, self._context, self.request.tokens):
                of.record_stream(present)
        return found.values(), context


class _Pool(torch.autograd.Function):
    """Pools a batch's vectors; the gradient of each is summed over its hits."""

    @staticmethod
    def forward(ctx: Any, vectors_UD: Tensor, kernel: TwoPassKernel, request: Request, divided: float) -> Tensor:
        out_BW, saved = kernel.begin(request, _as_table(vectors_UD))
        ctx.call = kernel, request, divided, vectors_UD.shape, saved
        return out_BW

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        kernel, request, divided, shape, saved = ctx.call
        summed_UD = torch.zeros(shape, device=grads[0].device)
        # A step of gradient descent from zero, at a rate that undoes torchrec's division by the world.
        kernel.update(request, _as_table(summed_UD, learning_rate=-divided), grads[0], saved)
        return summed_UD, None, None, None


def _as_table(vectors_UD: Tensor, learning_rate: float = 0.0) -> Table:
    return Table(weight_ND=vectors_UD, state={}, optimizer=_SUM, learning_rate=learning_rate, progress=np.zeros(2))


def _capacity(device: torch.device) -> int:
    """Bytes a rank's share of the table may take: what is free, of which the host's ranks have equal shares."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            known = dict(line.split(":", 1) for line in lines)
        free = int(known["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free // max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
