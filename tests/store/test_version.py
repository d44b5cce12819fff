"""One version, published and opened; the judges are the tensors given, hashlib, json and the safetensors library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from embstore.errors import CorruptVersionError, StoreError
from embstore.schema import Feature, Schema
from embstore.store import Bundle, Store, format, schema_sha256

MakeBundle = Callable[..., Bundle]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("bucket_bytes", [64, 4096, 64 << 20])
def test_everything_comes_back(
    dtype: torch.dtype, bucket_bytes: int, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format, "BUCKET_BYTES", bucket_bytes)
    bundle = make_bundle(rows=1500, dtype=dtype)
    Store(tmp_path).publish(bundle)
    version = Store(tmp_path).open()
    rows_ND = bundle.table.read_rows(0, 1500)
    assert torch.equal(version.table.read_rows(0, 1500), rows_ND)
    assert (version.table.dim, version.table.num_rows, version.table.dtype) == (3, 1500, dtype)
    assert version.table.describe() == bundle.table.describe()
    assert version.schema == bundle.schema
    tokens = version.table.exact_tokens()
    assert tokens.keys() == {"day"}
    assert torch.equal(tokens["day"], bundle.table.exact_tokens()["day"])
    for found in (version.dense, version.dense_state()):
        assert found.keys() == bundle.dense_state.keys()
        for name, tensor in bundle.dense_state.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert version.manifest["metrics"] == {"valid": {"auc": 0.75, "gauc": None}}
    assert version.manifest["columns"] == bundle.columns
    assert version.manifest["model"] == bundle.model
    version.verify()


def test_any_safetensors_reader_reads_the_buckets(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format, "BUCKET_BYTES", 100)  # rows of 12 bytes: 8 fit
    bundle = make_bundle(rows=20)
    version = Store(tmp_path).publish(bundle)
    names = sorted(path.name for path in (version.folder / "table").iterdir())
    assert names == [f"bucket-0000{number}.safetensors" for number in range(3)]
    buckets = [load_file(version.folder / "table" / name)["rows"] for name in names]
    assert [len(bucket) for bucket in buckets] == [8, 8, 4]
    assert torch.equal(torch.cat(buckets), bundle.table.read_rows(0, 20))
    assert load_file(version.folder / "model/dense.safetensors").keys() == bundle.dense_state.keys()


def test_the_manifest_says_what_the_page_says(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    version = Store(tmp_path).publish(bundle)
    data = (version.folder / "manifest.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == version.digest
    manifest = json.loads(data)
    keys = "format version created space parent table features columns model lineage metrics"
    assert list(manifest) == [*keys.split(), "compacts", "delta", "optimizer", "files"]
    assert (manifest["format"], manifest["version"], manifest["parent"]) == (2, version.id, None)
    assert manifest["table"] == {
        "dim": 3,
        "dtype": "float32",
        "rows": 40,
        "hashed_rows": 34,
        "num_tables": 1,
        "hash_spec": 1,
        "seed": 2**64 - 1,
        "bucket_rows": 64,
    }
    assert list(manifest["lineage"]) == ["logs", "vocabulary", "selection", "node2vec", "config"]
    on_disk = {str(path.relative_to(version.folder)): path for path in version.folder.rglob("*") if path.is_file()}
    assert manifest["files"].keys() == on_disk.keys() - {"manifest.json"}
    for name, entry in manifest["files"].items():
        found = on_disk[name].read_bytes()
        assert entry == {"bytes": len(found), "sha256": hashlib.sha256(found).hexdigest()}
    assert {path.suffix for path in on_disk.values()} == {".json", ".yaml", ".safetensors"}  # nothing that runs
    assert json.loads((version.folder / "compat.json").read_bytes()) == {
        "format": 2,
        "minimal_reader": 2,
        "hash_spec": 1,
        "features": ["user", "Straße/..", "day"],
        "dense": ["price"],
        "schema_sha256": schema_sha256(bundle.schema),
    }


def test_a_schema_means_the_same_however_it_is_written() -> None:
    plain = Schema(features=(Feature(name="a"), Feature(name="b", lookups=2)))
    noted = Schema(features=plain.features, reasons={"a": "many values"})
    assert schema_sha256(plain) == schema_sha256(noted) == schema_sha256(Schema.from_yaml(noted.to_yaml()))
    assert schema_sha256(plain) != schema_sha256(Schema(features=plain.features[::-1]))


@given(numbers=st.lists(st.integers(0, 1499), max_size=50))
def test_gather_is_indexing(numbers: list[int], gathering: tuple[Bundle, Any]) -> None:
    bundle, version = gathering
    rows = torch.tensor(numbers, dtype=torch.int64)
    assert torch.equal(version.table.gather(rows), bundle.table.read_rows(0, 1500)[rows])


@pytest.mark.parametrize(
    "rows", [torch.tensor([1500]), torch.tensor([-1]), torch.tensor([2**40]), torch.tensor([1.0]), torch.tensor(1)]
)
def test_rows_that_are_not_there_are_refused(rows: torch.Tensor, gathering: tuple[Bundle, Any]) -> None:
    with pytest.raises(StoreError, match="rows to gather"):
        gathering[1].table.gather(rows)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 1501), (3, 2)])
def test_a_range_outside_the_table_is_refused(start: int, stop: int, gathering: tuple[Bundle, Any]) -> None:
    with pytest.raises(StoreError, match="within 0 to 1500"):
        gathering[1].table.read_rows(start, stop)


@pytest.fixture
def gathering(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bundle, Any]:
    """A bundle of 1,500 rows in three buckets, and its version."""
    monkeypatch.setattr(format, "BUCKET_BYTES", 6144)
    bundle = make_bundle(rows=1500)
    return bundle, Store(tmp_path).publish(bundle)


def test_a_version_can_be_published_again(make_bundle: MakeBundle, tmp_path: Path) -> None:
    first = Store(tmp_path / "a").publish(make_bundle())
    again = Store(tmp_path / "b").publish(
        make_bundle(table=first.table, dense_state=first.dense_state(), lineage={"space": first.space})
    )
    assert again.space == first.space
    for name in (
        "table/bucket-00000.safetensors",
        "exact/tokens.safetensors",
        "model/dense.safetensors",
        "schema.yaml",
    ):
        assert again.files[name] == first.files[name], name


def test_a_table_is_read_in_pieces(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "_CHUNK_BYTES", 1200)
    bundle = make_bundle(rows=1500)
    version = Store(tmp_path).publish(bundle)
    assert bundle.table.largest_read == 100  # type: ignore[attr-defined]
    assert torch.equal(version.table.read_rows(0, 1500), bundle.table.read_rows(0, 1500))


def test_progress_goes_to_its_end(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "BUCKET_BYTES", 1024)
    seen: dict[str, list[tuple[int, int]]] = {"write": [], "verify": []}
    store = Store(tmp_path)

    def progress(what: str, done: int, total: int) -> None:
        seen[what].append((done, total))

    version = store.publish(make_bundle(rows=1500), progress=progress)
    assert not seen["verify"]  # what is written is read back as it is written
    store.verify(progress=progress)
    assert seen["write"][-1] == (1500 * 12, 1500 * 12)
    assert seen["verify"][-1][0] == seen["verify"][-1][1] == sum(file.bytes for file in version.files.values())
    assert all(calls == sorted(calls) and len(calls) > 5 for calls in seen.values())


@given(rows=st.integers(1, 2**40), row_bytes=st.integers(1, 2**19))
def test_buckets_are_about_64_mib(rows: int, row_bytes: int) -> None:
    bucket_rows = format.bucket_rows(rows, row_bytes)
    assert bucket_rows & (bucket_rows - 1) == 0
    assert bucket_rows * row_bytes <= 64 << 20
    assert 2 * bucket_rows * row_bytes > 64 << 20 or rows <= bucket_rows < 2 * rows


def test_one_row_wider_than_a_bucket_has_a_bucket() -> None:
    assert format.bucket_rows(5, 65 << 20) == 1


def test_an_open_version_outlives_its_files(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    version = Store(tmp_path).publish(bundle)
    version.folder.rename(tmp_path / "elsewhere")
    assert torch.equal(version.table.read_rows(0, 40), bundle.table.read_rows(0, 40))


def test_a_flipped_bit_is_found_wherever_it_is(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    version = store.publish(make_bundle())
    version.verify()
    for path in sorted(path for path in version.folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for at in range(0, len(data), 50):
            flipped = bytearray(data)
            flipped[at] ^= 1 << (at // 50 % 8)
            path.write_bytes(flipped)
            with pytest.raises(CorruptVersionError, match=path.name):
                version.verify()
            if at % 1000 == 0:  # a reader that opens it afresh says so too
                with pytest.raises(StoreError):
                    store.verify(version.id)
        path.write_bytes(data)
    store.verify(version.id)


def test_verify_says_what_it_expected_and_found(make_bundle: MakeBundle, tmp_path: Path) -> None:
    version = Store(tmp_path).publish(make_bundle())
    path = version.folder / "model/dense.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptVersionError) as caught:
        version.verify()
    assert str(path) in caught.value.what
    assert hashlib.sha256(good).hexdigest() in caught.value.expected
    assert hashlib.sha256(path.read_bytes()).hexdigest() in caught.value.found


class _Changed:
    """A table with some answers replaced."""

    def __init__(self, table: Any, **changes: Any) -> None:
        self._table, self._changes = table, changes

    def __getattr__(self, name: str) -> Any:
        if name in self._changes:
            change = self._changes[name]
            return (lambda: change) if name in ("describe", "exact_tokens") else change
        return getattr(self._table, name)


def _with_features(bundle: Bundle, **changes: Any) -> Schema:
    """Its schema, every feature changed so."""
    return replace(bundle.schema, features=tuple(replace(feature, **changes) for feature in bundle.schema.features))


def _described(bundle: Bundle, **changes: Any) -> Any:
    return _Changed(bundle.table, describe={**bundle.table.describe(), **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {"table": _Changed(b.table, dtype=torch.int8)}, "table dtype"),
        (lambda b: {"table": _Changed(b.table, num_rows=0)}, "a row or more"),
        (lambda b: {"table": _described(b, hashed_rows=41)}, "hashed_rows"),
        (lambda b: {"table": _described(b, num_tables=3)}, "multiple of num_tables"),
        (lambda b: {"table": _described(b, hash_spec=None)}, "hash_spec"),
        (lambda b: {"table": _described(b, seed=object())}, "values that JSON can hold"),
        (lambda b: {"table": _described(b, features=b.table.describe()["features"][1:])}, "features"),
        (lambda b: {"table": _Changed(b.table, exact_tokens={})}, "exact tokens"),
        (lambda b: {"table": _Changed(b.table, exact_tokens={"day": torch.arange(4)})}, "5 rows"),
        (lambda b: {"table": _Changed(b.table, exact_tokens={"day": torch.arange(5).flip(0)})}, "ascending"),
        (lambda b: {"schema": _with_features(b, pooling="mean")}, "pooling"),
        (lambda b: {"schema": _with_features(b, exact=False)}, "exact"),
        (lambda b: {"dense_state": {"out.weight": torch.zeros(1)}}, "'out.weight'"),
        (lambda b: {"dense_state": {"network.w": torch.zeros(1, dtype=torch.complex64)}}, "complex64"),
        (lambda b: {"model": {"name": "dnn"}}, "settings"),
        (lambda b: {"model": {**b.model, "widths": [6, 3]}}, "widths"),
        (lambda b: {"model": {**b.model, "settings": {"f": torch.zeros(1)}}}, "values that JSON can hold"),
        (lambda b: {"lineage": {"log": 1}}, "did you mean 'logs'"),
        (lambda b: {"lineage": {"space": "../../etc"}}, "space"),
        (lambda b: {"columns": {"users": "int64"}}, "columns"),
    ],
)
def test_a_bundle_that_does_not_fit_together_is_refused(
    change: Callable[[Bundle], dict[str, Any]], message: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle, store = make_bundle(), Store(tmp_path)
    with pytest.raises(StoreError, match=message) as caught:
        store.publish(make_bundle(**change(bundle)))
    assert not isinstance(caught.value, CorruptVersionError)  # nothing on the disk is broken
    assert store.versions() == []
    assert not list(tmp_path.iterdir())
