"""The examples in docstrings and in the README are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import embstore

MODULES = [module.name for module in pkgutil.walk_packages(embstore.__path__, "embstore.")]


def test_examples() -> None:
    tried = 0
    for name in MODULES:
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        tried += result.attempted
    assert tried > 5


def test_readme() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (example,) = re.findall("^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(example, names)
    table, tokens = names["table"], names["tokens"]
    assert table(tokens)[:, table.slices["user"]].tolist() == table.lookup("user", ["ann", "bob"]).tolist()
