"""node2vec as a job: the same bytes by any number of workers, after kills and stops; what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import invoke
from shown import Shown

from embstore.config import parse
from embstore.errors import CheckpointError, ConfigError, GraphError, GroupError, Interrupted, LogError
from embstore.interruption import Interruption
from embstore.node2vec import GraphSettings, SkipGram, Walker, edges, pieces, plots
from embstore.node2vec.folder import JobFolder
from embstore.node2vec.settings import JobSettings
from embstore.pipelines import graphs, node2vec
from embstore.pipelines.node2vec import run
from embstore.pipelines.runners import Serial, runner

USERS, ITEMS, ROWS = 120, 60, 3_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users who like the items of their kind; files of several row groups, with a rating and a time."""
    folder = tmp_path_factory.mktemp("node2vec-log")
    draw = np.random.default_rng(0)
    user = draw.integers(USERS, size=ROWS)
    item = (draw.integers(ITEMS // 4, size=ROWS) * 4 + user % 4) % ITEMS
    table = pa.table(
        {
            "user": [f"u{number}" for number in user],
            "item": item,
            "rating": draw.integers(1, 6, size=ROWS).astype(np.float32),
            "time": draw.integers(0, 10_000, size=ROWS),
        }
    )
    for number, start in enumerate(range(0, ROWS, 1_000)):
        pq.write_table(table.slice(start, 1_000), folder / f"{number}.parquet", row_group_size=300)
    return folder


def settings(log: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Of a job: pairs and sessions, weighted; walks of several pieces, where ``small`` is used."""
    graph = {
        "log": str(log),
        "pairs": [["user", "item"]],
        "sessions": [{"column": "item", "by": "user", "time": "time", "window": 500}],
        "weight": "rating",
    }
    return {
        "graph": graph,
        "walks": {"p": 2.0, "q": 0.5, "length": 20, "num_walks": 10},
        "skip_gram": {"dim": 8, "window": 3, "epochs": 2},
        "output": str(output),
        **more,
    }


def job(log: Path, output: Path, **more: Any) -> JobSettings:
    return parse(JobSettings, settings(log, output, **more))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that there are many."""
    monkeypatch.setattr(pieces, "_TRAINED", 64 * 20)
    monkeypatch.setattr(pieces, "_WALKED", 3 * 64 * 20)
    monkeypatch.setattr(graphs, "_ROWS", 300)


def files(folder: Path) -> dict[str, bytes]:
    """All that a job leaves, by name; but for curves for TensorBoard, which have times in them."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "tensorboard"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def undisturbed(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By this process, in whole pieces."""
    folder, shown = tmp_path_factory.mktemp("undisturbed") / "job", Shown()
    result = run(job(log, folder), progress=shown)
    return {"folder": folder, "result": result, "shown": shown, "files": files(folder)}


class _After(Interruption):
    """Asks to stop when it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def asked(self) -> bool:
        self._looks -= 1
        return self._looks < 0


def test_vectors_are_parquet_by_feature(undisturbed: dict[str, Any], log: Path) -> None:
    folder, result = undisturbed["folder"], undisturbed["result"]
    known = pq.read_table(log)
    graph, visits_N = JobFolder(folder).read_graph(), JobFolder(folder).read_visits()
    assert result["graph"]["nodes"] == {"user": USERS, "item": ITEMS} == {k: len(v) for k, v in graph.parts().items()}
    for feature, numbers in graph.parts().items():
        table = pq.read_table(folder / "vectors" / f"feature={feature}" / "part-0.parquet", partitioning=None)
        assert table["value"].to_pylist() == sorted(known[feature].unique().to_pylist())
        assert table["node"].to_pylist() == list(numbers)
        assert table["visits"].to_pylist() == visits_N[list(numbers)].tolist()
        assert table["vector"].type == pa.list_(pa.float32(), 8)
    assert visits_N.sum() == result["walks"]["visits"] == result["walks"]["count"] * 20


def test_what_is_shown(undisturbed: dict[str, Any]) -> None:
    shown, folder = undisturbed["shown"], undisturbed["folder"]
    walks = undisturbed["result"]["walks"]["count"]
    assert [(bar.label, bar.total) for bar in shown.bars] == [
        *(("graph", None), ("visits", walks), ("train", 2 * walks)),
    ]
    assert [bar.rows for bar in shown.bars] == [2 * ROWS, walks, 2 * walks]
    assert shown.open == 0
    assert shown.finished == [folder]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 2 * walks
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_neighbours_are_of_a_kind(undisturbed: dict[str, Any]) -> None:
    """Items are of four kinds, and a user likes one: so vectors of a kind are near each other."""
    table = pq.read_table(undisturbed["folder"] / "vectors" / "feature=item" / "part-0.parquet", partitioning=None)
    vectors = np.array(table["vector"].to_pylist())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors @ vectors.T
    np.fill_diagonal(near, -2)
    kind = np.array(table["value"].to_pylist()) % 4
    assert (kind[near.argmax(axis=1)] == kind).mean() > 0.95


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("small")
def test_workers_of_a_cluster_come_to_the_same_bytes(
    cluster: str, log: Path, tmp_path: Path, undisturbed: dict[str, Any], workers: int
) -> None:
    result = run(job(log, tmp_path / "job"), workers=workers)
    ours, theirs = files(tmp_path / "job"), undisturbed["files"]
    for name in ("graph.npz", "visits.npy", "contexts.npy", "vectors/feature=item/part-0.parquet"):
        assert ours[name] == theirs[name]
    assert result["graph"] == undisturbed["result"]["graph"]


@pytest.mark.slow
def test_eight_workers_come_to_the_same_bytes(log: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(log, tmp_path / "job")))
    done = _command(config, "--workers", "8", "--json")
    assert done.returncode == 0, done.stderr
    assert {**json.loads(done.stdout), "output": ""} == {**undisturbed["result"], "output": ""}
    assert files(tmp_path / "job") == undisturbed["files"]


@pytest.mark.usefixtures("small")
def test_a_graph_is_that_of_one_process(cluster: str, log: Path, tmp_path: Path) -> None:
    """Also of sessions alone, directed, of lists, and with edges that are left out."""
    pq.write_table(
        pa.table(
            {"items": [[1, 2, 3], [], [2, 3], None, [5, 1]] * 300, "who": [["a"], ["b", "c"], [], ["a"], ["c"]] * 300}
        ),
        tmp_path / "lists.parquet",
        row_group_size=100,
    )
    for graph in (
        {"log": str(log), "sessions": [{"column": "item", "by": "user", "time": "time", "steps": 1}], "directed": True},
        {"log": str(log), "pairs": [["user", "item"]], "min_weight": 2},
        {"log": str(tmp_path / "lists.parquet"), "pairs": [["items", "who"]]},
        {"log": str(tmp_path / "lists.parquet"), "sessions": [{"column": "items", "steps": 2}]},
        {"log": str(log), "pairs": [["user", "item"]], "decay": {"time": "time", "half_life": "1h"}},
    ):
        of = parse(graphs.GraphSettings, graph)
        read: list[int] = []
        with runner(2) as by:
            ours = graphs.graph_of_log(of, by, read.append)
        alone = graphs.graph_of_log(of, Serial(), lambda rows: None)
        plain = node2vec.build_graph(of)
        for graph_ in (ours, alone):
            for name in ("indptr_N", "indices_E", "weights_E"):
                assert np.array_equal(getattr(graph_, name), getattr(plain, name))
            assert graph_.directed == plain.directed
            assert {name: values.to_pylist() for name, values in graph_.nodes.items()} == {
                name: values.to_pylist() for name, values in plain.nodes.items()
            }
        assert sum(read) == 2 * pq.read_table(of.log).num_rows


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


def _command(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    process = _started(config, *options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _started(config: Path, *options: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [Path(__file__).parents[2], *sys.path]))
    command = [sys.executable, "-m", "embstore", "node2vec", str(config), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _until(there: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


LONG = {"walks": {"length": 40, "num_walks": 300}, "skip_gram": {"dim": 8, "window": 3}, "checkpoint_minutes": 0}


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
        process = _started(config)
        try:
            _until(there, process)
        finally:
            process.kill()
            process.communicate()
    done = _command(config)
    assert done.returncode == 0, done.stderr
    assert "going on from walk" in done.stderr
    assert files(folder) == files(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(log: Path, tmp_path: Path, number: signal.Signals) -> None:
    folder, config = tmp_path / "job", tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(log, folder, **{**LONG, "checkpoint_minutes": 60})))
    process = _started(config, "--json")
    _until((folder / "metrics.jsonl").exists, process)
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


def test_another_job_in_the_folder_is_refused(log: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    folder = tmp_path / "job"
    shutil.copytree(undisturbed["folder"], folder)
    with pytest.raises(CheckpointError, match=r"another skip_gram.dim, walks.q; name another folder .* --fresh"):
        run(job(log, folder, walks={"p": 2.0, "q": 3.0, "length": 20}, skip_gram={"dim": 4, "window": 3, "epochs": 2}))
    other = tmp_path / "log"
    shutil.copytree(log, other)
    assert run(job(other, folder)) == undisturbed["result"]  # the same log elsewhere
    next(other.iterdir()).unlink()
    with pytest.raises(CheckpointError, match=r"another graph.log;"):
        run(job(other, folder))
    assert files(folder) == undisturbed["files"]
    shown = Shown()
    run(job(log, folder), progress=shown)
    assert "already finished" in shown.lines[0]


def test_what_was_half_written_is_removed(log: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    folder = tmp_path / "job"
    shutil.copytree(undisturbed["folder"], folder)
    (folder / ".vectors").mkdir()
    for name in (".manifest.json-00ff", ".graph.npz", ".vectors/part"):
        (folder / name).write_bytes(b"")
    run(job(log, folder))
    assert files(folder) == undisturbed["files"]


def test_a_folder_of_something_else_is_left_alone(log: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("theirs")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl of something else"):
        run(job(log, tmp_path))
    JobFolder(tmp_path).clear()
    assert (tmp_path / "metrics.jsonl").read_text() == "theirs"


@pytest.mark.parametrize("name", ["graph.npz", "visits.npy", "contexts.npy", "vectors/feature=item/part-0.parquet"])
def test_damage_is_told(log: Path, tmp_path: Path, undisturbed: dict[str, Any], name: str) -> None:
    folder = tmp_path / "job"
    shutil.copytree(undisturbed["folder"], folder)
    (folder / "result.json").unlink()
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name}; expected .* sha256 .*--fresh"):
        run(job(log, folder))
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}; .*No such file"):
        run(job(log, folder))


def test_a_damaged_checkpoint_is_told(small: None, log: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(job(log, tmp_path / "job"), interruption=_After(60))
    (checkpoint,) = (tmp_path / "job" / "checkpoints").iterdir()
    (checkpoint / "vectors.npy").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"other bytes in vectors.npy; delete .* to train again"):
        run(job(log, tmp_path / "job"))


def test_former_vectors_are_the_start(log: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Without learning, values that are known end where they began; new ones are small random numbers."""
    table = pq.read_table(log)
    table = table.slice(0, 2_000).set_column(0, "user", pa.array(["new", *table["user"].to_pylist()[1:2_000]]))
    pq.write_table(table, tmp_path / "log.parquet")
    still = {"dim": 8, "learning_rate": 0.0, "last_learning_rate": 0.0}
    start, shown = {"vectors": str(undisturbed["folder"])}, Shown()
    run(job(tmp_path / "log.parquet", tmp_path / "job", skip_gram=still, start=start), progress=shown)
    before, after = JobFolder(undisturbed["folder"]).read_vectors(), JobFolder(tmp_path / "job").read_vectors()
    for feature in ("user", "item"):
        was = dict(zip(before[feature].values.to_pylist(), before[feature].vectors, strict=True))
        for value, vector in zip(after[feature].values.to_pylist(), after[feature].vectors, strict=True):
            if value == "new":
                assert 0 < np.abs(vector).max() < 1 / 8
            else:
                assert np.array_equal(vector, was[value])
    assert any("have former vectors" in line for line in shown.lines)
    with pytest.raises(ConfigError, match=r"expected vectors of skip_gram.dim \(4\); found 8"):
        run(job(log, tmp_path / "other", skip_gram={"dim": 4}, start=start))
    with pytest.raises(CheckpointError, match=r"expected the folder of a node2vec job that has trained"):
        run(job(log, tmp_path / "third", start={"vectors": str(tmp_path / "absent")}))


def test_a_spectral_start(log: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    run(job(log, tmp_path / "job", start={"prior": "spectral"}))
    assert files(tmp_path / "job")["contexts.npy"] != undisturbed["files"]["contexts.npy"]
    ours, theirs = (JobFolder(at).metrics()[0]["train_loss"] for at in (tmp_path / "job", undisturbed["folder"]))
    assert ours < theirs


def test_walks_are_kept(small: None, log: Path, tmp_path: Path) -> None:
    config = job(log, tmp_path / "job", keep_walks=True)
    run(config)
    assert len(list((tmp_path / "job" / "walks").iterdir())) > 1
    kept = pq.read_table(tmp_path / "job" / "walks")
    walker = Walker(JobFolder(tmp_path / "job").read_graph(), config.walks)
    assert kept["number"].to_pylist() == list(range(walker.num_walks))
    assert kept["walk"].to_pylist() == walker.walks(0, walker.num_walks).tolist()


def test_links_are_held_out(log: Path, tmp_path: Path) -> None:
    result = run(job(log, tmp_path / "job", evaluate={"links": 0.2}))
    graph = JobFolder(tmp_path / "job").read_graph()
    assert result["links"]["held_out"] == round(0.2 * graph.num_edges)
    assert result["links"]["auc"] > 0.7
    assert set(result["links"]["baselines"]) >= {"common_neighbours", "adamic_adar"}


def test_threads_without_locks(log: Path, tmp_path: Path) -> None:
    run(job(log, tmp_path / "job", deterministic=False, threads=2))
    vectors = JobFolder(tmp_path / "job").read_vectors()
    assert all(np.isfinite(of.vectors).all() for of in vectors.values())


def test_published_vectors_are_looked_up(log: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    from embstore import Store
    from embstore.node2vec.publishing import graph_fingerprint

    folder, store = tmp_path / "job", tmp_path / "store"
    shutil.copytree(undisturbed["folder"], folder)  # finished: only publishing is left
    result = run(job(log, folder, publish={"store": str(store)}))
    version = Store(store).open(result["version"])
    for feature, of in JobFolder(folder).read_vectors().items():
        assert np.array_equal(version.lookup(feature, of.values).numpy(), of.vectors)
    about = version.manifest["lineage"]["node2vec"]
    assert about["settings"]["skip_gram"]["dim"] == 8
    assert about["graph"]["sha256"] == graph_fingerprint(JobFolder(folder).read_graph())
    assert run(job(log, folder, publish={"store": str(store)})) == result
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["stages"]["publish"]  # as where it was killed behind the publishing
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "result.json").unlink()
    assert run(job(log, folder, publish={"store": str(store)}))["version"] == result["version"]
    assert len(Store(store).versions()) == 1


def test_without_matplotlib_it_says_so(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plots.plot_loss([], tmp_path / "loss.png")
    result = run(job(log, tmp_path / "job"))
    assert "matplotlib" in result["notes"][0]
    assert not (tmp_path / "job" / "loss.png").exists()


def test_the_command(log: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(log, tmp_path / "job")))
    done = invoke("node2vec", str(config), "--set", "skip_gram.dim=4")
    assert done.exit_code == 0, done.output
    assert f"{USERS} user, {ITEMS} item" in done.stdout
    assert "vectors  dim 4, loss" in done.stdout
    again = invoke("node2vec", str(config), "--set", "skip_gram.dim=4", "--json")
    assert json.loads(again.stdout)["train"]["dim"] == 4
    fresh = invoke("node2vec", str(config), "--set", "skip_gram.dim=6", "--fresh", "--json")
    assert json.loads(fresh.stdout)["train"]["dim"] == 6


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("graph.log=absent", "LogError: .*absent"),
        ("graph.pairs=[[user, itme]]", "SchemaError: .*'itme'.*did you mean 'time'"),
        ("graph.min_weight=1e9", "GraphError: .*at least one edge; found none"),
        ("walks.p=0", "ConfigError: walks.p; expected a number from 1e-9 to 1e9; found 0"),
        ("walks.lenght=3", "ConfigError: .*unknown key 'lenght'; did you mean 'length'"),
        ("skip_gram.dim=0", "ConfigError: skip_gram.dim; expected 1 or more; found 0"),
        ("start.prior=best", "ConfigError: .*start.prior; expected 'random' or 'spectral'; found 'best'"),
        ("evaluate.links=1", "ConfigError: evaluate.links; expected a share between 0 and 1; found 1"),
        ("threads=0", "ConfigError: .*threads; expected 1 or more"),
        ("checkpoint_minutes=-1", "ConfigError: .*checkpoint_minutes; expected 0 or more"),
        ("graph=null", "ConfigError: .*graph; expected a mapping"),
    ],
)
def test_bad_input_is_one_line(
    log: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(log, tmp_path / "job")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["embstore", "node2vec", str(config), "--set", setting])
        from embstore.cli import commands

        assert commands.run() == 1
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]


def test_vectors_that_left_float32_are_an_error_wherever_they_are(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = SkipGram.train

    def spoiled(self: SkipGram, walks_WL: Any, first: int, **how: Any) -> float:
        loss = train(self, walks_WL, first, **how)
        self._vectors[0] = np.inf
        return loss

    monkeypatch.setattr(SkipGram, "train", spoiled)
    with pytest.raises(ConfigError, match="left float32's range"):
        run(job(log, tmp_path / "job"))
    assert not (tmp_path / "job" / "vectors").exists()


def test_fresh_keeps_what_is_there_where_the_log_is_not(log: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(log, tmp_path / "job")))
    assert invoke("node2vec", str(config)).exit_code == 0
    kept = files(tmp_path / "job")
    with pytest.raises(LogError):
        invoke("node2vec", str(config), "--set", f"graph.log={tmp_path / 'absent'}", "--fresh")
    assert files(tmp_path / "job") == kept
    with pytest.raises(ConfigError, match=r"expected another folder than start.vectors"):
        job(log, tmp_path / "job", start={"vectors": str(tmp_path / "job")})


def test_a_prior_that_says_nothing_is_random(tmp_path: Path) -> None:
    """All know all: no pair is likelier than by chance."""
    edges = tmp_path / "edges.txt"
    edges.write_text("".join(f"{a} {b}\n" for a in range(12) for b in range(a)))
    how = {"walks": {"length": 10}, "skip_gram": {"dim": 8}, "start": {"prior": "spectral"}}
    run(parse(JobSettings, {**how, "graph": {"edges": str(edges)}, "output": str(tmp_path / "job")}))
    (vectors,) = JobFolder(tmp_path / "job").read_vectors().values()
    assert (np.abs(vectors.vectors).max(axis=1) > 0).all()


def test_a_log_without_values_is_no_graph(tmp_path: Path) -> None:
    nothing = pa.nulls(3, pa.string())
    pq.write_table(pa.table({"user": nothing, "item": nothing}), tmp_path / "log.parquet")
    how = GraphSettings(log=str(tmp_path / "log.parquet"), pairs=(("user", "item"),))
    with pytest.raises(GraphError, match="at least one edge"), runner(None) as by:
        graphs.graph_of_log(how, by, lambda rows: None)
    assert edges.ranges(edges.survey_of(pq.read_table(tmp_path / "log.parquet"), how), 8) == [0, 0]


def test_edges_in_a_folder_of_parquet(tmp_path: Path) -> None:
    ends = np.random.default_rng(0).integers(0, 30, (2, 200))
    (tmp_path / "edges").mkdir()
    for name, half in (("a", slice(100)), ("b", slice(100, None))):
        pq.write_table(pa.table({"source": ends[0, half], "target": ends[1, half]}), tmp_path / f"edges/{name}.parquet")
    how = {"walks": {"length": 5}, "skip_gram": {"dim": 8}, "output": str(tmp_path / "job")}
    config = parse(JobSettings, {**how, "graph": {"edges": str(tmp_path / "edges")}})
    result = run(config)
    assert result["graph"]["nodes"] == {"node": 30}
    of_npz = {"graph": {"graph": str(tmp_path / "job/graph.npz")}, "output": str(tmp_path / "again")}
    assert run(parse(JobSettings, {**how, **of_npz}))["train"] == result["train"]


def test_a_cluster_that_cant_be(log: Path, tmp_path: Path) -> None:
    with pytest.raises(GroupError, match=r"workers; expected 1 or more; found 0"):
        run(job(log, tmp_path / "a"), workers=0)
    with pytest.raises(GroupError, match=r"no Ray cluster at 127.0.0.1:1"):
        run(job(log, tmp_path / "a"), workers=1, address="127.0.0.1:1")


@pytest.mark.usefixtures("small")
def test_what_a_task_raises_is_raised_here(cluster: str, log: Path, tmp_path: Path) -> None:
    """A log with a weight that is none."""
    table = pq.read_table(log)
    ratings = table["rating"].to_pylist()
    ratings[2_500] = -1.0
    pq.write_table(table.set_column(2, "rating", pa.array(ratings)), tmp_path / "log.parquet", row_group_size=300)
    with pytest.raises(Exception, match=r"rating.*-1.0 in row 2,500") as raised:
        run(job(tmp_path / "log.parquet", tmp_path / "job"), workers=2)
    assert type(raised.value).__name__ == "GraphError"
