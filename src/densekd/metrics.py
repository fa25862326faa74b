"""Scores of a segmentation over a whole split, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from densekd.errors import ArgumentError, DataError, ShapeError


class Scores(TypedDict):
    """Fractions from 0 to 1; `iou` is None for a class absent from truth and prediction."""

    miou: float
    pixel_accuracy: float
    iou: dict[str, float | None]
    images: int


class ConfusionMeter:
    """Counts pixels by (true class, predicted class) over any number of images.

    Void pixels are left out, whatever was predicted there. IoU of class k is `M[k,k] / (row k + column k - M[k,k])`;
    a class whose denominator is 0 (absent from truth and prediction) has none and is left out of the mean, so mIoU
    divides by the number of classes that are present. Pixel accuracy is the trace over all counted pixels. Averages
    of per-image or per-batch scores, which other tools call mIoU too, are different numbers.

    Args:
        num_classes: K.
        ignore_index: label of void, outside `0 .. K-1`.

    Attributes:
        matrix: int64 `(K, K)` on the CPU; rows are the truth, columns the prediction. May be replaced by a sum over
            processes.
        images: number of images seen, void ones included.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        if num_classes < 2:
            raise ArgumentError(f"num_classes: expected 2 or more (binary: background, foreground), got {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ArgumentError(
                f"ignore_index: {ignore_index} is a class id; expected one outside 0..{num_classes - 1}"
            )
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.images = 0

    def update(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Count the pixels of one image `(H, W)` or a batch `(N, H, W)`; ids as integers, not logits.

        Returns:
            These pixels' own counts, int64 `(K, K)` on the CPU.

        Raises:
            ShapeError: the two differ in shape, or are neither one image nor a batch.
            ArgumentError: an id outside `0 .. K-1` (in the label: other than ignore_index).
        """
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        if prediction.shape != label.shape or label.ndim not in (2, 3):
            raise ShapeError(
                "expected prediction and label of one shape, (H, W) or (N, H, W), got "
                f"{tuple(prediction.shape)} and {tuple(label.shape)}"
            )
        self.images += 1 if label.ndim == 2 else len(label)
        if label.numel() == 0:
            return torch.zeros_like(self.matrix)
        self._within("prediction", prediction)
        self._within("label", label.masked_fill(label == self.ignore_index, 0))
        found = multiclass_confusion_matrix(
            prediction.flatten().long(),
            label.flatten().long(),
            self.num_classes,
            ignore_index=self.ignore_index,
            # Its own check sorts all values; the range is checked above.
            validate_args=False,
        )
        counts = found.to("cpu", torch.int64)
        self.matrix += counts
        return counts

    def _within(self, what: str, ids: Tensor) -> None:
        if ids.is_floating_point() or ids.is_complex():
            raise ArgumentError(f"{what}: expected class ids as integers, got {ids.dtype}")
        low, high = torch.stack(torch.aminmax(ids.long())).tolist()
        if low < 0 or high >= self.num_classes:
            raise ArgumentError(
                f"{what}: values from {low} to {high}; expected class ids 0 to {self.num_classes - 1}"
                + ("" if what == "prediction" else f" or the ignore_index {self.ignore_index}")
            )

    def scores(self, class_names: Sequence[str]) -> Scores:
        """mIoU, pixel accuracy and the IoU of every class, from everything counted so far.

        Raises:
            ArgumentError: the number of names is not K.
            DataError: not one pixel was counted: no images, or nothing but void in them.
        """
        if len(class_names) != self.num_classes:
            raise ArgumentError(f"class_names: expected {self.num_classes} names, got {len(class_names)}")
        total = int(self.matrix.sum())
        if total == 0:
            raise DataError(f"nothing to score: {self.images} images without a single labelled pixel")
        hits, union = _hits_and_union(self.matrix)
        present = union > 0
        ious = (hits / union).tolist()
        return {
            "miou": float((hits[present] / union[present]).mean()),
            "pixel_accuracy": float(hits.sum() / total),
            "iou": {
                name: iou if there else None
                for name, iou, there in zip(class_names, ious, present.tolist(), strict=True)
            },
            "images": self.images,
        }


def image_scores(counts: Tensor) -> tuple[float, float] | None:
    """mIoU and pixel accuracy of one image from its own counts `(K, K)`; None where nothing in it is labelled.

    The mean is over the classes in this image's truth or prediction, so that scores of images tell them apart; their
    mean over images is not the mIoU of a split.
    """
    total = int(counts.sum())
    if total == 0:
        return None
    hits, union = _hits_and_union(counts)
    present = union > 0
    return float((hits[present] / union[present]).mean()), float(hits.sum() / total)


def _hits_and_union(matrix: Tensor) -> tuple[Tensor, Tensor]:
    hits = matrix.diagonal().double()
    return hits, (matrix.sum(0) + matrix.sum(1)).double() - hits
