"""Small networks and an independent formula for the tests of the distiller."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.distiller import Term
from densekd.losses import ChannelWise, FeatureMimic


def network(width: int, classes: int = 5, stride: int = 2, *, dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, width, 3, stride=stride, padding=1),
            norm=nn.BatchNorm2d(width),
            act=nn.ReLU(),
            drop=nn.Dropout(dropout),
            head=nn.Conv2d(width, classes, 1),
            up=nn.Upsample(scale_factor=stride, mode="bilinear"),
        )
    )


def images(n: int = 2, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(7))


def two_terms() -> list[Term]:
    return [
        Term(ChannelWise(), student="head", teacher="head", weight=3.0),
        Term(FeatureMimic(), student="act", teacher="act", weight=0.5, name="mimic"),
    ]


def textbook(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    s, t = (x.double().flatten(2) / temperature for x in (student, teacher))
    kl = F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="sum")
    return kl * temperature**2 / (s.shape[0] * s.shape[1])
