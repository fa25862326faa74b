"""Cross-entropy of bilinearly up-sampled logits in plain torch, tile by tile of the full-size map.

Up-sampling is linear and separable: of one image x, as rows of (classes, columns), a tile of the full-size map is

    Z = R x B^T,    its gradient goes back as    dx += R^T dZ B

with R (tile rows x input rows) and B (tile columns x input columns) of two entries in a row, of which only the block
that the tile reads is multiplied. Softmax, loss and gradient of a tile are made while it lies in the cache; the next
one takes its place. The full-size logits never exist, and the gradient of the small ones is complete in one pass.

R carries log2(e), so that `exp2` serves, which is several times faster than `exp` on many CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from densekd.kernels.bilinear import matrix, side

# Elements of a tile: on the CPU what stays in the cache, elsewhere what keeps the device busy.
BLOCK, BLOCK_ELSEWHERE = 262_144, 33_554_432
# Of a tile: with fewer rows or columns much is interpolated twice, at the seams.
_ROWS, _FEWEST_COLUMNS = 32, 64


class CrossEntropySums:
    """The sums over the valid pixels of tiles, and what the gradient of a tile's logits is.

    With the target `1 - e + e/K` for the true class and `e/K` for every other, class weights w and q the softmax:

        loss = (1 - e) * w_y * -log q_y + e/K * sum_c w_c * -log q_c
        slope_c = q_c * ((1 - e) * w_y + e/K * sum_c w_c) - (1 - e) * w_y * [c = y] - e/K * w_c
    """

    def __init__(self, classes: int, weights: Tensor | None, smoothing: float, ignore_index: int, like: Tensor) -> None:
        self._weights, self._ignore_index = weights, ignore_index
        self._truth, self._spread = 1.0 - smoothing, smoothing / classes
        self._every = float(classes) if weights is None else weights.sum()
        self.loss, self.weight = (like.new_zeros((), dtype=torch.float64) for _ in range(2))

    def add(self, z: Tensor, labels: Tensor, *, slope: bool) -> None:
        """A tile's logits in base 2, `(rows, K, columns)`, and its labels `(rows, columns)`.

        Afterwards `z` holds the gradient of the summed loss where `slope` is set, else nothing of use.
        """
        void = (labels == self._ignore_index)[:, None]
        truth = labels[:, None].masked_fill(void, 0).long()
        z.sub_(z.amax(1, keepdim=True))
        true_z = z.gather(1, truth)
        shares = None if self._spread == 0.0 else self._shares(z)
        q = z.exp2_()
        mass = q.sum(1, keepdim=True)
        log_mass = mass.log2()
        weight = (torch.ones_like(mass) if self._weights is None else self._weights[truth]).masked_fill_(void, 0.0)
        loss = self._truth * weight * (log_mass - true_z)
        if shares is not None:
            loss += (self._spread * (self._every * log_mass - shares)).masked_fill_(void, 0.0)
        # What is not finite in a void pixel takes no part in the value.
        self.loss += math.log(2.0) * loss.masked_fill_(void, 0.0).sum(dtype=torch.float64)
        self.weight += weight.sum(dtype=torch.float64)
        if slope:
            self._slope(q, mass, weight, truth, void)

    def _shares(self, z: Tensor) -> Tensor:
        """sum_c w_c * z_c, `(rows, 1, columns)`."""
        return z.sum(1, keepdim=True) if self._weights is None else torch.matmul(self._weights[None], z)

    def _slope(self, q: Tensor, mass: Tensor, weight: Tensor, truth: Tensor, void: Tensor) -> None:
        factor = self._truth * weight
        if self._spread:
            factor = factor + (self._spread * self._every)
        q.mul_((factor / mass).masked_fill_(void, 0.0))
        if self._spread:
            each = self._spread * (q.new_ones(q.shape[1]) if self._weights is None else self._weights)
            q.sub_(torch.where(void, 0.0, each[:, None]))
        q.scatter_add_(1, truth, weight.mul_(-self._truth))


@dataclass
class _Span:
    """A tile along one side: output samples `first` to `last`, and the block of the matrix that makes them."""

    first: int
    last: int
    inputs: slice
    block: Tensor


def tiled(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    smoothing: float,
    ignore_index: int,
    align_corners: bool,
    want_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the loss over the valid pixels, sum of their weights, and the gradient of the first.

    Args:
        logits: `(N, K, h, w)`; arithmetic is in float64 for float64, else in float32.
        labels: integers `(N, H, W)`.
        weights: `(K,)` in the working type, or None.
        want_gradient: without, the gradient is empty.
    """
    working = torch.promote_types(logits.dtype, torch.float32)
    classes, height, width = logits.shape[1:]
    rows, columns = _tile(labels.shape[1], labels.shape[2], classes, logits.device)
    down = _spans(height, labels.shape[1], rows, align_corners, logits.new_empty(0, dtype=working), math.log2(math.e))
    along = _spans(width, labels.shape[2], columns, align_corners, logits.new_empty(0, dtype=working), 1.0)
    sums = CrossEntropySums(classes, weights, smoothing, ignore_index, logits)
    gradient = torch.empty_like(logits, dtype=working) if want_gradient else logits.new_empty(0, dtype=working)
    scratch = logits.new_empty(classes * rows * columns, dtype=working)
    with full_precision(logits.device):
        for image in range(len(logits)):
            x = logits[image].permute(1, 0, 2).to(working).contiguous()  # (h, K, w)
            slope = torch.zeros_like(x) if want_gradient else None
            _image(x, labels[image], down, along, sums, slope, scratch)
            if slope is not None:
                gradient[image].copy_(slope.permute(1, 0, 2))
    return sums.loss.to(working), sums.weight.to(working), gradient


def _image(
    x: Tensor,
    labels: Tensor,
    down: list[_Span],
    along: list[_Span],
    sums: CrossEntropySums,
    slope: Tensor | None,
    scratch: Tensor,
) -> None:
    classes = x.shape[1]
    for column in along:
        for row in down:
            part = x[row.inputs, :, column.inputs]
            inner = (part.reshape(-1, part.shape[2]) @ column.block.T).view(len(part), -1)
            high, wide = row.last - row.first, column.last - column.first
            z = scratch[: high * classes * wide].view(high, -1)
            torch.mm(row.block, inner, out=z)
            here = labels[row.first : row.last, column.first : column.last]
            sums.add(z.view(high, classes, wide), here, slope=slope is not None)
            if slope is not None:
                # The block carries log2(e), which the gradient of a logit must not.
                back = torch.mm(row.block.T, z).view(-1, wide) @ column.block
                slope[row.inputs, :, column.inputs].add_(back.view(part.shape), alpha=math.log(2.0))


def _tile(height: int, width: int, classes: int, device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile."""
    most = max(1, (BLOCK if device.type == "cpu" else BLOCK_ELSEWHERE) // classes)
    rows = min(height, _ROWS)
    columns = min(width, max(_FEWEST_COLUMNS, most // rows))
    return min(height, max(1, most // columns)), columns


def _spans(inputs: int, outputs: int, step: int, align_corners: bool, like: Tensor, scale: float) -> list[_Span]:
    found = side(inputs, outputs, align_corners)
    whole = (scale * matrix(found, inputs, torch.float64)).to(like)
    low, high = found.low.tolist(), found.high.tolist()
    spans = []
    for first in range(0, outputs, step):
        last = min(first + step, outputs)
        reads = slice(low[first], high[last - 1] + 1)
        spans.append(_Span(first, last, reads, whole[first:last, reads]))
    return spans


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 without TensorFloat-32, which a program may have switched on for its networks."""
    if device.type != "cuda":
        yield
        return
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before
