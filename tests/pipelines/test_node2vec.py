"""node2vec as a job: the same bytes by any number of workers, after kills and stops; what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import invoke
from shown import Shown
from walked import ITEMS, ROWS, USERS, command, files, job, make_small, settings, undisturbed_job, write_log

from embstore.config import parse
from embstore.errors import CheckpointError, ConfigError, GraphError, GroupError, LogError, StoreError
from embstore.folder_lock import alone_in
from embstore.node2vec import GraphSettings, SkipGram, Walker, edges, plots
from embstore.node2vec.folder import JobFolder
from embstore.node2vec.settings import JobSettings
from embstore.node2vec.skipgram import draw_vectors
from embstore.node2vec.walk_files import WalkFiles
from embstore.pipelines import graphs, node2vec
from embstore.pipelines.node2vec import run
from embstore.pipelines.runners import Serial, runner


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("node2vec-log"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return undisturbed_job(log, tmp_path_factory.mktemp("undisturbed") / "job")


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
    done = command(config, "--workers", "8", "--json")
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


def test_a_folder_of_something_else_is_left_alone(log: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("theirs")
    with pytest.raises(CheckpointError, match=r"notes\.txt of something else"):
        run(job(log, tmp_path))
    JobFolder(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_jobs_in_one_folder(log: Path, tmp_path: Path) -> None:
    with alone_in(tmp_path / "job"), pytest.raises(CheckpointError, match="found another process at work; wait"):
        run(job(log, tmp_path / "job"))
    assert list((tmp_path / "job").iterdir()) == []
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(log, tmp_path / "job")))
    assert invoke("node2vec", str(config)).exit_code == 0
    kept = files(tmp_path / "job")
    with alone_in(tmp_path / "job"), pytest.raises(CheckpointError, match="found another process at work"):
        invoke("node2vec", str(config), "--fresh")
    assert files(tmp_path / "job") == kept


def test_a_store_that_cant_be_is_told_before_the_work(log: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("no store")
    (tmp_path / "file").write_text("no folder")
    for store, found in (("theirs", "without log/"), ("file", "can't hold it"), ("file/in/it", "can't hold it")):
        with pytest.raises(StoreError, match=found):
            run(job(log, tmp_path / "job", publish={"store": str(tmp_path / store)}))
    assert not (tmp_path / "job").exists()


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


def test_former_vectors_are_the_start(log: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Without learning, values that are known end where they began; new ones are small random numbers."""
    table = pq.read_table(log)
    table = table.slice(0, 2_000).set_column(0, "user", pa.array(["new", *table["user"].to_pylist()[1:2_000]]))
    pq.write_table(table, tmp_path / "log.parquet")
    still = {"dim": 8, "learning_rate": 0.0, "last_learning_rate": 0.0}
    start, shown = {"vectors": str(undisturbed["folder"])}, Shown()
    run(job(tmp_path / "log.parquet", tmp_path / "job", skip_gram=still, start=start), progress=shown)
    before, after = JobFolder(undisturbed["folder"]).read_vectors(), JobFolder(tmp_path / "job").read_vectors()
    drawn_ND = np.empty((JobFolder(tmp_path / "job").read_graph().num_nodes, 8), np.float32)
    draw_vectors(drawn_ND, seed=0)
    for feature in ("user", "item"):
        was = dict(zip(before[feature].values.to_pylist(), before[feature].vectors, strict=True))
        for value, vector in zip(after[feature].values.to_pylist(), after[feature].vectors, strict=True):
            if value == "new":
                assert np.array_equal(vector, drawn_ND[after[feature].values.index(value).as_py()])
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
    read = WalkFiles(tmp_path / "job" / "walks")
    assert (read.num_nodes, read.num_walks, read.length) == (walker.num_nodes, walker.num_walks, walker.length)
    assert np.array_equal(read.walks(50, 700), walker.walks(50, 700))


def test_links_are_held_out(log: Path, tmp_path: Path) -> None:
    result = run(job(log, tmp_path / "job", evaluate={"links": 0.2}))
    graph = JobFolder(tmp_path / "job").read_graph()
    assert result["links"]["held_out"] == round(0.2 * graph.num_edges)
    assert result["links"]["auc"] > 0.7
    assert set(result["links"]["baselines"]) >= {"common_neighbours", "adamic_adar"}


def test_links_of_users_and_items_alone(log: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    graph = {"log": str(log), "pairs": [["user", "item"]]}
    config.write_text(yaml.safe_dump(settings(log, tmp_path / "job", graph=graph, evaluate={"links": 0.2})))
    done = invoke("node2vec", str(config))
    assert done.exit_code == 0, done.output
    assert re.search(
        r"preferential attachment 0\.\d+; no pair has neighbours in common\)", " ".join(done.stdout.split())
    )
    links = JobFolder(tmp_path / "job").result()["links"]
    assert list(links["baselines"]) == ["preferential_attachment"]
    assert links["auc"] > links["baselines"]["preferential_attachment"]


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
