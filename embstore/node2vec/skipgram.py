"""Skip-gram with negative sampling over walks (Mikolov et al. 2013), by tiles of a window's contexts.

    walk     a b c d e f g          centre d, window drawn 1 .. window, say 2
    inputs   b c . e f              rows of ``vectors``: what is learnt
    outputs  d n1 n2 n3 n4 n5       rows of ``contexts``: the centre, and negatives that all inputs of the window share

Each window draws its negatives once for all its contexts (Ji et al. 2016) where word2vec draws them for each: fewer
rows to fetch, and products of small matrices instead of vectors (``embstore.node2vec.tiles``). Negatives are drawn by
visits^power; those that are the centre, or drawn twice, are left out. All that is drawn depends on (seed, epoch, walk):
one thread gives the same bits for any division into calls; several threads update the same rows without locks
(Hogwild), which is faster and never the same twice.

Suffixes: N nodes, W walks, L nodes of a walk, D numbers of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, GraphError
from embstore.hashing import compiled, mulhi64_scalar, splitmix64_scalar
from embstore.node2vec.tiles import LANES, OUTPUTS, STRIDE, errors, update
from embstore.threads import share

_CHUNK = 64  # walks claimed by a thread at once
_LOSS_EVERY = 32  # windows of which one is counted for the loss
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WALK = np.uint64(0xD1B54A32D192ED03)
_LOW24 = np.uint64(0xFFFFFF)
_U11 = np.uint64(11)
_UNIT, _UNIT24 = 2.0**-53, np.float32(2.0**-24)


@dataclass(frozen=True, kw_only=True)
class SkipGramSettings:
    """How to train.

    Args:
        dim: numbers of a vector.
        window: nodes to either side of a centre at most; each centre draws from 1 to this.
        negatives: drawn for each window.
        learning_rate, last_learning_rate: of the first and of the last walk; linear between.
        epochs: times that each walk is trained on; each draws walks of its own.
        power: negatives are drawn by visits to this power.
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
        for name in ("learning_rate", "last_learning_rate", "subsample"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"skip_gram.{name}", expected="0 or more", found=str(getattr(self, name)))
        if not 0 <= self.seed < 2**63:
            raise ConfigError("skip_gram.seed", expected="0 to 2^63 - 1", found=str(self.seed))


class SkipGram:
    """Vectors of nodes, trained on walks that are given piece by piece.

    Args:
        visits_N: how often all walks come to each node, int64 ``[N]``.
        num_walks: of an epoch.
        settings: how.
        vectors, contexts: float32 ``[N, dim]`` to start from; small random numbers and zeros when not given.
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
        if not visits_N.sum():
            raise GraphError("walks to train on", expected="visits of at least one node", found="none")
        self.settings, self.num_walks = settings, num_walks
        count, width = len(visits_N), -(-settings.dim // LANES) * LANES
        self._vectors = np.zeros((count, width), dtype=np.float32)
        self._contexts = np.zeros((count, width), dtype=np.float32)
        if vectors is None:
            generator = np.random.Generator(np.random.Philox(key=[settings.seed, 2**32]))
            half = np.float32(0.5 / settings.dim)
            for start in range(0, count, 65536):
                part = self._vectors[start : start + 65536, : settings.dim]
                part[:] = generator.random(part.shape, dtype=np.float32) / np.float32(settings.dim) - half
        else:
            self._vectors[:, : settings.dim] = vectors
        if contexts is not None:
            self._contexts[:, : settings.dim] = contexts
        share_N = visits_N / visits_N.sum()
        self._kept = np.empty(0, dtype=np.float32)
        if settings.subsample > 0:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = settings.subsample / share_N
                self._kept = np.where(share_N > 0, np.minimum(np.sqrt(ratio) + ratio, 1), 1).astype(np.float32)
        self._keep, self._other = alias(visits_N.astype(np.float64) ** settings.power)

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

        Returns:
            The mean loss of a window's contexts, of one window in some; NaN when there was none.
        """
        how = self.settings
        total = self.num_walks * how.epochs
        done = epoch * self.num_walks + first
        slope = (how.last_learning_rate - how.learning_rate) / total
        firsts = iter(range(0, len(walks_WL), _CHUNK))
        losses: list[NDArray[np.float64]] = []
        seed = np.uint64((how.seed + epoch * 0x9E3779B97F4A7C15) % 2**64)

        def work() -> None:
            loss = np.zeros(2)
            for start in firsts:
                _train(
                    *(walks_WL[start : start + _CHUNK], first + start, how.learning_rate + slope * (done + start)),
                    *(slope, self._vectors, self._contexts, self._kept, self._keep, self._other),
                    *(how.window, how.negatives, seed, loss),
                )
            losses.append(loss)

        share(work, min(threads, -(-len(walks_WL) // _CHUNK)))
        lost, counted = np.sum(losses, axis=0)
        return float(lost / counted) if counted else float("nan")


def alias(weight_N: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vose's alias table: how likely each number keeps a draw, and who has it otherwise."""
    keep_N, other_N = np.ones(len(weight_N), dtype=np.float32), np.arange(len(weight_N), dtype=np.int32)
    _fill_alias(weight_N * (len(weight_N) / weight_N.sum()), keep_N, other_N)
    return keep_N, other_N


@compiled(nogil=True)
def _fill_alias(scaled, keep, other):  # type: ignore[no-untyped-def]
    small, large = np.empty(len(scaled), np.int32), np.empty(len(scaled), np.int32)
    smalls = larges = 0
    for n in range(len(scaled)):
        if scaled[n] < 1.0:
            small[smalls] = n
            smalls += 1
        else:
            large[larges] = n
            larges += 1
    while smalls > 0 and larges > 0:
        smalls -= 1
        low, high = small[smalls], large[larges - 1]
        keep[low], other[low] = scaled[low], high
        scaled[high] -= 1.0 - scaled[low]
        if scaled[high] < 1.0:
            larges -= 1
            small[smalls] = high
            smalls += 1


@compiled(nogil=True)
def _train(walks_WL, first, rate, slope, in_ND, out_ND, kept_N, keep_N, other_N, window, negatives, seed, loss):  # type: ignore[no-untyped-def]
    length, width = walks_WL.shape[1], in_ND.shape[1]
    bytes_of_row = np.uint64(4 * width)
    in_at, out_at = np.uint64(in_ND.ctypes.data), np.uint64(out_ND.ctypes.data)
    groups = (negatives + OUTPUTS) // OUTPUTS
    nobody = np.zeros(width, np.float32)  # where there is no row
    nowhere = np.uint64(nobody.ctypes.data)
    xs, ys = np.empty(2 * window + 2, np.uint64), np.empty(groups * OUTPUTS, np.uint64)
    nodes = np.empty(length, np.int32)
    drawn = np.empty(negatives, np.int32)
    label, rates = np.zeros((2, LANES), np.float32), np.zeros((groups, LANES), np.float32)
    for lane in range(0, LANES, STRIDE):
        label[0, lane] = 1.0
    error = np.zeros((2 * window + 2, STRIDE), np.float32)
    count_N = np.uint64(len(keep_N))
    xs_at, error_at = np.uint64(xs.ctypes.data), np.uint64(error.ctypes.data)
    for w in range(len(walks_WL)):
        step = np.float32(rate + slope * w)
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
                bits = splitmix64_scalar(state)
                node = np.int32(mulhi64_scalar(bits, count_N))
                if np.float32(bits & _LOW24) * _UNIT24 >= keep_N[node]:
                    node = other_N[node]
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
