"""mIoU of an exported file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.data.base import SegmentationSet
from densekd.evaluate import spread
from densekd.export.exported import Exported
from densekd.export.feed import Feed
from densekd.export.manifest import Manifest
from densekd.metrics import ConfusionMeter
from densekd.records import Scores
from densekd.tasks.segmentation import SegmentationTask


def score_file(
    file: Exported,
    source: SegmentationSet,
    task: SegmentationTask,
    count: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Scores:
    """Scores of a file over a set, or over `count` images spread evenly over it: one confusion matrix.

    Images go in one by one as the run's evaluation of whole images would bring them to the student. Logits and
    probabilities are brought to the size of the label bilinearly before the class is chosen; class ids are repeated
    (nearest).

    Args:
        watch: called with (images done, images in all).
    """
    feed, meter = Feed(file.manifest), ConfusionMeter(task.num_classes, task.ignore_index)
    indices = spread(len(source), count or len(source))
    for done, index in enumerate(indices):
        if watch is not None:
            watch(done, len(indices))
        sample = source.load(index)
        output = file(feed(sample.image)[None])
        size = feed.size_of((sample.image.shape[1], sample.image.shape[2]))
        label = sample.label.to(torch.int64)
        wanted = (int(label.shape[0]), int(label.shape[1]))
        meter.update(class_ids(feed.cut(output, size), wanted, file.manifest)[0], label)
    if watch is not None:
        watch(len(indices), len(indices))
    return Scores(**meter.scores(task.class_names))


def class_ids(output: Tensor, size: tuple[int, int], manifest: Manifest) -> Tensor:
    """Class ids `(N, h, w)`, int64, at `size` = (height, width), from what a file gave."""
    kind = manifest.inside.output
    if kind == "argmax":
        same = tuple(output.shape[-2:]) == size
        return output if same else F.interpolate(output[:, None].float(), size, mode="nearest-exact")[:, 0].long()
    if tuple(output.shape[-2:]) != size:
        output = F.interpolate(output, size, mode="bilinear", align_corners=False)
    if manifest.binary:
        return (output[:, 0] > (0.5 if kind == "softmax" else 0.0)).long()
    return output.argmax(1)
