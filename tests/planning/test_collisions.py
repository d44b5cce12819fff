"""Expected collisions, against the hash that tables use, and against counting all ways that few values can fall."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from commands import invoke

from embstore import hashing
from embstore.errors import ConfigError
from embstore.feature_values import FeatureValues
from embstore.planning.collisions import Cardinality, advise, cardinalities, deserving, rows_for, shared, split
from embstore.schema import Feature
from embstore.tokens import tokenize
from embstore.vocabulary import Vocabulary

SEEDS = 200


def _sharing(rows_N: np.ndarray) -> int:
    _, at, counts = np.unique(rows_N, return_inverse=True, return_counts=True)
    return int((counts[at] > 1).sum())


def _pairs(rows_N: np.ndarray) -> int:
    counts = np.unique(rows_N, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


@pytest.mark.parametrize(("values", "rows"), [(1, 4), (2, 1), (3, 2), (4, 3), (5, 2)])
def test_few_values_in_all_ways(values: int, rows: int) -> None:
    ways = [np.array(way) for way in itertools.product(range(rows), repeat=values)]
    found = shared([Cardinality(name="a", values=values)], rows)
    assert found.values == pytest.approx(np.mean([_sharing(way) for way in ways]))
    assert found.pairs == pytest.approx(np.mean([_pairs(way) for way in ways]))


def test_the_hash_that_tables_use() -> None:
    """Counts and texts, two features of two lookups, over many seeds of the table; within 4 standard errors."""
    rows = 3_000
    columns = {"user": pa.array(range(1_500)), "item": pa.array([f"item {n}" for n in range(400)])}
    tokens = {name: tokenize(column, name=name).values for name, column in columns.items()}
    features = [Cardinality(name=name, values=len(of), lookups=2) for name, of in tokens.items()]
    expected = shared(features, rows)
    found: dict[str, list[float]] = {"values": [], "pairs": []}
    for seed in range(SEEDS):
        for lookup in range(2):
            fallen = [hashing.rows(of, hashing.salt(name, lookup, seed), rows) for name, of in tokens.items()]
            found["values"].append(sum(map(_sharing, fallen)))
            found["pairs"].append(sum(map(_pairs, fallen)))
    for name, of in found.items():
        error = np.std(of) / len(of) ** 0.5
        assert abs(np.mean(of) - getattr(expected, name)) < 4 * error
        assert error < 0.01 * getattr(expected, name)


def test_sharing_all_rows_by_the_hash() -> None:
    """Values in few rows meet in both lookups often enough to be counted."""
    rows, size = 40, 60
    tokens = tokenize(pa.array(range(size)), name="a").values
    expected = shared([Cardinality(name="a", values=size, lookups=2)], rows).wholly
    found = []
    for seed in range(4 * SEEDS):
        both = [hashing.rows(tokens, hashing.salt("a", lookup, seed), rows) for lookup in range(2)]
        found.append(_sharing(both[0] * rows + both[1]))
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / len(found) ** 0.5


def test_split_tables_by_the_hash() -> None:
    """Each feature in a table of its own, as large a part of the rows as its values are."""
    sizes, rows = {"user": 900, "item": 100}, 2_000
    features = [Cardinality(name=name, values=size) for name, size in sizes.items()]
    found = []
    for seed in range(SEEDS):
        fallen = 0
        for name, size in sizes.items():
            tokens = tokenize(pa.array(range(size)), name=name).values
            fallen += _sharing(hashing.rows(tokens, hashing.salt(name, 0, seed), rows * size // 1000))
        found.append(fallen)
    assert abs(np.mean(found) - split(features, rows).values) < 4 * np.std(found) / len(found) ** 0.5
    assert advise(features, rows=rows).approximate_split == 1000**2 / 2 / rows
    assert advise(features, rows=rows).approximate_shared == (900**2 + 100**2) / 2 / rows
    assert shared(features, rows).values < split(features, rows).values


def test_sub_tables_have_a_part_of_the_rows() -> None:
    features = [Cardinality(name="a", values=500)]
    ours, theirs = shared(features, 1_000, num_tables=4), shared(features, 250)
    assert (ours.pairs, ours.values, ours.share) == (theirs.pairs, theirs.values, theirs.share)


@pytest.mark.parametrize("how", [shared, split])
@pytest.mark.parametrize("target", [0.01, 0.1, 0.5, 1.0])
def test_rows_for_a_target_are_the_fewest(how: object, target: float) -> None:
    features = [Cardinality(name="a", values=1_000), Cardinality(name="b", values=77, lookups=3)]
    rows = rows_for(features, target, how)  # type: ignore[arg-type]
    assert rows is not None
    assert how(features, rows).share <= target  # type: ignore[operator]
    assert rows == 1 or how(features, rows - 1).share > target  # type: ignore[operator]


def test_rows_that_nobody_has() -> None:
    assert rows_for([Cardinality(name="a", values=10**15)], 1e-6) is None
    with pytest.raises(ConfigError, match="a share above 0"):
        rows_for([Cardinality(name="a", values=1)], 0)
    with pytest.raises(ConfigError, match="features, and 1 row"):
        advise([])


def test_small_features_deserve_exact_blocks() -> None:
    features = [
        Cardinality(name="user", values=10_000),
        Cardinality(name="hour", values=24, lookups=2),
        Cardinality(name="day", values=7),
    ]
    assert deserving(features, 10_000) == ("day", "hour")  # 8 + 50 of 100 rows
    assert deserving(features, 5_000) == ("day",)
    assert deserving(features, 100) == ()
    found = advise(features, rows=10_000)
    assert {of.cardinality.name: of.exact for of in found.features} == {"user": False, "hour": True, "day": True}
    assert found.after_exact == shared(features[:1], 10_000 - 58)


def test_occurrences_count_by_how_often_they_were_seen() -> None:
    features = [Cardinality(name="a", values=100, occurrences=900), Cardinality(name="b", values=1, occurrences=100)]
    found = shared(features, 100)
    assert found.occurrences == pytest.approx(0.9 * shared(features[:1], 100).share)
    assert shared([Cardinality(name="a", values=3)], 10).occurrences is None
    of = {
        "a": FeatureValues.of("a", [1, 2, 3], count=[5, 1, 1], kept=[True, False, True]),
        "b": FeatureValues.of("b", ["x"], count=[2]),
        "c": FeatureValues.of("c", ["x", "y"], count=[2, 1], kept=[True, False], stand_in=[None, "x"]),
    }
    assert cardinalities(Vocabulary(of), {"b": 2}) == [
        Cardinality(name="a", values=3, occurrences=7),  # two that are kept, and the pruned one
        Cardinality(name="b", values=1, occurrences=2, lookups=2),
        Cardinality(name="c", values=1, occurrences=3),  # what is dropped has the row of the other
    ]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    of = {"user": FeatureValues.of("user", range(5_000)), "hour": FeatureValues.of("hour", range(24))}
    Vocabulary(of).to_parquet(tmp_path / "vocabulary")
    return tmp_path / "vocabulary"


def test_the_command(vocabulary: Path, tmp_path: Path) -> None:
    told = json.loads(invoke("plan", "--vocabulary", vocabulary, "--rows", "20k", "--json").stdout)["collisions"]
    expected = advise([Cardinality(name="hour", values=24), Cardinality(name="user", values=5_000)], rows=20_000)
    assert told["shared"] == pytest.approx(expected.shared.__dict__)
    assert told["shared_rows"] == expected.shared_rows
    told = json.loads(invoke("plan", "--vocabulary", vocabulary, "--target", "0.2", "--json").stdout)["collisions"]
    assert told["rows"] == told["shared_rows"]
    assert told["shared"]["share"] <= 0.2
    text = invoke("plan", "--vocabulary", vocabulary, "--rows", "20k").stdout
    assert "exact: true pays for hour" in text
    assert "memory of a rank" not in text
    schema = tmp_path / "schema.yaml"
    schema.write_text("features: [{name: user, lookups: 2}, {name: hour, exact: true}]\n")
    both = invoke("plan", "--vocabulary", vocabulary, "--schema", schema, "--rows", "20k", "--dim", 8, "--json").stdout
    told = json.loads(both)
    assert told["workload"]["rows"] == 20_000
    assert [of["cardinality"]["name"] for of in told["collisions"]["features"]] == ["user"]
    assert told["collisions"]["features"][0]["cardinality"]["lookups"] == Feature(name="user", lookups=2).lookups


def test_the_cost_of_the_rows_that_a_target_needs(vocabulary: Path, tmp_path: Path) -> None:
    """The case: with --dim it wanted --rows, though without it takes those that reach the target."""
    schema = tmp_path / "schema.yaml"
    schema.write_text("features: [{name: user}, {name: hour}]\n")
    flags = ("plan", "--vocabulary", vocabulary, "--schema", schema, "--target", 0.2)
    told = json.loads(invoke(*flags, "--dim", 16, "--json").stdout)
    alone = json.loads(invoke(*flags, "--json").stdout)
    assert told["collisions"] == alone["collisions"]
    assert told["workload"]["rows"] == alone["collisions"]["shared_rows"]
    with pytest.raises(ConfigError, match="a share that some table has, or --rows"):
        invoke("plan", "--vocabulary", vocabulary, "--target", 1e-12, "--dim", 16)


def test_the_picture(vocabulary: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    invoke("plan", "--vocabulary", vocabulary, "--plot", tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        invoke("plan", "--vocabulary", vocabulary, "--plot", tmp_path / "found.unknown")
    with pytest.raises(ConfigError, match="--vocabulary FOLDER"):
        invoke("plan", "--plot", tmp_path / "found.png", "--rows", 10, "--dim", 2)
