"""Memory of a rank, against tensors and by hand; workloads that can't be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planned import workloads

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError
from embstore.kernels import TableOptimizer
from embstore.planning import (
    Workload,
    memory,
)
from embstore.schema import Feature


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "adam", "sgd"])
@pytest.mark.parametrize(("dtype", "torch_dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_memory_of_the_table_is_that_of_its_tensors(
    optimizer: Any, dtype: str, torch_dtype: torch.dtype, l2: float
) -> None:
    table = UnifiedEmbedding(
        [Feature(name="a", lookups=2), Feature(name="b")],
        1000,
        12,
        optimizer=TableOptimizer(name=optimizer, l2=l2),
        dtype=torch_dtype,
        kernel="reference",
    )
    table.track_changes()
    work = Workload(rows=1000, dim=12, dtype=dtype, optimizer=optimizer, lookups=3, batch=7, l2=l2 > 0, tracked=True)
    needs = memory(work, 1)
    assert needs["rows"] == table.weight.nbytes
    assert needs["optimizer state"] == sum(t.nbytes for name, t in table.named_buffers() if name.startswith("state_"))
    assert needs["marks"] == sum(t.nbytes for t in (table.paid, table.touched) if t is not None)
    out = torch.zeros(7, table.width)
    assert needs["activations"] == 2 * out.nbytes
    assert memory(replace(work, lookups=300, outputs=3), 1)["activations"] == 2 * out.nbytes  # pooled lists
    assert memory(work, 3)["rows"] == 334 * 12 * table.weight.element_size()


def test_memory_by_hand() -> None:
    work = Workload(rows=1, dim=4, lookups=2, batch=8, dense_parameters=100)
    assert memory(work, 1) == {
        "rows": 16,
        "optimizer state": 4,
        "marks": 0,
        "activations": 16 * 4 * 4 * 2,
        "dense model": 2000,
        # two batches of 16 ids, 16 places, an id asked for and one answered; a vector and a gradient, both ways
        "exchange buffers": 2 * 8 * (16 + 16 + 1 + 1) + 4 * 16,
    }


def test_a_dense_parameter_takes_what_adam_keeps_and_a_bucket() -> None:
    network = torch.nn.Linear(30, 10)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(2, 30)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    taken = sum(t.nbytes for t in [*network.parameters(), *(p.grad for p in network.parameters()), *moments])
    bucket = 4 * 310
    assert memory(Workload(rows=1, dim=4, dense_parameters=310), 1)["dense model"] == taken + bucket


@given(work=workloads, world=st.integers(1, 5000), more=st.integers(1, 5000))
def test_more_ranks_never_need_more_memory_and_more_rows_never_less(work: Workload, world: int, more: int) -> None:
    here = memory(work, world)
    fewer = memory(work, world + more)
    larger = memory(replace(work, rows=work.rows + more), world)
    for part, size in here.items():
        assert fewer[part] <= size
        assert larger[part] >= size * (1 - 1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 0}, "rows; expected 1 or more; found 0"),
        ({"dim": 30}, r"dim; expected a multiple of 4.*TBE.*found 30; take 28 or 32"),
        ({"dim": 0}, "dim; expected a multiple of 4"),
        ({"batch": 0}, "batch; expected 1 or more"),
        ({"lookups": 0}, "lookups; expected more than 0"),
        ({"skew": -1}, "skew; expected 0 or more"),
        ({"skew": float("nan")}, "skew; expected 0 or more"),
        ({"lookups": 3, "outputs": 4}, "outputs; expected 0 to the lookups, 3; found 4"),
        ({"flops": -1}, "flops; expected 0 or more"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8'; known: bf16, fp16, fp32"),
        ({"optimizer": "adamw"}, "unknown optimizer 'adamw'; did you mean 'adam'"),
    ],
)
def test_workloads_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Workload(**{"rows": 100, "dim": 8, **wrong})
