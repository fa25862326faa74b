"""How far a fast teacher's maps are from the plain float32 teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.errors import ArgumentError, ShapeError
from densekd.taps import holds_class_map, main_output


@dataclass(frozen=True)
class MapError:
    """The error of one tap's maps.

    Attributes:
        maps: `||fast - plain|| / ||plain||`, Euclidean norms over all entries; not divided where the plain map is zero.
        softened: the same of `softmax(map / temperature)` over the positions of each channel of each image.
        finite: no entry is NaN or infinite.
    """

    maps: float
    softened: float
    finite: bool


def map_error(fast: Tensor, plain: Tensor, temperature: float) -> MapError:
    """The error of maps `(N, C, H, W)`, in float64.

    Raises:
        ShapeError: the two differ in shape.
    """
    if fast.shape != plain.shape:
        raise ShapeError(
            f"the fast teacher gives a map of shape {tuple(fast.shape)}, the plain one {tuple(plain.shape)}"
        )
    fast = fast.to(plain.device)
    finite = bool(fast.isfinite().all())
    if not finite:
        return MapError(float("nan"), float("nan"), False)
    totals = torch.zeros(4, dtype=torch.float64, device=plain.device)
    # one image at a time: the float64 copies of large maps stay small
    for ours, theirs in zip(fast, plain, strict=True):
        a, b = ours.double(), theirs.double()
        p, q = ((x.flatten(1) / temperature).softmax(1) for x in (a, b))
        totals += torch.stack([(a - b).square().sum(), b.square().sum(), (p - q).square().sum(), q.square().sum()])
    error, norm, soft_error, soft_norm = totals.sqrt().tolist()
    return MapError(_relative(error, norm), _relative(soft_error, soft_norm), True)


def _relative(error: float, norm: float) -> float:
    return error / norm if norm > 0 else error


def map_errors(fast: Mapping[str, Tensor], plain: Mapping[str, Tensor], temperature: float) -> dict[str, MapError]:
    """The error of every tap."""
    return {tap: map_error(fast[tap], plain[tap], temperature) for tap in plain}


def class_map(output: Any) -> Tensor | None:
    """The class map `(N, K, H, W)` of what a network returned, or None where it returns none."""
    return main_output(output) if holds_class_map(output) else None


def answered(logits: Tensor) -> Tensor:
    """The class of each position `(N, H, W)`: the largest logit, or the sign of a single one."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


class MiouCount:
    """Intersections and unions of every class over any number of batches; mIoU is the mean over the classes that are
    present in labels or answers. Void pixels count nowhere.

    Raises:
        ArgumentError: labels that are no class ids.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts = torch.zeros(num_classes * num_classes, dtype=torch.int64)
        self.images = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch: logits `(N, K, h, w)`, brought to the size of the labels `(N, H, W)` bilinearly."""
        if labels.shape[1:] != logits.shape[2:]:
            logits = F.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
        labels = labels.to(logits.device).long()
        counted = labels != self.ignore_index
        truth, answer = labels[counted], answered(logits)[counted]
        if truth.numel() and not (int(truth.min()) >= 0 and int(truth.max()) < self.num_classes):
            raise ArgumentError(
                f"held_out: labels from {int(truth.min())} to {int(truth.max())}; expected the teacher's class ids 0 "
                f"to {self.num_classes - 1}, or the ignore_index {self.ignore_index}"
            )
        self.images += len(labels)
        found = torch.bincount(truth * self.num_classes + answer, minlength=len(self.counts))
        self.counts += found.cpu()

    @property
    def miou(self) -> float | None:
        """None where not one pixel was counted."""
        matrix = self.counts.view(self.num_classes, self.num_classes).double()
        hits = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - hits
        present = union > 0
        return float((hits[present] / union[present]).mean()) if bool(present.any()) else None
