"""Distinct values with what is known of each, in an open-addressed hash table; numbers and text.

    slots     uint64 [S]      0 where empty, else the upper half of the value's hash and, in the lower, its entry + 1
    entries   int64 [E, 8]    KEY     of a number its 64 bits, of text its hash
                              COUNT   how often it was seen
                              CLICKS  the sum of its labels
                              FIRST   the least of its times, LAST the greatest; NEVER and EVER where it has none
                              AT      of text: where its bytes begin
                              SIZE    and how many there are
    text      uint8 [T]       the bytes of all values, one after the other
    used      int64 [2]       entries and bytes that are taken

Values are told apart by themselves, not by their hashes: two texts of one hash are two entries. An entry is a cache
line.

What a value brings comes by row: ``row_N`` says which row a value is of (empty: its own number), ``count_R``,
``clicks_R``, ``first_R`` and ``last_R`` what that row has (empty: 1, 0 and no time). ``validity`` is Arrow's bitmap
(empty: no nulls), read from bit ``shift`` on. The kernels that add stop at a value that finds no room and return its
number.

Suffixes: N values, R rows, D values of a dictionary, E entries, A values asked for ahead.
"""

from __future__ import annotations

import numpy as np

from embstore.hashing import compiled, splitmix64_scalar, xxh64_at, xxh64_padded_at
from embstore.kernels.native import prefetch_row, prefetch_row_to_write

KEY, COUNT, CLICKS, FIRST, LAST, AT, SIZE, WIDTH = range(8)
NEVER, EVER = np.iinfo(np.int64).max, np.iinfo(np.int64).min  # of no time: more than any first, less than any last

_AHEAD = 128  # values whose places in memory are asked for before the first of them is read
_ENTRY_BYTES = 64
_LOW32 = np.uint64(0xFFFFFFFF)
_SEED, _PADDING, _ONE, _EMPTY = np.uint64(0), np.uint64(24), np.uint64(1), np.uint64(0)


@compiled(forceinline=True)
def _valid(validity, bit):  # type: ignore[no-untyped-def]
    return len(validity) == 0 or (validity[bit >> 3] >> (bit & 7)) & 1 != 0


@compiled(forceinline=True)
def _bring(entries, e, r, times, count_R, clicks_R, first_R, last_R):  # type: ignore[no-untyped-def]
    entries[e, COUNT] += times
    if len(clicks_R):
        entries[e, CLICKS] += clicks_R[r]
    if len(first_R):
        entries[e, FIRST] = min(entries[e, FIRST], first_R[r])
        entries[e, LAST] = max(entries[e, LAST], last_R[r])


@compiled(forceinline=True)
def _open(entries, used, key):  # type: ignore[no-untyped-def]
    e = used[0]
    entries[e, KEY], entries[e, COUNT], entries[e, CLICKS] = key, 0, 0
    entries[e, FIRST], entries[e, LAST] = NEVER, EVER
    used[0] = e + 1
    return e


@compiled(forceinline=True)
def _ask_entries(hashed_A, asked, slots, entries):  # type: ignore[no-untyped-def]
    """Ask for the entries that hashes may be of."""
    mask, base = np.uint64(len(slots) - 1), np.uint64(entries.ctypes.data)
    for a in range(asked):
        slot = slots[hashed_A[a] & mask]
        if (slot ^ hashed_A[a]) & ~_LOW32 == _EMPTY and slot != _EMPTY:
            prefetch_row_to_write(base, np.int64(slot & _LOW32) - 1, _ENTRY_BYTES)


@compiled(forceinline=True)
def _ask_text(hashed_A, asked, slots, entries, text):  # type: ignore[no-untyped-def]
    """Ask for the beginnings of their texts."""
    mask, base = np.uint64(len(slots) - 1), np.uint64(text.ctypes.data)
    for a in range(asked):
        slot = slots[hashed_A[a] & mask]
        if (slot ^ hashed_A[a]) & ~_LOW32 == _EMPTY and slot != _EMPTY:
            prefetch_row(base, entries[np.int64(slot & _LOW32) - 1, AT], 8)


@compiled(nogil=True)
def add_numbers(  # type: ignore[no-untyped-def]
    number_N, validity, shift, row_N, count_R, clicks_R, first_R, last_R, slots, entries, used, start
):
    """Add numbers, their bits as int64, from ``start`` on; the number of the first that found no room."""
    mask, base = np.uint64(len(slots) - 1), np.uint64(slots.ctypes.data)
    room = min(len(entries), len(slots) // 2)
    hashed_A = np.empty(_AHEAD, np.uint64)
    for low in range(start, len(number_N), _AHEAD):
        high = min(low + _AHEAD, len(number_N))
        for n in range(low, high):
            hashed_A[n - low] = splitmix64_scalar(np.uint64(number_N[n]))
            prefetch_row(base, np.int64(hashed_A[n - low] & mask), 8)
        _ask_entries(hashed_A, high - low, slots, entries)
        for n in range(low, high):
            r = n if len(row_N) == 0 else row_N[n]
            times = np.int64(1) if len(count_R) == 0 else count_R[r]
            if times == 0 or not _valid(validity, n + shift):
                continue
            key, hashed = number_N[n], hashed_A[n - low]
            place = hashed & mask
            while True:
                slot = slots[place]
                if slot == _EMPTY:
                    if used[0] >= room:
                        return n
                    e = _open(entries, used, key)
                    slots[place] = (hashed & ~_LOW32) | np.uint64(e + 1)
                    break
                if (slot ^ hashed) & ~_LOW32 == _EMPTY:
                    e = np.int64(slot & _LOW32) - 1
                    if entries[e, KEY] == key:
                        break
                place = (place + _ONE) & mask
            _bring(entries, e, r, times, count_R, clicks_R, first_R, last_R)
    return len(number_N)


@compiled(forceinline=True)
def _same(data, begin, text, at, size):  # type: ignore[no-untyped-def]
    for i in range(size):  # noqa: SIM110 - compiled
        if data[begin + i] != text[at + i]:
            return False
    return True


@compiled(nogil=True)
def add_text(  # type: ignore[no-untyped-def]
    data, bounds, validity, shift, row_N, count_R, clicks_R, first_R, last_R, slots, entries, text, used, start
):
    """Add texts, of which number n is ``data[bounds[n]:bounds[n + 1]]``, as ``add_numbers``."""
    base, readable = np.uint64(data.ctypes.data), np.uint64(len(data))
    mask, slot_base = np.uint64(len(slots) - 1), np.uint64(slots.ctypes.data)
    room = min(len(entries), len(slots) // 2)
    values = len(bounds) - 1
    hashed_A = np.empty(_AHEAD, np.uint64)
    for low in range(start, values, _AHEAD):
        high = min(low + _AHEAD, values)
        for n in range(low, high):
            address, end = np.uint64(bounds[n]), np.uint64(bounds[n + 1])
            if end + _PADDING <= readable:
                hashed = xxh64_padded_at(base + address, end - address, _SEED)
            else:
                hashed = xxh64_at(base + address, end - address, _SEED)
            hashed_A[n - low] = hashed
            prefetch_row(slot_base, np.int64(hashed & mask), 8)
        _ask_entries(hashed_A, high - low, slots, entries)
        _ask_text(hashed_A, high - low, slots, entries, text)
        for n in range(low, high):
            r = n if len(row_N) == 0 else row_N[n]
            times = np.int64(1) if len(count_R) == 0 else count_R[r]
            if times == 0 or not _valid(validity, n + shift):
                continue
            begin, size, hashed = np.int64(bounds[n]), np.int64(bounds[n + 1] - bounds[n]), hashed_A[n - low]
            place = hashed & mask
            while True:
                slot = slots[place]
                if slot == _EMPTY:
                    if used[0] >= room or used[1] + size > len(text):
                        return n
                    e = _open(entries, used, np.int64(hashed))
                    entries[e, AT], entries[e, SIZE] = used[1], size
                    for i in range(size):
                        text[used[1] + i] = data[begin + i]
                    used[1] += size
                    slots[place] = (hashed & ~_LOW32) | np.uint64(e + 1)
                    break
                if (slot ^ hashed) & ~_LOW32 == _EMPTY:
                    e = np.int64(slot & _LOW32) - 1
                    if (
                        entries[e, KEY] == np.int64(hashed)
                        and entries[e, SIZE] == size
                        and _same(data, begin, text, entries[e, AT], size)
                    ):
                        break
                place = (place + _ONE) & mask
            _bring(entries, e, r, times, count_R, clicks_R, first_R, last_R)
    return values


@compiled(nogil=True)
def fill_slots(entries, count, numbers, slots):  # type: ignore[no-untyped-def]
    """Put the first ``count`` entries into empty slots; of ``numbers``, whose hash is made of the key, or of text."""
    mask = np.uint64(len(slots) - 1)
    for e in range(count):
        key = np.uint64(entries[e, KEY])
        hashed = splitmix64_scalar(key) if numbers else key
        place = hashed & mask
        while slots[place] != _EMPTY:
            place = (place + _ONE) & mask
        slots[place] = (hashed & ~_LOW32) | np.uint64(e + 1)


@compiled(nogil=True)
def tally(  # type: ignore[no-untyped-def]
    code_N, validity, shift, row_N, clicks_R, first_R, last_R, count_D, clicks_D, first_D, last_D
):
    """What each value of a dictionary is brought by rows that hold its codes."""
    for n in range(len(code_N)):
        if not _valid(validity, n + shift):
            continue
        r = n if len(row_N) == 0 else row_N[n]
        d = code_N[n]
        count_D[d] += 1
        if len(clicks_R):
            clicks_D[d] += clicks_R[r]
        if len(first_R):
            first_D[d] = min(first_D[d], first_R[r])
            last_D[d] = max(last_D[d], last_R[r])


@compiled(nogil=True)
def text_keys(entries, count, text, key_E):  # type: ignore[no-untyped-def]
    """Of each entry the 8 bytes after those that all begin with, first byte first, as a number to sort by; how many
    bytes all begin with."""
    skip = entries[0, SIZE] if count else np.int64(0)
    for e in range(1, count):
        skip = min(skip, entries[e, SIZE])
        for i in range(skip):
            if text[entries[e, AT] + i] != text[entries[0, AT] + i]:
                skip = i
                break
    for e in range(count):
        key = np.uint64(0)
        at, size = entries[e, AT] + skip, entries[e, SIZE] - skip
        for i in range(8):
            key = (key << np.uint64(8)) | (np.uint64(text[at + i]) if i < size else np.uint64(0))
        key_E[e] = key
    return skip


@compiled(forceinline=True)
def _less(entries, text, skip, a, b):  # type: ignore[no-untyped-def]
    size_a, size_b = entries[a, SIZE], entries[b, SIZE]
    at_a, at_b = entries[a, AT], entries[b, AT]
    for i in range(skip, min(size_a, size_b)):
        if text[at_a + i] != text[at_b + i]:
            return text[at_a + i] < text[at_b + i]
    return size_a < size_b


@compiled(nogil=True)
def sort_ties(entries, text, skip, key_E, order_E):  # type: ignore[no-untyped-def]
    """Sort the runs of entries whose keys are equal, of an order by these, by their whole text (merging, so that no
    order takes long)."""
    count = len(order_E)
    spare = np.empty(0, np.int64)
    low = 0
    while low < count:
        high = low + 1
        while high < count and key_E[order_E[high]] == key_E[order_E[low]]:
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
                        if i < middle and (j >= right or not _less(entries, text, skip, order_E[j], order_E[i])):
                            spare[k - low] = order_E[i]
                            i += 1
                        else:
                            spare[k - low] = order_E[j]
                            j += 1
                for k in range(low, high):
                    order_E[k] = spare[k - low]
                width *= 2
        low = high


@compiled(nogil=True)
def gather_text(entries, text, order_E, bounds, data):  # type: ignore[no-untyped-def]
    """The bytes of entries in an order, one after the other, to ``data``."""
    for n in range(len(order_E)):
        at, size = entries[order_E[n], AT], bounds[n + 1] - bounds[n]
        for i in range(size):
            data[bounds[n] + i] = text[at + i]
