"""The next batch made ready while the present one is trained: copied to the device, its rows asked of their owners.

    batch n        ready │ forward, backward, update │
    batch n + 1          │ copied, rows told ...     │ forward, backward, update │

What is begun goes on beside the present batch: in the process group's threads, on a GPU on a stream of its own. It is
the order of torchrec's ``TrainPipelineSparseDist``, for a table that is none of its modules. Rows' numbers don't depend
on their values: results are the same bits as without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any

import torch

from embstore.batch import Batch
from embstore.embeddings.unified import UnifiedEmbedding


def look_ahead(batches: Iterable[Batch], table: UnifiedEmbedding) -> Iterator[Batch]:
    """The batches, each on the table's device and prepared for it, and each begun before the one before it is given.

    All ranks that share the table iterate alike. What is left when they stop was not looked up, and may be again.
    """
    device = table.weight.device
    side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begun(batch: Batch) -> tuple[Batch, Any]:
        if side is None:
            return table.prepare(batch), None
        with torch.cuda.stream(side):
            return table.prepare(batch.pin_memory().to(device)), side.record_event()

    end: Any = None
    for (batch, copied), _ in pairwise(chain(map(begun, batches), [end])):
        if side is not None:
            present = torch.cuda.current_stream(device)
            present.wait_event(copied)
            batch.record_stream(present)
        yield batch
