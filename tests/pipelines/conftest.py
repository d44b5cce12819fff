"""A Ray cluster and a run on it that nothing disturbs; torch with one thread."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shown import Shown
from watched import WORKERS, Recording, run_config, write_logs

from embstore.pipelines.train import train


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The models are so small that threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Address of a cluster of two cores that this process is connected to."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_V2_ENABLED", "1")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers find what tests send them
        patch.delenv("RAY_ADDRESS", raising=False)
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
        found = ray.init(num_cpus=WORKERS, **quiet)
        yield found.address_info["gcs_address"]
        ray.shutdown()


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_logs(tmp_path_factory.mktemp("ray-logs"))


@pytest.fixture(scope="session")
def undisturbed(cluster: str, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run by two workers comes to: its folder, result, steps written down and what was shown."""
    folder, seen, shown = tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("seen"), Shown()
    result = train(run_config(logs, folder), Recording(seen), workers=WORKERS, progress=shown)
    return {"folder": folder, "seen": seen, "result": result, "shown": shown}
