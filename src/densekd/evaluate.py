"""Score a network on a whole split: one confusion matrix, labels at their original size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import chain
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import Subset

from densekd.data.views import eval_collate
from densekd.errors import ArgumentError
from densekd.failures import told
from densekd.inference import WHOLE, EvaluationSpec, Predictor
from densekd.metrics import ConfusionMeter
from densekd.records import Scores
from densekd.tasks.segmentation import SegmentationTask
from densekd.training.loading import loaded
from densekd.training.loading_watch import PATIENCE


class View(Protocol):
    """Items as of `densekd.data.views.EvalView`: image, label at its original size, index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Autocast of the run's precision on the run's device; nothing for float32."""
    if precision not in _AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Inside the block the network is in eval mode; after it, every submodule has the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def spread(total: int, count: int) -> list[int]:
    """`count` indices spread evenly over `range(total)` (all of them when `count >= total`)."""
    if count >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def share_of(total: int, rank: int, world: int) -> range:
    """The indices of `range(total)` that process `rank` of `world` takes: each index exactly one process's.

    `rank, rank + world, ...`: shares differ by one at most, and nothing is repeated to make them even.

    Raises:
        ArgumentError: no such rank.
    """
    if not 0 <= rank < world:
        raise ArgumentError(f"expected a rank from 0 to {world - 1} of {world} processes, got {rank}")
    return range(rank, total, world)


def confusion(
    network: nn.Module,
    view: View,
    task: SegmentationTask,
    *,
    device: torch.device,
    batch_size: int = 8,
    workers: int = 0,
    patience: float | None = PATIENCE,
    precision: str = "float32",
    channels_last: bool = False,
    watch: Callable[[int, int], None] | None = None,
    prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
    evaluation: EvaluationSpec = WHOLE,
    shard: tuple[int, int] = (0, 1),
    total: Callable[[torch.Tensor], torch.Tensor] | None = None,
    each: Callable[[int, torch.Tensor], None] | None = None,
) -> ConfusionMeter:
    """The confusion matrix of `network` over all of `view`.

    Images may have any size and differ in it: those of one size form a batch, and what does not fit the network is
    padded (`densekd.models.output_at_any_size`). Pixels are counted at the size of the label.

    Args:
        view: the images and labels.
        batch_size: images loaded at a time, and the most images or windows in one forward pass.
        workers: loading processes; 0: the main process loads.
        patience: seconds that the loading processes may take to give a batch; None: for ever.
        watch: called with (images done, images in all) before every batch; of this process's share.
        prepare: applied to what goes into a forward pass first (the teacher's own normalisation and size, for
            instance).
        evaluation: whole images or windows, scales, mirroring.
        shard: (rank, world): only that share of the images is looked at (`share_of`).
        total: sums an int64 tensor over all processes, on `device`; called once, at the end, with a share of no
            images too. Without it the matrix is that of the share.

    Raises:
        ArgumentError: a rank that is none.
    """
    meter = ConfusionMeter(task.num_classes, task.ignore_index)
    own = share_of(len(view), *shard)
    count, done = len(own), 0
    part = view if shard[1] == 1 else Subset(view, own)  # type: ignore[arg-type]
    predictor = Predictor(network, task, evaluation, most=batch_size, channels_last=channels_last, prepare=prepare)
    loader = loaded(part, workers=workers, patience=patience, collate=eval_collate, batch_size=batch_size)
    with closing(loader) as batches, evaluation_mode(network), torch.no_grad(), told():
        for batch in chain.from_iterable(batches):
            if watch is not None:
                watch(done, count)
            labels = batch["labels"]
            sizes = [(label.shape[-2], label.shape[-1]) for label in labels]
            with autocast(device, precision):
                found = predictor.ids(batch["image"].to(device), sizes)
                for index, ids, label in zip(batch["index"], found, labels, strict=True):
                    counts = meter.update(ids.cpu(), label)
                    if each is not None:
                        each(index, counts)
            done += len(labels)
    if watch is not None:
        watch(done, count)
    if total is not None:
        _add_up(meter, total, device)
    return meter


def _add_up(meter: ConfusionMeter, total: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> None:
    """Put the sums over all processes in the place of one process's counts."""
    own = torch.cat([meter.matrix.flatten(), torch.tensor([meter.images])])
    counted = total(own.to(device)).cpu()
    meter.matrix, meter.images = counted[:-1].view_as(meter.matrix), int(counted[-1])


def evaluate(
    network: nn.Module,
    view: View,
    task: SegmentationTask,
    class_names: tuple[str, ...],
    **options: Any,
) -> Scores:
    """Scores of `network` over all of `view`; options as of `confusion`."""
    meter = confusion(network, view, task, **options)
    return Scores(**meter.scores(class_names))


def some_of(view: View, count: int) -> Subset[Any]:
    """`count` items of a view, spread evenly over it."""
    return Subset(view, spread(len(view), count))  # type: ignore[arg-type]
