"""Runs on a Ray cluster: what they end with when workers are killed, and how they fail."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from shown import Shown
from watched import WORKERS, Breaking, Recording, recorded, run_config

from embstore import models
from embstore.checkpoints import Checkpoints
from embstore.cli.train import train as command
from embstore.config import parse
from embstore.errors import ConfigError, DataError, GroupError, LogError, SchemaError, StoreError
from embstore.pipelines import train as on_ray
from embstore.pipelines.train import _check_room, train
from embstore.run import Run
from embstore.settings import RunConfig

KILLS, RUNS = 10, 3


def _files(folder: Path) -> dict[str, bytes]:
    """What a run ends with: tables, both optimizers' state, network, where it stands, metrics, result."""
    paths = [*folder.rglob("checkpoints/*/*"), folder / "metrics.jsonl", folder / "result.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _counted(seen: Path) -> dict[tuple[int, int], Counter[int]]:
    """The rows of each step that counts, by where it stands in the log: a group that went on from a checkpoint replaced
    all that earlier ones did after it."""
    by_group: list[list[dict[str, Any]]] = []
    for number, (_, _, steps) in enumerate(recorded(seen)):
        if number % WORKERS == 0:
            by_group.append([])
        by_group[-1] += steps
    counted: dict[tuple[int, int], Counter[int]] = {}
    for steps in by_group:
        ours: dict[tuple[int, int], Counter[int]] = {}
        for step in steps:
            ours.setdefault((step["epoch"], step["row"]), Counter()).update(step["ids"])
        first = min(ours, default=(sys.maxsize, 0))
        counted = {place: rows for place, rows in counted.items() if place < first} | ours
    return counted


def _check_once(seen: Path, rows: int, epochs: int) -> None:
    total = sum(_counted(seen).values(), Counter())
    assert len(total) == rows
    assert set(total.values()) == {epochs}


def test_what_worker_0_shows_is_shown_here(undisturbed: dict[str, Any], logs: Path) -> None:
    shown, rows = undisturbed["shown"], pq.read_table(logs / "train").num_rows
    metrics = [json.loads(line) for line in (undisturbed["folder"] / "metrics.jsonl").read_text().splitlines()]
    assert shown.records == metrics
    assert undisturbed["result"]["valid"]["auc"] == max(record["valid_auc"] for record in metrics) > 0.6
    assert shown.open == 0
    assert shown.lines == ["starting 2 workers"]
    assert shown.finished == [undisturbed["folder"]]
    assert [bar.label for bar in shown.bars] == ["exact", "train", *["evaluate"] * (len(metrics) + 1)]
    trained = shown.bars[1]
    assert (trained.total, trained.rows) == (2 * rows, 2 * rows)
    assert sum(len(labels) for labels, _ in trained.parts) == pytest.approx(rows, abs=36)  # its half of each batch
    assert all(labels.shape == logits.shape for labels, logits in trained.parts)
    _check_once(undisturbed["seen"], rows, epochs=2)


class _Killer:
    """Kills a worker of a run so many times, each time when its group has done so many steps, and a while later."""

    def __init__(self, seen: Path, kills: int, draw: random.Random) -> None:
        self.seen, self.kills, self.draw = seen, kills, draw
        self.killed: list[int] = []
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> _Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._thread.join()

    def _work(self) -> None:
        while len(self.killed) < self.kills and not self.over.is_set():
            steps, group = self.draw.randrange(8), len(self.killed) + 1
            while not self.over.wait(0.002):
                found = recorded(self.seen)[WORKERS * (group - 1) :]
                if len(found) == WORKERS and min(len(done) for *_, done in found) >= steps:
                    break
            else:
                return
            time.sleep(self.draw.random() * 0.05)
            victim = found[self.draw.randrange(WORKERS)][1]
            os.kill(victim, signal.SIGKILL)
            self.killed.append(victim)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(RUNS))
def test_killed_workers_leave_no_trace(undisturbed: dict[str, Any], logs: Path, tmp_path: Path, number: int) -> None:
    """Ten kills over all runs. Each run ends by itself, bit by bit as undisturbed, each row trained once an epoch."""
    kills = KILLS // RUNS + (number < KILLS % RUNS)
    folder, seen, shown = tmp_path / "run", tmp_path / "seen", Shown()
    seen.mkdir()
    with _Killer(seen, kills, random.Random(number)) as killer:
        result = train(run_config(logs, folder), Recording(seen), workers=WORKERS, restarts=kills, progress=shown)
    assert len(killer.killed) == len(set(killer.killed)) == kills
    assert len(recorded(seen)) == WORKERS * (kills + 1)
    assert result == undisturbed["result"]
    assert _files(folder) == _files(undisturbed["folder"])
    assert _counted(seen) == _counted(undisturbed["seen"])
    _check_once(seen, pq.read_table(logs / "train").num_rows, epochs=2)
    assert shown.lines.count("a worker was lost; all start again from the last checkpoint") == kills
    assert shown.open == 0


@pytest.mark.slow
def test_one_worker_is_the_plain_run(cluster: str, logs: Path, tmp_path: Path) -> None:
    shown = Shown()
    ours = train(run_config(logs, tmp_path / "ray"), models.build, workers=1, progress=shown)
    assert shown.lines[0] == "starting 1 worker"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray has it in a worker of one core
    try:
        plain = Run(run_config(logs, tmp_path / "plain"), models.build).train()
    finally:
        torch.set_num_threads(threads)
    assert ours == plain
    assert _files(tmp_path / "ray") == _files(tmp_path / "plain")


@pytest.mark.slow
def test_a_group_that_dies_too_often_is_given_up(cluster: str, logs: Path, tmp_path: Path) -> None:
    config = run_config(logs, tmp_path / "run")
    (tmp_path / "seen").mkdir()
    with (
        _Killer(tmp_path / "seen", 1, random.Random(0)),
        pytest.raises(GroupError, match=r"given up; .* at most 0 restarts; .*goes on from the last") as raised,
    ):
        train(config, Recording(tmp_path / "seen"), workers=WORKERS, restarts=0)
    assert str(tmp_path / "run") in str(raised.value)
    assert "health check failed" in raised.value.found


@pytest.mark.slow
def test_a_bug_is_shown_with_its_traceback(cluster: str, logs: Path, tmp_path: Path) -> None:
    shown = Shown()
    with pytest.raises(GroupError, match="ZeroDivisionError: a bug of the network"):
        train(run_config(logs, tmp_path), Breaking(), workers=WORKERS, restarts=0, progress=shown)
    assert any("Traceback" in line and "in __call__" in line for line in shown.lines)


def _spoiled(logs: Path, folder: Path) -> Path:
    """The training log with a label that is neither 0 nor 1 in its last row."""
    table = pq.read_table(logs / "train")
    labels = table["click"].to_pylist()
    labels[-1] = 7
    column = pa.array(labels, table.schema.field("click").type)
    shutil.copytree(logs / "valid", folder / "valid")
    (folder / "train").mkdir()
    pq.write_table(
        table.set_column(table.schema.get_field_index("click"), "click", column), folder / "train" / "log.parquet"
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("missing log", LogError, "absent"),
        ("bad label", DataError, "click"),
        ("more ranks than rows", GroupError, "batches of 1 rows"),
    ],
)
def test_what_is_wrong_with_the_run_is_not_tried_again(
    cluster: str, logs: Path, tmp_path: Path, what: str, error: type[Exception], message: str
) -> None:
    seen, shown = tmp_path / "seen", Shown()
    seen.mkdir()
    where = {"missing log": tmp_path / "absent", "bad label": _spoiled(logs, tmp_path)}.get(what, logs)
    config = run_config(where, tmp_path / "run", batch_size=1 if what.startswith("more") else 257)
    started = time.monotonic()
    with pytest.raises(error, match=message) as raised:
        train(config, Recording(seen), workers=WORKERS, restarts=5, progress=shown)
    assert type(raised.value) is error
    assert time.monotonic() - started < 60
    assert len(recorded(seen)) <= WORKERS
    assert not any("start again" in line for line in shown.lines)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"logs": {"train": "absent"}}, LogError, "absent"),
        ({"schema": {"label": "clik", "features": ["user_id"]}}, SchemaError, "'clik'"),
        ({"schema": {"features": ["user_id"]}}, ConfigError, "a label to train on"),
        ({"model": {"name": "dcm"}}, ConfigError, "unknown model 'dcm'"),
        ({"model": {"name": "dcn", "hiden": [8]}}, ConfigError, "unknown setting 'hiden'; did you mean 'hidden'"),
        ({"vocabulary": "absent"}, LogError, "absent"),
        ({"start": {"store": "absent"}}, StoreError, "absent"),
    ],
)
def test_what_is_wrong_with_settings_is_said_before_a_cluster_starts(
    logs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(on_ray, "cluster", None)
    monkeypatch.chdir(tmp_path)
    config = {**_as_yaml(run_config(logs, tmp_path / "run")), **more}
    with pytest.raises(error, match=message):
        train(parse(RunConfig, config), models.build, workers=2)
    assert not (tmp_path / "run").exists()


def test_workers_find_what_relative_paths_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = [{"vectors": "vectors", "features": ["user_id"]}, {"store": "s3://bucket/vectors", "features": ["item_id"]}]
    config = {"logs": {"train": "logs"}, "label": "click", "vocabulary": "pruned", "table": {"warm_start": given}}
    found = on_ray._everywhere(parse(RunConfig, {**config, "publish": {"store": "store"}}))
    assert found.logs.train == str(tmp_path / "logs")
    assert found.honoured is not None
    assert (found.honoured.path, found.honoured.store) == (str(tmp_path / "pruned"), None)
    assert [of.vectors or of.store for of in found.table.warm_start] == [
        str(tmp_path / "vectors"),
        "s3://bucket/vectors",
    ]
    assert found.publish is not None
    assert (found.publish.store, found.output) == (str(tmp_path / "store"), str(tmp_path / "runs/default"))


class _Command:
    """The command on a cluster of its own, in a process group of its own, as from a terminal or a supervisor."""

    def __init__(self, config: Any, folder: Path) -> None:
        path, self.checkpoints = folder / "config.yaml", folder / "run" / "checkpoints"
        path.write_text(yaml.safe_dump(_as_yaml(config)))
        command = [sys.executable, "-m", "embstore", "train", str(path), "--workers", "2", "--json"]
        environment = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, [Path(__file__).parents[2], *sys.path]))
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def __enter__(self) -> _Command:
        """Once it has saved a checkpoint."""
        until = time.monotonic() + 240
        while not list(self.checkpoints.glob("step-*")):
            assert self.process.poll() is None, self.ended()
            assert time.monotonic() < until
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def processes(self) -> list[int]:
        """It and all that it started."""
        found = [self.process.pid]
        for pid in found:
            with suppress(FileNotFoundError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def ended(self) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(
    undisturbed: dict[str, Any], logs: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """The whole process group gets it, as from a terminal or ``timeout``."""
    config = run_config(logs, tmp_path / "run")
    with _Command(config, tmp_path) as command:
        os.killpg(command.process.pid, number)
        code, out, err = command.ended()
    assert (code, out) == (130, ""), err
    lines = err.splitlines()
    assert lines[-1].startswith("stopped at step"), err
    assert "stopping when the checkpoint is saved; Ctrl-C again stops at once" in lines
    assert not [line for line in lines if "ray" in line.lower()]
    assert train(config, models.build, workers=WORKERS) == undisturbed["result"]
    assert _files(tmp_path / "run") == _files(undisturbed["folder"])


@pytest.mark.slow
def test_a_cluster_that_is_stopped_with_the_run(logs: Path, tmp_path: Path) -> None:
    """Each process gets the signal, as where a service is stopped: the workers may end before they have saved."""
    config = run_config(logs, tmp_path / "run", epochs=50)
    with _Command(config, tmp_path) as command:
        for pid in command.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        code, out, err = command.ended()
    assert (code, out) == (130, ""), err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped"), err
    assert Checkpoints(command.checkpoints).names()


def _as_yaml(config: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {name: value for name, value in asdict(config).items() if value is not None}


@pytest.mark.slow
def test_ray_address_names_the_cluster(cluster: str, logs: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(_as_yaml(run_config(logs, tmp_path / "run"))))
    command = [sys.executable, "-m", "embstore", "train", str(tmp_path / "config.yaml"), "--workers", "3"]
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [Path(__file__).parents[2], *sys.path]))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error GroupError: the Ray cluster is too small; expected 3 CPUs for as many workers; found 2;"
    )


def test_a_cluster_without_gpus_is_refused(cluster: str, logs: Path, tmp_path: Path) -> None:
    with pytest.raises(GroupError, match="too small; expected 2 GPUs for as many workers; found 0"):
        train(run_config(logs, tmp_path), models.build, workers=2, gpus=True)


@pytest.mark.parametrize(
    ("workers", "gpus", "message"),
    [(1, True, "expected a GPU for the worker; found 0"), (2, True, "expected 2 GPUs for as many workers; found 0")],
)
def test_one_is_no_plural(workers: int, gpus: bool, message: str) -> None:
    empty = SimpleNamespace(cluster_resources=dict[str, float])
    with pytest.raises(GroupError, match=message):
        _check_room(empty, workers, gpus)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "nonsense"])
def test_an_address_where_nobody_answers(logs: Path, tmp_path: Path, address: str) -> None:
    started = time.monotonic()
    with pytest.raises(GroupError, match=f"no Ray cluster at {address.replace('[', '.').replace(']', '.')}; expected"):
        train(run_config(logs, tmp_path), models.build, workers=2, address=address)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("name", ["ray", "ray.train.torch"])
def test_without_ray(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GroupError, match=r"Ray can't be loaded; .*pip install 'ray\[train\]'"):
        train(run_config(logs, tmp_path), models.build, workers=2)


def test_no_workers(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(GroupError, match="workers; expected 1 or more; found 0"):
        train(run_config(logs, tmp_path), models.build, workers=0)


def test_more_workers_than_this_machine_can_hold(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(GroupError, match=r"workers on this machine; expected at most .*; found 5000; take fewer"):
        train(run_config(logs, tmp_path), models.build, workers=5000)


def test_gpus_are_those_of_workers(logs: Path) -> None:
    with pytest.raises(ConfigError, match="--gpus; expected --workers N with it; found none"):
        command.main(["--train", str(logs / "train"), "--label", "click", "--gpus"], standalone_mode=False)
