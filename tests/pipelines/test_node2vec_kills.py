"""node2vec as a job, killed and stopped: the same bytes as undisturbed, by this process and by workers."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from shown import Shown
from walked import command, files, job, make_small, settings, started, undisturbed_job, until, write_log

from embstore.errors import CheckpointError, Interrupted
from embstore.interruption import Interruption
from embstore.node2vec.folder import JobFolder
from embstore.pipelines.node2vec import run

LONG = {"walks": {"length": 40, "num_walks": 300}, "skip_gram": {"dim": 8, "window": 3}, "checkpoint_minutes": 0}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("node2vec-log"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return undisturbed_job(log, tmp_path_factory.mktemp("undisturbed") / "job")


class _After(Interruption):
    """Asks to stop when it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def asked(self) -> bool:
        self._looks -= 1
        return self._looks < 0


@pytest.mark.usefixtures("small")
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(log: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run(job(log, whole, evaluate={"links": 0.1}))
    stops = {}
    for looks in (0, 12, 25, 40, 61):
        folder, config = tmp_path / str(looks), job(log, tmp_path / str(looks), evaluate={"links": 0.1})
        with pytest.raises(Interrupted, match="the same command goes on") as raised:
            run(config, interruption=_After(looks))
        stops[looks] = str(raised.value)
        with suppress(Interrupted):
            run(config, interruption=_After(10))
        shown = Shown()
        run(config, progress=shown)
        assert any(line.startswith(f"going on in {folder}") for line in shown.lines) == (looks > 12)
        assert files(folder) == files(whole)
    assert "behind the last stage" in stops[0]
    assert "stopped at walk" in stops[61]


def test_checkpoints_on_the_way_change_nothing(
    small: None, log: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    kept = []
    save = JobFolder.save

    def counted(self: JobFolder, *arguments: Any) -> None:
        save(self, *arguments)
        kept.append([path.name for path in (self.path / "checkpoints").iterdir()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobFolder, "save", counted)
        run(job(log, tmp_path / "job", checkpoint_minutes=0))
    assert len(kept) > 20
    assert all(len(names) == 1 for names in kept)
    assert files(tmp_path / "job")["contexts.npy"] == undisturbed["files"]["contexts.npy"]
    assert not (tmp_path / "job" / "checkpoints").exists()


@pytest.mark.slow
def test_killed_at_any_time_it_ends_with_the_same_bytes(log: Path, tmp_path: Path) -> None:
    """kill -9 while the graph is written, between checkpoints, and where one is being written."""
    whole, folder, config = tmp_path / "whole", tmp_path / "job", tmp_path / "config.yaml"
    run(job(log, whole, **LONG))
    config.write_text(yaml.safe_dump(settings(log, folder, **LONG)))
    checkpoints = folder / "checkpoints"
    seen: list[str] = []

    def later() -> bool:
        names = sorted(path.name for path in checkpoints.glob("walk-*"))
        new = bool(names) and names[-1] not in seen
        seen.extend(names if new else [])
        return new

    for there in ((folder / "graph.npz").exists, later, (checkpoints / ".partial").exists, later):
        process = started(config)
        try:
            until(there, process)
        finally:
            process.kill()
            process.communicate()
    done = command(config)
    assert done.returncode == 0, done.stderr
    assert "going on from walk" in done.stderr
    assert files(folder) == files(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(log: Path, tmp_path: Path, number: signal.Signals) -> None:
    folder, config = tmp_path / "job", tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(log, folder, **{**LONG, "checkpoint_minutes": 60})))
    process = started(config, "--json")
    until((folder / "metrics.jsonl").exists, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].endswith("the same command goes on from there")
    assert len(list((folder / "checkpoints").glob("walk-*"))) == 1


def _workers() -> Iterator[int]:
    """Processes of our own cluster that do a piece right now."""
    found = [os.getpid()]
    for pid in found:
        with suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
            title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            if title.startswith(("ray::visits_of", "ray::walks_of", "ray::_")):
                yield pid


@pytest.mark.slow
def test_killed_workers_leave_no_trace(cluster: str, log: Path, tmp_path: Path) -> None:
    long = {"walks": {"length": 80, "num_walks": 300}, "skip_gram": {"dim": 8, "window": 2}}
    run(job(log, tmp_path / "whole", **long))
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05) and len(killed) < 4:
            for pid in _workers():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run(job(log, tmp_path / "job", **long), workers=2)
    finally:
        over.set()
        killer.join()
    assert len(set(killed)) >= 2
    assert files(tmp_path / "job") == files(tmp_path / "whole")


def test_what_was_half_written_is_removed(log: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    folder = tmp_path / "job"
    shutil.copytree(undisturbed["folder"], folder)
    (folder / ".vectors").mkdir()
    for name in (".manifest.json-00ff", ".graph.npz", ".vectors/part"):
        (folder / name).write_bytes(b"")
    run(job(log, folder))
    assert files(folder) == undisturbed["files"]


def test_a_damaged_checkpoint_is_told(small: None, log: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(job(log, tmp_path / "job"), interruption=_After(60))
    (checkpoint,) = (tmp_path / "job" / "checkpoints").iterdir()
    (checkpoint / "vectors.npy").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"other bytes in vectors.npy; delete .* to train again"):
        run(job(log, tmp_path / "job"))
