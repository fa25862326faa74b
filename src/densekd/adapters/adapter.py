"""The adapter of one term: the student's map brought to the shape of the teacher's."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def keyed_seed(*parts: object) -> int:
    """A seed (63 bits) that depends on `parts` alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


class Adapter(nn.Module):
    """A 1x1 convolution where the channels differ and a bilinear resize (corners not aligned) where the sizes do.

    The weights are drawn uniformly from `+-1/sqrt(in_channels)` by a generator keyed by `name` and the channel
    counts, the bias is zero: the same adapter whatever was drawn before, and nothing is drawn from the global
    random state. It computes in the map's own type (autocast keeps its say).

    Args:
        in_channels: channels of the student's map.
        out_channels: channels of the teacher's map; equal to `in_channels`: no convolution and no parameters.
        name: the term's name, part of the key.
        device, dtype: of the parameters.

    >>> adapter = Adapter(16, 64, name="channelwise:logits")
    >>> adapter(torch.rand(2, 16, 8, 8), (16, 16)).shape
    torch.Size([2, 64, 16, 16])
    >>> Adapter(64, 64), len(list(Adapter(64, 64).parameters()))
    (Adapter(64 -> 64), 0)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        name: str = "",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if in_channels != out_channels:
            generator = torch.Generator().manual_seed(keyed_seed("adapter", name, in_channels, out_channels))
            bound = in_channels**-0.5
            weight = torch.rand(out_channels, in_channels, 1, 1, generator=generator, dtype=torch.float32)
            self.weight = nn.Parameter(weight.mul_(2 * bound).sub_(bound).to(device, dtype))
            self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))

    def forward(self, student: Tensor, size: tuple[int, int]) -> Tensor:
        """`student` `(N, in_channels, h, w)` -> `(N, out_channels, *size)`.

        Convolution and resize commute: whichever order convolves fewer positions is taken.

        Args:
            student: the map, `(N, in_channels, h, w)`.
            size: height and width of the teacher's map.
        """
        if student.shape[2] * student.shape[3] <= size[0] * size[1]:
            return self._resize(self._project(student), size)
        return self._project(self._resize(student, size))

    def _project(self, student: Tensor) -> Tensor:
        if self.weight is None or self.bias is None:
            return student
        return F.conv2d(student, self.weight.to(student.dtype), self.bias.to(student.dtype))

    @staticmethod
    def _resize(student: Tensor, size: tuple[int, int]) -> Tensor:
        if (student.shape[2], student.shape[3]) == size:
            return student
        return F.interpolate(student, size=size, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"{self.in_channels} -> {self.out_channels}"
