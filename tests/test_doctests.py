"""The examples in docstrings and in the README are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import embstore

MODULES = [module.name for module in pkgutil.walk_packages(embstore.__path__, "embstore.")]


def test_examples() -> None:
    tried = 0
    for name in MODULES:
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        tried += result.attempted
    assert tried > 5


def examples(page: str) -> list[str]:
    """The Python of a page of the project, block by block."""
    text = (Path(__file__).parent.parent / page).read_text()
    return re.findall("^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_readme() -> None:
    (example,) = examples("README.md")
    names: dict[str, Any] = {}
    exec(example, names)
    table, tokens = names["table"], names["tokens"]
    assert table(tokens)[:, table.slices["user"]].tolist() == table.lookup("user", ["ann", "bob"]).tolist()


def test_store_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    given = r"^([^=\n]+)  # (float32 \[.*?\]|\d+|\{.*\})"  # an expression, and what its comment says it gives
    checked = 0
    for block in examples("docs/store.md"):
        for statement in re.split(r"\n(?=\S)", block):
            exec(statement, names)
            if said := re.match(given, statement):
                found = eval(said[1], names)
                is_tensor = isinstance(found, torch.Tensor)
                assert said[2] == (f"float32 {list(found.shape)}" if is_tensor else str(found))
                checked += 1
    assert checked == 5
    store, table, second = names["store"], names["table"], names["second"]
    assert torch.equal(names["cache"]["rows"], table.read_rows(0, table.num_rows))
    assert store.aliases() == {"latest": names["third"].id, "production": names["third"].id, "previous": second.id}
    assert store.tags() == {"spring": second.id}
    assert store.open().changes().index_R.tolist() == second.changes().index_R.tolist()
    assert store.lookup("production", "user", ["ann"]).tolist() == table.lookup("user", ["ann"]).tolist()
