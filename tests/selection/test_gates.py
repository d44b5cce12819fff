"""Gates on a model's inputs: where they start, what they multiply, how they close."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embstore.ctr import CtrModel
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.logs import ParquetLog
from embstore.models import build
from embstore.normalization import StreamingNormalizer
from embstore.schema import Schema
from embstore.selection import Columns
from embstore.selection.methods import Search, optfs, score
from embstore.selection.methods.embedded import embed
from embstore.selection.methods.gates import ValueGates
from embstore.selection.methods.lpfs import LpfsSettings, _Gates
from embstore.vocabulary import Vocabulary


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """A value, a list and a dense column, in another order in the table than in the log's schema."""
    rng, rows = np.random.default_rng(3), 400
    table = pa.table(
        {
            "user": rng.integers(0, 5, rows),
            "tags": [rng.integers(0, 6, rng.integers(0, 4)).tolist() for _ in range(rows)],
            "price": rng.normal(size=rows),
            "y": rng.integers(0, 2, rows),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    schema = Schema.from_dict({"label": "y", "features": ["user", "tags"], "dense": ["price"]})
    log = ParquetLog(tmp_path, schema)

    def model() -> CtrModel:
        embedding = UnifiedEmbedding(schema.features[::-1], 500, 4, init_std=1.0)
        network = build("dnn", dense_width=1, widths=list(embedding.widths), hidden=(8,))
        return CtrModel(embedding, StreamingNormalizer(schema.dense), network)

    columns = Columns(schema=schema, vocabulary=Vocabulary.collect(log))
    return Search(build=model, train=log, valid=log, columns=columns, batch_size=100, epochs=2)


class _Given(ValueGates):
    def gate_A(self) -> torch.Tensor:
        return torch.arange(self.layout.columns) / 10


def test_a_value_s_gate_multiplies_its_vector(search: Search) -> None:
    model = search.build().eval()
    [batch] = search.train.batches(400)
    embedded, layout = embed(model, search.columns, batch), search.columns.layout
    gates = _Given(model, layout)
    dense_BC, gated_BW = gates(embedded)
    torch.testing.assert_close(dense_BC, embedded.dense_BC * (layout.columns - 1) / 10)
    seen = np.zeros(layout.columns, np.int64)
    for name, at in model.table.slices.items():
        columns, bounds = search.columns.entries(name, batch.tokens)
        np.add.at(seen, columns, 1)
        for row in range(400):
            of_row = columns[bounds[row] : bounds[row + 1]]
            gate = of_row.mean() / 10 if len(of_row) else 0.0
            torch.testing.assert_close(gated_BW[row, at], embedded.embedded_BW[row, at] * gate)
    assert gates.rows_A.tolist() == seen.tolist()


def test_a_field_s_gate_multiplies_its_vector(search: Search) -> None:
    model = search.build().eval()
    [batch] = search.train.batches(400)
    embedded = embed(model, search.columns, batch)
    gates = _Gates(model, search.columns.layout, LpfsSettings(first=1.0))
    with torch.no_grad():
        gates.x_F.copy_(torch.tensor([1.0, 2.0, 3.0]))
    dense_BC, gated_BW = gates(embedded)
    user, tags = model.table.slices["user"], model.table.slices["tags"]
    torch.testing.assert_close(gated_BW[:, user], embedded.embedded_BW[:, user] * 0.5)
    torch.testing.assert_close(gated_BW[:, tags], embedded.embedded_BW[:, tags] * 0.8)
    torch.testing.assert_close(dense_BC, embedded.dense_BC * 0.9)


def test_optfs_starts_with_all_of_every_value(search: Search) -> None:
    gates = optfs._Gates(search.build(), search.columns.layout, optfs.OptFsSettings(start=0.5))
    torch.testing.assert_close(gates.gate_A(), torch.ones(search.columns.layout.columns))
    gates.on_step(1.0)
    with torch.no_grad():
        gates.x_A[0] = -0.1
    assert gates.gate_A()[0] < 1e-8
    assert gates.gate_A()[1] > 1.0


def test_a_penalty_too_large_closes_all_gates_of_lpfs(search: Search) -> None:
    scores = score("lpfs", search, penalty=1e6)
    assert (scores.field_F == 0).all()


@pytest.mark.parametrize("name", ["optfs", "lpfs", "autofield"])
def test_torch_s_own_random_numbers_are_left_alone(search: Search, name: str) -> None:
    before = torch.get_rng_state()
    score(name, search)
    assert torch.equal(before, torch.get_rng_state())
