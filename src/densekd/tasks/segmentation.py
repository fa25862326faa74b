"""Semantic segmentation as a task: from a network's output to a loss, and to a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.errors import ConfigError, ModelError, ShapeError, nearest
from densekd.functional import upsampled_cross_entropy
from densekd.models.auxiliary import auxiliary_map
from densekd.taps import main_output
from densekd.tasks.losses import check_labels, cross_entropy, dice, hard_pixels, pixel_weight
from densekd.tasks.specs import SegmentationSpec
from densekd.tasks.upsampling import PutOff, Upsampling


def _weights(spec: SegmentationSpec, names: Sequence[str]) -> Tensor | None:
    given = spec.class_weights
    if given is None:
        return None
    if isinstance(given, dict):
        for name in given:
            if name not in names:
                raise ConfigError(f"task.class_weights: {name!r} is no class{nearest(name, names)}")
        values = [given.get(name, 1.0) for name in names]
    else:
        values = list(given)
    if len(values) != len(names):
        raise ConfigError(f"task.class_weights: {len(values)} weights for {len(names)} classes")
    if max(values) == 0:
        raise ConfigError("task.class_weights: all weights are 0: nothing would be learned")
    return torch.tensor(values, dtype=torch.float32)


class SegmentationTask:
    """The loss of a segmentation network and how its output becomes class ids.

    Args:
        spec: the parts of the loss and their weights.
        num_classes: K, the number of classes in the data; a background counts as one.
        ignore_index: label of void.
        class_names: names of the K classes.

    Attributes:
        binary: two classes and one logit.
        num_outputs: channels the network must have: 1 if binary, else K.

    Raises:
        ConfigError: what the spec says does not fit the classes.
    """

    def __init__(self, spec: SegmentationSpec, num_classes: int, ignore_index: int, class_names: Sequence[str]) -> None:
        if len(class_names) != num_classes:
            raise ConfigError(f"class_names: expected {num_classes} names, got {len(class_names)}")
        if num_classes < 2:
            raise ConfigError(f"expected two classes or more (a background counts as one), got {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ConfigError(f"ignore_index: {ignore_index} is the id of {class_names[ignore_index]!r}")
        if spec.binary and num_classes != 2:
            raise ConfigError(f"task.binary: expected two classes (background, foreground), got {num_classes}")
        self.spec = spec
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.class_names = tuple(class_names)
        self.binary = spec.binary
        self.num_outputs = 1 if spec.binary else num_classes
        self._class_weights = _weights(spec, self.class_names)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that `loss` returns."""
        return self.spec.parts

    @property
    def unfused(self) -> str | None:
        """Why the loss needs full-size logits; None where up-sampling and cross-entropy are done in one."""
        return "task.fused is false" if self.spec.fused is False else self.spec.needs_full_size

    def pixels(self, labels: Tensor) -> Tensor | None:
        """What the cross-entropy of this batch is divided by: its labelled pixels, or the weight of their classes.

        None where the number is not known before the loss is: hard pixels (`ohem`), and without a cross-entropy.
        """
        if not self.spec.cross_entropy or self.spec.ohem is not None:
            return None
        weights = None if self._class_weights is None else self._class_weights.to(labels.device)
        return pixel_weight(labels, labels != self.ignore_index, weights)

    def loss(
        self, output: Any, labels: Tensor, pixels: Tensor | None = None, put_off: PutOff | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss on one batch.

        Logits are brought to the size of the labels bilinearly (`align_corners=False`), in float32; where the
        cross-entropy is all that reads them (`unfused` is None), without full-size logits ever existing.

        Args:
            output: whatever the network returned (see `densekd.taps.main_output`).
            labels: int64 `(N, H, W)`: ids and `ignore_index`.
            pixels: what the cross-entropy is divided by, a scalar; default `self.pixels(labels)`. A training that
                shares a batch out gives each part the mean of all parts' numbers: the mean of their losses is then
                that of the whole batch, wherever its void pixels lie. Dice and hard pixels are of each part alone.
            put_off: the up-samplings that the network has left to the loss; they come first, in its own convention.

        Returns:
            The sum of the weighted parts, and each weighted part, detached: "cross_entropy", "dice" and
            "auxiliary", those whose weight is not 0.

        Raises:
            ModelError: the output has another number of channels, or the auxiliary output is missing.
            ArgumentError: a label outside the range (found before a GPU would stop on it).
            ShapeError: labels of another batch size, or not `(N, H, W)`.
        """
        check_labels(labels, self.num_classes, self.ignore_index)
        put_off = put_off or PutOff()
        parts = self._parts(self._logits(output, "output"), labels, pixels, put_off.main)
        if self.spec.auxiliary:
            logits = self._logits(_auxiliary(output), "auxiliary output")
            further = self._parts(logits, labels, pixels, put_off.auxiliary)
            parts["auxiliary"] = self.spec.auxiliary * torch.stack(list(further.values())).sum()
        total = torch.stack(list(parts.values())).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def predict(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Class ids `(N, h, w)`, int64, at `size` = (height, width).

        Logits are brought to that size bilinearly first; then the largest wins (binary: class 1 where the logit is
        above 0).

        Raises:
            ModelError: the output has another number of channels.
        """
        logits = self._resized(self._logits(output, "output"), size)
        return (logits[:, 0] > 0).long() if self.binary else logits.argmax(1)

    def probabilities(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Class probabilities `(N, K, h, w)` at `size` = (height, width); binary `(N, 1, h, w)`, of class 1.

        Softmax (binary: sigmoid) of the logits, which are brought to that size bilinearly first.

        Raises:
            ModelError: the output has another number of channels.
        """
        logits = self._resized(self._logits(output, "output"), size)
        return logits.sigmoid() if self.binary else logits.softmax(1)

    def most_probable(self, probabilities: Tensor) -> Tensor:
        """Class ids `(N, h, w)`, int64: the largest probability wins (binary: class 1 above 0.5)."""
        return (probabilities[:, 0] > 0.5).long() if self.binary else probabilities.argmax(1)

    def _logits(self, output: Any, what: str) -> Tensor:
        logits = main_output(output)
        if logits.ndim != 4 or logits.shape[1] != self.num_outputs:
            kind = "one logit for two classes" if self.binary else f"{self.num_classes} classes"
            raise ModelError(
                f"the network's {what}: expected (N, {self.num_outputs}, h, w) for {kind}, got {tuple(logits.shape)}"
            )
        return logits

    @staticmethod
    def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if tuple(logits.shape[2:]) == tuple(size):
                return logits
            return F.interpolate(logits, size, mode="bilinear", align_corners=False)

    def _parts(
        self, logits: Tensor, labels: Tensor, pixels: Tensor | None, put_off: Upsampling | None
    ) -> dict[str, Tensor]:
        if labels.ndim != 3 or len(labels) != len(logits):
            raise ShapeError(f"labels: expected ({len(logits)}, H, W), got {tuple(labels.shape)}")
        spec = self.spec
        size = (labels.shape[1], labels.shape[2])
        last = put_off or Upsampling(size, align_corners=False)
        if self.unfused is None and last.size == size != tuple(logits.shape[2:]):
            return {"cross_entropy": spec.cross_entropy * self._fused(logits, labels, pixels, last.align_corners)}
        logits = self._resized(logits if put_off is None else put_off(logits), size)
        parts = {}
        if spec.cross_entropy:
            keep = None
            if spec.ohem is not None:
                keep = hard_pixels(logits, labels, ignore_index=self.ignore_index, **spec.ohem.model_dump())
            parts["cross_entropy"] = spec.cross_entropy * cross_entropy(
                logits,
                labels,
                ignore_index=self.ignore_index,
                class_weights=self._class_weights,
                label_smoothing=spec.label_smoothing,
                keep=keep,
                pixels=None if keep is not None else pixels,
            )
        if spec.dice:
            parts["dice"] = spec.dice * dice(logits, labels, ignore_index=self.ignore_index)
        return parts

    def _fused(self, logits: Tensor, labels: Tensor, pixels: Tensor | None, align_corners: bool) -> Tensor:
        return upsampled_cross_entropy(
            logits,
            labels,
            align_corners=align_corners,
            ignore_index=self.ignore_index,
            class_weights=self._class_weights,
            label_smoothing=self.spec.label_smoothing,
            pixels=pixels,
        )


def _auxiliary(output: Any) -> Tensor:
    found = auxiliary_map(output)
    if found is None:
        raise ModelError(
            "task.auxiliary: the network's output has no auxiliary map (aux or auxiliary_logits): give it a head with "
            "student.auxiliary.tap=MODULE, build it with one (torchvision: aux_loss=True), or set task.auxiliary=0"
        )
    return found
