"""torch's own ``nn.EmbeddingBag`` on an embstore table's memory, as the benchmarks run it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from benchmarks.workloads import Case
from embstore.embeddings.unified import UnifiedEmbedding


def bags(weight_ND: Tensor, case: Case, *, sparse: bool = False) -> Tensor:
    """``F.embedding_bag`` over rows in batch order, ``[B, W]``; one-value bags as ``[B*F, 1]``: its fastest."""
    rows = case.tokens.rows
    if not case.tokens.offsets:
        out = functional.embedding_bag(case.bag_rows_T[:, None], weight_ND, mode="sum", sparse=sparse)
    else:
        out = functional.embedding_bag(
            case.bag_rows_T, weight_ND, case.bag_offsets, mode="sum", sparse=sparse, include_last_offset=True
        )
    return out.view(rows, -1)


def bag_parameter(table: UnifiedEmbedding) -> nn.Parameter:
    """The weight of an ``nn.EmbeddingBag``."""
    return nn.Parameter(table.weight)
