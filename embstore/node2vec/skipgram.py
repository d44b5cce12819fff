"""Skip-gram with negative sampling over walks (Mikolov et al. 2013), by tiles of a window's contexts.

    walk     a b c d e f g          centre d, window drawn 1 .. window, say 2
    inputs   b c . e f              rows of ``vectors``: what is learnt
    outputs  d n1 n2 n3 n4 n5       rows of ``contexts``: the centre, and negatives that all inputs of the window share

Each window draws its negatives once for all its contexts (Ji et al. 2016) where word2vec draws them for each: fewer
rows to fetch, and products of small matrices instead of vectors (``embstore.node2vec.tiles``). Negatives are drawn by
visits^power; those that are the centre, or drawn twice, are left out. All that is drawn depends on (seed, epoch, walk):
one thread gives the same bits for any division into calls; several threads update the same rows without locks
(Hogwild), which is faster and never the same twice. Of a window that has a node twice, the second is moved after the
first, by an error that was computed before both.

Suffixes: N nodes, W walks, L nodes of a walk, D numbers of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, GraphError
from embstore.hashing import compiled, mulhi64_scalar, splitmix64_scalar
from embstore.node2vec.alias import alias_rows, drawn_by
from embstore.node2vec.tiles import LANES, OUTPUTS, STRIDE, errors, update
from embstore.node2vec.walks import check_walks
from embstore.threads import share

_CHUNK = 64  # walks claimed by a thread at once
_LOSS_EVERY = 32  # windows of which one is counted for the loss
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WALK = np.uint64(0xD1B54A32D192ED03)
_U11 = np.uint64(11)
_RANGES = [("learning_rate", 0, 1), ("last_learning_rate", 0, 1), ("power", -2, 2), ("subsample", 0, 1e9)]
_UNIT = 2.0**-53


@dataclass(frozen=True, kw_only=True)
class SkipGramSettings:
    """How to train.

    Args:
        dim: numbers of a vector.
        window: nodes to either side of a centre at most; each centre draws from 1 to this.
        negatives: drawn for each window.
        learning_rate, last_learning_rate: of the first and of the last walk, at most 1; linear between.
        epochs: times that each walk is trained on; each draws windows and negatives of its own.
        power: negatives are drawn by visits to this power, from -2 to 2; nodes without visits never are.
        subsample: a node whose share of the visits is above this is left out of walks at random, as in word2vec; 0 for
            none.
        seed: of all that is drawn.
    """

    dim: int = 128
    window: int = 10
    negatives: int = 5
    learning_rate: float = 0.025
    last_learning_rate: float = 0.0001
    epochs: int = 1
    power: float = 0.75
    subsample: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "window", "negatives", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"skip_gram.{name}", expected="1 or more", found=str(getattr(self, name)))
        for name, least, most in _RANGES:
            if not least <= getattr(self, name) <= most:
                expected = f"a number from {least:g} to {most:g}"
                raise ConfigError(f"skip_gram.{name}", expected=expected, found=str(getattr(self, name)))
        if not 0 <= self.seed < 2**63:
            raise ConfigError("skip_gram.seed", expected="0 to 2^63 - 1", found=str(self.seed))


class SkipGram:
    """Vectors of nodes, trained on walks that are given piece by piece.

    Args:
        visits_N: how often all walks come to each node, integers ``[N]``. A node that walks come to all the same is
            trained; it is no other's negative.
        num_walks: of an epoch.
        settings: how.
        vectors, contexts: float32 ``[N, dim]`` to start from; small random numbers and zeros when not given.

    Raises:
        GraphError: no visits.
        ConfigError: vectors of another shape, or not finite.
    """

    def __init__(
        self,
        visits_N: NDArray[np.int64],
        num_walks: int,
        settings: SkipGramSettings,
        *,
        vectors: NDArray[np.float32] | None = None,
        contexts: NDArray[np.float32] | None = None,
    ) -> None:
        visits_N = np.asarray(visits_N)
        if visits_N.ndim != 1 or visits_N.dtype.kind not in "iu":
            found = f"{visits_N.dtype} {list(visits_N.shape)}"
            raise GraphError("visits", expected="integers, one for each node", found=found)
        if not visits_N.any() or visits_N.min() < 0:
            found = f"{visits_N.min():,}" if visits_N.any() else "none"
            raise GraphError("walks to train on", expected="visits of at least one node", found=found)
        if num_walks < 1:
            raise ConfigError("walks of an epoch", expected="1 or more", found=str(num_walks))
        self.settings, self.num_walks = settings, num_walks
        count, width = len(visits_N), -(-settings.dim // LANES) * LANES
        self._vectors = np.zeros((count, width), dtype=np.float32)
        self._contexts = np.zeros((count, width), dtype=np.float32)
        if vectors is None:
            draw_vectors(self.vectors, settings.seed)
        else:
            self._vectors[:, : settings.dim] = self._given(vectors, "vectors")
        if contexts is not None:
            self._contexts[:, : settings.dim] = self._given(contexts, "contexts")
        share_N = visits_N / visits_N.sum()
        self._kept = np.empty(0, dtype=np.float32)
        if settings.subsample > 0:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = settings.subsample / share_N
                self._kept = np.where(share_N > 0, np.minimum(np.sqrt(ratio) + ratio, 1), 1).astype(np.float32)
        with np.errstate(divide="ignore"):
            weight_N = np.where(visits_N > 0, visits_N.astype(np.float64) ** settings.power, 0)
        self._keep, self._other = alias_rows(np.array([0, count]), weight_N)

    def _given(self, vectors: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        shape = (len(self._vectors), self.settings.dim)
        vectors = np.asarray(vectors)
        if vectors.shape != shape or vectors.dtype.kind != "f":
            found = f"{vectors.dtype} {list(vectors.shape)}"
            raise ConfigError(f"{name} to start from", expected=f"float32 {list(shape)}", found=found)
        if not np.isfinite(vectors).all():
            raise ConfigError(f"{name} to start from", expected="finite numbers", found="others")
        return vectors

    @property
    def vectors(self) -> NDArray[np.float32]:
        """What was learnt, float32 ``[N, dim]``."""
        return self._vectors[:, : self.settings.dim]

    @property
    def contexts(self) -> NDArray[np.float32]:
        """The vectors of nodes as centres, float32 ``[N, dim]``."""
        return self._contexts[:, : self.settings.dim]

    def train(self, walks_WL: NDArray[np.int32], first: int, *, epoch: int = 0, threads: int = 1) -> float:
        """Train on walks ``first``, ``first + 1``, ... of an epoch.

        Args:
            walks_WL: int32 ``[W, L]``, nodes; after a walk's end -1.
            first: the number of the first.
            epoch: from 0.
            threads: more than one are faster, and never the same twice.

        Returns:
            The mean loss of a context, of one window in some; NaN when there was none.

        Raises:
            GraphError: walks of another type, or of nodes that there aren't.
            ConfigError: walks or an epoch beyond those of the settings, or vectors that have left float32's range
                (of the last walk's nodes; ``check`` looks at all).
        """
        how = self.settings
        check_walks(walks_WL, len(self._vectors))
        if not (0 <= first <= first + len(walks_WL) <= self.num_walks and 0 <= epoch < how.epochs):
            raise ConfigError(
                "walks to train on",
                expected=f"numbers from 0 to {self.num_walks:,}, epochs below {how.epochs:,}",
                found=f"{first:,} to {first + len(walks_WL):,} of epoch {epoch}",
            )
        rate = float(how.learning_rate)
        slope = (how.last_learning_rate - rate) / (self.num_walks * how.epochs)
        done = epoch * self.num_walks
        firsts = iter(range(0, len(walks_WL), _CHUNK))
        losses: list[NDArray[np.float64]] = []
        seed = np.uint64((how.seed + epoch * 0x9E3779B97F4A7C15) % 2**64)
        _, width = self._vectors.shape

        def work() -> None:
            loss = np.zeros(2)
            nobody = np.zeros(width, np.float32)  # where there is no row; made here as it must outlive the native code
            for start in firsts:
                walks = np.array(walks_WL[start : start + _CHUNK], order="C")  # of one kind, for compiled code
                _train(
                    *(walks, first + start, done, rate, slope, self._vectors, self._contexts, nobody),
                    *(self._kept, self._keep, self._other, how.window, how.negatives, seed, loss),
                )
            losses.append(loss)

        share(work, min(threads, -(-len(walks_WL) // _CHUNK)))
        if len(walks_WL):
            last = walks_WL[-1]
            self._check_rows(last[last >= 0])
        lost, counted = np.sum(losses, axis=0)
        return float(lost / counted) if counted else float("nan")

    def check(self) -> None:
        """Look whether all is finite.

        Raises:
            ConfigError: vectors have left float32's range.
        """
        for start in range(0, len(self._vectors), 65536):
            self._check_rows(slice(start, start + 65536))

    def _check_rows(self, rows: Any) -> None:
        check_finite(self.settings, self._vectors[rows], self._contexts[rows])


def draw_vectors(out_ND: NDArray[np.float32], seed: int) -> None:
    """What training begins with where nothing is given, of the seed: from -0.5 / D to 0.5 / D, all alike likely."""
    generator = np.random.Generator(np.random.Philox(key=[seed, 2**32]))
    dim = out_ND.shape[1]
    for start in range(0, len(out_ND), 65536):
        part = out_ND[start : start + 65536]
        part[:] = generator.random(part.shape, dtype=np.float32) / np.float32(dim) - np.float32(0.5 / dim)


def check_finite(how: SkipGramSettings, *arrays: NDArray[np.float32]) -> None:
    """Refuse what was learnt at too great a rate.

    Raises:
        ConfigError: arrays that have left float32's range.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise ConfigError(
            "skip_gram.learning_rate",
            expected=f"vectors that stay finite at {how.learning_rate}",
            found="some that left float32's range",
            do="lower it, or start from smaller vectors",
        )


@compiled(nogil=True)
def _train(  # type: ignore[no-untyped-def]
    walks_WL,
    first,
    done,
    rate,
    slope,
    in_ND,
    out_ND,
    nobody,
    kept_N,
    keep_N,
    other_N,
    window,
    negatives,
    seed,
    loss,
):
    length, width = walks_WL.shape[1], in_ND.shape[1]
    bytes_of_row = np.uint64(4 * width)
    in_at, out_at = np.uint64(in_ND.ctypes.data), np.uint64(out_ND.ctypes.data)
    groups = (negatives + OUTPUTS) // OUTPUTS
    nowhere = np.uint64(nobody.ctypes.data)
    most = min(2 * window, length) + 2  # inputs, and one that makes them even
    xs, ys = np.empty(most, np.uint64), np.empty(groups * OUTPUTS, np.uint64)
    nodes = np.empty(length, np.int32)
    drawn = np.empty(negatives, np.int32)
    label, rates = np.zeros((2, LANES), np.float32), np.zeros((groups, LANES), np.float32)
    for lane in range(0, LANES, STRIDE):
        label[0, lane] = 1.0
    error = np.zeros((most, STRIDE), np.float32)
    count_N = np.uint64(len(keep_N))
    xs_at, error_at = np.uint64(xs.ctypes.data), np.uint64(error.ctypes.data)
    for w in range(len(walks_WL)):
        step = np.float32(rate + slope * (done + first + w))
        state = splitmix64_scalar(splitmix64_scalar(seed) + np.uint64(first + w) * _WALK)
        nodes_here = 0
        for place in range(length):
            node = walks_WL[w, place]
            if node < 0:
                break
            if len(kept_N) > 0 and kept_N[node] < 1.0:
                state += _GOLDEN
                if (splitmix64_scalar(state) >> _U11) * _UNIT >= kept_N[node]:
                    continue
            nodes[nodes_here] = node
            nodes_here += 1
        for place in range(nodes_here):
            state += _GOLDEN
            span = np.int64(mulhi64_scalar(splitmix64_scalar(state), np.uint64(window))) + 1
            inputs = 0
            begin, end = max(place - int(span), 0), min(place + int(span) + 1, nodes_here)
            for other in range(begin, end):
                if other != place:
                    xs[inputs] = in_at + np.uint64(nodes[other]) * bytes_of_row
                    inputs += 1
            if inputs == 0:
                continue
            if inputs & 1:
                xs[inputs] = nowhere
            centre = nodes[place]
            rates[:] = 0.0
            ys[:] = nowhere
            ys[0] = out_at + np.uint64(centre) * bytes_of_row
            for lane in range(0, LANES, STRIDE):
                rates[0, lane] = step
            found = 0
            for _ in range(negatives):
                state += _GOLDEN
                node = drawn_by(splitmix64_scalar(state), count_N, keep_N, other_N)
                new = node != centre
                for before in range(found):
                    new = new and drawn[before] != node
                if new:
                    drawn[found] = node
                    found += 1
                    output = found % OUTPUTS
                    ys[found] = out_at + np.uint64(node) * bytes_of_row
                    for lane in range(0, LANES, STRIDE):
                        rates[found // OUTPUTS, lane + output] = step
            state += _GOLDEN
            counted = splitmix64_scalar(state) % np.uint64(_LOSS_EVERY) == 0
            for group in range(groups):
                ys_at = np.uint64(ys.ctypes.data) + np.uint64(8 * OUTPUTS * group)
                label_at = np.uint64(label.ctypes.data) + np.uint64(4 * LANES * (group > 0))
                rate_at = np.uint64(rates.ctypes.data) + np.uint64(4 * LANES * group)
                errors(xs_at, ys_at, inputs, width, label_at, rate_at, error_at)
                if counted and step > 0.0:
                    loss[0] += _loss(error, inputs, step, min(OUTPUTS, found + 1 - group * OUTPUTS))
                update(xs_at, ys_at, inputs, width, error_at)
            if counted and step > 0.0:
                loss[1] += inputs


@compiled()
def _loss(error, inputs, step, outputs):  # type: ignore[no-untyped-def]
    """Of a tile: how far each sigmoid is from its label says what it costs."""
    total = 0.0
    for b in range(inputs):
        for o in range(outputs):
            total -= np.log(max(1.0 - abs(error[b, o]) / step, 1e-12))
    return total
