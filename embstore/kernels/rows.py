"""Compiled operations on rows of numbers, by address: what the table's kernels do to each row they touch.

Rows are short (8 to 128 numbers) and of a length known only at run time; compilers vectorise such loops for long rows,
and leave short ones to a scalar remainder. Here the vectors are written out: eight lanes at a time, then one by one.
The order of operations depends on the length alone. Addresses are uint64, of float32 numbers unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8

_I64, _F32, _F64 = ir.IntType(64), ir.FloatType(), ir.DoubleType()
_FUSE = ("contract",)  # multiply and add may be one instruction


class _Lanes:
    """Emits code for the numbers ``i`` to ``i + lanes`` of some rows."""

    def __init__(self, builder: Any, i: Any, lanes: int) -> None:
        self.builder, self.i, self.lanes = builder, i, lanes

    def of(self, kind: Any) -> Any:
        """``lanes`` numbers of this kind."""
        return ir.VectorType(kind, self.lanes) if self.lanes > 1 else kind

    def _pointer(self, address: Any, kind: Any, size: int) -> Any:
        at = self.builder.add(address, self.builder.mul(self.i, _I64(size)))
        return self.builder.inttoptr(at, self.of(kind).as_pointer())

    def load(self, address: Any, kind: Any = _F32, size: int = 4) -> Any:
        return self.builder.load(self._pointer(address, kind, size), align=size)

    def store(self, value: Any, address: Any, kind: Any = _F32, size: int = 4) -> None:
        self.builder.store(value, self._pointer(address, kind, size), align=size)

    def all(self, number: Any, kind: Any = _F32) -> Any:
        """The same number in each lane."""
        if self.lanes == 1:
            return number
        first = self.builder.insert_element(ir.Constant(self.of(kind), ir.Undefined), number, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, ir.Constant(self.of(kind), ir.Undefined), zeros)

    def sqrt(self, value: Any) -> Any:
        name = f"llvm.sqrt.v{self.lanes}f32" if self.lanes > 1 else "llvm.sqrt.f32"
        function = self.builder.module.declare_intrinsic(name, (), ir.FunctionType(value.type, [value.type]))
        return self.builder.call(function, [value])

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=_FUSE)

    def sub(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=_FUSE)

    def mul(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=_FUSE)

    def div(self, a: Any, b: Any) -> Any:
        return self.builder.fdiv(a, b)


def _each(builder: Any, count: Any, emit: Callable[[_Lanes], None]) -> None:
    """Loop over ``count`` numbers."""
    whole = builder.and_(count, _I64(-LANES))
    with cgutils.for_range_slice(builder, _I64(0), whole, _I64(LANES), _I64) as (i, _):
        emit(_Lanes(builder, i, LANES))
    with cgutils.for_range_slice(builder, whole, count, _I64(1), _I64) as (i, _):
        emit(_Lanes(builder, i, 1))


_ADDRESS, _COUNT, _NUMBER = types.uint64, types.int64, types.float32


def _operation(parameters: tuple[Any, ...], emit: Callable[..., None]) -> tuple[Any, Any]:
    """The signature and code of an intrinsic that runs ``emit(lanes, *arguments)`` over rows of a length given last."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _each(builder, args[-1], lambda lanes: emit(lanes, *args[:-1]))
        return context.get_dummy_value()

    return types.void(*parameters, _COUNT), codegen


@intrinsic
def copy(typingctx, to, row, count):  # type: ignore[no-untyped-def]
    """``to = row``"""
    return _operation((_ADDRESS, _ADDRESS), lambda at, to, row: at.store(at.load(row), to))


@intrinsic
def copy_scaled(typingctx, to, row, scale, count):  # type: ignore[no-untyped-def]
    """``to = scale * row``"""
    return _operation(
        (_ADDRESS, _ADDRESS, _NUMBER),
        lambda at, to, row, scale: at.store(at.mul(at.load(row), at.all(scale)), to),
    )


@intrinsic
def add_scaled(typingctx, to, row, scale, count):  # type: ignore[no-untyped-def]
    """``to += scale * row``"""
    return _operation(
        (_ADDRESS, _ADDRESS, _NUMBER),
        lambda at, to, row, scale: at.store(at.add(at.load(to), at.mul(at.load(row), at.all(scale))), to),
    )


@intrinsic
def add_wide(typingctx, to, row, scale, count):  # type: ignore[no-untyped-def]
    """``to += scale * row`` in float64: ``to`` and ``scale`` are, ``row`` is float32."""

    def emit(at, to, row, scale):  # type: ignore[no-untyped-def]
        wide = at.builder.fpext(at.load(row), at.of(_F64))
        at.store(at.builder.fadd(at.load(to, _F64, 8), at.builder.fmul(wide, at.all(scale, _F64))), to, _F64, 8)

    return _operation((_ADDRESS, _ADDRESS, types.float64), emit)


@intrinsic
def sum_rows(typingctx, to, table, row_bytes, hits, hit_count, scale, count):  # type: ignore[no-untyped-def]
    """``to = sum of scale * row`` in float64, rounded; the rows are those of a table numbered by int64 at ``hits``."""

    def emit(at, to, table, row_bytes, hits, hit_count, scale):  # type: ignore[no-untyped-def]
        builder = at.builder
        total = cgutils.alloca_once(builder, at.of(_F64))
        builder.store(ir.Constant(at.of(_F64), [0.0] * at.lanes if at.lanes > 1 else 0.0), total)
        with cgutils.for_range(builder, hit_count) as loop:
            place = builder.add(hits, builder.mul(loop.index, _I64(8)))
            row = builder.load(builder.inttoptr(place, _I64.as_pointer()))
            number = at.load(builder.add(table, builder.mul(row, row_bytes)))
            wide = builder.fmul(builder.fpext(number, at.of(_F64)), at.all(scale, _F64))
            builder.store(builder.fadd(builder.load(total), wide), total)
        at.store(builder.fptrunc(builder.load(total), at.of(_F32)), to)

    return _operation((_ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _COUNT, types.float64), emit)


@intrinsic
def round_wide(typingctx, to, row, count):  # type: ignore[no-untyped-def]
    """``to = row`` rounded from float64."""
    return _operation(
        (_ADDRESS, _ADDRESS),
        lambda at, to, row: at.store(at.builder.fptrunc(at.load(row, _F64, 8), at.of(_F32)), to),
    )


@intrinsic
def widen_bfloat16(typingctx, to, row, count):  # type: ignore[no-untyped-def]
    """``to = row`` from bfloat16."""

    def emit(at, to, row):  # type: ignore[no-untyped-def]
        wide = at.builder.zext(at.load(row, ir.IntType(16), 2), at.of(ir.IntType(32)))
        shifted = at.builder.shl(wide, at.all(ir.IntType(32)(16), ir.IntType(32)))
        at.store(at.builder.bitcast(shifted, at.of(_F32)), to)

    return _operation((_ADDRESS, _ADDRESS), emit)


@intrinsic
def widen_float16(typingctx, to, row, count):  # type: ignore[no-untyped-def]
    """``to = row`` from float16."""

    def emit(at, to, row):  # type: ignore[no-untyped-def]
        builder, number = at.builder, ir.IntType(32)

        def same(value):  # type: ignore[no-untyped-def]
            return at.all(number(value), number)

        bits = builder.zext(at.load(row, ir.IntType(16), 2), at.of(number))
        # Moved into place, a float16 is the float32 2^112 times smaller, subnormals included.
        moved = builder.shl(builder.and_(bits, same(0x7FFF)), same(13))
        scale = builder.bitcast(same(0x77800000), at.of(_F32))
        size = builder.bitcast(builder.fmul(builder.bitcast(moved, at.of(_F32)), scale), at.of(number))
        endless = builder.icmp_unsigned(">=", builder.and_(bits, same(0x7FFF)), same(0x7C00))
        size = builder.select(endless, builder.or_(size, same(0x7F800000)), size)
        sign = builder.shl(builder.and_(bits, same(0x8000)), same(16))
        at.store(builder.bitcast(builder.or_(size, sign), at.of(_F32)), to)

    return _operation((_ADDRESS, _ADDRESS), emit)


@intrinsic
def sum_of_squares(typingctx, row, count):  # type: ignore[no-untyped-def]
    """The sum of a row's squares: lane by lane, then over the lanes."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        row, count = args
        vector = ir.VectorType(_F32, LANES)
        lanes = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES))
        rest = cgutils.alloca_once_value(builder, _F32(0.0))

        def emit(at):  # type: ignore[no-untyped-def]
            total = lanes if at.lanes > 1 else rest
            value = at.load(row)
            builder.store(at.add(builder.load(total), at.mul(value, value)), total)

        # The allocas are made once, the sums begin anew at each call.
        builder.store(ir.Constant(vector, [0.0] * LANES), lanes)
        builder.store(_F32(0.0), rest)
        _each(builder, count, emit)
        total, parts = builder.load(rest), builder.load(lanes)
        for lane in range(LANES):
            total = builder.fadd(total, builder.extract_element(parts, ir.IntType(32)(lane)))
        return total

    return _NUMBER(_ADDRESS, _COUNT), codegen


@intrinsic
def adagrad(typingctx, weight, total, grad, rate, eps, count):  # type: ignore[no-untyped-def]
    """``total += grad²``, ``weight -= grad * (rate / (sqrt(total) + eps))``"""

    def emit(at, weight, total, grad, rate, eps):  # type: ignore[no-untyped-def]
        g = at.load(grad)
        new = at.add(at.load(total), at.mul(g, g))
        at.store(new, total)
        size = at.div(at.all(rate), at.add(at.sqrt(new), at.all(eps)))
        at.store(at.sub(at.load(weight), at.mul(g, size)), weight)

    return _operation((_ADDRESS, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER), emit)


@intrinsic
def adam(typingctx, weight, one, two, grad, rate, eps, add1, keep2, add2, unbias1, unbias2, count):  # type: ignore[no-untyped-def]
    """Adam's moments ``one`` and ``two``, then its step (Kingma and Ba 2015, algorithm 1)."""

    def emit(at, weight, one, two, grad, rate, eps, add1, keep2, add2, unbias1, unbias2):  # type: ignore[no-untyped-def]
        g, first, second = at.load(grad), at.load(one), at.load(two)
        first = at.add(first, at.mul(at.all(add1), at.sub(g, first)))
        second = at.add(at.mul(second, at.all(keep2)), at.mul(at.mul(at.all(add2), g), g))
        at.store(first, one)
        at.store(second, two)
        size = at.add(at.sqrt(at.div(second, at.all(unbias2))), at.all(eps))
        change = at.div(at.mul(at.all(rate), at.div(first, at.all(unbias1))), size)
        at.store(at.sub(at.load(weight), change), weight)

    return _operation((*[_ADDRESS] * 4, *[_NUMBER] * 7), emit)


def _element(kind: Any, type_: Any, size: int) -> tuple[Any, Any]:
    """Intrinsics that read and write one number of a row."""

    @intrinsic
    def get(typingctx, row, place):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return _Lanes(builder, args[1], 1).load(args[0], kind, size)

        return type_(_ADDRESS, _COUNT), codegen

    @intrinsic
    def put(typingctx, row, place, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            _Lanes(builder, args[1], 1).store(args[2], args[0], kind, size)
            return context.get_dummy_value()

        return types.void(_ADDRESS, _COUNT, type_), codegen

    return get, put


get, put = _element(_F32, types.float32, 4)
get_wide, put_wide = _element(_F64, types.float64, 8)
_, put_bits = _element(ir.IntType(16), types.uint16, 2)
_, put_byte = _element(ir.IntType(8), types.uint8, 1)
