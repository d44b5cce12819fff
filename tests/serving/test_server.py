"""What both protocols ask of a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from shop import bundle

from embstore.serving.server import Server
from embstore.serving.settings import ServeSettings
from embstore.serving.versions import Versions
from embstore.serving.worker import server_of
from embstore.store import Store


def test_where_the_store_lies_is_not_told(store: Store) -> None:
    server = Server(name="shop", versions=Versions(store))
    assert server.told(f"table {store.root}/versions/v1; found none") == "table shop/versions/v1; found none"
    server.close()


@pytest.mark.parametrize("name", [".", "store"])
def test_nor_are_words_replaced_that_are_a_stores_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of = Store(name)
    of.promote(of.publish(bundle()).id)
    text = "the store can't be read. found 0.5"
    started = server_of(ServeSettings(store=name, name="shop"))
    for server in (Server(name="shop", versions=Versions(of)), started):
        assert server.told(text) == text
        server.close()
    assert started.told(f"log {(tmp_path / name).absolute()}/log") == "log shop/log"
