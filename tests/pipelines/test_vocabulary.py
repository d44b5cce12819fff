"""The vocabulary job: the same bytes by threads, in little memory, day by day and on Ray, killed workers included."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from shown import Shown

from embstore.admission import Admission, Judge, chances, draws
from embstore.cli.vocab import vocab
from embstore.drift import drift, stability_index
from embstore.errors import ConfigError, DataError, LogError, SchemaError, StoreError
from embstore.feature_values import FeatureValues
from embstore.pipelines import vocabulary as job
from embstore.pipelines.vocabulary import VocabularySettings, build
from embstore.synthetic import SyntheticLog
from embstore.vocabulary import Vocabulary

DAYS = SyntheticLog(rows=60_000, users=9_000)
ADMIT = Admission(min_count=2, min_age="12h", expire_after="5d", probability=0.7, max_values=2_000)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    for name, rows in (("all", None), ("past", DAYS.day_rows(0, 7)), ("today", DAYS.day_rows(7, 8))):
        DAYS.write(folder / name, rows=rows, rows_per_file=9_000)
    return folder


def _settings(log: Path, output: Path, **options: Any) -> VocabularySettings:
    given = {"schema": DAYS.schema().to_dict(), "time": "timestamp", "admit": ADMIT, **options}
    return VocabularySettings(log=str(log), output=str(output), **given)


@pytest.fixture(scope="module")
def whole(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole") / "vocabulary"
    return folder, build(_settings(logs / "all", folder), threads=1)


def test_what_is_written(logs: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    folder, manifest = whole
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    (told,) = manifest["lineage"]["logs"]
    assert told["rows"] == 60_000
    table = pq.read_table(logs / "all", columns=["user_id", "click", "timestamp"])
    vocabulary = Vocabulary.from_parquet(folder)
    users = vocabulary["user_id"]
    counted = Counter(table.column("user_id").to_pylist())
    assert dict(zip(users.values.to_pylist(), users.count.tolist(), strict=True)) == counted
    assert users.clicks is not None
    assert users.clicks.sum() == sum(table.column("click").to_pylist())
    assert pa.compute.max(users.last_seen) == pa.compute.max(table.column("timestamp"))
    assert users.kept.sum() == manifest["features"]["user_id"]["kept"] == 2_000
    assert min(users.count[users.kept]) >= 2
    again = folder.parent / "again"
    vocabulary.to_parquet(again)
    assert all(Vocabulary.from_parquet(again)[name].table().equals(of.table()) for name, of in vocabulary.items())


@pytest.mark.parametrize(("threads", "memory"), [(8, None), (2, 2)])
def test_the_same_bytes(
    threads: int, memory: int | None, logs: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shown = Shown()
    settings = _settings(logs / "all", tmp_path / "v", memory_mb=memory)
    assert build(settings, threads=threads, progress=shown) == whole[1]
    assert [(bar.label, bar.total, bar.rows) for bar in shown.bars] == [("count", 60_000, 60_000), ("write", 8, 8)]
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


@pytest.mark.parametrize("memory", [None, 2])
def test_yesterday_and_today_are_both_days(
    memory: int | None, logs: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    past = build(_settings(logs / "past", tmp_path / "past"))
    today = build(_settings(logs / "today", tmp_path / "v", previous=str(tmp_path / "past"), memory_mb=memory))
    assert today["files"] == whole[1]["files"] != past["files"]
    assert today["features"] == whole[1]["features"]
    assert [of["rows"] for of in today["lineage"]["logs"]] == [52_500, 7_500]
    with pytest.raises(ConfigError, match="which it has"):
        build(_settings(logs / "past", tmp_path / "twice", previous=str(tmp_path / "v")))
    with pytest.raises(SchemaError, match=r"time of vocabulary .*; give --time timestamp, or count from scratch"):
        build(_settings(logs / "today", tmp_path / "w", previous=str(tmp_path / "v"), time=None, admit=Admission()))
    build(_settings(logs / "past", tmp_path / "timeless", time=None, admit=Admission()))
    with pytest.raises(SchemaError, match=r"time of vocabulary .*found none.*; leave --time out, or count"):
        build(_settings(logs / "today", tmp_path / "w", previous=str(tmp_path / "timeless")))
    with pytest.raises(SchemaError, match="the features device; found user_id, item_id"):
        build(_settings(logs / "today", tmp_path / "w", previous=str(tmp_path / "v"), features=("device",)))
    part = tmp_path / "v" / "feature=device" / "part-0.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"2")
    more = _settings(logs / "all", tmp_path / "w", previous=str(tmp_path / "v"))
    with pytest.raises(LogError, match=r"device.*was changed"):
        build(more)
    assert not (tmp_path / "w").exists()


def test_widths_of_integers_and_days_without_values(tmp_path: Path) -> None:
    columns = [
        pa.array([1, None, 200], pa.uint8()),
        pa.array([None, None], pa.uint64()),
        pa.array([2**64 - 1, 200], pa.uint64()),
    ]
    schema = {"features": ["f"]}
    for number, column in enumerate(columns):
        for folder in ("all", f"day-{number}"):
            (tmp_path / folder).mkdir(exist_ok=True)
            pq.write_table(pa.table({"f": column}), tmp_path / folder / f"{number}.parquet")
    options: dict[str, Any] = {"schema": schema, "time": None, "admit": Admission()}
    whole = build(_settings(tmp_path / "all", tmp_path / "v", **options))
    for number in range(3):
        previous = str(tmp_path / f"v-{number - 1}") if number else None
        last = build(_settings(tmp_path / f"day-{number}", tmp_path / f"v-{number}", previous=previous, **options))
    assert last["files"] == whole["files"]
    of = Vocabulary.from_parquet(tmp_path / "v-2")["f"]
    assert of.table().to_pydict() == {"value": [1, 200, 2**64 - 1], "count": [1, 2, 1], "kept": [True] * 3}


def test_what_fails_leaves_nothing(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a new name"):
        build(_settings(logs / "today", logs / "all"))
    (tmp_path / "log").mkdir()
    table = pq.read_table(logs / "today").slice(0, 10)
    broken = table.set_column(table.schema.get_field_index("click"), "click", pa.array([0] * 9 + [3]))
    pq.write_table(broken, tmp_path / "log" / "a.parquet", row_group_size=5)
    with pytest.raises(DataError, match=r"label 'click'"):
        build(_settings(tmp_path / "log", tmp_path / "v", memory_mb=1))
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    with pytest.raises(ConfigError, match="a time column"):
        _settings(logs, tmp_path / "v", time=None)
    with pytest.raises(LogError, match="embstore vocab"):
        build(_settings(logs / "today", tmp_path / "v", previous=str(logs)))


def test_on_ray(
    cluster: str, logs: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    read = job._read

    def slowly(*arguments: Any) -> Any:
        """Says who reads, and the first one dies of it."""
        first = not any(pids.iterdir())
        (pids / str(os.getpid())).touch()
        if first:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return read(*arguments)

    monkeypatch.setattr(job, "_read", slowly)
    shown = Shown()
    assert build(_settings(logs / "all", tmp_path / "v"), workers=2, progress=shown) == whole[1]
    assert len(list(pids.iterdir())) > 1  # one of which is gone
    assert [bar.label for bar in shown.bars] == ["count", "merge", "write"]
    assert all(bar.rows == bar.total for bar in shown.bars)
    monkeypatch.undo()

    build(_settings(logs / "past", tmp_path / "past"), workers=1)
    today = build(_settings(logs / "today", tmp_path / "both", previous=str(tmp_path / "past")), workers=1)
    assert today["files"] == whole[1]["files"]

    table = pq.read_table(logs / "today").slice(0, 10)
    broken = table.set_column(table.schema.get_field_index("click"), "click", pa.array([3] * 10))
    pq.write_table(broken, tmp_path / "broken.parquet")
    with pytest.raises(DataError, match=r"label 'click'.*expected 0 or 1"):
        build(_settings(tmp_path / "broken.parquet", tmp_path / "w"), workers=1)
    assert not (tmp_path / "w").exists()


def _judged(table: pa.Table, latest: int = 100, **rules: Any) -> list[bool]:
    judge = Judge("f", Admission(**rules), pa.int64(), latest)
    parts = [table.slice(0, 2), table.slice(2)]
    for part in parts:
        judge.see(part)
    return [kept for _, of in judge.judged(parts) for kept in of.tolist()]


def test_admission() -> None:
    table = pa.table(
        {
            "value": ["a", "b", "c", "d", "e"],
            "count": [5, 3, 3, 3, 1],
            "first_seen": pa.array([10, 95, 50, 90, None]),
            "last_seen": pa.array([20, 95, 100, 92, None]),
        }
    )
    assert _judged(table) == [True] * 5
    assert _judged(table, min_count=3) == [True] * 4 + [False]
    assert _judged(table, max_values=3) == [True, True, True, False, False]
    assert _judged(table, max_values=2, min_age=10) == [True, False, True, False, False]
    assert _judged(table, min_age=10) == [True, False, True, True, False]
    assert _judged(table, expire_after=5) == [False, True, True, False, False]
    assert _judged(table, probability=1.0) == [True] * 5
    for rules, message in (
        ({"min_count": 0}, "1 or more"),
        ({"probability": 0.0}, "above 0"),
        ({"min_age": "2 days"}, "such as 30d"),
    ):
        with pytest.raises(ConfigError, match=message):
            Admission(**rules)
    with pytest.raises(ConfigError, match="in the time column's units"):
        _judged(table, min_age="1d")


def test_admission_by_probability() -> None:
    values, count = pa.array(range(20_000)), np.full(20_000, 7)
    drawn = draws(values, "f")
    kept = drawn < chances(count, 0.1)
    assert abs(kept.mean() - (1 - 0.9**7)) < 0.015
    assert (kept <= (drawn < chances(count + 1, 0.1))).all()  # who is in stays in
    assert (draws(values, "g") != drawn).all()


def test_drift() -> None:
    before = FeatureValues.of("f", ["a", "b", "c"], count=[500, 300, 200])
    after = FeatureValues.of("f", ["a", "b", "d"], count=[450, 50, 500])
    found = drift({"f": before}, {"f": after})["f"]
    assert (found.before, found.after, found.new, found.gone, found.shifted) == (3, 3, 1, 1, 1)
    assert (found.new_share, found.gone_share) == (0.5, 0.2)
    assert [(of.value, of.before, of.after) for of in found.most] == [("b", 0.3, 0.05)]
    a = np.array([500, 300, 200, 0, 0]) + 0.5
    b = np.array([450, 50, 0, 0, 500]) + 0.5
    a, b = a / a.sum(), b / b.sum()
    assert found.psi == pytest.approx(sum((y - x) * log(y / x) for x, y in zip(a, b, strict=True)))
    assert drift({"f": before}, {"f": before})["f"].psi == 0
    assert stability_index(np.array([9, 5, 1]), np.array([9, 1, 5]), bins=1) == 0  # both in the bin of the others
    with pytest.raises(SchemaError, match="a feature that both have"):
        drift({"f": before}, {"g": after})


def test_the_command(logs: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    def run(*arguments: Any) -> str:
        return CliRunner().invoke(vocab, [str(of) for of in arguments], catch_exceptions=False).output

    (tmp_path / "schema.yaml").write_text(DAYS.schema().to_yaml())
    config = {
        "schema": str(tmp_path / "schema.yaml"),
        "time": "timestamp",
        "admit": {"min_count": 9, "max_values": 2000},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    flags = ["--min-count", 2, "--min-age", "12h", "--expire-after", "5d", "--probability", 0.7]
    made = run(logs / "all", "--config", tmp_path / "config.yaml", *flags, "--to", tmp_path / "v", "--json")
    assert json.loads(made)["files"] == whole[1]["files"]
    text = run("build", logs / "today", "--label", "click", "--to", tmp_path / "today")
    assert "user_id" in text
    assert f"wrote {tmp_path / 'today'}" in text
    found = json.loads(run("diff", tmp_path / "v", tmp_path / "today", "--json"))
    assert found["item_id"]["psi"] > 0
    assert found["user_id"]["gone"] > 0 == found["user_id"]["new"]
    both = run("diff", logs / "past", logs / "today", "--schema", tmp_path / "schema.yaml")
    assert both.splitlines()[0].split()[0] == "feature"
    with pytest.raises(ConfigError, match="key 'log' is missing"):
        run("--label", "click", "--to", tmp_path / "w")
