"""The rows a table starts with: the same for a row in any part of any table of its size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embstore import Feature, UnifiedEmbedding
from embstore.embeddings.first_rows import first_rows

TABLE = UnifiedEmbedding(
    [Feature(name="a"), Feature(name="b", exact=True, lookups=2)],
    9_500,
    3,
    exact_tokens={"b": torch.arange(400)},
    seed=7,
)
CPU = torch.device("cpu")


@given(bounds=st.tuples(st.integers(0, 10_302), st.integers(0, 10_302)), narrow=st.booleans())
def test_a_shard_has_the_rows_of_the_whole(bounds: tuple[int, int], narrow: bool) -> None:
    rows, dtype = range(*sorted(bounds)), torch.bfloat16 if narrow else torch.float32
    whole = first_rows(TABLE.plan, range(TABLE.num_rows), std=0.01, seed=7, dtype=dtype, device=CPU)
    part = first_rows(TABLE.plan, rows, std=0.01, seed=7, dtype=dtype, device=CPU)
    assert torch.equal(part, whole[rows.start : rows.stop])
    assert narrow or torch.equal(whole, TABLE.weight)


def test_they_are_normal_and_each_block_and_seed_has_its_own() -> None:
    rows_ND = first_rows(TABLE.plan, range(8192), std=0.01, seed=7, dtype=torch.float32, device=CPU)
    assert float(rows_ND.mean()) == pytest.approx(0, abs=3e-4)
    assert float(rows_ND.std()) == pytest.approx(0.01, rel=0.02)
    assert len(rows_ND.unique()) > 0.98 * rows_ND.numel()
    assert abs(float(torch.corrcoef(rows_ND.reshape(2, -1))[0, 1])) < 0.03
    other = first_rows(TABLE.plan, range(8192), std=0.01, seed=8, dtype=torch.float32, device=CPU)
    assert not torch.equal(rows_ND, other)


def test_the_row_of_unknown_values_is_zero() -> None:
    for last in (9_500 + 400, 9_500 + 801):
        assert TABLE.weight[last].tolist() == [0, 0, 0]
        assert TABLE.weight[last - 1].abs().sum() > 0
