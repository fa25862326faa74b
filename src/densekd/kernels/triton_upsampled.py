# mypy: disable-error-code="no-untyped-def"
"""Cross-entropy of bilinearly up-sampled logits in Triton: the kernels. The formulas stand in
`densekd.kernels.upsampled_cross_entropy`.

`pixels` runs over full-size pixels and interpolates each one's K logits from the four small ones around it; of them it
keeps one number, the softmax's normaliser. `slopes` runs over the small logits and gathers what the full-size pixels
around each one give it, so nothing is added by several programs and results repeat exactly. Logits are in base 2; all
arithmetic is float32. `weights` holds K weights and behind them their sum.
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _along(base, c, row, x0, x1, t, x_c, x_h, x_w, kept):
    """Small logits of one row, interpolated along it: (classes, full-size columns), in base 2."""
    at = base + row.to(tl.int64) * x_h + c.to(tl.int64)[:, None] * x_c
    left = tl.load(at + x0.to(tl.int64)[None, :] * x_w, mask=kept, other=0.0).to(tl.float32)
    right = tl.load(at + x1.to(tl.int64)[None, :] * x_w, mask=kept, other=0.0).to(tl.float32)
    return ((1.0 - t)[None, :] * left + t[None, :] * right) * LOG2_E


@triton.jit
def pixels(
    logits, labels, weights, row_low, row_weight, column_low, column_weight, log_mass, losses, counted,
    classes, small_height, small_width, height, width, x_n, x_c, x_h, x_w, y_n, y_h, y_w,
    ignore_index, truth_share, spread,
    weighted: tl.constexpr, smoothed: tl.constexpr, block_c: tl.constexpr, block_x: tl.constexpr,
):  # fmt: skip
    """Of a piece of one full-size row: log2 of the softmax's normaliser, the sum of the loss, the sum of the weights.

    A label that is neither void nor a class gives a loss that is no number; nothing is read for it.
    """
    program = tl.program_id(0)
    pieces = tl.cdiv(width, block_x)
    image = (program // (pieces * height)).to(tl.int64)
    row = (program // pieces) % height
    x = (program % pieces) * block_x + tl.arange(0, block_x)
    there = x < width
    place = image * y_n + row.to(tl.int64) * y_h + x.to(tl.int64) * y_w
    label = tl.load(labels + place, mask=there, other=0).to(tl.int64)
    valid = there & (label != ignore_index)
    known = valid & (label >= 0) & (label < classes)
    y0 = tl.load(row_low + row)
    y1 = tl.minimum(y0 + 1, small_height - 1)
    u = tl.load(row_weight + row)
    x0 = tl.load(column_low + x, mask=there, other=0)
    x1 = tl.minimum(x0 + 1, small_width - 1)
    t = tl.load(column_weight + x, mask=there, other=0.0)
    top = tl.full((block_x,), float("-inf"), tl.float32)
    mass, truth = tl.zeros((block_x,), tl.float32), tl.zeros((block_x,), tl.float32)
    shares = tl.zeros((block_x,), tl.float32)
    for first in range(0, classes, block_c):
        c = first + tl.arange(0, block_c)
        inside = c < classes
        kept = inside[:, None] & there[None, :]
        upper = _along(logits + image * x_n, c, y0, x0, x1, t, x_c, x_h, x_w, kept)
        lower = _along(logits + image * x_n, c, y1, x0, x1, t, x_c, x_h, x_w, kept)
        z = (1.0 - u) * upper + u * lower
        truth += tl.sum(tl.where(c[:, None] == label[None, :], z, 0.0), 0)
        if smoothed:
            share = inside.to(tl.float32)
            if weighted:
                share = tl.load(weights + c, mask=inside, other=0.0)
            shares += tl.sum(z * share[:, None], 0)
        z = tl.where(inside[:, None], z, float("-inf"))
        larger = tl.maximum(top, tl.max(z, 0))
        mass = mass * tl.exp2(top - larger) + tl.sum(tl.exp2(z - larger[None, :]), 0)
        top = larger
    found = top + tl.log2(mass)
    tl.store(log_mass + (image * height + row) * width + x, found, mask=there)
    weight, every = known.to(tl.float32), classes * 1.0
    if weighted:
        weight, every = tl.load(weights + label, mask=known, other=0.0), tl.load(weights + classes)
    loss = truth_share * weight * (found - truth)
    if smoothed:
        loss += spread * (every * found - shares)
    loss = tl.where(valid, tl.where(known, loss * LN_2, float("nan")), 0.0)
    tl.store(losses + program, tl.sum(loss, 0))
    tl.store(counted + program, tl.sum(weight, 0))


@triton.jit
def slopes(
    logits, labels, weights, row_low, row_weight, row_first, row_last,
    column_low, column_weight, column_first, column_last, log_mass, gradient,
    classes, small_height, small_width, height, width, x_n, x_c, x_h, x_w, y_n, y_h, y_w, g_n, g_c, g_h, g_w,
    ignore_index, truth_share, spread,
    weighted: tl.constexpr, smoothed: tl.constexpr, block_c: tl.constexpr, block_x: tl.constexpr,
    block_j: tl.constexpr,
):  # fmt: skip
    """The gradient of some classes at some columns j of one small row: gathered from the full-size pixels around."""
    program = tl.program_id(0)
    pieces, groups = tl.cdiv(small_width, block_j), tl.cdiv(classes, block_c)
    j = (program % pieces) * block_j + tl.arange(0, block_j)
    row = (program // pieces) % small_height
    c = (program // (pieces * small_height)) % groups * block_c + tl.arange(0, block_c)
    image = (program // (pieces * small_height * groups)).to(tl.int64)
    inside = c < classes
    base = logits + image * x_n
    begin = tl.load(column_first + (program % pieces) * block_j)
    end = tl.load(column_last + tl.minimum((program % pieces) * block_j + block_j, small_width) - 1)
    first, last = tl.load(row_first + row).to(tl.int64), tl.load(row_last + row).to(tl.int64)
    share, every = tl.full((block_c,), 1.0, tl.float32) * spread, classes * 1.0
    if weighted:
        share, every = tl.load(weights + c, mask=inside, other=0.0) * spread, tl.load(weights + classes)
    total = tl.zeros((block_c, block_j), tl.float32)
    for start in range(begin, end, block_x):
        x = start + tl.arange(0, block_x)
        there = x < end
        kept = inside[:, None] & there[None, :]
        x0 = tl.load(column_low + x, mask=there, other=0)
        x1 = tl.minimum(x0 + 1, small_width - 1)
        t = tl.load(column_weight + x, mask=there, other=0.0)
        above = _along(base, c, tl.maximum(row - 1, 0), x0, x1, t, x_c, x_h, x_w, kept)
        here = _along(base, c, row, x0, x1, t, x_c, x_h, x_w, kept)
        below = _along(base, c, tl.minimum(row + 1, small_height - 1), x0, x1, t, x_c, x_h, x_w, kept)
        gathered = tl.zeros((block_c, block_x), tl.float32)
        for r in range(first, last):
            y0 = tl.load(row_low + r)
            u = tl.load(row_weight + r)
            before = y0 < row  # this full-size row lies between the small row before and this one
            z = (1.0 - u) * tl.where(before, above, here) + u * tl.where(before, here, below)
            # In the last small row's lower half both neighbours are that row.
            pull = tl.where(before, u, tl.where(y0 == small_height - 1, 1.0, 1.0 - u))
            place = image * y_n + r * y_h + x.to(tl.int64) * y_w
            label = tl.load(labels + place, mask=there, other=0).to(tl.int64)
            valid = there & (label != ignore_index)
            found = tl.load(log_mass + (image * height + r) * width + x, mask=there, other=0.0)
            weight = valid.to(tl.float32)
            if weighted:
                known = valid & (label >= 0) & (label < classes)
                weight = tl.load(weights + label, mask=known, other=0.0)
            weight = weight * truth_share
            factor = weight
            if smoothed:
                factor = weight + spread * every
            slope = tl.exp2(z - found[None, :]) * factor[None, :]
            slope -= tl.where(c[:, None] == label[None, :], weight[None, :], 0.0)
            if smoothed:
                slope -= share[:, None]
            gathered += pull * tl.where(valid[None, :], slope, 0.0)
        weigh = tl.where(x0[:, None] == j[None, :], (1.0 - t)[:, None], 0.0)
        weigh += tl.where(x1[:, None] == j[None, :], t[:, None], 0.0)
        total += tl.dot(gathered, tl.where(there[:, None], weigh, 0.0), input_precision="ieee")
    at = gradient + image * g_n + row.to(tl.int64) * g_h
    at += c.to(tl.int64)[:, None] * g_c + j.to(tl.int64)[None, :] * g_w
    tl.store(at, total.to(gradient.dtype.element_ty), mask=inside[:, None] & (j < small_width)[None, :])
