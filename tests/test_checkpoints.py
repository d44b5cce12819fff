"""Checkpoints of a table in parts, as ranks write them: any rows of it, from any parts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embstore.checkpoints import Checkpoints
from embstore.errors import CheckpointError
from embstore.store.tensors import write_tensors

ROWS = 23
TABLE = {"weight": torch.arange(ROWS * 2.0).reshape(ROWS, 2), "paid": torch.arange(ROWS).double()}
EXTRA = torch.tensor([3.0, 0.5], dtype=torch.float64)


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
    state, groups = checkpoints.load(checkpoints.names()[-1], ROWS, range(start, stop))
    assert (state["identity"], groups["dense"]["x"].tolist()) == ("a", [1, 1])
    assert groups.keys() == {"table", "dense"}
    assert torch.equal(groups["table"]["_extra_state"], EXTRA)
    for name, tensor in TABLE.items():
        assert torch.equal(groups["table"][name], tensor[start:stop])


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
