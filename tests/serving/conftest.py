"""A store with a version in production, and its reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import serving
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


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reader, str]]:
    """A version that a module's tests only read, and ``127.0.0.1:PORT`` of its server."""
    of = Store(tmp_path_factory.mktemp("shared") / "shop")
    of.promote(of.publish(bundle()).id)
    with serving(of) as (server, address):
        yield server.versions.get(), address


@pytest.fixture(scope="module")
def http(shared: tuple[Reader, str]) -> str:
    """That address."""
    return shared[1]
