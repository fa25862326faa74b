"""Losses of a segmentation network against its labels.

All compute in float32 or better whatever autocast says. Void pixels are left out of sums and denominators alike;
with nothing but void, a loss is a zero that still back-propagates (zero gradients), not NaN.

Two kinds of logits are understood: `(N, K, H, W)` with K > 1, softmax over K; and `(N, 1, H, W)`, one logit whose
sigmoid is the probability of class 1 out of {0, 1}.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.errors import ArgumentError, DtypeError, ShapeError


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Refuse labels that would index out of range, which a GPU reports as a device-side assert.

    Raises:
        DtypeError: not int64.
        ArgumentError: a value outside `0 .. K-1` that is not `ignore_index`.
    """
    if labels.dtype != torch.int64:
        raise DtypeError(f"labels: expected int64 class ids, got {labels.dtype}")
    if labels.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(labels.masked_fill(labels == ignore_index, 0))).tolist()
    if low < 0 or high >= num_classes:
        raise ArgumentError(
            f"labels: values from {low} to {high}; expected class ids 0 to {num_classes - 1} or the ignore_index "
            f"{ignore_index}"
        )


def _check_shapes(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ShapeError(
            f"expected logits (N, K, H, W) and labels (N, H, W), got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )


def _pixel_losses(logits: Tensor, labels: Tensor, valid: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """Cross-entropy of every pixel, `(N, H, W)`; 0 where not valid."""
    safe = labels.masked_fill(~valid, 0)
    if logits.shape[1] > 1:
        losses = F.cross_entropy(logits, safe, weights, reduction="none", label_smoothing=smoothing)
    else:
        target = safe.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        scale = None if weights is None else weights[safe]
        losses = F.binary_cross_entropy_with_logits(logits[:, 0], target, scale, reduction="none")
    # A mask and no product: at a void pixel the loss may be infinite.
    return losses.masked_fill(~valid, 0.0)


def _plain(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    keep: Tensor | None = None,
    pixels: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, mean over the valid pixels of the batch.

    `sum_p w[y_p] * CE_p / sum_p w[y_p]` over valid pixels p, all images together; without weights the denominator is
    the number of valid pixels. With `label_smoothing` e, the target is `1 - e + e/K` for the true class and `e/K` for
    every other (binary: K = 2); under softmax each class's share carries that class's weight, as in torch, while the
    denominator stays the weight of the true classes.

    Args:
        logits: `(N, K, H, W)`, or `(N, 1, H, W)` for two classes.
        labels: int64 `(N, H, W)`.
        ignore_index: label of void.
        class_weights: `(K,)`, 2 entries for one logit.
        label_smoothing: e.
        keep: bool `(N, H, W)`; further restricts the pixels that count, in sum and denominator.
        pixels: the denominator in place of that of this batch (`pixel_weight`), a scalar: where the batch is a part
            of a larger one.

    Returns:
        float32 scalar (float64 for float64 logits).

    Raises:
        ShapeError: shapes that do not belong together.
    """
    _check_shapes(logits, labels)
    with torch.autocast(logits.device.type, enabled=False):
        logits = _plain(logits)
        valid = labels != ignore_index
        counted = valid if keep is None else valid & keep
        weights = None if class_weights is None else class_weights.to(logits)
        total = _pixel_losses(logits, labels, counted, label_smoothing, weights).sum()
        size = pixel_weight(labels, counted, weights).to(logits.dtype) if pixels is None else pixels.to(logits)
        return total / torch.where(size > 0, size, torch.ones_like(size))


def pixel_weight(labels: Tensor, counted: Tensor, class_weights: Tensor | None) -> Tensor:
    """The denominator of `cross_entropy`: the number of `counted` pixels, or the weight of their classes."""
    if class_weights is None:
        return counted.sum()
    return (class_weights[labels.masked_fill(~counted, 0)] * counted).sum()


def hard_pixels(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 255,
    threshold: float | None = None,
    keep_fraction: float | None = None,
    min_kept: int = 1,
) -> Tensor:
    """The valid pixels that the network finds hardest, over the whole batch: bool `(N, H, W)`.

    Hard is a low probability of the true class. Either every pixel below `threshold`, or the hardest
    `keep_fraction` of the valid pixels (rounded up); in both cases at least the `min_kept` hardest, as far as there
    are so many valid ones. Pixels that tie with the last one kept are kept too. No gradient passes.

    Raises:
        ArgumentError: neither or both of `threshold` and `keep_fraction`.
        ShapeError: shapes that do not belong together.
    """
    if (threshold is None) == (keep_fraction is None):
        raise ArgumentError("hard_pixels: give either threshold or keep_fraction")
    _check_shapes(logits, labels)
    valid = labels != ignore_index
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        losses = _pixel_losses(_plain(logits), labels, valid, 0.0, None)
        ranked = losses[valid]
        count = ranked.numel()
        if count == 0:
            return valid
        wanted = min(count, max(min_kept, 1 if keep_fraction is None else math.ceil(keep_fraction * count)))
        cut = torch.kthvalue(ranked, count - wanted + 1).values
        if threshold is not None:
            cut = torch.minimum(cut, cut.new_tensor(-math.log(threshold)))
        return valid & (losses >= cut)


def dice(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Soft Dice loss over the valid pixels of the batch.

    With probabilities p (softmax) and one-hot labels y, sums over the valid pixels of all images:
    `1 - mean_k 2 * sum(p_k * y_k) / (sum(p_k) + sum(y_k))`. The mean is over the classes that occur in the labels of
    the batch, so no smoothing constant is needed. With one logit p is its sigmoid and class 1 is the only one that
    counts; without any class-1 pixel the loss is 0.

    Args:
        logits: `(N, K, H, W)`, or `(N, 1, H, W)` for two classes.
        labels: int64 `(N, H, W)`.
        ignore_index: label of void.

    Returns:
        float32 scalar in [0, 1] (float64 for float64 logits).

    Raises:
        ShapeError: shapes that do not belong together.
    """
    _check_shapes(logits, labels)
    with torch.autocast(logits.device.type, enabled=False):
        logits = _plain(logits)
        valid = (labels != ignore_index).unsqueeze(1)
        if logits.shape[1] > 1:
            probability = logits.softmax(1)
            ids = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
        else:
            probability = logits.sigmoid()
            ids = torch.ones(1, 1, 1, 1, dtype=labels.dtype, device=logits.device)
        truth = (labels.unsqueeze(1) == ids) & valid
        probability = probability.masked_fill(~valid, 0.0)
        overlap = probability.masked_fill(~truth, 0.0).sum((0, 2, 3))
        pixels = truth.sum((0, 2, 3)).to(logits.dtype)
        present = pixels > 0
        # Classes that do not occur get the score 1 for safe division; `present` takes them out again.
        size = torch.where(present, probability.sum((0, 2, 3)) + pixels, torch.ones_like(pixels))
        losses = (1 - 2 * overlap / size) * present
        return losses.sum() / present.sum().clamp(min=1)
