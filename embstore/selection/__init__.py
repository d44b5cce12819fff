"""Which fields and values to keep: scores by methods that read a log's rows as sparse columns.

    log + vocabulary ──Columns──> SparseBatch ──fit──> Scores

Feature Gradients (Sheth & Fusi 2020) are in ``feature_gradients``; docs/selection.md says what they can find.
"""

from embstore.selection.batches import Layout, SparseBatch
from embstore.selection.data import Columns, Cross, LogBatches
from embstore.selection.feature_gradients import FeatureGradients, FeatureGradientsSettings, fit
from embstore.selection.scores import Scores
from embstore.selection.standardization import Standardization, Statistics

__all__ = [
    "Columns",
    "Cross",
    "FeatureGradients",
    "FeatureGradientsSettings",
    "Layout",
    "LogBatches",
    "Scores",
    "SparseBatch",
    "Standardization",
    "Statistics",
    "fit",
]
