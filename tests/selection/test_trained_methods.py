"""What a trained model's methods say, against finite differences and against really replacing values, row by row."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from embstore.ctr import CtrModel
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError
from embstore.hashing import PRUNED_TOKEN
from embstore.logs import ParquetLog
from embstore.models import build
from embstore.normalization import StreamingNormalizer
from embstore.schema import Schema
from embstore.selection import Columns
from embstore.selection.methods import Trained, score, together
from embstore.selection.methods.embedded import EmbeddedBatch, Replacements, lookup, vectors
from embstore.selection.methods.left_out import LeaveOneOutSettings, leave_one_out
from embstore.selection.methods.permutation import draws
from embstore.selection.methods.taylor import gradients
from embstore.token_filter import TokenFilter
from embstore.vocabulary import Vocabulary

ROWS = 60


@pytest.fixture(params=["sum", "mean"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Trained:
    """One value, lists (some empty, some with a value twice), a dense column; labels drawn by the model itself."""
    rng = np.random.default_rng(3)
    table = pa.table(
        {
            "user": rng.integers(0, 5, ROWS),
            "tags": [rng.integers(0, 6, rng.integers(0, 4)).tolist() for _ in range(ROWS)],
            "price": rng.normal(size=ROWS),
            "weight": rng.uniform(0.5, 2, ROWS),
            "y": rng.integers(0, 2, ROWS),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    features = ["user", {"name": "tags", "pooling": request.param, "lookups": 2}]
    schema = Schema.from_dict({"label": "y", "weight": "weight", "features": features, "dense": ["price"]})
    log = ParquetLog(tmp_path, schema)
    torch.manual_seed(0)
    embedding = UnifiedEmbedding(schema.features, 500, 4, init_std=1.0)
    network = build("dnn", dense_width=1, widths=list(embedding.widths), hidden=(8,), batch_norm=False)
    model = CtrModel(embedding, StreamingNormalizer(schema.dense), network)
    model.normalizer.update(torch.from_numpy(rng.normal(size=(50, 1))))
    with torch.no_grad():
        logits = torch.cat([model.eval()(batch) for batch in log.batches(ROWS)])
    labels = pa.array((rng.random(ROWS) < torch.sigmoid(logits).numpy()).astype(int))
    pq.write_table(table.set_column(4, "y", labels), tmp_path / "log.parquet")
    log = ParquetLog(tmp_path, schema)
    columns = Columns(schema=schema, vocabulary=Vocabulary.collect(log))
    return Trained(model=model, log=log, columns=columns, rows=25)


def batches_of(source: Trained) -> list[EmbeddedBatch]:
    return list(source.each(lambda _, batch, number: batch))


def _shares(of: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.maximum(of, 0) / max(of.max(), 1e-300)


def _loss(source: Trained, batch: EmbeddedBatch, dense: torch.Tensor, embedded: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    with torch.no_grad():
        logits = source.model.network(dense, embedded)
        return (binary_cross_entropy_with_logits(logits, batch.label_B, reduction="none") * batch.weight_B).numpy()


@pytest.mark.parametrize("replacement", ["mean", "pruned"])
def test_leave_one_out_is_what_replacing_costs(source: Trained, replacement: str) -> None:
    layout, table = source.columns.layout, source.model.table
    batches = batches_of(source)
    assert [len(batch.label_B) for batch in batches] == [25, 35]
    by_column = {
        column: vectors(table, batch, entries)[e].double()
        for batch in batches
        for entries in batch.fields.values()
        for e, column in enumerate(entries.column_E.tolist())
    }
    seen = {
        name: [column for batch in batches for column in batch.fields[name].column_E.tolist()] for name in layout.names
    }
    instead = {name: torch.stack([by_column[c] for c in seen[name]]).mean(dim=0) for name in layout.names}
    if replacement == "pruned":
        token = torch.from_numpy(np.array([PRUNED_TOKEN], np.uint64).view(np.int64))
        instead = {name: lookup(table, name, token)[0].double() for name in layout.names}
    mean_W = torch.cat([batch.embedded_BW.double() for batch in batches]).mean(dim=0)
    field_F, column_D = np.zeros(3), np.zeros(layout.columns)
    for batch in batches:
        base = _loss(source, batch, batch.dense_BC, batch.embedded_BW)
        for f, (name, entries) in enumerate(batch.fields.items()):
            at = table.slices[name]
            pooling = next(feature.pooling for feature in table.features if feature.name == name)
            of_row = [[] for _ in range(len(base))]  # type: list[list[int]]
            for row, column in zip(entries.row_E.tolist(), entries.column_E.tolist(), strict=True):
                of_row[row].append(column)
            for column in set(entries.column_E.tolist()):
                embedded = batch.embedded_BW.clone()
                for row, columns in enumerate(of_row):
                    new = [instead[name] if c == column else by_column[c] for c in columns]
                    if new:
                        pooled = torch.stack(new).sum(dim=0) / (len(new) if pooling == "mean" else 1)
                        embedded[row, at] = pooled.float()
                # Rows without the value are pooled anew, too, and lose nothing but rounding.
                column_D[column] += (_loss(source, batch, batch.dense_BC, embedded) - base).sum()
            embedded = batch.embedded_BW.clone()
            embedded[:, at] = mean_W[at].float()
            field_F[f] += (_loss(source, batch, batch.dense_BC, embedded) - base).sum()
        mean_price = torch.cat([of.dense_BC for of in batches]).mean()
        column_D[-1] += (
            _loss(source, batch, torch.full_like(batch.dense_BC, mean_price), batch.embedded_BW) - base
        ).sum()
    field_F[2] = column_D[-1]
    scores = score("leave_one_out", source, replacement=replacement)
    np.testing.assert_allclose(scores.column_D, _shares(column_D), atol=1e-4)
    np.testing.assert_allclose(scores.field_F, _shares(field_F), atol=1e-4)
    assert (column_D > 0).sum() >= 3


def _doubled(source: Trained) -> tuple[torch.nn.Module, list[EmbeddedBatch]]:
    batches = [
        replace(
            batch,
            dense_BC=batch.dense_BC.double(),
            embedded_BW=batch.embedded_BW.double(),
            label_B=batch.label_B.double(),
            weight_B=batch.weight_B.double(),
        )
        for batch in batches_of(source)
    ]
    return source.model.network.double(), batches


def test_gradients_are_finite_differences(source: Trained) -> None:
    network, [batch, _] = _doubled(source)
    g_BW, g_BC = gradients(network, batch)
    for w in range(g_BW.shape[1]):
        step = torch.zeros_like(batch.embedded_BW)
        step[:, w] = 1e-6
        up, down = (batch.loss_B(network, batch.dense_BC, batch.embedded_BW + sign * step) for sign in (1, -1))
        torch.testing.assert_close(g_BW[:, w], (up - down).detach() / 2e-6, rtol=1e-5, atol=1e-8)
    up, down = (batch.loss_B(network, batch.dense_BC + step, batch.embedded_BW) for step in (1e-6, -1e-6))
    torch.testing.assert_close(g_BC[:, 0], (up - down).detach() / 2e-6, rtol=1e-5, atol=1e-8)


def _slopes(
    source: Trained, network: torch.nn.Module, batch: EmbeddedBatch, field: str, move_BW: torch.Tensor
) -> np.ndarray:  # type: ignore[type-arg]
    """Of each row's loss along a move of one field's vector."""
    step = torch.zeros_like(batch.embedded_BW)
    step[:, source.model.table.slices[field]] = 1e-6 * move_BW.double()
    with torch.no_grad():
        up, down = (batch.loss_B(network, batch.dense_BC, batch.embedded_BW + sign * step) for sign in (1, -1))
    return ((up - down) / 2e-6).numpy()


@pytest.mark.parametrize("name", ["sfs", "shark", "signed shark"])
def test_sfs_and_shark_are_finite_differences(source: Trained, name: str) -> None:
    settings = {"signed": True} if name == "signed shark" else {}
    scores = score(name.split()[-1], source, **settings)
    layout, table = source.columns.layout, source.model.table
    by, kept = Replacements.of(source, "mean"), batches_of(source)
    network, batches = _doubled(source)
    field_F, column_D = np.zeros(3), np.zeros(layout.columns)
    for single, batch in zip(kept, batches, strict=True):
        for f, (field, entries) in enumerate(single.fields.items()):
            at = table.slices[field]
            vectors_EW, field_BW = vectors(table, single, entries), single.embedded_BW[:, at]
            of_batch = np.zeros(layout.columns)
            for e, (row, column) in enumerate(zip(entries.row_E.tolist(), entries.column_E.tolist(), strict=True)):
                move_BW = torch.zeros_like(field_BW)
                to_W = vectors_EW[e] if name == "sfs" else by.value_W[at] - vectors_EW[e]
                move_BW[row] = entries.share_E[e] * to_W
                slope = _slopes(source, network, batch, field, move_BW).sum()
                of_batch[column] += abs(slope) if name == "shark" else slope
            column_D += np.abs(of_batch) if name == "sfs" else of_batch
            to_BW = field_BW if name == "sfs" else by.field_W[at] - field_BW
            slope_B = _slopes(source, network, batch, field, to_BW)
            field_F[f] += {"sfs": abs(slope_B.sum()), "shark": np.abs(slope_B).sum()}.get(name, slope_B.sum())
        to_BC = batch.dense_BC if name == "sfs" else by.dense_C - batch.dense_BC
        with torch.no_grad():
            moved = [batch.dense_BC + sign * 1e-6 * to_BC for sign in (1, -1)]
            up, down = (batch.loss_B(network, dense_BC, batch.embedded_BW) for dense_BC in moved)
        slope_B = ((up - down) / 2e-6).numpy()
        field_F[2] += {"sfs": abs(slope_B.sum()), "shark": np.abs(slope_B).sum()}.get(name, slope_B.sum())
        column_D[-1] = field_F[2]
    np.testing.assert_allclose(scores.column_D, _shares(column_D), atol=1e-4)
    np.testing.assert_allclose(scores.field_F, _shares(field_F), atol=1e-4)
    assert (column_D > 0).sum() >= 3


def test_a_permutation_of_all_fields_costs_what_its_rows_lose(source: Trained) -> None:
    """One batch: what each row loses is what its own field loses, and adds up by value."""
    source = replace(source, rows=ROWS)
    [batch] = batches_of(source)
    generator, table = draws(9, 0), source.model.table
    base = _loss(source, batch, batch.dense_BC, batch.embedded_BW)
    field_F, column_D = np.zeros(3), np.zeros(source.columns.layout.columns)
    for f, (name, entries) in enumerate(batch.fields.items()):
        order, embedded = torch.randperm(ROWS, generator=generator), batch.embedded_BW.clone()
        embedded[:, table.slices[name]] = embedded[order][:, table.slices[name]]
        worse = _loss(source, batch, batch.dense_BC, embedded) - base
        field_F[f] = worse.sum()
        of_row = np.bincount(entries.row_E, minlength=ROWS)
        for row, column in zip(entries.row_E.tolist(), entries.column_E.tolist(), strict=True):
            column_D[column] += worse[row] / of_row[row]
    order = torch.randperm(ROWS, generator=generator)
    field_F[2] = column_D[-1] = (_loss(source, batch, batch.dense_BC[order], batch.embedded_BW) - base).sum()
    scores = score("permutation", source, seed=9)
    np.testing.assert_allclose(scores.field_F, _shares(field_F), atol=1e-5)
    np.testing.assert_allclose(scores.column_D, _shares(column_D), atol=1e-5)


@pytest.mark.parametrize("pruned", [False, True])
def test_entries_add_up_to_the_table_s_output(source: Trained, pruned: bool) -> None:
    """Also where some values are looked up as the pruned token, one as another value."""
    if pruned:
        tags = source.columns.vocabulary["tags"]
        kept_V, stand_in_V = np.arange(len(tags)) > 2, np.where(np.arange(len(tags)) == 1, 4, -1)
        source.model.table.pruned = TokenFilter.of({"tags": tags.keep(kept_V, stand_in_V)})
    for batch in batches_of(source):
        for name, entries in batch.fields.items():
            at = source.model.table.slices[name]
            pooled = torch.zeros_like(batch.embedded_BW[:, at])
            pooled.index_add_(0, entries.row_E, entries.share_E[:, None] * vectors(source.model.table, batch, entries))
            torch.testing.assert_close(pooled, batch.embedded_BW[:, at])
            bounds = source.columns.layout.bounds_F
            assert any(((entries.column_E >= a) & (entries.column_E < b)).all() for a, b in pairwise(bounds))


def test_left_out_together_is_what_each_adds_beside_the_others(source: Trained) -> None:
    layout, table = source.columns.layout, source.model.table
    batches = batches_of(source)
    keep = leave_one_out(source, LeaveOneOutSettings()).log_column_D
    dropped_D, shared_W = together._dropped(source, keep, 0.5)
    seen = np.unique(np.concatenate([of.column_E for batch in batches for of in batch.fields.values()]))
    assert dropped_D.sum() == len(seen) - round(0.5 * len(seen))
    for name, at in table.slices.items():
        out = [vectors(table, b, b.fields[name])[dropped_D[b.fields[name].column_E]] for b in batches]
        if sum(map(len, out)):
            torch.testing.assert_close(shared_W[at], torch.cat(out).mean(dim=0))

    def total(without_D: np.ndarray) -> float:
        whole = 0.0
        for batch in batches:
            embedded_BW = torch.zeros_like(batch.embedded_BW)
            for name, of in batch.fields.items():
                at = table.slices[name]
                for e, row in enumerate(of.row_E.tolist()):
                    vector = shared_W[at] if without_D[of.column_E[e]] else vectors(table, batch, of)[e]
                    embedded_BW[row, at] += of.share_E[e] * vector
            whole += float(_loss(source, batch, batch.dense_BC, embedded_BW).sum())
        return whole

    worth_D, base = source.total(together._worth, dropped_D, shared_W).column_D, total(dropped_D)
    for column in seen:
        other_D = dropped_D.copy()
        other_D[column] ^= True
        cost = (total(other_D) - base) * (-1 if dropped_D[column] else 1)
        assert worth_D[column] == pytest.approx(cost, abs=1e-4)
    scores = score("leave_out_together", source, keep=0.5, rounds=1)
    np.testing.assert_allclose(scores.column_D[: layout.sparse], _shares(worth_D[: layout.sparse]), atol=1e-5)
    for wrong in ({"keep": 1.0}, {"rounds": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            score("leave_out_together", source, **wrong)
