"""One table as a torchrec ``EmbeddingCollection``, sharded by rows as torchrec's planner says."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from embstore.errors import KernelError


@dataclass(frozen=True, kw_only=True)
class RowWise:
    """What torchrec makes of the table.

    Args:
        module: the ``EmbeddingCollection``, on the meta device: it takes no memory.
        plan: the planner's, by name of the table: its ``ParameterSharding``.
        option: the planner's choice, with what it estimates of each shard.
    """

    module: Any
    plan: Any
    option: Any


def load_torchrec() -> None:
    """Import torchrec.

    Raises:
        KernelError: not installed, or it doesn't go with torch or FBGEMM.
    """
    with quiet():
        try:
            import_module("torchrec.distributed.planner.types")
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            raise KernelError(
                "torchrec can't be loaded",
                expected=f"torchrec, with the FBGEMM that goes with torch {torch.__version__}",
                found=str(error).split("\n")[0],
            ) from error


def plan_row_wise(
    *,
    rows: int,
    dim: int,
    dtype: str,
    optimizer: str,
    batch: int,
    pooling: float,
    topology: Any,
    load_factor: float | None = None,
) -> RowWise:
    """Let ``EmbeddingShardingPlanner`` shard a table by rows; call it within ``quiet``.

    Args:
        dtype: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        optimizer: name, as ``TableOptimizer`` has it; fused into the backward pass.
        batch: samples of a rank.
        pooling: different rows per sample.
        topology: a torchrec ``Topology``: ranks, their memory and links.
        load_factor: share of the rows cached on the GPU, of a table in host memory.

    Raises:
        PlannerError: it doesn't fit the ranks.
    """
    from torchrec import optim
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import ParameterConstraints
    from torchrec.distributed.types import CacheParams, ShardingType
    from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
    from torchrec.modules.embedding_modules import EmbeddingCollection
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    kernel = EmbeddingComputeKernel.FUSED if load_factor is None else EmbeddingComputeKernel.FUSED_UVM_CACHING

    class RowWiseSharder(EmbeddingCollectionSharder):
        # The stock sharder has no row-wise sharding for CPUs.
        def sharding_types(self, compute_device_type: str) -> list[str]:
            return [ShardingType.ROW_WISE.value]

        def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
            return [kernel.value]

    data_type = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}[dtype]
    config = EmbeddingConfig(
        name="table", num_embeddings=rows, embedding_dim=dim, feature_names=["table"], data_type=data_type
    )
    table = EmbeddingCollection(tables=[config], device=torch.device("meta"))
    optimizers = {
        "rowwise_adagrad": optim.RowWiseAdagrad,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
    }
    apply_optimizer_in_backward(optimizers[optimizer], table.parameters(), {"lr": 0.1})
    constraint = ParameterConstraints(
        sharding_types=[ShardingType.ROW_WISE.value],
        compute_kernels=[kernel.value],
        pooling_factors=[pooling],
        cache_params=None if load_factor is None else CacheParams(load_factor=load_factor),
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch,
        constraints={"table": constraint},
        storage_reservation=FixedPercentageStorageReservation(0.0),
        stats=[],
        debug=False,
    )
    (plan,) = planner.plan(table, [RowWiseSharder()]).plan.values()
    (option,) = planner._best_plan  # the plan itself has no estimates
    return RowWise(module=table, plan=plan, option=option)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torchrec logs and warns of while it is imported and plans."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
