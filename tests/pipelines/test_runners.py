"""Tasks of a cluster that nobody waits for any more are cancelled: told by a Ray that only notes what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from embstore.errors import LogError
from embstore.pipelines.runners import OnRay


class _Reference:
    """To a result of a task that is done when it is asked for."""

    def __init__(self, call: Callable[[], Any], place: int | None = None) -> None:
        self.call, self.place = call, place

    def value(self) -> Any:
        found = self.call()
        return found if self.place is None else found[self.place]


class _Noting:
    """As much of Ray as a runner takes."""

    ObjectRef = _Reference
    exceptions = SimpleNamespace(RayTaskError=type("RayTaskError", (Exception,), {}), RayError=LookupError)

    def __init__(self) -> None:
        self.begun: list[_Reference] = []
        self.cancelled: list[_Reference] = []

    def remote(self, **_: Any) -> Callable[..., Any]:
        return lambda function: _Task(self, function)

    def get(self, reference: _Reference) -> Any:
        return reference.value()

    def cancel(self, reference: _Reference, *, force: bool) -> None:
        self.cancelled.append(reference)


class _Task:
    def __init__(self, ray: _Noting, function: Callable[..., Any], returns: int = 1) -> None:
        self.ray, self.function, self.returns = ray, function, returns

    def options(self, *, num_returns: int) -> _Task:
        return _Task(self.ray, self.function, num_returns)

    def remote(self, *arguments: Any) -> Any:
        def call() -> Any:
            return self.function(*(of.value() if isinstance(of, _Reference) else of for of in arguments))

        made = [_Reference(call, None if self.returns == 1 else place) for place in range(self.returns)]
        self.ray.begun.append(made[-1])  # what is left of a task when its parts were handed on
        return made[0] if self.returns == 1 else made


def _split(shared: int, number: int) -> list[int]:
    return [number + shared, number - shared]


def _sum(shared: int, number: int, *parts: int) -> int:
    if shared < 0:
        raise LogError("a log", expected="rows", found="none")
    return sum(parts)


def test_an_exchange_that_is_whole_cancels_nothing() -> None:
    ray, told = _Noting(), list[int]()
    by = OnRay(ray, 2)
    handles = by.exchange(_split, 10, [(1,), (2,), (3,)], 2, _sum, (), told.append)
    assert list(by.take(handles)) == [36, -24]
    assert told == [0, 1, 2]
    assert not ray.cancelled


@pytest.mark.parametrize("error", [KeyboardInterrupt, LogError])
def test_an_exchange_that_is_stopped_cancels_its_tasks_and_those_it_waits_for(error: type[BaseException]) -> None:
    ray = _Noting()
    by = OnRay(ray, 2)
    before = by.exchange(_split, 10, [(1,), (2,)], 2, _sum, (), lambda place: None)
    begun = len(ray.begun)

    def stop(place: int) -> None:
        raise error("stop")

    with pytest.raises(error):
        by.exchange(_split, 10, [(handle,) for handle in before], 2, _sum, (), stop)
    assert ray.cancelled == [*before, *ray.begun[begun:]]
    assert len(ray.begun[begun:]) == 2


def test_what_is_not_taken_is_cancelled() -> None:
    ray = _Noting()
    by = OnRay(ray, 2)
    handles = by.exchange(_split, -1, [(1,), (2,)], 2, _sum, (), lambda place: None)
    with pytest.raises(LogError):
        list(by.take(handles))
    assert ray.cancelled == handles[1:]
