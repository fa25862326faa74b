"""The photometric distortion with which published segmentation schedules train."""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18 / 180
"""Levels of 8 bits, factors, and a share of the colour circle (OpenCV counts it in 180 steps)."""


def _chance() -> bool:
    return torch.rand(()).item() < 0.5


def _between(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


class PhotometricDistortion:
    """Brightness, contrast, saturation and hue, each changed with probability 1/2.

    Brightness adds a number from [-32, 32]; contrast multiplies by a factor from [0.5, 1.5]; saturation and hue are
    those of HSV: a factor from [0.5, 1.5], and a shift of up to 18 of 180 steps either way. Contrast comes
    before saturation and hue or after them, with equal chance. Values and order: mmsegmentation's
    `PhotoMetricDistortion`, from SSD (https://arxiv.org/abs/1512.02325). torchvision's `RandomPhotometricDistort`
    blends with grey instead, and may swap channels.
    """

    def __call__(self, image: Tensor) -> Tensor:
        """Change a uint8 image `(3, h, w)` with choices drawn from torch's CPU generator."""
        if _chance():
            image = _as_bytes(image.to(torch.float32).add_(_between(-BRIGHTNESS, BRIGHTNESS)))
        contrast_first = _chance()
        if contrast_first:
            image = _contrast(image)
        if _chance():
            image = saturated(image, _between(*SATURATION))
        if _chance():
            from torchvision.transforms.v2.functional import adjust_hue

            image = adjust_hue(image, _between(-HUE, HUE))
        return image if contrast_first else _contrast(image)


def _as_bytes(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _contrast(image: Tensor) -> Tensor:
    return _as_bytes(image.to(torch.float32).mul_(_between(*CONTRAST))) if _chance() else image


def saturated(image: Tensor, factor: float) -> Tensor:
    """Multiply the saturation `S = (max - min) / max` of HSV, at most to 1; hue and value `max` stay.

    With `V = max`, a channel `c` becomes `V - s * (V - c)`, where `s` is the factor, or `1 / S` where that is less.
    """
    pixels = image.to(torch.float32)
    low, value = torch.aminmax(pixels, dim=0)
    # Where a colour is grey its saturation stays 0 whatever multiplies it.
    most = value / (value - low).clamp_(min=1.0)
    return _as_bytes(value - most.clamp_(max=factor) * (value - pixels))
