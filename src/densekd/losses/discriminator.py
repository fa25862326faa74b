"""The network that tells the teacher's maps from the student's (Holistic)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module):
    """One score per map, (N, C, H, W) -> (N,), for maps of any size.

    Every map is brought to mean 0 and variance 1 as a whole; four 3x3 convolutions of stride 2 with `width`, 2, 4 and
    8 times `width` channels, leaky ReLUs between them, self-attention after the last two; the mean over positions; a
    linear layer. Convolutions and linear layers have their spectral norm held at 1; in evaluation mode its estimate
    stays as it is.

    No layer looks at more than one map: the score of a map does not depend on its batch, a batch of one is as good as
    any, and the gradient penalty is that of each map.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.norm = nn.GroupNorm(1, channels)
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(spectral_norm(nn.Conv2d(into, out, 3, stride=2, padding=1)), nn.LeakyReLU(0.1))
            for into, out in pairwise(widths)
        )
        self.attentions = nn.ModuleList(SelfAttention(out) for out in widths[3:])
        self.head = spectral_norm(nn.Linear(widths[-1], 1))

    def forward(self, maps: Tensor) -> Tensor:
        x = self.norm(maps)
        first_attention = len(self.stages) - len(self.attentions)
        for place, stage in enumerate(self.stages):
            x = stage(x)
            if place >= first_attention:
                x = self.attentions[place - first_attention](x)
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores[:, 0]

    def __reduce__(self) -> tuple[Any, ...]:
        # The modules with a spectral norm cannot be pickled: they are built again and given their state.
        return _rebuilt, (self.channels, self.width, self.state_dict(), self.training)


class SelfAttention(nn.Module):
    """`x + gain * attention(x)` over the positions of a map; `gain` starts at 0 (SAGAN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        keys = max(channels // 8, 1)
        self.query, self.key, self.value = (
            spectral_norm(nn.Conv2d(channels, out, 1)) for out in (keys, keys, channels)
        )
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(query, key, value)
        return x + self.gain * seen.transpose(1, 2).reshape(x.shape)


def _rebuilt(channels: int, width: int, state: Mapping[str, Tensor], training: bool) -> Discriminator:
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn for nothing
        network = Discriminator(channels, width)
    network.load_state_dict(state, assign=True)
    return network.train(training)
