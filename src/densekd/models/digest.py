"""What a network's weights are, in one number."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor of the state dict, in the order of the names.

    The same weights give the same digest wherever they came from: a file of any format, a hub, or a function.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, Tensor):  # a module may keep extra state of its own kind
            digest.update(f"{name}\n{value.dtype}\n{tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
