"""How good a model is on a labelled log."""

from __future__ import annotations

import torch

from embstore.ctr import CtrModel
from embstore.distributed import ALONE, Group
from embstore.errors import ConfigError
from embstore.logs import ParquetLog
from embstore.metrics import Evaluation
from embstore.progress import Progress, no_progress


@torch.no_grad()
def evaluate(
    model: CtrModel,
    log: ParquetLog,
    batch_size: int,
    *,
    progress: Progress = no_progress,
    label: str = "evaluate",
    group: Group = ALONE,
) -> dict[str, float]:
    """Metrics of a model in eval mode on a labelled log.

    Args:
        model: left in eval mode.
        log: its schema names the label.
        batch_size: rows looked up together; the result doesn't depend on it, up to float32 rounding of the network.
        group: whose ranks look up a part of each batch; the metrics are of all rows, and the same on each rank.

    Raises:
        ConfigError: the schema has no label.
        DataError: a row that can't be used, or logits that are not finite.
    """
    model.eval()
    evaluation = Evaluation()
    with progress(label, log.rows) as bar:
        for batch in log.batches(batch_size, rank=group.rank, world_size=group.world):
            logits_B = model(batch.to(model.table.weight.device))
            if batch.label_B is None:
                raise ConfigError(
                    "evaluation", expected="a schema with a label", found="none", do="set label: in the schema"
                )
            evaluation.update(logits_B, batch.label_B, batch.weight_B, batch.group_B)
            bar.advance(batch.step_rows)
    if group.alone:
        return evaluation.result()
    arrays = {name: torch.from_numpy(array) for name, array in evaluation.state_arrays().items()}
    parts = {name: group.collect(array) for name, array in arrays.items()}
    whole = Evaluation.from_arrays({name: torch.cat(of) for name, of in parts.items()})
    result: dict[str, float] = group.told(whole.result() if group.first else None)
    return result
