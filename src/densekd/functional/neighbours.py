"""Distances of the vectors of a map to those of the neighbouring positions, by shifted differences.

Of the 8 neighbours of a position (26 in a volume, 2 on a line) half are enough: every pair once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.functional.derivatives import features, transformed, unit_columns
from densekd.functional.image import channel_dot, first_order, matrix, through_unit, unit


def shifts(axes: int) -> list[tuple[int, ...]]:
    """Half of the neighbours: (0, 1), (1, -1), (1, 0), (1, 1) in an image."""
    return [shift for shift in product((-1, 0, 1), repeat=axes) if shift > (0,) * axes]


def pair_slices(axes: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """For every shift: the positions i whose neighbour i + shift lies in the map, and those neighbours."""
    head, tail, every = slice(None, -1), slice(1, None), slice(None)
    ends = {-1: (tail, head), 0: (every, every), 1: (head, tail)}
    for shift in shifts(axes):
        yield tuple(ends[step][0] for step in shift), tuple(ends[step][1] for step in shift)


def neighbour_distances(x: Tensor, mask: Tensor | None, normalize: bool, working: torch.dtype) -> Tensor:
    """Euclidean distances (N, shifts, *spatial) of (N, C, *spatial) in the working type.

    Entry (s, i) is that of position i to i + shift s, zero where that lies outside. With `normalize` the vectors have
    length 1, else the sum of squares is a mean over channels. Where `mask` (N, *spatial) is False they are zero.
    """
    if transformed(x):
        return _plain_distances(features(x, mask, working), x.shape[2:], normalize)
    distances: Tensor = _NeighbourDistances.apply(x, mask, normalize, working)
    return distances


def _plain_distances(flat: Tensor, spatial: torch.Size, normalize: bool) -> Tensor:
    """The same of vectors (N, C, P), in operations that torch derives."""
    vectors = (unit_columns(flat) if normalize else flat).reshape(*flat.shape[:2], *spatial)
    found = []
    for here, there in pair_slices(len(spatial)):
        difference = vectors[:, :, *here] - vectors[:, :, *there]
        squares = difference.square().sum(1) / _share(normalize, flat.shape[1])
        # The root has no derivative at zero: equal vectors take another value there, and are zeroed after it.
        apart = squares > 0
        distances = torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
        border = [(int(side.start is not None), int(side.stop is not None)) for side in reversed(here)]
        found.append(F.pad(distances, [width for both in border for width in both]))
    return torch.stack(found, 1)


class _NeighbourDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, normalize: bool, working: torch.dtype) -> Tensor:
        pairs = list(pair_slices(x.ndim - 2))
        distances = x.new_zeros((len(x), len(pairs), *x.shape[2:]), dtype=working)
        for n, image in enumerate(x):
            flat = matrix(image, None if mask is None else mask[n], working)
            vectors = (unit(flat).directions if normalize else flat).view(image.shape)
            for s, (here, there) in enumerate(pairs):
                difference = _difference(vectors, here, there).flatten(1)
                squares = channel_dot(difference, difference)
                distances[n, s][here] = (
                    squares.div_(_share(normalize, len(image))).sqrt_().view(distances[n, s][here].shape)
                )
        ctx.save_for_backward(x, mask, distances)
        ctx.normalize = normalize
        return distances

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        x, mask, distances = ctx.saved_tensors
        with torch.no_grad():
            # Two equal vectors have no direction between them: no gradient.
            weights = torch.where(distances > 0, upstream / distances, 0.0).div_(_share(ctx.normalize, x.shape[1]))
            gradient = torch.empty_like(x)
            for n, image in enumerate(x):
                flat = matrix(image, None if mask is None else mask[n], distances.dtype)
                of = unit(flat) if ctx.normalize else None
                vectors = (flat if of is None else of.directions).view(image.shape)
                slope = torch.zeros_like(vectors)
                for s, (here, there) in enumerate(pair_slices(x.ndim - 2)):
                    difference = _difference(vectors, here, there).mul_(weights[n, s][here])
                    slope[:, *here] += difference
                    slope[:, *there] -= difference
                gradient[n] = slope if of is None else through_unit(slope.flatten(1), of).view(image.shape)
        return first_order("local_mse", gradient, x), None, None, None


def _difference(vectors: Tensor, here: tuple[slice, ...], there: tuple[slice, ...]) -> Tensor:
    return vectors[:, *here] - vectors[:, *there]


def _share(normalize: bool, channels: int) -> int:
    """What a sum of squares over the channels is divided by."""
    return 1 if normalize else channels
