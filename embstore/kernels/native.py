"""What compiled kernels are made of: prefetching, atomic claims, narrow floats, huge pages.

Narrow floats are handled as their 16 bits, since numba has no such types on CPU; ``half`` says which of the two they
are, float16 or bfloat16.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from embstore.hashing import compiled
from embstore.kernels import rows

LINE = 64  # bytes of a cache line
HUGE = 1 << 21  # bytes of a huge page
_MADV_HUGEPAGE = 14

_ONE, _U16, _U31 = np.uint32(1), np.uint32(16), np.uint32(31)


def _prefetch(*, to_write: bool) -> Any:
    """An intrinsic that asks for each cache line of a row, without waiting; any address is safe.

    ``ask(base, row, width)``: the row of that number of an array at ``base`` (uint64) whose rows have ``width`` bytes.
    """

    @intrinsic
    def ask(typingctx, base, row, width):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            base, row, width = args
            pointer, number, size = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
            kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
            function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
            how = number(1 if to_write else 0), number(2), number(1)
            address = builder.add(base, builder.mul(row, width))

            def line_at(place: Any) -> None:
                builder.call(function, [builder.inttoptr(builder.add(address, place), pointer), *how])

            with cgutils.for_range_slice(builder, size(0), width, size(LINE), size) as (start, _):
                line_at(start)
            # Rows of no whole number of lines may reach into one line more.
            with builder.if_then(cgutils.is_not_null(builder, builder.and_(width, size(LINE - 1)))):
                line_at(builder.sub(width, size(1)))
            return context.get_dummy_value()

        return types.void(types.uint64, types.int64, types.int64), codegen

    return ask


# To be read, a line comes to the second-level cache, which can wait for more lines at a time than the first. To be
# written, it is taken from other cores at once: between cores without a common cache, asking twice takes longer.
prefetch_row, prefetch_row_to_write = _prefetch(to_write=False), _prefetch(to_write=True)


@intrinsic
def _fetch_and_add(typingctx, address):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.IntType(64)(1), "seq_cst")

    return types.int64(types.uint64), codegen


@intrinsic
def store64(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Write a little-endian uint64 at any address."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store(args[1], pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@intrinsic(prefer_literal=True)
def run_in_team(typingctx, team, threads, failed, body, constant, args):  # type: ignore[no-untyped-def]
    """Call the compiled ``body(constant, *args)`` on ``threads`` threads of a team (``embstore.threads.team``).

    With no team (0) it is called here, once. No Python runs on the team's threads, so none of them waits for the GIL.
    ``constant`` is an integer known when this is compiled, for ``body`` to be compiled for. A body that raises (it can:
    where memory is short) ends on its thread, and writes 1 to the int64 at address ``failed``.
    """
    if not isinstance(constant, types.IntegerLiteral):
        return None
    body_types = (types.int64, *args.types)
    body_signature = typingctx.resolve_function_type(body, body_types, {})

    def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
        compiled_body = body.dispatcher.get_compile_result(body_signature)
        context.add_linking_libs([compiled_body.library])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        member_type = ir.FunctionType(ir.VoidType(), [pointer])
        member = ir.Function(builder.module, member_type, builder.module.get_unique_name("team_member"))
        member.linkage = "internal"
        inside = ir.IRBuilder(member.append_basic_block("entry"))
        team, threads, failed, _, _, arguments = values
        shared_type = ir.LiteralStructType([failed.type, arguments.type])
        loaded = inside.load(inside.bitcast(member.args[0], shared_type.as_pointer()))
        given = [inside.extract_value(loaded, (1, i)) for i in range(len(args.types))]
        given.insert(0, ir.Constant(ir.IntType(64), constant.literal_value))
        status, _ = context.call_internal_no_propagate(inside, compiled_body.fndesc, compiled_body.signature, given)
        with inside.if_then(status.is_error, likely=False):
            flag = inside.inttoptr(inside.extract_value(loaded, 0), ir.IntType(64).as_pointer())
            inside.store(ir.IntType(64)(1), flag)
        inside.ret_void()

        shared = cgutils.pack_struct(builder, [failed, arguments])
        shared = builder.bitcast(cgutils.alloca_once_value(builder, shared), pointer)
        parallel = ir.FunctionType(ir.VoidType(), [member_type.as_pointer(), pointer, number, number])
        with builder.if_else(cgutils.is_null(builder, team)) as (alone, together):
            with alone:
                builder.call(member, [shared])
            with together:
                function = builder.inttoptr(team, parallel.as_pointer())
                builder.call(function, [member, shared, builder.trunc(threads, number), number(0)])
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.uint64, body, constant, args), codegen


@intrinsic
def float_of_bits(typingctx, bits):  # type: ignore[no-untyped-def]
    """The float32 with these 32 bits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def bits_of_float(typingctx, number):  # type: ignore[no-untyped-def]
    """The 32 bits of a float32."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@compiled(forceinline=True)
def claim(counter):  # type: ignore[no-untyped-def]
    """The next number of a shared int64 ``[1]``, each given to one thread only."""
    return _fetch_and_add(np.uint64(counter.ctypes.data))


@compiled(nogil=True)
def keep_alive(one, other):  # type: ignore[no-untyped-def]
    """Arrays used by their addresses are named here after the last use: numba frees them after the last use by name."""
    return len(one) + len(other)


@compiled(forceinline=True)
def widen(to, row, half, count):  # type: ignore[no-untyped-def]
    """A row of a narrow table at address ``row`` as float32 at ``to``."""
    if half:
        rows.widen_float16(to, row, count)
    else:
        rows.widen_bfloat16(to, row, count)


@compiled(forceinline=True)
def _uniform(counter, seed):  # type: ignore[no-untyped-def]
    # As embstore.kernels.optimizer._uniform; ``seed`` is already mixed (``mixed_seed``).
    x = (counter ^ (counter >> 31) ^ seed) & 0x7FFFFFFF
    x = ((x ^ (x >> 15)) * 0x7FEB352D) & 0x7FFFFFFF
    x = ((x ^ (x >> 15)) * 0x046CA68B) & 0x7FFFFFFF
    return np.float32((x ^ (x >> 16)) & 0xFFFFFF) * np.float32(2.0**-24)


@compiled(nogil=True)
def narrow(value, half, counter, seed):  # type: ignore[no-untyped-def]
    """The 16 bits of a float32 in a narrow table, rounded as ``optimizer.round_stochastically`` does."""
    bits = bits_of_float(np.float32(value))
    sign = np.uint32((bits >> _U31) << np.uint32(15))
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    infinite = np.uint32(0x7C00) if half else np.uint32(0x7F80)
    if size > np.uint32(0x7F800000):  # NaN
        return np.uint16(sign | infinite | np.uint32(1))
    if half and size >= np.uint32(0x477FF000):  # 65520 and more round to infinity
        return np.uint16(sign | infinite)
    # ``low``: truncated toward zero; ``part``: how far the value is from there to the next one, 0 to 1.
    if not half:
        low = np.uint32(size >> _U16)
        part = np.float32(size & np.uint32(0xFFFF)) * np.float32(2.0**-16)
    elif size >= np.uint32(0x38800000):  # 2^-14: a normal float16
        low = np.uint32((size >> np.uint32(13)) - np.uint32(112 << 10))
        part = np.float32(size & np.uint32(0x1FFF)) * np.float32(2.0**-13)
    else:
        steps = float_of_bits(size) * np.float32(2.0**24)
        low = np.uint32(steps)
        part = steps - np.float32(low)
    up = part > np.float32(0.5) or (part == np.float32(0.5) and low & _ONE == _ONE)
    away = np.float32(1) - part if up else part  # from the nearest
    if _uniform(counter, seed) < away and np.uint32(low + _ONE) != infinite:
        up = not up
    if up:
        low = np.uint32(low + _ONE)
    return np.uint16(sign | low)


def mixed_seed(seed: int) -> int:
    """The seed of stochastic rounding as ``narrow`` takes it."""
    return (seed * 0x9E3779B1) & 0x7FFFFFFF


def advise_huge_pages(tensor: Tensor) -> None:
    """Ask for huge pages under a large CPU tensor that is about to be written; only a hint, and only on Linux.

    Rows are read at random, and with 4 KiB pages most reads also miss the TLB.
    """
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or size < HUGE or not sys.platform.startswith("linux"):
        return
    start = -(-tensor.data_ptr() // HUGE) * HUGE
    end = (tensor.data_ptr() + size) // HUGE * HUGE
    if end > start:
        _madvise()(start, end - start, _MADV_HUGEPAGE)


@cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
