"""Deltas: base and changes are, bit for bit, the trainer's table at that step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from disk import Call, intercepted
from obstore.store import LocalStore
from torch import Tensor

from embstore.batch import FeatureTokens
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import CorruptVersionError, StoreError
from embstore.kernels import TableOptimizer
from embstore.schema import Feature, Schema
from embstore.store import Bundle, Change, Consumer, OptimizerState, Store, Version, format
from embstore.store.local import LocalFiles

MakeBundle = Callable[..., Bundle]

FEATURES = (Feature(name="user", lookups=2), Feature(name="tags", pooling="mean"), Feature(name="day", exact=True))
OPTIMIZERS = [
    TableOptimizer(learning_rate=0.1),
    TableOptimizer(name="adam", learning_rate=0.1),
    TableOptimizer(name="sgd", learning_rate=0.1),
    TableOptimizer(name="adagrad", learning_rate=0.1, l2=0.01),
]


def _table(optimizer: TableOptimizer, **settings: Any) -> UnifiedEmbedding:
    days = {"day": torch.arange(5)}
    return UnifiedEmbedding(FEATURES, 3000, 4, optimizer=optimizer, exact_tokens=days, **settings)


def _bundle(table: UnifiedEmbedding, make_bundle: MakeBundle, *, optimizer: bool = True) -> Bundle:
    state = table.optimizer_state({"0.step": torch.tensor(3.0)}) if optimizer else None
    model = {"name": "dnn", "settings": {}, "dense_width": 0, "widths": list(table.widths)}
    schema = Schema(features=FEATURES, label="click")
    return replace(make_bundle(), table=table, schema=schema, model=model, columns={}, optimizer=state)


def _train(table: UnifiedEmbedding, generator: torch.Generator, steps: int = 3) -> None:
    table.train()
    for _ in range(steps):
        lengths = torch.randint(0, 4, (8,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        columns: dict[str, tuple[Tensor, Tensor | None]] = {
            "user": (torch.randint(0, 500, (8,), generator=generator), None),
            "tags": (torch.randint(0, 500, (int(offsets[-1]),), generator=generator), offsets),
            "day": (torch.randint(0, 7, (8,), generator=generator), None),
        }
        out_BW = table(FeatureTokens.concatenate(columns, 8))
        out_BW.backward(torch.randn(out_BW.shape, generator=generator))


def _same(version: Version, table: UnifiedEmbedding) -> None:
    rows = table.num_rows
    assert torch.equal(version.table.read_rows(0, rows), table.read_rows(0, rows))
    some = torch.randperm(rows)[:100]
    assert torch.equal(version.table.gather(some), table.read_rows(0, rows)[some])
    assert torch.equal(version.table.read_rows(900, 1500), table.read_rows(900, 1500))
    state = version.optimizer_state()
    ours = table.optimizer_state()
    assert (state.name, state.steps, state.rates) == (ours.name, ours.steps, ours.rates)
    assert state.table.keys() == ours.table.keys()
    assert all(torch.equal(state.table[name], tensor) for name, tensor in ours.table.items())


@pytest.mark.parametrize("kernel", ["cpu", "reference", "fbgemm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
@pytest.mark.parametrize("tracked", [False, True])
def test_base_and_deltas_are_the_trainer_s_table(
    kernel: str, optimizer: TableOptimizer, tracked: bool, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    if kernel == "fbgemm":
        pytest.importorskip("fbgemm_gpu")
        if optimizer.name == "adam":
            pytest.skip("FBGEMM has no Adam on CPU")
    table, generator = _table(optimizer, kernel=kernel), torch.Generator().manual_seed(1)
    store = Store(tmp_path)
    if tracked:
        table.track_changes()
    version = store.publish(_bundle(table, make_bundle))
    for _ in range(3):
        table.forget_changes()
        _train(table, generator)
        touched = table.changed_rows()
        assert (touched is None) == (not tracked or optimizer.l2 > 0)
        version = store.publish(_bundle(table, make_bundle), change=Change(base=version, touched=touched))
        assert version.delta is not None
        if optimizer.l2 == 0:
            assert 0 < version.delta.rows < 300
        _same(version, table)
        _same(Store(tmp_path).open(version.id), table)
    assert version.delta.depth == 3
    store.verify()

    going_on = UnifiedEmbedding.restore(store.open().table, optimizer=optimizer, kernel=kernel)
    going_on.load_optimizer_state(store.open().optimizer_state())
    for each in (table, going_on):
        _train(each, torch.Generator().manual_seed(2))
    assert torch.equal(going_on.read_rows(0, going_on.num_rows), table.read_rows(0, table.num_rows))


def test_all_kernels_track_the_rows_they_change(make_bundle: MakeBundle) -> None:
    changed = {}
    for kernel in ("cpu", "reference"):
        table = _table(OPTIMIZERS[0], kernel=kernel)
        before = table.read_rows(0, table.num_rows).clone()
        table.track_changes()
        _train(table, torch.Generator().manual_seed(3))
        rows = table.changed_rows()
        assert rows is not None
        differ = (table.read_rows(0, table.num_rows) != before).any(dim=1).nonzero().flatten()
        assert torch.equal(rows, differ)
        changed[kernel] = rows
    assert torch.equal(changed["cpu"], changed["reference"])


def test_insignificant_changes_wait(make_bundle: MakeBundle, tmp_path: Path) -> None:
    rows_ND = torch.zeros(40, 3)
    store = Store(tmp_path)
    version = store.publish(make_bundle(rows_ND=rows_ND.clone()))
    for step in range(1, 5):
        rows_ND[7, 0], rows_ND[9] = 0.1 * step, 0.01 * step
        change = Change(base=version, significance=0.25)
        version = store.publish(make_bundle(rows_ND=rows_ND.clone()), change=change)
        assert version.delta is not None
        assert version.delta.rows == (step == 3)  # counted from what readers have, not from the last step
    expected = torch.zeros(40, 3)
    expected[7, 0] = 0.1 * 3
    assert torch.equal(version.table.read_rows(0, 40), expected)


def test_insignificant_changes_wait_with_their_state(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Else a delta with the optimizer's state would hold every row that was trained."""
    table, store = _table(OPTIMIZERS[0]), Store(tmp_path)
    base = store.publish(_bundle(table, make_bundle))
    before = base.optimizer_state().table["sum"].clone()
    with torch.no_grad():
        table.state_sum += 1
        table.weight[7] += 1
        table.weight[8] += 0.001
    version = store.publish(_bundle(table, make_bundle), change=Change(base=base, significance=0.1))
    assert version.changes().index_R.tolist() == [7]
    before[7] += 1
    assert torch.equal(version.optimizer_state().table["sum"], before)


def _chain(make_bundle: MakeBundle, store: Store) -> tuple[UnifiedEmbedding, Version]:
    """A version in several buckets and a delta of it: row 5 changed."""
    table = _table(OPTIMIZERS[0])
    with torch.no_grad():
        table.state_sum.copy_(torch.arange(table.num_rows))
        base = store.publish(_bundle(table, make_bundle))
        table.state_sum[5] += 0.5
    touched = torch.tensor([5])
    version = store.publish(_bundle(table, make_bundle), change=Change(base=base, touched=touched))
    assert version.table.layout.buckets == 3
    return table, version


def test_only_touched_states_are_read(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "BUCKET_BYTES", 1024 * 16)
    table, version = _chain(make_bundle, Store(tmp_path))
    for touched, buckets in (([5], set()), ([5, 6, 1500], {0, 1}), ([], set()), (None, {0, 1, 2})):
        store, read = Store(tmp_path), []

        def react(call: Call) -> Any:
            if call.name == "open to read" and call.path.parent.name == "optimizer" and "bucket" in call.path.name:
                read.append((call.path.parent.parent.name, int(call.path.stem[-5:])))  # noqa: B023
            return call.run()

        base = store.open(version.id)
        rows = None if touched is None else torch.tensor(touched, dtype=torch.int64)
        with torch.no_grad():
            table.state_sum[rows if rows is not None else slice(None)] += 1
        with intercepted(tmp_path, react):
            delta = store.publish(_bundle(table, make_bundle), change=Change(base=base, touched=rows))
        assert version.parent is not None
        assert sorted(read) == [(version.parent, number) for number in sorted(buckets)]
        assert delta.changes().index_R.tolist() == (list(range(table.num_rows)) if rows is None else touched)
        _same(delta, table)
        with torch.no_grad():
            table.state_sum[rows if rows is not None else slice(None)] -= 1


def test_a_damaged_state_is_found_when_it_is_touched(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format, "BUCKET_BYTES", 1024 * 16)
    table, version = _chain(make_bundle, Store(tmp_path))
    assert version.base is not None
    path = version.base.folder / "optimizer/bucket-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    rows = torch.tensor([5, 1023, 2048])
    base = Store(tmp_path).open(version.id)
    assert torch.equal(base.optimizer_rows.gather(rows)["sum"], table.state_sum[rows])
    for touched in ([1024], [2047], [0, 1500, 2999]):
        with pytest.raises(CorruptVersionError, match=r"bucket-00001\.safetensors.*sha256"):
            base.optimizer_rows.gather(torch.tensor(touched))
        change = Change(base=base, touched=torch.tensor(touched))
        with pytest.raises(CorruptVersionError, match=r"bucket-00001\.safetensors.*sha256"):
            Store(tmp_path).publish(_bundle(table, make_bundle), change=change)
    with pytest.raises(CorruptVersionError, match="sha256"):
        base.optimizer_state()


@pytest.mark.parametrize("encoding", ["int8", "float16"])
def test_changes_in_fewer_bits(encoding: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    store, bundle = Store(tmp_path), make_bundle(rows=400, dim=8)
    base = store.publish(bundle)
    rows_ND = bundle.table.read_rows(0, 400).clone()
    rows_ND[50:60] += 1
    change = Change(base=base, encoding=encoding)
    version = store.publish(make_bundle(rows_ND=rows_ND), change=change)
    found_ND = version.table.read_rows(0, 400)
    assert torch.equal(found_ND[:50], rows_ND[:50])
    torch.testing.assert_close(found_ND[50:60], rows_ND[50:60], rtol=0, atol=0.02)
    loss = float((found_ND - rows_ND).abs().max())
    assert version.manifest["delta"]["loss"]["largest"] == pytest.approx(loss)


@pytest.mark.parametrize("significance", [0.0, 0.25])
@pytest.mark.parametrize("encoding", ["int8", "int4", "float16"])
def test_rows_in_fewer_bits_are_published_once(
    encoding: str, significance: float, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """The case: the trained rows never are the quantised ones, so every later delta held them all again."""
    store, bundle = Store(tmp_path), make_bundle(rows=400, dim=8)
    version = store.publish(bundle)
    rows_ND = bundle.table.read_rows(0, 400).clone()
    for step in range(3):
        rows_ND[10 * step : 10 * step + 10] *= 200  # a step of int4 is more than the significance then
        change = Change(base=version, encoding=encoding, significance=significance)
        version = store.publish(make_bundle(rows_ND=rows_ND.clone()), change=change)
        assert version.changes().index_R.tolist() == list(range(10 * step, 10 * step + 10))
    last = store.publish(make_bundle(rows_ND=rows_ND), change=replace(change, base=version))
    assert last.changes().index_R.tolist() == []


def test_a_state_that_changed_is_published_though_its_row_reads_the_same(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    store, table = Store(tmp_path), _table(OPTIMIZERS[0])
    version = store.publish(_bundle(table, make_bundle))
    with torch.no_grad():
        table.weight[5:7] += 1
        version = store.publish(_bundle(table, make_bundle), change=Change(base=version, encoding="int8"))
        table.state_sum[6] += 1
    version = store.publish(_bundle(table, make_bundle), change=Change(base=version, encoding="int8"))
    assert version.changes().index_R.tolist() == [6]
    assert torch.equal(version.optimizer_state().table["sum"], table.state_sum)


@pytest.mark.parametrize("encoding", [None, "float32"])
def test_compacting_keeps_the_encoding_of_the_base(
    encoding: str | None, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """The case: a chain on an int8 version was published as float32, four times the size, and nothing was said."""
    store = Store(tmp_path)
    base = store.publish(make_bundle(), encoding="int8")
    rows_ND = base.table.read_rows(0, 40).clone()
    rows_ND[3:9] = torch.randn(6, rows_ND.shape[1], generator=torch.Generator().manual_seed(5))
    delta = store.publish(make_bundle(rows_ND=rows_ND), change=Change(base=base))
    consumer = Consumer(store, tmp_path / "position", ref="latest")
    for update in consumer.pending():
        consumer.commit(update)
    made = store.compact(encoding=encoding)
    assert made.compacts == delta.id
    assert made.table.encoding == (encoding or "int8")
    found_ND, loss = made.table.read_rows(0, 40), made.manifest["table"].get("loss")
    if encoding is None:
        assert loss["largest"] == pytest.approx(float((found_ND.double() - rows_ND.double()).abs().max()))
        assert loss["largest"] > 0
    else:
        assert loss is None
        assert torch.equal(found_ND, rows_ND)
    (update,) = consumer.pending()  # rows quantised again are other rows
    assert update.whole == (encoding is None)
    assert store.compact(encoding=made.table.encoding).id == made.id
    with pytest.raises(StoreError, match="expected a delta, to store its rows as float16; found a whole version"):
        store.compact(encoding="float16")


def _sums(*shape: int, name: str = "sum") -> OptimizerState:
    return OptimizerState(name="rowwise_adagrad", steps=1, rates=0.1, table={name: torch.ones(shape)}, dense={})


def test_a_delta_of_another_optimizers_state_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = store.publish(make_bundle(optimizer=_sums(40)))
    for other in (_sums(40, 3), _sums(40, name="m"), replace(_sums(40), name="adagrad")):
        for significance in (0.0, 0.1):
            with pytest.raises(StoreError, match="a base with the optimizer's state"):
                store.publish(make_bundle(optimizer=other), change=Change(base=base, significance=significance))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"optimizer": _sums(40, name="M.x")}, "names like"),
        ({"optimizer": _sums(39)}, "40, width"),
        ({"optimizer": _sums(40, 2, 2)}, "40, width"),
        ({"lineage": {"config": "x" * 100_000_001}}, "at most 100,000,000 bytes"),
        ({"metrics": {1: 0.5, "1": 0.6}}, "twice"),
    ],
    ids=["name", "rows", "dimensions", "manifest", "key"],
)
def test_what_no_reader_accepts_is_not_published(
    fields: dict[str, Any], what: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    version = store.publish(make_bundle()).id
    with pytest.raises(StoreError, match=what):
        store.publish(make_bundle(**fields))
    assert [info.id for info in store.versions()] == [version]
    assert len(list((tmp_path / "versions").iterdir())) == 1


def test_a_table_trained_on_a_versions_rows_leaves_the_version_as_it_is(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """Else a delta of it would lack what was trained, and a later one read in this process would be wrong."""
    store, table = Store(tmp_path), _table(OPTIMIZERS[0])
    base = store.publish(_bundle(table, make_bundle))
    before = base.table.read_rows(0, table.num_rows).clone()
    trained = UnifiedEmbedding.restore(base.table)
    assert torch.equal(trained.weight, before)
    trained.weight[7] += 1
    assert torch.equal(base.table.read_rows(0, table.num_rows), before)
    bundle = replace(_bundle(table, make_bundle), table=trained, optimizer=None)
    version = store.publish(bundle, change=Change(base=base))
    assert version.changes().index_R.tolist() == [7]
    assert torch.equal(store.compact().table.read_rows(0, table.num_rows), trained.weight)
    shutil.rmtree(base.folder)  # as gc would
    assert torch.equal(base.table.own_rows(), before)


def test_a_delta_of_another_table_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path / "one")
    base = store.publish(make_bundle())
    for other, what in (
        (make_bundle(rows=41), "layout"),
        (make_bundle(dtype=torch.float16), "layout"),
        (replace(make_bundle(), optimizer=_sums(40)), "a base with the optimizer's state"),
        (replace(make_bundle(), optimizer=_sums(41)), r"\[40\] or \[40, width\]"),
    ):
        with pytest.raises(StoreError, match=what):
            store.publish(other, change=Change(base=base))
    elsewhere = Store(tmp_path / "two")
    elsewhere.publish(make_bundle())
    with pytest.raises(StoreError):
        elsewhere.publish(make_bundle(), change=Change(base=base))
    for touched in (torch.tensor([3, 3]), torch.tensor([40]), torch.tensor([-1]), torch.tensor([1.0])):
        with pytest.raises(StoreError, match="ascending"):
            store.publish(make_bundle(), change=Change(base=base, touched=touched))
    assert len(store.versions()) == 1


def test_a_damaged_delta_or_base_is_found(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = store.publish(make_bundle())
    version = store.publish(make_bundle(seed=1), change=Change(base=base))
    for path in (version.folder / "delta/rows.safetensors", base.folder / "table/bucket-00000.safetensors"):
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptVersionError, match="sha256"):
            Store(tmp_path).open(version.id).table.read_rows(0, 40)
        with pytest.raises(CorruptVersionError):
            Store(tmp_path).verify(version.id)
        data[-3] ^= 1
        path.write_bytes(data)
    Store(tmp_path).verify(version.id)


def test_the_manifest_names_the_base(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = store.publish(make_bundle())
    version = store.publish(make_bundle(), change=Change(base=base))
    manifest = json.loads((version.folder / "manifest.json").read_bytes())
    assert manifest["delta"] == {
        "base": base.id,
        "base_digest": base.digest,
        "rows": 0,
        "encoding": "float32",
        "significance": 0.0,
        "depth": 1,
    }
    assert version.parent == base.id
    assert version.space == base.space
    assert version.base is not None
    assert version.base.id == base.id


def test_gc_keeps_what_a_delta_lies_on(make_bundle: MakeBundle, tmp_path: Path) -> None:
    store, rows_ND = Store(tmp_path), torch.zeros(40, 3)
    version, ids = store.publish(make_bundle(rows_ND=rows_ND.clone())), []
    for step in range(3):
        ids.append(version.id)
        rows_ND[step] += 1
        version = store.publish(make_bundle(rows_ND=rows_ND.clone()), change=Change(base=version))
    collected = store.gc(keep=1, grace_seconds=0)
    assert collected.retired == ()
    whole = store.compact()
    assert set(store.gc(keep=1, grace_seconds=0).retired) == {*ids, version.id}
    assert torch.equal(Store(tmp_path).open(whole.id).table.read_rows(0, 40), rows_ND)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


BASE_FILES = ["manifest.json", "compat.json", "schema.yaml", "exact/tokens.safetensors", "model/dense.safetensors"]


ALL_FILES = [*BASE_FILES, "optimizer/dense.safetensors", "delta/rows.safetensors"]
FILES_BY_DEPTH = [(depth, name) for depth in range(3) for name in ALL_FILES if depth or not name.startswith("delta/")]


@pytest.mark.parametrize(("depth", "name"), FILES_BY_DEPTH)
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_delta_of_what_no_one_can_open_is_refused(
    name: str, depth: int, where: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """The case: the base was open, and deltas of it were published that no other process could open."""
    store, table = _place(where, tmp_path), _table(OPTIMIZERS[0])
    chain = [store.publish(_bundle(table, make_bundle))]
    for row in range(2):
        with torch.no_grad():
            table.weight[row] += 1
        chain.append(store.publish(_bundle(table, make_bundle), change=Change(base=chain[-1])))
    _flip(tmp_path / "store/versions" / chain[depth].id / name)
    for again in (store, _place(where, tmp_path)):
        with pytest.raises(CorruptVersionError, match=rf"{chain[depth].id}/{name}; expected .*sha256"):
            again.publish(_bundle(table, make_bundle), change=Change(base=chain[-1]))
    assert len(store.versions()) == 3
    _flip(tmp_path / "store/versions" / chain[depth].id / name)
    store.publish(_bundle(table, make_bundle), change=Change(base=chain[-1]))
    (tmp_path / "store/versions" / chain[depth].id / name).unlink()
    with pytest.raises(CorruptVersionError, match=rf"{chain[depth].id}/{name}.*no file"):
        store.publish(_bundle(table, make_bundle), change=Change(base=chain[-1]))


def _place(where: str, tmp_path: Path) -> Store:
    folder = tmp_path / "store"
    folder.mkdir(exist_ok=True)
    return Store(folder if where == "folder" else LocalStore(folder), cache=tmp_path / "cache")


def test_what_this_process_has_hashed_is_not_hashed_again(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, table, read = Store(tmp_path), _table(OPTIMIZERS[0]), []
    digest = LocalFiles.digest
    monkeypatch.setattr(LocalFiles, "digest", lambda files, name: read.append(name) or digest(files, name))
    version = store.publish(_bundle(table, make_bundle))
    for row in range(3):
        read.clear()
        with torch.no_grad():
            table.weight[row] += 1
        version = store.publish(_bundle(table, make_bundle), change=Change(base=version))
        written = ["compat.json", "manifest.json", "optimizer/dense.safetensors", "schema.yaml"]
        assert sorted(read) == written  # of what was written; and the one file of the base that wasn't read yet
        assert version.base is not None
    read.clear()
    os.utime(version.folder / "delta/rows.safetensors", ns=(0, 0))
    version.check()
    assert sorted(read) == ["delta/rows.safetensors", "optimizer/dense.safetensors"]


def test_a_base_opened_from_a_copy_is_checked_where_the_delta_goes(make_bundle: MakeBundle, tmp_path: Path) -> None:
    base = Store(tmp_path / "store").publish(make_bundle())
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    _flip(tmp_path / "copy/versions" / base.id / "model/dense.safetensors")
    with pytest.raises(CorruptVersionError, match=r"copy/.*sha256"):
        copy.publish(make_bundle(seed=1), change=Change(base=base))
    _flip(tmp_path / "copy/versions" / base.id / "model/dense.safetensors")
    version = copy.publish(make_bundle(seed=1), change=Change(base=base))
    assert version.base is not None
    assert version.base.folder == tmp_path / "copy/versions" / base.id


@pytest.mark.parametrize("other", [False, True])
def test_a_base_of_another_store_object_is_not_opened_again(
    other: bool, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    base = store.publish(make_bundle())
    opened, open_version = [], Version.open
    monkeypatch.setattr(
        Version, "open", lambda files, **options: opened.append(options["version"]) or open_version(files, **options)
    )
    publisher = Store(tmp_path) if other else store
    version = publisher.publish(make_bundle(seed=1), change=Change(base=base))
    assert version.base is base
    assert opened == [version.id] * 2
    opened.clear()
    assert publisher.publish(version.bundle(), change=Change(base=version, smallest=True)) is version
    assert opened == []


def test_a_chain_that_is_too_long_names_what_makes_it_short(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embstore.store.delta.MAX_DEPTH", 1)
    store = Store(tmp_path)
    delta = store.publish(make_bundle(seed=1), change=Change(base=store.publish(make_bundle())))
    said = f"at most 1 in a chain; found more; publish it whole, .*: embstore compact {delta.id}$"
    with pytest.raises(StoreError, match=said):
        store.publish(make_bundle(seed=2), change=Change(base=delta))
    whole = store.compact()
    store.publish(make_bundle(seed=2), change=Change(base=whole))
    with pytest.raises(StoreError, match=f"compact {whole.id}; .*publish its run with --encoding int8$"):
        store.compact(whole.id, encoding="int8")
