"""Distances of every position to its neighbours (LOCAL)."""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.errors import ShapeError
from densekd.functional.checks import check_flag, check_maps, check_mask, check_reduction, working_type
from densekd.functional.neighbours import neighbour_distances, pair_slices


def local_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    normalize: bool = True,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Local affinity distillation: how far every position is from its 8 neighbours, in the space of the features.

    With f at unit length over C and d[i,j] = ||f_i - f_j||_2 for the E unordered pairs of neighbours in a map
    (E = H*(W-1) + (H-1)*W + 2*(H-1)*(W-1)), each distance kept apart and each pair once:

        L = 1 / (N * E) * sum_{n,{i,j}} (d_S - d_T)**2

    Distances lie between 0 and 2: they do not depend on the number of channels nor on the size of the features, so
    that networks of different width compare. Two equal neighbours, and a vector shorter than 1e-8, which counts as
    zero, get no gradient.

    Args:
        student: (N, Cs, *spatial), any float type and memory format; an axis of length 1 has no neighbours along it.
        teacher: (N, Ct, *spatial); the channels may differ; gets no gradient.
        normalize: False leaves the features as they are and divides the sum of squares in d by the number of
            channels instead: the size of the student's features is then pulled to the teacher's.
        mask: bool (N, *spatial), True where a position counts: pairs count where both do. Nothing valid: a zero that
            still back-propagates.
        reduction: "mean" divides by the number of valid pairs (N * E without a mask); "sum" by nothing; "none" returns
            (N, 4, *spatial), for every position the terms of the neighbours at (0, 1), (1, -1), (1, 0), (1, 1), zero
            where there is none.

    Returns:
        float32, or float64 where an input is float64.

    Raises:
        ShapeError: batch or spatial sizes that differ, no spatial axis, a single position, a mask of another shape.
        DtypeError: integer maps, a mask or `normalize` that is not bool.
        ArgumentError: unknown reduction.
        SecondDerivativeError: when a second derivative is asked of a backward pass (`torch.func` has it, by the plain
            definition).

    Source: the "LOCAL" of Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, after
    Xie et al., "Improving Fast Segmentation With Teacher-student Learning", 2018. There is no public code, and the
    exact distance, normalisation and border are not written down: those above are ours. Pairs across the border do
    not exist.

    >>> teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)  # neighbours at a right angle, sqrt(2) apart
    >>> student = torch.ones(1, 4, 1, 2)  # equal neighbours
    >>> round(local_mse(student, teacher).item(), 4)
    2.0
    """
    check_maps(student, teacher, same_channels=False)
    check_mask(mask, student)
    check_reduction(reduction)
    check_neighbours(student.shape)
    check_flag("normalize", normalize)
    working = working_type(student, teacher)
    own, its = (neighbour_distances(x, mask, normalize, working) for x in (student, teacher.detach()))
    valid = _valid_pairs(student, mask)
    pairs = torch.where(valid, (own - its).square(), 0.0)
    if reduction == "none":
        return pairs
    return pairs.sum() if reduction == "sum" else (pairs / valid.sum().clamp(min=1)).sum()


def check_neighbours(shape: torch.Size) -> None:
    """More than one position."""
    if all(side == 1 for side in shape[2:]):
        raise ShapeError(
            f"local_mse needs at least two positions, got one in {tuple(shape)}: it has no neighbours and the loss is "
            "always 0; tap an earlier module"
        )


def _valid_pairs(like: Tensor, mask: Tensor | None) -> Tensor:
    """bool (N, shifts, *spatial): the pair lies in the map, and both positions count."""
    counts = like.new_ones((len(like), *like.shape[2:]), dtype=torch.bool) if mask is None else mask
    slices = list(pair_slices(like.ndim - 2))
    valid = counts.new_zeros((len(like), len(slices), *like.shape[2:]))
    for s, (here, there) in enumerate(slices):
        valid[:, s][:, *here] = counts[:, *here] & counts[:, *there]
    return valid
