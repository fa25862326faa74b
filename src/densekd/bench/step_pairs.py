"""Teacher, student and one batch, as `densekd bench step` measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from densekd.errors import ArgumentError, nearest
from densekd.models.build import build_model
from densekd.models.specs import ModelSpec

CLASSES = 19
VOID = 255
_REGION = 8
_SANE_PASSES = 3


@dataclass(frozen=True)
class Pair:
    """Two networks of `densekd.models`, by reference and options."""

    teacher: tuple[str, dict[str, Any]]
    student: tuple[str, dict[str, Any]]

    def __str__(self) -> str:
        return f"{self.teacher[0]} -> {self.student[0]}"


#: all at output stride 8 with the whole encoder, as in the paper
PAIRS = {
    "pspnet": Pair(("pspnet-resnet101", {}), ("pspnet-resnet18", {})),
    "deeplabv3": Pair(("deeplabv3-resnet101", {}), ("deeplabv3-resnet18", {})),
}
#: to see that it works
QUICK = {
    "quick": Pair(
        ("smp:PSPNet", {"encoder_name": "resnet18", "encoder_depth": 3, "psp_out_channels": 32}),
        ("smp:PSPNet", {"encoder_name": "tu-lcnet_050", "encoder_depth": 3, "psp_out_channels": 16}),
    )
}


def choose_pairs(names: Sequence[str], *, quick: bool = False) -> dict[str, Pair]:
    """The pairs of these names.

    Raises:
        ArgumentError: no such pair, none, or one named twice.
    """
    if quick:
        return QUICK
    for name in names:
        if name not in PAIRS:
            raise ArgumentError(f"pairs: {name!r} is no pair{nearest(name, PAIRS)}; expected {' or '.join(PAIRS)}")
    if not names or len(set(names)) < len(names):
        raise ArgumentError(f"pairs: expected different names, at least one, got {list(names)}")
    return {name: PAIRS[name] for name in names}


@dataclass(frozen=True)
class Material:
    """What every variant of one pair starts from: networks in float32 on the device, images (N, 3, S, S) and labels
    (N, S, S) in regions of 8 x 8, one in 20 void."""

    teacher: nn.Module
    student: nn.Module
    images: Tensor
    labels: Tensor


def make_material(pair: Pair, batch: int, size: int, device: torch.device) -> Material:
    """Random weights and images, the same on every device.

    The teacher's batch normalisations first see a few passes over the images in training mode: with the statistics of
    an untrained network its maps, and every error measured on them, would be nobody's.
    """
    torch.manual_seed(0)
    teacher, student = (_network(*which) for which in (pair.teacher, pair.student))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((batch, 3, size, size), generator=generator)
    labels = _labels(batch, size, generator)
    teacher, student = teacher.to(device), student.to(device)
    _make_sane(teacher, images.to(device))
    return Material(teacher.eval(), student, images.to(device), labels.to(device))


def _network(model: str, options: dict[str, Any]) -> nn.Module:
    return build_model(ModelSpec(model=model, options=options), CLASSES, notices=[])


def _labels(batch: int, size: int, generator: torch.Generator) -> Tensor:
    coarse = (batch, -(-size // _REGION), -(-size // _REGION))
    labels = torch.randint(CLASSES, coarse, generator=generator)
    labels[torch.rand(coarse, generator=generator) < 0.05] = VOID
    return labels.repeat_interleave(_REGION, 1).repeat_interleave(_REGION, 2)[:, :size, :size].contiguous()


@torch.no_grad()
def _make_sane(network: nn.Module, images: Tensor) -> None:
    network.train()
    for _ in range(_SANE_PASSES):
        network(images)
