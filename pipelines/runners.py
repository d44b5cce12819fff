"""Who does the pieces of a job: this process, one after the other, or tasks of a Ray cluster.

    driver ── keep(graph) ──> object store, once a node ──┐ read where it lies
           ── map(function, shared, pieces) ──> task 0, 1, 2, ... of at most so many at once
           <── results in the order of the pieces ────────┘

A piece is done by a pure function of it and of what is shared, so who does it, and how often, decides nothing. A task
whose worker dies is done again by Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Protocol

from embstore.errors import EmbstoreError, GroupError

from .cluster import cluster

_AHEAD = 2  # pieces of each worker that are under way or wait to be taken
_RETRIES = 20  # of a task whose worker died


class Runner(Protocol):
    """Does pieces of a job."""

    workers: int

    def keep(self, value: Any) -> Any:
        """What ``map`` takes as shared: a large value, handed over once."""

    def map(self, function: Callable[..., Any], shared: Any, pieces: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """``function(shared, *piece)`` of each piece, in order; no more than a few are done ahead of who takes them."""

    def lists(
        self, function: Callable[..., Any], shared: Any, pieces: Iterable[tuple[tuple[Any, ...], int]]
    ) -> Iterator[list[Any]]:
        """As ``map``, of a function that gives lists, which stay where they are made: handles of what is in them.

        Args:
            pieces: each with how long its list is.
        """

    def exchange(
        self,
        function: Callable[..., Any],
        shared: Any,
        pieces: Sequence[tuple[Any, ...]],
        count: int,
        combine: Callable[..., Any],
        arguments: tuple[Any, ...],
        done: Callable[[int], object],
    ) -> list[Any]:
        """Handles of what is made of parts of all pieces.

        Args:
            function: ``function(shared, *piece)`` gives ``count`` parts; a piece may hold handles.
            combine: ``combine(shared, number, *arguments, *parts)`` of the parts of that number, one of each piece.
            done: called with the place of each piece whose parts are made.
        """

    def take(self, handles: Sequence[Any]) -> Iterator[Any]:
        """What handles stand for, in order."""


class Serial:
    """Pieces are done here: the next one by a thread, while who takes them is at work on the one before."""

    workers = 1

    def keep(self, value: Any) -> Any:
        """As it is."""
        return value

    def map(self, function: Callable[..., Any], shared: Any, pieces: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """One after the other, one ahead."""
        with ThreadPoolExecutor(1, thread_name_prefix="embstore-ahead") as thread:
            ahead: Future[Any] | None = None
            for piece in pieces:
                done, ahead = ahead, thread.submit(function, shared, *piece)
                if done is not None:
                    yield done.result()
            if ahead is not None:
                yield ahead.result()

    def lists(
        self, function: Callable[..., Any], shared: Any, pieces: Iterable[tuple[tuple[Any, ...], int]]
    ) -> Iterator[list[Any]]:
        """The lists themselves."""
        return self.map(function, shared, (piece for piece, _ in pieces))

    def exchange(
        self,
        function: Callable[..., Any],
        shared: Any,
        pieces: Sequence[tuple[Any, ...]],
        count: int,
        combine: Callable[..., Any],
        arguments: tuple[Any, ...],
        done: Callable[[int], object],
    ) -> list[Any]:
        """One after the other."""
        parts: list[list[Any]] = [[] for _ in range(count)]
        for place, piece in enumerate(pieces):
            for number, part in enumerate(function(shared, *piece)):
                parts[number].append(part)
            done(place)
        return [combine(shared, number, *arguments, *of) for number, of in enumerate(parts)]

    def take(self, handles: Sequence[Any]) -> Iterator[Any]:
        """As they are."""
        return iter(handles)


class OnRay:
    """Pieces are tasks of a cluster, each of one core.

    Args:
        ray: the package, connected.
        workers: tasks at once.
    """

    def __init__(self, ray: Any, workers: int) -> None:
        self._ray, self.workers = ray, workers
        self._tasks: dict[Callable[..., Any], Any] = {}

    def keep(self, value: Any) -> Any:
        """Into the object store."""
        return self._ray.put(value)

    def map(self, function: Callable[..., Any], shared: Any, pieces: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """As many tasks at once as there are workers, and as many results waiting; what they raise is raised here."""
        task = self._task(function)
        yield from map(self._taken, self._ahead(task.remote(shared, *piece) for piece in pieces))

    def lists(
        self, function: Callable[..., Any], shared: Any, pieces: Iterable[tuple[tuple[Any, ...], int]]
    ) -> Iterator[list[Any]]:
        """As many lists at once, and as many that wait."""
        task = self._task(_parted)
        asked = (task.options(num_returns=size + 1).remote(function, shared, *piece) for piece, size in pieces)
        for parts in self._ahead(asked):
            self._taken(parts.pop())
            yield parts

    def exchange(
        self,
        function: Callable[..., Any],
        shared: Any,
        pieces: Sequence[tuple[Any, ...]],
        count: int,
        combine: Callable[..., Any],
        arguments: tuple[Any, ...],
        done: Callable[[int], object],
    ) -> list[Any]:
        """Tasks hand parts to tasks; all are asked for at once, and what memory doesn't hold Ray keeps on disk."""
        task = self._task(_parted).options(num_returns=count + 1)
        under_way = [of for piece in pieces for of in piece if isinstance(of, self._ray.ObjectRef)]
        try:
            by_piece = []
            for piece in pieces:
                by_piece.append(task.remote(function, shared, *piece))
                under_way.append(by_piece[-1][-1])
            for place, parts in enumerate(by_piece):
                self._taken(parts.pop())
                done(place)
            task, combined = self._task(combine), []
            for number, parts in enumerate(zip(*by_piece, strict=True)):
                combined.append(task.remote(shared, number, *arguments, *parts))
                under_way.append(combined[-1])
        except BaseException:
            self._cancel(under_way)
            raise
        return combined

    def take(self, handles: Sequence[Any]) -> Iterator[Any]:
        """Each when it is asked for."""
        remaining = deque(handles)
        try:
            while remaining:
                yield self._taken(remaining.popleft())
        finally:
            self._cancel(remaining)

    def _task(self, function: Callable[..., Any]) -> Any:
        if function not in self._tasks:
            self._tasks[function] = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
        return self._tasks[function]

    def _ahead(self, asked: Iterator[Any]) -> Iterator[Any]:
        """Of tasks that are asked for one by one, what they give, in order, while the next ones are under way."""
        under_way = deque[Any]()
        try:
            while True:
                under_way += islice(asked, _AHEAD * self.workers - len(under_way))
                if not under_way:
                    return
                yield under_way.popleft()
        finally:
            self._cancel(given[0] if isinstance(given, list) else given for given in under_way)

    def _cancel(self, references: Iterable[Any]) -> None:
        """Tasks that nobody waits for any more; of one that is done it means nothing."""
        for reference in references:
            with suppress(Exception):  # the cluster may be gone
                self._ray.cancel(reference, force=False)

    def _taken(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as failed:
            if isinstance(failed.cause, (EmbstoreError, OSError)):
                raise failed.cause from None
            raise
        except self._ray.exceptions.RayError as lost:
            raise GroupError(
                "workers of the Ray cluster are lost",
                expected=f"a task to be done after at most {_RETRIES} retries",
                found=str(lost).strip().split("\n")[0] or type(lost).__name__,
                do="the same command goes on from the last checkpoint",
            ) from lost


def _parted(function: Callable[..., Any], shared: Any, *piece: Any) -> list[Any]:
    """The parts, and what says whether there are any."""
    return [*function(shared, *piece), None]


@contextmanager
def runner(workers: int | None, address: str | None = None) -> Iterator[Runner]:
    """Serial without ``workers``; else a cluster's: that of ``address`` or one started here, see ``cluster``.

    Raises:
        GroupError: Ray isn't installed, the cluster can't be reached, or it is too small.
    """
    if workers is None:
        yield Serial()
        return
    if workers < 1:
        raise GroupError("workers", expected="1 or more", found=str(workers))
    try:
        import ray
    except ImportError as error:
        do = "pip install 'embstore[ray]', or leave --workers out"
        raise GroupError("Ray can't be loaded", expected="ray", found=str(error), do=do) from error
    with cluster(ray, address, cpus=workers, processes=workers, what="workers", error=GroupError):
        there = int(ray.cluster_resources().get("CPU", 0))
        if there < workers:
            do = "ask for fewer workers, or add nodes"
            raise GroupError("the Ray cluster is too small", expected=f"{workers} CPUs", found=str(there), do=do)
        yield OnRay(ray, workers)
