"""One suite for all methods: what they find of planted signal, and what they make of rows that say nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from worlds import World, trained

from embstore.errors import ConfigError, DataError
from embstore.logs import ParquetLog
from embstore.selection import Cross, Layout, Scores, SparseBatch
from embstore.selection.methods import Rows, Search, Trained, names, register, score
from embstore.selection.planted import PlantedBatches

# Those made for long trainings learn faster in this one of 96 steps.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "autofield": {"every": 1, "learning_rate": 0.02},
    "optfs": {"learning_rate": 0.03},
    "lpfs": {"learning_rate": 0.01},
}
# Of the 4 planted values; replaced by others of their field, those beside a planted one look as if they mattered, too.
VALUES = {"lift": 4, "mutual_information": 4, "lasso": 4, "leave_one_out": 4}
VALUES |= {"permutation": 3, "sfs": 3, "shark": 3, "optfs": 3}
Sources: TypeAlias = tuple[World, dict[type, Any]]
FIELDS = sorted(set(names()) - {"random", "frequency", "optfs"})


@pytest.fixture(scope="module", params=[0, 1])
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sources]:
    folder, threads = tmp_path_factory.mktemp("world"), torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that threads would wait for each other
    planted = PlantedBatches(
        batches=40,
        rows=1024,
        columns=600,
        signal_fields=2,
        mixed_fields=2,
        noise_fields=6,
        field_effect=0.8,
        value_effect=1.5,
        bias=-1.0,
        seed=request.param,
    )
    world = World.write(folder, planted, valid=16)
    yield (
        world,
        {
            Rows: Rows(batches=world.batches(), layout=world.columns.layout),
            Trained: Trained(model=trained(world, folder / "run"), log=world.valid, columns=world.columns, rows=512),
            Search: Search(
                build=lambda: world.model(hidden=(32,), batch_norm=False),
                train=world.train,
                valid=world.valid,
                columns=world.columns,
                batch_size=512,
                epochs=2,
                learning_rate=2e-3,
            ),
        },
    )
    torch.set_num_threads(threads)


def _score(name: str, sources: Mapping[type, Any], **settings: Any) -> Scores:
    [source] = [of for kind, of in sources.items() if name in names(kind)]
    return score(name, source, **{**SETTINGS.get(name, {}), **settings})


@pytest.fixture(scope="module")
def scores(sources: Sources) -> Callable[[str], Scores]:
    """Of each method, once for all tests."""
    return cache(lambda name: _score(name, sources[1]))


def test_all_methods_are_there() -> None:
    assert names(Rows) == ("frequency", "lasso", "lift", "mutual_information", "random")
    assert names(Trained) == ("leave_one_out", "leave_out_together", "permutation", "sfs", "shark")
    assert names(Search) == ("autofield", "lpfs", "optfs")


@pytest.mark.parametrize("name", FIELDS)
def test_planted_fields_are_best(name: str, sources: Sources, scores: Callable[[str], Scores]) -> None:
    world, _ = sources
    assert set(scores(name).top_fields(4)) == world.planted.planted_fields


@pytest.mark.parametrize("name", sorted(VALUES))
def test_planted_values_are_best(name: str, sources: Sources, scores: Callable[[str], Scores]) -> None:
    world, _ = sources
    judged, planted = world.judged_columns(), world.planted_columns()
    ranked = scores(name).top_columns(world.columns.layout.columns)
    best = [int(column) for column in ranked if int(column) in judged][: len(planted)]
    assert len(set(best) & planted) >= VALUES[name]


@pytest.mark.parametrize("name", names())
def test_scores_are_shares_of_the_best_and_the_same_again(
    name: str, sources: Sources, scores: Callable[[str], Scores]
) -> None:
    world, of = sources
    once, again = scores(name), _score(name, of)
    assert once.layout is world.columns.layout
    for log_score in (once.log_field_F, once.log_column_D):
        assert not np.isnan(log_score).any()
        assert log_score.max() == 0.0
    assert len(once.log_field_F) == 10
    assert len(once.log_column_D) == world.columns.layout.columns
    np.testing.assert_array_equal(once.log_field_F, again.log_field_F)
    np.testing.assert_array_equal(once.log_column_D, again.log_column_D)


@pytest.mark.parametrize("name", sorted({"frequency", *VALUES}))
def test_values_that_no_row_has_are_worth_nothing(name: str, sources: Sources, scores: Callable[[str], Scores]) -> None:
    world, _ = sources
    empty = [world.columns.layout.bounds_F[1:] - 2, world.columns.layout.bounds_F[1:] - 1]  # missing, and all others
    assert (scores(name).column_D[np.concatenate(empty)] == 0).all()


@pytest.mark.parametrize("name", ["random", "permutation"])
def test_another_seed_is_another_draw(name: str, sources: Sources) -> None:
    _, of = sources
    assert (_score(name, of, seed=0).field_F != _score(name, of, seed=1).field_F).any()


@pytest.mark.parametrize("name", [name for name in names() if name != "random"])
def test_labels_of_one_class_are_refused(name: str, sources: Sources, tmp_path: Path) -> None:
    world, of = sources
    table = pa.table({**{field: [0, 1, 2, 3] for field in world.planted.layout.names}, "y": [1, 1, 1, 1]})
    pq.write_table(table, tmp_path / "log.parquet")
    log = ParquetLog(tmp_path, world.train.schema)
    alike: dict[type, Any] = {
        Rows: replace(of[Rows], batches=[world.columns.batch(batch) for batch in log.batches(10)]),
        Trained: replace(of[Trained], log=log),
        Search: replace(of[Search], train=log),
    }
    with pytest.raises(DataError, match="both classes"):
        _score(name, alike)


@pytest.mark.parametrize("name", [name for name in names(Rows) if name != "random"])
def test_no_rows_are_refused(name: str, sources: Sources) -> None:
    with pytest.raises(DataError, match="at least one"):
        score(name, replace(sources[1][Rows], batches=[]))


@pytest.mark.parametrize("name", names(Rows))
def test_a_field_without_values_is_worth_nothing(name: str) -> None:
    layout = Layout(names=("said", "empty"), bounds_F=np.array([0, 2, 4]))
    batch = SparseBatch(
        indptr_N=np.arange(41),
        indices_E=np.tile([0, 1], 20).astype(np.int32),
        labels_N=np.tile([0.0, 1.0, 0.0, 1.0, 1.0], 8).astype(np.float32),
        dense_NC=np.empty((40, 0), np.float32),
    )
    scores = score(name, Rows(batches=[batch], layout=layout))
    assert not np.isnan(scores.field_F).any()
    if name != "random":
        assert scores.field_F[1] == 0
        assert (scores.column_D[2:] == 0).all()


def test_what_is_no_method_setting_or_source(sources: Sources) -> None:
    world, of = sources
    with pytest.raises(ConfigError, match="did you mean 'lasso'"):
        score("laso", of[Rows])
    with pytest.raises(ConfigError, match="did you mean 'smoothing'"):
        score("lift", of[Rows], smothing=1)
    with pytest.raises(ConfigError, match="no settings"):
        score("frequency", of[Rows], seed=1)
    with pytest.raises(ConfigError, match="expected Trained; found Rows"):
        score("shark", of[Rows])
    with pytest.raises(ConfigError, match="registered twice"):
        register("lift", object)(score)
    with pytest.raises(ConfigError, match="validation log"):
        score("autofield", replace(of[Search], valid=None))
    crossed = replace(world.columns, crosses=[Cross(features=world.planted.layout.names[:2])])
    with pytest.raises(ConfigError, match="cross"):
        replace(of[Trained], columns=crossed)
    for name, wrong in (
        ("lift", {"smoothing": 0}),
        ("lasso", {"penalty": 2}),
        ("lasso", {"steps": 0}),
        ("permutation", {"repeats": 0}),
        ("shark", {"replacement": "zero"}),
        ("leave_one_out", {"replacement": "zero"}),
        ("optfs", {"temperature": 0.5}),
        ("autofield", {"every": 0}),
        ("lpfs", {"last": 1}),
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            _score(name, of, **wrong)
