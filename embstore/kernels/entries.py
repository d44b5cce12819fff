"""Putting the entries of hash tables (``kernels.aggregate``) in order, and taking them out.

Of several tables, with entries at the addresses ``entry_T`` and longer texts at ``text_T``, an entry is named by a
code: its table in the upper bits, its number in the lower ``ENTRY_BITS``. The arrays behind the addresses stay the
caller's.

Suffixes as there: T tables, K entries in order.
"""

from __future__ import annotations

import numpy as np

from embstore.hashing import compiled, load64
from embstore.kernels.aggregate import CLICKS, COUNT, FIRST, HEAD, KEY, LAST, REST, SHORT, SIZE
from embstore.kernels.native import prefetch_row, store64

ENTRY_BITS = 40

_AHEAD = 16  # entries that are asked for before they are read
_LINE = 64
_LOW = (1 << ENTRY_BITS) - 1
_ZERO, _8, _16, _32, _64 = (np.uint64(n) for n in (0, 8, 16, 32, 64))
_LOW8, _LOW16 = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)


@compiled(forceinline=True)
def _address(entry_T, code):  # type: ignore[no-untyped-def]
    return entry_T[code >> ENTRY_BITS] + np.uint64(_LINE) * np.uint64(code & _LOW)


@compiled(forceinline=True)
def _of(entry, what):  # type: ignore[no-untyped-def]
    return np.int64(load64(entry + _8 * np.uint64(what)))


@compiled(forceinline=True)
def _reversed(word):  # type: ignore[no-untyped-def]
    """Its bytes the other way round: texts compare as such numbers do."""
    word = ((word >> _8) & _LOW8) | ((word & _LOW8) << _8)
    word = ((word >> _16) & _LOW16) | ((word & _LOW16) << _16)
    return (word >> _32) | (word << _32)


@compiled(forceinline=True)
def _word(entry, texts, at):  # type: ignore[no-untyped-def]
    """8 bytes of an entry's text from byte ``at`` on, zeros after its end, as a number to sort by."""
    size = _of(entry, SIZE)
    left = size - at
    if left <= 0:
        return _ZERO
    if size > SHORT:
        text = texts + np.uint64(_of(entry, REST))
        if left >= 8:
            return _reversed(load64(text + np.uint64(at)))
        return _reversed(load64(text + np.uint64(size - 8)) >> (_8 * np.uint64(8 - left)))
    head, rest = np.uint64(_of(entry, HEAD)), np.uint64(_of(entry, REST))
    if at == 0:
        return _reversed(head)
    if at >= 8:
        return _reversed(rest >> (_8 * np.uint64(at - 8)))
    return _reversed((head >> (_8 * np.uint64(at))) | (rest << (_64 - _8 * np.uint64(at))))


@compiled(nogil=True)
def common_beginning(entry_T, text_T, count_T):  # type: ignore[no-untyped-def]
    """How many bytes all texts begin with."""
    common = np.int64(-1)
    first, first_texts = _ZERO, _ZERO
    for t in range(len(count_T)):
        for e in range(count_T[t]):
            entry = entry_T[t] + np.uint64(_LINE) * np.uint64(e)
            if common < 0:
                common, first, first_texts = _of(entry, SIZE), entry, text_T[t]
            common = min(common, _of(entry, SIZE))
            at = np.int64(0)
            while at < common:
                differ = _word(entry, text_T[t], at) ^ _word(first, first_texts, at)
                if differ != _ZERO:
                    same = np.int64(0)
                    while differ >> np.uint64(56 - 8 * same) == _ZERO:
                        same += 1
                    common = min(common, at + same)
                at += 8
            if common == 0:
                return common
    return max(common, np.int64(0))


@compiled(nogil=True)
def text_keys(entry_T, text_T, count_T, skip, code_K, key_K):  # type: ignore[no-untyped-def]
    """Of all entries the codes, and of each the 8 bytes after the first ``skip``, as a number to sort by."""
    k = 0
    for t in range(len(count_T)):
        for e in range(count_T[t]):
            entry = entry_T[t] + np.uint64(_LINE) * np.uint64(e)
            code_K[k], key_K[k] = (t << ENTRY_BITS) | e, _word(entry, text_T[t], skip)
            k += 1


@compiled(nogil=True)
def number_keys(entry_T, count_T, code_K, key_K):  # type: ignore[no-untyped-def]
    """Of all entries the codes, and the numbers that they are."""
    k = 0
    for t in range(len(count_T)):
        for e in range(count_T[t]):
            code_K[k] = (t << ENTRY_BITS) | e
            key_K[k] = _of(entry_T[t] + np.uint64(_LINE) * np.uint64(e), KEY)
            k += 1


@compiled(forceinline=True)
def _less(entry_T, text_T, skip, a, b):  # type: ignore[no-untyped-def]
    one, other = _address(entry_T, a), _address(entry_T, b)
    one_texts, other_texts = text_T[a >> ENTRY_BITS], text_T[b >> ENTRY_BITS]
    one_size, other_size = _of(one, SIZE), _of(other, SIZE)
    at = skip
    while at < min(one_size, other_size):
        one_word, other_word = _word(one, one_texts, at), _word(other, other_texts, at)
        if one_word != other_word:
            return one_word < other_word
        at += 8
    # Zeros stand for what isn't there: of two such words that are equal the shorter text is first.
    return one_size < other_size


@compiled(nogil=True)
def sort_ties(entry_T, text_T, skip, key_K, code_K):  # type: ignore[no-untyped-def]
    """Sort the runs of entries whose keys are equal, of an order by these, by their text after ``skip`` bytes (merging,
    so that no order takes long)."""
    count = len(code_K)
    spare = np.empty(0, np.int64)
    low = 0
    while low < count:
        high = low + 1
        while high < count and key_K[high] == key_K[low]:
            high += 1
        if high - low > 1:
            if len(spare) < high - low:
                spare = np.empty(2 * (high - low), np.int64)
            width = 1
            while width < high - low:
                for left in range(low, high, 2 * width):
                    middle, right = min(left + width, high), min(left + 2 * width, high)
                    i, j = left, middle
                    for k in range(left, right):
                        if i < middle and (j >= right or not _less(entry_T, text_T, skip, code_K[j], code_K[i])):
                            spare[k - low] = code_K[i]
                            i += 1
                        else:
                            spare[k - low] = code_K[j]
                            j += 1
                for k in range(low, high):
                    code_K[k] = spare[k - low]
                width *= 2
        low = high


@compiled(nogil=True)
def gather(entry_T, code_K, key_K, count_K, clicks_K, first_K, last_K, size_K, head_K, rest_K):  # type: ignore[no-untyped-def]
    """What entries hold, in an order."""
    for k in range(len(code_K)):
        if k + _AHEAD < len(code_K):
            prefetch_row(_address(entry_T, code_K[k + _AHEAD]), 0, _LINE)
        entry = _address(entry_T, code_K[k])
        key_K[k], count_K[k], clicks_K[k] = _of(entry, KEY), _of(entry, COUNT), _of(entry, CLICKS)
        first_K[k], last_K[k] = _of(entry, FIRST), _of(entry, LAST)
        size_K[k], head_K[k], rest_K[k] = _of(entry, SIZE), _of(entry, HEAD), _of(entry, REST)


@compiled(nogil=True)
def gather_text(text_T, code_K, bounds, head_K, rest_K, data):  # type: ignore[no-untyped-def]
    """Texts one after the other to ``data``, which has room for 16 bytes more."""
    base = np.uint64(data.ctypes.data)
    for k in range(len(code_K)):
        if k + _AHEAD < len(code_K):
            ahead = k + _AHEAD
            size = bounds[ahead + 1] - bounds[ahead]
            if size > SHORT:
                prefetch_row(text_T[code_K[ahead] >> ENTRY_BITS] + np.uint64(rest_K[ahead]), 0, size)
        size, to = bounds[k + 1] - bounds[k], base + np.uint64(bounds[k])
        if size <= SHORT:
            # What is too much, the next one writes over.
            store64(to, np.uint64(head_K[k]))
            store64(to + _8, np.uint64(rest_K[k]))
        else:
            text = text_T[code_K[k] >> ENTRY_BITS] + np.uint64(rest_K[k])
            for at in range(0, size - 8, 8):
                store64(to + np.uint64(at), load64(text + np.uint64(at)))
            store64(to + np.uint64(size - 8), load64(text + np.uint64(size - 8)))
    return len(data)
