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
from densekd.failures import told
from densekd.metrics import ConfusionMeter
from densekd.models.sizes import output_at_any_size
from densekd.records import Scores
from densekd.tasks.segmentation import SegmentationTask
from densekd.training.loading import loaded


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


def confusion(
    network: nn.Module,
    view: View,
    task: SegmentationTask,
    *,
    device: torch.device,
    batch_size: int = 8,
    workers: int = 0,
    precision: str = "float32",
    channels_last: bool = False,
    watch: Callable[[int, int], None] | None = None,
    prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> ConfusionMeter:
    """The confusion matrix of `network` over all of `view`.

    Images may have any size and differ in it: those of one size form a batch, and what does not fit the network is
    padded (`densekd.models.output_at_any_size`). Pixels are counted at the size of the label.

    Args:
        view: the images and labels.
        batch_size: images loaded at a time, and the most in one forward pass.
        watch: called with (images done, images in all) before every batch.
        prepare: applied to a batch of images first (the teacher's own normalisation and size, for instance).
    """
    meter = ConfusionMeter(task.num_classes, task.ignore_index)
    total, done = len(view), 0
    loader = loaded(view, workers=workers, collate=eval_collate, batch_size=batch_size)
    with closing(loader) as batches, evaluation_mode(network), torch.no_grad(), told():
        for batch in chain.from_iterable(batches):
            if watch is not None:
                watch(done, total)
            image = batch["image"].to(device)
            if channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            if prepare is not None:
                image = prepare(image)
            with autocast(device, precision):
                output = output_at_any_size(network, image)
            for row, label in enumerate(batch["labels"]):
                prediction = task.predict(output[row : row + 1], (label.shape[-2], label.shape[-1]))
                meter.update(prediction[0].cpu(), label)
            done += len(batch["labels"])
    if watch is not None:
        watch(done, total)
    return meter


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
