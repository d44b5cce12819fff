"""The GPU kernel's functions, in Triton: what each program does. ``gpu.py`` says how many there are, in which order.

A lookup is described by one record of int64 numbers, made on the host:

    SALT  BASE  SIZE  EXACT  KNOWN_START  KNOWN_STOP  MEAN     the plan's, see ``plan.PlanArrays``
    SLOT                                                       its place in the output, 0 to L - 1
    START COUNT                                                its feature's tokens in the batch
    HIT                                                        where its rows start among the rows of all lookups
    LIST                                                       its feature's place among the batch's list features

A *hit* is one use of a table row; its *slot* ``b * L + SLOT`` says which ``dim`` numbers of the output it went to,
whose gradient it gets. Sorted by row, the hits of one row are a *segment*:

    row      3 3 3 | 5 | 8 8 8 8 8 8 8 8 | 9
    number   1 1 1 | 2 | 3 3 3 3 3 3 3 3 | 4          starts  0 3 4 12 13        count 4

Segments of more than ``HEAVY`` hits are summed by many programs, each over a window of ``HEAVY`` positions, so that no
program has more to do than others. No atomics: every number is written by one program, and sums have a fixed order.

Arguments that belong together come as tuples, ``SHAPE`` is (L, D). Those that change from batch to batch are not
specialised on, or a batch of another size would compile anew. Loops whose end is known on the device are ``while``
loops: the interpreter of Triton 3.6 has no ``range`` of such an end.

Shape suffixes: B rows of the batch (a block of them), L lookups, T hits, R segments (distinct table rows), N positions,
D dim, padded to a power of two.
"""
# mypy: allow-untyped-defs, disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

SALT, BASE, SIZE, EXACT, KNOWN_START, KNOWN_STOP, MEAN, SLOT, START, COUNT, HIT, LIST = map(tl.constexpr, range(12))
RECORD = tl.constexpr(12)

# How many values a step of a loop over a list or a segment takes, so that their loads are under way together.
POOL_UNROLL = tl.constexpr(4)
UPDATE_UNROLL = tl.constexpr(2)  # most rows of a CTR batch are hit once or twice

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def hashed_rows(token_N, salt, size):
    """Hash spec 1, ``mulhi64(splitmix64(token ^ salt), size)``: int64 bits in, int64 rows out."""
    z = token_N.to(tl.uint64, bitcast=True) ^ salt.to(tl.uint64, bitcast=True)
    z += _GOLDEN
    z = (z ^ (z >> 30)) * _MIX1
    z = (z ^ (z >> 27)) * _MIX2
    z = z ^ (z >> 31)
    return tl.umulhi(z, size.to(tl.uint64, bitcast=True)).to(tl.int64, bitcast=True)


@triton.jit
def _ranks(token_N, known_ptr, start, stop, STEPS: tl.constexpr):
    """The rank of each token among the sorted ``known[start:stop]``, or their number when it isn't there."""
    low_N = tl.zeros_like(token_N) + start
    high_N = tl.zeros_like(token_N) + stop
    for _ in range(STEPS):
        open_N = low_N < high_N
        middle_N = (low_N + high_N) // 2
        less_N = tl.load(known_ptr + middle_N, mask=open_N, other=0) < token_N
        low_N = tl.where(open_N & less_N, middle_N + 1, low_N)
        high_N = tl.where(open_N & ~less_N, middle_N, high_N)
    there_N = low_N < stop
    found_N = there_N & (tl.load(known_ptr + low_N, mask=there_N, other=0) == token_N)
    return tl.where(found_N, low_N, stop) - start


@triton.jit
def _range(record):
    """What ``_rows`` needs of a record, loaded once."""
    salt, size, base = tl.load(record + SALT), tl.load(record + SIZE), tl.load(record + BASE)
    return salt, size, base, tl.load(record + EXACT), tl.load(record + KNOWN_START), tl.load(record + KNOWN_STOP)


@triton.jit
def _rows(token_N, lookup, known_ptr, STEPS: tl.constexpr):
    """Table rows, int64, of the int64 tokens of one lookup. ``STEPS`` is 0 where no lookup of the plan is exact."""
    salt, size, base, exact, start, stop = lookup
    row_N = hashed_rows(token_N, salt, size)
    if STEPS > 0:  # noqa: SIM102 (this one is decided when compiling)
        if exact != 0:
            row_N = _ranks(token_N, known_ptr, start, stop, STEPS)
    return row_N + base


@triton.jit
def _scales(length_N, mean):
    """What a list's values are multiplied by, float32: 1 / length for means, else 1."""
    return tl.where(mean != 0, tl.div_rn(1.0, tl.maximum(length_N, 1).to(tl.float32)), 1.0)


@triton.jit
def _columns(DIM: tl.constexpr):
    return tl.arange(0, triton.next_power_of_2(DIM))


@triton.jit(do_not_specialize=["lookups", "batch"])
def copy_rows(
    source, weight_ptr, out_ptr, lookups, batch, STEPS: tl.constexpr, SHAPE: tl.constexpr, BLOCK: tl.constexpr
):
    """Lookups of single-valued features. One program: ``BLOCK`` rows of the batch, one lookup.

    Neighbouring programs take neighbouring lookups, so that together they write whole stretches of the output.
    """
    record_ptr, known_ptr, token_ptr, _ = source
    LOOKUPS: tl.constexpr = SHAPE[0]
    DIM: tl.constexpr = SHAPE[1]
    program = tl.program_id(0)
    record = record_ptr + (program % lookups) * RECORD
    b_B = (program // lookups).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d_D = _columns(DIM)
    inside_B = b_B < batch
    token_B = tl.load(token_ptr + tl.load(record + START) + b_B, mask=inside_B, other=0)
    row_B = _rows(token_B, _range(record), known_ptr, STEPS)
    inside_BD = inside_B[:, None] & (d_D < DIM)[None, :]
    value_BD = tl.load(weight_ptr + row_B[:, None] * DIM + d_D[None, :], mask=inside_BD)
    slot_B = b_B * LOOKUPS + tl.load(record + SLOT)
    tl.store(out_ptr + slot_B[:, None] * DIM + d_D[None, :], value_BD.to(tl.float32), mask=inside_BD)


@triton.jit(do_not_specialize=["lookups", "batch"])
def pool_lists(
    source, weight_ptr, out_ptr, lookups, batch, STEPS: tl.constexpr, SHAPE: tl.constexpr, BLOCK: tl.constexpr
):
    """Lookups of list features. One program: ``BLOCK`` rows of the batch, one lookup.

    A list is summed in its own order, in float64 as ``reference.pooled`` does: the same bits in any batch. (The product
    of two float32 numbers is exact in float64, so it doesn't matter whether product and sum are fused.)
    """
    record_ptr, known_ptr, token_ptr, offset_ptr = source
    LOOKUPS: tl.constexpr = SHAPE[0]
    DIM: tl.constexpr = SHAPE[1]
    program = tl.program_id(0)
    record = record_ptr + (program % lookups) * RECORD
    b_B = (program // lookups).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d_D = _columns(DIM)
    inside_B = b_B < batch
    bound_B = offset_ptr + tl.load(record + LIST) * (batch + 1) + b_B
    first_B = tl.load(bound_B, mask=inside_B, other=0)
    length_B = tl.load(bound_B + 1, mask=inside_B, other=0) - first_B
    scale_B = _scales(length_B, tl.load(record + MEAN)).to(tl.float64)
    token_B = token_ptr + tl.load(record + START) + first_B
    sum_BD = tl.zeros([BLOCK, triton.next_power_of_2(DIM)], dtype=tl.float64)
    lookup = _range(record)
    longest = tl.max(length_B, axis=0)
    i = 0
    while i < longest:
        for j in tl.static_range(POOL_UNROLL):
            present_B = i + j < length_B
            row_B = _rows(tl.load(token_B + i + j, mask=present_B, other=0), lookup, known_ptr, STEPS)
            present_BD = present_B[:, None] & (d_D < DIM)[None, :]
            value_BD = tl.load(weight_ptr + row_B[:, None] * DIM + d_D[None, :], mask=present_BD, other=0.0)
            sum_BD += value_BD.to(tl.float64) * scale_B[:, None]
        i += POOL_UNROLL
    slot_B = b_B * LOOKUPS + tl.load(record + SLOT)
    inside_BD = inside_B[:, None] & (d_D < DIM)[None, :]
    tl.store(out_ptr + slot_B[:, None] * DIM + d_D[None, :], sum_BD.to(tl.float32), mask=inside_BD)


@triton.jit(do_not_specialize=["lookups", "batch"])
def find_hits(source, hits, lookups, batch, STEPS: tl.constexpr, LOOKUPS: tl.constexpr, BLOCK: tl.constexpr):
    """Row and slot of each hit of single-valued features. One program: ``BLOCK`` tokens, one lookup."""
    record_ptr, known_ptr, token_ptr, _ = source
    row_ptr, slot_ptr, scale_ptr = hits
    program = tl.program_id(0)
    record = record_ptr + (program % lookups) * RECORD
    b_B = (program // lookups).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside_B = b_B < batch
    token_B = tl.load(token_ptr + tl.load(record + START) + b_B, mask=inside_B, other=0)
    hit_B = tl.load(record + HIT) + b_B
    tl.store(
        row_ptr + hit_B, _rows(token_B, _range(record), known_ptr, STEPS).to(row_ptr.dtype.element_ty), mask=inside_B
    )
    slot_B = b_B * LOOKUPS + tl.load(record + SLOT)
    tl.store(slot_ptr + hit_B, slot_B.to(slot_ptr.dtype.element_ty), mask=inside_B)
    if scale_ptr is not None:
        tl.store(scale_ptr + hit_B, tl.full([BLOCK], 1.0, tl.float32), mask=inside_B)


@triton.jit(do_not_specialize=["lookups", "batch"])
def find_list_hits(
    source,
    hits,
    lookups,
    batch,
    HALVINGS: tl.constexpr,
    STEPS: tl.constexpr,
    LOOKUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same for list features, and scales. A value finds its row of the batch by ``HALVINGS`` of [0, batch]."""
    record_ptr, known_ptr, token_ptr, offset_ptr = source
    row_ptr, slot_ptr, scale_ptr = hits
    program = tl.program_id(0)
    record = record_ptr + (program % lookups) * RECORD
    count = tl.load(record + COUNT)
    first = (program // lookups).to(tl.int64) * BLOCK
    if first < count:
        at_N = first + tl.arange(0, BLOCK)
        inside_N = at_N < count
        token_N = tl.load(token_ptr + tl.load(record + START) + at_N, mask=inside_N, other=0)
        hit_N = tl.load(record + HIT) + at_N
        tl.store(
            row_ptr + hit_N,
            _rows(token_N, _range(record), known_ptr, STEPS).to(row_ptr.dtype.element_ty),
            mask=inside_N,
        )
        bounds = offset_ptr + tl.load(record + LIST) * (batch + 1)
        # The last row of the batch that starts at the value or before it: rows without values are passed over.
        low_N = tl.zeros_like(at_N)
        high_N = tl.zeros_like(at_N) + batch
        for _ in range(HALVINGS):
            middle_N = (low_N + high_N) // 2
            before_N = tl.load(bounds + middle_N, mask=inside_N, other=0) <= at_N
            low_N = tl.where(before_N, middle_N, low_N)
            high_N = tl.where(before_N, high_N, middle_N)
        slot_N = low_N * LOOKUPS + tl.load(record + SLOT)
        tl.store(slot_ptr + hit_N, slot_N.to(slot_ptr.dtype.element_ty), mask=inside_N)
        if scale_ptr is not None:
            bound_N = bounds + low_N
            length_N = tl.load(bound_N + 1, mask=inside_N, other=0) - tl.load(bound_N, mask=inside_N, other=0)
            tl.store(scale_ptr + hit_N, _scales(length_N, tl.load(record + MEAN)), mask=inside_N)


@triton.jit(do_not_specialize=["count"])
def mark_segments(hits, order_ptr, sorted_hits, head_ptr, count, BLOCK: tl.constexpr):
    """1 where a segment of the sorted rows starts, else 0; and slots and scales brought in the same order."""
    _, slot_ptr, scale_ptr = hits
    row_ptr, sorted_slot_ptr, sorted_scale_ptr = sorted_hits
    t_T = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside_T = t_T < count
    row_T = tl.load(row_ptr + t_T, mask=inside_T, other=0)
    before_T = tl.load(row_ptr + t_T - 1, mask=inside_T & (t_T > 0), other=-1)
    tl.store(head_ptr + t_T, (row_T != before_T).to(head_ptr.dtype.element_ty), mask=inside_T)
    order_T = tl.load(order_ptr + t_T, mask=inside_T, other=0)
    tl.store(sorted_slot_ptr + t_T, tl.load(slot_ptr + order_T, mask=inside_T), mask=inside_T)
    if scale_ptr is not None:
        tl.store(sorted_scale_ptr + t_T, tl.load(scale_ptr + order_T, mask=inside_T), mask=inside_T)


@triton.jit(do_not_specialize=["count"])
def bound_segments(segments, count, BLOCK: tl.constexpr):
    """Where each segment starts, the end of the last, and how many there are; from the running count of starts."""
    number_ptr, start_ptr, total_ptr = segments
    t_T = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside_T = t_T < count
    number_T = tl.load(number_ptr + t_T, mask=inside_T, other=0)
    before_T = tl.load(number_ptr + t_T - 1, mask=inside_T & (t_T > 0), other=0)
    place_T = t_T.to(start_ptr.dtype.element_ty)
    tl.store(start_ptr + number_T - 1, place_T, mask=inside_T & (number_T != before_T))
    last_T = t_T == count - 1
    tl.store(start_ptr + number_T, place_T + 1, mask=last_T)
    tl.store(total_ptr + tl.zeros_like(t_T), number_T, mask=last_T)


@triton.jit
def _gradients(hits, grads, at_N, inside_N, SHAPE: tl.constexpr):
    """The gradients, float32 ``[N, D]``, of the hits at positions ``at_N`` of the sorted order; zeros outside."""
    _, slot_ptr, scale_ptr = hits
    grad_ptr, stride = grads
    LOOKUPS: tl.constexpr = SHAPE[0]
    DIM: tl.constexpr = SHAPE[1]
    d_D = _columns(DIM)
    slot_N = tl.load(slot_ptr + at_N, mask=inside_N, other=0)
    grad_N = (slot_N // LOOKUPS).to(tl.int64) * stride + (slot_N % LOOKUPS).to(tl.int64) * DIM
    inside_ND = inside_N[:, None] & (d_D < DIM)[None, :]
    grad_ND = tl.load(grad_ptr + grad_N[:, None] + d_D[None, :], mask=inside_ND, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        grad_ND *= tl.load(scale_ptr + at_N, mask=inside_N, other=0.0)[:, None]
    return grad_ND


@triton.jit(do_not_specialize=["seed"])
def update_light(
    hits,
    segments,
    grads,
    table,
    step,
    seed,
    SHAPE: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    HEAVY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum and update rows of up to ``HEAVY`` hits. One program: ``BLOCK`` segments, summed hit after hit in float32."""
    _, start_ptr, total_ptr = segments
    total = tl.load(total_ptr).to(tl.int64)
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    if begin < total:  # there are programs for as many segments as there could be
        r_R = begin + tl.arange(0, BLOCK)
        inside_R = r_R < total
        first_R = tl.load(start_ptr + r_R, mask=inside_R, other=0).to(tl.int64)
        length_R = tl.load(start_ptr + r_R + 1, mask=inside_R, other=0).to(tl.int64) - first_R
        inside_R = inside_R & (length_R <= HEAVY)
        length_R = tl.where(inside_R, length_R, 0)
        row_R = tl.load(hits[0] + first_R, mask=inside_R, other=0).to(tl.int64)
        grad_RD = tl.zeros([BLOCK, triton.next_power_of_2(SHAPE[1])], dtype=tl.float32)
        longest = tl.max(length_R, axis=0)
        i = 0
        while i < longest:
            for j in tl.static_range(UPDATE_UNROLL):
                grad_RD += _gradients(hits, grads, first_R + i + j, i + j < length_R, SHAPE)
            i += UPDATE_UNROLL
        _apply(row_R, inside_R, grad_RD, table, step, seed, SHAPE[1], OPTIMIZER)


@triton.jit
def _segment(segments, at):
    """Where the segment of a position starts and stops."""
    number_ptr, start_ptr, _ = segments
    start_ptr += tl.load(number_ptr + at)
    return tl.load(start_ptr - 1).to(tl.int64), tl.load(start_ptr).to(tl.int64)


@triton.jit(do_not_specialize=["count"])
def sum_windows(hits, segments, grads, part_ptr, count, SHAPE: tl.constexpr, HEAVY: tl.constexpr, BLOCK: tl.constexpr):
    """Parts of heavy segments, float64 ``[windows, 2, D]``: sums over ``HEAVY`` positions of the sorted order.

    A heavy segment is longer than a window, so at most two have a part in one: that of the first position (part 0) and
    another that holds the last (part 1). One program: one part.
    """
    DIM: tl.constexpr = SHAPE[1]
    part = tl.program_id(0) % 2
    begin = (tl.program_id(0) // 2).to(tl.int64) * HEAVY
    end = tl.minimum(begin + HEAVY, count)
    first, stop = _segment(segments, tl.where(part == 0, begin, end - 1))
    if (stop - first > HEAVY) & ((part == 0) | (first > begin)):
        sum_ND = tl.zeros([BLOCK, triton.next_power_of_2(DIM)], dtype=tl.float64)
        i = tl.maximum(first, begin)
        end = tl.minimum(stop, end)
        while i < end:
            at_N = i + tl.arange(0, BLOCK)
            sum_ND += _gradients(hits, grads, at_N, at_N < end, SHAPE).to(tl.float64)
            i += BLOCK
        d_D = _columns(DIM)
        tl.store(part_ptr + tl.program_id(0).to(tl.int64) * DIM + d_D, tl.sum(sum_ND, axis=0), mask=d_D < DIM)


@triton.jit(do_not_specialize=["count", "seed"])
def update_heavy(
    hits,
    segments,
    part_ptr,
    count,
    table,
    step,
    seed,
    SHAPE: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    HEAVY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the parts of the heavy segment that starts in a window, if one does, and update its row."""
    DIM: tl.constexpr = SHAPE[1]
    window = tl.program_id(0).to(tl.int64)
    begin = window * HEAVY
    first, stop = _segment(segments, tl.minimum(begin + HEAVY, count) - 1)
    if (stop - first > HEAVY) & (first >= begin):
        d_D = _columns(DIM)
        sum_ND = tl.zeros([BLOCK, triton.next_power_of_2(DIM)], dtype=tl.float64)
        windows = (stop - 1) // HEAVY - window + 1
        i = 0
        while i < windows:
            k_N = i + tl.arange(0, BLOCK)
            part_N = 2 * (window + k_N) + ((k_N == 0) & (first > begin)).to(tl.int64)
            inside_ND = (k_N < windows)[:, None] & (d_D < DIM)[None, :]
            sum_ND += tl.load(part_ptr + part_N[:, None] * DIM + d_D[None, :], mask=inside_ND, other=0.0)
            i += BLOCK
        row_R = tl.load(hits[0] + first + tl.zeros([1], dtype=tl.int64)).to(tl.int64)
        grad_RD = tl.sum(sum_ND, axis=0).to(tl.float32)[None, :]
        _apply(row_R, row_R >= 0, grad_RD, table, step, seed, DIM, OPTIMIZER)


@triton.jit
def _apply(row_R, inside_R, grad_RD, table, step, seed, DIM: tl.constexpr, OPTIMIZER: tl.constexpr):
    """One update of distinct rows, operation for operation as ``optimizer.update_rows``.

    ``table``: weights and up to two tensors of state. ``step``: learning rate, eps, and of Adam 1 - beta1, beta2,
    1 - beta2, 1 - beta1^t, 1 - beta2^t. Gradients are zero in the padding.
    """
    weight_ptr, first_ptr, second_ptr = table
    rate, eps, gain1, beta2, gain2, unbias1, unbias2 = step
    d_D = _columns(DIM)
    at_RD = row_R[:, None] * DIM + d_D[None, :]
    inside_RD = inside_R[:, None] & (d_D < DIM)[None, :]
    if OPTIMIZER == "sgd":
        change_RD = rate * grad_RD
    elif OPTIMIZER == "adam":
        mean_RD = tl.load(first_ptr + at_RD, mask=inside_RD, other=0.0)
        mean_RD += gain1 * (grad_RD - mean_RD)
        square_RD = tl.load(second_ptr + at_RD, mask=inside_RD, other=0.0) * beta2
        square_RD += gain2 * grad_RD * grad_RD
        tl.store(first_ptr + at_RD, mean_RD, mask=inside_RD)
        tl.store(second_ptr + at_RD, square_RD, mask=inside_RD)
        root_RD = tl.sqrt_rn(tl.div_rn(square_RD, unbias2)) + eps
        change_RD = tl.div_rn(rate * tl.div_rn(mean_RD, unbias1), root_RD)
    elif OPTIMIZER == "adagrad":
        sum_RD = tl.load(first_ptr + at_RD, mask=inside_RD, other=0.0) + grad_RD * grad_RD
        tl.store(first_ptr + at_RD, sum_RD, mask=inside_RD)
        change_RD = grad_RD * (tl.div_rn(1.0, tl.sqrt_rn(sum_RD) + eps) * rate)
    else:
        mean_R = tl.div_rn(tl.sum(grad_RD * grad_RD, axis=1), DIM * 1.0)
        sum_R = tl.load(first_ptr + row_R, mask=inside_R, other=0.0) + mean_R
        tl.store(first_ptr + row_R, sum_R, mask=inside_R)
        change_RD = grad_RD * (tl.div_rn(1.0, tl.sqrt_rn(sum_R) + eps) * rate)[:, None]
    weight_RD = tl.load(weight_ptr + at_RD, mask=inside_RD, other=0.0)
    new_RD = rounded(weight_RD.to(tl.float32) - change_RD, at_RD, seed, weight_ptr.dtype.element_ty)
    tl.store(weight_ptr + at_RD, new_RD, mask=inside_RD)


@triton.jit
def rounded(value_RD, counter_RD, seed, dtype: tl.constexpr):
    """Float32 rounded up or down at random, bit for bit as ``optimizer.round_stochastically``.

    It works on bits (a bfloat16 is the upper half of a float32), as Triton has no ``nextafter`` of narrow numbers and
    its interpreter rounds bfloat16 otherwise than a GPU.
    """
    if dtype == tl.float32:
        return value_RD
    else:
        INFINITE: tl.constexpr = 0x7C00 if dtype == tl.float16 else 0x7F80
        if dtype == tl.float16:
            bits_RD = value_RD.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        else:
            wide_RD = value_RD.to(tl.uint32, bitcast=True)
            bits_RD = ((wide_RD + 0x7FFF + ((wide_RD >> 16) & 1)) >> 16).to(tl.int32)
            bits_RD = tl.where(value_RD == value_RD, bits_RD, 0x7FC0)  # NaN: adding may have carried into the sign
        error_RD = value_RD - _widened(bits_RD, dtype)
        # The neighbour toward the value: away from zero counts up, whatever the sign; zero has one on either side.
        away_RD = (error_RD > 0) == (bits_RD < 0x8000)
        other_RD = tl.where(away_RD, bits_RD + 1, bits_RD - 1)
        other_RD = tl.where((bits_RD & 0x7FFF) == 0, tl.where(error_RD > 0, 0x0001, 0x8001), other_RD)
        gap_RD = tl.abs(_widened(other_RD, dtype) - _widened(bits_RD, dtype))
        taken_RD = _uniform(counter_RD, seed) * gap_RD < tl.abs(error_RD)
        # A value at the end of the range has no finite neighbour beyond it: it stays.
        taken_RD = taken_RD & ((other_RD & 0x7FFF) < INFINITE)
        return tl.where(taken_RD, other_RD, bits_RD).to(tl.int16).to(dtype, bitcast=True)


@triton.jit
def _widened(bits_N, dtype: tl.constexpr):
    """Float32 of float16 or bfloat16 bits in int32."""
    if dtype == tl.float16:
        return bits_N.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return (bits_N << 16).to(tl.float32, bitcast=True)


@triton.jit
def _uniform(counter_N, seed):
    """``optimizer._uniform`` in 32 bits: the products' lower 31 are all it keeps. ``seed`` is mixed on the host."""
    x = ((counter_N ^ (counter_N >> 31)) & 0x7FFFFFFF).to(tl.uint32) ^ seed.to(tl.uint32)
    x = ((x ^ (x >> 15)) * 0x7FEB352D) & 0x7FFFFFFF
    x = ((x ^ (x >> 15)) * 0x046CA68B) & 0x7FFFFFFF
    return ((x ^ (x >> 16)) & 0xFFFFFF).to(tl.float32) * (1.0 / 16777216.0)
