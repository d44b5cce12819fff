"""Every type, slice and chunking of a column gives the tokens of its values one by one."""

from __future__ import annotations

import datetime
import decimal
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from embstore import tokens as tokens_module
from embstore.errors import DataError, SchemaError
from embstore.hashing import MISSING_TOKEN
from embstore.tokens import BLOCK, Tokens, check_type, token, tokenize

ROOT = Path(__file__).parent.parent
TEXT = ["a", "", None, "ä—\0x", "user:12345", "x" * 31, "y" * 32, "z" * 33, "w" * 100, None, "seven77", "8bytes!!"]
BYTES = [None if value is None else value.encode() for value in TEXT]
INTEGERS = [0, 1, None, 5, 127, 100, None, 2, 3]
SIGNED = [None if value is None else value - 64 for value in INTEGERS]
FIXED = [b"0123456789abcdef", None, b"\0" * 16, b"\xff" * 16]
FLAT = {
    "string": (pa.string(), TEXT),
    "large_string": (pa.large_string(), TEXT),
    "string_view": (pa.string_view(), TEXT),
    "binary": (pa.binary(), BYTES),
    "large_binary": (pa.large_binary(), BYTES),
    "binary_view": (pa.binary_view(), BYTES),
    "fixed_size_binary": (pa.binary(16), FIXED),
    "bool": (pa.bool_(), [True, False, None, True, True, False, False, True, None, True]),
    "null": (pa.null(), [None] * 5),
    **{str(kind): (kind, SIGNED) for kind in (pa.int8(), pa.int16(), pa.int32())},
    **{str(kind): (kind, INTEGERS) for kind in (pa.uint8(), pa.uint16(), pa.uint32())},
    "int64": (pa.int64(), [*SIGNED, -(2**63), 2**63 - 1]),
    "uint64": (pa.uint64(), [*INTEGERS, 2**63, 2**64 - 1]),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), TEXT * 3),
    "dictionary of integers": (pa.dictionary(pa.uint32(), pa.int32()), SIGNED * 3),
}


def judge(values: list[Any]) -> list[int]:
    """Tokens of a flat column, one by one."""
    return [token(value) for value in values]


def judge_lists(values: list[list[Any] | None], max_length: int | None = None) -> tuple[list[int], list[int]]:
    flat: list[int] = []
    offsets = [0]
    for value in values:
        flat += [MISSING_TOKEN] if value is None else judge(value[:max_length])
        offsets.append(len(flat))
    return flat, offsets


def check_lists(column: pa.Array | pa.ChunkedArray, max_length: int | None = None) -> None:
    found = tokenize(column, name="x", max_length=max_length)
    assert found.offsets is not None
    assert found.offsets.dtype == np.int64
    assert (found.values.tolist(), found.offsets.tolist()) == judge_lists(column.to_pylist(), max_length)


# --- single values --------------------------------------------------------------------------------


def test_token_of_text_and_bytes_is_xxh64() -> None:
    assert token("größe") == token("größe".encode()) == xxhash.xxh64_intdigest("größe".encode())
    assert token("") == xxhash.xxh64_intdigest(b"")


def test_token_of_integers_is_splitmix64() -> None:
    # First output of SplitMix64 with seed 1234567, a value published with many implementations.
    assert token(1234567) == 6457827717110365317
    assert token(-1) == token(2**64 - 1)
    assert token(True) == token(1) == token(np.int8(1)) == token(np.bool_(True))
    assert token(None) == MISSING_TOKEN


def test_token_refuses_other_values() -> None:
    with pytest.raises(SchemaError, match="float"):
        token(1.0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="64 bits"):
        token(2**64)
    with pytest.raises(DataError, match="64 bits"):
        token(-(2**63) - 1)
    with pytest.raises(DataError, match="Unicode"):
        token("\ud800")


# --- flat columns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FLAT)
def test_flat(kind: str) -> None:
    arrow_type, values = FLAT[kind]
    found = tokenize(pa.array(values, arrow_type), name="x")
    assert found.offsets is None
    assert found.values.dtype == np.uint64
    assert found.values.tolist() == judge(values)


@pytest.mark.parametrize("kind", FLAT)
def test_flat_slices_and_chunks(kind: str) -> None:
    arrow_type, values = FLAT[kind]
    column = pa.array(values, arrow_type)
    for start in range(len(values)):
        for stop in (start, start + 1, len(values)):
            assert tokenize(column.slice(start, stop - start), name="x").values.tolist() == judge(values[start:stop])
    chunks = pa.chunked_array([column.slice(2, 3), column.slice(0, 0), column.slice(1)], type=arrow_type)
    assert tokenize(chunks, name="x").values.tolist() == judge(values[2:5] + values[1:])
    assert tokenize(pa.chunked_array([], type=arrow_type), name="x").values.tolist() == []


def test_tokens_do_not_depend_on_the_type_that_carries_a_value() -> None:
    small = tokenize(pa.array([1, 2, 3], pa.int8()), name="x").values
    for kind in (pa.int64(), pa.uint16(), pa.dictionary(pa.int8(), pa.int32())):
        assert (tokenize(pa.array([1, 2, 3], kind), name="x").values == small).all()
    text = tokenize(pa.array(["a", "bc"]), name="x").values
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        assert (tokenize(pa.array(["a", "bc"], kind), name="x").values == text).all()


def test_extension_types_are_read_as_their_storage() -> None:
    ids = [b"0123456789abcdef", None, b"fedcba9876543210"]
    column = pa.array(ids, pa.binary(16)).cast(pa.uuid())
    assert tokenize(column, name="x").values.tolist() == judge(ids)
    assert tokenize(column.slice(1), name="x").values.tolist() == judge(ids[1:])


def test_values_at_the_very_end_of_the_memory() -> None:
    """Short values are hashed by reading past their end; never past the end of the buffer."""
    for length in range(70):
        data = np.frombuffer(os.urandom(3 * length), dtype=np.uint8)
        bounds = np.arange(4, dtype=np.int32) * length
        column = pa.Array.from_buffers(pa.binary(), 3, [None, pa.py_buffer(bounds), pa.py_buffer(data.tobytes())])
        assert tokenize(column, name="x").values.tolist() == judge(column.to_pylist())


@pytest.mark.skipif(sys.platform != "linux", reason="needs mmap and mprotect")
def test_reads_nothing_past_the_buffer() -> None:
    """The data ends where a page begins that may not be read: one byte too far ends the process."""
    program = """
import ctypes, mmap
import numpy as np, pyarrow as pa, xxhash
from embstore.tokens import tokenize
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * page)
memory.write(bytes(range(256)) * (page // 256))
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0
for length in range(100):
    data = pa.foreign_buffer(start + page - 2 * length, 2 * length, base=memory)
    bounds = pa.py_buffer(np.array([0, length, 2 * length], dtype=np.int32))
    column = pa.Array.from_buffers(pa.binary(), 2, [None, bounds, data])
    expected = [xxhash.xxh64_intdigest(value) for value in column.to_pylist()]
    assert tokenize(column, name="x").values.tolist() == expected
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_missing_values_may_have_any_bytes() -> None:
    """A null's slot may hold data, even too much of it; a null's code may point anywhere."""
    bounds = np.array([0, 1, 90, 91], dtype=np.int32)
    validity = pa.py_buffer(bytes([0b101]))
    column = pa.Array.from_buffers(pa.string(), 3, [validity, pa.py_buffer(bounds), pa.py_buffer(b"x" * 91)])
    expected = [token("x"), MISSING_TOKEN, token("x")]
    assert tokenize(column, name="x", max_bytes=10).values.tolist() == expected
    codes = pa.Array.from_buffers(pa.int32(), 3, [validity, pa.py_buffer(np.array([0, 2**30, 0], dtype=np.int32))])
    dictionary = pa.DictionaryArray.from_arrays(codes, pa.array(["x"]), safe=False)
    assert tokenize(dictionary, name="x").values.tolist() == expected


def test_missing_value_inside_a_dictionary() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1], pa.int8()), pa.array(["a", None]))
    assert tokenize(column, name="x").values.tolist() == judge(["a", None, None, None])


def test_dictionary_of_views() -> None:
    column = pa.DictionaryArray.from_arrays(
        pa.array([1, 0, None], pa.int64()), pa.array(["a", "b" * 20], pa.string_view())
    )
    assert tokenize(column, name="x").values.tolist() == judge(["b" * 20, "a", None])
    assert tokenize(column.slice(0, 0), name="x").values.tolist() == []
    dictionary = pa.array(list("abcdefgh"), pa.string_view())
    few = pa.DictionaryArray.from_arrays(pa.array([7, None], pa.int64()), dictionary)
    assert tokenize(few, name="x").values.tolist() == judge(["h", None])


def test_chunks_with_different_dictionaries() -> None:
    first = pa.array(["a", "b", "a"]).dictionary_encode()
    second = pa.array(["b", "c", None]).dictionary_encode()
    column = pa.chunked_array([first, second, first.slice(1)])
    assert tokenize(column, name="x").values.tolist() == judge(column.to_pylist())


@pytest.mark.parametrize("kind", [pa.string(), pa.int32(), pa.dictionary(pa.int8(), pa.string()), pa.null()], ids=str)
def test_nothing_but_missing_values(kind: pa.DataType) -> None:
    assert tokenize(pa.array([None, None], kind), name="x").values.tolist() == [MISSING_TOKEN] * 2
    column = pa.array([None, None], pa.list_(pa.null()))
    if not pa.types.is_dictionary(kind):
        check_lists(column.cast(pa.list_(kind)))


def test_small_slice_of_a_large_dictionary() -> None:
    column = pa.array([f"value {i}" for i in range(100)]).dictionary_encode().slice(50, 3)
    assert tokenize(column, name="x").values.tolist() == judge(["value 50", "value 51", "value 52"])


def test_a_shared_dictionary_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    column = pa.array(["a", "b", "c"] * 10).dictionary_encode()
    hashed = []
    kernel = tokens_module._strings
    monkeypatch.setattr(tokens_module, "_strings", lambda *args: hashed.append(args) or kernel(*args))
    chunks = pa.chunked_array([column.slice(0, 10), column.slice(10)])
    assert tokenize(chunks, name="x").values.tolist() == judge(["a", "b", "c"] * 10)
    assert len(hashed) == 1


@given(st.lists(st.none() | st.binary(max_size=80)), st.data())
def test_slicing_and_chunking_change_nothing(values: list[bytes | None], data: st.DataObject) -> None:
    whole = pa.array(values, pa.binary())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    bounds = [0, *cuts, len(values)]
    chunks = [whole.slice(start, stop - start) for start, stop in itertools.pairwise(bounds)]
    encode = data.draw(st.sampled_from(["plain", "large", "view", "dictionary"]))
    if encode == "dictionary":
        chunks = [chunk.dictionary_encode() for chunk in chunks]
    elif encode != "plain":
        chunks = [chunk.cast(pa.large_binary() if encode == "large" else pa.binary_view()) for chunk in chunks]
    assert tokenize(pa.chunked_array(chunks), name="x").values.tolist() == judge(values)


@pytest.mark.parametrize("kind", ["string", "int64", "dictionary"])
def test_large_columns_in_parallel(kind: str) -> None:
    """Beyond one block the pool takes over: many uneven chunks, some larger than a block."""
    generator = np.random.default_rng(5)
    numbers = generator.integers(0, 1000, 5 * BLOCK + 17)
    column = pa.array(numbers, pa.int64(), mask=generator.random(len(numbers)) < 0.1)
    one_by_one = {value: token(value if kind == "int64" or value is None else f"id-{value}") for value in range(1000)}
    expected = [MISSING_TOKEN if value is None else one_by_one[value] for value in column.to_pylist()]
    if kind != "int64":
        column = pa.array([None if value is None else f"id-{value}" for value in column.to_pylist()])
    if kind == "dictionary":
        column = column.dictionary_encode()
    cuts = [0, 3, 2 * BLOCK, 2 * BLOCK, 5 * BLOCK, len(column)]
    chunks = [column.slice(start, stop - start) for start, stop in itertools.pairwise(cuts)]
    assert tokenize(column, name="x").values.tolist() == expected
    assert tokenize(pa.chunked_array(chunks), name="x").values.tolist() == expected


# --- lists ----------------------------------------------------------------------------------------

LISTS = [["a", "b", None], [], None, [None], ["c"] * 5, ["d" * 40], None, []]


@pytest.mark.parametrize("max_length", [None, 1, 2, 100])
@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.string()),
        pa.list_(pa.large_binary()),
        pa.list_(pa.string_view()),
        pa.large_list(pa.dictionary(pa.int8(), pa.string())),
    ],
    ids=str,
)
def test_lists(kind: pa.DataType, max_length: int | None) -> None:
    column = pa.array(LISTS).cast(kind) if "dictionary" not in str(kind) else _list_of_dictionary(LISTS)
    check_lists(column, max_length)
    for start in range(len(LISTS)):
        check_lists(column.slice(start), max_length)
        check_lists(column.slice(start, 2), max_length)
    check_lists(pa.chunked_array([column.slice(4), column.slice(0, 0), column.slice(0, 3)]), max_length)
    check_lists(pa.chunked_array([], type=column.type), max_length)


def _list_of_dictionary(lists: list[Any]) -> pa.Array:
    plain = pa.array(lists)
    return pa.ListArray.from_arrays(plain.offsets, plain.values.dictionary_encode(), mask=plain.is_null())


@pytest.mark.parametrize("max_length", [None, 1, 3])
def test_fixed_size_lists(max_length: int | None) -> None:
    column = pa.array([[1, 2], None, [3, None], [4, 5]], pa.list_(pa.int16(), 2))
    for start in range(5):
        check_lists(column.slice(start), max_length)
    check_lists(pa.chunked_array([column.slice(3), column.slice(1, 2)]), max_length)


def test_lists_of_nulls_and_booleans() -> None:
    check_lists(pa.array([[None, None], None, []], pa.list_(pa.null())))
    check_lists(pa.array([[True, None], None, [], [False, False]], pa.list_(pa.bool_())), max_length=1)


def test_null_list_over_data() -> None:
    """A null list's slot may cover values; they are no tokens."""
    column = pa.ListArray.from_arrays(
        pa.array([0, 2, 4, 5], pa.int32()), pa.array([1, 2, 3, 4, 5]), mask=pa.array([False, True, False])
    )
    found = tokenize(column, name="x")
    assert found.offsets is not None
    assert found.offsets.tolist() == [0, 2, 3, 4]
    assert found.values.tolist() == judge([1, 2, None, 5])


@given(
    st.lists(st.none() | st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=6), max_size=20),
    st.none() | st.integers(1, 5),
    st.data(),
)
def test_slices_and_chunks_of_lists(values: list[Any], max_length: int | None, data: st.DataObject) -> None:
    whole = pa.array(values, pa.list_(pa.int64()))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    bounds = [0, *cuts, len(values)]
    chunks = [whole.slice(start, stop - start) for start, stop in itertools.pairwise(bounds)]
    column = pa.chunked_array(chunks)
    assert column.to_pylist() == values
    check_lists(column, max_length)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "do"),
    [
        (pa.float32(), "dense"),
        (pa.decimal128(10, 2), "dense"),
        (pa.dictionary(pa.int8(), pa.float64()), "dense"),
        (pa.list_(pa.float64()), "cast it to integers or text"),
        (pa.timestamp("us", "UTC"), "transform: hour"),
        (pa.date32(), "transform: "),
        (pa.time64("us"), "transform: "),
        (pa.struct([("a", pa.int64())]), "columns of these types"),
        (pa.map_(pa.string(), pa.int64()), "columns of these types"),
        (pa.list_(pa.list_(pa.int64())), "one level deep"),
        (pa.duration("s"), "columns of these types"),
    ],
    ids=str,
)
def test_types_that_are_never_categorical(kind: pa.DataType, do: str) -> None:
    for column in (pa.array([None], kind), pa.chunked_array([], type=kind)):
        with pytest.raises(SchemaError) as caught:
            tokenize(column, name="price")
        assert "'price'" in str(caught.value)
        assert str(kind) in caught.value.found
        assert do in caught.value.do
    with pytest.raises(SchemaError):
        check_type(kind, "price")


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_too_long_value_is_named_by_row_and_length(kind: pa.DataType) -> None:
    column = pa.array([None, "short", "x" * 11, "y" * 12], kind)
    chunks = pa.chunked_array([column.slice(0, 2), column.slice(1)])
    assert len(tokenize(chunks, name="note", max_bytes=12).values) == 5
    with pytest.raises(DataError, match=r"'note', row 3; expected a value of at most 10 bytes; found 11 bytes"):
        tokenize(chunks, name="note", max_bytes=10)


def test_too_long_value_in_a_list_is_named_by_its_row() -> None:
    column = pa.array([["a"], None, [], ["b", "x" * 11]])
    with pytest.raises(DataError, match="row 3"):
        tokenize(column, name="note", max_bytes=10)
    with pytest.raises(DataError, match="row 3"):
        tokenize(pa.array([["a"], ["b"], [], ["x" * 11]]), name="note", max_bytes=10)
    assert len(tokenize(column, name="note", max_bytes=10, max_length=1).values) == 3


def test_unused_long_dictionary_values_are_no_error() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, None, 0], pa.int8()), pa.array(["a", "x" * 11]))
    assert tokenize(column, name="x", max_bytes=10).values.tolist() == judge(["a", None, "a"])
    with pytest.raises(DataError, match="row 1"):
        tokenize(pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), column.dictionary), name="x", max_bytes=10)


def test_default_limit() -> None:
    assert len(tokenize(pa.array(["x" * 65_536]), name="x").values) == 1
    with pytest.raises(DataError, match="65,537 bytes"):
        tokenize(pa.array(["x" * 65_537]), name="x")


def test_python_dates_and_decimals_are_refused() -> None:
    for value in (datetime.date(2024, 1, 1), decimal.Decimal(1), [1]):
        with pytest.raises(SchemaError):
            token(value)  # type: ignore[arg-type]


# --- surroundings ---------------------------------------------------------------------------------


def test_many_threads_at_once() -> None:
    column = pa.array(np.arange(3 * BLOCK))
    expected = tokenize(column, name="x").values
    results: list[Tokens] = []
    threads = [threading.Thread(target=lambda: results.append(tokenize(column, name="x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all((found.values == expected).all() for found in results)


def test_works_where_no_cache_can_be_written() -> None:
    """numba refuses to compile with a cache when it finds no folder for it: seen in read-only containers."""
    program = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import pyarrow as pa\n"
        "from embstore.tokens import token, tokenize\n"
        "assert tokenize(pa.array(['a']), name='x').values.tolist() == [token('a')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_in_a_forked_child() -> None:
    """A child has the parent's thread pool but not its threads: it must make its own."""
    column = pa.array(np.arange(3 * BLOCK))
    expected = tokenize(column, name="x").values
    child = os.fork()
    if child == 0:
        os._exit(0 if (tokenize(column, name="x").values == expected).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
