"""Cross-entropy of small logits against full-size labels; the full-size logits never exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.functional.backends import require_triton, triton_runs
from densekd.functional.checks import (
    check_choice,
    check_dense,
    check_flag,
    check_ignore_index,
    check_label_type,
    check_label_values,
)
from densekd.functional.derivatives import transformed
from densekd.functional.upsampled_operator import definition, sums_operator

BACKENDS = ("auto", "torch", "triton")


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    pixels: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Cross-entropy after bilinear up-sampling to the labels' size, mean over the valid pixels of the batch.

    With Z = `interpolate(logits, (H, W), mode="bilinear", align_corners=align_corners)`, q = softmax_c(Z), class
    weights w (1 where not given) and label smoothing e, over the pixels p whose label y_p is not `ignore_index`:

        L = sum_p [(1 - e) * w_{y_p} * -log q_{p,y_p} + e/K * sum_c w_c * -log q_{p,c}] / sum_p w_{y_p}

    all images together; without weights the denominator is the number of valid pixels. Nothing valid gives a zero that
    still back-propagates. It is `torch.nn.functional.cross_entropy(Z, labels, ...)` with that denominator, computed
    tile by tile: Z, its softmax and their gradients are never stored, and the gradient of the small logits is made in
    the forward pass. Down-sampling works too (bilinear without smoothing, as `interpolate` does it).

    Args:
        logits: `(N, K, h, w)` with K >= 2, any float type and memory format; finite.
        labels: integers `(N, H, W)`: class ids and `ignore_index`.
        size: (H, W), where the caller knows it by other means; it must be the labels' size.
        align_corners: the corner convention of the up-sampling.
        ignore_index: label of void.
        class_weights: `(K,)`.
        label_smoothing: e, from 0 to below 1.
        pixels: the denominator in place of that of this batch, a scalar tensor: where the batch is a part of a larger
            one.
        backend: "torch" is the tiled version in plain torch, on any device; "triton" are GPU kernels for float16,
            bfloat16 and float32, for which the host waits for nothing: a label out of range is no error there but a
            loss that is no number; "auto" is "triton" on CUDA where it can run, else "torch". Under `torch.func` and
            forward-mode differentiation all are the plain definition, which makes the full-size logits.

    Returns:
        float32 scalar, float64 for float64 logits, whatever autocast says.

    Raises:
        ShapeError: shapes that do not belong together, one channel, a `size` that is not the labels'.
        DtypeError: logits that are no float maps, labels that are no integers.
        ArgumentError: a label out of range, label smoothing outside [0, 1), another device, an unknown backend or one
            that cannot run here.
        SecondDerivativeError: when a second derivative is asked of a backward pass (`torch.func` has it).

    >>> _ = torch.manual_seed(0)
    >>> logits, labels = torch.randn(2, 5, 8, 8), torch.randint(0, 5, (2, 32, 32))
    >>> large = torch.nn.functional.interpolate(logits, size=(32, 32), mode="bilinear")
    >>> expected = torch.nn.functional.cross_entropy(large, labels)
    >>> torch.allclose(upsampled_cross_entropy(logits, labels), expected, atol=1e-5)
    True
    """
    _check_shapes(logits, labels, size)
    check_flag("align_corners", align_corners)
    check_ignore_index(ignore_index)
    triton = _choose(backend, logits)
    if not triton:
        check_label_values(labels, logits.shape[1], ignore_index)
    weights = _weights(class_weights, logits)
    smoothing = _smoothing(label_smoothing)
    _check_pixels(pixels)
    if transformed(logits):
        total, weight = definition(logits, labels, weights, smoothing, ignore_index, align_corners)
    else:
        want = logits.requires_grad and torch.is_grad_enabled()
        total, weight, _ = sums_operator(logits, labels, weights, smoothing, ignore_index, align_corners, triton, want)
    denominator = weight if pixels is None else pixels.to(total).reshape(())
    return total / torch.where(denominator > 0, denominator, torch.ones_like(denominator))


def _check_shapes(logits: Any, labels: Any, size: Any) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        came = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise DtypeError(f"logits: expected a floating-point tensor (N, K, h, w), got {came}")
    check_dense("logits", logits)
    check_label_type(labels)
    if logits.ndim != 4 or labels.ndim != 3 or len(labels) != len(logits) or 0 in (*logits.shape, *labels.shape):
        raise ShapeError(
            f"expected logits (N, K, h, w) and labels (N, H, W), got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if logits.shape[1] == 1:
        raise ShapeError(
            f"logits: expected two channels or more, got one in {tuple(logits.shape)}; for one logit of two classes "
            "put a channel of zeros before it, or use torch.nn.functional.binary_cross_entropy_with_logits"
        )
    if logits.device != labels.device:
        raise ArgumentError(f"labels is on {labels.device}, logits on {logits.device}; move it with .to(device)")
    if size is not None and tuple(size) != tuple(labels.shape[1:]):
        raise ShapeError(
            f"size: expected the labels' size {tuple(labels.shape[1:])}, got {tuple(size)}; resize the labels with "
            "mode='nearest', or leave size out"
        )


def _weights(weights: Any, logits: Tensor) -> Tensor | None:
    if weights is None:
        return None
    classes = logits.shape[1]
    if not isinstance(weights, Tensor) or weights.shape != (classes,):
        came = tuple(weights.shape) if isinstance(weights, Tensor) else repr(weights)
        raise ShapeError(f"class_weights: expected a tensor of {classes} weights, one per class, got {came}")
    return weights.detach().to(logits.device, torch.promote_types(logits.dtype, torch.float32))


def _smoothing(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DtypeError(f"label_smoothing: expected a number, got {value!r}; for example 0.1")
    if not 0.0 <= value < 1.0:
        raise ArgumentError(f"label_smoothing: expected a number from 0 to below 1, got {value}")
    return float(value)


def _check_pixels(pixels: Any) -> None:
    if pixels is not None and (not isinstance(pixels, Tensor) or pixels.numel() != 1):
        came = tuple(pixels.shape) if isinstance(pixels, Tensor) else repr(pixels)
        raise ShapeError(f"pixels: expected a tensor of one number, got {came}")


def _choose(backend: str, logits: Tensor) -> bool:
    """Whether Triton's kernels compute this."""
    check_choice("backend", backend, BACKENDS)
    if backend == "triton":
        require_triton("logits", logits)
    return backend == "triton" or (backend == "auto" and triton_runs(logits))
