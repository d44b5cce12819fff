"""Distinct values with what is known of each, in an open-addressed hash table; numbers and text.

    slots     uint64 [S]      0 where empty, else the upper half of the value's hash and, in the lower, its entry + 1
    entries   int64 [E, 8]    KEY     of a number its 64 bits, of text its hash
                              COUNT   how often it was seen
                              CLICKS  the sum of its labels
                              FIRST   the least of its times, LAST the greatest; NEVER and EVER where it has none
                              SIZE    of text: how many bytes it has
                              HEAD    the first 8 of them, zeros where there are fewer
                              REST    the next 8; of more than 16 where in ``text`` all of them begin
    text      uint8 [T]       the bytes of such longer texts, one after the other
    used      int64 [3]       entries and bytes that are taken; bytes that the text needs which found no room

Values are told apart by themselves, not by their hashes: two texts of one hash are two entries. An entry is a cache
line (``lines`` makes such arrays), so that what is known of a number or a short text is one read of memory.

What a value brings comes by row: ``row_N`` says which row a value is of (empty: its own number), ``count_R``,
``clicks_R``, ``first_R`` and ``last_R`` what that row has (empty: 1, 0 and no time). ``validity`` is Arrow's bitmap
(empty: no nulls), read from bit ``shift`` on. Values are hashed and dealt (``deal``) to the tables that their hashes'
upper bits name; the kernels that add take the values ``pick_M`` of one table, stop at one that finds no room and
return its place in ``pick_M``.

Functions that are called for each value take addresses, not arrays: numba counts references to arrays that functions
take, also where they are compiled in.

Suffixes: N values, R rows, M values of one table, D values of a dictionary, E entries, K values in order, T tables, A
values asked for ahead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embstore.hashing import compiled, load8, load64, splitmix64_scalar, xxh64_at, xxh64_padded_at
from embstore.kernels.native import prefetch_row, prefetch_row_to_write, store64

KEY, COUNT, CLICKS, FIRST, LAST, SIZE, HEAD, REST = range(8)
NEVER, EVER = np.iinfo(np.int64).max, np.iinfo(np.int64).min  # of no time: more than any first, less than any last
SHORT = 16  # bytes of a text that an entry holds

_AHEAD = 64  # values whose places in memory are asked for before the first of them is read
_LINE = 64
_LOW32 = np.uint64(0xFFFFFFFF)
_SEED, _PADDING, _ONE, _EMPTY = np.uint64(0), np.uint64(24), np.uint64(1), np.uint64(0)
_8, _LINES, _EVER = np.uint64(8), np.uint64(64), np.uint64(1 << 63)


def lines(count: int) -> NDArray[np.int64]:
    """Room for so many entries, int64 ``[count, 8]``, each in one cache line."""
    room = np.empty(8 * count + 7, np.int64)
    start = -(room.ctypes.data // 8) % 8
    return room[start : start + 8 * count].reshape(count, 8)


@compiled(forceinline=True)
def _lower(word, size):  # type: ignore[no-untyped-def]
    """The first ``size`` bytes of 8, zeros after them; none or all of them for sizes beyond."""
    if size >= 8:
        return word
    if size <= 0:
        return _EMPTY
    return word & ((_ONE << (_8 * np.uint64(size))) - _ONE)


@compiled(forceinline=True)
def _words(address, size, readable):  # type: ignore[no-untyped-def]
    """The first 16 bytes of a text as two numbers; ``readable`` bytes may be read."""
    if readable >= 16:
        return _lower(load64(address), size), _lower(load64(address + _8), size - 8)
    head, rest = _EMPTY, _EMPTY
    for i in range(min(size, 16)):
        byte = load8(address + np.uint64(i))
        if i < 8:
            head |= byte << (_8 * np.uint64(i))
        else:
            rest |= byte << (_8 * np.uint64(i - 8))
    return head, rest


@compiled(nogil=True)
def hash_numbers(number_N, hash_N):  # type: ignore[no-untyped-def]
    """The hashes of numbers."""
    for n in range(len(number_N)):
        hash_N[n] = splitmix64_scalar(np.uint64(number_N[n]))


@compiled(nogil=True)
def hash_text(data, bounds, hash_N):  # type: ignore[no-untyped-def]
    """The hashes of texts, of which number n is ``data[bounds[n]:bounds[n + 1]]``; how many bytes the longest has."""
    base, readable = np.uint64(data.ctypes.data), np.uint64(len(data))
    longest = np.int64(0)
    for n in range(len(hash_N)):
        begin, end = np.uint64(bounds[n]), np.uint64(bounds[n + 1])
        longest = max(longest, np.int64(end - begin))
        if end + _PADDING <= readable:
            hash_N[n] = xxh64_padded_at(base + begin, end - begin, _SEED)
        else:
            hash_N[n] = xxh64_at(base + begin, end - begin, _SEED)
    return longest


@compiled(nogil=True)
def deal(hash_N, validity, shift, row_N, count_R, bits, begin_T, pick_N):  # type: ignore[no-untyped-def]
    """Which values go to which of ``2^bits`` tables: those of table t are ``pick_N[begin_T[t]:begin_T[t + 1]]``, in
    their order. Missing ones, and those of rows that stand for none, go nowhere."""
    away = np.uint64(64 - bits)
    nulls, counted = len(validity) > 0, len(count_R) > 0
    begin_T[:] = 0
    for n in range(len(hash_N)):
        bit = n + shift
        if nulls and (validity[bit >> 3] >> (bit & 7)) & 1 == 0:
            continue
        if not counted or count_R[n if len(row_N) == 0 else row_N[n]] != 0:
            t = np.int64(hash_N[n] >> away) if bits else 0
            begin_T[t + 1] += 1
    for t in range(len(begin_T) - 1):
        begin_T[t + 1] += begin_T[t]
    next_T = begin_T[:-1].copy()
    for n in range(len(hash_N)):
        bit = n + shift
        if nulls and (validity[bit >> 3] >> (bit & 7)) & 1 == 0:
            continue
        if not counted or count_R[n if len(row_N) == 0 else row_N[n]] != 0:
            t = np.int64(hash_N[n] >> away) if bits else 0
            pick_N[next_T[t]] = n
            next_T[t] += 1


@compiled(forceinline=True)
def _open(entry, key, size, head, rest):  # type: ignore[no-untyped-def]
    """Write an entry of a value that was never seen, at an address."""
    store64(entry + _8 * np.uint64(KEY), np.uint64(key))
    store64(entry + _8 * np.uint64(COUNT), _EMPTY)
    store64(entry + _8 * np.uint64(CLICKS), _EMPTY)
    store64(entry + _8 * np.uint64(FIRST), np.uint64(NEVER))
    store64(entry + _8 * np.uint64(LAST), _EVER)
    store64(entry + _8 * np.uint64(SIZE), np.uint64(size))
    store64(entry + _8 * np.uint64(HEAD), np.uint64(head))
    store64(entry + _8 * np.uint64(REST), np.uint64(rest))


@compiled(forceinline=True)
def _ask(hash_N, pick_M, low, high, slots, base):  # type: ignore[no-untyped-def]
    """Ask for the slots of some values, and then for the entries that they may be, of those at address ``base``."""
    mask, slot_base = np.uint64(len(slots) - 1), np.uint64(slots.ctypes.data)
    for m in range(low, high):
        prefetch_row(slot_base, np.int64(hash_N[pick_M[m]] & mask), 8)
    for m in range(low, high):
        hashed = hash_N[pick_M[m]]
        slot = slots[hashed & mask]
        if (slot ^ hashed) & ~_LOW32 == _EMPTY and slot != _EMPTY:
            prefetch_row_to_write(base, np.int64(slot & _LOW32) - 1, _LINE)


@compiled(forceinline=True)
def _ask_text(hash_N, pick_M, low, high, slots, base, texts):  # type: ignore[no-untyped-def]
    """Ask for their bytes, of those that entries don't hold."""
    mask = np.uint64(len(slots) - 1)
    for m in range(low, high):
        hashed = hash_N[pick_M[m]]
        slot = slots[hashed & mask]
        if (slot ^ hashed) & ~_LOW32 == _EMPTY and slot != _EMPTY:
            entry = base + _LINES * ((slot & _LOW32) - _ONE)
            size = np.int64(load64(entry + _8 * np.uint64(SIZE)))
            if size > SHORT:
                prefetch_row(texts + load64(entry + _8 * np.uint64(REST)), 0, size)


@compiled(nogil=True)
def add_numbers(  # type: ignore[no-untyped-def]
    number_N, hash_N, pick_M, row_N, count_R, clicks_R, first_R, last_R, slots, entries, text, used, start
):
    """Add numbers, their bits as int64, from ``start`` on."""
    mask, room, base = np.uint64(len(slots) - 1), len(entries), np.uint64(entries.ctypes.data)
    counted, clicked, timed = len(count_R) > 0, len(clicks_R) > 0, len(first_R) > 0
    for low in range(start, len(pick_M), _AHEAD):
        high = min(low + _AHEAD, len(pick_M))
        _ask(hash_N, pick_M, low, high, slots, base)
        for m in range(low, high):
            n = pick_M[m]
            key, hashed = number_N[n], hash_N[n]
            place = hashed & mask
            while True:
                slot = slots[place]
                if slot == _EMPTY:
                    if used[0] >= room:
                        return m
                    e = used[0]
                    _open(base + _LINES * np.uint64(e), key, 0, 0, 0)
                    used[0] = e + 1
                    slots[place] = (hashed & ~_LOW32) | np.uint64(e + 1)
                    break
                if (slot ^ hashed) & ~_LOW32 == _EMPTY:
                    e = np.int64(slot & _LOW32) - 1
                    if entries[e, KEY] == key:
                        break
                place = (place + _ONE) & mask
            r = n if len(row_N) == 0 else np.int64(row_N[n])
            entries[e, COUNT] += count_R[r] if counted else 1
            if clicked:
                entries[e, CLICKS] += clicks_R[r]
            if timed:
                entries[e, FIRST] = min(entries[e, FIRST], first_R[r])
                entries[e, LAST] = max(entries[e, LAST], last_R[r])
    return len(pick_M)


@compiled(forceinline=True)
def _same(one, other, size):  # type: ignore[no-untyped-def]
    """Whether more than 8 bytes at two addresses are the same; the first 8 are."""
    last = np.uint64(size) - _8
    at = _8
    while at < last:
        if load64(one + at) != load64(other + at):
            return False
        at += _8
    return load64(one + last) == load64(other + last)


@compiled(forceinline=True)
def _of_text(entry, key, size, head, rest, address, texts):  # type: ignore[no-untyped-def]
    """Whether the entry at an address is of that text."""
    if (
        np.int64(load64(entry + _8 * np.uint64(KEY))) != key
        or np.int64(load64(entry + _8 * np.uint64(SIZE))) != size
        or np.int64(load64(entry + _8 * np.uint64(HEAD))) != head
    ):
        return False
    own = load64(entry + _8 * np.uint64(REST))
    return np.int64(own) == rest if size <= SHORT else _same(address, texts + own, size)


@compiled(nogil=True)
def add_text(  # type: ignore[no-untyped-def]
    data, bounds, hash_N, pick_M, row_N, count_R, clicks_R, first_R, last_R, slots, entries, text, used, start
):
    """Add texts, as ``add_numbers``."""
    given, texts = np.uint64(data.ctypes.data), np.uint64(text.ctypes.data)
    mask, room, base = np.uint64(len(slots) - 1), len(entries), np.uint64(entries.ctypes.data)
    counted, clicked, timed = len(count_R) > 0, len(clicks_R) > 0, len(first_R) > 0
    done = len(pick_M)
    for low in range(start, len(pick_M), _AHEAD):
        high = min(low + _AHEAD, len(pick_M))
        _ask(hash_N, pick_M, low, high, slots, base)
        _ask_text(hash_N, pick_M, low, high, slots, base, texts)
        for m in range(low, high):
            n = pick_M[m]
            begin, size, hashed = bounds[n], bounds[n + 1] - bounds[n], hash_N[n]
            address = given + np.uint64(begin)
            first, second = _words(address, size, len(data) - begin)
            key, head, rest = np.int64(hashed), np.int64(first), np.int64(second)
            place = hashed & mask
            while True:
                slot = slots[place]
                if slot == _EMPTY:
                    if used[0] >= room:
                        done = m
                        break
                    if size > SHORT:
                        if used[1] + size > len(text):
                            used[2], done = size, m
                            break
                        rest = used[1]
                        for i in range(size):
                            text[rest + i] = data[begin + i]
                        used[1] += size
                    e = used[0]
                    _open(base + _LINES * np.uint64(e), key, size, head, rest)
                    used[0] = e + 1
                    slots[place] = (hashed & ~_LOW32) | np.uint64(e + 1)
                    break
                if (slot ^ hashed) & ~_LOW32 == _EMPTY:
                    e = np.int64(slot & _LOW32) - 1
                    if _of_text(base + _LINES * np.uint64(e), key, size, head, rest, address, texts):
                        break
                place = (place + _ONE) & mask
            if done == m:
                break
            r = n if len(row_N) == 0 else np.int64(row_N[n])
            entries[e, COUNT] += count_R[r] if counted else 1
            if clicked:
                entries[e, CLICKS] += clicks_R[r]
            if timed:
                entries[e, FIRST] = min(entries[e, FIRST], first_R[r])
                entries[e, LAST] = max(entries[e, LAST], last_R[r])
        if done < len(pick_M):
            break
    return done


@compiled(nogil=True)
def hashes(entries, numbers, hash_E):  # type: ignore[no-untyped-def]
    """The hashes of entries: of ``numbers``, or of text."""
    for e in range(len(hash_E)):
        key = np.uint64(entries[e, KEY])
        hash_E[e] = splitmix64_scalar(key) if numbers else key


@compiled(nogil=True)
def add_entries(  # type: ignore[no-untyped-def]
    given, given_text, hash_E, pick_M, slots, entries, text, used, start
):
    """Add the entries of another table, as ``add_numbers``."""
    given_texts, texts = np.uint64(given_text.ctypes.data), np.uint64(text.ctypes.data)
    mask, room, base = np.uint64(len(slots) - 1), len(entries), np.uint64(entries.ctypes.data)
    done = len(pick_M)
    for low in range(start, len(pick_M), _AHEAD):
        high = min(low + _AHEAD, len(pick_M))
        _ask(hash_E, pick_M, low, high, slots, base)
        for m in range(low, high):
            g = pick_M[m]
            hashed, size, rest = hash_E[g], given[g, SIZE], given[g, REST]
            address = given_texts + np.uint64(rest if size > SHORT else 0)
            key, head = given[g, KEY], given[g, HEAD]
            place = hashed & mask
            while True:
                slot = slots[place]
                if slot == _EMPTY:
                    if used[0] >= room:
                        done = m
                        break
                    if size > SHORT:
                        if used[1] + size > len(text):
                            used[2], done = size, m
                            break
                        for i in range(size):
                            text[used[1] + i] = given_text[rest + i]
                        rest = used[1]
                        used[1] += size
                    e = used[0]
                    _open(base + _LINES * np.uint64(e), key, size, head, rest)
                    used[0] = e + 1
                    slots[place] = (hashed & ~_LOW32) | np.uint64(e + 1)
                    break
                if (slot ^ hashed) & ~_LOW32 == _EMPTY:
                    e = np.int64(slot & _LOW32) - 1
                    if _of_text(base + _LINES * np.uint64(e), key, size, head, rest, address, texts):
                        break
                place = (place + _ONE) & mask
            if done == m:
                break
            entries[e, COUNT] += given[g, COUNT]
            entries[e, CLICKS] += given[g, CLICKS]
            entries[e, FIRST] = min(entries[e, FIRST], given[g, FIRST])
            entries[e, LAST] = max(entries[e, LAST], given[g, LAST])
        if done < len(pick_M):
            break
    return done


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
    code_N, least, validity, shift, row_N, clicks_R, first_R, last_R, count_D, clicks_D, first_D, last_D
):
    """What each value of a dictionary is brought by rows that hold its codes, of which ``least`` stands for the
    first."""
    nulls, clicked, timed = len(validity) > 0, len(clicks_R) > 0, len(first_R) > 0
    for n in range(len(code_N)):
        bit = n + shift
        if nulls and (validity[bit >> 3] >> (bit & 7)) & 1 == 0:
            continue
        r = n if len(row_N) == 0 else np.int64(row_N[n])
        d = np.int64(code_N[n]) - least
        count_D[d] += 1
        if clicked:
            clicks_D[d] += clicks_R[r]
        if timed:
            first_D[d] = min(first_D[d], first_R[r])
            last_D[d] = max(last_D[d], last_R[r])
