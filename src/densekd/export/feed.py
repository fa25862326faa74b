"""From stored images to what an exported file takes, and back to the images' size."""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.data.augment import AugmentSpec
from densekd.export.manifest import Manifest, Size
from densekd.models.sizes import fitting_size


class Feed:
    """Brings images to a file as the run's evaluation brought them to the student.

    An image is resized as the recipe says (`evaluated.size`, `evaluated.fit`), unless the file resizes it itself; to
    the file's own size where that is fixed. It is padded on the right and below with the mean colour to the multiple
    that the file needs.

    Args:
        manifest: of the file.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        given, shown = manifest.input, manifest.evaluated
        self._augment = AugmentSpec(size=shown.size, fit=shown.fit)
        self._mean = torch.tensor([255 * value for value in given.mean]).view(-1, 1, 1)
        self._std = torch.tensor([255 * value for value in given.std]).view(-1, 1, 1)

    def size_of(self, stored: Size) -> Size:
        """Height and width that an image of that size is brought to, before it is padded."""
        if self.manifest.input.size is not None:
            return self.manifest.input.size
        return stored if self.manifest.inside.resize is not None else self._augment.resized(*stored)

    def __call__(self, image: Tensor) -> Tensor:
        """From uint8 `(3, H, W)` to float32 `(3, h, w)`, what the file takes."""
        size = self.size_of((image.shape[1], image.shape[2]))
        if tuple(image.shape[1:]) != size:
            from torchvision.transforms.v2.functional import resize

            # Of 8 bits torch refuses one pixel alone, with an internal error.
            image = resize(image.float() if size == (1, 1) else image, list(size), antialias=True)
        return self.pixels(image.float())

    def pixels(self, image: Tensor) -> Tensor:
        """The same for an image that has its size: float32 `(3, h, w)` from 0 to 255."""
        height, width = image.shape[1:]
        high, wide = fitting_size((height, width), self.manifest.input.multiple_of)
        canvas = self._mean.expand(-1, high, wide).clone()
        canvas[:, :height, :width] = image
        return (canvas - self._mean) / self._std if self.manifest.input.values == "normalised" else canvas

    def cut(self, output: Tensor, size: Size) -> Tensor:
        """The part of the file's output that lies over the image."""
        return output[..., : size[0], : size[1]]
