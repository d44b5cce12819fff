"""The greatest memory in use: of what is gone by the end, too."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.watching import Watched


def test_memory_that_was_freed_counts() -> None:
    with Watched() as watched:
        held = np.ones(8 * 2**20)
        time.sleep(0.2)
        del held
    assert 60 * 2**20 < watched.bytes < 160 * 2**20
