"""The usual torchrec script: a table per feature, sharded by torchrec's planner, with torchrec's fused optimizer.

Nothing is tuned against it: ``EmbeddingBagCollection``, the stock planner and sharders, ``DistributedModelParallel``
(whose dense part is DDP), as torchrec's own examples have them.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns about its own imports
    import torchrec
    from torchrec.distributed.model_parallel import DistributedModelParallel, get_default_sharders
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.optim import RowWiseAdagrad, apply_optimizer_in_backward


class PerFeature(nn.Module):
    """A network over the features' vectors, each from a table of its own."""

    def __init__(self, names: list[str], rows: int, dim: int, network: nn.Module) -> None:
        super().__init__()
        tables = [
            torchrec.EmbeddingBagConfig(
                name=f"table_{name}", num_embeddings=rows, embedding_dim=dim, feature_names=[name]
            )
            for name in names
        ]
        self.embedding = torchrec.EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
        self.network = network

    def forward(self, dense_BD: Tensor, ids: Any) -> Tensor:
        """Logits float32 ``[B]`` of a batch whose ids are a ``KeyedJaggedTensor``."""
        logits_B: Tensor = self.network(dense_BD, self.embedding(ids).values())
        return logits_B


def per_feature(
    names: list[str], rows: int, dim: int, network: nn.Module, *, batch: int, learning_rate: float, eps: float
) -> DistributedModelParallel:
    """The model, sharded over the process group.

    Args:
        rows: of each table.
        batch: rows of a rank's batch, for the planner.
        learning_rate, eps: of row-wise Adagrad.
    """
    model = PerFeature(names, rows, dim, network)
    apply_optimizer_in_backward(RowWiseAdagrad, model.embedding.parameters(), {"lr": learning_rate, "eps": eps})
    world = dist.get_world_size()
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, local_world_size=world, compute_device="cpu"), batch_size=batch
    )
    sharders = get_default_sharders()
    plan = planner.collective_plan(model, sharders, dist.GroupMember.WORLD)
    return DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=sharders)


def jagged(names: list[str], ids_FB: Tensor) -> Any:
    """One id a feature and row: int64 ``[F, B]`` as a ``KeyedJaggedTensor``."""
    return torchrec.KeyedJaggedTensor(
        keys=names, values=ids_FB.flatten(), lengths=torch.ones(ids_FB.numel(), dtype=torch.int32)
    )
