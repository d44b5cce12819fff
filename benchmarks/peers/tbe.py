"""FBGEMM's table-batched embedding (TBE) with the rows of an embstore table, in memory it takes itself."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from benchmarks.workloads import Case
from embstore.embeddings.unified import UnifiedEmbedding

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns about its own imports
    import fbgemm_gpu.split_table_batched_embeddings_ops_inference as inference
    import fbgemm_gpu.split_table_batched_embeddings_ops_training as training

KINDS = {"rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD", "adagrad": "EXACT_ADAGRAD", "sgd": "EXACT_SGD"}


def tbe(table: UnifiedEmbedding, *, own_memory: bool = True) -> Any:
    """FBGEMM's training TBE, one table that all features read, its fused optimizer the table's own.

    Its fastest settings here: no bounds check, float32 out. Without ``own_memory`` its rows are those of the table
    where they lie, on huge pages.
    """
    on_cpu = table.weight.device.type == "cpu"
    place = training.EmbeddingLocation.HOST if on_cpu else training.EmbeddingLocation.DEVICE
    compute = training.ComputeDevice.CPU if on_cpu else training.ComputeDevice.CUDA
    module = training.SplitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[(table.num_rows, table.dim, place, compute)],
        feature_table_map=[0] * len(table.plan.lookups),
        weights_precision=getattr(training.SparseType, {torch.float32: "FP32", torch.float16: "FP16"}[table.dtype]),
        output_dtype=training.SparseType.FP32,
        optimizer=getattr(training.OptimType, KINDS[table.optimizer.name]),
        learning_rate=table.optimizer.learning_rate,
        eps=table.optimizer.eps,
        pooling_mode=training.PoolingMode.SUM,
        device=table.weight.device,
        bounds_check_mode=training.BoundsCheckMode.NONE,
    )
    memory = "host" if on_cpu else "dev"
    if own_memory:
        getattr(module, f"weights_{memory}").data.copy_(table.weight.view(-1))
    else:
        getattr(module, f"weights_{memory}").data = table.weight.view(-1)
    if "sum" in table.table().state:
        getattr(module, f"momentum1_{memory}").data.copy_(table.table().state["sum"].view(-1))
    return module


def rows(module: Any, dim: int) -> Tensor:
    """The rows of a training TBE, ``[N, D]``, where they lie."""
    weights: Tensor = module.weights_host if module.weights_host.numel() else module.weights_dev
    return weights.detach().view(-1, dim)


def tbe_inference(table: UnifiedEmbedding) -> Any:
    """FBGEMM's inference TBE (forward only) on float32 rows."""
    fp32 = inference.SparseType.FP32
    module = inference.IntNBitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[("table", table.num_rows, table.dim, fp32, inference.EmbeddingLocation.HOST)],
        feature_table_map=[0] * len(table.plan.lookups),
        device="cpu",
        output_dtype=fp32,
        row_alignment=1,
        bounds_check_mode=inference.BoundsCheckMode.NONE,
    )
    module.initialize_weights()
    module.weights_host = table.weight.view(torch.uint8).view(-1).clone()
    return module


def narrow(case: Case) -> tuple[Tensor, Tensor]:
    """Rows and offsets as int32, which FBGEMM reads faster."""
    return case.rows_T.int(), case.offsets.int()
