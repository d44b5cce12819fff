"""The nearest-neighbour indexes of a version: built once on a machine, mapped by each process that reads it.

    $EMBSTORE_CACHE/neighbors/<digest of the version>/<feature>-<metric>/    see ``search_files``

A version never changes, and its digest says which it is: what is there is never out of date. Of one feature a process
builds, and others that want it wait.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore.errors import CorruptVersionError, SchemaError, nearest
from embstore.serving.scores import Metric
from embstore.serving.search import Neighbors, values_of, vectors_of
from embstore.store.export import escaped
from embstore.store.files import make_folder, unwritable
from embstore.store.objects import caches
from embstore.store.version import Version
from embstore.tokens import tokenize

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Index:
    """The neighbours among a feature's values, and where a value is among them."""

    feature: str
    near: Neighbors

    @cached_property
    def _places(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        token_N = tokenize(self.near.values, name=self.feature).values
        order_N = np.argsort(token_N, kind="stable")
        return token_N[order_N], order_N

    def positions(self, token_Q: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The position of each token's value; -1 where it is none of the index."""
        sorted_N, order_N = self._places
        if not len(sorted_N):
            return np.full(len(token_Q), -1, dtype=np.int64)
        place_Q = np.minimum(np.searchsorted(sorted_N, token_Q), len(sorted_N) - 1)
        return np.where(sorted_N[place_Q] == token_Q, order_N[place_Q], -1)

    def search(
        self, vectors_QD: NDArray[np.float32], k: int, *, token_Q: NDArray[np.uint64] | None = None, exact: bool = False
    ) -> tuple[pa.Array, NDArray[np.float32]]:
        """``Neighbors.search``; a value, if tokens say which, is not its own neighbour."""
        positions_QK, scores_QK = self.nearest(vectors_QD, k, token_Q=token_Q, exact=exact)
        return self.near.values_at(positions_QK), scores_QK

    def nearest(
        self, vectors_QD: NDArray[np.float32], k: int, *, token_Q: NDArray[np.uint64] | None = None, exact: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As ``search``, with positions of values ``[Q, k]`` instead of values; -1 where there are fewer."""
        exclude_Q = None if token_Q is None else self.positions(token_Q)
        return self.near.positions(vectors_QD, k, exact=exact, exclude_Q=exclude_Q)


@dataclass(frozen=True, kw_only=True)
class Indexes:
    """Which features are searchable, and how.

    Args:
        features: names; ``"all"``: those in the version's vocabulary.
        metric: what makes a score.
        exact_below: with fewer distinct vectors every search is exact, and nothing is built.
        folder: where indexes are kept; ``None``: in embstore's cache.
    """

    features: Sequence[str] | str = ()
    metric: Metric = "cosine"
    exact_below: int = 10_000
    folder: Path | None = field(default=None)

    def of(self, version: Version) -> dict[str, Index]:
        """The indexes of a version, opened; those that are not there are built first.

        Raises:
            ConfigError: the version has no vocabulary of a feature.
            SchemaError: no such feature.
            StoreError: an index can't be written or read.
        """
        return {name: Index(name, self._opened(version, name)) for name in self._names(version)}

    def _names(self, version: Version) -> Sequence[str]:
        if isinstance(self.features, str):
            return list(version.vocabulary or ())
        known = [feature.name for feature in version.schema.features]
        for name in self.features:
            if name not in known:
                raise SchemaError(f"no feature {name!r} to search in version {version.id}", do=nearest(name, known))
        return self.features

    def _opened(self, version: Version, feature: str) -> Neighbors:
        root = self.folder or caches() / "neighbors"
        folder = root / version.digest / f"{escaped(feature)}-{self.metric}"
        try:
            return self._built_once(version, feature, folder)
        except OSError as error:
            raise unwritable(folder, error) from error

    def _built_once(self, version: Version, feature: str, folder: Path) -> Neighbors:
        with _alone(folder):
            if folder.exists():
                try:
                    return Neighbors.open(folder)
                except CorruptVersionError as error:  # what can be built again need not be kept
                    log.warning("index of %s is damaged, and built again: %s", feature, error)
                    folder.rename(folder.with_name(f"{folder.name}.damaged-{os.getpid()}"))
            started = perf_counter()
            values = values_of(version, feature)
            near = Neighbors.build(
                values, vectors_of(version, feature, values), metric=self.metric, exact_below=self.exact_below
            )
            log.info("built the index of %s: %d values in %.1f s", feature, len(near), perf_counter() - started)
            near.save(folder)
        return Neighbors.open(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """With no other process of this machine at the same folder."""
    make_folder(folder.parent)
    with open(folder.with_name(f"{folder.name}.lock"), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
