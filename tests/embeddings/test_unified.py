"""The unified table: what it promises whatever kernel is below."""

from __future__ import annotations

import gc
import weakref
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embstore.batch import Batch, FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError, KernelError, SchemaError
from embstore.kernels import TableOptimizer
from embstore.schema import Feature
from embstore.tokens import token

names = st.lists(st.text(min_size=1, max_size=8).filter(lambda s: "\0" not in s), min_size=2, max_size=6, unique=True)


def _int64(*tokens: int) -> torch.Tensor:
    return torch.from_numpy(np.array(tokens, dtype=np.uint64).view(np.int64))


def _tokens(names: tuple[str, ...], rows: int, seed: int = 0) -> FeatureTokens:
    generator = torch.Generator().manual_seed(seed)
    columns = {name: (torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator), None) for name in names}
    return FeatureTokens.concatenate(columns, rows)


@settings(max_examples=40)
@given(names=names, data=st.data(), tables=st.sampled_from([1, 4]), seed=st.integers(0, 2**32))
def test_adding_removing_or_reordering_features_moves_no_other(
    names: list[str], data: st.DataObject, tables: int, seed: int
) -> None:
    features = [Feature(name=name, lookups=1 + i % 3) for i, name in enumerate(names)]
    kept = data.draw(st.permutations(features).map(lambda some: some[: len(features) - 1]))
    values = torch.randint(-(2**63), 2**63 - 1, (20,))

    def rows(features: list[Feature]) -> dict[tuple[str, int], list[int]]:
        table = UnifiedEmbedding(features, 400, 4, num_tables=tables, seed=seed)
        seen: dict[str, int] = {}
        out = {}
        for lookup in table.plan.lookups:
            number = seen[lookup.feature] = seen.get(lookup.feature, -1) + 1
            out[lookup.feature, number] = table.plan.rows_of(lookup, values).tolist()
        return out

    before, after = rows(features), rows(list(kept))
    assert after == {key: before[key] for key in after}


@pytest.mark.parametrize("factor", [1, 2, 5])
@pytest.mark.parametrize("num_tables", [1, 3])
def test_growing_changes_no_lookup(factor: int, num_tables: int) -> None:
    features = [Feature(name="a", lookups=2), Feature(name="e", exact=True), Feature(name="b", pooling="mean")]
    exact = {"e": torch.tensor([5, -7, 9])}
    optimizer = TableOptimizer(l2=0.1, eps=1e-3)
    table = UnifiedEmbedding(
        features, 60, 4, num_tables=num_tables, exact_tokens=exact, optimizer=optimizer, init_std=1.0
    )
    tokens = _tokens(("a", "e", "b"), 200)
    tokens.values_N[200:203] = torch.tensor([5, -7, 9])
    table(tokens).sum().backward()
    grown = table.grow(factor)
    assert grown.num_rows == 60 * factor + 4
    assert torch.equal(grown.eval()(tokens), table.eval()(tokens))
    old_rows, new_rows = table.request(tokens).rows_T, grown.request(tokens).rows_T
    for (name, old), (_, new) in zip(table.named_buffers(), grown.named_buffers(), strict=True):
        assert torch.equal(new[new_rows], old[old_rows]), name
    # The grown table trains: it is one table like any other.
    grown.track_changes()
    grown.train()(tokens).sum().backward()
    assert grown.touched is not None
    assert torch.equal(grown.touched.nonzero().flatten(), new_rows.unique())


def test_growing_separates_values_that_collided() -> None:
    table = UnifiedEmbedding([Feature(name="a")], 8, 4)
    values = torch.arange(1000)
    before = table.plan.rows_of(table.plan.lookups[0], values).unique().numel()
    grown = table.grow(50)
    assert before == 8
    assert grown.plan.rows_of(grown.plan.lookups[0], values).unique().numel() > 300


def test_unknown_values_of_an_exact_feature_share_a_row_that_starts_at_zero() -> None:
    table = UnifiedEmbedding([Feature(name="e", exact=True)], 0, 4, exact_tokens={"e": _int64(token("a"), token("b"))})
    known, unknown, missing = table.lookup("e", ["a", "zzz", None])
    assert known.abs().sum() > 0
    assert torch.equal(unknown, torch.zeros(4))
    assert torch.equal(missing, unknown)


def test_input_may_be_a_batch_tokens_or_a_keyed_jagged_tensor() -> None:
    features = [Feature(name="a", lookups=2), Feature(name="l", pooling="mean")]
    table = UnifiedEmbedding(features, 100, 4).eval()
    offsets = torch.tensor([0, 3, 3, 4])
    tokens = FeatureTokens.concatenate(
        {"a": (torch.tensor([1, 2, 3]), None), "l": (torch.tensor([4, 5, 6, 7]), offsets)}, 3
    )
    expected = table(tokens)
    assert torch.equal(table(Batch(tokens=tokens, dense_BD=torch.zeros(3, 0))), expected)
    kjt = tokens.to_kjt()
    assert torch.equal(table(kjt), expected)
    assert kjt.lengths().tolist() == [1, 1, 1, 3, 0, 1]
    reordered = FeatureTokens.concatenate(
        {"l": tokens.feature("l"), "x": (torch.zeros(3).long(), None), "a": tokens.feature("a")}, 3
    )
    assert torch.equal(table(reordered), expected)


def test_state_dict_and_deepcopy_carry_all_of_training() -> None:
    features = [Feature(name="a"), Feature(name="b", lookups=2)]
    optimizer = TableOptimizer(l2=0.05, eps=1e-4)
    table = UnifiedEmbedding(features, 50, 4, optimizer=optimizer)
    for seed in range(3):
        table(_tokens(("a", "b"), 30, seed)).pow(2).sum().backward()
    other = UnifiedEmbedding(features, 50, 4, optimizer=optimizer)
    other.load_state_dict(table.state_dict())
    copy = deepcopy(table)
    for each in (table, other, copy):
        each(_tokens(("a", "b"), 30, 9)).pow(2).sum().backward()
        each.eval()
    assert torch.equal(table.weight, other.weight)
    assert torch.equal(table.weight, copy.weight)
    assert copy.weight.data_ptr() != table.weight.data_ptr()


def test_no_grad_and_eval_leave_the_table_alone() -> None:
    table = UnifiedEmbedding([Feature(name="a")], 50, 4, optimizer=TableOptimizer(l2=0.5))
    before = table.weight.clone()
    with torch.no_grad():
        table(_tokens(("a",), 10))
    table.eval()
    assert not table(_tokens(("a",), 10)).requires_grad
    assert torch.equal(table.weight, before)


def test_updates_are_the_same_every_time() -> None:
    weights = []
    for _ in range(2):
        table = UnifiedEmbedding([Feature(name="a", lookups=2)], 20, 8, optimizer=TableOptimizer(learning_rate=0.1))
        for seed in range(5):
            table(_tokens(("a",), 500, seed)).pow(2).sum().backward()
        weights.append(table.weight)
    assert torch.equal(*weights)


def test_restored_from_what_it_says_of_itself() -> None:
    features = [Feature(name="a", lookups=2, pooling="mean", max_length=3), Feature(name="e", exact=True)]
    table = UnifiedEmbedding(features, 30, 4, num_tables=3, exact_tokens={"e": torch.tensor([1, 2])}, seed=5)
    again = UnifiedEmbedding.restore(table)
    assert torch.equal(again.eval()(_tokens(("a", "e"), 40)), table.eval()(_tokens(("a", "e"), 40)))
    assert again.describe() == table.describe()


def test_rows_of_float64_are_restored_as_float32() -> None:
    class Wide:
        """A table whose rows are published in float64."""

        def __init__(self, table: UnifiedEmbedding) -> None:
            self.table, self.dim, self.num_rows = table, table.dim, table.num_rows
            self.rows_ND = torch.randn(table.num_rows, table.dim, dtype=torch.float64)
            self.describe, self.exact_tokens, self.dtype = table.describe, table.exact_tokens, torch.float64

        def read_rows(self, start: int, stop: int) -> torch.Tensor:
            return self.rows_ND[start:stop]

    wide = Wide(UnifiedEmbedding([Feature(name="a", lookups=2)], 30, 4, seed=5))
    again = UnifiedEmbedding.restore(wide)
    assert again.weight.dtype == torch.float32
    np.testing.assert_array_equal(again.weight.numpy(), wide.rows_ND.numpy().astype(np.float32))
    assert again.lookup("a", ["x"]).dtype == torch.float32


def test_lookup_takes_raw_values_as_the_log_holds_them() -> None:
    features = [
        Feature(name="user", lookups=2),
        Feature(name="tags", pooling="mean"),
        Feature(name="hour", column="t", transform="hour"),
    ]
    table = UnifiedEmbedding(features, 100, 4)
    assert table.lookup("user", [1, 2, None]).shape == (3, 8)
    x, y = table.lookup("tags", [["x"], ["y"]])
    torch.testing.assert_close(table.lookup("tags", [["x", "y"]])[0], (x + y) / 2)
    assert torch.equal(table.lookup("tags", pa.array([[]], pa.list_(pa.string())))[0], torch.zeros(4))
    times = pa.array([3_600_000_000 * 5, 3_600_000_000 * 29], pa.timestamp("us"))
    assert torch.equal(*table.lookup("hour", times))
    assert torch.equal(table.lookup("hour", times), table.lookup("hour", [5, 5]))
    assert torch.equal(table.lookup("hour", pa.array([None], pa.timestamp("s"))), table.lookup("hour", [None]))
    with pytest.raises(SchemaError, match="a list of values; found 'ann'"):
        table.lookup("user", "ann")
    with pytest.raises(SchemaError, match="did you mean 'user'"):
        table.lookup("usr", [1])
    with pytest.raises(SchemaError, match=r"float|double"):
        table.lookup("user", [1.5])
    with pytest.raises(SchemaError, match="one type"):
        table.lookup("user", [1, "a"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rows": 10, "num_tables": 3}, "multiple of num_tables=3"),
        ({"num_rows": 0}, "at least 1"),
        ({"dim": 0}, "dim of 1 or more"),
        ({"dtype": torch.float64}, "float32, float16, bfloat16"),
        ({"kernel": "fbgem"}, "did you mean 'fbgemm'"),
        ({"features": [Feature(name="a", exact=True)]}, "known tokens"),
        ({"features": [Feature(name="a"), Feature(name="a")]}, "declared twice"),
        ({"seed": -1}, "seed"),
        ({"init_std": -1.0}, "init_std"),
        ({"rows": torch.zeros(3, 4)}, "rows of the table"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    arguments = {"features": [Feature(name="a")], "num_rows": 10, "dim": 4, **changes}
    with pytest.raises(ConfigError, match=message):
        UnifiedEmbedding(arguments.pop("features"), arguments.pop("num_rows"), arguments.pop("dim"), **arguments)


def test_casts_are_refused_and_change_nothing() -> None:
    """half() would cast the optimizer's state and the penalty's account too."""
    table = UnifiedEmbedding([Feature(name="a")], 10, 4, optimizer=TableOptimizer(l2=0.1))
    for cast in (table.half, table.double, table.bfloat16):
        with pytest.raises(ConfigError, match="dtype of a table"):
            cast()
    assert table.to("cpu") is table
    table(_tokens(("a",), 5)).sum().backward()


def test_growing_takes_whole_factors() -> None:
    for factor in (0, 1.5):
        with pytest.raises(ConfigError, match="whole factor"):
            UnifiedEmbedding([Feature(name="a")], 10, 4).grow(factor)  # type: ignore[arg-type]


def _lookup_of(rows: int) -> FeatureTokens:
    return FeatureTokens.concatenate({"user": (torch.arange(rows), None)}, rows)


def _user_table(**settings: Any) -> UnifiedEmbedding:
    return UnifiedEmbedding([Feature(name="user")], 1000, 32, kernel="cpu", **settings)


def test_a_step_has_the_settings_that_its_forward_had() -> None:
    optimizer = TableOptimizer(name="sgd", learning_rate=1.0)
    table = _user_table(optimizer=optimizer)
    before = table.weight.clone()
    out_BW = table(_lookup_of(50))
    table.learning_rate = 0.0
    table.read_rows(0, 1)  # another use in between
    out_BW.sum().backward()
    assert float((table.weight - before).abs().max()) > 0.5
    table.learning_rate = 1.0
    steps = []
    for eps in (1e-8, 0.9):
        table = _user_table(optimizer=TableOptimizer(learning_rate=0.1))
        table(_lookup_of(50)).sum().backward()
        table.optimizer = replace(table.optimizer, eps=eps)
        before = table.weight.clone()
        table(_lookup_of(50)).sum().backward()
        steps.append(float((table.weight - before).abs().max()))
    assert steps[1] < 0.8 * steps[0]


def test_memory_exchanged_under_a_table_is_looked_at_again() -> None:
    table = _user_table()
    table(_lookup_of(50))
    table.weight.data = table.weight.data.view(torch.bfloat16)[:, :32]  # the same address, strided
    with pytest.raises(KernelError, match="strided"):
        table(_lookup_of(50))


def test_a_table_of_no_lookups_gives_empty_rows() -> None:
    table = UnifiedEmbedding([], 0, 4, kernel="cpu")
    assert table(FeatureTokens.concatenate({}, 3)).shape == (3, 0)


def test_a_table_s_old_tensors_are_not_kept() -> None:
    table = _user_table()
    table(_lookup_of(50))
    old = weakref.ref(table.weight)
    table.load_state_dict({name: tensor.clone() for name, tensor in table.state_dict().items()}, assign=True)
    gc.collect()
    assert old() is None
