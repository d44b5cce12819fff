"""Which values of a vocabulary to keep, by a log: scores of fields and values, and a vocabulary without the worst.

log + vocabulary ──select──> selection/    fields.parquet, columns.parquet
vocabulary + selection ──prune──> pruned/  the vocabulary again, with fewer values kept
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embstore.errors import ConfigError
from embstore.logs import ParquetLog
from embstore.progress import Progress, no_progress
from embstore.selection import Columns, FeatureGradientsSettings, LogBatches, Scores, fit
from embstore.threads import usable_cores
from embstore.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """Which values are dropped.

    Args:
        share: of the kept values of all features, those with the least scores.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError("prune.share", expected="a share from 0, below 1", found=str(self.share))


def select(
    log: ParquetLog,
    vocabulary: Vocabulary,
    settings: FeatureGradientsSettings,
    output: Path,
    *,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Score the fields and values of a log, and write the scores.

    Returns:
        ``fields``: names, the best first, with their scores.

    Raises:
        DataError: a log of one class.
        StoreError: ``output`` exists.
    """
    columns = Columns(schema=log.schema, vocabulary=vocabulary)
    settings = replace(settings, threads=min(settings.threads, usable_cores()))
    with progress("select", log.rows * settings.epochs) as bar:
        batches = LogBatches(log=log, columns=columns)
        scores = fit(batches, columns.layout, settings, progress=lambda step: bar.advance(step.rows))
    scores.to_parquet(output)
    best = scores.top_fields(len(columns.layout.fields))
    by_name = dict(zip(columns.layout.fields, scores.field_F.tolist(), strict=True))
    return {"fields": {name: by_name[name] for name in best}, "columns": columns.layout.columns}


def prune(vocabulary: Vocabulary, scores: Scores, settings: PruneSettings, output: Path) -> dict[str, Any]:
    """Drop the kept values whose scores are the least; of equals, the one that comes first stays.

    Args:
        scores: by this vocabulary.

    Returns:
        ``kept`` and ``dropped``, numbers of values; ``features``, by name how many were dropped of each.
    """
    bounds_F, of_kept = scores.layout.bounds_F, {name: int(of.kept.sum()) for name, of in vocabulary.items()}
    first = {name: int(bounds_F[scores.layout.names.index(name)]) for name in vocabulary}
    score_V = np.concatenate([scores.log_column_D[first[name] :][: of_kept[name]] for name in vocabulary])
    dropped_V = np.zeros(len(score_V), np.bool_)
    dropped_V[np.argsort(score_V[::-1], kind="stable")[: int(settings.share * len(score_V))]] = True
    dropped_V = dropped_V[::-1]
    out, begin, features = {}, 0, {}
    for name, of in vocabulary.items():
        part_V = dropped_V[begin : begin + of_kept[name]]
        begin += of_kept[name]
        kept = of.kept.copy()
        kept[kept] = ~part_V
        out[name], features[name] = of.keep(kept), int(part_V.sum())
    Vocabulary(out).to_parquet(output)
    return {"kept": int((~dropped_V).sum()), "dropped": int(dropped_V.sum()), "features": features}
