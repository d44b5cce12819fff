"""The shared-out table against one that is not: the same rows, outputs and updates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import Ranks
from torch import nn

from embstore.distributed import ALONE
from embstore.errors import ConfigError
from embstore.sharding.batch_norm import GroupBatchNorm


@st.composite
def _tables(draw: st.DrawFn) -> dict[str, Any]:
    features, lists = [], []
    for number in range(draw(st.integers(1, 4))):
        name = f"feature{number}"
        exact, pooling = draw(st.booleans()), draw(st.sampled_from(["sum", "mean"]))
        features.append({"name": name, "lookups": draw(st.integers(1, 3)), "exact": exact, "pooling": pooling})
        lists += [name] if draw(st.booleans()) else []
    num_tables = draw(st.integers(1, 3))
    return {
        "features": features,
        "lists": lists,
        "num_tables": num_tables,
        "rows": num_tables * draw(st.integers(2, 40)),
        "dim": draw(st.sampled_from([1, 3, 8, 16])),
        "known": draw(st.integers(0, 8)),
        "optimizer": draw(st.sampled_from(["rowwise_adagrad", "adagrad", "adam", "sgd"])),
        "l2": draw(st.sampled_from([0.0, 0.05])),
        "dtype": draw(st.sampled_from(["float32", "float32", "bfloat16", "float16"])),
        "kernel": draw(st.sampled_from(["auto", "reference"])),
        "batches": draw(st.lists(st.integers(0, 20), max_size=4)),
        "seed": draw(st.integers(0, 1000)),
    }


@pytest.mark.parametrize("world", [1, 2, 3])
@settings(max_examples=15)
@given(of=_tables())
def test_it_is_the_table_of_one_process(ranks: Ranks, world: int, of: dict[str, Any]) -> None:
    rows = of["rows"] + sum(feature["lookups"] * (of["known"] + 1) for feature in of["features"] if feature["exact"])
    if -(-rows // world) * (world - 1) >= rows:  # a rank would hold none, as in a table of 4 rows for 3
        return
    found = ranks.run(world, "table", **of)
    assert [of["shard"] for of in found] == _blocks(rows, world)
    close = 2e-5 if of["dtype"] == "float32" else 0.02  # a gradient summed in another order may round to another side
    for one in found:
        assert one["first rows"]
        assert one["first forward"]
        assert one["changed"]
        assert one["steps"]
        for name in ("forward", "state", "rows", "evaluated", "looked up"):
            assert one[name] <= close, name


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_asked_ahead_are_the_same(ranks: Ranks, world: int) -> None:
    """Also for batches of fewer rows than ranks, and of none."""
    for same in ranks.run(world, "ahead", sizes=[9, 30, 2, 1, 0, 17, 5, 1, 12]):
        assert same == [True, True]


def _blocks(rows: int, world: int) -> list[list[int]]:
    block = -(-rows // world)
    return [[rank * block, min((rank + 1) * block, rows)] for rank in range(world)]


@pytest.mark.parametrize(("rows", "world"), [(4, 3), (2, 3), (1, 2)])
def test_a_rank_without_rows_is_refused(ranks: Ranks, rows: int, world: int) -> None:
    of = {"features": [{"name": "a"}], "lists": [], "num_tables": 1, "rows": rows, "dim": 4, "known": 0, "l2": 0.0}
    of |= {"optimizer": "sgd", "dtype": "float32", "kernel": "auto", "batches": [], "seed": 0}
    for answer in ranks.answers(world, "table", seconds=240, **of):
        assert answer["error"] == "GroupError"
        assert f"table of {rows} rows; expected rows for each rank; found {world} ranks" in answer["text"]


def test_a_table_that_does_not_fit_is_refused(ranks: Ranks) -> None:
    for answer in ranks.answers(2, "too_large", seconds=240):
        assert answer["error"] == "ConfigError"
        assert answer["text"].startswith("table of 1,000,000,000,000 rows x 64 over 2 ranks; expected at most")


@pytest.mark.parametrize(
    "of",
    [
        nn.BatchNorm1d(3, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.LazyBatchNorm1d(),
    ],
)
def test_batch_norms_without_weights_or_statistics_are_refused(of: nn.BatchNorm1d) -> None:
    with pytest.raises(ConfigError, match="batch norm in a network trained by ranks; expected affine"):
        GroupBatchNorm(of, ALONE)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("kind", "positions", "sizes"),
    [
        ("BatchNorm", [], [7, 1, 2, 30, 3]),
        ("BatchNorm", [4], [7, 1, 2, 3]),
        ("BatchNorm1d", [], [7, 2]),
        ("BatchNorm1d", [5], [7, 1, 2]),
        ("BatchNorm2d", [5, 2], [7, 1, 2]),
        ("BatchNorm3d", [2, 1, 3], [7, 1, 2]),
    ],
)
def test_batch_norm_sees_the_whole_batch(
    ranks: Ranks, world: int, kind: str, positions: list[int], sizes: list[int]
) -> None:
    for differences in ranks.run(world, "batch_norm", sizes=sizes, kind=kind, positions=positions):
        assert max(differences) < 1e-12
