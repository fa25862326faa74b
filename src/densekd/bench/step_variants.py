"""The ways in which `densekd bench step` takes one training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.bench.loss import TEMPERATURE, textbook
from densekd.bench.step_pairs import CLASSES, VOID, Material
from densekd.distiller import Distiller, Term
from densekd.evaluate import autocast
from densekd.losses import ChannelWise
from densekd.taps import TapReader, preserved
from densekd.tasks.segmentation import SegmentationTask
from densekd.tasks.specs import SegmentationSpec
from densekd.teacher import Batch, EngineReport, FrozenTeacher, TeacherSource, freeze_teacher
from densekd.teacher_cache import CachedTeacher, CacheKey, MapReader, MapWriter
from densekd.training.evidence import HIDDEN
from densekd.training.last_upsampling import LastUpsampling, observed
from densekd.training.objective import Alone, Distilled, Samples

PUBLIC = "public"
STUDENT = "student"
_WEIGHT = 3.0
_RATE, _MOMENTUM = 1e-4, 0.9
_TAP, _TERM = "logits", "channelwise"

#: every variant but the public one is a run's own objective (`densekd.training.objective`): student, teacher and images
#: with the channels last, the class map's last up-sampling left to the task's loss
DESCRIBED = {
    PUBLIC: "teacher and student float32, plain layout, eager; the loss as public codes write it",
    "exact": "teacher with batch norms folded and, where faster, Winograd convolutions, float32; our loss",
    "exact+compile": "the same, the teacher compiled",
    "teacher bf16": "teacher in bfloat16, student float32",
    "teacher bf16, student bf16": "teacher in bfloat16, student under autocast",
    "cached maps": "the teacher's maps read from a stored set, student float32",
    STUDENT: "the student alone, float32: its task loss and update, no teacher",
}


Losses = tuple[Tensor, Mapping[str, Tensor]]


@dataclass
class Variant:
    """One way to take a step: calling it is forward, losses, backward and update.

    Attributes:
        forward: the loss of one batch with its graph, and its parts by name, detached.
        student: its own copy of the student.
        error: of the teacher's softened maps against the plain float32 teacher, relative L2; None without a teacher.
        report: what was done to make the teacher fast.
        close: gives back what it holds.
    """

    name: str
    student: nn.Module
    forward: Callable[[], Losses]
    device: torch.device
    error: float | None = None
    report: EngineReport | None = None
    close: Callable[[], None] = lambda: None
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=_RATE, momentum=_MOMENTUM)

    def __call__(self) -> None:
        total, _ = self.forward()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def losses(self) -> dict[str, float]:
        """The parts of the loss of the student in evaluation mode, as dropout differs with the layout."""
        self.student.eval()
        with torch.no_grad():
            _, parts = self.forward()
        self.student.train()
        return {name: float(value) for name, value in parts.items() if not name.startswith(HIDDEN)}


def public(material: Material) -> Variant:
    """The step as it is usually written: hooks on both networks, everything in float32 and in the plain layout."""
    student = copy.deepcopy(material.student).train()
    teacher = copy.deepcopy(material.teacher)
    readers = [TapReader(network, [_TAP], who=who) for network, who in ((teacher, "teacher"), (student, "student"))]
    images = material.images

    def forward() -> Losses:
        with torch.no_grad():
            _, theirs = readers[0].run(teacher, (images,), {})
        output, ours = readers[1].run(student, (images,), {})
        task = F.cross_entropy(output, material.labels, ignore_index=VOID)
        distilled = _WEIGHT * textbook(ours[_TAP], theirs[_TAP])
        return task + distilled, {"cross_entropy": task.detach(), _TERM: distilled.detach()}

    return Variant(PUBLIC, student, forward, images.device, error=0.0)


def fast(
    name: str,
    material: Material,
    *,
    dtype: str,
    compiled: bool = False,
    precision: str = "float32",
    cuda_graph: bool | str = "auto",
) -> Variant:
    """The step with the teacher made fast, and `precision` as the student's autocast."""
    images = material.images
    teacher = freeze_teacher(
        material.teacher,
        example=images,
        taps=[_TAP],
        dtype=dtype,
        compile=compiled,
        cuda_graph=cuda_graph,
        temperature=TEMPERATURE,
    )
    return _distilled(name, material, teacher, lambda: autocast(images.device, precision))


def cached(material: Material, folder: Path) -> Variant:
    """The step with maps read from a set in `folder`, written here from the plain teacher's maps in bfloat16."""
    teacher = freeze_teacher(material.teacher, example=material.images, taps=[_TAP], dtype="float32")
    maps = teacher.maps(Batch((material.images,), {}))[_TAP].float().cpu()
    teacher.close()
    key, count = CacheKey({"bench": "step"}), len(maps)
    shapes = {_TAP: (maps.shape[1], maps.shape[2], maps.shape[3])}
    with MapWriter(folder, key, taps=shapes, views=1, images=count, temperature=TEMPERATURE) as writer:
        for index in range(count):
            writer.write(0, index, {_TAP: maps[index]})
        summary = writer.finish()
    source = CachedTeacher(MapReader(folder, key))
    samples = [(0, index) for index in range(count)]
    found = _distilled("cached maps", material, source, lambda: autocast(material.images.device, "float32"), samples)
    found.error = summary.error[_TAP].mean
    return found


def alone(material: Material) -> Variant:
    """The student's plain step."""
    student = _last(material.student)
    images = material.images.contiguous(memory_format=torch.channels_last)
    objective = Alone(student, _task(), _left_to_the_loss(student, images, material.labels))
    return Variant(STUDENT, student, lambda: objective(images, material.labels, None), images.device)


def _task() -> SegmentationTask:
    return SegmentationTask(SegmentationSpec(), CLASSES, VOID, tuple(map(str, range(CLASSES))))


def _left_to_the_loss(student: nn.Module, images: Tensor, labels: Tensor) -> LastUpsampling | None:
    """The student's last up-sampling, where it gives the size of the labels: a run leaves it to the task's loss."""
    with preserved(student), torch.no_grad(), observed(student) as seen:
        student(images)
    size = (labels.shape[1], labels.shape[2])
    calls = seen.last.calls.values()
    return seen.last if calls and all(call.upsampling.size == size for call in calls) else None


def _distilled(
    name: str,
    material: Material,
    source: TeacherSource,
    precision: Callable[[], AbstractContextManager[Any]],
    samples: Samples | None = None,
) -> Variant:
    student = _last(material.student)
    images = material.images.contiguous(memory_format=torch.channels_last)
    terms = [Term(ChannelWise(temperature=TEMPERATURE), student=_TAP, teacher=_TAP, weight=_WEIGHT, name=_TERM)]
    distiller = Distiller(student, source, terms, images)
    objective = Distilled(distiller, _task(), _left_to_the_loss(student, images, material.labels))
    objective.train()

    def forward() -> Losses:
        with precision():
            return objective(images, material.labels, None, samples=samples)

    found = Variant(name, student, forward, images.device, close=distiller.close)
    if isinstance(source, FrozenTeacher):
        found.report, found.error = source.report, source.report.errors[_TAP].softened
    return found


def _last(student: nn.Module) -> nn.Module:
    moved: nn.Module = copy.deepcopy(student).to(memory_format=torch.channels_last).train()
    return moved
