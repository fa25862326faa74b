"""The student of a run with all that turns an image into class ids."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekd.config import Recipe, load_recipe
from densekd.data.find import palette_of
from densekd.data.specs import ScenesDataSpec
from densekd.data.transforms import EvalTransform
from densekd.errors import ConfigError
from densekd.evaluate import autocast
from densekd.inference import Predictor
from densekd.pictures import Palette
from densekd.predict.enlarge import enlarged, near
from densekd.runs.folder import Run
from densekd.tasks.segmentation import SegmentationTask

_READ = "evaluation"


class Student:
    """The best student of a run on this machine's device.

    Args:
        run: neither its data nor its teacher is needed.
        overrides: keys of the recipe's `evaluation` with their values.
        most: images or windows in one forward pass.

    Raises:
        RunError: the run has no student yet.
        ConfigError: an override of something that a prediction does not read, or with a value that cannot be.
    """

    def __init__(self, run: Run, overrides: Mapping[str, Any] | None = None, most: int = 1) -> None:
        self.recipe = _recipe(run, overrides or {})
        with torch.random.fork_rng(devices=[]):  # building draws weights that the run's own then replace
            network = run.student()
        best = run.record.best
        assert best is not None  # run.student() has checked it
        self.classes = tuple(best.iou)
        self.palette: Palette = palette_of(self.recipe.data, self.classes)
        data, runtime = self.recipe.data, self.recipe.runtime
        self.transform = EvalTransform(data.augment)
        ignore = data.ignore_index if not isinstance(data, ScenesDataSpec) else 255
        self.task = SegmentationTask(self.recipe.task, len(self.classes), ignore, self.classes)
        cuda = runtime.device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        # The run may have been made on a GPU; half precision has no convolutions worth the name on a CPU.
        self.precision = runtime.precision if cuda or runtime.precision != "float16" else "float32"
        layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
        self.network: nn.Module = network.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        self.predictor = Predictor(
            self.network, self.task, self.recipe.evaluation, most=most, channels_last=runtime.channels_last
        )

    def size_of(self, stored: tuple[int, int]) -> Hashable:
        """Height and width that the recipe brings images of that height and width to."""
        return self.transform.size_of(stored)

    def segment(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Class ids `(H, W)`, int64, of images uint8 `(3, H, W)` that the recipe brings to one size."""
        batch = torch.stack([self.transform(image) for image in images]).to(self.device)
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        asked = [near(self.task.num_outputs, *size) for size in sizes]
        with torch.inference_mode(), autocast(self.device, self.precision):
            return list(enlarged(self.predictor.ids(batch, asked), sizes))


def _recipe(run: Run, overrides: Mapping[str, Any]) -> Recipe:
    for key in overrides:
        if key != _READ and not key.startswith(f"{_READ}."):
            raise ConfigError(
                f"override {key}: a prediction does not read it, or not as another than the run's. What can be "
                "changed: evaluation.*"
            )
    return load_recipe(run.path / "recipe.yaml", overrides) if overrides else run.recipe
