"""torchrec's ``EmbeddingBagCollection``, unsharded, on an embstore table's memory."""

from __future__ import annotations

import warnings
from typing import Any

from benchmarks.workloads import Case
from embstore.embeddings.unified import UnifiedEmbedding

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns about its own imports
    import torchrec
    from torchrec.optim import RowWiseAdagrad, apply_optimizer_in_backward


def collection(table: UnifiedEmbedding, *, fused: bool = False) -> Any:
    """torchrec's ``EmbeddingBagCollection``, unsharded, one table for all features.

    Args:
        fused: with torchrec's own row-wise Adagrad in its backward (``apply_optimizer_in_backward``).
    """
    config = torchrec.EmbeddingBagConfig(
        name="table",
        num_embeddings=table.num_rows,
        embedding_dim=table.dim,
        feature_names=[feature.name for feature in table.features],
        pooling=torchrec.PoolingType.SUM,
    )
    module = torchrec.EmbeddingBagCollection(tables=[config])
    module.embedding_bags["table"].weight.data = table.weight
    if fused:
        settings = {"lr": table.optimizer.learning_rate, "eps": table.optimizer.eps}
        apply_optimizer_in_backward(RowWiseAdagrad, module.parameters(), settings)
    return module


def jagged(case: Case) -> Any:
    """The case's rows as a ``KeyedJaggedTensor`` whose offsets are made already."""
    kjt = torchrec.KeyedJaggedTensor(
        keys=list(case.tokens.names), values=case.rows_T, lengths=case.offsets.diff(), offsets=case.offsets
    )
    kjt.sync()
    return kjt
