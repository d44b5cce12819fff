"""The Unified Embedding: one hashed table shared by all features (Coleman et al., NeurIPS 2023).

Each lookup of each feature hashes the value with a salt of its own into the one table; a feature's lookups are
concatenated. Collisions *between* features cost little: the model multiplies their numbers with different weights,
which turns the features' vectors apart (section 4 of the paper). Several lookups split a feature's risk of
collisions *within* it.

    batch of 2 rows                      rows of the table                       output [2, 2*dim + dim]
    user   "ann" | "bob"      ->         user lookup 0:  17 | 4                  [ w[17] w[90] | w[4] + w[33] ]
    tags   [a b] | []                    user lookup 1:  90 | 17                 [ w[4]  w[17] | 0            ]
                                         tags lookup 0:  4 33 |                    user           tags (sum)

Shape suffixes: B rows of the batch, W width, N table rows, D dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from embstore import hashing
from embstore.batch import Batch, FeatureTokens
from embstore.distributed import ALONE, Group
from embstore.embeddings.first_rows import first_rows
from embstore.encoding import encode_values
from embstore.errors import ConfigError, SchemaError, nearest
from embstore.kernels import Kernel, LookupPlan, Request, Table, TableOptimizer, choose
from embstore.kernels.cpu import CpuKernel
from embstore.kernels.reference import ReferenceKernel
from embstore.schema import Feature
from embstore.sharding.exchange import Exchange
from embstore.store.bundle import OptimizerState, TableSource
from embstore.store.table import VersionTable
from embstore.token_filter import TokenFilter

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class UnifiedEmbedding(nn.Module):
    """All categorical features in one table, trained by an optimizer fused into its backward pass.

    Args:
        features: in the order of the output.
        num_rows: N, the hashed rows; exact features add a block of their own behind them.
        dim: D, numbers per row.
        num_tables: equal sub-tables of the hashed rows; each lookup has one, by its salt.
        exact_tokens: for features with ``exact=True``: their known tokens, int64 bits, in any order
            (``embstore.vocabulary.exact_tokens`` collects them from a log).
        optimizer: of the table.
        dtype: of the rows: float32, float16, bfloat16 (the narrow ones are rounded stochastically).
        init_std: rows start as normal numbers with this deviation; the row that unknown values of an exact
            feature share starts at zero.
        frozen: exact features whose rows are never trained, nor decayed.
        kernel: ``"auto"``, ``"cpu"``, ``"gpu"``, ``"fbgemm"`` or ``"reference"`` (``embstore.kernels.choose``).
        seed: of the hashes and the first rows.
        device: where the table lies.
        rows: ``[N, D]`` of a table laid out alike (hashed rows, then exact blocks) to take instead of new ones, as they
            lie: nothing is copied.
        pruned: which values are looked up as others or as their feature's pruned token, wherever they are looked up: of
            a vocabulary (``TokenFilter.of``).
        group: processes that share the rows; each makes the table and calls it with batches of its own, all in step.

    ``shard`` are the rows that are here, all of them without a group; buffers hold those alone.

    Raises:
        ConfigError: sizes or settings that don't fit together.
        GroupError: a rank would have no rows.
        KernelError: a kernel asked for by name can't do this optimizer, dtype or device.

    >>> table = UnifiedEmbedding([Feature(name="user", lookups=2), Feature(name="tags")], num_rows=100, dim=4)
    >>> table.slices
    {'user': slice(0, 8, None), 'tags': slice(8, 12, None)}
    >>> table.lookup("user", ["ann", "bob", None]).shape
    torch.Size([3, 8])
    """

    weight: Tensor
    paid: Tensor | None
    touched: Tensor | None
    state_sum: Tensor  # of the Adagrads

    def __init__(
        self,
        features: Sequence[Feature],
        num_rows: int,
        dim: int,
        *,
        num_tables: int = 1,
        exact_tokens: Mapping[str, Tensor] | None = None,
        optimizer: TableOptimizer | None = None,
        dtype: torch.dtype = torch.float32,
        init_std: float = 0.01,
        frozen: Sequence[str] = (),
        kernel: str = "auto",
        seed: int = 0,
        device: torch.device | str = "cpu",
        rows: Tensor | None = None,
        pruned: TokenFilter | None = None,
        group: Group = ALONE,
    ) -> None:
        super().__init__()
        if dim < 1 or num_rows < 0:
            raise ConfigError(
                "table", expected="dim of 1 or more, rows of 0 or more", found=f"dim={dim}, rows={num_rows}"
            )
        if not (math.isfinite(init_std) and init_std >= 0):
            raise ConfigError("table init_std", expected="a finite number, 0 or more", found=str(init_std))
        if not 0 <= seed < 2**63:
            raise ConfigError("table seed", expected="0 to 2^63 - 1", found=str(seed))
        dtype = dtype if rows is None else rows.dtype
        if dtype not in DTYPES.values():
            raise ConfigError("table dtype", expected=", ".join(DTYPES), found=str(dtype))
        self.features = tuple(features)
        self.hashed_rows, self.num_tables, self.seed = num_rows, num_tables, seed
        self.optimizer, self.pruned = optimizer or TableOptimizer(), pruned
        self.plan = LookupPlan.build(
            self.features,
            num_rows=num_rows,
            dim=dim,
            num_tables=num_tables,
            seed=seed,
            exact_tokens={name: tokens.unique() for name, tokens in (exact_tokens or {}).items()},
        )
        device = torch.device(device)
        self._exchange = None if group.alone else Exchange(group, self.num_rows, dim, dtype, self.optimizer, device)
        self.shard = range(self.num_rows) if self._exchange is None else self._exchange.shard
        if rows is not None and (rows.shape != (len(self.shard), dim) or not rows.is_contiguous()):
            found = f"{list(rows.shape)}, {'' if rows.is_contiguous() else 'not '}contiguous"
            raise ConfigError("rows of the table", expected=f"[{len(self.shard)}, {dim}], contiguous", found=found)
        if rows is None:
            rows = first_rows(self.plan, self.shard, std=init_std, seed=seed, dtype=dtype, device=device)
        self.register_buffer("weight", rows)
        state = self.optimizer.state(len(self.shard), dim, device)
        for name, tensor in state.items():
            self.register_buffer(f"state_{name}", tensor)
        self._state_buffers = [(name, f"state_{name}") for name in state]
        self._freeze(frozen)
        self._trigger = torch.zeros(0, requires_grad=True)
        paid = torch.zeros(len(self.shard), dtype=torch.float64, device=device) if self.optimizer.l2 else None
        self.register_buffer("paid", paid)
        self.register_buffer("touched", None, persistent=False)
        self.learning_rate = self.optimizer.learning_rate
        self._progress = np.zeros(2)
        self._places: dict[str, Any] = {}
        self._kernel_wanted = kernel
        self.kernel: Kernel
        self.kernel_reason: str
        self._choose_kernel()
        self.register_load_state_dict_post_hook(lambda table, _: None if table.training else table.settle())

    @classmethod
    def restore(cls, source: TableSource, **settings: Any) -> UnifiedEmbedding:
        """The table that was published as ``source`` (``Version.table``), on its rows where they lie, mapped anew.

        Rows of float64, which no kernel has, are rounded to float32: a copy.

        Args:
            source: what ``describe``, ``exact_tokens`` and ``read_rows`` give.
            settings: ``optimizer``, ``kernel``, ``frozen`` and ``pruned``, as for a new table; the optimizer starts
                afresh. What a version's vocabulary prunes is ``pruned=version.pruned``.
        """
        about = source.describe()
        names = {f.name for f in fields(Feature)}
        rows_ND = source.own_rows() if isinstance(source, VersionTable) else source.read_rows(0, source.num_rows)
        return cls(
            [Feature(**{key: value for key, value in of.items() if key in names}) for of in about["features"]],
            about["hashed_rows"],
            source.dim,
            num_tables=about["num_tables"],
            exact_tokens=source.exact_tokens(),
            seed=about["seed"],
            rows=rows_ND.float() if rows_ND.dtype == torch.float64 else rows_ND,
            **settings,
        )

    @property
    def dim(self) -> int:
        """D: numbers per row."""
        return self.plan.dim

    @property
    def num_rows(self) -> int:
        """N: rows of the whole table, exact blocks included."""
        return self.plan.num_rows

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.weight.dtype

    @property
    def width(self) -> int:
        """W: numbers in an output row."""
        return self.plan.width

    @property
    def slices(self) -> dict[str, slice]:
        """Where each feature's numbers lie in the output."""
        return self.plan.slices

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each feature, ``lookups * dim``."""
        return tuple(feature.lookups * self.dim for feature in self.features)

    def forward(self, batch: Batch | FeatureTokens | KeyedJaggedTensor) -> Tensor:
        """Look a batch up.

        Args:
            batch: has every feature of the table (more are ignored). A ``KeyedJaggedTensor`` holds tokens as int64
            bits.

        Returns:
            float32 ``[B, W]``. In training mode with gradients on, its backward updates the table.

        Raises:
            SchemaError: a feature is missing.
        """
        training = self.training and torch.is_grad_enabled()
        if self._exchange is not None:
            asked = batch.asked if isinstance(batch, Batch) else None
            if asked is None:
                asked = self._exchange.ask(self.request(batch))
            if training:
                return self._exchange.train(asked, self.table(), self.kernel)
            return self._exchange.forward(asked, self.table(), self.kernel, pay=self.training)
        if training:
            return self.kernel.train(self.request(batch), self.table())
        return self._output(self.request(batch), self.kernel, pay=self.training)

    def prepare(self, batch: Batch) -> Batch:
        """The batch, with all begun of its lookup that the rows' values don't matter to: call it while others train.

        That is the exchange of which rows are asked for, where they are shared out: all ranks prepare the same batches
        at the same places between others, and look each up once. Else it is the batch itself.
        """
        return batch if self._exchange is None else replace(batch, asked=self._exchange.ask(self.request(batch)))

    @torch.no_grad()
    def _output(self, request: Request, kernel: Kernel, *, pay: bool) -> Tensor:
        table = self.table()
        if self._exchange is not None:
            return self._exchange.forward(self._exchange.ask(request), table, kernel, pay=pay)
        if pay:
            table.pay(request)
        return kernel.forward(request, table)

    def request(self, batch: Batch | FeatureTokens | KeyedJaggedTensor) -> Request:
        """The batch's tokens of this table's features, those of pruned values replaced."""
        tokens = batch.tokens if isinstance(batch, Batch) else batch
        if not isinstance(tokens, FeatureTokens):
            tokens = FeatureTokens.from_kjt(tokens)
        tokens = tokens.select(self.plan.names)
        return Request(tokens if self.pruned is None else self.pruned(tokens), self.plan)

    def table(self) -> Table:
        """The tensors and the place in training, as kernels take them."""
        buffers: dict[str, Any] = self._buffers
        return Table(
            weight_ND=buffers["weight"],
            state={name: buffers[buffer] for name, buffer in self._state_buffers},
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            progress=self._progress,
            paid_N=buffers["paid"],
            rounding_seed=self.seed,
            touched_N=buffers["touched"],
            first_row=self.shard.start,
            trigger=self._trigger,
            places=self._places,
        )

    @torch.no_grad()
    def settle(self) -> None:
        """Apply the penalty that rows still owe; do so before reading ``weight`` itself.

        Lookups, ``read_rows`` and ``eval()`` do it for what they read. A no-op when the optimizer has no ``l2``.
        """
        self.table().settle()

    def train(self, mode: bool = True) -> UnifiedEmbedding:
        """As ``nn.Module.train``; leaving training mode settles the table."""
        if self.training and not mode:
            self.settle()
        super().train(mode)
        return self

    @torch.no_grad()
    def lookup(self, feature: str, values: pa.Array | pa.ChunkedArray | Iterable[Any]) -> Tensor:
        """The vectors of raw values of one feature.

        Args:
            feature: name.
            values: raw values (what the log's column would hold, ``None`` for missing; lists for list features). For a
                feature with a transform also what the transform gives: ``lookup("hour", [17])``.

        Returns:
            float32 ``[len(values), lookups * dim]``.

        Raises:
            SchemaError: no such feature, values of a type that is not categorical, or what its transform can't give.
        """
        device = self.weight.device
        batch = encode_values(values, self.feature(feature))
        batch = (batch if self.pruned is None else self.pruned(batch)).to(device)
        kernel = CpuKernel() if device.type == "cpu" else ReferenceKernel()
        return self._output(Request(batch, self.plan.only(feature)), kernel, pay=True)

    def feature(self, name: str) -> Feature:
        """The feature of that name.

        Raises:
            SchemaError: there is none.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        raise SchemaError(f"no feature {name!r} in the table", do=nearest(name, self.plan.names))

    def grow(self, factor: int) -> UnifiedEmbedding:
        """A table with ``factor`` times the hashed rows in which every lookup returns what it returned here.

        New row r starts as old row r // factor, optimizer state included (hash spec, "growing"); exact blocks stay.

        Raises:
            ConfigError: the factor is no whole number of 1 or more, or the rows are shared out.
        """
        if not isinstance(factor, int) or factor < 1:
            raise ConfigError("grow", expected="a whole factor of 1 or more", found=str(factor))
        if self._exchange is not None:
            raise ConfigError("grow", expected="all rows here", found="a shard", do="grow a published version")
        self.settle()
        grown = deepcopy(self)
        grown.hashed_rows = self.hashed_rows * factor
        grown.plan = LookupPlan.build(
            self.features,
            num_rows=grown.hashed_rows,
            dim=self.dim,
            num_tables=self.num_tables,
            seed=self.seed,
            exact_tokens=self.plan.exact_tokens,
        )
        grown.shard = range(grown.num_rows)
        for name, tensor in list(self.named_buffers()):
            if len(tensor) == self.num_rows:
                hashed, exact = tensor[: self.hashed_rows], tensor[self.hashed_rows :]
                setattr(grown, name, torch.cat([hashed.repeat_interleave(factor, dim=0), exact]))
        return grown

    def describe(self) -> dict[str, Any]:
        """What a reader needs to find rows again (``embstore.store``): plain values only."""
        features = []
        for feature in self.features:
            blocks = [{"base": lo.base, "size": lo.size} for lo in self.plan.lookups if lo.feature == feature.name]
            features.append({**asdict(feature), "rows": blocks})
        return {
            "hash_spec": hashing.HASH_SPEC,
            "seed": self.seed,
            "hashed_rows": self.hashed_rows,
            "num_tables": self.num_tables,
            "features": features,
        }

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of ``shard`` on the host, ``[stop - start, dim]``, up to date with the penalty."""
        start, stop = start - self.shard.start, stop - self.shard.start
        with torch.no_grad():
            self.table().settle(start, stop)
        return self.weight[start:stop].cpu()

    @torch.no_grad()
    def gather(self, rows: Tensor) -> Tensor:
        """Rows of ``shard`` by number (int64, distinct) on the host, ``[len(rows), dim]``, a copy, penalty paid."""
        rows = rows.to(self.weight.device) - self.shard.start
        self.table().settle_rows(rows)
        return self.weight.index_select(0, rows).cpu()

    def track_changes(self) -> None:
        """From now on, remember which rows training changes: a byte a row, which checkpoints don't keep."""
        if self.touched is None:
            self.touched = torch.zeros(len(self.shard), dtype=torch.uint8, device=self.weight.device)

    def changed_rows(self) -> Tensor | None:
        """int64, ascending: rows of ``shard`` that may have changed since ``track_changes`` or ``forget_changes``.

        ``None`` when it isn't known: changes are not tracked, or a penalty changes all rows.
        """
        if self.touched is None or self.optimizer.l2:
            return None
        return self.touched.nonzero().flatten().cpu() + self.shard.start

    def forget_changes(self) -> None:
        """The present rows are what later changes are counted from."""
        if self.touched is not None:
            self.touched.zero_()

    def optimizer_state(self, dense: Mapping[str, Tensor] | None = None) -> OptimizerState:
        """What training goes on from, its tensors as they lie; ``dense``: of the network's optimizer."""
        table = {name: getattr(self, buffer) for name, buffer in self._state_buffers}
        if self.paid is not None:
            table["paid"] = self.paid
        steps, rates = self._progress
        return OptimizerState(
            name=self.optimizer.name, steps=int(steps), rates=float(rates), table=table, dense=dense or {}
        )

    @torch.no_grad()
    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Go on from what a version holds (``Version.optimizer_state``).

        Raises:
            ConfigError: it is of another optimizer, or of a table of another shape.
        """
        own = self.optimizer_state()
        shapes = {name: tuple(tensor.shape) for name, tensor in own.table.items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.table.items()}
        if state.name != own.name or found != shapes:
            raise ConfigError(
                "optimizer state",
                expected=f"of {own.name}: {shapes}",
                found=f"of {state.name}: {found}",
                do="take the optimizer the version was trained with, or start its state afresh",
            )
        for name, tensor in own.table.items():
            tensor.copy_(state.table[name])
        self._progress[:] = state.steps, state.rates

    def exact_tokens(self) -> dict[str, Tensor]:
        """Sorted int64 tokens of each exact feature."""
        return dict(self.plan.exact_tokens)

    def get_extra_state(self) -> Tensor:
        """Steps done and learning rates summed: float64 ``[2]``."""
        return torch.from_numpy(self._progress.copy())

    def set_extra_state(self, state: Tensor) -> None:
        """What ``get_extra_state`` gave."""
        self._progress[:] = state.cpu().numpy()

    def extra_repr(self) -> str:
        """Shown by ``print(table)``."""
        exact = self.num_rows - self.hashed_rows
        rows = f"{self.hashed_rows:,} hashed" + (f" + {exact:,} exact" if exact else "") + f" rows x {self.dim}"
        return f"{rows}, {len(self.features)} features, {self.optimizer.name}, kernel {self.kernel.name}"

    def _freeze(self, features: Sequence[str]) -> None:
        """An infinite sum of squares makes every step, and the penalty's, nought: in all kernels, and wherever the
        state goes (checkpoints, versions, other ranks)."""
        if features and "sum" not in dict(self._state_buffers):
            expected = "rowwise_adagrad or adagrad, whose state can hold rows still"
            raise ConfigError("table.optimizer with frozen features", expected=expected, found=self.optimizer.name)
        self.frozen_rows = 0  # of the whole table
        for name in features:
            if not self.feature(name).exact:
                raise ConfigError(f"frozen feature {name!r}", expected="an exact one", found="one that shares rows")
            for lookup in self.plan.only(name).lookups:
                first = max(lookup.base - self.shard.start, 0)
                last = max(lookup.base + lookup.size - self.shard.start, 0)
                self.state_sum[first:last] = torch.inf
                self.frozen_rows += lookup.size

    def _apply(self, fn: Any, recurse: bool = True) -> UnifiedEmbedding:
        """``to``, ``cuda`` and their like: another device is fine, another dtype would break the optimizer's state."""
        for dtype in {self.weight.dtype, torch.float64}:
            if fn(torch.empty(0, dtype=dtype, device=self.weight.device)).dtype != dtype:
                raise ConfigError(
                    "dtype of a table",
                    expected=str(self.weight.dtype),
                    found="a cast",
                    do="make the table with dtype=...; cast the network alone",
                )
        super()._apply(fn, recurse)
        self._choose_kernel()
        return self

    def _choose_kernel(self) -> None:
        self.kernel, self.kernel_reason = choose(
            self._kernel_wanted,
            optimizer=self.optimizer,
            dtype=self.dtype,
            device=self.weight.device,
            dim=self.dim,
            shared=self._exchange is not None,
        )
