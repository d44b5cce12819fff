"""Abuse of the store and of safetensors files; each test names the rule it led to.

An attacker writes what he likes into a version's folder and, where it says ``_sign``, makes the log agree: what is read
must then still be harmless. He gets a ``StoreError`` that names the file; never memory, other folders' files, or code.
Whoever can write the log decides what the store holds; the log is the one thing that must be trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import buckets
import numpy as np
import obstore
import pytest
import torch
from obstore.store import MemoryStore
from publisher import small_bundle

from embstore.errors import CorruptVersionError, StoreError
from embstore.schema import Feature, Schema
from embstore.store import Bundle, Store, Version, open_tensors, write_tensors
from embstore.store.documents import read_json
from embstore.vocabulary import FeatureValues, Vocabulary

VALUES = "vocabulary/feature-00000.safetensors"


class _Table:
    """Eight rows of two numbers."""

    dim, num_rows, dtype = 2, 8, torch.float32

    def describe(self) -> dict[str, Any]:
        feature = {"name": "user", "lookups": 1, "pooling": "sum", "exact": False, "rows": [{"base": 0, "size": 8}]}
        return {"hash_spec": 1, "seed": 0, "hashed_rows": 8, "num_tables": 1, "features": [feature]}

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        return torch.arange(16.0).reshape(8, 2)[start:stop]

    def exact_tokens(self) -> dict[str, torch.Tensor]:
        return {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of one version, two folders below ``tmp_path``."""
    store = Store(tmp_path / "deep" / "store")
    bundle = Bundle(
        table=_Table(),
        schema=Schema(features=(Feature(name="user"),)),
        dense_state={"network.w": torch.ones(3)},
        model={"name": "dnn", "settings": {}, "dense_width": 0, "widths": [2]},
        metrics={},
        lineage={},
    )
    store.publish(bundle)
    return store


def _version(store: Store) -> Version:
    return Store(store.root).open()


def _with_vocabulary(store: Store, **more: Any) -> Version:
    """The store's version once more, with a vocabulary, as its only one."""
    values = FeatureValues.of("user", ["ann", "bob", "eve"], count=[3, 2, 1], kept=[True, True, False], **more)
    bundle = replace(_version(store).bundle(), vocabulary=Vocabulary({"user": values}))
    shutil.rmtree(store.root)
    return Store(store.root).publish(bundle)


def _sign(store: Store, manifest: bytes) -> None:
    """Let the manifest be these bytes and the log agree."""
    (entry,) = (store.root / "log").iterdir()
    folder = store.root / "versions" / json.loads(entry.read_bytes())["version"]
    (folder / "manifest.json").write_bytes(manifest)
    digest = hashlib.sha256(manifest).hexdigest()
    entry.write_text(json.dumps({**json.loads(entry.read_bytes()), "manifest_sha256": digest}))


def _resign(store: Store, version: Version, name: str, data: bytes) -> None:
    """Let a file be these bytes and the manifest and log agree."""
    (version.folder / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files = {**version.manifest["files"], name: entry}
    _sign(store, json.dumps({**version.manifest, "files": files}).encode())


# Rule: the log holds the manifest's digest, so no byte of a version changes unseen.


def test_a_tampered_manifest(store: Store) -> None:
    version = _version(store)
    path = version.folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(CorruptVersionError, match=r"manifest\.json.*sha256"):
        _version(store)


def test_another_version_under_this_name(store: Store) -> None:
    manifest = _version(store).manifest
    _sign(store, json.dumps({**manifest, "version": "20200101T000000Z-00000000"}).encode())
    with pytest.raises(CorruptVersionError, match="expected version"):
        _version(store)


# Rule: names in a manifest are lower-case, relative and plain; they never leave the version's folder.


@pytest.mark.parametrize(
    "name",
    [
        "../../../secret",
        "/etc/passwd",
        "table/../../../secret",
        "./schema.yaml",
        "table//bucket-00000.safetensors",
        "..",
        "",
        "table/",
        "c:\\secret",
        "..\\secret",
        "a\0b",
        "a\n",
        "SCHEMA.yaml",
        "a/b/c/d/e",
        "a" * 201,
        "manifest.json",
    ],
)
def test_names_that_leave_the_folder(name: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    manifest = _version(store).manifest
    files = {**manifest["files"], name: {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}}
    _sign(store, json.dumps({**manifest, "files": files}).encode())
    with pytest.raises(CorruptVersionError, match="names inside the version"):
        _version(store)


@pytest.mark.parametrize("version", ["../../../secret", "/etc", "..", "20200101T000000Z-0000000/", "x\0"])
def test_a_log_entry_that_leaves_the_store(version: str, store: Store) -> None:
    (entry,) = (store.root / "log").iterdir()
    entry.write_text(json.dumps({**json.loads(entry.read_bytes()), "version": version}))
    with pytest.raises(CorruptVersionError, match="version; expected text like"):
        _version(store)


# Rule: nothing in a version is a link, and nothing but files and folders is opened.


@pytest.mark.parametrize("name", ["manifest.json", "schema.yaml", "table/bucket-00000.safetensors", "table"])
def test_symbolic_links(name: str, store: Store, tmp_path: Path) -> None:
    path = _version(store).folder / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")  # the very same bytes
    for attempt in (lambda: _version(store), lambda: Store(store.root).verify()):
        with pytest.raises(CorruptVersionError, match=rf"{path.name}.*link"):
            attempt()


def test_a_version_that_is_a_link(store: Store, tmp_path: Path) -> None:
    folder = _version(store).folder
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptVersionError, match="expected a folder"):
        _version(store)


def test_a_pipe_does_not_hang_the_reader(store: Store, tmp_path: Path) -> None:
    path = _version(store).folder / "schema.yaml"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptVersionError, match="pipe"):
        _version(store)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorruptVersionError, match="pipe"):
        open_tensors(tmp_path / "pipe")


def test_a_log_entry_that_is_a_broken_link(store: Store, tmp_path: Path) -> None:
    """Rule: a number that is taken but can't be read stops a writer instead of keeping it busy for ever."""
    version = _version(store)
    (store.root / "log" / "000000000002.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"000000000002\.json.*can't be read"):
        Store(store.root).promote(version.id)


# Rule: every length is compared with the file before memory is taken.


@pytest.mark.parametrize("name", ["table/bucket-00000.safetensors", "model/dense.safetensors", "schema.yaml"])
@pytest.mark.parametrize("change", [-1, -8, 1], ids=str)
def test_a_file_of_another_length(name: str, change: int, store: Store) -> None:
    path = _version(store).folder / name
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(
        CorruptVersionError, match=rf"{path.name}.*expected {len(data):,} bytes.*found {len(data) + change:,}"
    ):
        _version(store)


def test_a_truncated_shard_whose_manifest_agrees(store: Store) -> None:
    version = _version(store)
    name = "table/bucket-00000.safetensors"
    _resign(store, version, name, (version.folder / name).read_bytes()[:-8])
    with pytest.raises(CorruptVersionError, match=rf"{name}"):
        _version(store)


def test_a_missing_file_and_a_stray_one(store: Store) -> None:
    version = _version(store)
    (version.folder / "table" / "bucket-00001.safetensors").write_bytes(b"")
    with pytest.raises(CorruptVersionError, match=r"bucket-00001.*only files of the manifest"):
        version.verify()
    (version.folder / "table" / "bucket-00001.safetensors").unlink()
    (version.folder / "model" / "dense.safetensors").unlink()
    with pytest.raises(CorruptVersionError, match=r"dense\.safetensors.*no file"):
        _version(store)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows", 2**40),
        ("rows", 2**63),
        ("rows", 10**4000),
        ("rows", 0),
        ("rows", -8),
        ("rows", 8.0),
        ("rows", True),
        ("rows", "8"),
        ("rows", 9),
        ("dim", 2**16),
        ("dim", 2**62),
        ("dim", 3),
        ("dtype", "float64"),
        ("dtype", "object"),
        ("dtype", ["float32"]),
        ("bucket_rows", 1),
        ("bucket_rows", 0),
        ("bucket_rows", 6),
        ("hashed_rows", 9),
        ("num_tables", 0),
        ("num_tables", 3),
        ("seed", 2**64),
        ("seed", -1),
    ],
)
def test_a_table_that_is_not_the_one_in_the_files(key: str, value: Any, store: Store) -> None:
    """Rule: declared shapes are bounded and compared with the files before anything is reserved for them."""
    manifest = _version(store).manifest
    _sign(store, json.dumps({**manifest, "table": {**manifest["table"], key: value}}).encode())
    with pytest.raises(CorruptVersionError):
        _version(store)


@pytest.mark.parametrize(
    "rows", [[], [{}], [{"base": 1, "size": 8}], [{"base": -1, "size": 2}], [{"base": 0, "size": 0}], 5]
)
def test_features_that_point_outside_the_table(rows: Any, store: Store) -> None:
    manifest = _version(store).manifest
    _sign(store, json.dumps({**manifest, "features": [{**manifest["features"][0], "rows": rows}]}).encode())
    with pytest.raises(CorruptVersionError, match=r"rows|base|size"):
        _version(store)


@pytest.mark.parametrize(
    ("table", "features", "message"),
    [
        ({"num_tables": 2}, {}, r"'user'; expected rows \d to \d, .*found 0 to 8"),
        ({}, {"rows": [{"base": 0, "size": 4}]}, "'user'; expected rows 0 to 8, .*found 0 to 4"),
        ({"hashed_rows": 7}, {"rows": [{"base": 0, "size": 7}]}, "rows; expected 7; found 8"),
    ],
)
def test_rows_that_are_not_where_the_hash_finds_them(
    table: dict[str, Any], features: dict[str, Any], message: str, store: Store
) -> None:
    """Rule: a lookup reads the rows that the manifest says are its feature's, or none."""
    manifest = _version(store).manifest
    changed = {"table": {**manifest["table"], **table}, "features": [{**manifest["features"][0], **features}]}
    _sign(store, json.dumps({**manifest, **changed}).encode())
    with pytest.raises(CorruptVersionError, match=message):
        _version(store).lookup("user", ["ann"])


_KEYS = ("format", "version", "created", "space", "parent", "table", "features", "columns", "files")
_HARMLESS = [("parent", None), ("space", "x"), ("columns", {})]
_WRONG = [(key, value) for key in _KEYS for value in (None, 55, "x", [], {}, [[]], {"x": None})]


@pytest.mark.parametrize(("key", "value"), [pair for pair in _WRONG if pair not in _HARMLESS], ids=repr)
def test_a_manifest_with_values_of_other_kinds(key: str, value: Any, store: Store) -> None:
    manifest = _version(store).manifest
    _sign(store, json.dumps({**manifest, key: value}).encode())
    with pytest.raises(StoreError, match=r"manifest\.json"):
        _version(store)
    del manifest[key]
    _sign(store, json.dumps(manifest).encode())
    with pytest.raises(CorruptVersionError, match=r"manifest\.json"):
        _version(store)


# Rule: a vocabulary's file holds what the manifest says, in the order a reader counts on; it takes no more memory than
# its own size.


def _changed(version: Version, **tensors: Any) -> bytes:
    """The file of the vocabulary with other tensors; ``None`` takes one out."""
    path = version.folder / VALUES
    old = {name: tensor.clone() for name, tensor in open_tensors(path).items()}
    new = {name: of for name, of in {**old, **tensors}.items() if of is not None}
    written = path.with_name("new")
    write_tensors(written, new)
    data = written.read_bytes()
    written.unlink()
    return data


@pytest.mark.parametrize(
    "tensors",
    [
        {"offset": torch.tensor([0, 3, 6, 2**40])},
        {"offset": torch.tensor([0, 3, 6, 8])},
        {"offset": torch.tensor([1, 3, 6, 9])},
        {"offset": torch.tensor([0, -(2**62), 6, 9])},
        {"offset": torch.tensor([0, 6, 3, 9])},
        {"offset": torch.tensor([0, 3, 6])},
        {"offset": torch.tensor([0, 3, 6, 9], dtype=torch.int32)},
        {"offset": None},
        {"bytes": None},
        {"bytes": torch.tensor(list(b"bobanneve"), dtype=torch.uint8)},
        {"bytes": torch.tensor(list(b"annanneve"), dtype=torch.uint8)},
        {"bytes": torch.tensor(list(b"annbobev\xff"), dtype=torch.uint8)},
        {"bytes": torch.zeros(3, 3, dtype=torch.uint8)},
        {"count": torch.tensor([3, 2, -1])},
        {"count": torch.tensor([3, 2])},
        {"count": torch.tensor([3.0, 2.0, 1.0])},
        {"kept": torch.tensor([1, 1, 2], dtype=torch.uint8)},
        {"kept": torch.tensor([1, 1, 1], dtype=torch.uint8)},
        {"kept": torch.tensor([True, True, False])},
        {"other": torch.zeros(1)},
        {"value": torch.zeros(3, dtype=torch.int64)},
    ],
    ids=lambda tensors: next(iter(tensors)),
)
def test_a_vocabulary_that_is_none(tensors: dict[str, Any], store: Store) -> None:
    version = _with_vocabulary(store)
    _resign(store, version, VALUES, _changed(version, **tensors))
    opened = _version(store)  # whatever the file holds, the rest can be read
    opened.table.read_rows(0, 8)
    for attempt in (
        lambda: opened.lookup("user", ["ann"]),
        lambda: opened.status("user", np.zeros(1, np.uint64)),
        lambda: opened.vocabulary["user"],
    ):
        with pytest.raises(CorruptVersionError, match=VALUES):
            attempt()


@pytest.mark.parametrize(
    "stand_in",
    [
        torch.tensor([-1, -1, 3]),
        torch.tensor([-1, -1, 2]),  # one that is dropped
        torch.tensor([-1, 0, -1]),  # for one that is kept
        torch.tensor([-1, -1, -2]),
        torch.tensor([-1, -1, -1]),
        torch.tensor([-1, -1, 2**62]),
        torch.tensor([-1, -1, 0], dtype=torch.int32),
        torch.tensor([-1, 0]),
        None,
    ],
    ids=str,
)
def test_stand_ins_that_are_none(stand_in: torch.Tensor | None, store: Store) -> None:
    version = _with_vocabulary(store, stand_in=[None, None, "ann"])
    assert torch.equal(*version.lookup("user", ["ann", "eve"]))
    _resign(store, version, VALUES, _changed(version, stand_in=stand_in))
    with pytest.raises(CorruptVersionError, match=VALUES):
        _version(store).lookup("user", ["ann"])


@pytest.mark.parametrize("said", [{"stood_in": 0}, {"stood_in": 2}, {"stood_in": -1}, {"stood_in": None}, {}], ids=str)
def test_stand_ins_that_are_not_those_in_the_file(said: dict[str, Any], store: Store) -> None:
    version = _with_vocabulary(store, stand_in=[None, None, "ann"])
    entry = {key: of for key, of in version.manifest["vocabulary"]["user"].items() if key != "stood_in"}
    _sign(store, json.dumps({**version.manifest, "vocabulary": {"user": {**entry, **said}}}).encode())
    with pytest.raises(CorruptVersionError, match="vocabulary"):
        _ = _version(store).vocabulary["user"]


def test_a_value_longer_than_a_category(store: Store) -> None:
    version = _with_vocabulary(store)
    long, offset = torch.full((100_000,), 97, dtype=torch.uint8), torch.tensor([0, 1, 2, 100_000])
    _resign(store, version, VALUES, _changed(version, bytes=long, offset=offset))
    with pytest.raises(CorruptVersionError, match=VALUES):
        _version(store).lookup("user", ["ann"])


@pytest.mark.parametrize(
    "entry",
    [
        {"values": 4},
        {"values": 2, "kept": 2},
        {"values": 2**40, "kept": 2},
        {"values": 2**62, "kept": 2},
        {"values": -1},
        {"kept": 4},
        {"kept": 3},
        {"kept": 1},
        {"kept": None},
        {"kind": "int64"},
        {"kind": "binary2"},
        {"kind": ["string"]},
    ],
    ids=str,
)
def test_a_vocabulary_that_is_not_the_one_in_the_file(entry: dict[str, Any], store: Store) -> None:
    version = _with_vocabulary(store)
    said = {"user": {**version.manifest["vocabulary"]["user"], **entry}}
    _sign(store, json.dumps({**version.manifest, "vocabulary": said}).encode())
    with pytest.raises(CorruptVersionError, match="vocabulary"):
        _ = _version(store).vocabulary["user"]


@pytest.mark.parametrize("said", [{}, None, {"user": {}}, {"item": 1}, [], 5, "absent"], ids=str)
def test_a_vocabulary_of_other_features(said: Any, store: Store) -> None:
    version = _with_vocabulary(store)
    manifest = {**version.manifest, "vocabulary": said}
    if said == "absent":
        del manifest["vocabulary"]
    _sign(store, json.dumps(manifest).encode())
    with pytest.raises(CorruptVersionError, match=r"manifest\.json"):
        _version(store)


def test_a_vocabulary_that_older_readers_would_overlook(store: Store) -> None:
    version = _with_vocabulary(store)
    compat = {**json.loads((version.folder / "compat.json").read_bytes()), "format": 2, "minimal_reader": 2}
    version.manifest["format"] = 2
    _resign(store, version, "compat.json", json.dumps(compat).encode())
    with pytest.raises(CorruptVersionError, match=r"manifest\.json: format"):
        _version(store)


def test_a_vocabulary_written_over_while_it_is_held(store: Store) -> None:
    """Offsets that were checked are kept: no later byte leads a reader out of the file."""
    version = _with_vocabulary(store)
    of = version.vocabulary["user"]
    path = version.folder / VALUES
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert len(of.tokens) == 3
    with pytest.raises(CorruptVersionError, match=VALUES):
        _version(Store(store.root)).vocabulary["user"]


# Rule: JSON has each key once, finite numbers, an object at the top; deep nesting is an error, not a crash.


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1e400"])
def test_numbers_that_are_not_finite(number: str) -> None:
    with pytest.raises(CorruptVersionError, match="finite numbers"):
        read_json(b'{"a": [1.5, ' + number.encode() + b"]}", "x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"format": 1, "format": 1}',
        b'{"format": NaN}',
        b'{"format": Infinity}',
        b'{"format": 1',
        b"\xff\xfe{}",
        b'{"format": ' + b"[" * 200_000,
        b'{"format": ' + b"9" * 10_000 + b"}",
    ],
    ids=range(10),
)
def test_json_that_is_none(data: bytes, store: Store, tmp_path: Path) -> None:
    _sign(store, data)
    with pytest.raises(CorruptVersionError, match=r"manifest\.json"):
        _version(store)
    (tmp_path / "x").write_bytes(len(data).to_bytes(8, "little") + data)
    with pytest.raises(CorruptVersionError):
        open_tensors(tmp_path / "x")
    (entry,) = (store.root / "log").iterdir()
    entry.write_bytes(data)
    with pytest.raises(CorruptVersionError, match=r"000000000001\.json"):
        Store(store.root).versions()


def test_a_huge_log_entry_is_not_read(store: Store) -> None:
    (entry,) = (store.root / "log").iterdir()
    os.truncate(entry, 1 << 40)
    with pytest.raises(CorruptVersionError, match="65,536 bytes"):
        Store(store.root).versions()


def test_a_huge_manifest_is_not_read(store: Store) -> None:
    os.truncate(_version(store).folder / "manifest.json", 1 << 40)
    with pytest.raises(CorruptVersionError, match="100,000,000 bytes"):
        _version(store)


# Rule: what a later embstore wrote is refused as such, before the rest is read.


def test_versions_of_the_future(store: Store) -> None:
    version = _version(store)
    _sign(store, json.dumps({"format": 6}).encode())
    with pytest.raises(StoreError, match="upgrade embstore"):
        _version(store)
    compat = json.loads((version.folder / "compat.json").read_bytes())
    for key, number in (("minimal_reader", 6), ("hash_spec", 2)):
        _resign(store, version, "compat.json", json.dumps({**compat, key: number}).encode())
        with pytest.raises(StoreError, match=f"{key}.*upgrade embstore"):
            _version(store)
    (entry,) = (store.root / "log").iterdir()
    entry.write_text(json.dumps({**json.loads(entry.read_bytes()), "verb": "forget"}))
    with pytest.raises(StoreError, match=r"'forget'.*upgrade embstore"):
        Store(store.root).versions()


# Rule: the parts of a bundle agree, or it is none.


@pytest.mark.parametrize("key", ["format", "features", "dense", "schema_sha256"])
def test_a_compat_that_promises_something_else(key: str, store: Store) -> None:
    version = _version(store)
    compat = json.loads((version.folder / "compat.json").read_bytes())
    del compat[key]
    _resign(store, version, "compat.json", json.dumps(compat).encode())
    with pytest.raises(CorruptVersionError, match=rf"compat\.json: {key}"):
        _version(store)


@pytest.mark.parametrize(
    "text",
    [
        b"features: [item]",
        b"features: [user, item]",
        b"features: [{name: user, exact: true}]",
        b"features: !!python/object/apply:os.system [touch pwned]",
        b"\xff",
        b"- 1",
        b"a: &a [*a]",
        b"features: {1: 2}",
    ],
)
def test_a_schema_of_another_table_or_none(
    text: bytes, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _resign(store, _version(store), "schema.yaml", text)
    with pytest.raises(CorruptVersionError):
        _version(store)
    assert not (tmp_path / "pwned").exists()


def test_a_schema_of_a_billion_values(store: Store) -> None:
    """Rule: the YAML of a version has no aliases (the message about this one alone would be 5 GB)."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    _resign(store, _version(store), "schema.yaml", "\n".join([*lines, "label: *a9"]).encode())
    with pytest.raises(CorruptVersionError, match="without aliases"):
        _version(store)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{a: " * 100_000, b"- " * 100_000], ids=["list", "map", "block"])
def test_a_schema_of_many_levels(text: bytes, store: Store) -> None:
    """Rule: the YAML of a version is shallow (PyYAML took minutes to refuse 100 KB of brackets)."""
    _resign(store, _version(store), "schema.yaml", text)
    with pytest.raises(CorruptVersionError, match="at most 16 levels"):
        _version(store)


def test_tokens_and_tensors_nobody_declared(store: Store, tmp_path: Path) -> None:
    version = _version(store)
    write_tensors(tmp_path / "tokens", {"user": torch.arange(7)})
    write_tensors(tmp_path / "dense", {"optimizer.w": torch.ones(3)})
    for name, source, message in (
        ("exact/tokens.safetensors", "tokens", "'user'"),
        ("model/dense.safetensors", "dense", "'optimizer.w'"),
    ):
        good = (version.folder / name).read_bytes()
        _resign(store, version, name, (tmp_path / source).read_bytes())
        with pytest.raises(CorruptVersionError, match=message):
            _version(store)
        _resign(store, version, name, good)


# Rule: the log is whole, in order and consistent.


def test_a_log_with_a_gap(store: Store) -> None:
    (entry,) = (store.root / "log").iterdir()
    (store.root / "log" / "000000000003.json").write_bytes(entry.read_bytes())
    with pytest.raises(CorruptVersionError, match=r"log/000000000002\.json"):
        Store(store.root).versions()


def test_a_stray_entry_far_off_in_a_bucket(tmp_path: Path) -> None:
    """As many requests and futures as there are numbers before it would take all memory."""
    objects, asked = MemoryStore(), []
    store = Store(objects, cache=tmp_path)
    store.publish(small_bundle())
    obstore.put(objects, "log/000000100000.json", b"{}")

    def react(name: str, path: str, run: Callable[[], Any]) -> Any:
        asked.extend([path] if name == "head" else [])
        return run()

    with buckets.intercepted(react), pytest.raises(CorruptVersionError, match=r"log/000000000002\.json.*found none"):
        store.versions()
    assert len(asked) < 40


@pytest.mark.parametrize(
    "change",
    [
        {"number": 1},
        {"number": True},
        {"verb": "publish"},
        {"version": "20200101T000000Z-00000000"},
        {"was": "20200101T000000Z-00000000"},
        {"alias": "../x"},
        {"time": 5},
    ],
    ids=str,
)
def test_a_log_entry_that_contradicts_an_earlier_one(change: dict[str, Any], store: Store) -> None:
    entry = {"number": 2, "time": "2026-01-01T00:00:00Z", "verb": "alias", "alias": "a", "was": None}
    entry |= {"version": _version(store).id, "manifest_sha256": "0" * 64, "parent": None}
    path = store.root / "log" / "000000000002.json"
    path.write_text(json.dumps(entry))
    assert Store(store.root).aliases()["a"] == entry["version"]
    path.write_text(json.dumps(entry | change))
    with pytest.raises(CorruptVersionError, match=r"000000000002\.json"):
        Store(store.root).versions()


# Rules of a safetensors file: the header is within the file and the limit; each tensor fits its span; the spans cover
# the data once, without gaps. The safetensors library's own attacks led to the same.


def _header(tensors: dict[str, Any], data: bytes = b"\0" * 16) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + data


def _tensor(begin: Any, end: Any, shape: Any = (2, 2), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data",
    {
        "empty file": b"",
        "header length cut": b"\x02\0\0",
        "header longer than the file": (100).to_bytes(8, "little") + b"{}",
        "header length of 2**64 - 1": b"\xff" * 8 + b"{}",
        "data without tensors": _header({}),
        "gap at the start": _header({"x": _tensor(4, 16, (3,))}),
        "gap at the end": _header({"x": _tensor(0, 12, (3,))}),
        "gap between": _header({"x": _tensor(0, 4, (1,)), "y": _tensor(8, 16, (2,))}),
        "the same bytes twice": _header({"x": _tensor(0, 16), "y": _tensor(0, 16)}),
        "overlap": _header({"x": _tensor(0, 12, (3,)), "y": _tensor(8, 16, (2,))}),
        "past the end": _header({"x": _tensor(0, 32, (8,))}),
        "backwards": _header({"x": _tensor(16, 0)}),
        "negative": _header({"x": _tensor(-16, 0)}),
        "wrong size": _header({"x": _tensor(0, 16, (2, 3))}),
        "negative shape": _header({"x": _tensor(0, 16, (-2, -2))}),
        "shape whose product wraps to 4": _header({"x": _tensor(0, 16, (2**32 + 1, 2**32 + 1, 4))}),
        "huge shape of nothing": _header({"x": _tensor(0, 0, (0, 2**61, 2**61)), "y": _tensor(0, 16)}),
        "many dimensions": _header({"x": _tensor(0, 16, [1] * 100_000 + [4])}),
        "fractional shape": _header({"x": _tensor(0, 16, (2.0, 2.0))}),
        "shape of truths": _header({"x": _tensor(0, 4, (True,)), "y": _tensor(4, 16, (3,))}),
        "unknown dtype": _header({"x": _tensor(0, 16, dtype="OBJECT")}),
        "dtype of another kind": _header({"x": _tensor(0, 16, dtype=["F32"])}),
        "three offsets": _header({"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16, 16]}}),
        "no shape": _header({"x": {"dtype": "F32", "data_offsets": [0, 16]}}),
        "a tensor that is a list": _header({"x": []}),
        "metadata of numbers": _header({"__metadata__": {"a": 1}, "x": _tensor(0, 16)}),
        "metadata of another kind": _header({"__metadata__": "a", "x": _tensor(0, 16)}),
    }.items(),
    ids=lambda item: item[0],
)
def test_safetensors_files_that_lie(data: tuple[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data[1])
    with pytest.raises(CorruptVersionError, match=r"x\.safetensors"):
        open_tensors(path)


def test_the_same_tensor_twice(tmp_path: Path) -> None:
    entry = json.dumps(_tensor(0, 16))
    text = f'{{"x": {entry}, "x": {entry}}}'.encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 16)
    with pytest.raises(CorruptVersionError, match="twice"):
        open_tensors(tmp_path / "x")


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_an_oversized_header_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.write((1 << 33).to_bytes(8, "little"))
        file.truncate(1 << 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptVersionError, match="a header of at most 100,000,000 bytes"):
        open_tensors(tmp_path / "x")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_any_byte_of_a_header_may_be_wrong(tmp_path: Path) -> None:
    """Whatever a changed byte makes of the header, the answer is a tensor of the file's bytes or the one error."""
    path = tmp_path / "x"
    write_tensors(path, {"x": torch.ones(2, 2), "y": torch.arange(3)}, metadata={"a": "b"})
    data = path.read_bytes()
    for at in range(len(data)):
        for bits in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            changed = bytearray(data)
            changed[at] ^= bits
            path.write_bytes(changed)
            try:
                total = sum(tensor.numel() * tensor.itemsize for tensor in open_tensors(path).values())
            except CorruptVersionError:
                continue
            assert total == 40
