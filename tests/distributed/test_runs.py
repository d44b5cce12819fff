"""A run by several ranks: what it learns, where it stops, what it saves and publishes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cases import digest, files_of, publish, train
from ranks import Ranks
from runs import config, write_logs

from embstore.checkpoints import Checkpoints
from embstore.distributed import ALONE
from embstore.logs import ParquetLog
from embstore.schema import Feature, Schema
from embstore.store import Store

ADAM = {"rows": 999, "dim": 8, "optimizer": {"name": "adam", "learning_rate": 0.01}}

SCHEMA = Schema(label="click", features=(Feature(name="user_id"),))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_logs(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def alone(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run by one process: its settings, result, digests and metrics."""
    settings = config(logs, tmp_path_factory.mktemp("runs") / "alone")
    return {"config": settings, **train(ALONE, settings), "metrics": _metrics(settings)}


@pytest.fixture(scope="module")
def by_ranks(ranks: Ranks, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The same by 2 and by 3 ranks."""
    out = {}
    for world in (2, 3):
        settings = config(logs, tmp_path_factory.mktemp("runs") / str(world))
        first, *others = ranks.run(world, "train", config=settings)
        assert all(other == first for other in others)
        out[world] = {"config": settings, **first, "metrics": _metrics(settings)}
    return out


def _metrics(settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(settings["output"]) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("world", [2, 3])
def test_it_learns_what_one_process_learns(
    alone: dict[str, Any], by_ranks: dict[int, dict[str, Any]], world: int
) -> None:
    ours = by_ranks[world]
    assert len(ours["metrics"]) == len(alone["metrics"]) > 3
    for one, many in zip(alone["metrics"], ours["metrics"], strict=True):
        assert (many["step"], many["epoch"], many["valid_rows"]) == (one["step"], one["epoch"], one["valid_rows"])
        for name in ("train_loss", "valid_logloss", "valid_auc", "valid_gauc"):
            assert many[name] == pytest.approx(one[name], abs=1e-4 if "auc" in name else 1e-5), name
    assert ours["result"]["valid"]["auc"] == pytest.approx(alone["result"]["valid"]["auc"], abs=1e-4)
    for name in ("steps", "parameters", "logs"):
        assert ours["result"][name] == alone["result"][name]
    assert ours["digest"] != alone["digest"]  # sums in another order: no more is promised


def test_dropout_has_the_masks_of_one_process(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    """Last batches are uneven; a rank's masks of its own would move the loss by some 1e-3."""
    curves = []
    for world in (1, 2, 3):
        settings = config(logs, tmp_path / str(world))
        settings["model"] = {**settings["model"], "hidden": [16, 8], "dropout": 0.3, "activation": "gelu"}
        settings["training"] = {**settings["training"], "evaluate_every": 3}
        ranks.run(world, "train", config=settings)
        curves.append([line["train_loss"] for line in _metrics(settings)])
    assert len(curves[0]) > 10
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], rel=1e-5)


def test_the_same_ranks_have_the_same_bits(
    ranks: Ranks, logs: Path, tmp_path: Path, by_ranks: dict[int, dict[str, Any]]
) -> None:
    """Stopped by a signal to one rank in the middle, then gone on with: as if it had never stopped."""
    settings = config(logs, tmp_path / "stopped")
    for stops in (0, 1):
        for answer in ranks.run(2, "train", config=settings, stop_after=257 * (5 + stops), stops=stops):
            assert answer["stopped"].startswith("stopped at step")
    (name,) = {answer["stopped"].split(";")[0] for answer in [answer]}
    assert name == "stopped at step 11"
    ended, _ = ranks.run(2, "train", config=settings)
    assert ended == {key: by_ranks[2][key] for key in ("result", "digest")}
    assert _metrics(settings) == by_ranks[2]["metrics"]


@pytest.mark.parametrize("world", [1, 2])
def test_bars_end_at_their_totals(ranks: Ranks, logs: Path, tmp_path: Path, world: int) -> None:
    """The last batch of an epoch is of another size; the run goes on in its second epoch."""
    settings = config(logs, tmp_path / "run")
    train_rows, valid_rows = (ParquetLog(settings["logs"][name], SCHEMA).rows for name in ("train", "valid"))
    steps = ParquetLog(settings["logs"]["train"], SCHEMA).batch_count(257)
    assert steps * 257 != train_rows
    stopped, *_ = ranks.run(world, "bars", config=settings, stop_after=train_rows + 3 * 257)
    (_, *collected), (_, *trained), *evaluated = stopped
    pieces = [piece.rows for piece in ParquetLog(settings["logs"]["train"], SCHEMA).pieces]
    assert collected == [sum(pieces[::world])] * 2
    assert trained == [2 * train_rows, train_rows + 3 * 257]
    assert evaluated
    ended, *_ = ranks.run(world, "bars", config=settings)
    assert ended[0] == ["train", 2 * train_rows, 2 * train_rows]
    assert {tuple(of) for of in [*evaluated, *ended[1:]]} == {("evaluate", valid_rows, valid_rows)}


@pytest.mark.parametrize("world", [2, 3])
def test_looking_ahead_changes_nothing(ranks: Ranks, logs: Path, tmp_path: Path, world: int) -> None:
    """Last batches of two rows, evaluations, a stop on the way and going on: the same bits, saved at the same place."""
    files = {"train": str(max((logs / "train").iterdir())), "valid": str(logs / "valid")}  # 250 rows: 62 x 4 + 2
    training = {**config(logs, tmp_path)["training"], "batch_size": 4, "evaluate_every": 25}
    ended, saved = [], []
    for ahead in (False, True):
        output = tmp_path / str(ahead)
        settings = {**config(logs, output, training=training), "logs": files}
        (stopped,) = {of["stopped"] for of in ranks.run(world, "train", config=settings, ahead=ahead, stop_after=277)}
        assert stopped.startswith("stopped at step 70;")
        saved.append(json.loads(max(output.glob("checkpoints/*/state.json")).read_text())["at"])
        ended.append((ranks.run(world, "train", config=settings, ahead=ahead), _metrics(settings)))
    assert saved[0] == saved[1]
    assert (saved[0]["step"], saved[0]["cursor"]["epoch"], saved[0]["cursor"]["row"]) == (70, 1, 28)
    assert ended[0] == ended[1]


@pytest.mark.parametrize("slow", [0, 1])
def test_who_says_that_the_checkpoint_is_saved_has_those_of_all(
    ranks: Ranks, logs: Path, tmp_path: Path, slow: int
) -> None:
    for answer in ranks.run(2, "train", config=config(logs, tmp_path), stop_after=257, slow=slow):
        assert "the checkpoint is saved" in answer["stopped"]
        assert {f"table-{rank:05d}.safetensors" for rank in range(2)} < set(answer["files"])
        assert all(answer["files"].values())


@pytest.mark.parametrize("table", [None, ADAM], ids=["penalty", "adam"])
def test_a_checkpoint_is_the_same_for_any_number_of_ranks(
    ranks: Ranks, logs: Path, tmp_path: Path, table: dict[str, Any] | None
) -> None:
    settings = config(logs, tmp_path / "run", **({} if table is None else {"table": table}))
    for world, to in ((2, 3), (3, 1), (1, 2)):
        before, *_ = (
            ranks.run(world, "train", config=settings, stop_after=514)
            if world > 1
            else [train(ALONE, settings, stop_after=514)]
        )
        assert before["stopped"]
        (name,) = Checkpoints(tmp_path / "run" / "checkpoints").names()[-1:]
        files = {path.name for path in (tmp_path / "run" / "checkpoints" / name).iterdir()}
        tables = {f"table-{rank:05d}.safetensors" for rank in range(world)} if world > 1 else {"table.safetensors"}
        assert files == {"state.json", "dense.safetensors", "adam.safetensors", *tables}
        digests = [ranks.run(w, "digest", config=settings) if w > 1 else [digest(ALONE, settings)] for w in (world, to)]
        assert all(found == digests[0][0] for of in digests for found in of)


@pytest.mark.parametrize("bucket_bytes", [None, 4096, 64])
@pytest.mark.parametrize("encoding", [None, "int8"])
def test_a_version_is_the_same_from_any_number_of_ranks(
    ranks: Ranks, by_ranks: dict[int, dict[str, Any]], tmp_path: Path, bucket_bytes: int | None, encoding: str | None
) -> None:
    settings, store = by_ranks[2]["config"], tmp_path / "store"
    how = {"config": settings, "store": str(store), "bucket_bytes": bucket_bytes, "encoding": encoding}
    versions = [publish(ALONE, **how)]
    for world in (2, 3):
        version, *others = ranks.run(world, "publish", **how)
        assert set(others) == {version}
        versions.append(version)
    expected, manifest = files_of(store, versions[0]), _said(store, versions[0])
    buckets = Store(store).open(versions[0]).table.layout.buckets
    assert len([name for name in expected if name.startswith("table/")]) == buckets
    assert buckets >= {None: 1, 4096: 4, 64: 250}[bucket_bytes]
    for version in versions[1:]:
        assert files_of(store, version) == expected
        assert _said(store, version) == manifest
        Store(store).verify(version)


def _said(store: Path, version: str) -> dict[str, Any]:
    """A manifest without what each version has of its own; sums of squares to a rounding."""
    body: dict[str, Any] = json.loads((store / "versions" / version / "manifest.json").read_text())
    for name in ("version", "created", "space"):
        del body[name]
    if body["table"].get("loss"):
        body["table"]["loss"]["relative"] = float(np.float32(body["table"]["loss"]["relative"]))
    return body


@pytest.mark.parametrize("full", [0, 1])
def test_a_version_that_one_rank_can_not_write_is_none(
    ranks: Ranks, by_ranks: dict[int, dict[str, Any]], tmp_path: Path, full: int
) -> None:
    how = {"config": by_ranks[2]["config"], "store": str(tmp_path / "store"), "bucket_bytes": 4096}
    answers = ranks.answers(2, "publish", **how, full=full, seconds=240)
    assert all("No space left on device" in answer["text"] for answer in answers)
    assert [answer["error"] for answer in answers] == ["StoreError"] * 2
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    version, _ = ranks.run(2, "publish", **how)
    assert Store(tmp_path / "store").resolve("latest") == version


def test_a_delta_is_the_same_from_any_number_of_ranks(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    settings, store = config(logs, tmp_path / "run", table={**ADAM, "rows": 30_000}), tmp_path / "store"
    train(ALONE, settings, stop_after=257)
    base = publish(ALONE, settings, str(store))
    train(ALONE, settings, stop_after=257)
    versions = [publish(ALONE, settings, str(store), base=base)]
    for world in (2, 3):
        versions += ranks.run(world, "publish", config=settings, store=str(store), base=base)[:1]
    expected = files_of(store, versions[0])
    assert 0 < Store(store).open(versions[0]).manifest["delta"]["rows"] < 5_000
    for version in versions[1:]:
        assert files_of(store, version) == expected
        assert _said(store, version) == _said(store, versions[0])


def test_versions_on_the_way_hold_what_each_rank_changed(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    settings = config(
        logs,
        tmp_path / "run",
        table={**ADAM, "rows": 9_999},
        publish={"store": str(store), "every_rows": 1100, "whole_every": 50, "alias": "canary"},
    )
    found = ranks.run(2, "train", config=settings, bucket_bytes=4096)
    there = Store(store)
    whole, *deltas = there.versions()
    assert len(deltas) > 4
    assert there.open(whole.id).delta is None
    rows = [there.open(of.id).manifest["delta"]["rows"] for of in deltas]
    assert all(0 < of < 9_999 for of in rows), rows
    assert len(set(rows)) > 1, rows  # only what was hit meanwhile
    assert found[0]["result"]["version"] == there.resolve("latest") == there.resolve("canary")
    # The last one is the best model, put back: laid over one another, the deltas are that whole table.
    best = publish(ALONE, {**settings, "output": str(_best_alone(tmp_path))}, str(tmp_path / "other"))
    ours, theirs = there.open("latest"), Store(tmp_path / "other").open(best)
    assert ours.table.read_rows(0, 9_999).equal(theirs.table.read_rows(0, 9_999))
    state, other = ours.optimizer_state().table, theirs.optimizer_state().table
    assert all(state[name].equal(other[name]) for name in other)


def _best_alone(folder: Path) -> Path:
    """A copy of the run with its best checkpoint only."""
    shutil.copytree(folder / "run", folder / "best")
    checkpoints = Checkpoints(folder / "best" / "checkpoints")
    state = json.loads((checkpoints.folder / checkpoints.names()[-1] / "state.json").read_text())
    checkpoints.prune({state["at"]["best_name"]})
    return folder / "best"


def test_a_version_is_gone_on_from_by_ranks(
    ranks: Ranks, by_ranks: dict[int, dict[str, Any]], logs: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    start = {"store": store, "version": publish(ALONE, by_ranks[2]["config"], store, bucket_bytes=4096)}
    plain = {key: value for key, value in config(logs, tmp_path).items() if key not in ("schema", "table", "model")}
    results = []
    for world in (1, 2):
        settings = {**plain, "start": start, "output": str(tmp_path / str(world))}
        results += ranks.run(world, "train", config=settings)[:1]
    one, two = (result["result"]["valid"] for result in results)
    assert two["auc"] == pytest.approx(one["auc"], abs=1e-4)
    assert two["logloss"] == pytest.approx(one["logloss"], abs=1e-5)


@pytest.mark.parametrize(("rows", "message"), [(2, "batches of 2 rows; expected a row for each of 3 ranks")])
def test_ranks_without_data_are_refused(ranks: Ranks, logs: Path, tmp_path: Path, rows: int, message: str) -> None:
    settings = config(logs, tmp_path / "run", training={"batch_size": rows})
    for answer in ranks.answers(3, "train", config=settings, seconds=240):
        assert answer["error"] == "GroupError"
        assert message in answer["text"]


def test_a_folder_of_another_run_is_refused_on_every_rank(
    ranks: Ranks, by_ranks: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    settings = {**by_ranks[2]["config"], "model": {"name": "dnn"}}
    for answer in ranks.answers(2, "train", config=settings, seconds=240):
        assert answer["error"] == "CheckpointError"
        assert "found another model" in answer["text"]


@pytest.mark.slow
def test_torchrun(logs: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    """The command line, as users start it; one rank's error ends all."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**alone["config"], "output": str(tmp_path / "run")}))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "embstore"]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [*start, "train", str(path), "--json", *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)

    done = run()
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["valid"]["auc"] == pytest.approx(alone["result"]["valid"]["auc"], abs=1e-4)
    assert done.stderr.count("step 8 ") == 1  # rank 0 alone shows
    failed = run("--set", "training.batch_size=1", "--fresh")
    assert failed.returncode != 0
    assert failed.stderr.count("GroupError: batches of 1 rows") == 1


@pytest.mark.slow
def test_frappe(ranks: Ranks, shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Three epochs of the real log by 1, 2 and 3 processes: the same curve, the same AUC.

    With ReLU a rounding now and then moves a number across its kink, and Adam makes 1e-4 of it in the loss.
    """
    source = shared_data("frappe-x1r")
    fields = ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"]
    settings = {
        "logs": {name: str(source / f"{name}.parquet") for name in ("train", "valid", "test")},
        "schema": {"label": "label", "features": fields},
        "table": {"rows": 20_000, "dim": 8, "optimizer": {"learning_rate": 0.01, "eps": 1e-5, "l2": 0.02}},
        "model": {"name": "dcn", "structure": "parallel", "hidden": [64], "cross_layers": 2, "activation": "gelu"},
        "training": {"batch_size": 2048, "epochs": 3, "learning_rate": 0.003, "evaluate_every": 40},
    }
    found = []
    for world in (1, 2, 3):
        output = {"output": str(tmp_path / str(world))}
        found.append(ranks.run(world, "train", config={**settings, **output}, seconds=600)[0]["result"])
        found[-1]["curve"] = [line["train_loss"] for line in _metrics({**settings, **output})]
    for other in found[1:]:
        assert other["curve"] == pytest.approx(found[0]["curve"], rel=1e-4)
        for log in ("valid", "test"):
            assert other[log]["auc"] == pytest.approx(found[0][log]["auc"], abs=1e-4)
