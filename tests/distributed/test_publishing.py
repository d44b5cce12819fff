"""A run by ranks that publishes on its way: what one of them fails at, all do something about, and the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cases import train
from ranks import Ranks
from runs import config, write_logs

from embstore.distributed import ALONE
from embstore.store import Store

STEPS, EVERY = 19, 4  # of 257 rows: versions after steps 4, 8, 12, 16 and one at the end


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_logs(tmp_path_factory.mktemp("logs"))


def _config(logs: Path, folder: Path, **publish: Any) -> dict[str, Any]:
    of = config(logs, folder / "run")
    how = {"store": str(folder / "store"), "every_rows": EVERY * 257, "whole_every": 50, "alias": "canary", **publish}
    table = {"rows": 9_999, "dim": 8, "optimizer": {"name": "adam", "learning_rate": 0.01}}
    return {**of, "table": table, "training": {**of["training"], "epochs": 1}, "publish": how}


def _log(folder: Path) -> list[dict[str, Any]]:
    """Entries of the store's log."""
    return [json.loads(path.read_bytes()) for path in sorted((folder / "store" / "log").iterdir())]


def _warnings(folder: Path) -> list[str]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [line["warning"] for line in map(json.loads, lines) if "warning" in line]


def _kinds(folder: Path) -> list[str]:
    store = Store(folder / "store")
    return ["whole" if store.open(of.id).delta is None else "delta" for of in store.versions()]


def test_rank_0_does_what_is_done_once(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    """The log of the store is that of a run by one process, entry by entry."""
    alone, many = tmp_path / "alone", tmp_path / "many"
    train(ALONE, _config(logs, alone))
    first, second = ranks.run(2, "train", config=_config(logs, many))
    assert first == second
    for folder in (alone, many):
        verbs = [entry["verb"] for entry in _log(folder)]
        assert verbs.count("publish") == verbs.count("alias") == verbs.count("lease") == verbs.count("release") >= 4
        assert not Store(folder / "store")._log.state().leases
        assert not _warnings(folder)
    assert [entry["verb"] for entry in _log(alone)] == [entry["verb"] for entry in _log(many)]
    store = Store(many / "store")
    assert _kinds(many) == _kinds(alone) == ["whole"] + ["delta"] * (len(_kinds(many)) - 1)
    assert store.resolve("canary") == first["result"]["version"] == store.resolve("latest")
    assert len({store.open(of.id).space for of in store.versions()}) == 1
    again, _ = ranks.run(2, "train", config=_config(logs, many))
    assert again["result"]["version"] == first["result"]["version"]
    assert len(store.versions()) == len(_kinds(alone))


@pytest.mark.parametrize(
    ("part", "rank", "publication"),
    [
        ("bundle", 0, 2),
        ("begin", 0, 2),
        ("stage", 0, 2),
        ("compare", 0, 2),
        ("compare", 1, 2),
        ("folders", 0, 1),
        ("bucket", 0, 1),
        ("bucket", 1, 1),
        ("delta", 0, 2),
        ("schema", 0, 2),
        ("keep", 0, 2),
        ("commit", 0, 2),
        ("open", 0, 2),
        ("open", 1, 2),
    ],
)
def test_what_fails_on_one_rank_is_warned_of_and_tried_again_by_all(
    ranks: Ranks, logs: Path, tmp_path: Path, part: str, rank: int, publication: int
) -> None:
    settings = _config(logs, tmp_path)
    how = {"fails": part, "rank": rank, "publication": publication, "bucket_bytes": 4096}
    first, second = ranks.run(2, "train", config=settings, **how, seconds=240)
    assert first == second
    (warning,) = _warnings(tmp_path)
    assert warning.startswith("not published: ")
    assert warning.endswith("tried again when the next version is due")
    assert ("found refused" if part in ("begin", "compare", "commit", "open") else "No space left") in warning
    store = Store(tmp_path / "store")
    # What can't be opened was published all the same; the next is a delta of the one before.
    assert len(store.versions()) == 4 + (part == "open")
    assert _kinds(tmp_path) == ["whole"] + ["delta"] * (len(store.versions()) - 1)
    assert store.resolve("canary") == first["result"]["version"]
    assert not store._log.state().leases
    assert not list((tmp_path / "store").rglob(".*"))
    for version in store.versions():
        store.verify(version.id)


def test_a_rank_that_sees_the_log_late_needs_no_listing(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    """On another host, a listing of a shared folder may be a minute old."""
    settings = _config(logs, tmp_path)
    first, second = ranks.run(2, "train", config=settings, late=1, seconds=240)
    assert first == second
    assert not _warnings(tmp_path)
    assert _kinds(tmp_path) == ["whole"] + ["delta"] * (len(_kinds(tmp_path)) - 1)
    plain = {key: value for key, value in settings.items() if key not in ("schema", "table", "model", "publish")}
    start = {"store": str(tmp_path / "store"), "version": "canary"}
    ranks.run(2, "train", config={**plain, "start": start, "output": str(tmp_path / "next")}, late=1, seconds=240)


@pytest.mark.parametrize("where", ["s3://bucket/store", "folder"])
def test_ranks_that_can_not_publish_together_are_refused_before_anything_is_trained(
    ranks: Ranks, logs: Path, tmp_path: Path, where: str
) -> None:
    """Rank 1 is on another host: the cache isn't that of rank 0, nor is there the folder."""
    settings = _config(logs, tmp_path, store=where if "://" in where else str(tmp_path / where))
    hosts = {name: str(tmp_path / name) for name in ("here", "there")}
    for answer in ranks.answers(2, "train", config=settings, hosts=hosts, seconds=240):
        assert answer["error"] == "GroupError"
        assert f"publishing to {settings['publish']['store']}; expected a folder that all ranks see" in answer["text"]
        assert "made on here; found none on there" in answer["text"]
    assert not (tmp_path / "run").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]


def test_a_base_that_rank_0_finds_damaged_is_damaged_for_all(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    first, second = ranks.run(2, "train", config=_config(logs, tmp_path), fails="base", publication=2, seconds=240)
    assert first == second
    (warning,) = _warnings(tmp_path)
    assert warning.endswith("; publishing whole")
    assert _kinds(tmp_path) == ["whole", "whole", "delta", "delta", "delta"]


def test_a_version_on_the_way_that_is_not_promoted(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    first, _ = ranks.run(2, "train", config=_config(logs, tmp_path), fails="promote", publication=2, seconds=240)
    (warning,) = _warnings(tmp_path)
    assert "is published, but not canary; found a part; found refused" in warning
    assert Store(tmp_path / "store").resolve("canary") == first["result"]["version"]


def test_a_last_version_that_is_not_promoted_is_an_error_on_all_and_not_published_again(
    ranks: Ranks, logs: Path, tmp_path: Path
) -> None:
    settings = _config(logs, tmp_path)
    answers = ranks.answers(2, "train", config=settings, fails="promote", publication=5, seconds=240)
    for answer in answers:
        assert answer["error"] == "StoreError"
        assert "is published, but not canary" in answer["text"]
    store = Store(tmp_path / "store")
    published = [of.id for of in store.versions()]
    first, second = ranks.run(2, "train", config=settings, seconds=240)  # nothing has changed since
    assert first["result"]["version"] == second["result"]["version"] == published[-1] == store.resolve("canary")
    assert [of.id for of in store.versions()] == published
    assert not store._log.state().leases


def test_a_last_version_that_can_not_be_published_is_an_error_on_all(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    settings = _config(logs, tmp_path)
    for answer in ranks.answers(2, "train", config=settings, fails="stage", publication=5, seconds=240):
        assert answer["error"] == "StoreError"
        assert "is trained, but not published" in answer["text"]
    first, _ = ranks.run(2, "train", config=settings, seconds=240)
    assert Store(tmp_path / "store").resolve("canary") == first["result"]["version"]


def test_a_delta_that_would_be_no_smaller_is_whole_for_all(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    """A penalty moves every row; only putting an earlier model back may leave most as they were."""
    settings = _config(logs, tmp_path)
    settings["table"] = config(logs, tmp_path)["table"]
    first, second = ranks.run(2, "train", config=settings, bucket_bytes=4096)
    assert first == second
    assert _kinds(tmp_path)[:-1] == ["whole"] * 4
    assert not _warnings(tmp_path)


def test_what_is_smallest_is_decided_by_all_rows(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    """Not by those of a rank: each would publish something else, and wait for the others for ever."""
    settings, store = _config(logs, tmp_path), tmp_path / "store"
    ranks.run(2, "train", config=settings, stop_after=257)
    for moved, half in (([False, False], "base"), ([True, False], 0), ([False, True], 1), ([True, True], "whole")):
        found = ranks.run(2, "publish_moved", config=settings, store=str(store), moved=moved, seconds=240)
        if isinstance(half, int):
            rows = Store(store).open("latest").table.num_rows
            half = (rows // 2, rows - rows // 2)[half]
        assert found == [half] * 2


def test_a_damaged_record_of_what_was_published_is_damaged_for_all(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    settings = _config(logs, tmp_path)
    ranks.run(2, "train", config=settings, stop_after=6 * 257)
    (tmp_path / "run" / "published.json").write_text("{")
    first, second = ranks.run(2, "train", config=settings, seconds=240)
    assert first == second
    (warning,) = _warnings(tmp_path)
    assert warning.endswith("the next version is whole")
    assert _kinds(tmp_path) == ["whole", "whole", "delta", "delta", "delta"]


def test_a_rank_that_dies_while_it_publishes_ends_the_run(ranks: Ranks, logs: Path, tmp_path: Path) -> None:
    settings = _config(logs, tmp_path)
    zero, one = ranks.answers(2, "train", config=settings, fails="die", rank=1, publication=2, seconds=240)
    assert one == {"died": -9}
    assert zero["error"] == "LostRankError"
    assert "rank 0 of 2 lost another" in zero["text"]
    assert _kinds(tmp_path) == ["whole"]
    assert not Store(tmp_path / "store")._log.state().leases
    first, _ = ranks.run(2, "train", config=settings, seconds=240)
    assert Store(tmp_path / "store").resolve("canary") == first["result"]["version"]
