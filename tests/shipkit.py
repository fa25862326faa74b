"""Run folders without a training: a network's first weights, and a record that says what a test needs.

And an exported file in Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densekd import files
from densekd.config import dump_recipe, load_recipe
from densekd.export.exported import check_images
from densekd.export.manifest import Evaluated, InputInfo, InsideInfo, Manifest, NetworkInfo, Source
from densekd.models.build import build_model
from densekd.models.specs import ModelSpec
from densekd.records import RunRecord, dump
from densekd.records.run import BestScores, Cost, NetworkCost, Scores, TeacherCost
from densekd.runs import Run

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 0.2)
CLASSES = ("sky", "building", "road", "pavement", "tree", "car", "person", "pole", "sign", "rider")


def record_of(classes: tuple[str, ...] = CLASSES, **changes: Any) -> RunRecord:
    """The record of a run of 40 steps whose every class has another IoU, the last one none."""
    iou: dict[str, float | None] = {name: 0.9 - 0.08 * place for place, name in enumerate(classes)}
    iou[classes[-1]] = None
    best = BestScores(miou=0.58124, pixel_accuracy=0.812345, iou=iou, images=7, step=30)
    values: dict[str, Any] = {
        "status": "done",
        "method": "channelwise",
        "seed": 3,
        "split": "val",
        "evaluation": "whole image",
        "steps": 40,
        "epochs": 2.5,
        "final": Scores(miou=0.5, pixel_accuracy=0.8, iou=iou, images=7),
        "best": best,
        "cost": Cost(total_seconds=61.4, device="cpu, 1 threads"),
        "student": NetworkCost(parameters=2000, flops=5_000_000),
        "teacher": TeacherCost(parameters=9000, flops=40_000_000, miou=0.7, sha256="f" * 64),
        "preflight": {"teacher": {"images": 5, "pixel_accuracy": 0.9}},
        "environment": {"densekd": "0.1.0", "torch": "2.15.0"},
        "recipe_sha256": "a" * 64,
    }
    return RunRecord(**{**values, **changes})


def recipe_of(model: str, options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A recipe for drawn scenes of 32x48."""
    return {
        "data": {"name": "scenes", "size": [32, 48], "train_count": 4, "val_count": 4},
        "student": {"model": model, "options": options or {}},
        "train": {"steps": 40, "batch_size": 4},
        "runtime": {"device": "cpu", "precision": "float32"},
        **changes,
    }


def make_run(folder: Path, recipe: dict[str, Any], record: RunRecord | None = None) -> Run:
    """A run's folder with a network as it is built from a fixed seed, its statistics those of one batch."""
    folder.mkdir(parents=True)
    record = record or record_of()
    resolved = load_recipe(recipe)
    files.write_text(folder / "recipe.yaml", dump_recipe(resolved))
    assert record.best is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = 1 if resolved.task.binary else len(record.best.iou)
        options = {name: value for name, value in resolved.student.options.items() if "weights" not in name}
        spec = ModelSpec(model=resolved.student.model, options=options)
        network = build_model(spec, outputs, notices=[])
        _settle(network)
    files.write_tensors(folder / "student.safetensors", network.state_dict())
    files.write_json(folder / "record.json", dump(record))
    return Run.load(folder, trust=True)


def _settle(network: nn.Module) -> None:
    """Statistics and biases that are not those of a fresh network, which many mistakes leave as they are."""
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if name.endswith("running_mean") or (name.endswith("bias") and value.is_floating_point()):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))


class File:
    """An exported file in Python: class 0 where red is above its mean, 1 elsewhere; it keeps what it was given."""

    def __init__(self, inside: dict[str, Any] | None = None, evaluated: Evaluated | None = None, **given: Any) -> None:
        best = record_of(("a", "b")).best
        assert best is not None
        self.path = Path("student.onnx")
        self.manifest = Manifest(
            format="onnx",
            classes=("a", "b"),
            binary=given.pop("binary", False),
            network=NetworkInfo(model="smp:FPN"),
            input=InputInfo(mean=MEAN, std=STD, **given),
            inside=InsideInfo(**(inside or {})),
            evaluated=evaluated or Evaluated(),
            source=Source(run="r", seed=0, method="none", student_sha256="", recipe_sha256="", scores=best),
        )
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, self.manifest, self.path)
        self.seen.append(images)
        red = images[:, :1]
        if self.manifest.input.values == "0..255":
            red = (red / 255 - MEAN[0]) / STD[0]
        logits = red if self.manifest.binary else torch.cat([red, -red], 1)
        kind = self.manifest.inside.output
        if kind == "softmax":
            return logits.sigmoid() if self.manifest.binary else logits.softmax(1)
        if kind == "argmax":
            return (logits[:, 0] > 0).long() if self.manifest.binary else logits.argmax(1)
        return logits


def image(height: int = 12, width: int = 20) -> Tensor:
    """Red on the left, none on the right; a border that no resizing moves."""
    made = torch.zeros(3, height, width, dtype=torch.uint8)
    made[0, :, : width // 2] = 255
    return made


def expected(height: int = 12, width: int = 20) -> Tensor:
    ids = torch.ones(height, width, dtype=torch.int64)
    ids[:, : width // 2] = 0
    return ids
