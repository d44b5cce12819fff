"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import embstore

MODULES = [module.name for module in pkgutil.walk_packages(embstore.__path__, "embstore.")]


def test_examples() -> None:
    tried = 0
    for name in MODULES:
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        tried += result.attempted
    assert tried > 5
