"""The demo's picture: image, truth, three networks, and what channel-wise distillation matches."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from densekd import files
from densekd.config import Recipe
from densekd.data.base import SegmentationSet
from densekd.data.build import build_data
from densekd.data.transforms import EvalTransform
from densekd.metrics import ConfusionMeter
from densekd.pictures import channel_map, colourise, contact_sheet, legend, photograph, stacked
from densekd.runs import Run
from densekd.taps import TapReader, main_output

_TITLES = ("image", "truth", "teacher", "student alone", "student distilled")
_PERCENTILES = (90, 50, 10)
_MAP_CLASS = "car"
_TEMPERATURE = 4.0


@dataclass(frozen=True)
class _Scene:
    """One validation scene with what the three networks say about it."""

    index: int
    image: Tensor
    label: Tensor
    predictions: tuple[Tensor, Tensor, Tensor]
    scores: tuple[float, float, float]

    @property
    def gain(self) -> float:
        return self.scores[2] - self.scores[1]


def draw_figure(
    path: Path,
    recipe: Recipe,
    teacher: Run,
    alone: Run,
    distilled: Run,
    watch: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Draw the figure of a finished demo.

    Scenes are chosen by rule: those at the 90th, 50th and 10th percentile of the gain in mIoU of the distilled
    student over the student alone, so that one is shown where distillation helped, one typical, one where it hurt
    or helped least. The last row shows, for one class, the softmax over positions at temperature 4 of the logits:
    the maps that channel-wise distillation matches.
    """
    data = build_data(recipe.data)
    transform = EvalTransform(recipe.data.augment)
    networks = tuple(run.student() for run in (teacher, alone, distilled))
    scenes = []
    for index in range(len(data.val)):
        watch(index, len(data.val))
        scenes.append(_look(data.val, index, transform, networks))
    watch(len(data.val), len(data.val))
    ranked = sorted(scenes, key=lambda scene: scene.gain)
    chosen = [ranked[min(len(ranked) - 1, round(q / 100 * (len(ranked) - 1)))] for q in _PERCENTILES]
    rows, lines = [], []
    for percent, scene in zip(_PERCENTILES, chosen, strict=True):
        labels = (scene.label, *scene.predictions)
        rows.append([photograph(scene.image), *(colourise(label, data.palette) for label in labels)])
        of_100 = [f"{100 * score:.0f}" for score in scene.scores]
        lines.append(
            f"scene {scene.index}, {percent}th percentile of the gain: mIoU teacher {of_100[0]}, "
            f"alone {of_100[1]}, distilled {of_100[2]}"
        )
    rows.append(_map_row(chosen, data.classes, transform, networks))
    lines.append(f"where each network sees '{_MAP_CLASS}': softmax of its logits over all positions, temperature 4")
    sheet = contact_sheet(rows, _TITLES, lines, cell_width=256)
    picture = stacked([sheet, legend(data.classes, data.palette, width=sheet.width)])
    stream = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    files.write_bytes(path, stream.getvalue())
    return path


def _look(which: SegmentationSet, index: int, transform: EvalTransform, networks: tuple[nn.Module, ...]) -> _Scene:
    image, label = which.load(index)
    batch = transform(image)[None]
    predictions, scores = [], []
    for network in networks:
        with torch.no_grad():
            logits = main_output(network(batch)).float()
        if logits.shape[-2:] != label.shape:
            logits = nn.functional.interpolate(logits, label.shape, mode="bilinear", align_corners=False)
        prediction = logits.argmax(dim=1)[0]
        meter = ConfusionMeter(len(which.classes), which.ignore_index)
        meter.update(prediction, label)
        predictions.append(prediction)
        scores.append(float(meter.scores(which.classes)["miou"]))
    return _Scene(index, image, label, tuple(predictions), tuple(scores))  # type: ignore[arg-type]


def _map_row(
    scenes: list[_Scene], classes: tuple[str, ...], transform: EvalTransform, networks: tuple[nn.Module, ...]
) -> list[Image.Image]:
    """The class's softened map of each network, on the chosen scene with the most pixels of that class."""
    channel = classes.index(_MAP_CLASS)
    scene = max(scenes, key=lambda one: int((one.label == channel).sum()))
    batch = transform(scene.image)[None]
    row: list[Image.Image] = [photograph(scene.image)]
    row.append(channel_map((scene.label == channel).float()))
    for network in networks:
        reader = TapReader(network, ["logits"])
        with torch.no_grad():
            _, maps = reader.run(network, (batch,), {})
        reader.close()
        logits = maps["logits"][0, channel].float()
        soft = torch.softmax(logits.flatten() / _TEMPERATURE, dim=0).reshape(logits.shape)
        row.append(channel_map(soft))
    return row
