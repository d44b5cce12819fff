"""The whole CTR model: tokens -> table, dense columns -> normalizer, both -> network -> logits.

    batch ── tokens_N ──> UnifiedEmbedding ── embedded_BW ──┐
          └─ dense_BD ──> StreamingNormalizer ── dense_BD ──┴─> network ──> logits_B

Shape suffixes: B rows of the batch, N tokens, D dense columns, W width of the table's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from embstore.batch import Batch
from embstore.checkpoints import load_into
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.normalization import StreamingNormalizer
from embstore.store import Version

BuildNetwork = Callable[..., nn.Module]
NetworkDescription = dict[str, Any]  # {"name", "settings", "dense_width", "widths"}, as a version's manifest has it


class CtrModel(nn.Module):
    """A table, a normalizer and a network.

    Args:
        table: looks the features up.
        normalizer: of the dense columns; learns their means and deviations while training.
        network: any module with ``forward(dense_BD, embedded_BW) -> logits_B``.
    """

    def __init__(self, table: UnifiedEmbedding, normalizer: StreamingNormalizer, network: nn.Module) -> None:
        super().__init__()
        self.table, self.normalizer, self.network = table, normalizer, network

    def forward(self, batch: Batch) -> Tensor:
        """Logits, float32 ``[B]``."""
        if self.training:
            self.normalizer.update(batch.dense_BD)
        logits_B: Tensor = self.network(self.normalizer(batch.dense_BD), self.table(batch))
        return logits_B

    def dense_state(self) -> dict[str, Tensor]:
        """Everything but the table: the tensors of ``normalizer.`` and ``network.``."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("table.")}

    def load_dense(self, tensors: Mapping[str, Tensor], *, origin: str) -> None:
        """What ``dense_state`` gave, back in place.

        Raises:
            CheckpointError: it is of another network.
        """
        dense = nn.ModuleDict({"normalizer": self.normalizer, "network": self.network})
        load_into(dense, tensors, origin=origin)

    @classmethod
    def restore(cls, version: Version, build: BuildNetwork) -> CtrModel:
        """The model of a published version, in eval mode; its table is mapped, not copied, and honours its vocabulary.

        Args:
            version: an opened version.
            build: ``embstore.models.build``, or what built the network that was published.

        Raises:
            CheckpointError: ``build`` makes another network than the one published.
        """
        model = cls(
            UnifiedEmbedding.restore(version.table, pruned=version.pruned),
            StreamingNormalizer(version.schema.dense),
            build_network(build, version.manifest["model"]),
        )
        model.load_dense(version.dense, origin=f"version {version.id}")
        return model.eval()


def build_network(build: BuildNetwork, description: NetworkDescription) -> nn.Module:
    """A network as its description says; its first weights come from torch's default generator."""
    settings = {"dense_width": description["dense_width"], "widths": description["widths"], **description["settings"]}
    return build(description["name"], **settings)
