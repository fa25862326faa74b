"""Which images form which batch: a pure function of (seed, position), whatever the workers and interruptions.

The stream of training images is the concatenation of one permutation of the data set per epoch, each drawn from
(seed, epoch). Micro-batch m of rank r takes `batch_size` consecutive positions of that stream; a batch may span two
epochs, so that no image is dropped. A resume starts the stream in the middle: there is no state to save. Images
without labels are a stream of their own, of which every micro-batch takes a fixed number more: what the labelled images
do is the same with and without them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import Sampler

from densekd.data.keyed import keyed_seed
from densekd.training.loading import loaded
from densekd.training.loading_watch import PATIENCE


def epoch_order(seed: int, epoch: int, size: int, stream: str = "order") -> list[int]:
    """The order in which epoch `epoch` visits the images 0..size-1; each stream of images has orders of its own."""
    generator = torch.Generator().manual_seed(keyed_seed(seed, stream, epoch))
    return torch.randperm(size, generator=generator).tolist()


@dataclass(frozen=True)
class _Stream:
    """`size` images, numbered from `first` on, visited over and over; `count` of them in every micro-batch."""

    name: str
    first: int
    size: int
    count: int

    def keys(self, seed: int, batches: Iterable[int]) -> Iterator[list[tuple[int, int]]]:
        """The (epoch, index) keys of each of these micro-batches, numbered over all ranks, in growing order."""
        orders: dict[int, list[int]] = {}
        for batch in batches:
            start, keys = batch * self.count, []
            for position in range(start, start + self.count):
                epoch, place = divmod(position, self.size)
                if epoch not in orders:
                    # Positions only grow; a batch larger than the data set needs several orders at once.
                    orders = {e: o for e, o in orders.items() if e >= start // self.size}
                    orders[epoch] = epoch_order(seed, epoch, self.size, self.name)
                keys.append((epoch, self.first + orders[epoch][place]))
            yield keys


class _Positions(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys, from micro-batch `first` to `last` (not included)."""

    def __init__(self, streams: Sequence[_Stream], seed: int, first: int, last: int, rank: int, world: int) -> None:
        self.streams, self.seed = tuple(streams), seed
        self.first, self.last, self.rank, self.world = first, last, rank, world

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = range(self.first * self.world + self.rank, self.last * self.world + self.rank, self.world)
        for parts in zip(*(stream.keys(self.seed, batches) for stream in self.streams), strict=True):
            yield [key for part in parts for key in part]


class View(Protocol):
    """Training images by (epoch, index), as of `densekd.data.views.TrainView`."""

    def __getitem__(self, key: tuple[int, int], /) -> Mapping[str, Any]: ...


class Batcher:
    """Iterates over training batches from any micro-batch on.

    Args:
        view: data set whose `view[(epoch, index)]` gives a dict of tensors.
        size: number of training images.
        batch_size: training images per micro-batch and rank.
        seed: the run's seed.
        workers: loading processes; the batches do not depend on it.
        patience: seconds that they may take to give a batch; None: for ever.
        unlabelled: number of images without labels; the view has them at the indices from `size` on.
        unlabelled_per_batch: how many of them follow the `batch_size` others in each micro-batch.
    """

    def __init__(
        self,
        view: View,
        size: int,
        batch_size: int,
        seed: int,
        *,
        workers: int = 0,
        patience: float | None = PATIENCE,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
        unlabelled: int = 0,
        unlabelled_per_batch: int = 0,
    ) -> None:
        self.view, self.size, self.batch_size, self.seed = view, size, batch_size, seed
        self.streams = [_Stream("order", 0, size, batch_size)]
        if unlabelled and unlabelled_per_batch:
            self.streams.append(_Stream("unlabelled order", size, unlabelled, unlabelled_per_batch))
        self.workers, self.patience = workers, patience
        self.rank, self.world, self.pin_memory = rank, world, pin_memory

    def batches(self, first: int, last: int) -> Generator[dict[str, Any], None, None]:
        """Micro-batches `first` .. `last - 1`, each a dict of stacked tensors. Close it to end its processes."""
        sampler = _Positions(self.streams, self.seed, first, last, self.rank, self.world)
        return loaded(
            self.view,
            workers=self.workers,
            patience=self.patience,
            batch_sampler=sampler,
            pin_memory=self.pin_memory,
        )

    def epochs(self, micro_batches: int) -> float:
        """Passes over the training images, those with labels, that so many micro-batches make."""
        return micro_batches * self.world * self.batch_size / self.size
