"""One start of a Triton kernel, described before it happens: the same description is compiled ahead of time.

Nothing here imports Triton; whoever has a kernel has.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments by name.

    Products and sums are never joined into one rounding (`fp_fusion`): equal maps must give a difference of exactly
    zero, as they do on the CPU.
    """

    kernel: Any
    programs: int
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    warps: int

    def run(self, device: torch.device) -> None:
        """Start it on the current stream of `device`; waits for nothing."""
        with _on(device):
            self.kernel[(self.programs,)](
                **self.arguments, **self.constants, num_warps=self.warps, enable_fp_fusion=False
            )


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton starts kernels on the current device, whatever device its tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
