"""The loop: days that drift, one after the other; what was done is not done again, after kills neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from looped import DAYS, run, settings, write_days

from embstore.cli.loop import loop
from embstore.cli.versions import versions
from embstore.config import parse
from embstore.errors import CheckpointError, ConfigError, LogError
from embstore.folder_lock import alone_in
from embstore.models import build
from embstore.pipelines import stages
from embstore.pipelines.loop_settings import LoopSettings
from embstore.pipelines.vocabulary import VocabularySettings
from embstore.pipelines.vocabulary import build as build_vocabulary
from embstore.run import Run
from embstore.store import Store
from embstore.vocabulary import Vocabulary

STAGES = ["vocabulary", "plan", "select", "prune", "train"]
FIRST = ["vocabulary", "plan", "node2vec", "select", "prune", "train"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_days(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def done(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Two days, then a third."""
    folder = tmp_path_factory.mktemp("done")
    days = [logs / f"day-{number}" for number in (1, 2, 3)]
    return folder, run(folder, days[:2]), run(folder, days, promote="production")


def test_each_day_goes_on_from_the_one_before(
    done: tuple[Path, dict[str, Any], dict[str, Any]], logs: Path, tmp_path: Path
) -> None:
    folder, two, three = done
    assert three["days"][:2] == two["days"]
    assert [list(day["stages"]) for day in three["days"]] == [FIRST, *[["evaluate", *STAGES]] * 2]
    ids = [day["stages"]["train"]["version"] for day in three["days"]]
    store = Store(folder / "store")
    assert [store.open(version).parent for version in ids] == [None, *ids[:2]]
    assert store.open("production").id == three["version"] == ids[2]
    assert len({store.open(version).table.layout.hashed_rows for version in ids}) == 1
    whole = VocabularySettings(
        log=tuple(str(logs / f"day-{number}") for number in (1, 2, 3)),
        schema=DAYS.schema().to_dict(),
        time="timestamp",
        admit=parse(LoopSettings, settings(folder, [logs])).admit,
        output=str(tmp_path / "whole"),
    )
    build_vocabulary(whole)
    at_last = Vocabulary.from_parquet(folder / "loop" / "day-0003" / "vocabulary")
    assert at_last.same(Vocabulary.from_parquet(tmp_path / "whole"))
    # What yesterday's version is worth today is what its run says of today's log.
    told = three["days"][2]["stages"]["evaluate"]["metrics"]["auc"]
    assert Run.open(folder / "loop" / "day-0002" / "run", build).evaluate(str(logs / "day-3"))["auc"] == told


def test_a_version_says_where_it_came_from(done: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    folder, _, three = done
    version = Store(folder / "store").open("production")
    lineage, stages = version.manifest["lineage"], three["days"][2]["stages"]
    assert lineage["logs"]["train"]["fingerprint"] == three["days"][2]["log"]["fingerprint"]
    assert lineage["config"]["table"]["rows"] == stages["plan"]["rows"]
    assert lineage["vocabulary"]["built"]["sha256"] == stages["vocabulary"]["sha256"]
    assert [of["rows"] for of in lineage["vocabulary"]["built"]["logs"]] == [2_000] * 3
    first = three["days"][0]["stages"]["node2vec"]
    assert lineage["node2vec"]["built"] == first
    (rows,) = lineage["node2vec"]["warm_start"]
    assert rows["features"] == {"user_id": "user_id", "item_id": "item_id"}
    assert rows["rows"] > 0
    assert lineage["selection"] == {"select": stages["select"], "prune": stages["prune"]}
    pruned = Vocabulary.from_parquet(folder / "loop" / "day-0003" / "pruned")
    assert version.vocabulary is not None
    assert version.vocabulary.digest() == lineage["vocabulary"]["honoured"]["sha256"] == pruned.digest()
    assert stages["prune"]["kept"] == sum(int(of.kept.sum()) for of in pruned.values())
    shown = CliRunner().invoke(versions, ["--store", str(folder / "store")], catch_exceptions=False).output
    assert "vocabulary of 3 logs, selection, node2vec" in shown
    rows = json.loads(CliRunner().invoke(versions, ["--store", str(folder / "store"), "--json"]).output)
    assert rows[0]["lineage"] == lineage


def test_what_is_done_is_not_done_again(
    done: tuple[Path, dict[str, Any], dict[str, Any]], logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, three = done
    for name in ("evaluate", "build_vocabulary", "walk", "select", "prune", "Run"):
        monkeypatch.setattr(stages, name, None)
    again = run(folder, [logs / f"day-{number}" for number in (1, 2, 3)])
    assert again == {**three, "promoted": None}
    # A day that is done may be gone.
    assert run(folder, [logs / "day-3"])["version"] == three["version"]


@pytest.mark.parametrize("stage", ["build_vocabulary", "select", "prune", "published"])
def test_a_killed_loop_ends_as_one_that_was_not(
    stage: str,
    done: tuple[Path, dict[str, Any], dict[str, Any]],
    logs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed, two, _ = done
    days = [logs / "day-1", logs / "day-2"]
    run(tmp_path, days[:1])
    with monkeypatch.context() as killing:
        if stage == "published":  # but day.json doesn't say so yet
            killing.setattr(stages.DayFolder, "finish", _killed_at("train", stages.DayFolder.finish))
        else:
            killing.setattr(stages, stage, _killed(getattr(stages, stage)))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, days)
    result = run(tmp_path, days)
    assert len(Store(tmp_path / "store").versions()) == 2
    ours, theirs = Store(tmp_path / "store").open("latest"), Store(undisturbed / "store").open(two["version"])
    rows = range(ours.table.layout.rows)
    assert ours.table.read_rows(0, len(rows)).equal(theirs.table.read_rows(0, len(rows)))
    assert ours.vocabulary is not None
    assert theirs.vocabulary is not None
    assert ours.vocabulary.same(theirs.vocabulary)
    assert result["version"] == ours.id


def _killed(stage: Callable[..., Any]) -> Callable[..., Any]:
    """Ends when its work is there, but nobody knows."""

    def run(*given: Any, **named: Any) -> Any:
        stage(*given, **named)
        raise KeyboardInterrupt

    return run


def _killed_at(name: str, finish: Callable[..., Any]) -> Callable[..., Any]:
    def run(day: Any, stage: str, **about: Any) -> Any:
        if stage == name:
            raise KeyboardInterrupt
        return finish(day, stage, **about)

    return run


def test_a_day_is_judged_by_the_version_of_the_day_before(logs: Path, tmp_path: Path) -> None:
    """On the first day there is none: nothing is selected, nothing pruned."""
    days = [logs / "day-1", logs / "day-2"]
    first, second = run(tmp_path, days, select={"method": "leave_one_out", "rows": 256})["days"]
    assert list(first["stages"]) == ["vocabulary", "plan", "node2vec", "train"]
    assert list(second["stages"]) == ["evaluate", *STAGES]
    told, version = second["stages"]["select"]["lineage"], Store(tmp_path / "store").open(_version(first))
    assert told["model"] == {"store": str(tmp_path / "store"), "version": version.id, "sha256": version.digest}
    assert told["log"]["fingerprint"] == second["log"]["fingerprint"]
    assert second["stages"]["prune"]["kept"] < second["stages"]["vocabulary"]["kept"]
    assert (
        Store(tmp_path / "store").open(_version(second)).manifest["lineage"]["selection"]["select"]["lineage"] == told
    )


def test_values_that_the_version_of_the_day_before_treats_alike_share_rows(logs: Path, tmp_path: Path) -> None:
    days = [logs / "day-1", logs / "day-2"]
    first, second = run(tmp_path, days, select=None, prune={"by": "alike", "keep": 0.5})["days"]
    assert list(first["stages"]) == ["vocabulary", "plan", "node2vec", "train"]
    told, version = second["stages"]["prune"], Store(tmp_path / "store").open(_version(first))
    assert told["lineage"]["model"] == {
        "store": str(tmp_path / "store"),
        "version": version.id,
        "sha256": version.digest,
    }
    assert told["lineage"]["log"]["fingerprint"] == second["log"]["fingerprint"]
    vocabulary = Store(tmp_path / "store").open(_version(second)).vocabulary
    assert vocabulary is not None
    assert sum(int((of.stood_in >= 0).sum()) for of in vocabulary.values()) == told["values"] - told["kept"]
    assert told["kept_rows"] == told["rows"] // 2
    assert told["sharing"] > told["values"] - told["kept"] > 0
    with pytest.raises(ConfigError, match="keep or rows"):
        parse(LoopSettings, settings(tmp_path, days, select=None, prune={"by": "alike", "threshold": 1}))


def test_a_search_trains_as_the_day_s_run_would(logs: Path, tmp_path: Path) -> None:
    days = [logs / "day-1", logs / "day-2"]
    optfs = {"method": "optfs", "options": {"learning_rate": 0.03}}
    first, second = run(tmp_path, days, select=optfs)["days"]
    begun = [day["stages"]["select"]["lineage"]["model"]["settings"]["start"] for day in (first, second)]
    assert begun[0] is None
    assert begun[1]["version"] == _version(first)
    assert {day["stages"]["select"]["method"] for day in (first, second)} == {"optfs"}


def _version(day: dict[str, Any]) -> str:
    version: str = day["stages"]["train"]["version"]
    return version


def test_a_day_ends_as_it_began(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killing:
        killing.setattr(stages, "prune", _killed(stages.prune))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, [logs / "day-1"])
    with pytest.raises(CheckpointError, match=r"day-0001 was begun; .*; found another admit\.min_count"):
        run(tmp_path, [logs / "day-1"], admit={"min_count": 3})
    (tmp_path / "loop" / "day-0001" / "day.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a day of a loop"):
        run(tmp_path, [logs / "day-1"])


def test_two_loops_in_one_folder(logs: Path, tmp_path: Path) -> None:
    with alone_in(tmp_path / "loop"), pytest.raises(CheckpointError, match="another process at work"):
        run(tmp_path, [logs / "day-1"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"collisions": 0}, "a share between 0 and 1"),
        ({"select": None}, "select, which scores the values"),
        ({"prune": {"by": "alike"}}, "keep .*rows"),
        ({"prune": {"by": "count", "keep": 2}}, "a share, 0 to 1"),
        ({"select": {"method": "feature_gradient"}}, r"config\.select\.method: unknown .*'feature_gradients'"),
        ({"select": {"options": {"levle": "values"}}}, r"config\.select\.options.*'level'"),
        ({"select": {"options": {"level": "value"}}}, "fields or values or both"),
        ({"select": {"method": "lift", "options": {"smoothing": -1}}}, r"smoothing"),
        ({"select": {"method": "leave_out_together", "options": {"keep": 2}}}, "keep"),
        ({"select": {"options": {"rows": 2048}}}, "beside options"),
        ({"select": {"rows": 0}}, r"config\.select\.rows; expected 1 or more"),
        ({"select": {"method": "shark", "crosses": [{"features": ["user_id", "item_id"]}]}}, "rows alone"),
        ({"select": {"method": "autofield"}}, "a log valid"),
        ({"publish": {"store": "s", "vocabulary": True}}, "what the loop counts is published"),
        ({"time": None, "admit": {"expire_after": "2d"}}, "a time column"),
        ({"schema": None}, "a schema, or the label"),
        ({"table": {"row": 3}}, "did you mean 'rows'"),
    ],
)
def test_settings_that_cannot_be(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(LoopSettings, settings(tmp_path, [tmp_path], **more))


def test_days_are_found_in_the_order_of_their_names(logs: Path, tmp_path: Path) -> None:
    config = {**settings(tmp_path, []), "days": str(logs / "day-*")}
    assert parse(LoopSettings, config).sources() == [str(logs / f"day-{number}") for number in (1, 2, 3)]
    with pytest.raises(LogError, match="found none"):
        parse(LoopSettings, {**config, "days": str(logs / "week-*")}).sources()
    with pytest.raises(LogError, match="each once"):
        parse(LoopSettings, {**config, "days": ["a", "b", "a"]}).sources()


def test_the_command_without_selection(logs: Path, tmp_path: Path) -> None:
    config = settings(tmp_path, [logs / "day-1"], table={"dim": 4, "rows": 500}, valid=str(logs / "day-2"))
    del config["select"], config["prune"], config["node2vec"]
    path = tmp_path / "loop.yaml"
    path.write_text(yaml.safe_dump(config))
    runner = CliRunner()
    shown = runner.invoke(loop, [str(path), "--promote", "canary"], catch_exceptions=False)
    found = json.loads(runner.invoke(loop, [str(path), "--json"], catch_exceptions=False).stdout)
    assert found["version"] in shown.stdout
    (day,) = found["days"]
    assert day["stages"]["plan"]["rows"] == 500
    assert Store(tmp_path / "store").open("canary").id == found["version"]
    assert f"{day['stages']['train']['valid']['auc']:.5f}" in shown.stdout
    assert "selection" not in day["stages"]
    runner.invoke(loop, [str(path), "--fresh", "--set", "collisions=0.2"], catch_exceptions=False)
    assert len(Store(tmp_path / "store").versions()) == 2
