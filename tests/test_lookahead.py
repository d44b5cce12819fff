"""In which order batches are begun and given; that they are the same is in ``distributed``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from embstore.batch import Batch, FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import DataError
from embstore.lookahead import look_ahead
from embstore.schema import Feature


class _Table:
    """Notes which batch it prepares."""

    weight = torch.empty(0)

    def __init__(self) -> None:
        self.noted: list[str] = []

    def prepare(self, batch: Batch) -> Batch:
        self.noted.append(f"{batch.cursor} begun")
        return replace(batch, asked=batch.cursor)

    def given(self, batches: Iterator[Batch]) -> list[str]:
        for batch in look_ahead(batches, cast(Any, self)):
            assert batch.asked == batch.cursor
            self.noted.append(f"{batch.cursor} given")
        return self.noted


def _batches(count: int) -> Iterator[Batch]:
    for number in range(count):
        tokens = FeatureTokens.concatenate({"a": (torch.tensor([number]), None)}, 1)
        yield Batch(tokens, torch.empty(1, 0), cursor=number)


def test_a_batch_is_begun_before_the_one_before_it_is_given() -> None:
    assert _Table().given(_batches(3)) == ["0 begun", "1 begun", "0 given", "2 begun", "1 given", "2 given"]
    assert _Table().given(_batches(1)) == ["0 begun", "0 given"]
    assert _Table().given(_batches(0)) == []


def test_no_more_are_begun_than_one_beyond_the_last_given() -> None:
    table = _Table()
    next(look_ahead(_batches(9), cast(Any, table)))
    assert table.noted == ["0 begun", "1 begun"]


def test_an_error_of_the_log_is_raised_when_it_is_read() -> None:
    def batches() -> Iterator[Batch]:
        yield from _batches(2)
        raise DataError("row 7", expected="a label", found="none")

    table = _Table()
    with pytest.raises(DataError, match="row 7"):
        table.given(batches())
    assert table.noted == ["0 begun", "1 begun", "0 given"]


def test_a_table_that_is_not_shared_out_has_nothing_to_prepare() -> None:
    table = UnifiedEmbedding([Feature(name="a")], 10, 4)
    (batch,) = _batches(1)
    assert table.prepare(batch) is batch
    assert [given is batch for given in look_ahead([batch], table)] == [True]
