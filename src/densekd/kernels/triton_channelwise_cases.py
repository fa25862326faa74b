"""What is compiled ahead of time of the channel-wise kernels: every kernel in every type, layout and way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from densekd.kernels.channelwise_plan import Way
from densekd.kernels.launching import Launch
from densekd.kernels.strides import as_strided
from densekd.kernels.triton_channelwise_host import planned, prepared, scaling

SHAPES: dict[tuple[Way, str], tuple[int, int, int, int]] = {
    ("resident", "contiguous"): (16, 150, 64, 128),
    ("resident", "channels_last"): (8, 512, 16, 16),
    ("resident", "mixed"): (8, 512, 16, 16),
    ("streamed", "contiguous"): (16, 150, 128, 128),
    ("streamed", "channels_last"): (32, 2048, 24, 24),
    ("split", "contiguous"): (2, 19, 512, 1024),
    ("split", "channels_last"): (8, 512, 64, 64),
    ("split", "mixed"): (8, 512, 64, 64),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Case(NamedTuple):
    """One start of a kernel on maps of `shape`, the student channels_last and the teacher contiguous where "mixed"."""

    way: str
    layout: str
    dtype: torch.dtype
    masked: bool
    shape: tuple[int, int, int, int]
    launch: Launch


def cases() -> Iterator[Case]:
    """All of them; the maps have no data."""
    for (way, layout), shape in SHAPES.items():
        for dtype in DTYPES:
            student, teacher = _map(shape, dtype, layout != "contiguous"), _map(shape, dtype, layout == "channels_last")
            for masked in (False, True):
                mask = torch.empty((shape[0], *shape[2:]), dtype=torch.bool, device="meta") if masked else None
                for launch in planned(prepared(student, teacher, mask, True), 4.0, 1.0):
                    yield Case(way, layout, dtype, masked, shape, launch)
            if (way, layout) in (("resident", "contiguous"), ("split", "channels_last")):
                upstream = torch.empty(shape[:2], device="meta")
                yield Case("backward", layout, dtype, False, shape, scaling(as_strided(student), upstream, 1.0))


def _map(shape: tuple[int, int, int, int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
