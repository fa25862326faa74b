"""What a run is made of, before any training state exists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from densekd.config import Recipe
from densekd.data.base import SegmentationSet
from densekd.data.build import DataBundle
from densekd.data.transforms import EvalTransform, TrainTransform
from densekd.data.unlabelled import Joined
from densekd.data.views import EvalView, TrainView
from densekd.launch import Launch
from densekd.models.measure import Measured, measure
from densekd.records import RunRecord
from densekd.runs.asked_teacher import require_teacher, teacher_input
from densekd.runs.mixing import in_words
from densekd.runs.share import Share, share_out
from densekd.runs.teacher_classes import TeacherClasses, teacher_classes
from densekd.tasks.segmentation import SegmentationTask
from densekd.teacher import TeacherImages
from densekd.training.batcher import Batcher, View
from densekd.training.last_upsampling import Ending, LastUpsampling
from densekd.training.specs import ViewsSpec


@dataclass
class Parts:
    """The parts of a run; `densekd.runs.assemble` makes them."""

    recipe: Recipe
    data: DataBundle
    task: SegmentationTask
    student: nn.Module
    device: torch.device
    notices: list[str] = field(default_factory=list)
    """Lines for the user, all of them."""
    shown: list[str] = field(default_factory=list)
    """Those that the user has seen."""
    unlabelled_per_batch: int = 0
    launch: Launch = field(default_factory=Launch)
    before: RunRecord | None = None
    """Of the run to go on with."""
    replica: nn.Module | None = None
    """A second student, to be evaluated where the first is sharded."""
    ending: Ending | None = None
    """How the student's first training pass ended, once it is rehearsed."""
    last: LastUpsampling | None = None
    """The up-samplings that the student leaves to the task's loss in training."""
    views: ViewsSpec | None = None
    """The fixed views of each training image; None: new ones in every epoch."""
    seen: Callable[[TrainView], View] | None = None
    """Checks the images of a batch against what the teacher saw when its maps were stored."""

    @property
    def unseen(self) -> list[str]:
        """Notices that the user has yet to be shown, each once."""
        return [line for line in dict.fromkeys(self.notices) if line not in self.shown]

    @property
    def share(self) -> Share:
        """How the images of a step are shared out over processes and micro-batches."""
        return share_out(self.recipe.train, self.launch, self.before)

    def train_view(self) -> TrainView:
        """The labelled training images, and behind them the unlabelled ones where the run has any."""
        transform = TrainTransform(self.recipe.data.augment, self.data.ignore_index)
        more = self.data.unlabelled
        source = self.data.train if more is None else Joined(self.data.train, more)
        if self.views is None:
            return TrainView(source, transform, seed=self.recipe.seed)
        return TrainView(source, transform, seed=self.views.seed, views=self.views.count)

    def batcher(self, *, workers: int = 0, pin_memory: bool = False) -> Batcher:
        """The run's training batches."""
        view = self.train_view()
        return Batcher(
            view if self.seen is None else self.seen(view),
            len(self.data.train),
            self.recipe.train.batch_size,
            self.recipe.seed,
            workers=workers,
            patience=self.recipe.runtime.patience,
            rank=self.launch.rank,
            world=self.launch.world,
            pin_memory=pin_memory,
            unlabelled=0 if self.data.unlabelled is None else len(self.data.unlabelled),
            unlabelled_per_batch=self.unlabelled_per_batch,
        )

    def counts(self) -> str:
        """How many images there are to train on, and in a batch."""
        more = 0 if self.data.unlabelled is None else len(self.data.unlabelled)
        return in_words(len(self.data.train), self.recipe.train.batch_size, more, self.unlabelled_per_batch)

    def eval_view(self, which: SegmentationSet | None = None) -> EvalView:
        return EvalView(which or self.data.val, EvalTransform(self.recipe.data.augment))

    def example(self, count: int = 2) -> torch.Tensor:
        """A few training images as the student sees them."""
        view = self.train_view()
        images = [view[(0, index % len(self.data.train))]["image"] for index in range(count)]
        stacked = torch.stack(images).to(self.device)
        return stacked.contiguous(memory_format=self.layout)

    def stored_size(self) -> tuple[int, int]:
        """Height and width of the first training image as it is stored."""
        height, width = self.data.train.load(0).label.shape
        return height, width

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.recipe.runtime.channels_last else torch.contiguous_format

    def to_device(self, network: nn.Module) -> nn.Module:
        return network.to(device=self.device, memory_format=self.layout)  # type: ignore[call-overload]

    def measured_student(self) -> Measured:
        return measure(self.student, self.example(1))

    def teacher_classes(self) -> TeacherClasses | None:
        """The teacher's own label set; None where it has that of the data."""
        return teacher_classes(require_teacher(self.recipe), self.data.classes, self.task.num_outputs)

    def teacher_outputs(self) -> int:
        """Channels that the teacher's class map has."""
        own = self.teacher_classes()
        return self.task.num_outputs if own is None else len(own.names)

    def measured_teacher(self, teacher: nn.Module) -> Measured:
        return measure(teacher, self.teacher_example(1))

    def teacher_example(self, count: int = 2) -> torch.Tensor:
        """A few training images as the teacher sees them."""
        spec = teacher_input(self.recipe)
        images = self.example(count)
        return images if spec is None else TeacherImages(spec).to(self.device)(images)
