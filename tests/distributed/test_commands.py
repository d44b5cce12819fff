"""``embstore train`` as torchrun starts it on each rank: who says what, and what they end with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ranks import free_port
from runs import config, write_logs

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_logs(tmp_path_factory.mktemp("logs"))


def _started(*settings: dict[str, Any], folder: Path) -> list[subprocess.Popen[str]]:
    """A rank for each of these configs."""
    processes, port = [], free_port()
    for rank, of in enumerate(settings):
        path = folder / f"{rank}.yaml"
        path.write_text(yaml.safe_dump(of))
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(len(settings)), "OMP_NUM_THREADS": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(len(settings))}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "embstore", "train", str(path)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    return processes


def _ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.mark.slow
def test_what_all_ranks_fail_at_is_said_once(logs: Path, tmp_path: Path) -> None:
    plain = config(logs, tmp_path / "run")
    for of, message in (
        ({**plain, "training": {"batch_size": 1}}, "error GroupError: batches of 1 rows"),
        ({**plain, "tabel": {}}, "error ConfigError: config: unknown key 'tabel'"),
    ):
        (code, said), other = _ended(_started(of, of, folder=tmp_path))
        assert (code, said.count("error")) == (1, 1)
        assert said.startswith(message)
        assert other == (1, "")


@pytest.mark.slow
def test_what_one_rank_fails_at_it_says_itself(logs: Path, tmp_path: Path) -> None:
    plain = config(logs, tmp_path / "run")
    (code, zero), (other, one) = _ended(_started(plain, {**plain, "tabel": {}}, folder=tmp_path))
    assert (code, other) == (1, 1)
    assert one.startswith("error ConfigError: config: unknown key 'tabel'")
    assert "error LostRankError: rank 0 of 2 lost another" in zero


@pytest.mark.slow
def test_a_run_that_is_stopped_says_so_once(logs: Path, tmp_path: Path) -> None:
    """Its schema is inferred: that is shown when it starts, by rank 0, and not when it goes on."""
    plain = config(logs, tmp_path / "run")
    del plain["schema"]
    plain["label"], plain["training"]["epochs"] = "click", 10_000
    for first in (True, False):
        metrics = tmp_path / "run" / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        processes = _started(plain, plain, folder=tmp_path)
        until = time.monotonic() + 200
        while time.monotonic() < until and all(process.poll() is None for process in processes):
            if metrics.exists() and metrics.stat().st_size > before:
                break
            time.sleep(0.05)
        processes[0].send_signal(signal.SIGINT)
        (code, said), other = _ended(processes)
        assert (code, said.count("stopped at step")) == (130, 1), said
        assert other == (130, "")
        assert said.count("schema, inferred") == first
