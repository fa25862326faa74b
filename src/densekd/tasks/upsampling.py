"""The last step of many networks, the up-sampling of their class map, when it is left to the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Upsampling(NamedTuple):
    """A bilinear up-sampling to `size` = (height, width) that a network did not do."""

    size: tuple[int, int]
    align_corners: bool

    def __call__(self, logits: Tensor) -> Tensor:
        """Do it now, in float32 or better."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            return F.interpolate(logits, self.size, mode="bilinear", align_corners=self.align_corners)


class PutOff(NamedTuple):
    """What was left to the loss: of the main class map, and of the auxiliary one. None: nothing."""

    main: Upsampling | None = None
    auxiliary: Upsampling | None = None
