"""Whose a run's folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embstore import run_folder
from embstore.checkpoints import Checkpoints
from embstore.config import parse
from embstore.errors import CheckpointError, ConfigError
from embstore.run_folder import RunFolder, make_output
from embstore.settings import RunConfig

LOGS, COLUMNS = {"train": "f1"}, {"user": "string"}


def claim(folder: RunFolder, fingerprints: dict[str, str] = LOGS, **settings: Any) -> RunConfig:
    schema = {"label": "click", "features": ["user"]}
    config = parse(RunConfig, {"logs": {"train": "logs"}, "schema": schema, "output": str(folder.path), **settings})
    folder.claim(config, config.read_schema(), fingerprints, COLUMNS)
    return config


def files(folder: RunFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def test_a_folder_is_that_of_who_claims_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.config() is None
    assert (folder.columns(), folder.result(), folder.exact_tokens()) == ({}, {}, None)
    config = claim(folder, table={"rows": 5})
    there = folder.config()
    assert there is not None
    assert there.changed_from(config) == []
    assert there.table == config.table
    assert folder.columns() == COLUMNS
    assert folder.lineage()["config"]["table"]["rows"] == 5
    folder.write_result({"steps": 3, "logs": {"train": {"rows": 4}}})
    folder.write_exact_tokens({"user": torch.tensor([1, 5])})
    claim(folder, table={"rows": 5})
    assert folder.result()["steps"] == 3
    assert folder.lineage()["logs"] == {"train": {"rows": 4}}
    made = {"config.yaml", "schema.yaml", "logs.json", "space.json", "result.json", "exact.safetensors"}
    assert files(folder) == made


def test_a_run_has_one_space_until_it_starts_afresh(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    claim(folder)
    space = folder.space()
    claim(folder)
    assert RunFolder(tmp_path / "run").space() == space
    claim(RunFolder(tmp_path / "another"))
    assert RunFolder(tmp_path / "another").space() != space
    for damaged in ("{", "[]", "{}"):
        (folder.path / "space.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"space\.json; expected .*delete it"):
            folder.space()
    folder.clear()
    claim(folder)
    assert folder.space() != space


def test_a_space_that_was_never_kept_is_that_of_what_was_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cases: a run of before spaces were kept got another in mid-chain, and a raw error on a disk for reading."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / "published.json").write_text("{}")
    claim(folder)
    assert "space.json" not in files(folder)

    def full(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "replace_small", full)
        with pytest.raises(CheckpointError, match=r"space\.json; expected .*Read-only.*copy of the run's folder"):
            folder.space()
    assert folder.space(lambda: "before") == "before"
    assert folder.space(lambda: "another") == "before"


@pytest.mark.parametrize(
    ("other", "named"),
    [({"table": {"rows": 5}}, "table.rows"), ({"fingerprints": {"train": "f1", "valid": "f2"}}, "logs.valid")],
)
def test_checkpoints_keep_a_folder_from_others(tmp_path: Path, other: dict[str, Any], named: str) -> None:
    folder = RunFolder(tmp_path)
    claim(folder)
    folder.write_exact_tokens({"user": torch.tensor([1])})
    claim(folder, **other)  # no checkpoint yet: replaced
    assert folder.exact_tokens() is None
    claim(folder)
    Checkpoints(tmp_path / "checkpoints").save(1, {}, {"table": {"rows": torch.zeros(1)}}, range(1))
    with pytest.raises(CheckpointError, match=f"another {named}; name another folder"):
        claim(folder, **other)
    assert folder.config().changed_from(claim(folder)) == []  # type: ignore[union-attr]


def test_clearing_leaves_what_is_no_run_s(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.clear()
    assert not folder.path.exists()
    claim(folder)
    folder.write_result({})
    folder.write_exact_tokens({})
    (folder.path / "mine.txt").touch()
    for name in ("checkpoints", "tensorboard"):
        (folder.path / name / "below").mkdir(parents=True)
    for name in ("metrics.jsonl", "published.json"):
        (folder.path / name).touch()
    folder.clear()
    assert files(folder) == {"mine.txt"}


def test_tokens_that_a_killed_process_left_half_written(tmp_path: Path) -> None:
    """The case: a run killed while it wrote them couldn't be started again but by hand."""
    (tmp_path / ".exact.safetensors").write_bytes(b"half")
    folder = RunFolder(tmp_path)
    folder.write_exact_tokens({"user": torch.tensor([1, 5])})
    found = folder.exact_tokens()
    assert found is not None
    assert found["user"].tolist() == [1, 5]
    assert files(folder) == {"exact.safetensors"}


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_output_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a folder that can be made and written to"):
        make_output(tmp_path / name)
    make_output(tmp_path / "a" / "b")
    make_output(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
