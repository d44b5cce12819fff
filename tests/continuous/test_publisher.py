"""What can go wrong while a run publishes, and what is not worth publishing."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from days import OPTIMIZERS, first_run, make_run, same_rows

from embstore import continuous
from embstore.cli import cli
from embstore.continuous import Publisher, PublishSettings
from embstore.errors import CheckpointError, StoreError
from embstore.logs import ParquetLog
from embstore.progress import Progress
from embstore.run import Run
from embstore.store import Store, Version
from embstore.store.log import stamp


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
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    lines = _listened(run, lambda line: _collect(root) if line.startswith("published") else None)
    result = run.train()
    assert len(lines) == 7
    assert not any("whole" in line or "warning" in line for line in lines)
    same_rows(Store(root).open(result["version"]), run)
    Store(root).gc(keep=1)
    _collect(root)  # what the run let go of at its end
    assert [info.id for info in Store(root).versions()] == [Store(root).resolve("latest")]


def test_a_base_that_was_collected_while_a_run_trained(logs: Path, tmp_path: Path) -> None:
    """The machine slept for a day, gc took the run's last version: the next is whole."""
    root, slept = tmp_path / "store", []
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(root), "every_rows": 1000, "whole_every": 100})

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
    same_rows(store.open(result["version"]), run)
    assert slept[0].split()[1] == store.lineage(result["version"])[-1]
    assert slept[0].split()[1] not in {info.id for info in store.versions()}


def test_a_lease_is_renewed_while_a_run_trains(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = first_run(logs, tmp_path, OPTIMIZERS[0])
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
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(root), "every_rows": 1000})
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
    same_rows(store.open(result["version"]), run)
    assert store.open(store.versions()[1].id).delta is not None  # rows touched before the failures are in it


def test_a_last_version_that_cannot_be_published_is_an_error(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(root)})

    def failing(*_: Any, **__: Any) -> Version:
        raise StoreError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "publish", failing)
        with pytest.raises(StoreError, match="is trained, but not published; found no network; nothing") as raised:
            run.train()
    assert run.files.result()["steps"] == 12
    command = shlex.split(re.search("`(.*)`", str(raised.value))[1])  # type: ignore[index]
    assert CliRunner().invoke(cli, command[1:], catch_exceptions=False).exit_code == 0
    same_rows(Store(root).open(), run)
    assert first_run(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(root)}).train()["version"]  # so does the run


@pytest.mark.parametrize(
    "damaged", [b"{", b"[]", b"{}", b"\xff", b'{"version": 5}', b'{"version": "latest"}', "folder", "link"]
)
def test_a_damaged_record_of_what_was_published(logs: Path, tmp_path: Path, damaged: bytes | str) -> None:
    run = first_run(logs, tmp_path, OPTIMIZERS[0])
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
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish=None if from_start else publish)
    damaged: list[str] = []

    def damage(line: str) -> None:
        if line.startswith("published") and not damaged:
            damaged.append(Store(root).resolve("latest"))
            _damage(root / "versions" / damaged[0] / "model/dense.safetensors")

    if from_start:
        run.train()
        Store(root).publish(run.bundle())
        run = make_run(logs, "second", tmp_path, start={"store": str(root)}, publish=publish)
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
    same_rows(store.open(result["version"]), run)


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
            first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()
    (info,) = Store(root).versions()
    assert json.loads((tmp_path / "first/published.json").read_text()) == {"version": info.id}
    assert Store(root).aliases() == {"latest": info.id}
    assert first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()["version"] == info.id
    assert Store(root).aliases()["canary"] == info.id
    assert len(Store(root).versions()) == 1


def test_a_run_that_fails_before_it_trains_holds_no_lease(logs: Path, tmp_path: Path) -> None:
    publish = {"store": str(tmp_path / "store")}
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
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
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    if checkpoint:
        run.train()
    else:
        run.folder.mkdir()
    lines = _lines(run)
    with (run.folder / "metrics.jsonl").open("a") as out:
        out.write('{"step": 4, "of": "a run that is gone"}\n')
    (run.folder / "published.json").write_text("{")
    first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()
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
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    run.train()
    space = Store(tmp_path / "store").open().space
    (run.folder / "space.json").unlink()
    again = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
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
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
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
        run = first_run(logs, folder, {"learning_rate": 0.1, "l2": 1e-3}, publish=publish)
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
            same_rows(versions[-1], run)


def test_what_has_not_changed_is_not_published_again(logs: Path, tmp_path: Path) -> None:
    """The case: a delta without a row took half a megabyte, the network and its optimizer's state once more."""
    run = first_run(logs, tmp_path, OPTIMIZERS[0])
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
    run = first_run(logs, tmp_path, OPTIMIZERS[0])
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
