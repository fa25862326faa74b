"""The student of a run with all that an exported file says of it; in float32 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from densekd import files
from densekd.config import Recipe
from densekd.data.find import palette_of
from densekd.data.specs import ScenesDataSpec
from densekd.export.library import without_folders
from densekd.export.manifest import NetworkInfo, Source
from densekd.models.sizes import input_multiple
from densekd.runs.folder import Run
from densekd.tasks.segmentation import SegmentationTask


@dataclass
class Student:
    """The best student of a run, alone: no teacher, no adapters.

    Attributes:
        multiple: heights and widths must be multiples of it, as far as the network says so itself.
    """

    run: Run
    recipe: Recipe
    network: nn.Module
    task: SegmentationTask
    palette: tuple[tuple[int, int, int], ...]
    source: Source
    network_info: NetworkInfo

    @property
    def multiple(self) -> int:
        return input_multiple(self.network)


def student_of(run: Run) -> Student:
    """Open the best student of a run.

    Raises:
        RunError: it has none yet.
    """
    recipe, record = run.recipe, run.record
    with torch.random.fork_rng(devices=[]):  # building draws weights that the run's own then replace
        network = run.student().float()
    assert record.best is not None  # run.student() has checked it
    classes = tuple(record.best.iou)
    ignore = 255 if isinstance(recipe.data, ScenesDataSpec) else recipe.data.ignore_index
    source = Source(
        run=files.as_text(run.path.resolve().name),
        seed=record.seed,
        method=record.method,
        student_sha256=files.sha256_file(run.weights),
        recipe_sha256=record.recipe_sha256,
        split=record.split,
        scores=record.best,
    )
    return Student(
        run=run,
        recipe=recipe,
        network=network.requires_grad_(False),
        task=SegmentationTask(recipe.task, len(classes), ignore, classes),
        palette=palette_of(recipe.data, classes),
        source=source,
        network_info=NetworkInfo(
            model=files.as_text(without_folders(recipe.student.model)), options=dict(recipe.student.options)
        ),
    )
