"""The public API is what ``embstore.__all__`` lists: a change of it is a change users see."""

from __future__ import annotations

import subprocess
import sys

import pytest

import embstore

PUBLIC = {
    *("Batch", "CtrModel", "Dense", "EmbstoreError", "Feature", "FeatureTokens", "ParquetLog", "Run", "RunConfig"),
    *("Schema", "Store", "SyntheticLog", "TableOptimizer", "Trainer", "TrainingSettings", "UnifiedEmbedding"),
}


def test_names() -> None:
    assert set(embstore.__all__) == PUBLIC
    assert all(getattr(embstore, name).__name__ == name for name in PUBLIC)
    with pytest.raises(AttributeError, match="nothing"):
        _ = embstore.nothing


def test_importing_it_loads_neither_torch_nor_arrow() -> None:
    code = "import sys, embstore; sys.exit(bool({'torch', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
