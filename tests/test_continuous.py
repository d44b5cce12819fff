"""Training that goes on from a version, and publishes on its way."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from embstore import continuous, models
from embstore.cli import cli
from embstore.config import parse
from embstore.continuous import Publisher, PublishSettings
from embstore.errors import CheckpointError, ConfigError, SchemaError, StoreError, VersionNotFoundError
from embstore.logs import ParquetLog
from embstore.progress import Progress
from embstore.run import Run
from embstore.settings import RunConfig
from embstore.store import Store, Version
from embstore.store.log import stamp
from embstore.synthetic import SyntheticLog
from embstore.training import Trainer

LOG = SyntheticLog(rows=12_000, days=6, users=300, items=100)
OPTIMIZERS = [{"learning_rate": 0.1}, {"name": "adam", "learning_rate": 0.01}, {"learning_rate": 0.1, "l2": 1e-3}]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    for name, days in (("first", (0, 3)), ("second", (3, 6))):
        LOG.write(folder / name, rows=LOG.day_rows(*days))
    return folder


def _run(logs: Path, name: str, folder: Path, **settings: Any) -> Run:
    config: dict[str, Any] = {
        "logs": {"train": str(logs / name)},
        "training": {"batch_size": 500, "checkpoint_every": 3},
        "output": str(folder / name),
        **settings,
    }
    return Run(parse(RunConfig, config), models.build)


def _first(logs: Path, folder: Path, optimizer: dict[str, Any], **settings: Any) -> Run:
    schema = {"label": "click", "features": ["user_id", {"name": "category", "exact": True}], "dense": ["price"]}
    table = {"rows": 2000, "dim": 4, "seed": 3, "optimizer": optimizer}
    model = {"name": "dnn", "hidden": [8]}
    return _run(logs, "first", folder, schema=schema, table=table, model=model, **settings)


def _same_rows(version: Version, run: Run) -> None:
    table = run.trained().table
    assert torch.equal(version.table.read_rows(0, table.num_rows), table.read_rows(0, table.num_rows))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["rowwise_adagrad", "adam", "penalty"])
def test_a_run_goes_on_where_a_version_stopped(logs: Path, tmp_path: Path, optimizer: dict[str, Any]) -> None:
    store = Store(tmp_path / "store")
    first = _first(logs, tmp_path, optimizer)
    first.train()
    version = store.publish(first.bundle())
    store.promote(version.id)
    second = _run(logs, "second", tmp_path, start={"store": str(store.root), "version": "production"})
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
    first = _first(logs, tmp_path, OPTIMIZERS[0], publish=publish)
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
    _same_rows(versions[-1], first)
    assert result["version"] == versions[-1].id == store.aliases()["canary"]

    second = _run(logs, "second", tmp_path, start={"store": root}, publish={"store": root, "every_rows": 2500})
    second.train()
    (after, *_) = [store.open(info.id) for info in store.versions()[7:]]
    assert after.parent == versions[-1].id
    assert after.delta is not None
    assert 0 < after.delta.rows < 1000
    _same_rows(store.open(), second)


@pytest.mark.parametrize("significance", [0.0, 0.05])
def test_a_run_that_crashed_after_publishing(logs: Path, tmp_path: Path, significance: float) -> None:
    """The rows trained after its last checkpoint are lost, though they were published."""
    publish = {"store": str(tmp_path / "store"), "every_rows": 1000, "significance": significance}
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish=publish)
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
    again = _first(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    again.train()
    table, last = again.trained().table, store.open()
    change_N = (last.table.read_rows(0, table.num_rows) - table.read_rows(0, table.num_rows)).norm(dim=1)
    assert float(change_N.max()) <= significance
    assert len(store.versions()) > 6


def test_a_publisher_of_another_process_s_version_compares_all_rows(logs: Path, tmp_path: Path) -> None:
    """What was trained and published after the last checkpoint isn't known to the process that goes on from it."""
    run = _first(logs, tmp_path, OPTIMIZERS[0])
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
    first = _first(logs, tmp_path, OPTIMIZERS[0])
    first.train()
    version = store.publish(first.bundle())
    start = {"store": str(store.root), "version": "latest"}
    _run(logs, "second", tmp_path, start=start).train()
    store.publish(first.bundle())
    again = _run(logs, "second", tmp_path, start=start)
    assert again.start is not None
    assert again.start.id == version.id
    assert again.train()["steps"] == 12
    fresh = {**start, "version": "latest"}
    Run.clear(tmp_path / "second")
    assert _run(logs, "second", tmp_path, start=fresh).start.id == store.open().id  # type: ignore[union-attr]


def test_settings_that_cannot_be(logs: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    start = {"store": str(store.root)}
    with pytest.raises(VersionNotFoundError):
        _run(logs, "second", tmp_path, start=start)
    first = _first(logs, tmp_path, OPTIMIZERS[0])
    first.train()
    store.publish(first.bundle())
    for settings, what in (
        ({"table": {"dim": 8}}, "config.table.dim"),
        ({"table": {"rows": 100}}, "config.table.rows"),
        ({"model": {"name": "dcn", "hidden": [4]}}, "config.model"),
    ):
        with pytest.raises(ConfigError, match=what):
            _run(logs, "second", tmp_path, start=start, **settings)
    other = _run(logs, "second", tmp_path, start=start, table={"optimizer": {"name": "sgd"}})
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
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish={"store": root, "every_rows": 3000})
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
    _first(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()
    store = Store(tmp_path / "store")
    assert [store.open(info.id).delta for info in store.versions()] == [None] * 4


def test_a_version_without_optimizer_is_warned_of_before_and_after(logs: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = _first(logs, tmp_path, OPTIMIZERS[0])
    first.train()
    version = store.publish(replace(first.bundle(), optimizer=None))
    second = _run(logs, "second", tmp_path, start={"store": str(store.root)})
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
        for note in _run(logs, "second", tmp_path, start={"store": str(store.root)}).train()["notes"]
    )


def test_columns_of_another_type_are_refused(logs: Path, tmp_path: Path) -> None:
    """Their values would be other tokens: all that was learnt would be out of reach, and nobody told."""
    store = Store(tmp_path / "store")
    first = _first(logs, tmp_path, OPTIMIZERS[0])
    first.train()
    version = store.publish(first.bundle())
    table = pq.read_table(logs / "second")
    place, users = table.column_names.index("user_id"), table["user_id"]
    for column, refused in ((pa.array(range(len(users))), True), (users.cast(pa.large_string()), False)):
        changed = table.set_column(place, "user_id", column)
        folder = tmp_path / str(column.type)
        (folder / "second").mkdir(parents=True)
        pq.write_table(changed, folder / "second/part.parquet")
        run = _run(folder, "second", folder / "run", start={"store": str(store.root)})
        if refused:
            with pytest.raises(SchemaError, match=f"expected string, as when {version.id}.*found int64"):
                run.train()
            assert not (folder / "run").exists()
        else:
            run.train()


def test_a_finished_run_is_published_once(logs: Path, tmp_path: Path) -> None:
    publish = {"store": str(tmp_path / "store")}
    ids = [_first(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()["version"] for _ in range(2)]
    assert ids[0] == ids[1]
    assert len(Store(tmp_path / "store").versions()) == 1


def test_a_store_that_cannot_be_is_said_before_training(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(tmp_path / "file")})
    with pytest.raises(ConfigError, match="a folder that can be made"):
        run.train()
    assert not (tmp_path / "first/checkpoints").exists()


def _listened(run: Run, heard: Callable[[str], object]) -> list[str]:
    """The lines that a run says; each is passed on."""
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        heard(line)

    run.progress = Progress()
    run.progress.say = say  # type: ignore[method-assign]
    return lines


def _collect(root: Path, **later: float) -> None:
    """Another publishes to the store, and gc takes what nothing holds."""
    store = Store(root, clock=lambda: datetime.now(UTC) + timedelta(**later))
    store.publish(store.open(store.versions()[-1].id).bundle())
    store.gc(keep=1)


def test_gc_leaves_what_the_next_version_is_a_delta_of(logs: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    publish = {"store": str(root), "every_rows": 1000, "whole_every": 100}
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    lines = _listened(run, lambda line: _collect(root) if line.startswith("published") else None)
    result = run.train()
    assert len(lines) == 7
    assert not any("whole" in line or "warning" in line for line in lines)
    _same_rows(Store(root).open(result["version"]), run)
    Store(root).gc(keep=1)
    _collect(root)  # what the run let go of at its end
    assert [info.id for info in Store(root).versions()] == [Store(root).resolve("latest")]


def test_a_base_that_was_collected_while_a_run_trained(logs: Path, tmp_path: Path) -> None:
    """The machine slept for a day, gc took the run's last version: the next is whole."""
    root, slept = tmp_path / "store", []
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(root), "every_rows": 1000, "whole_every": 100})

    def sleep(line: str) -> None:
        if line.startswith("published") and not slept:
            slept.append(line)
            _collect(root, days=1)

    lines = _listened(run, sleep)
    result = run.train()
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "was collected on" in warning
    assert warning.endswith("publishing whole")
    assert not any("no smaller" in line for line in lines)
    store = Store(root)
    _same_rows(store.open(result["version"]), run)
    assert slept[0].split()[1] == store.lineage(result["version"])[-1]
    assert slept[0].split()[1] not in {info.id for info in store.versions()}


def test_a_lease_is_renewed_while_a_run_trains(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _first(logs, tmp_path, OPTIMIZERS[0])
    run.train()
    trainer, now = run._restored(), 0.0
    monkeypatch.setattr(continuous, "monotonic", lambda: now)
    start, warnings = datetime.now(UTC), []
    settings = PublishSettings(store=str(tmp_path / "store"))
    publisher = Publisher(settings, trainer.model, lambda: run._bundle(trainer), tmp_path, warn=warnings.append)
    log = publisher.store._log
    log.clock = lambda: start + timedelta(seconds=now)
    with publisher:
        version = publisher.publish().id
        for hours in range(0, 48, 2):
            now = hours * 3600.0
            publisher.step(1)
            (lease,) = log.state().leases.values()
            assert lease.version == version
            assert lease.until > stamp(log.clock(), seconds=3600)
        assert len(list((tmp_path / "store" / "log").iterdir())) < 30
        log.add = lambda entry: (_ for _ in ()).throw(StoreError("no network"))  # type: ignore[method-assign]
        now += 3 * 3600
        assert publisher.step(1) is None
        assert "can't be kept from gc: no network" in warnings[0]
        del log.add
    assert not log.state().leases
    assert len(warnings) == 1


@pytest.mark.parametrize("error", [StoreError("no network"), OSError(28, "No space left on device")])
def test_a_version_that_cannot_be_published_is_said_and_tried_again(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    publish, calls = Store.publish, []

    def failing(store: Store, *args: Any, **options: Any) -> Version:
        calls.append(options)
        if len(calls) in (2, 3):
            raise error
        return publish(store, *args, **options)

    monkeypatch.setattr(Store, "publish", failing)
    root = tmp_path / "store"
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(root), "every_rows": 1000})
    lines = _listened(run, lambda line: None)
    result = run.train()
    said = [line.partition(" ")[0] for line in lines]
    assert said == ["published", "warning:", "warning:", "published", "published", "published", "published"]
    logged = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "warning" in line] == [4, 6]
    assert str(error) in logged[0]["warning"]
    store = Store(root)
    steps = [store.open(info.id).manifest["optimizer"]["steps"] for info in store.versions()]
    assert steps == [2, 8, 10, 12, 12]
    _same_rows(store.open(result["version"]), run)
    assert store.open(store.versions()[1].id).delta is not None  # rows touched before the failures are in it


def test_a_last_version_that_cannot_be_published_is_an_error(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(root)})

    def failing(*_: Any, **__: Any) -> Version:
        raise StoreError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "publish", failing)
        with pytest.raises(StoreError, match="is trained, but not published; found no network; nothing") as raised:
            run.train()
    assert run.files.result()["steps"] == 12
    command = shlex.split(re.search("`(.*)`", str(raised.value))[1])  # type: ignore[index]
    assert CliRunner().invoke(cli, command[1:], catch_exceptions=False).exit_code == 0
    _same_rows(Store(root).open(), run)
    assert _first(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(root)}).train()["version"]  # so does the run


@pytest.mark.parametrize(
    "damaged", [b"{", b"[]", b"{}", b"\xff", b'{"version": 5}', b'{"version": "latest"}', "folder", "link"]
)
def test_a_damaged_record_of_what_was_published(logs: Path, tmp_path: Path, damaged: bytes | str) -> None:
    run = _first(logs, tmp_path, OPTIMIZERS[0])
    run.train()
    trainer, warnings = run._restored(), []
    settings = PublishSettings(store=str(tmp_path / "store"))
    first = Publisher(settings, trainer.model, lambda: run._bundle(trainer), tmp_path).publish()
    path = tmp_path / "published.json"
    path.unlink()
    if isinstance(damaged, bytes):
        path.write_bytes(damaged)
    elif damaged == "folder":
        path.mkdir()
    else:
        path.symlink_to(logs)
    publisher = Publisher(
        settings, trainer.model, lambda: run._bundle(trainer), tmp_path, start=first, warn=warnings.append
    )
    (warning,) = warnings
    assert "published.json" in warning
    assert warning.endswith("the next version is whole")
    trainer.model.table.weight[5] += 1
    version = publisher.publish()
    assert (version.delta, version.parent, version.space) == (None, first.id, first.space)
    trainer.model.table.weight[6] += 1
    assert publisher.publish(restored=True).delta is not None


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("alias", [None, "canary"])
@pytest.mark.parametrize("from_start", [False, True])
def test_the_version_after_a_damaged_one_is_whole(
    logs: Path, tmp_path: Path, alias: str | None, from_start: bool
) -> None:
    """The case: deltas of it that no other process could open; or, with an alias or a start, no version ever again."""
    root = tmp_path / "store"
    publish = {"store": str(root), "every_rows": 1000, "whole_every": 100, "alias": alias}
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish=None if from_start else publish)
    damaged: list[str] = []

    def damage(line: str) -> None:
        if line.startswith("published") and not damaged:
            damaged.append(Store(root).resolve("latest"))
            _damage(root / "versions" / damaged[0] / "model/dense.safetensors")

    if from_start:
        run.train()
        Store(root).publish(run.bundle())
        run = _run(logs, "second", tmp_path, start={"store": str(root)}, publish=publish)
        damage("published")
    lines = _listened(run, damage)
    result = run.train()
    (warning,) = [line for line in lines if "no delta" in line]
    assert f"no delta of {damaged[0]}" in warning
    assert warning.endswith("publishing whole")
    store = Store(root)
    first, *others = [info.id for info in store.versions()]
    assert first == damaged[0]
    assert len(others) == 6 + from_start
    for version in others:
        store.verify(version)
    assert [store.open(version).delta is None for version in others] == [True] + [False] * (len(others) - 1)
    assert store.lineage(result["version"])[-1] == first
    assert alias is None or store.aliases()[alias] == result["version"]
    _same_rows(store.open(result["version"]), run)


def test_a_last_version_that_is_not_promoted_is_an_error(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case: a warning like any other, and exit 0, with the alias on an older version for good."""
    root = tmp_path / "store"
    publish = {"store": str(root), "alias": "canary"}

    def failing(*_: Any) -> None:
        raise StoreError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "promote", failing)
        with pytest.raises(StoreError, match="is published, but not canary; found no network; `embstore promote"):
            _first(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()
    (info,) = Store(root).versions()
    assert json.loads((tmp_path / "first/published.json").read_text()) == {"version": info.id}
    assert Store(root).aliases() == {"latest": info.id}
    assert _first(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()["version"] == info.id
    assert Store(root).aliases()["canary"] == info.id
    assert len(Store(root).versions()) == 1


def test_a_run_that_fails_before_it_trains_holds_no_lease(logs: Path, tmp_path: Path) -> None:
    publish = {"store": str(tmp_path / "store")}
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    run.train()
    result = run.folder / "result.json"
    result.write_text("{")
    with pytest.raises(CheckpointError):
        run.train()
    result.unlink()
    assert not Store(tmp_path / "store")._log.state().leases
    trainer = run._restored()
    publisher = Publisher(PublishSettings(**publish), trainer.model, lambda: run._bundle(trainer), run.folder)
    state = publisher.store._log.state
    assert not state().leases
    with publisher:
        (lease,) = state().leases.values()
        assert publisher.last is not None
        assert lease.version == publisher.last.id
    assert not state().leases


@pytest.mark.parametrize("checkpoint", [False, True])
def test_what_went_wrong_before_training_is_written_down(logs: Path, tmp_path: Path, checkpoint: bool) -> None:
    """The case: cut off when the run went on; or, without a checkpoint, after lines of a run that never had one."""
    publish = {"store": str(tmp_path / "store")}
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    if checkpoint:
        run.train()
    else:
        run.folder.mkdir()
    lines = _lines(run)
    with (run.folder / "metrics.jsonl").open("a") as out:
        out.write('{"step": 4, "of": "a run that is gone"}\n')
    (run.folder / "published.json").write_text("{")
    _first(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()
    found = _lines(run)
    assert found[: len(lines)] == lines
    assert "the next version is whole" in found[len(lines)]["warning"]
    assert not any("of" in line for line in found)
    assert sum("warning" in line for line in found) == 1
    assert sum("train_loss" in line for line in found) == 1


def _lines(run: Run) -> list[dict[str, Any]]:
    path = run.folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_that_has_no_space_yet_goes_on_in_its_last_version_s(logs: Path, tmp_path: Path) -> None:
    publish = {"store": str(tmp_path / "store"), "every_rows": 2000}
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    run.train()
    space = Store(tmp_path / "store").open().space
    (run.folder / "space.json").unlink()
    again = _first(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    again._begin({"train": ParquetLog(str(logs / "first"), run.schema)})
    assert again.bundle().lineage["space"] == space
    assert run.files.space() == space
    (run.folder / "space.json").unlink()
    _damage(Store(tmp_path / "store").open().folder / "manifest.json")
    assert again.bundle().lineage["space"] != space


def test_an_alias_that_another_moved_does_not_end_a_run(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote, calls = Store.promote, []

    def raced(store: Store, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise StoreError("alias 'canary' was moved meanwhile")
        return promote(store, *args)

    monkeypatch.setattr(Store, "promote", raced)
    root = tmp_path / "store"
    publish = {"store": str(root), "every_rows": 1000, "alias": "canary"}
    run = _first(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    lines = _listened(run, lambda line: None)
    result = run.train()
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert f"{Store(root).versions()[1].id} is published, but not canary; found alias 'canary' was moved" in warning
    assert f"`embstore promote {Store(root).versions()[1].id} --alias canary --store {root}` promotes it" in warning
    assert len(calls) == 7
    assert Store(root).aliases()["canary"] == result["version"]


def test_a_delta_that_would_be_no_smaller_is_published_whole(logs: Path, tmp_path: Path) -> None:
    """The case: a penalty moves every row at every step, and deltas were larger than what they were deltas of."""
    for significance in (0.0, 0.05):
        folder = tmp_path / str(significance)
        publish = {"store": str(folder / "store"), "every_rows": 2000, "significance": significance}
        run = _first(logs, folder, {"learning_rate": 0.1, "l2": 1e-3}, publish=publish)
        lines = _listened(run, lambda line: None)
        run.train()
        store = Store(folder / "store")
        versions = [store.open(info.id) for info in store.versions()]
        assert len(versions) == len(lines) == 4
        assert lines[0] == f"published {versions[0].id}"
        if significance:
            assert all(version.delta is not None for version in versions[1:])
        else:
            assert [version.delta is None for version in versions] == [True, True, True, False]
            assert lines[1] == f"published {versions[1].id}, whole: a delta would be no smaller"
            _same_rows(versions[-1], run)


def test_what_has_not_changed_is_not_published_again(logs: Path, tmp_path: Path) -> None:
    """The case: a delta without a row took half a megabyte, the network and its optimizer's state once more."""
    run = _first(logs, tmp_path, OPTIMIZERS[0])
    run.train()
    trainer, lines = run._restored(), []
    settings = PublishSettings(store=str(tmp_path / "store"), every_rows=1, alias="canary")
    bundle = run._bundle(trainer)
    publisher = Publisher(settings, trainer.model, lambda: bundle, tmp_path, say=lines.append)
    first = publisher.publish()
    assert publisher.step(1) is None
    assert publisher.finish() is first
    assert lines[1:] == [f"nothing has changed since {first.id}: not published again"] * 2
    assert len(publisher.store.versions()) == 1
    assert not list((tmp_path / "store" / "versions").glob(".tmp*"))
    for changed in ({"metrics": {"valid": {"auc": 0.5}}}, {"dense_state": {"network.x": torch.zeros(1)}}):
        bundle = replace(bundle, **changed)  # type: ignore[arg-type]
        version = publisher.publish()
        assert version.delta is not None
        assert version.delta.rows == 0
    assert len(publisher.store.versions()) == 3


def test_a_run_s_folder_that_cannot_be_written_does_not_end_it(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _first(logs, tmp_path, OPTIMIZERS[0])
    run.train()
    trainer, warnings = run._restored(), []
    settings = PublishSettings(store=str(tmp_path / "store"))
    publisher = Publisher(settings, trainer.model, lambda: run._bundle(trainer), tmp_path, warn=warnings.append)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(continuous, "replace_small", full)
    first = publisher.publish()
    trainer.model.table.weight[5] += 1
    version = publisher.publish(restored=True)
    assert version.delta is not None
    assert version.parent == first.id
    for each, warning in zip((first, version), warnings, strict=True):
        assert f"{each.id} is published all the same" in warning
