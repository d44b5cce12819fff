"""Batches of tokens: slices, selections, and torchrec's form of the same."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embstore.batch import Batch, FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import DataError, SchemaError
from embstore.schema import Feature
from embstore.tokens import token

lists = st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4), min_size=1, max_size=7)


def _tokens(single: list[int], multi: list[list[int]]) -> FeatureTokens:
    offsets = torch.tensor([0, *torch.tensor([len(one) for one in multi]).cumsum(0).tolist()])
    flat = torch.tensor([value for one in multi for value in one], dtype=torch.int64)
    columns = {"one": (torch.tensor(single), None), "many": (flat, offsets)}
    return FeatureTokens.concatenate(columns, len(single))


def _plain(tokens: FeatureTokens) -> dict[str, list[list[int]]]:
    out = {}
    for name in tokens.names:
        values, offsets = tokens.feature(name)
        bounds = offsets.tolist() if offsets is not None else list(range(tokens.rows + 1))
        out[name] = [values[a:b].tolist() for a, b in pairwise(bounds)]
    return out


@given(multi=lists, data=st.data())
def test_slices_and_selections_are_those_of_plain_lists(multi: list[list[int]], data: st.DataObject) -> None:
    tokens = _tokens(list(range(len(multi))), multi)
    start = data.draw(st.integers(0, len(multi)))
    stop = data.draw(st.integers(start, len(multi)))
    assert _plain(tokens.slice(start, stop)) == {name: rows[start:stop] for name, rows in _plain(tokens).items()}
    chosen = tokens.select(("many",))
    assert _plain(chosen) == {"many": multi}
    assert tokens.select(tokens.names) is tokens


@given(multi=lists)
def test_to_torchrec_and_back(multi: list[list[int]]) -> None:
    pytest.importorskip("torchrec")
    tokens = _tokens(list(range(len(multi))), multi)
    kjt = tokens.to_kjt()
    assert kjt.keys() == ["one", "many"]
    assert kjt["many"].to_dense()[0].tolist() == multi[0]
    assert _plain(FeatureTokens.from_kjt(kjt)) == _plain(tokens)


def test_other_values_and_weights_are_refused() -> None:
    torchrec = pytest.importorskip("torchrec")
    ids, lengths = torch.tensor([1, 2]), torch.tensor([1, 1])
    with pytest.raises(SchemaError, match=r"int64 tokens without weights; found torch\.int32"):
        FeatureTokens.from_kjt(torchrec.KeyedJaggedTensor(keys=["a"], values=ids.int(), lengths=lengths))
    with pytest.raises(SchemaError, match="with weights"):
        FeatureTokens.from_kjt(torchrec.KeyedJaggedTensor(["a"], ids, weights=torch.ones(2), lengths=lengths))


def test_an_unknown_feature_names_the_nearest() -> None:
    with pytest.raises(SchemaError, match="did you mean 'many'"):
        _tokens([1], [[2]]).feature("mny")


def test_a_batch_is_cut_as_its_parts_are() -> None:
    tokens = _tokens([1, 2, 3], [[4], [], [5, 6]])
    batch = Batch(tokens=tokens, dense_BD=torch.arange(6.0).view(3, 2), label_B=torch.tensor([0.0, 1.0, 1.0]))
    part = batch.slice(1, 3)
    assert len(part) == 2
    assert part.dense_BD.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert part.label_B.tolist() == [1.0, 1.0]
    assert part.weight_B is None
    assert batch.to("cpu") is batch


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        pytest.param([1], None, "one a row, 3", id="too few values: FBGEMM would read past them"),
        pytest.param([1, 2], [0, 1, 2, 9], "from 0 to 2", id="offsets past the end"),
        pytest.param([1, 2], [0, 2, 1, 2], "ascending", id="offsets that go back"),
        pytest.param([1, 2], [1, 1, 2, 2], "from 0", id="offsets that start late"),
        pytest.param([1, 2], [0, 2], r"int64 \[4\]", id="too few offsets"),
    ],
)
def test_tokens_must_fit_their_rows(values: list[int], offsets: list[int] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        FeatureTokens.concatenate({"a": (torch.tensor(values), None if offsets is None else torch.tensor(offsets))}, 3)


def test_tokens_are_int64() -> None:
    with pytest.raises(DataError, match="int64"):
        FeatureTokens.concatenate({"a": (torch.tensor([1, 2], dtype=torch.int32), None)}, 2)


COLUMNS = {
    "user": ["ann", None],
    "tags": [["a", "b", "c"], []],
    "time": pa.array([10**9, 2 * 10**9], pa.timestamp("s")),
}


def test_the_row_that_is_trained_is_the_row_that_is_looked_up() -> None:
    """The case: an example that trained on made-up tokens, whose rows no raw value finds."""
    features = [
        Feature(name="tags", pooling="mean", max_length=2),
        Feature(name="hour", column="time", transform="hour"),
        Feature(name="user", lookups=2),
    ]
    table = UnifiedEmbedding(features, num_rows=10**6, dim=4)
    tokens = FeatureTokens.from_columns(COLUMNS, table.features)
    for name, of in (("tags", "tags"), ("hour", "time"), ("user", "user")):
        assert torch.equal(table(tokens)[:, table.slices[name]], table.lookup(name, COLUMNS[of]))
    before, other = table.lookup("user", ["ann"]), table.lookup("user", ["bob"])
    table(tokens).sum().backward()
    assert (table.lookup("user", ["ann"]) < before).all()
    assert torch.equal(table.lookup("user", ["bob"]), other)


def test_columns_without_features_are_features_of_their_names() -> None:
    tokens = FeatureTokens.from_columns({"user": ["ann", None], "n": [-1, 2**63 - 1], "flag": [True, False]})
    assert tokens.names == ("user", "n", "flag")
    expected = [token(value) for value in ("ann", None, -1, 2**63 - 1, True, False)]
    assert tokens.values_N.numpy().view("uint64").tolist() == expected
    assert FeatureTokens.from_columns({}).rows == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": ["ann"], "n": [1, 2]}, "as many values in each; found 'user' of 1, 'n' of 2"),
        ({"usr": ["ann"]}, "column 'user' is not in the log; did you mean 'usr'"),
        ({"user": [0.5]}, "column 'user' can't be a feature"),
        ({"user": ["ann", 1]}, "column 'user'; expected values of one type"),
        ({"user": "ann"}, "column 'user'; expected a list of values; found 'ann'"),
        ({"user": 3}, "column 'user'; expected values of one type"),
    ],
)
def test_columns_that_are_no_features_are_refused(columns: dict[str, object], message: str) -> None:
    with pytest.raises((DataError, SchemaError), match=message):
        FeatureTokens.from_columns(columns, [Feature(name="user")])
