"""From a stored sample to what the network sees, with torchvision's transforms.

Every random choice is drawn from torch's CPU generator, which `densekd.data.views.TrainView` keys by sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from densekd.data.base import Sample
from densekd.data.specs import AugmentSpec


class TrainItem(NamedTuple):
    """An augmented sample."""

    image: Tensor
    """float32 `(3, h, w)`, normalised; exactly 0 (the mean colour) where `valid` is False."""
    label: Tensor
    """int64 `(h, w)`; `ignore_index` where `valid` is False."""
    valid: Tensor
    """bool `(h, w)`: False on padding. Void inside the picture is valid: there is an image to distil."""


def _between(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _window_start(size: int, crop: int) -> int:
    """Where a window of `crop` starts on a side of `size`: inside it, or around it where the side is shorter."""
    low, high = min(0, size - crop), max(0, size - crop)
    return int(torch.randint(low, high + 1, ()))


def _narrow(label: Tensor) -> Tensor:
    """The label in 8 bits where its values fit: torchvision resizes those as they are, others through floats."""
    low, high = torch.aminmax(label)
    return label.to(torch.uint8) if low >= 0 and high <= 255 else label


def _resize(image: Tensor, size: Sequence[int]) -> tv_tensors.Image:
    """A uint8 image resized bilinearly with antialiasing.

    Channels are put innermost first: that is the fastest layout, and the only one in which torch (2.15) can make a
    picture of a single pixel.
    """
    innermost = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return functional.resize(tv_tensors.Image(innermost), list(size), InterpolationMode.BILINEAR, antialias=True)


class _Normalise:
    def __init__(self, spec: AugmentSpec) -> None:
        # On the scale of the stored 8 bits, which saves one pass over the pixels.
        self._mean = [255.0 * value for value in spec.mean]
        self._std = [255.0 * value for value in spec.std]

    def __call__(self, image: Tensor) -> Tensor:
        pixels = image.as_subclass(Tensor).contiguous().to(torch.float32)
        return functional.normalize(pixels, self._mean, self._std, inplace=True)


class TrainTransform:
    """Resize, random scale, random crop with padding, random flip, colour jitter, normalise.

    Resizing to `spec.size` and the random scale are one resampling: bilinear with antialiasing for the image, nearest
    for the label. A side shorter than the crop is padded, at a random place. Colours are changed last, on 8 bits,
    when the picture has its final size.

    Args:
        spec: sizes, ranges and probabilities.
        ignore_index: the label of padding.
    """

    def __init__(self, spec: AugmentSpec, ignore_index: int) -> None:
        self._spec = spec
        self._ignore_index = ignore_index
        self._normalise = _Normalise(spec)
        jitter = spec.jitter
        self._jitter = (
            v2.ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) if jitter.active else None
        )

    def __call__(self, sample: Sample) -> TrainItem:
        """Augment one sample with choices drawn from torch's CPU generator."""
        image, label = self._resized(sample)
        height, width = self._spec.crop or self._spec.size or (sample.label.shape[0], sample.label.shape[1])
        top, left = _window_start(image.shape[1], height), _window_start(image.shape[2], width)
        valid = torch.zeros(height, width, dtype=torch.bool)
        valid[max(0, -top) : image.shape[1] - top, max(0, -left) : image.shape[2] - left] = True
        image = functional.crop(image, top, left, height, width)
        label = functional.crop(label, top, left, height, width)
        if torch.rand(()).item() < self._spec.flip:
            image, label = functional.horizontal_flip(image), functional.horizontal_flip(label)
            valid = valid.flip(-1)
        if self._jitter is not None:
            image = self._jitter(image)
        pixels, ids = self._normalise(image), label.as_subclass(Tensor).to(torch.int64)
        if not valid.all():
            pixels.masked_fill_(~valid, 0.0)
            ids = ids.masked_fill(~valid, self._ignore_index)
        return TrainItem(pixels, ids, valid)

    def _resized(self, sample: Sample) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        height, width = self._spec.size or (sample.label.shape[0], sample.label.shape[1])
        factor = _between(*self._spec.scale)
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        image = _resize(sample.image, size)
        # NEAREST_EXACT takes the nearest pixel; NEAREST is half a pixel off against the bilinear image.
        label = functional.resize(tv_tensors.Mask(_narrow(sample.label)), size, InterpolationMode.NEAREST_EXACT)
        return image, label


class EvalTransform:
    """Resize (bilinear, antialiased) and normalise; nothing is random and the label is not touched."""

    def __init__(self, spec: AugmentSpec) -> None:
        self._size = spec.size
        self._normalise = _Normalise(spec)

    def __call__(self, image: Tensor) -> Tensor:
        """From uint8 `(3, H, W)` to float32 `(3, h, w)`; `h, w` is the recipe's size, or that of the image."""
        if self._size is not None:
            image = _resize(image, self._size)
        return self._normalise(image)
