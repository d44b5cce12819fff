"""The log."""

from __future__ import annotations

from pathlib import Path

import pytest
from days import LOG


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    for name, days in (("first", (0, 3)), ("second", (3, 6))):
        LOG.write(folder / name, rows=LOG.day_rows(*days))
    return folder
