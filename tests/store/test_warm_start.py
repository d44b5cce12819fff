"""Vectors taken from others. The judge: brute force in exact arithmetic."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import KNOWN_DAYS, VALUES, bits, make_table, publish, text, tokens_of

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import DataError, LogError, SchemaError
from embstore.kernels import TableOptimizer
from embstore.store import export_parquet, import_vectors


def rows_of(table: UnifiedEmbedding, feature: str, value: Any) -> list[int]:
    plan = table.plan.only(feature)
    return [int(plan.rows_of(lookup, tokens_of([value]))[0]) for lookup in plan.lookups]


def brute_force(
    table: UnifiedEmbedding, feature: str, given: dict[Any, tuple[list[float], float]], known: Callable[[Any], bool]
) -> dict[int, list[float]]:
    """By row the weighted mean of what its values bring, in exact order-free arithmetic."""
    from fractions import Fraction

    brought: dict[int, list[tuple[Fraction, list[float]]]] = defaultdict(list)
    for value, (vector, weight) in given.items():
        if known(value):
            for number, row in enumerate(rows_of(table, feature, value)):
                part = vector[3 * number : 3 * number + 3] if len(vector) > 3 else vector
                brought[row].append((Fraction(weight), part))
    return {
        row: [float(sum(w * Fraction(p[d]) for w, p in parts) / sum(w for w, _ in parts)) for d in range(3)]
        for row, parts in brought.items()
    }


@settings(max_examples=60)
@given(
    feature=st.sampled_from(["user", "day"]),
    wide=st.booleans(),
    weighted=st.booleans(),
    data=st.data(),
    num_rows=st.sampled_from([4, 40]),
)
def test_rows_are_weighted_means(feature: str, wide: bool, weighted: bool, data: st.DataObject, num_rows: int) -> None:
    table = make_table(num_rows=num_rows)
    before = table.weight.clone()
    one = st.integers(-5, 12) if feature == "day" else text
    numbers = st.lists(st.floats(-1e3, 1e3, width=32), min_size=6 if wide else 3, max_size=6 if wide else 3)
    weights = st.floats(1e-3, 1e6) if weighted else st.just(1.0)
    given = data.draw(st.dictionaries(one, st.tuples(numbers, weights), max_size=25))
    rows = pa.table(
        {
            "value": pa.array(list(given), pa.int64() if feature == "day" else pa.string()),
            "vector": pa.array([v for v, _ in given.values()], pa.list_(pa.float32())),
            "w": pa.array([w for _, w in given.values()], pa.float64()),
        }
    )
    result = import_vectors(table, feature, rows, weight_column="w" if weighted else None)

    def known(value: Any) -> bool:
        return feature == "user" or value in KNOWN_DAYS

    expected = brute_force(table, feature, given, known)
    for row in range(table.num_rows):
        if row in expected:
            np.testing.assert_allclose(table.weight[row].numpy(), expected[row], rtol=1e-6, atol=1e-9)
        else:
            assert torch.equal(table.weight[row], before[row])
    where = {value: set(rows_of(table, feature, value)) for value in given if known(value)}
    shared = [v for v in where if any(where[v] & where[other] for other in where if other != v)]
    assert (result.values, result.rows) == (len(given), len(expected))
    assert (result.shared, result.unknown) == (len(shared), len(given) - len(where))

    again = make_table(num_rows=num_rows)
    order = data.draw(st.permutations(range(len(given))))
    import_vectors(again, feature, rows.take(pa.array(order, pa.int64())), weight_column="w" if weighted else None)
    assert bits(again.weight) == bits(table.weight)  # the order of the file is of no matter


def test_values_alone_get_their_vectors_exactly() -> None:
    """Weights from 1e-300 to 1e300, and the sign of a zero, change nothing."""
    table = make_table(num_rows=40_000)
    values = [f"v{i}" for i in range(20)]
    assert len({row for value in values for row in rows_of(table, "user", value)}) == 40
    vectors = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)).numpy()
    vectors[3, 2], vectors[19, 4] = -0.0, 3e38  # the last times its weight is more than float64 holds
    weight = 10.0 ** np.linspace(-300, 300, 20)
    rows = pa.table({"name": values, "numbers": list(vectors), "w": weight})
    result = import_vectors(table, "user", rows, value_column="name", vector_column="numbers", weight_column="w")
    assert (result.values, result.rows, result.shared, result.unknown) == (20, 40, 0, 0)
    assert bits([table.weight[rows_of(table, "user", v)].reshape(-1).tolist() for v in values]) == bits(vectors)
    assert table.lookup("user", values).tolist() == vectors.tolist()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_sums_do_not_depend_on_the_order_of_the_file(order: tuple[int, ...]) -> None:
    """In float64, 1e30 + 1 - 1e30 is 0 or 1, as it is added."""
    rows = pa.table({"value": ["a", "b", "c"], "vector": [[1e30, 1.0, -1e30], [1.0, -1e30, 1e30], [-1e30, 1e30, 1.0]]})
    weights = []
    for taken in (rows, rows.take(list(order))):
        table = make_table(num_rows=1)
        result = import_vectors(table, "user", taken)
        assert (result.rows, result.shared) == (1, 3)
        weights.append(table.weight[0].tolist())
    assert weights[0] == weights[1]


def test_an_export_starts_another_table(tmp_path: Path) -> None:
    """Exact features keep their numbers whatever the new table's layout; a list feature's values come flat."""
    old = make_table()
    version = publish(tmp_path / "store", old)
    days = pa.table({"value": [1, 2, 7], "count": [3, 1, 1]})
    export_parquet(version, {"day": days, "tags": pa.array(["a", "b"])}, tmp_path / "out")
    new = make_table(num_rows=4096, seed=5)
    assert new.lookup("day", [1]).tolist() != old.lookup("day", [1]).tolist()
    for folder in (tmp_path / "out" / "feature=day", str(tmp_path / "out" / "feature=day" / "part-0.parquet")):
        result = import_vectors(new, "day", folder, weight_column="count")
        assert (result.values, result.rows, result.shared, result.unknown) == (3, 6, 0, 0)
    assert new.lookup("day", KNOWN_DAYS).tolist() == old.lookup("day", KNOWN_DAYS).tolist()
    import_vectors(new, "tags", tmp_path / "out" / "feature=tags")
    assert new.lookup("tags", [["a", "b"]]).tolist() == old.lookup("tags", [["a", "b"]]).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_rows_are_rounded_to_nearest(dtype: torch.dtype) -> None:
    table = make_table(dtype, num_rows=4000)
    vector = [0.1, -1 / 3, 2.00049]
    import_vectors(table, "7", pa.table({"value": [True], "vector": [vector]}))
    assert table.lookup("7", [True])[0].tolist() == torch.tensor(vector).to(dtype).float().tolist()


def test_rows_that_owe_a_penalty_are_set_as_of_now() -> None:
    table = make_table(optimizer=TableOptimizer(name="sgd", learning_rate=0.5, l2=0.5), num_rows=400)
    table.train()
    table(_batch(table)).sum().backward()
    import_vectors(table, "user", pa.table({"value": ["new"], "vector": [[1.0, 2.0, 3.0]]}))
    assert table.lookup("user", ["new"]).tolist() == [[1.0, 2.0, 3.0] * 2]


def _batch(table: UnifiedEmbedding) -> Any:
    from embstore.batch import FeatureTokens

    features = [replace(feature, column=None, transform=None) for feature in table.features]
    return FeatureTokens.from_columns({name: [values[0]] for name, values in VALUES.items()}, features)


def rows_table(**columns: Any) -> pa.Table:
    return pa.table({"value": ["a", "b"], "vector": [[1.0, 2.0, 3.0]] * 2, **columns})


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (pa.table({"value": ["a"]}), SchemaError, "column 'vector'; expected one; found none"),
        (pa.table({"valu": ["a"], "vector": [[1.0]]}), SchemaError, "did you mean 'valu'"),
        (rows_table(vector=[[1.0] * 3, [1.0] * 2]), DataError, "row 1; expected a vector of 3, as in row 0; found 2"),
        (rows_table(vector=[[1.0] * 3, [1.0] * 6]), DataError, "row 1; expected a vector of 3, as in row 0; found 6"),
        (rows_table(vector=[[1.0] * 4] * 2), DataError, "row 0; expected a vector of 3 or 6; found 4"),
        (rows_table(vector=[[]] * 2).cast(pa.schema([("value", pa.string()), ("vector", pa.list_(pa.float32()))])),
         DataError, "row 0; expected a vector of 3 or 6; found 0"),
        (rows_table(vector=[[1.0] * 3, [1.0, float("nan"), 0.0]]), DataError, "row 1, number 1 of 3; .*nan"),
        (rows_table(vector=[[1.0] * 3, [1.0, float("inf"), 0.0]]), DataError, "row 1, number 1 of 3; .*inf"),
        (rows_table(vector=[[1.0] * 3, [1.0, 1e300, 0.0]]), DataError, "row 1, number 1 of 3; .*1e[+]300"),
        (rows_table(vector=[[1.0] * 3, [1.0, None, 0.0]]), DataError, "row 1, number 1 of 3; .*None"),
        (rows_table(vector=[[1.0] * 3, None]), DataError, "column 'vector', row 1; expected no missing"),
        (rows_table(vector=[[1] * 3] * 2), SchemaError, "expected lists of floats; found list<item: int64>"),
        (rows_table(vector=[1.0, 2.0]), SchemaError, "expected lists of floats; found double"),
        (rows_table(value=["a", None]), DataError, "column 'value', row 1; expected no missing"),
        (rows_table(value=["é", "é"]), DataError, "each value once; found 'é' in rows 0 and 1"),
        (rows_table(value=[1.5, 2.5]), SchemaError, "'value' can't be a feature"),
        (rows_table(value=[["a"], ["b"]]), SchemaError, "expected single values"),
        (rows_table(w=["1", "2"]), SchemaError, "column 'w'; expected numbers"),
        (rows_table(w=[1.0, 0.0]), DataError, "column 'w', row 1; expected a finite number above 0; found 0.0"),
        (rows_table(w=[1.0, float("inf")]), DataError, "column 'w', row 1"),
        (rows_table(w=[1, None]), DataError, "column 'w', row 1; expected no missing"),
        ("nowhere.parquet", LogError, "nowhere.parquet"),
        ("broken.parquet", LogError, "broken.parquet"),
    ],
)  # fmt: skip
def test_vectors_that_cannot_be_taken(tmp_path: Path, vectors: Any, error: type[Exception], message: str) -> None:
    table = make_table()
    before = table.weight.clone()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    weight = "w" if isinstance(vectors, pa.Table) and "w" in vectors.column_names else None
    with pytest.raises(error, match=message):
        import_vectors(table, "user", tmp_path / vectors if isinstance(vectors, str) else vectors, weight_column=weight)
    assert torch.equal(table.weight, before)
    with pytest.raises(SchemaError, match="did you mean 'user'"):
        import_vectors(table, "usr", rows_table())


def test_numbers_a_narrow_table_cannot_hold_are_refused() -> None:
    with pytest.raises(DataError, match=r"finite numbers of float16; found .*70000"):
        import_vectors(make_table(torch.float16), "7", pa.table({"value": [True], "vector": [[1.0, 70_000.0, 0.0]]}))


def test_duplicates_across_dictionary_chunks_are_found() -> None:
    value = pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()])
    rows = pa.table({"value": value, "vector": [[1.0, 2.0, 3.0]] * 4})
    with pytest.raises(DataError, match="'a' in rows 0 and 3"):
        import_vectors(make_table(), "user", rows)
