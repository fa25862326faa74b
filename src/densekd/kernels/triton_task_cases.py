"""What is compiled ahead of time of the kernels of `upsampled_cross_entropy` and `pixelwise_kl`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from densekd.kernels.strides import as_strided, position_order
from densekd.kernels.triton_channelwise_cases import DTYPES, Case
from densekd.kernels.triton_pixelwise_host import launch
from densekd.kernels.triton_upsampled_host import Call, launches

Shape = tuple[int, int, int, int]
LOGITS: tuple[Shape, ...] = ((8, 19, 64, 128), (8, 11, 46, 60))
#: a tile holds 150 channels at once, and 512 not
PIXELS: tuple[Shape, ...] = ((16, 150, 128, 128), (8, 512, 64, 64))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def upsampled_cases() -> Iterator[Case]:
    """Labels eight times as large; `masked`: with class weights and label smoothing."""
    for shape in LOGITS:
        for dtype in DTYPES:
            for layout in LAYOUTS:
                logits = _map(shape, dtype, layout)
                labels = torch.empty((shape[0], 8 * shape[2], 8 * shape[3]), dtype=torch.int64, device="meta")
                gradient = torch.empty_like(logits, dtype=torch.float32)
                for weighted in (False, True):
                    weights = torch.empty(shape[1], device="meta") if weighted else None
                    call = Call(logits, labels, weights, 0.1 * weighted, 255, False, gradient)
                    for one in launches(call):
                        yield Case(one.kernel.__name__, layout, dtype, weighted, shape, one)


def pixelwise_cases() -> Iterator[Case]:
    """Student, teacher and gradient in one type and layout."""
    for shape in PIXELS:
        for dtype in DTYPES:
            for layout in LAYOUTS:
                student = _map(shape, dtype, layout)
                rows = as_strided(student.permute(position_order(student)))
                values = torch.empty((shape[0], *shape[2:]), device="meta")
                for masked in (False, True):
                    mask = torch.empty(values.shape, dtype=torch.uint8, device="meta") if masked else None
                    way = "whole" if shape[1] <= 256 else "streamed"
                    yield Case(way, layout, dtype, masked, shape, launch(rows, rows, rows, mask, values, 1.0))


def _map(shape: Shape, dtype: torch.dtype, layout: str) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=LAYOUTS[layout])
