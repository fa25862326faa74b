"""Features kept per class from one step to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.functional.relation import unit_vectors


class ClassQueue(nn.Module):
    """For each class the last `size` features put in, at unit length; buffers, so that a checkpoint holds them.

    Buffers: `entries` (K, size, C), of class k the first `filled[k]` are used; `position[k]` is where the next one
    goes.
    """

    entries: Tensor
    position: Tensor
    filled: Tensor

    def __init__(self, num_classes: int, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.zeros(num_classes, size, channels))
        self.register_buffer("position", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("filled", torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def put(self, features: Tensor, classes: Tensor) -> None:
        """Add features (M, C) of classes (M,) in their order; the oldest of a full class give way."""
        num_classes, size = self.entries.shape[:2]
        order = torch.argsort(classes, stable=True)
        kinds = classes[order]
        counts = torch.bincount(kinds, minlength=num_classes)
        places = torch.arange(len(kinds), device=kinds.device) - (counts.cumsum(0) - counts)[kinds]
        # Of more than fit, only the last are written: two writes to one slot would come in any order.
        kept = places >= (counts - size)[kinds]
        kinds, places = kinds[kept], places[kept]
        slots = (self.position[kinds] + places) % size
        self.entries[kinds, slots] = unit_vectors(features[order[kept]]).to(self.entries.dtype)
        self.position.add_(counts).remainder_(size)
        self.filled.add_(counts).clamp_(max=size)

    def sample(self, count: int) -> Tensor:
        """Up to `count` features of every class, without repetition, drawn anew for each: (Q, C), a copy."""
        entries, filled = self.entries, self.filled.tolist()
        drawn = [
            entries[kind, torch.randperm(have, device=entries.device)[:count]]
            for kind, have in enumerate(filled)
            if have
        ]
        return torch.cat(drawn) if drawn else entries.new_empty(0, entries.shape[2])

    def extra_repr(self) -> str:
        num_classes, size, channels = self.entries.shape
        return f"classes={num_classes}, size={size}, channels={channels}"
