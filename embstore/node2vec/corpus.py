"""All walks of a graph as what skip-gram is trained on: made in pieces, and made again rather than kept.

    source ──walks(begin, end)──> visits of nodes ──> SkipGram
           ──walks(begin, end)──> SkipGram.train, each epoch

A source is a ``Walker``, the files that ``embstore.node2vec.walk_files`` wrote, or whatever has others make walks. It
is asked for all walks in order, once for the visits and once for each epoch: training on a walk of 80 nodes takes some
three times as long as making it, and kept it takes 320 bytes.

Suffixes: N nodes, W walks, L nodes of a walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError
from embstore.node2vec.skipgram import SkipGram
from embstore.node2vec.walks import check_walks, count_visits

CHUNK_BYTES = 64 << 20


class WalkSource(Protocol):
    """What has numbered walks."""

    @property
    def num_nodes(self) -> int: ...

    @property
    def num_walks(self) -> int: ...

    @property
    def length(self) -> int:
        """Nodes of a walk at most."""

    def walks(self, begin: int, end: int, *, threads: int = 1) -> NDArray[np.int32]:
        """Walks ``begin`` to ``end``, int32 ``[W, length]``, -1 after the end of one; the same at each call."""


class Corpus:
    """The walks of a source.

    Args:
        source: of walks.
        chunk_bytes: of those that are in memory at once.

    >>> from embstore.node2vec import Graph, SkipGram, SkipGramSettings, Walker, WalkSettings
    >>> ring = Graph.of_edges(np.arange(5), (np.arange(5) + 1) % 5)
    >>> corpus = Corpus(Walker(ring, WalkSettings(length=6, num_walks=2)))
    >>> int(corpus.visits().sum())
    60
    >>> skip_gram = SkipGram(corpus.visits(), corpus.num_walks, SkipGramSettings(dim=4))
    >>> corpus.train(skip_gram)
    >>> skip_gram.vectors.shape
    (5, 4)
    """

    def __init__(self, source: WalkSource, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        if chunk_bytes < 1:
            raise ConfigError("bytes of a chunk of walks", expected="1 or more", found=str(chunk_bytes))
        self.source = source
        self.chunk_walks = max(1, chunk_bytes // (4 * source.length))

    @property
    def num_nodes(self) -> int:
        return self.source.num_nodes

    @property
    def num_walks(self) -> int:
        return self.source.num_walks

    def chunks(self, threads: int = 1) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """All walks in order: the number of the first, and int32 ``[W, L]``."""
        for begin in range(0, self.num_walks, self.chunk_walks):
            yield begin, self.source.walks(begin, min(begin + self.chunk_walks, self.num_walks), threads=threads)

    def visits(self, *, threads: int = 1, progress: Callable[[int], object] | None = None) -> NDArray[np.int64]:
        """How often walks come to each node, int64 ``[N]``.

        Args:
            threads: that make walks.
            progress: called with the number of walks after each chunk.
        """
        visits_N = np.zeros(self.num_nodes, dtype=np.int64)
        for _, walks_WL in self.chunks(threads):
            check_walks(walks_WL, self.num_nodes)
            count_visits(walks_WL, visits_N)
            if progress is not None:
                progress(len(walks_WL))
        return visits_N

    def train(
        self,
        skip_gram: SkipGram,
        *,
        threads: int = 1,
        progress: Callable[[int], object] | None = None,
        on_loss: Callable[[int, float], object] | None = None,
    ) -> None:
        """Train on all walks, each epoch.

        Args:
            skip_gram: of as many nodes and walks.
            threads: that make walks, then train on them; one gives the same bits again, for any ``chunk_bytes``.
            progress: called with the number of walks after each chunk.
            on_loss: called with the number of walks done in all, and their mean loss since the last call.

        Raises:
            ConfigError: a skip-gram of other walks, or whose learning rate is too great (``SkipGram.train``).
        """
        mine, its = (self.num_nodes, self.num_walks), (len(skip_gram.vectors), skip_gram.num_walks)
        if mine != its:
            expected, found = (f"{nodes:,} nodes, {walks:,} walks" for nodes, walks in (mine, its))
            raise ConfigError("a skip-gram of these walks", expected=expected, found=found)
        done = 0
        for epoch in range(skip_gram.settings.epochs):
            for begin, walks_WL in self.chunks(threads):
                loss = skip_gram.train(walks_WL, begin, epoch=epoch, threads=threads)
                done += len(walks_WL)
                if progress is not None:
                    progress(len(walks_WL))
                if on_loss is not None:
                    on_loss(done, loss)
        skip_gram.check()
