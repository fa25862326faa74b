"""Which images form which batch: a pure function of (seed, position), whatever the workers and interruptions.

The stream of training images is the concatenation of one permutation of the data set per epoch, each drawn from
(seed, epoch). Micro-batch m of rank r takes `batch_size` consecutive positions of that stream; a batch may span two
epochs, so that no image is dropped. A resume starts the stream in the middle: there is no state to save.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Sampler

from densekd.data.keyed import keyed_seed

T = TypeVar("T")


def epoch_order(seed: int, epoch: int, size: int) -> list[int]:
    """The order in which epoch `epoch` visits the images 0..size-1."""
    generator = torch.Generator().manual_seed(keyed_seed(seed, "order", epoch))
    return torch.randperm(size, generator=generator).tolist()


class _Positions(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys, from micro-batch `first` to `last` (not included)."""

    def __init__(self, size: int, batch_size: int, seed: int, first: int, last: int, rank: int, world: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.first, self.last, self.rank, self.world = first, last, rank, world

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        orders: dict[int, list[int]] = {}
        for micro in range(self.first, self.last):
            start = (micro * self.world + self.rank) * self.batch_size
            keys = []
            for position in range(start, start + self.batch_size):
                epoch, place = divmod(position, self.size)
                if epoch not in orders:
                    # Positions only grow; a batch larger than the data set needs several orders at once.
                    orders = {e: o for e, o in orders.items() if e >= start // self.size}
                    orders[epoch] = epoch_order(self.seed, epoch, self.size)
                keys.append((epoch, orders[epoch][place]))
            yield keys


def leave_signals_to_the_main_process(_worker: int) -> None:
    """What a loading process does first: signals reach the whole group, and the step in flight needs its workers.

    They end when the main process closes their queue (see `loaded`) or is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def loaded(loader: DataLoader[T]) -> Generator[T, None, None]:
    """What a loader gives, its processes ended when the iteration is over, left by an exception, or closed.

    Processes that ignore SIGTERM would otherwise keep an interrupted program from ending: Python terminates them
    by that signal and waits.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        end = getattr(iterator, "_shutdown_workers", None)  # a loader without processes has none
        if end is not None:
            end()


class View(Protocol):
    """Training images by (epoch, index), as of `densekd.data.views.TrainView`."""

    def __getitem__(self, key: tuple[int, int], /) -> Mapping[str, Any]: ...


class Batcher:
    """Iterates over training batches from any micro-batch on.

    Args:
        view: data set whose `view[(epoch, index)]` gives a dict of tensors.
        size: number of training images.
        batch_size: images per micro-batch and rank.
        seed: the run's seed.
        workers: loading processes; the batches do not depend on it.
    """

    def __init__(
        self,
        view: View,
        size: int,
        batch_size: int,
        seed: int,
        *,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.view, self.size, self.batch_size, self.seed = view, size, batch_size, seed
        self.workers, self.rank, self.world, self.pin_memory = workers, rank, world, pin_memory

    def batches(self, first: int, last: int) -> Generator[dict[str, Any], None, None]:
        """Micro-batches `first` .. `last - 1`, each a dict of stacked tensors. Close it to end its processes."""
        sampler = _Positions(self.size, self.batch_size, self.seed, first, last, self.rank, self.world)
        loader: DataLoader[dict[str, Any]] = DataLoader(
            self.view,  # type: ignore[arg-type]
            batch_sampler=sampler,
            num_workers=self.workers,
            worker_init_fn=leave_signals_to_the_main_process,
            pin_memory=self.pin_memory,
            # The loader draws a base seed for its workers: from here, not from the global generator.
            generator=torch.Generator().manual_seed(0),
        )
        return loaded(loader)

    def epochs(self, micro_batches: int) -> float:
        """Passes over the training images that so many micro-batches make."""
        return micro_batches * self.world * self.batch_size / self.size
