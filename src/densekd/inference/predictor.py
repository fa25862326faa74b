"""From images of one size to class ids at the size of each label, as an `evaluation` section says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densekd.errors import ArgumentError, NonFiniteError
from densekd.inference.specs import WHOLE, EvaluationSpec
from densekd.inference.windows import slide
from densekd.models.sizes import output_at_any_size
from densekd.tasks.segmentation import SegmentationTask


class Predictor:
    """What a network says about images, in the way that `spec` asks for.

    One view (one scale, not mirrored): the network's logits, for windows their mean, brought to the asked size
    bilinearly; the largest wins. Several views: of every view the logits at the asked size, from them the class
    probabilities (softmax; binary: sigmoid), mirrored back where the image was; the largest mean wins (binary: a mean
    above 0.5). Probabilities are averaged over views and not logits, as mmsegmentation does: a view that is sure of
    itself then counts no more than its probability says.

    Args:
        network: in eval mode, on the device of the images.
        task: turns logits into probabilities and class ids.
        spec: windows, scales and mirroring. Each scale resizes the image as it is given (bilinear, antialiased).
        most: windows in one forward pass; without windows, all images of a call are one.
        channels_last: memory layout of what the network gets.
        prepare: applied to what goes into one forward pass (the teacher's own normalisation and size, for instance).

    Raises:
        ArgumentError: `most` below 1.
    """

    def __init__(
        self,
        network: nn.Module,
        task: SegmentationTask,
        spec: EvaluationSpec = WHOLE,
        *,
        most: int = 8,
        channels_last: bool = False,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if most < 1:
            raise ArgumentError(f"most: expected 1 window or more in a forward pass, got {most}")
        self.network, self.task, self.spec, self.most, self.prepare = network, task, spec, most, prepare
        self.layout = torch.channels_last if channels_last else None

    def ids(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        """Class ids `(h, w)`, int64, of every image, one after the other.

        Args:
            images: `(N, C, H, W)`, normalised.
            sizes: N heights and widths, those of the labels.

        Raises:
            NonFiniteError: the network's output holds NaN or infinity.
        """
        if self.spec.views == 1:
            logits = self._logits(_scaled(images, self.spec.scales[0]))
            for row, size in enumerate(sizes):
                yield self.task.predict(logits[row : row + 1], size)[0]
            return
        sums: list[Tensor] = []
        for view, mirrored in self._views(images):
            logits = self._logits(view)
            for row, size in enumerate(sizes):
                found = self.task.probabilities(logits[row : row + 1], size)[0]
                found = found.flip(-1) if mirrored else found
                if len(sums) == row:
                    sums.append(found)
                else:
                    sums[row] += found
        for one in sums:
            yield self.task.most_probable(one[None] / self.spec.views)[0]

    def _views(self, images: Tensor) -> Iterator[tuple[Tensor, bool]]:
        for scale in self.spec.scales:
            scaled = _scaled(images, scale)
            yield scaled, False
            if self.spec.flip:
                yield scaled.flip(-1), True

    def _logits(self, images: Tensor) -> Tensor:
        crop, steps = self.spec.crop, self.spec.steps
        if crop is None or steps is None:
            return self._forward(images)
        return slide(self._forward, images, crop, steps, self.most)

    def _forward(self, images: Tensor) -> Tensor:
        if self.layout is not None:
            images = images.contiguous(memory_format=self.layout)
        if self.prepare is not None:
            images = self.prepare(images)
        return _finite(output_at_any_size(self.network, images))


def _finite(logits: Tensor) -> Tensor:
    """The logits, none of them NaN or infinite; minus infinity may say that a class cannot be.

    Raises:
        NonFiniteError: the largest of such values would be a class all the same.
    """
    if bool(torch.isfinite(logits.sum())):  # in one pass; a sum may overflow though every value is finite
        return logits
    bad = int((torch.isnan(logits) | (logits == torch.inf)).sum())
    if bad:
        raise NonFiniteError(
            f"the network's class map {tuple(logits.shape)} holds {bad:,} values that are NaN or infinite: its weights "
            "or its batch statistics are not finite, or it overflows (runtime.precision); no class can be told from it"
        )
    return logits


def _scaled(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
