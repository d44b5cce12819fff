"""Checkpoints of a table in parts, as ranks write them: any rows of it, from any parts."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from embstore.checkpoints import Checkpoints, load_rows
from embstore.errors import CheckpointError
from embstore.store.tensors import write_tensors

ROWS = 23
TABLE = {"weight": torch.arange(ROWS * 2.0).reshape(ROWS, 2), "paid": torch.arange(ROWS).double()}
EXTRA = torch.tensor([3.0, 0.5], dtype=torch.float64)


class Table(nn.Module):
    """What rows are loaded into."""

    weight: Tensor

    def __init__(self, rows: int, dim: int = 2) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(rows, dim))
        self.register_buffer("paid", torch.zeros(rows).double())
        self.extra = torch.zeros(2).double()

    def get_extra_state(self) -> Tensor:
        return self.extra

    def set_extra_state(self, state: Tensor) -> None:
        self.extra = state


class Allocated(TorchDispatchMode):
    """The bytes of each tensor that an operation makes of its own, while the block runs."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, call: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        out = call(*arguments, **(named or {}))
        mine = {of.untyped_storage().data_ptr() for of in tree_leaves((arguments, named)) if isinstance(of, Tensor)}
        made = [of for of in tree_leaves(out) if isinstance(of, Tensor)]
        self.bytes += [of.nbytes for of in made if of.untyped_storage().data_ptr() not in mine]
        return out


def _saved(folder: Path, cuts: list[int]) -> Checkpoints:
    """A checkpoint whose table is cut at these rows."""
    checkpoints = Checkpoints(folder)
    tensors = {"table": {**TABLE, "_extra_state": EXTRA}, "dense": {"x": torch.ones(2)}}
    path = folder / checkpoints.save(7, {"identity": "a"}, tensors, range(ROWS)) / "state.json"
    state = json.loads(path.read_text())
    if not cuts:
        return checkpoints
    (path.parent / "table.safetensors").unlink()
    del state["files"]["table.safetensors"], state["shards"]["table.safetensors"]
    bounds = [0, *sorted(set(cuts)), ROWS]
    for rank, (start, stop) in enumerate(itertools.pairwise(bounds)):
        file = path.parent / f"table-{rank:05d}.safetensors"
        part = {name: tensor[start:stop] for name, tensor in TABLE.items()}
        state["files"][file.name] = write_tensors(file, {**part, "_extra_state": EXTRA})._asdict()
        state["shards"][file.name] = [start, stop]
    path.write_text(json.dumps(state))
    return checkpoints


@given(
    cuts=st.lists(st.integers(1, ROWS - 1), max_size=4), bounds=st.sets(st.integers(0, ROWS), min_size=2, max_size=2)
)
def test_any_rows_from_any_parts(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], bounds: set[int]) -> None:
    checkpoints, (start, stop) = _saved(tmp_path_factory.mktemp("run"), cuts), sorted(bounds)
    state, tensors, parts = checkpoints.load(checkpoints.names()[-1], ROWS, range(start, stop))
    assert (state["identity"], tensors["dense"]["x"].tolist()) == ("a", [1, 1])
    assert tensors.keys() == {"dense"}
    table = Table(stop - start)
    load_rows(table, parts, origin="it")
    assert torch.equal(table.extra, EXTRA)
    for name, tensor in TABLE.items():
        assert torch.equal(getattr(table, name), tensor[start:stop])


@pytest.mark.parametrize("cuts", [[], [10], [5, 10, 15]])
def test_no_second_copy_of_the_rows_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: list[int]) -> None:
    checkpoints, table = _saved(tmp_path, cuts), Table(ROWS - 3)
    with monkeypatch.context() as patched, Allocated() as allocated:
        patched.setattr(torch, "cat", None)
        load_rows(table, checkpoints.load(checkpoints.names()[-1], ROWS, range(2, ROWS - 1)).table, origin="it")
    assert max(allocated.bytes, default=0) < table.weight.nbytes / 2
    assert torch.equal(table.weight, TABLE["weight"][2:-1])


def test_rows_of_another_table_are_refused(tmp_path: Path) -> None:
    (*_, parts) = _saved(tmp_path, [10]).load("step-00000007", ROWS, range(ROWS))
    table = Table(ROWS)
    table.register_buffer("state", torch.zeros(ROWS))
    with pytest.raises(CheckpointError, match=r"it is of another model: state; expected \(10,\); found absent"):
        load_rows(table, parts, origin="it")
    with pytest.raises(CheckpointError, match=r"of another model: weight; expected \(10, 3\); found \(10, 2\)"):
        load_rows(Table(ROWS, 3), parts, origin="it")


def test_rows_that_no_file_has_are_missed(tmp_path: Path) -> None:
    path = _saved(tmp_path, [10, 15]).folder / "step-00000007" / "state.json"
    state = json.loads(path.read_text())
    del state["shards"]["table-00001.safetensors"], state["files"]["table-00001.safetensors"]
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="not each of the rows 5 to 20 once"):
        Checkpoints(tmp_path).load("step-00000007", ROWS, range(5, 20))


def test_a_checkpoint_from_before_there_were_ranks(tmp_path: Path) -> None:
    """It says nothing of shards: its one file has all rows."""
    path = _saved(tmp_path, []).folder / "step-00000007" / "state.json"
    state = json.loads(path.read_text())
    del state["shards"]
    path.write_text(json.dumps(state))
    table = Table(7)
    load_rows(table, Checkpoints(tmp_path).load("step-00000007", ROWS, range(3, 10)).table, origin="it")
    assert torch.equal(table.weight, TABLE["weight"][3:10])
    with pytest.raises(CheckpointError, match="is of another table; expected 24 rows; found 23"):
        Checkpoints(tmp_path).load("step-00000007", 24, range(3, 10))


@pytest.mark.parametrize("what", ["prune", "save"])
def test_half_a_checkpoint_never_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A kill while one is removed, after its first file went."""
    checkpoints = _saved(tmp_path, [])

    def killed(path: Path, **_: object) -> None:
        next(file for file in sorted(path.iterdir())).unlink()
        raise KeyboardInterrupt

    remove = shutil.rmtree
    with monkeypatch.context() as patched:
        if what == "prune":
            checkpoints.save(8, {}, {"table": TABLE}, range(ROWS))
            patched.setattr(shutil, "rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.prune({"step-00000008"})
        else:  # what is half written goes as it went
            patched.setattr(shutil, "rmtree", lambda path, **how: (remove if how else killed)(path, **how))
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save(7, {}, {"table": TABLE}, range(ROWS))
    (name,) = checkpoints.names()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step-00000007.old", name]
    checkpoints.load(name, ROWS, range(ROWS))
    checkpoints.prune({name})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_only_the_parts_that_are_read_are_checked(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, [10])
    (name,) = checkpoints.names()
    (tmp_path / name / "table-00001.safetensors").write_bytes(b"damaged")
    checkpoints.load(name, ROWS, range(0, 10))
    with pytest.raises(CheckpointError, match=r"table-00001\.safetensors is damaged"):
        checkpoints.load(name, ROWS, range(5, 15))


def test_a_table_of_other_rows_is_refused(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, [10])
    with pytest.raises(CheckpointError, match="is of another table; expected 24 rows; found 23"):
        checkpoints.load(checkpoints.names()[-1], 24, range(0, 12))
