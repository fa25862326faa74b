"""What goes into the file: the network with what is asked for before and after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densekd.export.manifest import InputInfo, InsideInfo
from densekd.models.sizes import fitting_size
from densekd.taps import main_output


class Graph(nn.Module):
    """From images to logits, probabilities or class ids at the size of the images, as an evaluation of whole images.

    In this order: resized to `inside.resize` (bilinear, antialiased, `align_corners=False`); `(x / 255 - mean) / std`
    with `inside.normalise`; padded on the right and below with the mean colour where a fixed size is no multiple of
    what the network needs; the network; its logits brought to the padded size and cut back; brought to the size of the
    images bilinearly (`align_corners=False`); softmax (binary: sigmoid) or the largest class (binary: logit above 0).

    Args:
        network: in eval mode.
        given: what goes in.
        inside: what happens inside.
        binary: one logit for two classes.
        multiple: what the heights and widths that the network gets must be multiples of.
        always: bring the logits to the size of the images without looking whether they have it: a graph cannot look.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, given: InputInfo, inside: InsideInfo, *, binary: bool, multiple: int, always: bool
    ) -> None:
        super().__init__()
        self.network, self.inside, self.binary, self.always = network, inside, binary, always
        self.fixed = inside.resize or given.size
        self.padded = None if self.fixed is None else fitting_size(self.fixed, multiple)
        if inside.normalise:
            self.register_buffer("mean", torch.tensor([255 * value for value in given.mean]).view(1, -1, 1, 1))
            self.register_buffer("std", torch.tensor([255 * value for value in given.std]).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        kind = self.inside.output
        if kind == "logits":
            return logits
        if kind == "softmax":
            return logits.sigmoid() if self.binary else logits.softmax(1)
        return (logits[:, 0] > 0).long() if self.binary else logits.argmax(1)

    def logits(self, images: Tensor) -> Tensor:
        """`(N, K, H, W)`, at the size of the images."""
        size = (images.shape[-2], images.shape[-1])
        x = images
        if self.inside.resize is not None:
            x = F.interpolate(x, self.inside.resize, mode="bilinear", align_corners=False, antialias=True)
        if self.inside.normalise:
            x = (x - self.mean) / self.std
        logits = self._through_network(x)
        if self.always or self.inside.resize is not None or tuple(logits.shape[-2:]) != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits

    def _through_network(self, x: Tensor) -> Tensor:
        if self.fixed is None or self.padded is None or self.padded == self.fixed:
            return main_output(self.network(x)).float()
        (height, width), (tall, wide) = self.fixed, self.padded
        logits = main_output(self.network(F.pad(x, (0, wide - width, 0, tall - height)))).float()
        if tuple(logits.shape[-2:]) != self.padded:
            logits = F.interpolate(logits, self.padded, mode="bilinear", align_corners=False)
        return logits[..., :height, :width]
