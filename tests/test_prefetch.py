"""Running an iterator ahead in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from embstore.prefetch import Prefetch


def test_order_and_end() -> None:
    with Prefetch(iter(range(100)), depth=3) as items:
        assert list(items) == list(range(100))


def test_an_error_is_raised_where_its_item_would_be() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("third")

    items = Prefetch(source(), depth=5)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)
    items.close()


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_items_are_made_than_there_is_room_for(depth: int) -> None:
    made = 0

    def source() -> Iterator[int]:
        nonlocal made
        for number in range(100):
            made += 1
            yield number

    items = Prefetch(source(), depth=depth)
    for taken in range(1, 20):
        next(items)
        time.sleep(0.002)
        assert made <= taken + depth
    items.close()


def test_closing_early_stops_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    items = Prefetch(source(), depth=2, name="ahead")
    next(items)
    items.close()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_closing_releases_a_consumer_that_waits() -> None:
    """close() between a consumer's look at the flag and its wait: the producer stops without an item to give."""
    made = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        made.wait(5)
        yield 2

    items = Prefetch(source(), depth=1)
    next(items)
    ended: list[object] = []
    consumer = threading.Thread(target=lambda: ended.append(list(items)))
    consumer.start()
    time.sleep(0.05)
    items._stopped = True  # as close() sets it, while the consumer is already waiting
    made.set()
    items._room.release()
    consumer.join(5)
    assert not consumer.is_alive()
