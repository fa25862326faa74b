# mypy: disable-error-code="no-untyped-def"
"""Channel-wise KL in Triton: the kernels. What they compute stands in `densekd.kernels.channelwise`; here in tiles.

A tile is (channels, positions) of one image; `stride_c` and `stride_p` say how it lies in memory, so that NCHW and
channels_last are read as they are. All arithmetic is float32, the last of every row float64. Void positions, by mask or
beyond the map, are minus infinity: probability zero. Nothing is added by several programs: results repeat exactly.

Differences of logits are in units of 2**24: none of two finite logits overflows, nor the sum of 2**22 of them, and a
divergence of any size comes out finite, without a second look at the rows that would make the host wait.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

UNIT = tl.constexpr(2.0**-24)
#: below every logit in units of 2**24
LOWEST = tl.constexpr(-3.0e38)
#: per row and part: largest logit and sum of exp2 of student and teacher, whether anything counts
FIELDS = 5


@triton.jit
def _place(channels, part, parts, backward: tl.constexpr, block_c: tl.constexpr):
    """Image, channels and number of the part of this program; neighbouring programs take neighbouring channels."""
    program = tl.program_id(0)
    if backward:  # what was read last is still in the cache
        program = tl.num_programs(0) - 1 - program
    groups = tl.cdiv(channels, block_c)
    image = (program // (groups * parts)).to(tl.int64)
    c = (program % groups) * block_c + tl.arange(0, block_c)
    first = ((program // groups) % parts).to(tl.int64) * part
    return image, c, (program // groups) % parts, first


@triton.jit
def _kept(mask, image, c, channels, p, last, positions, masked: tl.constexpr):
    """Which elements of the tile count."""
    there = p < last
    if masked:
        there = there & (tl.load(mask + image * positions + p, mask=there, other=0) != 0)
    return (c < channels)[:, None] & there[None, :]


@triton.jit
def _offsets(c, p, stride_c, stride_p):
    return c.to(tl.int64)[:, None] * stride_c + p.to(tl.int64)[None, :] * stride_p


@triton.jit
def _logits(base, c, p, stride_c, stride_p, kept, policy: tl.constexpr):
    """A tile in float32, minus infinity where nothing counts; `policy`: whether the cache should keep it."""
    at = base + _offsets(c, p, stride_c, stride_p)
    return tl.load(at, mask=kept, other=float("-inf"), eviction_policy=policy).to(tl.float32)


@triton.jit
def _below(x, largest, k):
    """How far below `largest`, both in units of 2**24 from here on, and exp2 of it."""
    # A power of two: the product is exact, and a product and sum of one rounding are the same as of two.
    gap = tl.fma(x, tl.full(x.shape, UNIT, tl.float32), tl.broadcast_to(-largest, x.shape))
    return gap, tl.exp2(gap * k)


@triton.jit
def _gaps(s_gap, t_gap, p):
    """exp2 times (teacher's gap - student's); 0 * infinity counts as its limit, zero."""
    return tl.where(p > 0, p * (t_gap - s_gap), 0.0)


@triton.jit
def _value(gap, mass, q_scale, p_scale, excess, some, slope, temperature, limit, factor):
    """`factor * temperature**2 * KL` of rows: see `densekd.kernels.channelwise`.

    `q_scale` and `p_scale` are `slope` over the sums of exp2, `excess` is the sum of `slope * (q - p)`. What rounding
    left below zero is zero; what no reduction could hold is `limit`, where it is finite.
    """
    p, q = p_scale.to(tl.float64), q_scale.to(tl.float64)
    mean_gap = p * (gap.to(tl.float64) / (temperature * UNIT) + mass.to(tl.float64) * tl.log(p / q))
    value = temperature * (temperature * ((mean_gap + excess.to(tl.float64)) / slope))
    value = tl.where(value < 0, 0.0, value)
    value = tl.where((value > limit) & (value < float("inf")), limit, value)
    return tl.where(some != 0, value * factor, 0.0).to(tl.float32)


@triton.jit
def _online(x, largest, total, k, group: tl.constexpr):
    """Running maximum and sum of exp2 of lanes that hold `group` neighbouring positions each."""
    lanes = tl.reshape(x, (x.shape[0], x.shape[1] // group, group))
    top = tl.maximum(tl.max(lanes, 2) * UNIT, largest)
    _, here = _below(lanes, top[:, :, None], k)
    return top, total * tl.exp2((largest - top) * k) + tl.sum(here, 2)


@triton.jit
def _joined(largest, total, k):
    """Maxima and sums of lanes or parts, along axis 1, as one."""
    top = tl.max(largest, 1)
    return top, tl.sum(total * tl.exp2((largest - top[:, None]) * k), 1)


@triton.jit
def _sums(
    student, teacher, mask, image, c, channels, first, last, positions, s_c, s_p, t_c, t_p, k,
    masked: tl.constexpr, policy: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Largest logit and sum of exp2 from position `first` to `last`, and whether anything there counts."""
    lanes: tl.constexpr = block_p // group
    s_max, s_sum = tl.full((block_c, lanes), LOWEST, tl.float32), tl.zeros((block_c, lanes), tl.float32)
    t_max, t_sum = tl.full((block_c, lanes), LOWEST, tl.float32), tl.zeros((block_c, lanes), tl.float32)
    seen = tl.zeros((block_c, block_p), tl.int1)
    for start in range(first, last, block_p):
        p = start + tl.arange(0, block_p)
        kept = _kept(mask, image, c, channels, p, last, positions, masked)
        s, t = _logits(student, c, p, s_c, s_p, kept, policy), _logits(teacher, c, p, t_c, t_p, kept, policy)
        s_max, s_sum = _online(s, s_max, s_sum, k, group)
        t_max, t_sum = _online(t, t_max, t_sum, k, group)
        if masked:
            seen = seen | kept
    s_max, s_sum = _joined(s_max, s_sum, k)
    t_max, t_sum = _joined(t_max, t_sum, k)
    some = tl.full((block_c,), 1, tl.int32)
    if masked:
        some = tl.max(seen.to(tl.int32), 1)
    return s_max, s_sum, t_max, t_sum, some


@triton.jit
def _slopes(
    student, teacher, mask, gradient, image, c, channels, first, last, positions,
    s_c, s_p, t_c, t_p, g_c, g_p, s_max, q_scale, t_max, p_scale, k,
    masked: tl.constexpr, wanted: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """The gradient, `slope * (q - p)`, from `first` to `last`; sums of gaps and of the gradient."""
    gap_sum, excess = tl.zeros((block_c, block_p), tl.float32), tl.zeros((block_c, block_p), tl.float32)
    for start in range(first, last, block_p):
        p = start + tl.arange(0, block_p)
        kept = _kept(mask, image, c, channels, p, last, positions, masked)
        s_gap, s_exp = _below(_logits(student, c, p, s_c, s_p, kept, "evict_first"), s_max[:, None], k)
        t_gap, t_exp = _below(_logits(teacher, c, p, t_c, t_p, kept, "evict_first"), t_max[:, None], k)
        gap_sum += _gaps(s_gap, t_gap, t_exp)
        difference = s_exp * q_scale[:, None] - t_exp * p_scale[:, None]
        excess += difference
        if wanted:
            there = (c < channels)[:, None] & (p < last)[None, :]
            values = difference.to(gradient.dtype.element_ty)
            tl.store(gradient + _offsets(c, p, g_c, g_p), values, mask=there, eviction_policy="evict_first")
    return tl.sum(gap_sum, 1), tl.sum(excess, 1)


@triton.jit
def resident(
    student, teacher, mask, gradient, rows, channels, positions,
    s_n, s_c, s_p, t_n, t_c, t_p, g_n, g_c, g_p, k, slope, temperature, limit, factor,
    masked: tl.constexpr, wanted: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """Rows that a program holds whole: every map is read once."""
    image, c, _, _ = _place(channels, 0, 1, False, block_c)
    p = tl.arange(0, block_p)
    kept = _kept(mask, image, c, channels, p, positions, positions, masked)
    s = _logits(student + image * s_n, c, p, s_c, s_p, kept, "evict_first")
    t = _logits(teacher + image * t_n, c, p, t_c, t_p, kept, "evict_first")
    some = tl.full((block_c,), 1, tl.int32)
    if masked:
        some = tl.max(kept.to(tl.int32), 1)
    # A row with nothing to count has no largest logit; minus infinity less itself is no number.
    s_gap, s_exp = _below(s, tl.where(some != 0, tl.max(s, 1) * UNIT, 0.0)[:, None], k)
    t_gap, t_exp = _below(t, tl.where(some != 0, tl.max(t, 1) * UNIT, 0.0)[:, None], k)
    mass = tl.sum(t_exp, 1)
    q_scale = tl.where(some != 0, slope / tl.sum(s_exp, 1), 0.0)
    p_scale = tl.where(some != 0, slope / mass, 0.0)
    gap = tl.sum(_gaps(s_gap, t_gap, t_exp), 1)
    difference = s_exp * q_scale[:, None] - t_exp * p_scale[:, None]
    inside = c < channels
    value = _value(gap, mass, q_scale, p_scale, tl.sum(difference, 1), some, slope, temperature, limit, factor)
    tl.store(rows + image * channels + c, value, mask=inside)
    if wanted:
        there = inside[:, None] & (p < positions)[None, :]
        values = difference.to(gradient.dtype.element_ty)
        tl.store(gradient + image * g_n + _offsets(c, p, g_c, g_p), values, mask=there, eviction_policy="evict_first")


@triton.jit
def streamed(
    student, teacher, mask, gradient, rows, channels, positions,
    s_n, s_c, s_p, t_n, t_c, t_p, g_n, g_c, g_p, k, slope, temperature, limit, factor,
    masked: tl.constexpr, wanted: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Rows that a program reads twice, the second time from the cache."""
    image, c, _, first = _place(channels, positions, 1, False, block_c)
    student += image * s_n
    teacher += image * t_n
    s_max, s_sum, t_max, t_sum, some = _sums(
        student, teacher, mask, image, c, channels, first, positions, positions, s_c, s_p, t_c, t_p, k,
        masked, "evict_last", block_c, block_p, group,
    )  # fmt: skip
    q_scale = tl.where(some != 0, slope / s_sum, 0.0)
    p_scale = tl.where(some != 0, slope / t_sum, 0.0)
    gap, excess = _slopes(
        student, teacher, mask, gradient + image * g_n, image, c, channels, first, positions, positions,
        s_c, s_p, t_c, t_p, g_c, g_p, s_max, q_scale, t_max, p_scale, k,
        masked, wanted, block_c, block_p,
    )  # fmt: skip
    value = _value(gap, t_sum, q_scale, p_scale, excess, some, slope, temperature, limit, factor)
    tl.store(rows + image * channels + c, value, mask=c < channels)


@triton.jit
def part_sums(
    student, teacher, mask, found, channels, positions, part, parts, size,
    s_n, s_c, s_p, t_n, t_c, t_p, k,
    masked: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """First start of a split row: the sums of one part. `found` is (FIELDS, rows, parts), `size` rows * parts."""
    image, c, number, first = _place(channels, part, parts, False, block_c)
    last = tl.minimum(first + part, positions)
    s_max, s_sum, t_max, t_sum, some = _sums(
        student + image * s_n, teacher + image * t_n, mask, image, c, channels, first, last, positions,
        s_c, s_p, t_c, t_p, k, masked, "", block_c, block_p, group,
    )  # fmt: skip
    at = found + (image * channels + c) * parts + number
    inside = c < channels
    tl.store(at, s_max, mask=inside)
    tl.store(at + size, s_sum, mask=inside)
    tl.store(at + 2 * size, t_max, mask=inside)
    tl.store(at + 3 * size, t_sum, mask=inside)
    tl.store(at + 4 * size, some.to(tl.float32), mask=inside)


@triton.jit
def _all_parts(found, row, inside, parts, size, k, slope, joined: tl.constexpr):
    """The sums of whole rows from those of their parts, in the same order wherever they are asked for."""
    number = tl.arange(0, joined)
    at = found + row[:, None] * parts + number[None, :]
    there = inside[:, None] & (number < parts)[None, :]
    s_max, s_sum = _joined(tl.load(at, there, LOWEST), tl.load(at + size, there, 0.0), k)
    t_max, t_sum = _joined(tl.load(at + 2 * size, there, LOWEST), tl.load(at + 3 * size, there, 0.0), k)
    some = tl.max(tl.load(at + 4 * size, there, 0.0), 1)
    q_scale, p_scale = tl.where(some != 0, slope / s_sum, 0.0), tl.where(some != 0, slope / t_sum, 0.0)
    return s_max, q_scale, t_max, p_scale, t_sum, some


@triton.jit
def part_slopes(
    student, teacher, mask, gradient, found, compared, channels, positions, part, parts, size,
    s_n, s_c, s_p, t_n, t_c, t_p, g_n, g_c, g_p, k, slope,
    masked: tl.constexpr, wanted: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr, joined: tl.constexpr,
):  # fmt: skip
    """Second start: the gradient of one part; its sums of gaps and of the gradient in `compared`, (2, rows, parts)."""
    image, c, number, first = _place(channels, part, parts, True, block_c)
    last = tl.minimum(first + part, positions)
    row, inside = image * channels + c, c < channels
    s_max, q_scale, t_max, p_scale, _, _ = _all_parts(found, row, inside, parts, size, k, slope, joined)
    gap, excess = _slopes(
        student + image * s_n, teacher + image * t_n, mask, gradient + image * g_n, image, c, channels,
        first, last, positions, s_c, s_p, t_c, t_p, g_c, g_p, s_max, q_scale, t_max, p_scale, k,
        masked, wanted, block_c, block_p,
    )  # fmt: skip
    at = compared + row * parts + number
    tl.store(at, gap, mask=inside)
    tl.store(at + size, excess, mask=inside)


@triton.jit
def part_values(
    found, compared, rows, count, parts, size, k, slope, temperature, limit, factor,
    block_r: tl.constexpr, joined: tl.constexpr,
):  # fmt: skip
    """Third start: the values of `count` rows."""
    row = tl.program_id(0).to(tl.int64) * block_r + tl.arange(0, block_r)
    inside = row < count
    _, q_scale, _, p_scale, mass, some = _all_parts(found, row, inside, parts, size, k, slope, joined)
    number = tl.arange(0, joined)
    at = compared + row[:, None] * parts + number[None, :]
    there = inside[:, None] & (number < parts)[None, :]
    gap, excess = tl.sum(tl.load(at, there, 0.0), 1), tl.sum(tl.load(at + size, there, 0.0), 1)
    value = _value(gap, mass, q_scale, p_scale, excess, some, slope, temperature, limit, factor)
    tl.store(rows + row, value, mask=inside)


@triton.jit
def scale(
    gradient, upstream, channels, positions, part, parts, g_n, g_c, g_p, u_n, u_c, factor,
    block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """In place: every row of the gradient times `factor` and the gradient of its value; nothing to do for ones."""
    image, c, _, first = _place(channels, part, parts, False, block_c)
    last = tl.minimum(first + part, positions)
    inside = c < channels
    times = tl.load(upstream + image * u_n + c.to(tl.int64) * u_c, inside, 1.0).to(tl.float32) * factor
    if tl.max((inside & (times != 1.0)).to(tl.int32), 0) != 0:
        for start in range(first, last, block_p):
            p = start + tl.arange(0, block_p)
            at = gradient + image * g_n + _offsets(c, p, g_c, g_p)
            there = inside[:, None] & (p < last)[None, :]
            scaled = tl.load(at, there, 0.0).to(tl.float32) * times[:, None]
            tl.store(at, scaled.to(gradient.dtype.element_ty), mask=there)
