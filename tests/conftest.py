"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Without a GPU, Triton's kernels run under its interpreter; it must be told before the first is made.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

settings.register_profile("embstore", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("embstore")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """The folder of a real data set kept beside the project; skips where there is none."""

    def folder(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.is_dir():
            pytest.skip(
                f"needs the data set {name!r} in {SHARED_DATA.parent.name}/{SHARED_DATA.name} beside the project"
            )
        return path

    return folder
