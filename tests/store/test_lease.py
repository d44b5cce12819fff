"""What a lease says of itself when the log can't be written."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import buckets
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore
from publisher import small_bundle

from embstore.errors import StoreError
from embstore.store import Store


class Clock:
    now = datetime(2026, 11, 24, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Store:
    store = Store(MemoryStore(), cache=tmp_path, clock=clock)
    store.publish(small_bundle())
    return store


def _fail(name: str, path: str, run: Callable[[], Any]) -> Any:
    if name == "put":
        raise GenericError("no more")
    return run()


def test_a_lease_ends_when_the_log_says_so(store: Store, clock: Clock) -> None:
    lent = store.lease("latest", seconds=60)
    assert lent.until == "2026-11-24T00:01:00Z"
    clock.now += timedelta(seconds=30)
    with buckets.intercepted(_fail), pytest.raises(StoreError, match="no more"):
        lent.renew()
    assert lent.until == "2026-11-24T00:01:00Z"
    lent.renew()
    assert lent.until == "2026-11-24T00:01:30Z"
    clock.now -= timedelta(seconds=20)
    lent.renew()
    assert lent.until == "2026-11-24T00:01:30Z", "a clock set back makes it no shorter"


def test_the_block_s_error_is_not_hidden_by_the_release_s(store: Store) -> None:
    lent = store.lease("latest", seconds=60)
    with pytest.raises(ValueError, match="the block's") as raised, buckets.intercepted(_fail), lent:
        raise ValueError("the block's")
    (note,) = raised.value.__notes__
    assert f"{lent.until}) was not released: " in note
    assert "no more" in note


def test_a_release_that_fails_is_an_error(store: Store) -> None:
    lent = store.lease("latest", seconds=60)
    with pytest.raises(StoreError, match="no more"), buckets.intercepted(_fail), lent:
        pass
