"""What a batch gives to the queues: a few pixels of each class of each image, and their mean."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def class_pixels(
    features: Tensor, labels: Tensor, valid: Tensor, num_classes: int, limit: int
) -> tuple[Tensor, Tensor]:
    """Up to `limit` valid pixels of each class of each image, drawn at random: (M, C) and their classes (M,).

    Args:
        features: (N, P, C).
        labels, valid: (N, P); labels where `valid` are in 0..num_classes-1.
    """
    image, place = valid.nonzero(as_tuple=True)
    kind = labels[image, place]
    group = image * num_classes + kind
    # Sorted by group, in random order within it: the first of each group are the draw.
    order = torch.argsort(group + torch.rand(len(group), device=group.device, dtype=torch.float64))
    group = group[order]
    counts = torch.bincount(group, minlength=1)
    rank = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group]
    chosen = order[rank < limit]
    return features[image[chosen], place[chosen]], kind[chosen]


def class_regions(features: Tensor, labels: Tensor, valid: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The mean feature of each class present in each image: (M, C) and their classes (M,); arguments as above."""
    members = (labels[..., None] == torch.arange(num_classes, device=labels.device)) & valid[..., None]
    features = torch.where(valid[..., None], features, 0.0)
    with torch.autocast(features.device.type, enabled=False):
        sums = members.to(features.dtype).transpose(1, 2) @ features
    sizes = members.sum(1)
    image, kind = (sizes > 0).nonzero(as_tuple=True)
    return sums[image, kind] / sizes[image, kind, None], kind


def from_all_ranks(features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Features (M, C) and classes (M,) of every rank, in the order of the ranks; M may differ, and be zero.

    Every rank must call it the same number of times; without several processes it is the identity.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return features, classes
    world = dist.get_world_size()
    counts = _gather(torch.tensor([len(classes)], device=classes.device), world).tolist()
    most = max(counts)
    # all_gather wants one shape on all ranks.
    padded = features.new_zeros(most, features.shape[1]), classes.new_zeros(most)
    for target, source in zip(padded, (features, classes), strict=True):
        target[: len(source)] = source
    everything = [_gather(part, world).reshape(world, most, *part.shape[1:]) for part in padded]
    own = torch.arange(most, device=classes.device) < torch.tensor(counts, device=classes.device)[:, None]
    return everything[0][own], everything[1][own]


def _gather(values: Tensor, world: int) -> Tensor:
    parts = [torch.empty_like(values) for _ in range(world)]
    dist.all_gather(parts, values)
    return torch.cat(parts)
