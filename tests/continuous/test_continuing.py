"""Training that goes on from a version, and publishes on its way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from days import OPTIMIZERS, first_run, make_run, same_rows

from embstore import models
from embstore.continuous import Publisher, PublishSettings
from embstore.errors import ConfigError, SchemaError, VersionNotFoundError
from embstore.logs import ParquetLog
from embstore.progress import Progress
from embstore.run import Run
from embstore.settings import RunConfig
from embstore.store import Store
from embstore.training import Trainer


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["rowwise_adagrad", "adam", "penalty"])
def test_a_run_goes_on_where_a_version_stopped(logs: Path, tmp_path: Path, optimizer: dict[str, Any]) -> None:
    store = Store(tmp_path / "store")
    first = first_run(logs, tmp_path, optimizer)
    first.train()
    version = store.publish(first.bundle())
    store.promote(version.id)
    second = make_run(logs, "second", tmp_path, start={"store": str(store.root), "version": "production"})
    second.train()

    judge = first._restored()  # the same model, never published
    judge.model.train()
    log = ParquetLog(str(logs / "second"), first.schema)
    trainer = Trainer(judge.model, second.config.training, tmp_path / "judge")
    trainer.optimizer.load_state_dict(judge.optimizer.state_dict())
    trainer.fit(log)
    found, expected = second.trained(), judge.model
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name

    bundle = second.bundle()
    assert bundle.lineage["space"] == version.space
    last = store.publish(bundle, parent=version.id)
    assert last.space == version.space
    saved = RunConfig.from_yaml(tmp_path / "second/config.yaml")
    assert saved.start is not None
    assert saved.start.version == version.id


def test_a_run_publishes_on_its_way(logs: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    publish = {"store": root, "every_rows": 1000, "whole_every": 3, "alias": "canary"}
    first = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    result = first.train()
    store = Store(root)
    versions = [store.open(info.id) for info in store.versions()]
    depths = [0 if version.delta is None else version.delta.depth for version in versions]
    assert depths == [0, 1, 2] * (len(depths) // 3) + list(range(len(depths) % 3))
    assert len(versions) == 7  # 6,000 rows, and the end
    assert [version.parent for version in versions] == [None, *(version.id for version in versions[:-1])]
    steps = [version.manifest["optimizer"]["steps"] for version in versions]
    assert steps == [2, 4, 6, 8, 10, 12, 12]
    for version in versions:
        store.verify(version.id)
    same_rows(versions[-1], first)
    assert result["version"] == versions[-1].id == store.aliases()["canary"]

    second = make_run(logs, "second", tmp_path, start={"store": root}, publish={"store": root, "every_rows": 2500})
    second.train()
    (after, *_) = [store.open(info.id) for info in store.versions()[7:]]
    assert after.parent == versions[-1].id
    assert after.delta is not None
    assert 0 < after.delta.rows < 1000
    same_rows(store.open(), second)


@pytest.mark.parametrize("significance", [0.0, 0.05])
def test_a_run_that_crashed_after_publishing(logs: Path, tmp_path: Path, significance: float) -> None:
    """The rows trained after its last checkpoint are lost, though they were published."""
    publish = {"store": str(tmp_path / "store"), "every_rows": 1000, "significance": significance}
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    published = 0
    say = run.progress.say

    class Crash(BaseException):
        pass

    def crash(line: str) -> None:
        nonlocal published
        published += line.startswith("published")
        if published == 5:
            raise Crash

    run.progress.say = crash  # type: ignore[method-assign]
    try:
        with pytest.raises(Crash):
            run.train()
    finally:
        run.progress.say = say  # type: ignore[method-assign]
    store = Store(tmp_path / "store")
    assert len(store.versions()) == 5
    again = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    again.train()
    table, last = again.trained().table, store.open()
    change_N = (last.table.read_rows(0, table.num_rows) - table.read_rows(0, table.num_rows)).norm(dim=1)
    assert float(change_N.max()) <= significance
    assert len(store.versions()) > 6


def test_a_publisher_of_another_process_s_version_compares_all_rows(logs: Path, tmp_path: Path) -> None:
    """What was trained and published after the last checkpoint isn't known to the process that goes on from it."""
    run = first_run(logs, tmp_path, OPTIMIZERS[0])
    run.train()
    settings = PublishSettings(store=str(tmp_path / "store"), every_rows=1)
    trainer = run._restored()
    table = trainer.model.table
    Publisher(settings, trainer.model, lambda: run._bundle(trainer), tmp_path).publish()
    table.weight[5] += 1  # by no training step
    publisher = Publisher(settings, trainer.model, lambda: run._bundle(trainer), tmp_path)
    version = publisher.step(1)
    assert version is not None
    assert version.delta is not None
    assert version.delta.rows == 1
    assert torch.equal(version.table.read_rows(0, table.num_rows), table.weight)
    table.weight[6] += 1
    assert publisher.step(1) is None  # from its own version on, only rows that training touched are looked at


def test_a_run_stopped_after_its_alias_moved_goes_on_from_what_it_meant(logs: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = first_run(logs, tmp_path, OPTIMIZERS[0])
    first.train()
    version = store.publish(first.bundle())
    start = {"store": str(store.root), "version": "latest"}
    make_run(logs, "second", tmp_path, start=start).train()
    store.publish(first.bundle())
    again = make_run(logs, "second", tmp_path, start=start)
    assert again.start is not None
    assert again.start.id == version.id
    assert again.train()["steps"] == 12
    fresh = {**start, "version": "latest"}
    Run.clear(tmp_path / "second")
    assert make_run(logs, "second", tmp_path, start=fresh).start.id == store.open().id  # type: ignore[union-attr]


def test_settings_that_cannot_be(logs: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    start = {"store": str(store.root)}
    with pytest.raises(VersionNotFoundError):
        make_run(logs, "second", tmp_path, start=start)
    first = first_run(logs, tmp_path, OPTIMIZERS[0])
    first.train()
    store.publish(first.bundle())
    for settings, what in (
        ({"table": {"dim": 8}}, "config.table.dim"),
        ({"table": {"rows": 100}}, "config.table.rows"),
        ({"model": {"name": "dcn", "hidden": [4]}}, "config.model"),
    ):
        with pytest.raises(ConfigError, match=what):
            make_run(logs, "second", tmp_path, start=start, **settings)
    other = make_run(logs, "second", tmp_path, start=start, table={"optimizer": {"name": "sgd"}})
    with pytest.raises(ConfigError, match="optimizer state"):
        other.train()
    for wrong in (
        {"alias": "latest"},
        {"alias": "Canary"},
        {"encoding": "int9"},
        {"every_rows": 0},
        {"every_minutes": -1.0},
        {"whole_every": 0},
        {"significance": -1.0},
    ):
        with pytest.raises(ConfigError, match=f"publish.{next(iter(wrong))}"):
            PublishSettings(store="store", **wrong)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "first/result.json").read_text()).get("version") is None


def test_what_is_published_of_one_run_is_of_one_space(logs: Path, tmp_path: Path) -> None:
    """The case: the same run, published as float32 and as int8, made two spaces, whose vectors nobody may compare."""
    root = str(tmp_path / "store")
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish={"store": root, "every_rows": 3000})
    run.train()
    again = Run.open(run.folder, models.build)
    Store(root).publish(again.bundle(), encoding="int8")
    Store(tmp_path / "other").publish(again.bundle())
    spaces = [
        store.open(info.id).space for store in (Store(root), Store(tmp_path / "other")) for info in store.versions()
    ]
    assert len(spaces) == 5
    assert len(set(spaces)) == 1
    assert Store(root).diff(Store(root).versions()[0].id).same_space
    Run.clear(run.folder)
    run.train()
    assert Store(root).open().space not in spaces


def test_every_version_may_be_whole(logs: Path, tmp_path: Path) -> None:
    publish = {"store": str(tmp_path / "store"), "every_rows": 2000, "whole_every": 1}
    first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()
    store = Store(tmp_path / "store")
    assert [store.open(info.id).delta for info in store.versions()] == [None] * 4


def test_a_version_without_optimizer_is_warned_of_before_and_after(logs: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = first_run(logs, tmp_path, OPTIMIZERS[0])
    first.train()
    version = store.publish(replace(first.bundle(), optimizer=None))
    second = make_run(logs, "second", tmp_path, start={"store": str(store.root)})
    lines: list[str] = []
    second.progress = Progress()
    second.progress.say = lines.append  # type: ignore[method-assign]
    result = second.train()
    assert lines[0].startswith(f"warning: {version.id} was published without the optimizers' state")
    assert result["notes"][0] == lines[0]
    store.publish(first.bundle())
    Run.clear(second.folder)
    assert not any(
        "optimizer" in note
        for note in make_run(logs, "second", tmp_path, start={"store": str(store.root)}).train()["notes"]
    )


def test_columns_of_another_type_are_refused(logs: Path, tmp_path: Path) -> None:
    """Their values would be other tokens: all that was learnt would be out of reach, and nobody told."""
    store = Store(tmp_path / "store")
    first = first_run(logs, tmp_path, OPTIMIZERS[0])
    first.train()
    version = store.publish(first.bundle())
    table = pq.read_table(logs / "second")
    place, users = table.column_names.index("user_id"), table["user_id"]
    for column, refused in ((pa.array(range(len(users))), True), (users.cast(pa.large_string()), False)):
        changed = table.set_column(place, "user_id", column)
        folder = tmp_path / str(column.type)
        (folder / "second").mkdir(parents=True)
        pq.write_table(changed, folder / "second/part.parquet")
        run = make_run(folder, "second", folder / "run", start={"store": str(store.root)})
        if refused:
            with pytest.raises(SchemaError, match=f"expected string, as when {version.id}.*found int64"):
                run.train()
            assert not (folder / "run").exists()
        else:
            run.train()


def test_a_finished_run_is_published_once(logs: Path, tmp_path: Path) -> None:
    publish = {"store": str(tmp_path / "store")}
    ids = [first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()["version"] for _ in range(2)]
    assert ids[0] == ids[1]
    assert len(Store(tmp_path / "store").versions()) == 1


def test_a_store_that_cannot_be_is_said_before_training(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(tmp_path / "file")})
    with pytest.raises(ConfigError, match="a folder that can be made"):
        run.train()
    assert not (tmp_path / "first/checkpoints").exists()
