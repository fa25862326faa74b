# mypy: disable-error-code="no-untyped-def"
"""Pixel-wise KL over channels in Triton: the kernel. The formulas stand in `densekd.kernels.pixelwise`.

A program takes neighbouring positions of one image and runs over their channels, strided as they lie. Where one tile
holds all channels each map is read once, else twice, the second time mostly from the cache. All arithmetic is float32.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile(base, c, p, stride_c, stride_p, kept):
    at = base + c.to(tl.int64)[:, None] * stride_c + p.to(tl.int64)[None, :] * stride_p
    return tl.load(at, mask=kept, other=float("-inf")).to(tl.float32)


@triton.jit
def _join(x, top, mass, inverse):
    """Running maximum and sum of exp over the channels of a further tile, position by position."""
    larger = tl.maximum(top, tl.max(x, 0))
    # Where nothing but minus infinity has come, minus infinity less itself is no number.
    base = tl.where(larger == float("-inf"), 0.0, larger)
    mass = mass * tl.exp2((top - base) * inverse) + tl.sum(tl.exp2((x - base[None, :]) * inverse), 0)
    return larger, mass


@triton.jit
def _below(x, top, inverse, low):
    """(x - max) / tau, held above `low`, and exp of it; zero beyond the last channel, where x is minus infinity."""
    gap = tl.maximum((x - top[None, :]) * inverse, low, propagate_nan=tl.PropagateNan.ALL)
    return gap, tl.exp2(gap * LOG2_E)


@triton.jit
def _terms(s, t, s_top, t_top, s_mass, t_mass, inverse, low):
    """q - p of a tile, and the sums over its channels of p * (v - u) and q - p."""
    u, q = _below(s, s_top, inverse, low)
    v, p = _below(t, t_top, inverse, low)
    q, p = q / s_mass[None, :], p / t_mass[None, :]
    slope = q - p
    return slope, tl.sum(p * (v - u), 0), tl.sum(slope, 0)


@triton.jit
def positions(
    student, teacher, mask, gradient, values, channels, places,
    s_n, s_c, s_p, t_n, t_c, t_p, g_n, g_c, g_p, inverse, squared, low,
    masked: tl.constexpr, wanted: tl.constexpr, whole: tl.constexpr, block_c: tl.constexpr, block_p: tl.constexpr,
):  # fmt: skip
    """`temperature**2 * KL` of some positions of one image, and q - p."""
    program = tl.program_id(0)
    pieces = tl.cdiv(places, block_p)
    image = (program // pieces).to(tl.int64)
    p = (program % pieces) * block_p + tl.arange(0, block_p)
    there = p < places
    valid = there
    if masked:
        valid = there & (tl.load(mask + image * places + p, mask=there, other=0) != 0)
    student += image * s_n
    teacher += image * t_n
    gradient += image * g_n
    s_top = tl.full((block_p,), float("-inf"), tl.float32)
    t_top = tl.full((block_p,), float("-inf"), tl.float32)
    s_mass, t_mass = tl.zeros((block_p,), tl.float32), tl.zeros((block_p,), tl.float32)
    gaps, excess = tl.zeros((block_p,), tl.float32), tl.zeros((block_p,), tl.float32)
    if whole:
        c = tl.arange(0, block_c)
        inside = c < channels
        kept = inside[:, None] & valid[None, :]
        s, t = _tile(student, c, p, s_c, s_p, kept), _tile(teacher, c, p, t_c, t_p, kept)
        s_top, s_mass = _join(s, s_top, s_mass, inverse * LOG2_E)
        t_top, t_mass = _join(t, t_top, t_mass, inverse * LOG2_E)
        slope, gaps, excess = _terms(s, t, s_top, t_top, s_mass, t_mass, inverse, low)
        if wanted:
            slope = tl.where(valid[None, :], slope, 0.0).to(gradient.dtype.element_ty)
            at = gradient + c.to(tl.int64)[:, None] * g_c + p.to(tl.int64)[None, :] * g_p
            tl.store(at, slope, mask=inside[:, None] & there[None, :])
    else:
        for first in range(0, channels, block_c):
            c = first + tl.arange(0, block_c)
            kept = (c < channels)[:, None] & valid[None, :]
            s_top, s_mass = _join(_tile(student, c, p, s_c, s_p, kept), s_top, s_mass, inverse * LOG2_E)
            t_top, t_mass = _join(_tile(teacher, c, p, t_c, t_p, kept), t_top, t_mass, inverse * LOG2_E)
        for first in range(0, channels, block_c):
            c = first + tl.arange(0, block_c)
            inside = c < channels
            kept = inside[:, None] & valid[None, :]
            s, t = _tile(student, c, p, s_c, s_p, kept), _tile(teacher, c, p, t_c, t_p, kept)
            slope, gap, more = _terms(s, t, s_top, t_top, s_mass, t_mass, inverse, low)
            gaps += gap
            excess += more
            if wanted:
                slope = tl.where(valid[None, :], slope, 0.0).to(gradient.dtype.element_ty)
                at = gradient + c.to(tl.int64)[:, None] * g_c + p.to(tl.int64)[None, :] * g_p
                tl.store(at, slope, mask=inside[:, None] & there[None, :])
    value = (gaps + tl.log(s_mass / t_mass) + excess) * squared
    value = tl.where(value < 0, 0.0, value)
    tl.store(values + image * places + p, tl.where(valid, value, 0.0), mask=there)
