"""A store with a version in production, and its reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from shop import bundle

from embstore.models import build
from embstore.serving.reader import Reader
from embstore.store import Store, Version


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With a version that is ``production``."""
    of = Store(tmp_path / "shop")
    of.promote(of.publish(bundle()).id)
    return of


@pytest.fixture
def version(store: Store) -> Version:
    """That version."""
    return store.open("production")


@pytest.fixture
def reader(version: Version) -> Reader:
    """Of that version, loaded."""
    of = Reader(version, build)
    of.load()
    return of
