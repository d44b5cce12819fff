"""The loop, killed: its own process in every stage (kill -9), and on a Ray cluster a worker in each kind of task."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dying import dies_once
from looped import published, run, settings, write_days

from embstore.errors import GroupError
from embstore.pipelines import graphs, node2vec, runners, selection, stages, vocabulary
from embstore.store import Store

KILLS = [  # where, in the order in which a loop comes by: see looped.Fatal
    *[("day-0001", *at) for at in (("count", 1), ("write", 3), ("finish:vocabulary", 0), ("finish:plan", 0))],
    *[("day-0001", *at) for at in (("graph", 0), ("visits", 0), ("train", 0), ("finish:node2vec", 0))],
    *[("day-0001", *at) for at in (("count", 1), ("search", 0), ("write", 0), ("finish:select", 0))],
    *[("day-0001", *at) for at in (("finish:prune", 0), ("train", 5), ("finish:train", 0))],
    *[("day-0002", *at) for at in (("evaluate", 0), ("visits", 0), ("search", 0), ("train", 3), ("finish:train", 0))],
]
TRAINING = {"batch_size": 250, "checkpoint_every": 2}


def _more(folder: Path) -> dict[str, Any]:
    """Vectors every day, and checkpoints on the way."""
    plain = settings(folder, [])["node2vec"]
    return {"node2vec": {**plain, "publish": {"store": str(folder / "vectors")}}, "training": TRAINING}


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = write_days(tmp_path_factory.mktemp("logs"))
    return [folder / f"day-{number}" for number in (1, 2)]


@pytest.fixture(scope="module")
def undisturbed(days: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, days, **_more(folder))
    return _all(folder)


def _all(folder: Path) -> list[Any]:
    """What all versions hold, of tables and of vectors, the oldest first."""
    places = (folder / "store", folder / "vectors")
    return [published(place, of.id) for place in places for of in Store(place).versions()]


@pytest.mark.slow
def test_killed_in_each_stage_it_ends_with_the_same_bytes(
    days: list[Path], undisturbed: list[Any], tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings(tmp_path, days, **_more(tmp_path))))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    for day, label, number in KILLS:
        command = [sys.executable, str(Path(__file__).parent / "looped.py"), str(config), day, label, str(number)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == -signal.SIGKILL, (day, label, done.stderr)
    run(tmp_path, days, **_more(tmp_path))
    assert _all(tmp_path) == undisturbed


TASKS = [
    *[(vocabulary, name) for name in ("_read", "_merge")],
    *[(graphs, name) for name in ("_survey", "_edges_by_source", "_piece")],
    *[(node2vec, name) for name in ("visits_of", "walks_of")],
    *[(selection, name) for name in ("_count", "_encode", "_gradient")],
]


def test_by_workers_it_is_the_same_bytes(
    cluster: str, days: list[Path], undisturbed: list[Any], tmp_path: Path
) -> None:
    run(tmp_path, days[:1], workers=2, **_more(tmp_path))
    assert _all(tmp_path) == undisturbed[::2]


@pytest.mark.slow
def test_a_worker_killed_in_each_kind_of_task_leaves_no_trace(
    cluster: str, days: list[Path], undisturbed: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    for module, name in TASKS:
        monkeypatch.setattr(module, name, dies_once(getattr(module, name), deaths / name))
    run(tmp_path, days, workers=2, **_more(tmp_path))
    assert sorted(path.name for path in deaths.iterdir()) == sorted(name for _, name in TASKS)
    assert _all(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name"), [(vocabulary, "_merge"), (graphs, "_piece"), (selection, "_gradient")])
def test_workers_that_die_too_often_are_an_error_and_the_same_call_goes_on(
    cluster: str,
    days: list[Path],
    undisturbed: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(runners, "_RETRIES", 0)
        failing.setitem(vocabulary.build.__kwdefaults__, "restarts", 0)
        failing.setattr(module, name, dies_once(getattr(module, name), tmp_path / "died"))
        with pytest.raises(GroupError):
            run(tmp_path, days[:1], workers=2, **_more(tmp_path))
    assert not (tmp_path / "store").exists()
    run(tmp_path, days[:1], **_more(tmp_path))
    assert _all(tmp_path) == undisturbed[::2]


@pytest.mark.slow
def test_trained_by_workers_of_which_one_is_killed(
    cluster: str, days: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "killed"):
        if name == "killed":
            monkeypatch.setattr(stages, "build", dies_once(stages.build, tmp_path / "died"))
        folder = tmp_path / name
        run(folder, days[:1], train_workers=2, **{**_more(folder), "select": None, "prune": None})
    assert (tmp_path / "died").exists()
    assert _all(tmp_path / "killed") == _all(tmp_path / "whole")


@pytest.mark.slow
def test_the_command_by_a_cluster_of_its_own(days: list[Path], undisturbed: list[Any], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(settings(tmp_path, days, **_more(tmp_path))))
    command = [sys.executable, "-m", "embstore", "loop", str(config), "--workers", "2", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == Store(tmp_path / "store").open("latest").id
    assert _all(tmp_path) == undisturbed


def test_a_cluster_that_cannot_be(days: list[Path], tmp_path: Path) -> None:
    for how in ({"workers": 0}, {"train_workers": 0}):
        with pytest.raises(GroupError, match=r"workers; expected 1 or more; found 0"):
            run(tmp_path, days, **how)
    assert not (tmp_path / "loop").exists()
