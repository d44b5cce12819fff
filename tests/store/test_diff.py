"""What changed between two versions; the judge of rows is numpy on the tensors that were published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import output
from hypothesis import given
from hypothesis import strategies as st

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.schema import Dense, Feature, Schema
from embstore.store import Bundle, RowChanges, Store
from embstore.store.diff import QUANTILES, SHARED, _rows, diff

MakeBundle = Callable[..., Bundle]


class Rows:
    """Any table's description with these rows; ``largest_read`` is the most that was asked for at once."""

    def __init__(self, rows_ND: torch.Tensor, features: list[dict[str, Any]], **values: Any) -> None:
        self.rows_ND, self.features, self.largest_read = rows_ND, features, 0
        self.tokens = values.pop("tokens", {})
        self.values = {"hash_spec": 1, "seed": 0, "hashed_rows": len(rows_ND), "num_tables": 1, **values}
        self.dim, self.num_rows, self.dtype = rows_ND.shape[1], len(rows_ND), rows_ND.dtype

    def describe(self) -> dict[str, Any]:
        return {**self.values, "features": self.features}

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        assert 0 <= start < stop <= self.num_rows
        self.largest_read = max(self.largest_read, stop - start)
        return self.rows_ND[start:stop]

    def exact_tokens(self) -> dict[str, torch.Tensor]:
        return self.tokens


def judge(old: torch.Tensor, new: torch.Tensor) -> dict[str, Any]:
    """The same numbers, all rows at once."""
    before, after = old.double().numpy(), new.double().numpy()
    finite = np.isfinite(before).all(1) & np.isfinite(after).all(1)
    moved = np.linalg.norm(after[finite] - before[finite], axis=1)
    unequal = [not np.array_equal(one, two, equal_nan=True) for one, two in zip(before, after, strict=True)]
    out = {"rows": len(before), "changed": sum(unequal), "not_finite": int((~finite).sum())}
    if not len(moved):
        return {**out, "mean": None, "max": None, "quantiles": dict.fromkeys(QUANTILES)}
    quantiles = {share: np.quantile(moved, share, method="inverted_cdf") for share in QUANTILES}
    norms = {
        "norm_before": np.linalg.norm(before[finite], axis=1).mean(),
        "norm_after": np.linalg.norm(after[finite], axis=1).mean(),
    }
    return {**out, "mean": moved.mean(), "max": moved.max(), "quantiles": quantiles, **norms}


def agrees(found: RowChanges, old: torch.Tensor, new: torch.Tensor) -> None:
    for key, value in judge(old, new).items():
        if key == "quantiles":
            for share, quantile in value.items():
                assert found.quantiles[share] == (None if quantile is None else pytest.approx(quantile, rel=1 / 256))
        elif value is None:
            assert getattr(found, key) is None
        else:
            assert getattr(found, key) == pytest.approx(value, rel=1e-12), key


def compared(old: Any, new: Any) -> Any:
    return _rows(old, new, None)


FEATURES = [{"name": "user", "exact": False, "rows": [{"base": 0, "size": 1}]}]


@given(
    rows=st.integers(1, 300),
    dim=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    broken=st.integers(0, 3),
    scale=st.integers(-20, 4),
    chunk=st.sampled_from([1, 1000, 8 << 20]),
)
def test_rows_are_counted_as_numpy_would(
    rows: int, dim: int, dtype: torch.dtype, seed: int, share: float, broken: int, scale: int, chunk: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    old = torch.randn(rows, dim, generator=random).to(dtype)
    moved = torch.rand(rows, 1, generator=random) < share
    new = torch.where(moved, (old.double() + 2.0**scale * torch.randn(rows, dim, generator=random)).to(dtype), old)
    for tensor, value in ((old, float("nan")), (new, float("inf")), (new, float("nan")))[:broken]:
        tensor[torch.randint(rows, (1,), generator=random), 0] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embstore.store.diff._CHUNK_BYTES", chunk)
        tables = Rows(old, FEATURES), Rows(new, FEATURES)
        found, parts, incomparable = compared(*tables)
    agrees(found, old, new)
    assert not incomparable
    assert sum(part.rows for part in parts.values()) == rows
    for table in tables:
        assert table.largest_read <= max(1, chunk // (8 * dim))


def entry(name: str, *spans: tuple[int, int], exact: bool = False) -> dict[str, Any]:
    return {"name": name, "exact": exact, "rows": [{"base": base, "size": size} for base, size in spans]}


def test_features_with_rows_of_their_own_are_told_apart() -> None:
    torch.manual_seed(0)
    old, new = torch.randn(100, 3), torch.randn(100, 3)
    tokens = {"day": torch.tensor([1, 5])}
    before = [
        entry("alone", (0, 10), (20, 10)),
        entry("one", (30, 20)),
        entry("two", (40, 30)),
        entry("day", (90, 3), exact=True),
    ]
    found, parts, incomparable = compared(
        Rows(old, before, hashed_rows=90, tokens=tokens), Rows(new, before, hashed_rows=90, tokens=tokens)
    )
    assert parts.keys() == {"alone", "day", SHARED}
    agrees(parts["alone"], torch.cat([old[:10], old[20:30]]), torch.cat([new[:10], new[20:30]]))
    agrees(parts["day"], old[90:93], new[90:93])
    shared = [*range(10, 20), *range(30, 90)]
    agrees(parts[SHARED], old[shared], new[shared])
    agrees(found, old[:93], new[:93])
    assert not incomparable


def test_where_layouts_differ_it_says_so_and_compares_the_rest() -> None:
    torch.manual_seed(0)
    old, new = torch.randn(60, 3), torch.randn(80, 3)
    tokens = {"day": torch.tensor([1, 5]), "hour": torch.tensor([1, 2, 3])}
    before = [entry("user", (0, 50)), entry("day", (50, 3), exact=True), entry("hour", (53, 4), exact=True)]
    after = [entry("user", (0, 60)), entry("hour", (60, 4), exact=True), entry("day", (64, 4), exact=True)]
    newer = {"hour": tokens["hour"], "day": torch.tensor([5, 6, 7])}
    found, parts, incomparable = compared(
        Rows(old, before, hashed_rows=50, tokens=tokens), Rows(new, after, hashed_rows=60, tokens=newer)
    )
    assert incomparable == {
        SHARED: "hashed_rows 50, now 60",
        "day": "2 tokens added, 1 removed",
    }
    assert parts.keys() == {"hour"}
    agrees(parts["hour"], old[53:57], new[60:64])  # the block has moved, its tokens are the same
    assert found == parts["hour"]
    assert compared(Rows(old, before), Rows(new[:, :2], after)) == (None, {}, {SHARED: "3 numbers a row, now 2"})
    for change, said in (({"seed": 1}, "seed 0, now 1"), ({"num_tables": 2}, "num_tables 1, now 2")):
        assert compared(Rows(old, FEATURES), Rows(old, FEATURES, **change)) == (None, {}, {SHARED: said})
    lookups = [entry("hour", (0, 4), (4, 4), exact=True)], [entry("hour", (0, 4), exact=True)]
    tables = (Rows(old[:8], entries, hashed_rows=0, tokens={"hour": tokens["hour"]}) for entries in lookups)
    assert compared(*tables) == (None, {}, {"hour": "2 lookups, now 1"})
    kinds = Rows(old[:50], [entry("hour", (0, 50))]), Rows(old, [entry("hour", (50, 4), exact=True)], hashed_rows=50)
    assert compared(*kinds)[2] == {"hour": "hashed, now exact"}


def test_versions_differ_as_they_were_published(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    bundle = make_bundle(seed=1)
    old = store.publish(bundle)
    middle = store.publish(make_bundle(seed=2, lineage={"space": old.space}), parent=old.id)
    metrics = {"valid": {"auc": 0.8}, "test": {"auc": 0.7}}
    model = {**bundle.model, "settings": {"hidden": [8], "dropout": 0.1}}
    last = make_bundle(seed=3, metrics=metrics, model=model, columns={"user": "string"}, lineage={"space": old.space})
    new = store.publish(last, parent=middle.id)
    seen: list[tuple[str, int, int]] = []
    found = store.diff(old.id, "latest", progress=lambda *args: seen.append(args))
    assert (found.old, found.new, found.same_space, found.steps) == (old.id, new.id, True, 2)
    assert (found.features_added, found.features_removed, found.dense_added, found.dense_removed) == ((),) * 4
    assert found.features_changed == {
        "user": {"type": ("int64", "string")},
        "day": {"type": ("list<item: string>", None)},
    }
    assert found.schema == {}
    assert found.table == {}
    assert found.model == {"settings.hidden": ([4], [8])}
    assert found.metrics == {"valid.auc": (0.75, 0.8), "valid.gauc": (None, None), "test.auc": (None, 0.7)}
    assert found.lineage == {"logs.train": ("days/*.parquet", None), "config.seed": (1, None)}
    assert found.rows
    agrees(found.rows, bundle.table.read_rows(0, 40), last.table.read_rows(0, 40))
    assert found.features.keys() == {SHARED, "day"}
    assert seen[-1] == ("diff", 40 * 12, 40 * 12)
    assert [one[1] for one in seen] == sorted(one[1] for one in seen)
    assert store.diff(new.id, old.id).steps is None
    assert store.diff(new.id, new.id).steps == 0
    same = store.diff(new.id, new.id)
    assert same.rows
    assert (same.rows.changed, same.rows.max, same.rows.mean) == (0, 0.0, 0.0)
    assert set(same.rows.quantiles.values()) == {0.0}
    assert not any((same.features_changed, same.schema, same.table, same.model, same.lineage))
    assert diff(middle, new).steps == 1
    assert diff(old, new).steps is None  # by their manifests alone, nothing is known of grandparents


def test_rows_in_two_encodings_are_compared_as_they_are_read(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    whole = store.publish(make_bundle())
    small = store.publish(whole.bundle(), encoding="int8")
    found = store.diff(whole.id, small.id)
    assert found.encodings == ("float32", "int8")
    assert found.rows
    agrees(found.rows, *(version.table.read_rows(0, 40) for version in (whole, small)))
    assert 0 < found.rows.max < 0.1
    said = "rows are stored as float32, now as int8: compared are the numbers read, which storing alone has changed\n"
    assert said in output("diff", whole.id, small.id, "--store", tmp_path)
    assert store.diff(small.id, small.id).encodings == ("int8", "int8")
    assert "rows are stored" not in output("diff", small.id, small.id, "--store", tmp_path)


def test_schemas_that_differ(tmp_path: Path) -> None:
    def published(schema: Schema, dim: int = 2) -> str:
        table = UnifiedEmbedding(schema.features, num_rows=64, dim=dim, kernel="reference")
        model = {"name": "dnn", "settings": {}, "dense_width": len(schema.dense), "widths": list(table.widths)}
        bundle = Bundle(table=table, schema=schema, dense_state={}, model=model, metrics={}, lineage={})
        return Store(tmp_path).publish(bundle).id

    user, item, tag = Feature(name="user"), Feature(name="item"), Feature(name="tag")
    price, size, age = Dense(name="price"), Dense(name="size"), Dense(name="age")
    old = published(Schema(features=(user, item), dense=(price, age), label="click"))
    changed = replace(user, pooling="mean"), replace(price, scale="linear")
    new = published(Schema(features=(changed[0], tag), dense=(changed[1], size), label="buy"))
    found = Store(tmp_path).diff(old, new)
    assert (found.features_added, found.features_removed) == (("tag",), ("item",))
    assert (found.dense_added, found.dense_removed) == (("size",), ("age",))
    assert found.features_changed == {"user": {"pooling": ("sum", "mean")}}
    assert found.schema == {"label": ("click", "buy"), "dense.price.scale": (price.scale, "linear")}
    assert not found.same_space
    assert found.rows is not None  # the hash is the same, so a row is what it was
    wider = published(Schema(features=(user, item), label="click"), dim=4)
    found = Store(tmp_path).diff(old, wider)
    assert found.table["dim"] == (2, 4)
    assert found.rows is None
    assert found.incomparable == {SHARED: "2 numbers a row, now 4"}
