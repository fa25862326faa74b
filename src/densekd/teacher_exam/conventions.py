"""How networks expect their images: the common conventions of normalisation, and the way from one to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple[float, float, float]

_IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
_IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_BYTE: Triple = (1 / 255, 1 / 255, 1 / 255)
_CAFFE_MEAN: Triple = (103.939 / 255, 116.779 / 255, 123.68 / 255)


@dataclass(frozen=True)
class Convention:
    """`(image - mean) / std` on values in [0, 1]; with `bgr`, on the channels in the order blue, green, red.

    `mean` and `std` are in the order of the channels that the network receives.
    """

    name: str
    mean: Triple
    std: Triple
    bgr: bool = False

    def apply(self, image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Images `(N, 3, H, W)` normalised as RGB with `mean` and `std`, brought to this convention."""
        plain = image * _column(std, image) + _column(mean, image)
        if self.bgr:
            plain = plain.flip(1)
        return (plain - _column(self.mean, image)) / _column(self.std, image)

    def is_in_use(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether it is RGB with this mean and std (to three digits)."""
        pairs = [*zip(self.mean, mean, strict=True), *zip(self.std, std, strict=True)]
        return not self.bgr and all(abs(own - other) < 5e-4 for own, other in pairs)

    def advice(self) -> str:
        """What to set so that the teacher gets this convention."""
        mean, std = (self.mean[::-1], self.std[::-1]) if self.bgr else (self.mean, self.std)
        setting = f"teacher.mean={_listed(mean)} teacher.std={_listed(std)}"
        if self.bgr:
            return (
                "turn its first convolution round (`conv.weight.data = conv.weight.data.flip(1)`), so that it takes "
                f"RGB, and set {setting}"
            )
        return f"set {setting}"


def conventions(mean: Triple, std: Triple) -> list[Convention]:
    """The common conventions other than the one in use, and the one in use with its channels as BGR."""
    common = [
        Convention("ImageNet mean and std", _IMAGENET_MEAN, _IMAGENET_STD),
        Convention("values from -1 to 1 (mean and std 0.5)", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        Convention("values from 0 to 1 (mean 0, std 1)", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        Convention("values from 0 to 255 (mean 0, std 1/255)", (0.0, 0.0, 0.0), _BYTE),
        Convention("BGR from 0 to 255 less the ImageNet mean (Caffe)", _CAFFE_MEAN, _BYTE, bgr=True),
        Convention("BGR with ImageNet mean and std", _IMAGENET_MEAN[::-1], _IMAGENET_STD[::-1], bgr=True),
    ]
    others = [convention for convention in common if not convention.is_in_use(mean, std)]
    turned = Convention("BGR with the mean and std in use", mean[::-1], std[::-1], bgr=True)
    known = [(other.mean, other.std) for other in others if other.bgr]
    return others if (turned.mean, turned.std) in known else [*others, turned]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(list(values), dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def _listed(values: Sequence[float]) -> str:
    return "[" + ",".join(f"{value:.6g}" for value in values) + "]"
