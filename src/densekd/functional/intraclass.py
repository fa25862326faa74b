"""Cosine of every position to the mean of its class (IFV: intra-class feature variation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.errors import ArgumentError
from densekd.functional.checks import (
    check_labels,
    check_maps,
    check_mask,
    check_reduction,
    reduce_positions,
    working_type,
)
from densekd.functional.derivatives import features, in_range, transformed, unit_columns
from densekd.functional.image import SHORTEST, Unit, channel_dot, first_order, matrix, unit


def intraclass_mse(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    ignore_index: int = 255,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Intra-class feature variation: how far every position is from the centre of its class, by cosine.

    With mu_k the mean of f over the positions of class k in one image and v_i = cos(f_i, mu_{y_i}); V valid positions:

        L = 1 / V * sum_{n,i} (v_S - v_T)**2

    The centres carry gradient. A vector shorter than 1e-8 has cosine 0, and gets a gradient by its centre alone.

    Args:
        student: (N, Cs, *spatial), any float type and memory format.
        teacher: (N, Ct, *spatial); the channels may differ; gets no gradient.
        labels: integers (N, *spatial): 0 to num_classes - 1, or `ignore_index`.
        num_classes: K.
        ignore_index: the label of void; such positions take no part, neither in the centres nor in the mean.
        mask: bool (N, *spatial), True where a position counts, beside the labels. Nothing valid: a zero that still
            back-propagates.
        reduction: "mean" divides by V, the positions that mask and labels leave; "sum" by nothing; "none" returns
            (N, *spatial), zero in void positions.

    Returns:
        float32, or float64 where an input is float64.

    Time O(N * K * C * P) as products with one-hot labels. Beside the gradient there is one image of scratch.

    Raises:
        ShapeError: batch or spatial sizes that differ, no spatial axis, a mask or labels of another shape.
        DtypeError: integer maps, labels that are no integers, a mask that is not bool.
        ArgumentError: num_classes < 1, a label that is neither a class nor `ignore_index`, unknown reduction.
        SecondDerivativeError: when a second derivative is asked of a backward pass (`torch.func` has it, by the plain
            definition).

    Source: Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020. The authors'
    code (and its copies in TorchDistiller and CIRKD) divides by all N * P positions: void ones count there as zeros, so
    that its value is V / (N * P) times this one.

    >>> labels = torch.tensor([[[0, 0, 255]]])  # two pixels of class 0, one void
    >>> student = torch.tensor([[1.0, 1.0, 5.0], [0.0, 0.0, 5.0]]).view(1, 2, 1, 3)  # both pixels alike
    >>> teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).view(1, 2, 1, 3)  # 45 degrees from their centre
    >>> round(intraclass_mse(student, teacher, labels, num_classes=1).item(), 4)
    0.0858
    >>> round((1 - 0.5**0.5) ** 2, 4)
    0.0858
    """
    check_maps(student, teacher, same_channels=False)
    check_mask(mask, student)
    check_reduction(reduction)
    check_labels(labels, student, check_num_classes(num_classes), ignore_index)
    valid = labels != ignore_index if mask is None else mask & (labels != ignore_index)
    classes = torch.where(valid, labels, 0).long()
    working = working_type(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        own, its = (_class_cosine(x, classes, valid, num_classes, working) for x in (student, teacher.detach()))
    return reduce_positions((own - its).square(), valid, reduction)


def _class_cosine(x: Tensor, classes: Tensor, valid: Tensor, num_classes: int, working: torch.dtype) -> Tensor:
    if not transformed(x):
        cosine: Tensor = _ClassCosine.apply(x, classes, valid, num_classes, working)
        return cosine
    vectors = in_range(features(x, valid, working))
    kinds = torch.arange(num_classes, device=x.device)[:, None]
    members = ((classes.flatten(1)[:, None] == kinds) & valid.flatten(1)[:, None]).to(working)
    means = vectors @ members.transpose(1, 2) / members.sum(2).clamp(min=1)[:, None]
    towards = unit_columns(means).transpose(1, 2) @ unit_columns(vectors)
    return towards.gather(1, classes.flatten(1)[:, None]).view(classes.shape)


class _ClassCosine(torch.autograd.Function):
    """Cosine of every vector of (N, C, *spatial) to the centre of its class, (N, *spatial), zero where not valid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, classes: Tensor, valid: Tensor, num_classes: int, working: torch.dtype) -> Tensor:
        cosines = x.new_empty(classes.shape, dtype=working)
        for n, image in enumerate(x):
            vectors, members = _image(image, classes[n], valid[n], num_classes, working)
            centres, _ = _centres(vectors, members)
            towards = centres.T @ vectors.directions
            cosines[n] = towards.gather(0, classes[n].view(1, -1)).view(classes[n].shape)
        ctx.save_for_backward(x, classes, valid, cosines)
        ctx.num_classes = num_classes
        return cosines

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, classes, valid, cosines = ctx.saved_tensors
        gradient = torch.empty_like(x)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            for n, image in enumerate(x):
                vectors, members = _image(image, classes[n], valid[n], ctx.num_classes, cosines.dtype)
                slope = _slope(vectors, members, upstream[n].flatten(), cosines[n].flatten())
                gradient[n] = slope.view(image.shape)
        return first_order("intraclass_mse", gradient, x), None, None, None, None


def _image(
    image: Tensor, classes: Tensor, valid: Tensor, num_classes: int, working: torch.dtype
) -> tuple[Unit, Tensor]:
    """Unit vectors, and who belongs to which class, (K, P), zero where not valid."""
    vectors = unit(matrix(image, valid, working))
    members = vectors.lengths.new_zeros(num_classes, classes.numel())
    members.scatter_(0, classes.view(1, -1), valid.view(1, -1).to(working))
    return vectors, members


def _centres(vectors: Unit, members: Tensor) -> tuple[Tensor, Tensor]:
    """The centres at unit length, (C, K), and their inverse lengths over the number of members, (K,)."""
    counts = members.sum(1).clamp(min=1)
    means = vectors.directions @ (members * vectors.lengths).T / counts
    lengths = channel_dot(means, means).sqrt()
    inverse = torch.where(lengths > SHORTEST, 1.0 / lengths, 0.0)
    return means * inverse, inverse / counts


def _slope(vectors: Unit, members: Tensor, upstream: Tensor, cosines: Tensor) -> Tensor:
    """The gradient of the vectors, (C, P), in the place of their directions: directly and by way of the centres."""
    centres, share = _centres(vectors, members)
    pulls = vectors.directions @ (members * upstream).T
    pulls = (pulls - centres * channel_dot(pulls, centres)) * share
    direct = upstream * vectors.inverse
    slope = vectors.directions.mul_(-direct * cosines)
    slope.addmm_(torch.cat([centres, pulls], 1), torch.cat([members * direct, members]))
    return slope.div_(vectors.scale)


def check_num_classes(num_classes: Any) -> int:
    """A whole number of at least 1."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ArgumentError(f"num_classes: expected a whole number of at least 1, got {num_classes!r}")
    return num_classes
