"""Stores as each format's writer left them: every later reader must read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from embstore.store import Store, Version

FORMATS = sorted(Path(__file__).parent.glob("golden/format-*"))


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_golden_stores_are_read(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    store = Store(folder / "store")
    assert store.aliases() == expected["aliases"]
    assert [info.id for info in store.versions()] == list(expected["versions"])
    for ref, wanted in expected["versions"].items():
        store.verify(ref)
        version = store.open(ref)
        assert str(version.table.dtype) == f"torch.{wanted['dtype']}"
        rows_ND = torch.tensor(wanted["rows"], dtype=torch.float64)
        assert torch.equal(version.table.read_rows(0, 40).double(), rows_ND)
        assert torch.equal(version.table.gather(torch.tensor([39, 0, 7])).double(), rows_ND[[39, 0, 7]])
        assert version.dense_state()["network.out.weight"].tolist() == wanted["dense"]
        if "state" in wanted:
            assert version.optimizer_state().table["sum"].tolist() == wanted["state"]
        assert {name: _said(version, name) for name in version.vocabulary or ()} == wanted.get("vocabulary", {})


def _said(version: Version, name: str) -> dict[str, Any]:
    """What the vocabulary holds of a feature; bytes as Latin-1, JSON having none."""
    assert version.vocabulary is not None
    of = version.vocabulary[name]
    values = [value.decode("latin-1") if isinstance(value, bytes) else value for value in of.values.to_pylist()]
    status = version.status(name, of.tokens).tolist()
    said = {"kind": of.kind, "values": values, "count": of.count.tolist(), "kept": of.kept.tolist(), "status": status}
    later = {4: {"unseen": of.unseen}, 5: {"stand_in": of.stood_in.tolist()}}
    for number, more in later.items():
        if number <= version.manifest["format"]:
            said |= more
    return said


def test_there_is_one_for_each_format() -> None:
    from embstore.store.manifest import FORMAT

    assert [folder.name for folder in FORMATS] == [f"format-{number}" for number in range(1, FORMAT + 1)]
