"""An embedding feature store for CTR and recommendation models.

What is listed in ``__all__`` is public; it is imported when first asked for, so that ``import embstore`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Batch": "embstore.batch",
    "CtrModel": "embstore.ctr",
    "Dense": "embstore.schema",
    "EmbstoreError": "embstore.errors",
    "Feature": "embstore.schema",
    "FeatureTokens": "embstore.batch",
    "ParquetLog": "embstore.logs",
    "Run": "embstore.run",
    "RunConfig": "embstore.settings",
    "Schema": "embstore.schema",
    "Store": "embstore.store",
    "SyntheticLog": "embstore.synthetic",
    "TableOptimizer": "embstore.kernels",
    "Trainer": "embstore.training",
    "TrainingSettings": "embstore.training",
    "UnifiedEmbedding": "embstore.embeddings.unified",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embstore' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
