"""From a stored sample to what the network sees, with torchvision's transforms.

Every random choice is drawn from torch's CPU generator, which `densekd.data.views.TrainView` keys by sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from densekd.data.augment import AugmentSpec, Size
from densekd.data.base import Sample
from densekd.data.distortion import PhotometricDistortion
from densekd.data.window import Window, resized_image, resized_label

if TYPE_CHECKING:
    from torchvision.transforms import v2

_REDRAWN = 10


class TrainItem(NamedTuple):
    """An augmented sample."""

    image: Tensor
    """float32 `(3, h, w)`, normalised; exactly 0 (the mean colour) where `valid` is False."""
    label: Tensor
    """int64 `(h, w)`; `ignore_index` where `valid` is False."""
    valid: Tensor
    """bool `(h, w)`: False on padding. Void inside the picture is valid: there is an image to distil."""


def _window_start(size: int, crop: int) -> int:
    """Where a window of `crop` starts on a side of `size`: inside it, or around it where the side is shorter."""
    low, high = min(0, size - crop), max(0, size - crop)
    return int(torch.randint(low, high + 1, ()))


class _Normalise:
    def __init__(self, spec: AugmentSpec) -> None:
        # torchvision takes seconds to load: here, before the workers of a loader start, and not with this module.
        from torchvision.transforms.v2.functional import normalize

        self._normalize = normalize
        # On the scale of the stored 8 bits, which saves one pass over the pixels.
        self._mean = [255.0 * value for value in spec.mean]
        self._std = [255.0 * value for value in spec.std]

    def __call__(self, image: Tensor) -> Tensor:
        pixels = image.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        return self._normalize(pixels, self._mean, self._std, inplace=True)


class TrainTransform:
    """Resize, random scale, random crop with padding, random flip, colours, normalise.

    Resizing to `spec.size` or `spec.fit` and the random scale are one resampling, of the part of the picture that the
    crop shows: bilinear with antialiasing for the image, nearest for the label. A side shorter than the crop is
    padded, at a random place. Colours are changed last, on 8 bits, when the picture has its final size.

    Args:
        spec: sizes, ranges and probabilities.
        ignore_index: the label of padding.
    """

    def __init__(self, spec: AugmentSpec, ignore_index: int) -> None:
        self._spec = spec
        self._ignore_index = ignore_index
        self._normalise = _Normalise(spec)
        jitter = spec.jitter
        self._colours: v2.Transform | PhotometricDistortion | None = None
        if spec.distortion:
            self._colours = PhotometricDistortion()
        elif jitter.active:
            from torchvision.transforms import v2

            self._colours = v2.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)

    def __call__(self, sample: Sample) -> TrainItem:
        """Augment one sample with choices drawn from torch's CPU generator."""
        stored = (sample.label.shape[0], sample.label.shape[1])
        before = self._spec.resized(*stored)
        factor = self._factor()
        size = (max(1, round(before[0] * factor)), max(1, round(before[1] * factor)))
        window, label = self._crop(sample.label, size, self._spec.crop or before)
        image = resized_image(sample.image, size, *window.inside(size))
        if torch.rand(()).item() < self._spec.flip:
            image, label = image.flip(-1), label.flip(-1)
            # What is mirrored is what the picture covers of the window, too.
            window = window._replace(left=size[1] - window.left - window.width)
        return self._item(image, label, window, size)

    def _factor(self) -> float:
        factors = self._spec.factors
        if factors is not None:
            return factors[int(torch.randint(len(factors), ()))]
        low, high = self._spec.scale
        return low + (high - low) * torch.rand(()).item()

    def _crop(self, label: Tensor, size: Size, crop: Size) -> tuple[Window, Tensor]:
        """A random window of the resized label, and the part of the label in it."""
        for drawn in range(_REDRAWN + 1):
            window = Window(_window_start(size[0], crop[0]), _window_start(size[1], crop[1]), *crop)
            part = resized_label(label, size, *window.inside(size))
            if drawn == _REDRAWN or self._varied(part):
                break
        return window, part

    def _varied(self, label: Tensor) -> bool:
        """Whether the labelled pixels hold two classes or more, and no class fills `max_class_share` of them."""
        if self._spec.max_class_share == 1.0:
            return True
        counts = torch.unique(label[label != self._ignore_index], return_counts=True)[1]
        return len(counts) > 1 and int(counts.max()) < self._spec.max_class_share * int(counts.sum())

    def _item(self, image: Tensor, label: Tensor, window: Window, size: Size) -> TrainItem:
        """Place the shown part of a resized picture in its window, change its colours, normalise."""
        shape, covered = (window.height, window.width), window.covered(size)
        if image.shape[1:] == shape:
            pixels = self._normalise(image if self._colours is None else self._colours(image))
            return TrainItem(pixels, label.to(torch.int64, copy=True), torch.ones(shape, dtype=torch.bool))
        # Padding is black while the colours change, and the mean colour after it.
        padded = image.new_zeros(3, *shape)
        padded[:, *covered] = image
        valid = torch.zeros(shape, dtype=torch.bool)
        valid[covered] = True
        ids = torch.full(shape, self._ignore_index, dtype=torch.int64)
        ids[covered] = label.to(torch.int64)
        pixels = self._normalise(padded if self._colours is None else self._colours(padded))
        return TrainItem(pixels.masked_fill_(~valid, 0.0), ids, valid)


class EvalTransform:
    """Resize (bilinear, antialiased) and normalise; nothing is random and the label is not touched."""

    def __init__(self, spec: AugmentSpec) -> None:
        self._spec = spec
        self._normalise = _Normalise(spec)

    def size_of(self, stored: Size) -> Size:
        """Height and width of what comes out for an image of that height and width."""
        return self._spec.resized(*stored)

    def __call__(self, image: Tensor) -> Tensor:
        """From uint8 `(3, H, W)` to float32 `(3, h, w)`; `h, w` is the recipe's size, or that of the image."""
        height, width = self.size_of((image.shape[1], image.shape[2]))
        return self._normalise(resized_image(image, (height, width), range(height), range(width)))
