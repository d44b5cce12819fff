"""The hash spec against Python integers, the xxhash package and its frozen vectors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from embstore import hashing
from embstore.errors import ConfigError
from embstore.hashing import (
    HASH_SPEC,
    MISSING_TOKEN,
    PRUNED_TOKEN,
    mulhi64_scalar,
    row_scalar,
    rows,
    salt,
    splitmix64,
    splitmix64_scalar,
    sub_table,
    torch_rows,
    xxh64,
    xxh64_at,
    xxh64_padded_at,
    xxh64_scalar,
)
from embstore.tokens import token

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "hash-spec-1.json").read_text())
MASK = 2**64 - 1
UINT64 = st.integers(0, MASK)
# Where carries between 32-bit halves are most likely to go wrong.
EDGES = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 2**63, MASK - 1, MASK]
NUM_ROWS = st.integers(1, 2**62) | st.sampled_from([1, 2, 3, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**62 - 1, 2**62])


def judge_splitmix64(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def judge_row(token: int, salt: int, num_rows: int) -> int:
    return judge_splitmix64(token ^ salt) * num_rows >> 64


def unsigned(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def signed_tensor(values: list[int]) -> torch.Tensor:
    return torch.from_numpy(unsigned(values).view(np.int64))


# --- xxh64 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63, MASK])
def test_xxh64_of_every_length(seed: int) -> None:
    data = np.random.default_rng(seed).bytes(300)
    for length in range(len(data)):
        assert xxh64(data[:length], seed) == xxhash.xxh64_intdigest(data[:length], seed)


@given(st.binary(max_size=200), UINT64)
def test_xxh64(data: bytes, seed: int) -> None:
    assert xxh64(data, seed) == xxhash.xxh64_intdigest(data, seed)


def test_xxh64_inside_kernels() -> None:
    """At any alignment, by array and by address, exact and padded."""
    buffer = np.frombuffer(np.random.default_rng(3).bytes(200), dtype=np.uint8)

    @njit
    def by_address(buffer, start, length, seed):  # type: ignore[no-untyped-def]
        address = np.uint64(buffer.ctypes.data) + np.uint64(start)
        length, seed = np.uint64(length), np.uint64(seed)
        return xxh64_at(address, length, seed), xxh64_padded_at(address, length, seed)

    for start in range(9):
        for length in range(130):
            expected = xxhash.xxh64_intdigest(buffer[start : start + length].tobytes(), 7)
            assert xxh64_scalar(buffer, start, length, 7) == expected
            assert by_address(buffer, start, length, 7) == (expected, expected)


# --- splitmix64, mulhi64, rows --------------------------------------------------------------------


@given(st.lists(UINT64 | st.sampled_from(EDGES)))
def test_splitmix64(values: list[int]) -> None:
    assert splitmix64(unsigned(values)).tolist() == [judge_splitmix64(value) for value in values]


def test_splitmix64_is_the_published_generator() -> None:
    """The first outputs for seed 1234567, as listed with many implementations; each step adds gamma to the state."""
    states = [(1234567 + n * 0x9E3779B97F4A7C15) & MASK for n in range(5)]
    assert splitmix64(unsigned(states)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.lists(UINT64 | st.sampled_from(EDGES), min_size=1), UINT64 | st.sampled_from(EDGES), NUM_ROWS)
def test_rows_are_the_same_everywhere(tokens: list[int], salt: int, num_rows: int) -> None:
    expected = [judge_row(token, salt, num_rows) for token in tokens]
    found = rows(unsigned(tokens), salt, num_rows)
    assert found.dtype == np.int64
    assert found.tolist() == expected
    assert torch_rows(signed_tensor(tokens), salt, num_rows).tolist() == expected
    assert [int(row_scalar(np.uint64(token), np.uint64(salt), np.uint64(num_rows))) for token in tokens] == expected


@given(UINT64 | st.sampled_from(EDGES), UINT64 | st.sampled_from(EDGES))
def test_scalars(a: int, b: int) -> None:
    assert mulhi64_scalar(np.uint64(a), np.uint64(b)) == a * b >> 64
    assert splitmix64_scalar(np.uint64(a)) == judge_splitmix64(a)


def test_scalars_take_signed_integers_in_kernels() -> None:
    """numba turns uint64 with int64 into float64; the scalars must not let that happen."""

    @njit
    def kernel(tokens, salt, num_rows):  # type: ignore[no-untyped-def]
        return [row_scalar(token, salt, num_rows) for token in tokens]

    tokens = [0, -1, 2**62, -(2**63)]
    expected = [judge_row(token & MASK, 5, 1000) for token in tokens]
    assert [int(row) for row in kernel(np.array(tokens), 5, 1000)] == expected


def test_shapes_and_layouts_are_kept() -> None:
    tokens = np.arange(24, dtype=np.uint64).reshape(2, 3, 4)
    expected = [judge_row(token, 9, 77) for token in range(24)]
    assert rows(tokens, 9, 77).shape == tokens.shape
    assert rows(tokens, 9, 77).ravel().tolist() == expected
    assert rows(tokens.T, 9, 77).T.ravel().tolist() == expected
    assert splitmix64(tokens[:, ::2]).tolist() == splitmix64(tokens)[:, ::2].tolist()
    assert torch_rows(torch.arange(24).reshape(2, 3, 4), 9, 77).flatten().tolist() == expected
    assert rows(np.empty(0, dtype=np.uint64), 9, 77).shape == (0,)
    assert torch_rows(torch.empty(0, dtype=torch.int64), 9, 77).shape == (0,)


@pytest.mark.parametrize("num_rows", [0, -1, 2**62 + 1])
def test_number_of_rows_out_of_range(num_rows: int) -> None:
    with pytest.raises(ConfigError, match=r"expected 1 to 2\^62"):
        rows(unsigned([1]), 0, num_rows)
    with pytest.raises(ConfigError, match=r"expected 1 to 2\^62"):
        torch_rows(signed_tensor([1]), 0, num_rows)


# --- laws -----------------------------------------------------------------------------------------


@given(st.lists(UINT64, min_size=1), UINT64, st.integers(1, 2**40), st.integers(1, 2**20))
def test_growing_a_table_splits_each_row(tokens: list[int], salt: int, num_rows: int, factor: int) -> None:
    grown = rows(unsigned(tokens), salt, factor * num_rows)
    assert (grown // factor == rows(unsigned(tokens), salt, num_rows)).all()


@pytest.mark.parametrize("tokens", ["counted", "text"])
@pytest.mark.parametrize("num_rows", [64, 1000])
def test_rows_are_uniform(tokens: str, num_rows: int) -> None:
    """Pearson's chi-square of 200 values a row stays within 5 deviations of its mean, for regular values too."""
    count = 200 * num_rows
    values = np.arange(count, dtype=np.uint64)
    ids = splitmix64(values) if tokens == "counted" else unsigned([token(f"user_{i:08d}") for i in range(count)])
    for lookup in range(4):
        observed = np.bincount(rows(ids, salt("user", lookup, 0), num_rows), minlength=num_rows)
        chi_square = float(((observed - 200) ** 2 / 200).sum())
        assert abs(chi_square - (num_rows - 1)) < 5 * np.sqrt(2 * (num_rows - 1))


def test_lookups_are_independent() -> None:
    """Pairs of rows of two lookups are as uniform as single rows: values that collide in one differ in the other."""
    ids = splitmix64(np.arange(200 * 32 * 32, dtype=np.uint64))
    first, second = (rows(ids, salt("user", lookup, 0), 32) for lookup in (0, 1))
    observed = np.bincount(first * 32 + second, minlength=1024)
    assert abs(float(((observed - 200) ** 2 / 200).sum()) - 1023) < 5 * np.sqrt(2 * 1023)


@given(st.text(), st.integers(0, 1000), UINT64)
def test_salt_is_xxh64_of_the_name_and_the_lookup(feature: str, lookup: int, seed: int) -> None:
    assert salt(feature, lookup, seed) == xxhash.xxh64_intdigest(feature.encode() + b"\0" + b"%d" % lookup, seed)


@given(UINT64, st.integers(1, 10_000))
def test_sub_table(salt: int, num_tables: int) -> None:
    assert sub_table(salt, num_tables) == judge_splitmix64(salt) * num_tables >> 64


# --- frozen ---------------------------------------------------------------------------------------


def test_constants_are_frozen() -> None:
    assert HASH_SPEC == VECTORS["spec"] == 1
    assert MISSING_TOKEN == int(VECTORS["missing_token"], 16) == xxhash.xxh64_intdigest(b"embstore\0missing")
    assert PRUNED_TOKEN == int(VECTORS["pruned_token"], 16) == xxhash.xxh64_intdigest(b"embstore\0pruned")


@pytest.mark.parametrize("vector", VECTORS["xxh64"])
def test_frozen_xxh64(vector: dict[str, Any]) -> None:
    assert xxh64(bytes.fromhex(vector["bytes"]), int(vector["seed"], 16)) == int(vector["hash"], 16)


@pytest.mark.parametrize("vector", VECTORS["splitmix64"])
def test_frozen_splitmix64(vector: dict[str, Any]) -> None:
    assert splitmix64(unsigned([int(vector["x"], 16)])).tolist() == [int(vector["out"], 16)]


@pytest.mark.parametrize("vector", VECTORS["tokens"])
def test_frozen_tokens(vector: dict[str, Any]) -> None:
    value = bytes.fromhex(vector["bytes"]) if "bytes" in vector else vector["value"]
    assert token(value) == int(vector["token"], 16)


@pytest.mark.parametrize("vector", VECTORS["rows"])
def test_frozen_rows(vector: dict[str, Any]) -> None:
    """From a value to its row, all of the spec."""
    feature_salt = salt(vector["feature"], vector["lookup"], int(vector["seed"], 16))
    assert feature_salt == int(vector["salt"], 16)
    assert sub_table(feature_salt, 7) == vector["sub_table_of_7"]
    value = token(vector["value"])
    for num_rows, row in zip(VECTORS["num_rows"], vector["rows"], strict=True):
        assert rows(unsigned([value]), feature_salt, num_rows).tolist() == [row]
        assert torch_rows(signed_tensor([value]), feature_salt, num_rows).tolist() == [row]


def test_hash_spec_page_shows_the_vectors() -> None:
    """The table of the page is the file's, so neither can change alone."""
    page = (Path(__file__).parent.parent / "docs" / "hash-spec.md").read_text()
    for vector in VECTORS["rows"]:
        cells = (
            vector["feature"],
            vector["lookup"],
            vector["seed"],
            json.dumps(vector["value"], ensure_ascii=False),
            vector["salt"],
        )
        assert f"| {' | '.join(map(str, (*cells, vector['rows'][0], vector['rows'][1])))} |" in page
    for constant in (VECTORS["missing_token"], VECTORS["pruned_token"]):
        assert constant in page


# --- surroundings ---------------------------------------------------------------------------------


def test_importing_hashing_needs_no_torch() -> None:
    """A server hashes without a training library."""
    program = "import sys, embstore.hashing, embstore.tokens; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(hashing.__file__).parent.parent)
