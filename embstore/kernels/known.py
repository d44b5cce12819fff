"""Sets of tokens, to look many up at once: the known ones of exact features, those that a vocabulary prunes.

Suffixes: F features, K places of the index, N tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.hashing import compiled, splitmix64_scalar

_AHEAD = 64  # tokens whose places are read at once


class KnownIndex(NamedTuple):
    """Where each exact feature's known tokens rank: an open-addressed hash table a feature, one after the other.

    Args:
        token_K: int64, the token at each place.
        rank_K: int64, its rank; -1 where the place is empty.
        start_F, mask_F: int64, each feature's places are ``start + (hash & mask)``, on from there until empty.
    """

    token_K: NDArray[np.int64]
    rank_K: NDArray[np.int64]
    start_F: NDArray[np.int64]
    mask_F: NDArray[np.int64]


def index_known(known_K: NDArray[np.int64], known_start_F: NDArray[np.int64]) -> KnownIndex:
    """The index of each exact feature's sorted tokens (``PlanArrays``)."""
    counts = np.diff(known_start_F)
    sizes = np.array([1 << int(2 * count).bit_length() if count else 1 for count in counts], dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    token, rank = np.zeros(int(sizes.sum()), dtype=np.int64), np.full(int(sizes.sum()), -1, dtype=np.int64)
    index = KnownIndex(token, rank, starts, sizes - 1)
    _fill(known_K, known_start_F, index)
    return index


@compiled(nogil=True)
def _fill(known_K, known_start_F, index):  # type: ignore[no-untyped-def]
    for f in range(len(known_start_F) - 1):
        for k in range(known_start_F[f], known_start_F[f + 1]):
            place = np.int64(splitmix64_scalar(np.uint64(known_K[k]))) & index.mask_F[f]
            while index.rank_K[index.start_F[f] + place] >= 0:
                place = (place + 1) & index.mask_F[f]
            index.token_K[index.start_F[f] + place] = known_K[k]
            index.rank_K[index.start_F[f] + place] = k - known_start_F[f]


@compiled(nogil=True)
def rank_tokens(token_N, index, feature, unknown, base, row_N):  # type: ignore[no-untyped-def]
    """``base`` plus each token's rank among a feature's known ones, or ``unknown``; into ``row_N``. For kernels."""
    token_K, rank_K = index.token_K, index.rank_K
    start, mask = index.start_F[feature], index.mask_F[feature]
    for n in range(len(token_N)):
        place = np.int64(splitmix64_scalar(np.uint64(token_N[n]))) & mask
        while rank_K[start + place] >= 0 and token_K[start + place] != token_N[n]:
            place = (place + 1) & mask
        rank = rank_K[start + place]
        row_N[n] = base + (rank if rank >= 0 else unknown)


@compiled(nogil=True)
def fill_any_status(token_N, missing, pruned, status_N):  # type: ignore[no-untyped-def]
    """As ``fill_status``, where every value is known."""
    for n in range(len(token_N)):
        status_N[n] = 1 if token_N[n] == missing else (2 if token_N[n] == pruned else 0)


@compiled(nogil=True)
def fill_status(token_N, index, kept, missing, pruned, status_N):  # type: ignore[no-untyped-def]
    """What each token is, into ``status_N``; the codes are ``embstore.vocabulary.ValueStatus``.

    ``index`` is of one feature, whose first ``kept`` tokens are kept and the others dropped. ``missing`` and ``pruned``
    are what those two tokens are, whatever the index holds.
    """
    token_K, rank_K = index.token_K, index.rank_K
    mask = index.mask_F[0]
    for n in range(len(token_N)):
        token = token_N[n]
        if token == missing:
            status_N[n] = 1
            continue
        if token == pruned:
            status_N[n] = 2
            continue
        place = np.int64(splitmix64_scalar(np.uint64(token))) & mask
        while rank_K[place] >= 0 and token_K[place] != token:
            place = (place + 1) & mask
        rank = rank_K[place]
        status_N[n] = 3 if rank < 0 else (0 if rank < kept else 2)


def token_places(tokens_K: NDArray[np.int64], into_K: NDArray[np.int64], empty: np.int64) -> NDArray[np.int64]:
    """A hash table, int64 ``[P, 2]``: tokens at their places, each with what it becomes; elsewhere ``empty``, which is
    none of them.
    """
    places_P2 = np.full((1 << int(2 * len(tokens_K)).bit_length(), 2), empty, np.int64)
    _place(tokens_K, into_K, empty, places_P2)
    return places_P2


@compiled(nogil=True)
def _place(tokens_K, into_K, empty, places_P2):  # type: ignore[no-untyped-def]
    mask = np.int64(len(places_P2) - 1)
    for k in range(len(tokens_K)):
        place = np.int64(splitmix64_scalar(np.uint64(tokens_K[k]))) & mask
        while places_P2[place, 0] != empty and places_P2[place, 0] != tokens_K[k]:
            place = (place + 1) & mask
        places_P2[place, 0], places_P2[place, 1] = tokens_K[k], into_K[k]


@compiled(nogil=True)
def prune(token_N, places_P2, others_too, missing, pruned):  # type: ignore[no-untyped-def]
    """Replace tokens in place: those in ``places_P2`` as it says, and with ``others_too`` all others by ``pruned``.

    ``missing``, which marks places without a token, stays as it is. Returns how many have changed.
    """
    mask, changed, size = np.int64(len(places_P2) - 1), 0, len(token_N)
    place_A, found_A = np.empty(_AHEAD, np.int64), np.empty(_AHEAD, np.int64)
    for start in range(0, size, _AHEAD):
        ahead = min(_AHEAD, size - start)
        for a in range(ahead):  # without a branch, so that the waits for memory overlap
            place_A[a] = np.int64(splitmix64_scalar(np.uint64(token_N[start + a]))) & mask
            found_A[a] = places_P2[place_A[a], 0]
        for a in range(ahead):
            token, place, found = token_N[start + a], place_A[a], found_A[a]
            while found not in (missing, token):
                place = (place + 1) & mask
                found = places_P2[place, 0]
            if token in (missing, pruned):
                continue
            into = places_P2[place, 1] if found == token else (pruned if others_too else token)
            if into != token:
                token_N[start + a] = into
                changed += 1
    return changed
