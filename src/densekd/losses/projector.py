"""A small network on positions as rows."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn


class Projector(nn.Module):
    """1x1 convolution, batch norm, ReLU, 1x1 convolution, on positions as rows: (M, in) -> (M, out); M may be zero."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(in_channels, out_channels, bias=False)
        self.norm = _norm(out_channels)
        self.last = nn.Linear(out_channels, out_channels, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        rows = self.first(rows.to(self.first.weight.dtype))
        if len(rows) < 2 and isinstance(self.norm, nn.BatchNorm1d):
            # No statistics can be taken of fewer than two rows: those of earlier batches serve.
            norm = self.norm
            mean, var = norm.running_mean, norm.running_var
            rows = nn.functional.batch_norm(rows, mean, var, norm.weight, norm.bias, eps=norm.eps)
        else:
            rows = self.norm(rows)
        projected: Tensor = self.last(rows.relu())
        return projected


def _norm(channels: int) -> nn.BatchNorm1d | nn.SyncBatchNorm:
    """Batch norm over all ranks where several train on GPUs (it has no kernel elsewhere), else the plain one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and "nccl" in dist.get_backend():
        return nn.SyncBatchNorm(channels)
    return nn.BatchNorm1d(channels)
