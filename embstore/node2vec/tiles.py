"""Vector code of skip-gram: one tile of inputs against outputs, in registers.

    inputs   x_b    rows of up to 2 * window contexts        dots:    z_bo = x_b . y_o
    outputs  y_o    the centre and its negatives, OUTPUTS    errors:  e_bo = rate_o * (label_o - sigmoid(z_bo))
                                                             updates: x_b += sum_o e_bo y_o,  y_o += sum_b e_bo x_b

All errors are of the numbers before the tile's updates (Ji, Satish, Li & Dubey 2016: the product of a window's contexts
with shared negatives). A compiler would check before each short loop whether rows overlap; this is written as LLVM's
vectors instead, of as many lanes as the processor has. Rows are addresses of float32, a multiple of ``LANES`` wide.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
OUTPUTS = 6  # rows of y in a tile: with their sums they fill the registers
STRIDE = 8  # errors of an input

_FLOAT, _LONG, _INT = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_PAIR = LANES // STRIDE  # inputs whose errors are one vector
_TOGETHER = 2  # inputs whose products are taken together
_FUSED = ("contract", "nsz")


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FUSED), c, flags=_FUSED)


def _same(value: float, kind: Any = _VECTOR) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _broadcast(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(_INT, 0))
    mask = ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), mask)


def _pointer(builder: Any, address: Any, kind: Any = _VECTOR) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder: Any, address: Any, kind: Any = _VECTOR) -> Any:
    return builder.load(_pointer(builder, address, kind), align=4)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, _pointer(builder, address), align=4)


def _element(builder: Any, base: Any, number: Any, size: int) -> Any:
    """The address of an element."""
    return builder.add(base, builder.mul(number, ir.Constant(_LONG, size)))


def _sums(builder: Any, vectors: list[Any]) -> Any:
    """Of as many vectors as they have lanes, the sum of number i in lane i: halves are added, then quarters, ..."""
    half = LANES
    while len(vectors) > 1:
        half //= 2
        first: list[int] = []
        second: list[int] = []
        for start in range(0, LANES, 2 * half):
            first += range(start, start + half)
            second += range(start + half, start + 2 * half)
        masks = [
            ir.Constant(ir.VectorType(_INT, LANES), _merge(part, [lane + LANES for lane in part], half))
            for part in (first, second)
        ]
        count = len(vectors) // 2
        vectors = [
            builder.fadd(
                builder.shuffle_vector(vectors[i], vectors[i + count], masks[0]),
                builder.shuffle_vector(vectors[i], vectors[i + count], masks[1]),
            )
            for i in range(count)
        ]
    return vectors[0]


def _merge(one: list[int], other: list[int], size: int) -> list[int]:
    """Pieces of ``size`` of both, in turn."""
    out = []
    for start in range(0, len(one), size):
        out += one[start : start + size] + other[start : start + size]
    return out


def _sigmoid(builder: Any, z: Any) -> Any:
    """1 / (1 + 2^t) with t = -z log2 e; 2^t by its whole part's bits and a polynomial of the rest (3e-6 at most)."""
    t = builder.fmul(z, _same(-1.4426950408889634))
    limit = 100.0
    t = builder.select(builder.fcmp_ordered("<", t, _same(limit)), t, _same(limit))
    t = builder.select(builder.fcmp_ordered(">", t, _same(-limit)), t, _same(-limit))
    magic = _same(1.5 * 2**23)  # added, it leaves no room for a fraction
    whole = builder.fsub(builder.fadd(t, magic), magic)
    rest = builder.fsub(t, whole)
    power = _same(0.0013333558)
    for coefficient in (0.0096181291, 0.0555041087, 0.2402265070, 0.6931471806, 1.0):
        power = _fused(builder, power, rest, _same(coefficient))
    ints = ir.VectorType(_INT, LANES)
    bits = builder.shl(builder.add(builder.fptosi(whole, ints), _same(127, ints)), _same(23, ints))
    return builder.fdiv(_same(1.0), _fused(builder, power, builder.bitcast(bits, _VECTOR), _same(1.0)))


@intrinsic
def errors(typingctx, xs, ys, inputs, width, labels, rates, out):  # type: ignore[no-untyped-def]
    """Compute e_bo of a tile.

    Args:
        xs, ys: addresses (uint64) of the arrays of rows' addresses; xs has an even number of them.
        inputs, width: rows of x, and floats of a row.
        labels, rates: addresses of ``LANES`` floats, repeating every ``STRIDE``; rates are 0 where there is no output.
        out: address of float32 ``[inputs, STRIDE]``, of whole vectors.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        xs, ys, inputs, width, labels, rates, out = args
        label, rate = _load(builder, labels), _load(builder, rates)
        y = [_load(builder, _element(builder, ys, ir.Constant(_LONG, o), 8), _LONG) for o in range(OUTPUTS)]
        sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in y] for _ in range(_TOGETHER)]
        with cgutils.for_range_slice(builder, ir.Constant(_LONG, 0), inputs, ir.Constant(_LONG, _TOGETHER), _LONG) as (
            b,
            _,
        ):
            x = [
                _load(builder, _element(builder, xs, builder.add(b, ir.Constant(_LONG, i)), 8), _LONG)
                for i in range(_TOGETHER)
            ]
            for of_x in sums:
                for place in of_x:
                    builder.store(_same(0.0), place)
            end = builder.mul(width, ir.Constant(_LONG, 4))
            with cgutils.for_range_slice(builder, ir.Constant(_LONG, 0), end, ir.Constant(_LONG, 4 * LANES), _LONG) as (
                at,
                _,
            ):
                x_now = [_load(builder, builder.add(row, at)) for row in x]
                for o, row in enumerate(y):
                    y_now = _load(builder, builder.add(row, at))
                    for i in range(_TOGETHER):
                        builder.store(_fused(builder, x_now[i], y_now, builder.load(sums[i][o])), sums[i][o])
            zero = _same(0.0)
            per_vector = LANES // STRIDE
            for first in range(0, _TOGETHER, per_vector):
                vectors: list[Any] = [zero] * LANES
                for i in range(per_vector):
                    for o in range(OUTPUTS):
                        vectors[i * STRIDE + o] = builder.load(sums[first + i][o])
                z = _sums(builder, vectors)
                error = builder.fmul(rate, builder.fsub(label, _sigmoid(builder, z)))
                at = builder.add(b, ir.Constant(_LONG, first))
                _store(builder, error, _element(builder, out, at, 4 * STRIDE))
        return context.get_dummy_value()

    return types.void(*[types.uint64] * 2, *[types.int64] * 2, *[types.uint64] * 3), codegen


@intrinsic
def update(typingctx, xs, ys, inputs, width, error):  # type: ignore[no-untyped-def]
    """Add to the rows of a tile what its errors (address of float32 ``[inputs, STRIDE]``) say; others as ``errors``."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        xs, ys, inputs, width, error = args
        y = [_load(builder, _element(builder, ys, ir.Constant(_LONG, o), 8), _LONG) for o in range(OUTPUTS)]
        sums = [cgutils.alloca_once(builder, _VECTOR) for _ in y]
        end = builder.mul(width, ir.Constant(_LONG, 4))
        step = ir.Constant(_LONG, 4 * LANES)
        with cgutils.for_range_slice(builder, ir.Constant(_LONG, 0), end, step, _LONG) as (at, _):
            y_now = [_load(builder, builder.add(row, at)) for row in y]
            for place, value in zip(sums, y_now, strict=True):
                builder.store(value, place)
            with cgutils.for_range(builder, inputs) as loop:
                row = builder.add(_load(builder, _element(builder, xs, loop.index, 8), _LONG), at)
                x_now = _load(builder, row)
                x_new = x_now
                errors_of = _element(builder, error, loop.index, 4 * STRIDE)
                for o in range(OUTPUTS):
                    e = _broadcast(builder, _load(builder, builder.add(errors_of, ir.Constant(_LONG, 4 * o)), _FLOAT))
                    x_new = _fused(builder, e, y_now[o], x_new)
                    builder.store(_fused(builder, e, x_now, builder.load(sums[o])), sums[o])
                _store(builder, x_new, row)
            for place, target in zip(sums, y, strict=True):
                _store(builder, builder.load(place), builder.add(target, at))
        return context.get_dummy_value()

    return types.void(*[types.uint64] * 2, *[types.int64] * 2, types.uint64), codegen
