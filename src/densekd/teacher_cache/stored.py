"""Maps of a batch in the numbers that are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densekd.teacher_cache.encoding import Encoding, dequantised, unpack_bfloat16, unpack_int8


class Stored:
    """Maps `(N, C, H, W)` of one tap: bfloat16, or uint8 steps with `scales` float32 `(N, 2, C)`, `lo` and `step`.

    A half or a quarter of the bytes of float32, to be moved to a device before they are unpacked.
    """

    def __init__(self, values: Tensor, scales: Tensor | None) -> None:
        self.values, self.scales = values, scales

    @classmethod
    def empty(cls, encoding: Encoding, count: int, shape: tuple[int, int, int], *, pinned: bool = False) -> Stored:
        """Room for `count` maps on the CPU.

        Args:
            pinned: in memory that a CUDA device reads by itself.
        """
        steps = encoding == "int8"
        values = torch.empty((count, *shape), dtype=torch.uint8 if steps else torch.bfloat16, pin_memory=pinned)
        return cls(values, torch.empty(count, 2, shape[0], pin_memory=pinned) if steps else None)

    def fill(self, row: int, data: memoryview) -> None:
        """Unpack one encoded map into its row; rows may be filled by several threads.

        Raises:
            ValueError: it is not of this many values.
        """
        values = self.values[row].flatten()
        if self.scales is None:
            words: npt.NDArray[Any] = values.view(torch.int16).numpy()
            unpack_bfloat16(data, words.view(np.uint16))
        else:
            unpack_int8(data, values.numpy(), self.scales[row].numpy())

    def to(self, device: torch.device) -> Stored:
        """The same on a device."""
        if device.type == "cpu":
            return self
        scales = None if self.scales is None else self.scales.to(device, non_blocking=True)
        return Stored(self.values.to(device, non_blocking=True), scales)

    def unpacked(self) -> Tensor:
        """float32, on the same device."""
        if self.scales is None:
            return self.values.float()
        lo, step = (self.scales[:, row, :, None, None] for row in (0, 1))
        return dequantised(self.values, lo, step)
