"""Runs that publish the values of their log."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from days import OPTIMIZERS, first_run, make_run

from embstore import models
from embstore.errors import ConfigError, Interrupted
from embstore.run import Run
from embstore.store import Store, Version
from embstore.vocabulary import Vocabulary


def _counts(version: Version, name: str) -> dict[Any, int]:
    assert version.vocabulary is not None
    of = version.vocabulary[name]
    return dict(zip(of.values.to_pylist(), of.count.tolist(), strict=True))


def _counted(logs: Path, name: str, *days: str) -> Counter[Any]:
    values = [value for day in days for value in ds.dataset(logs / day).to_table()[name].to_pylist()]
    return Counter(value for value in values if value is not None)


def _own(version: Version) -> int:
    return sum(name.startswith("vocabulary/") for name in version.files)


def test_a_run_publishes_the_values_of_its_log(logs: Path, tmp_path: Path) -> None:
    publish = {"store": str(tmp_path / "store"), "every_rows": 2000, "whole_every": 2, "vocabulary": True}
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    run.train()
    store = Store(tmp_path / "store")
    versions = [store.open(info.id) for info in store.versions()]
    assert len(versions) >= 3
    assert [_own(version) for version in versions] == [2 if of.delta is None else 0 for of in versions]
    for version in versions:
        for name in ("user_id", "category"):
            assert _counts(version, name) == _counted(logs, name, "first")
    values = versions[0].vocabulary
    assert values is not None
    assert (versions[-1].status("user_id", values["user_id"].tokens) == 0).all()

    again = Run.open(run.folder, models.build)
    later = Store(tmp_path / "later").publish(again.bundle())
    assert later.vocabulary is not None
    assert later.vocabulary.same(values)


def test_values_are_counted_once(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted and goes on has them; another choice of features is counted anew."""
    publish = {"store": str(tmp_path / "store"), "vocabulary": ["user_id"]}
    run, known = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish), Run._fit

    def stop(*_: Any) -> Any:
        raise Interrupted("by the test")

    monkeypatch.setattr(Run, "_fit", stop)
    with pytest.raises(Interrupted):
        run.train()
    monkeypatch.setattr(Run, "_fit", known)
    collect = Vocabulary.collect
    asked: list[Any] = []

    def counting(*arguments: Any, **options: Any) -> Vocabulary:
        asked.append(arguments[1])
        return collect(*arguments, **options)

    monkeypatch.setattr(Vocabulary, "collect", counting)
    result = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish).train()
    assert asked == []
    version = Store(tmp_path / "store").open(result["version"])
    assert version.vocabulary is not None
    assert list(version.vocabulary) == ["user_id"]
    first_run(logs, tmp_path, OPTIMIZERS[0], publish={**publish, "vocabulary": ["category"]}).train()
    assert asked == [("category",)]
    asked.clear()
    first_run(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(tmp_path / "store")}).train()
    assert asked == []


def test_without_being_asked_a_run_counts_nothing(logs: Path, tmp_path: Path) -> None:
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(tmp_path / "store")})
    version = Store(tmp_path / "store").open(run.train()["version"])
    assert version.vocabulary is None
    assert version.manifest["format"] == 2
    assert not (run.folder / "vocabulary").exists()


@pytest.mark.parametrize("asked", [False, True])
def test_a_run_that_goes_on_keeps_what_was_dropped(asked: bool, logs: Path, tmp_path: Path) -> None:
    """Whether it counts its own log, too: then those values are added."""
    root = tmp_path / "store"
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish={"store": str(root), "vocabulary": ["user_id"]})
    run.train()
    store = Store(root)
    first = store.open()
    assert first.vocabulary is not None
    users = first.vocabulary["user_id"]
    kept = np.arange(len(users)) % 2 == 0
    pruned = Vocabulary({"user_id": users.keep(kept)})
    start = store.publish(replace(first.bundle(), vocabulary=pruned))
    publish = {"store": str(root), "every_rows": 2000, "whole_every": 2, "vocabulary": asked}
    made = make_run(logs, "second", tmp_path, start={"store": str(root), "version": start.id}, publish=publish)
    made.train()
    versions = [store.open(info.id) for info in store.versions()][2:]
    assert {version.delta is None for version in versions} == {True, False}
    for version in versions:
        of = version.vocabulary
        assert of is not None
        assert of.keys() == ({"user_id", "category"} if asked else {"user_id"})
        days = ("first", "second") if asked else ("first",)
        assert _counts(version, "user_id") == _counted(logs, "user_id", *days)
        known = dict(zip(of["user_id"].values.to_pylist(), of["user_id"].kept.tolist(), strict=True))
        assert [known[value] for value in users.values.to_pylist()] == kept.tolist()
        dropped = version.lookup("user_id", users.values.filter(~kept)[:3])
        assert torch.equal(dropped[0].expand(3, -1), dropped)
    assert len([version for version in versions if _own(version)]) < len(versions)


def test_features_that_are_not_in_the_schema(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"publish\.vocabulary: no feature 'user'; did you mean 'user_id'"):
        first_run(logs, tmp_path, OPTIMIZERS[0], publish={"store": "store", "vocabulary": ["user"]})


def test_the_folder_says_what_was_asked_for(logs: Path, tmp_path: Path) -> None:
    publish = {"store": str(tmp_path / "store"), "vocabulary": ["user_id"]}
    run = first_run(logs, tmp_path, OPTIMIZERS[0], publish=publish)
    run.train()
    again = Run.open(run.folder, models.build).config.publish
    assert again is not None
    assert again.vocabulary == ("user_id",)
    version = Store(tmp_path / "store").open()
    assert version.manifest["lineage"]["config"]["publish"]["vocabulary"] == ["user_id"]
    assert json.loads((version.folder / "manifest.json").read_bytes())["vocabulary"].keys() == {"user_id"}
    Run.clear(run.folder)
    assert not (run.folder / "vocabulary").exists()
