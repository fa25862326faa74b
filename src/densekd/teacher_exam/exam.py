"""Examine a teacher on a few validation images and name what is wrong with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densekd.errors import DataError
from densekd.evaluate import View, confusion, spread
from densekd.inference import WHOLE, EvaluationSpec
from densekd.tasks.segmentation import SegmentationTask
from densekd.teacher_exam.conventions import Convention, Triple, conventions
from densekd.teacher_exam.reading import Reading, read

_PROBE_IMAGES = 8
_CLEAR_RISE = 0.05
_SMALL_RISE = 0.02
_TRAINED_KAPPA = 0.40
_LEAST_KAPPA = 0.30
_LEAST_LEAD = 0.01
_FEW_IMAGES = 8
_LISTED = 6

Prepare = Callable[[Tensor], Tensor]


@dataclass
class Exam:
    """What an exam found.

    Attributes:
        miou, pixel_accuracy: the teacher's, fractions from 0 to 1, over all examined images.
        kappa: its agreement with the labels beyond chance (see `densekd.teacher_exam.reading.Reading`).
        images: how many were examined.
        student_miou: of the student on the same images, where one was given.
        normalisations: mIoU under each convention that was tried, on `probe_images` of the images.
        problems: each a sentence that names a cause and what to do; empty for a healthy teacher.
        notices: what limits the exam.
        seconds: time it took.
    """

    miou: float
    pixel_accuracy: float
    kappa: float
    images: int
    student_miou: float | None = None
    normalisations: dict[str, float] = field(default_factory=dict)
    probe_images: int = 0
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for a record."""
        return asdict(self)


def examine_teacher(
    teacher: nn.Module,
    view: View,
    task: SegmentationTask,
    class_names: tuple[str, ...],
    *,
    device: torch.device,
    mean: Triple,
    std: Triple,
    prepare: Prepare | None = None,
    student: nn.Module | None = None,
    batch_size: int = 8,
    precision: str = "float32",
    channels_last: bool = False,
    evaluation: EvaluationSpec = WHOLE,
    watch: Callable[[int, int], None] | None = None,
) -> Exam:
    """Score a teacher on every item of `view` and say what is wrong with it.

    The causes, in the order in which they are looked for; each names itself alone, so that an unloaded head is not
    also called "worse than the student":

    1. **Permuted classes** - another assignment of its channels to the classes scores far higher than the numbering
       (thresholds and their reasons: `densekd.teacher_exam.reading.read`). Every later score is taken with the
       channels untangled.
    2. **Wrong normalisation** - on 8 of the images (a quarter of them if that is more) every common convention is
       tried; the best one is confirmed on all images and named when mIoU rises by 0.05 or more (or by 0.02 or more
       where that halves the distance to 1), kappa does not fall, and kappa is then 0.40 or more ("moderate"), which
       untrained networks do not reach by the luck of seven tries. A healthy network loses under any convention other
       than its own. A wrong one may make a good network answer one class everywhere: hence before the next cause.
    3. **Unloaded head** - kappa below 0.30, which untrained heads on good features still reach by luck, or a mIoU no
       higher than that of always answering the most frequent class. Kappa is 0 for a constant answer however
       frequent its class, so that a foreground of 3% of the pixels does not hide it.
    4. **No better than the student** - only where `student` is given: the lead in mIoU on the same images is below
       0.01, about the noise of a few dozen images. A teacher of the student's own strength makes it worse.

    Args:
        teacher: takes a batch of images, returns what `task.predict` understands.
        view: items as of `densekd.data.views.EvalView`, all of them examined (see `densekd.evaluate.some_of`).
        task: turns outputs into class ids.
        class_names: the names of the classes, for the sentences.
        device: where to compute; the networks are there already.
        mean, std: the normalisation of what the teacher receives now, that is after `prepare`, on values in [0, 1].
        prepare: from the view's images to the teacher's (its own normalisation and size).
        student: a network that is trained already; it receives the view's images as they are.
        batch_size, precision, channels_last, evaluation: as in `densekd.evaluate.confusion`.
        watch: called with (images seen, images in all) while the first score is taken.

    Raises:
        DataError: the view is empty or its labels hold void alone.
    """
    begin = time.perf_counter()
    items = [view[place] for place in range(len(view))]
    if not items:
        raise DataError("teacher exam: expected validation images, got none")
    examiner = _Examiner(teacher, items, task, device, batch_size, precision, channels_last, evaluation, prepare)
    matrix = examiner.matrix(watch=watch)
    if not matrix.sum():
        raise DataError(f"teacher exam: the {len(items)} validation images hold no labelled pixel")
    reading = read(matrix)
    exam = Exam(reading.miou, reading.pixel_accuracy, reading.kappa, len(items))
    if len(items) < _FEW_IMAGES:
        exam.notices.append(f"teacher exam: only {len(items)} images: what it says is weak")
    if items[0]["image"].shape[0] == 3:
        reading = _name_normalisation(exam, examiner, reading, mean, std)
    if reading.moved:
        exam.problems.insert(0, _permuted(reading, class_names, task.binary))
    if not exam.problems:
        _name_unloaded(exam, reading, class_names)
    if student is not None:
        alone = _Examiner(student, items, task, device, batch_size, precision, channels_last, evaluation, None)
        exam.student_miou = read(alone.matrix()).miou
        if not exam.problems and exam.miou < exam.student_miou + _LEAST_LEAD:
            exam.problems.append(_no_better(exam.miou, exam.student_miou, len(items)))
    exam.seconds = time.perf_counter() - begin
    return exam


@dataclass
class _Examiner:
    network: nn.Module
    items: list[Any]
    task: SegmentationTask
    device: torch.device
    batch_size: int
    precision: str
    channels_last: bool
    evaluation: EvaluationSpec
    prepare: Prepare | None

    def matrix(
        self,
        convert: Prepare | None = None,
        items: list[Any] | None = None,
        watch: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """The confusion matrix, the images changed by `convert` after they are prepared."""
        steps = [step for step in (self.prepare, convert) if step is not None]

        def prepare(image: Tensor) -> Tensor:
            for step in steps:
                image = step(image)
            return image

        meter = confusion(
            self.network,
            self.items if items is None else items,
            self.task,
            device=self.device,
            batch_size=self.batch_size,
            precision=self.precision,
            channels_last=self.channels_last,
            evaluation=self.evaluation,
            watch=watch,
            prepare=prepare,
        )
        return meter.matrix.numpy()


def _name_normalisation(exam: Exam, examiner: _Examiner, reading: Reading, mean: Triple, std: Triple) -> Reading:
    """Try the common conventions. Returns the reading under the best one, which is the one in use if none is."""

    def under(convention: Convention, items: list[Any] | None = None) -> Reading:
        return read(examiner.matrix(lambda image: convention.apply(image, mean, std), items))

    count = max(_PROBE_IMAGES, len(examiner.items) // 4)
    probe = [examiner.items[place] for place in spread(len(examiner.items), count)]
    scores = {convention: under(convention, probe).untangled_miou for convention in conventions(mean, std)}
    exam.normalisations = {convention.name: score for convention, score in scores.items()}
    exam.probe_images = len(probe)
    best = max(scores, key=lambda convention: scores[convention])
    if not _clearly_better(read(examiner.matrix(None, probe)).untangled_miou, scores[best]):
        return reading
    found = under(best)
    lowest = max(_TRAINED_KAPPA, reading.untangled_kappa)
    if not _clearly_better(reading.untangled_miou, found.untangled_miou) or found.untangled_kappa < lowest:
        return reading
    exam.problems.append(
        f"wrong normalisation: the teacher's mIoU on {exam.images} validation images rises from "
        f"{_percent(reading.untangled_miou)} to {_percent(found.untangled_miou)} when it gets {best.name}; "
        f"{best.advice()}"
    )
    return found


def _clearly_better(before: float, after: float) -> bool:
    rise = after - before
    return rise >= _CLEAR_RISE or (rise >= _SMALL_RISE and rise >= (1 - before) / 2)


def _permuted(reading: Reading, names: tuple[str, ...], binary: bool) -> str:
    rise = f"mIoU {_percent(reading.miou)} as numbered, {_percent(reading.untangled_miou)} with the channels reordered"
    if binary:
        return (
            f"permuted classes: the teacher's logit is high where {names[0]!r} is, not {names[1]!r} ({rise}); negate it"
        )
    pairs = [f"channel {names[channel]!r} answers to {names[row]!r}" for channel, row in reading.moved[:_LISTED]]
    more = f" and {len(reading.moved) - _LISTED} more" if len(reading.moved) > _LISTED else ""
    shifts = {(channel - row) % len(names) for channel, row in reading.moved}
    shift = (
        " (all shifted alike: is a background counted as class 0 in one of the two?)"
        if len(shifts) == 1 < len(names) - 1
        else ""
    )
    return (
        f"permuted classes: the teacher's {', '.join(pairs)}{more}{shift} ({rise}); reorder the rows of "
        "its last layer, give their order as teacher.class_names, or the ids of the labels (data.masks.id_map)"
    )


def _name_unloaded(exam: Exam, reading: Reading, names: tuple[str, ...]) -> None:
    if reading.kappa >= _LEAST_KAPPA and reading.miou > reading.constant_miou:
        return
    favourite, share = reading.favourite
    if share > 0.95:
        found = f"it answers {names[favourite]!r} for {_percent(share)} of the pixels"
    else:
        found = f"its agreement with the labels is little more than chance (kappa {reading.kappa:.2f})"
    doubt = ""
    if reading.reordered_kappa >= _TRAINED_KAPPA:
        doubt = (
            f" (or its classes are permuted: with its channels reordered kappa would be {reading.reordered_kappa:.2f})"
        )
    exam.problems.append(
        f"unloaded head: {found}; mIoU {_percent(reading.miou)}, always answering {names[reading.most_frequent]!r} "
        f"would give {_percent(reading.constant_miou)}. Its head, or all of it, has no trained weights for these "
        f"classes: check teacher.checkpoint (path, key, strip_prefix), or train it longer{doubt}"
    )


def _no_better(teacher: float, student: float, images: int) -> str:
    return (
        f"no better than the student: mIoU {_percent(teacher)} against the student's {_percent(student)} on the same "
        f"{images} validation images. Such a teacher makes the student worse: train it longer or take a larger one"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"
