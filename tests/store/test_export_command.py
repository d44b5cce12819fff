"""``embstore export``."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
from commands import invoke
from vectors import bits, make_table, publish, read

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError, EmbstoreError, StoreError
from embstore.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    version = publish(tmp_path / "store", make_table())
    Store(tmp_path / "store").promote(version.id)
    (tmp_path / "log").mkdir()
    log = {
        "user": ["ann", "bob", "ann"],
        "item": [3, 4, 4],
        "tags": [["a"], [], ["b", "a"]],
        "time": pa.array([datetime(2026, 1, 1, 5)] * 3, pa.timestamp("us")),
        "day": [1, 1, 9],
        "7": [True, True, False],
    }
    pq.write_table(pa.table(log), tmp_path / "log" / "a.parquet")
    return tmp_path


def test_export_command_takes_values_from_a_log(store: Path) -> None:
    flags = ["export", "--store", store / "store", "--version", "production", "--log", store / "log"]
    result = json.loads(invoke(*flags, "--to", store / "out", "--json").stdout)
    version = Store(store / "store").open()
    counts = {"user": 2, "Straße/..=%": 2, "tags": 2, "hour": 1, "day": 2, "7": 2}
    assert result == {"version": version.id, "target": str(store / "out"), "format": "parquet", "features": counts}
    got = read(store / "out", "user")
    assert got["value"].to_pylist() == ["ann", "bob"]
    assert got["count"].to_pylist() == [2, 1]
    table = UnifiedEmbedding.restore(version.table)
    assert bits(got["vector"].to_pylist()) == bits(table.lookup("user", ["ann", "bob"]).numpy())
    shown = invoke(*flags, "--to", store / "some", *["--feature", "day", "--feature", "hour", "--feature", "day"])
    assert shown.output == f"exported {version.id} to {store / 'some'}: day 2, hour 1\n"
    assert sorted(path.name for path in (store / "some").iterdir()) == ["feature=day", "feature=hour"]


def test_export_command_takes_values_from_parquet_and_writes_safetensors(store: Path) -> None:
    pq.write_table(pa.table({"feature": ["day"] * 2, "value": [1, 5]}), store / "vocab.parquet")
    common = ["export", "--store", store / "store"]
    result = invoke(*common, "--values", store / "vocab.parquet", "--to", store / "out", "--json")
    assert json.loads(result.stdout)["features"] == {"day": 2}
    assert result.stderr == ""  # no bar where no terminal is
    result = invoke(*common, "--format", "safetensors", "--to", store / "all.safetensors", "--json")
    assert json.loads(result.stdout)["rows"] == 48
    with safetensors.safe_open(str(store / "all.safetensors"), "pt") as file:
        assert file.get_slice("rows").get_shape() == [48, 3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --values, --log or --vocabulary"),
        (["--values", "x", "--log", "y"], "found several"),
        (["--format", "safetensors", "--log", "y"], "nothing but a version"),
        (["--log", "log", "--feature", "usr"], "did you mean 'user'"),
        (["--log", "nowhere"], "no Parquet file"),
        (["--log", "log", "--version", "canary"], "no version 'canary'"),
    ],
)
def test_export_command_says_what_is_wrong(
    store: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(store)
    with pytest.raises(EmbstoreError, match=message):
        invoke("export", "--to", "out", *flags)
    assert not (store / "out").exists()


def test_export_command_refuses_a_target_before_it_counts(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    with pytest.raises(StoreError, match="target log; expected a new name"):
        invoke("export", "--log", "nowhere", "--to", "log")
    with pytest.raises(ConfigError, match="found none"):
        invoke("export", "--to", "log")
