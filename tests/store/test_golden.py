"""Stores as each format's writer left them: every later reader must read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from embstore.store import Store

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


def test_there_is_one_for_each_format() -> None:
    from embstore.store.manifest import FORMAT

    assert [folder.name for folder in FORMATS] == [f"format-{number}" for number in range(1, FORMAT + 1)]
