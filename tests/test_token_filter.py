"""Tokens that a vocabulary prunes: in batches, by hash table and by sorted search. The judge: a Python set."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embstore.batch import FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.feature_values import FeatureValues
from embstore.hashing import MISSING_TOKEN, PRUNED_TOKEN
from embstore.schema import Feature
from embstore.token_filter import PrunedTokens, TokenFilter
from embstore.vocabulary import Vocabulary

SPECIAL = [0, -1, 2**63 - 1, -(2**63), MISSING_TOKEN, PRUNED_TOKEN]
tokens = st.one_of(st.integers(-4, 4), st.sampled_from(SPECIAL), st.integers(-(2**63), 2**63 - 1))


@settings(max_examples=200)
@given(
    others_too=st.booleans(), known=st.dictionaries(tokens, tokens, max_size=40), asked=st.lists(tokens, max_size=60)
)
def test_all_ways_say_what_a_dictionary_does(others_too: bool, known: dict[int, int], asked: list[int]) -> None:
    tokens_K, into_K = np.array(sorted(known.items()), np.int64).reshape(-1, 2).T
    pruned = PrunedTokens(tokens_K=tokens_K.copy(), into_K=into_K.copy(), others_too=others_too)
    specials = (MISSING_TOKEN, PRUNED_TOKEN)
    expected = [
        token if token in specials else known.get(token, PRUNED_TOKEN if others_too else token) for token in asked
    ]
    device_N = pruned.on_device(torch.tensor(asked, dtype=torch.int64))
    assert device_N.tolist() == expected
    host_N = np.array(asked, np.int64)
    changed = pruned.on_host(host_N)
    assert host_N.tolist() == expected
    assert changed == sum(one != other for one, other in zip(asked, expected, strict=True))
    of_feature = TokenFilter({"a": pruned}).of_feature("a", np.array(asked, np.int64).view(np.uint64))
    assert of_feature.dtype == np.uint64
    assert of_feature.view(np.int64).tolist() == expected


@pytest.mark.parametrize("unseen", ["keep", "prune"])
def test_of_a_vocabulary_it_is_what_the_vocabulary_says(unseen: str) -> None:
    values = FeatureValues.of("user", range(50), kept=[n % 3 > 0 for n in range(50)], unseen=unseen)
    pruned = TokenFilter.of({"user": values, "item": FeatureValues.of("item", [1, 2])})
    assert pruned is not None
    assert pruned.features.keys() == {"user"}
    batch = FeatureTokens.from_columns({"user": [*range(80), None], "item": [*range(80), None]})
    out = pruned(batch)
    users, items = (of.feature(name)[0].numpy() for of, name in ((batch, "user"), (out, "item")))
    assert out.feature("user")[0].tolist() == Vocabulary({"user": values}).filtered("user", users).tolist()
    assert items.tolist() == batch.feature("item")[0].tolist()
    assert (batch.values_N == PRUNED_TOKEN).sum() == 0  # a batch is never changed
    assert torch.equal(pruned(out).values_N, out.values_N)
    known = FeatureTokens.from_columns({"user": [1, 2, None], "item": [1, 2, 3]})
    assert pruned(known) is known
    assert TokenFilter.of({"item": FeatureValues.of("item", [1, 2])}) is None


@pytest.mark.parametrize("unseen", ["keep", "prune"])
def test_a_stand_in_is_looked_up_instead(unseen: str) -> None:
    users = ["ann", "bob", "eve", "joe", "tom"]
    values = FeatureValues.of(
        "user", users, kept=[True, False, False, False, True], stand_in=[None, "tom", None, "ann", None], unseen=unseen
    )
    pruned = TokenFilter.of({"user": values})
    assert pruned is not None
    batch = FeatureTokens.from_columns({"user": [*users, "zoe", None]})
    zoe = "zoe" if unseen == "keep" else "eve"
    expected = FeatureTokens.from_columns({"user": ["ann", "tom", "eve", "ann", "tom", zoe, None]})
    wanted_N = torch.where(expected.values_N == batch.values_N[2], PRUNED_TOKEN, expected.values_N)
    assert pruned(batch).values_N.tolist() == wanted_N.tolist()
    assert pruned(pruned(batch)).values_N.tolist() == wanted_N.tolist()
    assert pruned.features["user"].on_device(batch.values_N).tolist() == wanted_N.tolist()
    assert values.filtered(batch.values_N.numpy()).tolist() == wanted_N.tolist()
    features = [Feature(name="user", exact=True)]
    known = {"user": torch.from_numpy(values.tokens[values.kept].view(np.int64)).sort().values}
    table = UnifiedEmbedding(features, 0, 4, exact_tokens=known, pruned=pruned)
    vectors_N = table.lookup("user", users)
    assert torch.equal(vectors_N[1], vectors_N[4])
    assert torch.equal(vectors_N[3], vectors_N[0])
    assert not torch.equal(vectors_N[0], vectors_N[4])


def test_a_table_prunes_batches_keyed_tensors_and_values_alike() -> None:
    values = FeatureValues.of("tags", ["a", "b", "c"], kept=[True, False, False])
    features = [Feature(name="user"), Feature(name="tags", pooling="mean", lookups=2)]
    pruned = TokenFilter.of({"tags": values})
    table, plain = (UnifiedEmbedding(features, 60, 4, pruned=of).eval() for of in (pruned, None))
    batch = FeatureTokens.from_columns({"user": ["b", "c"], "tags": [["a", "b"], ["c"]]})
    (values_N, offsets) = batch.feature("tags")
    by_hand = torch.tensor([int(values_N[0]), PRUNED_TOKEN, PRUNED_TOKEN])
    expected = plain(FeatureTokens.concatenate({"user": batch.feature("user"), "tags": (by_hand, offsets)}, 2))
    for asked in (batch, batch.to_kjt(), batch.select(("tags", "user"))):
        assert torch.equal(table(asked), expected)
    assert torch.equal(deepcopy(table)(batch), expected)
    assert torch.equal(table.grow(2)(batch), expected)
    assert torch.equal(table.lookup("tags", [["a", "b"], ["c"]]), expected[:, table.slices["tags"]])
    assert not torch.equal(plain(batch), expected)
