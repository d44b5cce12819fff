"""Hash spec 1: from a token to a row of the table, the same bits in numpy, numba and torch (``docs/hash-spec.md``).

    value ──embstore.tokens──> token ──┐
                                       ├─ xor ─ splitmix64 ─ mulhi64(·, num_rows) ──> row
    feature name, lookup, seed ──salt──┘

A row depends on the feature's name, the lookup, the seed and the value; never on other features or on the order of the
schema. It is monotone in the mixed token, so a table grown k-fold is an exact copy: ``rows(t, s, k * n) // k ==
rows(t, s, n)``. All integers are uint64 and wrap. Suffix: N tokens.

Other numba kernels call ``splitmix64_scalar``, ``fill_rows`` and ``xxh64_scalar``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from embstore.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

HASH_SPEC = 1

MISSING_TOKEN = 0x1266AE5E2A0D667B  # xxh64(b"embstore\0missing")
PRUNED_TOKEN = 0x5B934E4AC3D43C89  # xxh64(b"embstore\0pruned")

# Python integers for torch; numba needs typed ones, because uint64 with a literal (int64) becomes float64.
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_U_GOLDEN, _U_MIX1, _U_MIX2 = np.uint64(_GOLDEN), np.uint64(_MIX1), np.uint64(_MIX2)

_LOW32 = np.uint64(0xFFFFFFFF)

# xxh64 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md, "XXH64 Algorithm Description").
_P1, _P2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
_P3, _P4, _P5 = np.uint64(0x165667B19E3779F9), np.uint64(0x85EBCA77C2B2AE63), np.uint64(0x27D4EB2F165667C5)

_U0, _U1, _U2, _U3, _U4, _U7, _U8, _U11, _U12, _U16, _U18, _U23, _U24, _U27, _U29, _U30, _U31, _U32, _U33, _U64 = (
    np.uint64(n) for n in (0, 1, 2, 3, 4, 7, 8, 11, 12, 16, 18, 23, 24, 27, 29, 30, 31, 32, 33, 64)
)


def _digest() -> str:
    """Of the sources of all compiled functions."""
    folder = Path(__file__).parent
    sources = [Path(__file__)]
    for compiled_ones in ("kernels", "node2vec", "selection"):
        sources += sorted(folder.glob(f"{compiled_ones}/*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


_DIGEST = _digest()


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` that keeps its machine code on disk where it can, and works where no folder can be written.

    numba takes code on disk for current while the file of the function itself is unchanged, though it may contain code
    of others: so the name it is kept under says which sources it was made of.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ += f"_{_DIGEST}"
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            return njit(**options)(function)

    return decorate


@intrinsic
def _mulhi64(typingctx, a, b):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


def _unaligned_load(bits: int) -> Any:
    """An intrinsic that reads a little-endian unsigned integer at any address, as uint64."""

    @intrinsic
    def load(typingctx, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            pointer = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            value = builder.load(pointer, align=1)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return types.uint64(types.uint64), codegen

    return load


@intrinsic
def _select(typingctx, condition, yes, no):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.select(*args)

    return types.uint64(types.boolean, types.uint64, types.uint64), codegen


load64, _load32, load8 = _unaligned_load(64), _unaligned_load(32), _unaligned_load(8)


@compiled(forceinline=True)
def splitmix64_scalar(x):  # type: ignore[no-untyped-def]
    """One step of SplitMix64 from state ``x`` (Steele, Lea, Flood 2014; Stafford's mix 13)."""
    z1 = np.uint64(x) + _U_GOLDEN
    z2 = (z1 ^ (z1 >> _U30)) * _U_MIX1
    z3 = (z2 ^ (z2 >> _U27)) * _U_MIX2
    return z3 ^ (z3 >> _U31)


@compiled(forceinline=True)
def mulhi64_scalar(a, b):  # type: ignore[no-untyped-def]
    """The upper 64 bits of the 128-bit product."""
    return _mulhi64(np.uint64(a), np.uint64(b))


@compiled(forceinline=True)
def row_scalar(token, salt, num_rows):  # type: ignore[no-untyped-def]
    """The row of one token, as uint64."""
    return mulhi64_scalar(splitmix64_scalar(np.uint64(token) ^ np.uint64(salt)), np.uint64(num_rows))


@compiled(forceinline=True)
def _rotl(x, bits):  # type: ignore[no-untyped-def]
    return (x << bits) | (x >> (_U64 - bits))


@compiled(forceinline=True)
def _round(accumulator, lane):  # type: ignore[no-untyped-def]
    return _rotl(accumulator + lane * _P2, _U31) * _P1


@compiled(forceinline=True)
def _merge(accumulator, lane):  # type: ignore[no-untyped-def]
    return (accumulator ^ _round(_U0, lane)) * _P1 + _P4


@compiled(forceinline=True)
def _stripes(address, length, seed):  # type: ignore[no-untyped-def]
    """Steps 1 to 4 of XXH64: the accumulator after all whole 32-byte stripes, and the length added."""
    if length < _U32:
        return seed + _P5 + length
    a, b, c, d = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
    end = address + (length & ~_U31)
    while address < end:
        a = _round(a, load64(address))
        b = _round(b, load64(address + _U8))
        c = _round(c, load64(address + _U16))
        d = _round(d, load64(address + _U24))
        address += _U32
    h = _rotl(a, _U1) + _rotl(b, _U7) + _rotl(c, _U12) + _rotl(d, _U18)
    return _merge(_merge(_merge(_merge(h, a), b), c), d) + length


@compiled(forceinline=True)
def _eat8(h, address):  # type: ignore[no-untyped-def]
    return _rotl(h ^ _round(_U0, load64(address)), _U27) * _P1 + _P4


@compiled(forceinline=True)
def _eat4(h, address):  # type: ignore[no-untyped-def]
    return _rotl(h ^ (_load32(address) * _P1), _U23) * _P2 + _P3


@compiled(forceinline=True)
def _eat1(h, address):  # type: ignore[no-untyped-def]
    return _rotl(h ^ (load8(address) * _P5), _U11) * _P1


@compiled(forceinline=True)
def _avalanche(h):  # type: ignore[no-untyped-def]
    h2 = (h ^ (h >> _U33)) * _P2
    h3 = (h2 ^ (h2 >> _U29)) * _P3
    return h3 ^ (h3 >> _U32)


@compiled(nogil=True)
def xxh64_at(address, length, seed):  # type: ignore[no-untyped-def]
    """XXH64 of ``length`` bytes at a memory address; all uint64. The memory must stay alive during the call."""
    h = _stripes(address, length, seed)
    end = address + length
    here = address + (length & ~_U31)
    while here + _U8 <= end:
        h = _eat8(h, here)
        here += _U8
    if here + _U4 <= end:
        h = _eat4(h, here)
        here += _U4
    while here < end:
        h = _eat1(h, here)
        here += _U1
    return _avalanche(h)


@compiled(forceinline=True)
def xxh64_padded_at(address, length, seed):  # type: ignore[no-untyped-def]
    """``xxh64_at`` for memory readable for 24 bytes past the value's end; 1.6 times as fast for 8 to 36 bytes.

    The length of the tail is random in most columns, so each branch on it costs a misprediction. Here every step
    of the tail is computed and the ones that apply are selected.
    """
    h = _stripes(address, length, seed)
    here = address + (length & ~_U31)
    h = _select(length & _U31 >= _U8, _eat8(h, here), h)
    h = _select(length & _U31 >= _U16, _eat8(h, here + _U8), h)
    h = _select(length & _U31 >= _U24, _eat8(h, here + _U16), h)
    here = address + (length & ~_U7)
    h = _select(length & _U4 > _U0, _eat4(h, here), h)
    here = address + (length & ~_U3)
    h = _select(length & _U3 > _U0, _eat1(h, here), h)
    h = _select(length & _U3 > _U1, _eat1(h, here + _U1), h)
    h = _select(length & _U3 > _U2, _eat1(h, here + _U2), h)
    return _avalanche(h)


@compiled(nogil=True)
def xxh64_scalar(buffer, start, length, seed):  # type: ignore[no-untyped-def]
    """XXH64 of ``buffer[start:start + length]``, a contiguous uint8 array; bounds are the caller's duty."""
    return xxh64_at(np.uint64(buffer.ctypes.data) + np.uint64(start), np.uint64(length), np.uint64(seed))


@compiled(nogil=True)
def _splitmix64_array(x_N, out_N):  # type: ignore[no-untyped-def]
    for i in range(len(x_N)):
        out_N[i] = splitmix64_scalar(x_N[i])


@compiled(nogil=True)
def fill_rows(token_N, salt, num_rows, base, out_N):  # type: ignore[no-untyped-def]
    """``base`` plus the row of each token, into ``out_N``, int64. For kernels."""
    if num_rows > _LOW32:
        for i in range(len(token_N)):
            out_N[i] = base + np.int64(row_scalar(token_N[i], salt, num_rows))
        return
    # For fewer rows than 2^32 two products of 32 bits are enough, and vectors have those (see torch_rows).
    for i in range(len(token_N)):
        z = splitmix64_scalar(np.uint64(token_N[i]) ^ salt)
        row = ((z >> _U32) * num_rows + (((z & _LOW32) * num_rows) >> _U32)) >> _U32
        out_N[i] = base + np.int64(row)


def xxh64(data: bytes, seed: int = 0) -> int:
    """XXH64 of a byte string, as an unsigned 64-bit integer."""
    return int(xxh64_scalar(np.frombuffer(data or b"\0", dtype=np.uint8), 0, len(data), np.uint64(seed)))


def salt(feature: str, lookup: int, seed: int) -> int:
    """The salt of one lookup of a feature, uint64: ``xxh64(feature + NUL + decimal lookup, seed)``."""
    return xxh64(f"{feature}\0{lookup}".encode(), seed)


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One SplitMix64 step from each state; uint64 of any shape in, the same shape out.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the constants of
    java.util.SplittableRandom (Stafford's variant 13). ``splitmix64([0])`` is 0xE220A8397B1DCDAF.
    """
    flat = np.ascontiguousarray(x, dtype=np.uint64).reshape(-1)
    out = np.empty_like(flat)
    _splitmix64_array(flat, out)
    return out.reshape(np.shape(x))


def rows(tokens: NDArray[np.uint64], salt: int, num_rows: int) -> NDArray[np.int64]:
    """The row of each token: ``mulhi64(splitmix64(token ^ salt), num_rows)``.

    Args:
        tokens: uint64, any shape.
        salt: of a feature's lookup, see ``salt``.
        num_rows: rows of the (sub-)table, 1 to 2^62.

    Returns:
        int64 in ``[0, num_rows)``, shaped as ``tokens``.

    Raises:
        ConfigError: ``num_rows`` out of range.

    Source: multiply-shift range reduction, Lemire, "Fast random integer generation in an interval", 2019.
    """
    _check(num_rows)
    flat = np.ascontiguousarray(tokens, dtype=np.uint64).reshape(-1)
    out = np.empty(flat.shape, dtype=np.int64)
    fill_rows(flat, np.uint64(salt), np.uint64(num_rows), 0, out)
    return out.reshape(np.shape(tokens))


def sub_table(salt: int, num_tables: int) -> int:
    """The sub-table of a lookup: ``mulhi64(splitmix64(salt), num_tables)``, which is the row of token 0."""
    return int(rows(np.zeros(1, dtype=np.uint64), salt, num_tables)[0])


def torch_rows(tokens: Tensor, salt: int, num_rows: int) -> Tensor:
    """``rows`` in torch operations, on any device.

    Args:
        tokens: int64, the bits of uint64 tokens, any shape.
        salt: uint64, as ``salt`` gives.
        num_rows: 1 to 2^62.

    Returns:
        int64 in ``[0, num_rows)``, shaped as ``tokens``.

    Raises:
        ConfigError: ``num_rows`` out of range.
    """
    _check(num_rows)
    # int64 products and sums wrap, so their bits are the unsigned ones; only right shifts must be made logical.
    z = (tokens ^ _signed(salt)) + _signed(_GOLDEN)
    z = (z ^ _shift_right(z, 30)) * _signed(_MIX1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MIX2)
    z = z ^ _shift_right(z, 31)
    # mulhi64 by 32-bit halves (Hacker's Delight, 8-2): no partial sum reaches 2^64.
    n_high, n_low = num_rows >> 32, num_rows & 0xFFFFFFFF
    z_high, z_low = _shift_right(z, 32), z & 0xFFFFFFFF
    middle = z_high * n_low + _shift_right(z_low * n_low, 32)
    if n_high == 0:
        return _shift_right(middle, 32)
    carry = z_low * n_high + (middle & 0xFFFFFFFF)
    return z_high * n_high + _shift_right(middle, 32) + _shift_right(carry, 32)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _check(num_rows: int) -> None:
    if not 1 <= num_rows <= 1 << 62:
        raise ConfigError("number of rows", expected="1 to 2^62", found=str(num_rows))
