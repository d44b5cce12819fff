"""node2vec within the loop: first rows, versions to search, day after day; what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from looped import DAYS, published, run, settings, write_days

from embstore.config import parse
from embstore.errors import ConfigError, Interrupted
from embstore.node2vec.folder import JobFolder
from embstore.pipelines import node2vec as job
from embstore.pipelines import stages
from embstore.pipelines.loop_settings import LoopSettings
from embstore.store import Store
from embstore.store.warm_start import ValueVectors

HOW: dict[str, Any] = {
    "graph": {"pairs": [["user_id", "item_id"]], "weight": "click"},
    "walks": {"length": 10, "num_walks": 4},
    "skip_gram": {"dim": 4, "window": 3},
}
PLAIN: dict[str, Any] = {"select": None, "prune": None}


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = write_days(tmp_path_factory.mktemp("logs"))
    return [folder / f"day-{number}" for number in (1, 2)]


def test_rows_start_from_the_vectors(days: list[Path], tmp_path: Path) -> None:
    """Without learning they stay what they were: of a value whose row is its own, its vector, scaled."""
    still = {"dim": 4, "rows": 1 << 20, "optimizer": {"learning_rate": 0.0}}
    result = run(tmp_path, days[:1], table=still, node2vec={**HOW, "scale": 0.5, "features": ["item_id"]}, **PLAIN)
    version = Store(tmp_path / "store").open(result["version"])
    folder = tmp_path / "loop" / "day-0001" / "node2vec"
    made = JobFolder(folder).read_vectors()["item_id"]
    found = version.lookup("item_id", made.values).numpy()
    ratio = found / made.vectors
    assert np.median(np.abs(ratio / ratio[0, 0] - 1)) < 1e-5
    assert np.sqrt((found**2).mean()) == pytest.approx(0.5, rel=0.01)
    (rows,) = version.manifest["lineage"]["node2vec"]["warm_start"]
    assert rows["features"] == {"item_id": "item_id"}
    weights = ValueVectors.read(folder / "vectors" / "feature=item_id", weight_column="visits").weights_V
    assert weights.min() >= HOW["walks"]["num_walks"]  # a walk begins at each node so often


def test_each_day_publishes_vectors(days: list[Path], tmp_path: Path) -> None:
    """Each day's start from those of the day before; the table is not made from them, and doesn't say so."""
    how = {**HOW, "features": [], "publish": {"store": str(tmp_path / "vectors")}, "evaluate": {"links": 0.1}}
    result = run(tmp_path, days, node2vec=how, **PLAIN)
    store, walked = Store(tmp_path / "vectors"), [day["stages"]["node2vec"] for day in result["days"]]
    assert [of.id for of in store.versions()] == [of["version"] for of in walked]
    assert [of["settings"]["start"]["vectors"] for of in walked] == [
        None,
        str(tmp_path / "loop" / "day-0001" / "node2vec"),
    ]
    assert all(of["links"]["auc"] > 0 for of in walked)
    for number, of in enumerate(walked, 1):
        made = JobFolder(tmp_path / "loop" / f"day-{number:04}" / "node2vec").read_vectors()["user_id"]
        assert np.array_equal(store.open(of["version"]).lookup("user_id", made.values).numpy(), made.vectors)
    assert Store(tmp_path / "store").open("latest").manifest["lineage"]["node2vec"] is None


def test_stopped_while_it_walks_it_goes_on(days: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run(tmp_path / "whole", days[:1], **PLAIN)

    def stopped(*given: Any, **named: Any) -> Any:
        raise Interrupted("stopped")

    with monkeypatch.context() as stopping:
        stopping.setattr(job._Trainer, "train", stopped)
        with pytest.raises(Interrupted):
            run(tmp_path / "a", days[:1], **PLAIN)
    assert list(JobFolder(tmp_path / "a/loop/day-0001/node2vec").manifest()["stages"]) == ["graph", "visits"]
    with monkeypatch.context() as counting:
        counting.setattr(stages, "build_vocabulary", None)
        counting.setattr(job, "build_graph", None)
        result = run(tmp_path / "a", days[:1], **PLAIN)
    files = published(tmp_path / "whole" / "store", undisturbed["version"])
    assert published(tmp_path / "a" / "store", result["version"]) == files


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"graph": {**HOW["graph"], "log": "logs"}}, "graph.log; expected none; .* of the day's log"),
        ({"graph": {"pairs": [["user_id"]]}}, "two different columns"),
        ({"graph": {"pair": [["user_id", "item_id"]]}}, r"config\.node2vec\.graph: unknown key 'pair'"),
        ({"skip_gram": {"dim": 3}}, r"skip_gram.dim; expected 4 \(table.dim\) or more; found 3"),
        ({"features": []}, "a use of the vectors"),
        ({"features": ["user_id"], "scale": 0.0}, "a number above 0"),
        ({"propagation": 2}, "a share from 0 to 1"),
    ],
)
def test_settings_that_cannot_be(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(LoopSettings, settings(tmp_path, [tmp_path], node2vec={**HOW, **more}))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"features": ["user_di"]}, "user_di"),
        ({"features": ["category"]}, "values of user_id or item_id; found category"),
        ({"features": ["item_id"], "frozen": True}, "an exact feature"),
        ({"graph": {"pairs": [["timestamp", "price"]]}}, "a feature that reads one of them"),
    ],
)
def test_features_that_cannot_be_are_told_before_the_walks(
    more: dict[str, Any], message: str, days: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "walk", None)
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, days[:1], node2vec={**HOW, **more}, **PLAIN)


def test_features_of_another_name() -> None:
    how = parse(LoopSettings, settings(Path(), [], node2vec={**HOW, "features": {"item_id": "item_id"}})).node2vec
    assert how is not None
    assert how.first_rows(DAYS.schema(), Path("made")).names == {"item_id": "item_id"}
