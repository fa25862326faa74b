"""Is a distillation ready to run? Terms, teacher, time, memory and disk, in one small table, within seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from densekd.distiller import Distiller
from densekd.doctor import Report, preflight
from densekd.errors import DensekdError
from densekd.evaluate import autocast, evaluation_mode, some_of
from densekd.models.auxiliary import auxiliary_of
from densekd.runs import words
from densekd.runs.assemble import Parts
from densekd.runs.forecast import Forecast, forecast, training_batch
from densekd.runs.teacher_view import scored_teacher
from densekd.taps import holds_class_map, main_output, preserved
from densekd.taps.outputs import describe
from densekd.teacher import EngineReport, FrozenTeacher
from densekd.teacher_exam import Exam, examine_teacher
from densekd.training.last_upsampling import putting_off
from densekd.training.objective import task_loss


class NotReadyError(DensekdError, RuntimeError):
    """The checks before a distillation named a problem."""


@dataclass
class Readiness:
    """What the checks before a distillation found.

    Attributes:
        report: the terms on one training batch (`densekd.preflight`).
        exam: the teacher on a few validation images; None when the recipe asks for none, or `unscored` says why.
        forecast: what the run will cost; None when the forward pass itself fails (`problems` says how).
        problems: sentences, each with its cause and what to do; a run that stops on problems stops on any of them.
        notices: worth knowing, and not said before.
        seconds: time the checks took.
        unscored: why a teacher that should be examined was not; else empty.
        images: how many there are to train on, with and without labels, and in a batch.
        engine: what was done to make the teacher fast, and what that changed; None for the plain one.
    """

    report: Report
    exam: Exam | None
    forecast: Forecast | None
    steps: int
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    seconds: float = 0.0
    unscored: str = ""
    images: str = ""
    engine: EngineReport | None = None

    @property
    def teacher_miou(self) -> float | None:
        """The teacher's mIoU on the examined images; None when there was no exam."""
        return None if self.exam is None else self.exam.miou

    @property
    def teacher_seconds(self) -> float | None:
        """Seconds the teacher takes for one micro-batch; None when it could not be timed."""
        return None if self.forecast is None else self.forecast.teacher_seconds

    def rows(self) -> list[dict[str, str]]:
        """One small table: what was looked at, what was found, the verdict."""
        return list(self._rows())

    def _rows(self) -> Iterator[dict[str, str]]:
        yield _row("training images", self.images, "-")
        for term in self.report.terms:
            verdict = "ok" if term.ok else "problem"
            if term.ratio is None:
                found = term.problem or f"weight {term.weight:g}"
            else:
                found = (
                    f"weight {term.weight:g}, value {term.value:.3g}, gradient {term.ratio:.2g} of the task's "
                    f"(equal at weight {term.proposed_weight:g})"
                )
            yield _row(f"term {term.name}", found, verdict)
        yield from self._teacher_rows()
        if self.engine is not None:
            yield from _engine_rows(self.engine)
        if self.forecast is not None:
            yield from self._cost_rows(self.forecast)

    def _teacher_rows(self) -> Iterator[dict[str, str]]:
        if self.exam is None:
            yield _row("teacher", self.unscored or "not examined (preflight.teacher_images is 0)", "-")
            return
        named = ", ".join(problem.split(":")[0] for problem in self.exam.problems)
        found = f"mIoU {100 * self.exam.miou:.1f}, pixel accuracy {100 * self.exam.pixel_accuracy:.1f}"
        yield _row(f"teacher on {self.exam.images} images", found, named or "ok")
        if self.exam.student_miou is not None:
            yield _row("student before training", f"mIoU {100 * self.exam.student_miou:.1f}", "-")

    def _cost_rows(self, cost: Forecast) -> Iterator[dict[str, str]]:
        yield _row(
            "time per step",
            f"{words.seconds(cost.step_seconds)}, of it the teacher {words.seconds(cost.teacher_seconds)}; "
            f"loading {words.seconds(cost.data_seconds)}",
            "-",
        )
        evaluations = "1 evaluation" if cost.evaluations == 1 else f"{cost.evaluations} evaluations"
        yield _row(
            "time to the end",
            f"about {words.duration(cost.total_seconds)}: {self.steps} steps, {evaluations} of "
            f"{words.seconds(cost.evaluation_seconds)}",
            "-",
        )
        yield _row("peak memory", words.size(cost.peak_memory_bytes), "-")
        enough = "ok" if cost.disk_bytes <= cost.disk_free_bytes else "problem"
        yield _row("disk", f"{words.size(cost.disk_bytes)} of {words.size(cost.disk_free_bytes)} free", enough)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for `record.json`."""
        return {
            "images": self.images,
            "problems": list(self.problems),
            "notices": list(self.notices),
            "terms": self.report.as_dict(),
            "teacher": None if self.exam is None else self.exam.as_dict(),
            "forecast": None if self.forecast is None else self.forecast.as_dict(),
            "seconds": self.seconds,
        }

    def raise_if_failed(self, on_problem: Literal["stop", "warn"] = "stop") -> list[str]:
        """Stop on problems, or hand them back as lines that the user must see.

        Raises:
            NotReadyError: there is a problem and `on_problem` is "stop"; the message holds all of them.
        """
        if self.problems and on_problem == "stop":
            raise NotReadyError(
                "\n".join(f"pre-flight: {problem}" for problem in self.problems)
                + "\npre-flight: nothing was trained; preflight.on_problem=warn trains all the same"
            )
        return [f"pre-flight: {problem}" for problem in self.problems]


def check_readiness(
    parts: Parts,
    distiller: Distiller,
    teacher: nn.Module,
    *,
    steps: int,
    folder: Path | None = None,
    watch: Callable[[int, int], None] | None = None,
    terms_alone: bool = False,
    before_cost: Callable[[], None] | None = None,
) -> Readiness:
    """Check a distillation on real data before it runs; everything is left as it was.

    On the run's first training batch: `densekd.preflight`, and a few timed steps. On
    `recipe.preflight.teacher_images` validation images: `densekd.teacher_exam.examine_teacher`, the teacher with its
    own input, against the student where that starts from a checkpoint. A teacher that gives features has no class map
    to score: a notice says so.

    Args:
        parts: data, task, student and device of the run.
        distiller: built on the parts' student and the teacher.
        teacher: the live network.
        steps: optimiser steps of the whole run.
        folder: where the run will be, for the free disk; default the working directory.
        watch: called with (images seen, images in all) during the exam.
        terms_alone: `densekd.preflight` alone, as in all but the first of several processes.
        before_cost: what puts the distiller into the state in which it will train, once terms and teacher have passed
            and before steps are timed.
    """
    begin = time.perf_counter()
    engine = distiller.source.report if isinstance(distiller.source, FrozenTeacher) else None
    task, recipe = parts.task, parts.recipe
    batch, data_seconds = training_batch(parts)
    on_device = {
        "image": batch["image"].to(parts.device).contiguous(memory_format=parts.layout),
        "label": batch["label"].to(parts.device),
        "valid": batch["valid"].to(parts.device),
    }
    head = auxiliary_of(parts.student)  # beside the distiller: its statistics are kept as those of the student are
    kept = nullcontext() if head is None else preserved(head)
    with (
        kept,
        autocast(parts.device, recipe.runtime.precision),
        putting_off(distiller.student, parts.last) as put_off,  # as every training step does
    ):
        report = preflight(
            distiller, on_device, lambda output, labels: task_loss(task, output, labels, None, put_off())[0]
        )
    exam, unscored = None, ""
    if recipe.preflight.teacher_images and not terms_alone:
        unscored = _gives_features(parts, distiller, teacher, on_device["image"][:1])
        exam = None if unscored else _exam(parts, distiller, teacher, watch)
    stops = recipe.preflight.on_problem == "stop" and bool(report.problems or (exam is not None and exam.problems))
    if before_cost is not None and not stops:
        before_cost()
    cost = None
    if all(term.value is not None for term in report.terms) and not terms_alone:
        cost = forecast(parts, distiller, batch, data_seconds, steps, folder or Path.cwd())
    problems = [*report.problems, *([] if exam is None else exam.problems)]
    if cost is not None and cost.disk_bytes > cost.disk_free_bytes:
        problems.append(
            f"disk: the run needs about {words.size(cost.disk_bytes)}, and {words.size(cost.disk_free_bytes)} are "
            "free; free some, or choose another folder with --out"
        )
    notices = [notice for notice in report.notices if notice not in distiller.notices]
    notices += [] if exam is None else exam.notices
    notices += [f"pre-flight: {unscored}"] if unscored else []
    seconds = time.perf_counter() - begin
    return Readiness(report, exam, cost, steps, problems, notices, seconds, unscored, parts.counts(), engine)


def _gives_features(parts: Parts, distiller: Distiller, teacher: nn.Module, image: Tensor) -> str:
    """What to say of a teacher whose output is no map of the task's classes; empty where it is one."""
    image = image if distiller.teacher_images is None else distiller.teacher_images(image)
    precision = autocast(parts.device, parts.recipe.runtime.precision)
    with preserved(teacher), evaluation_mode(teacher), torch.no_grad(), precision:
        output = teacher(image)
    expected = parts.teacher_outputs()
    if holds_class_map(output) and main_output(output).shape[1] == expected:
        return ""
    return f"teacher gives features: not scored (its output is {describe(output)}, a class map has {expected} channels)"


def _exam(parts: Parts, distiller: Distiller, teacher: nn.Module, watch: Callable[[int, int], None] | None) -> Exam:
    recipe, augment = parts.recipe, parts.recipe.data.augment
    own = recipe.teacher
    trained = recipe.student.checkpoint is not None
    view = some_of(parts.eval_view(), recipe.preflight.teacher_images)
    with preserved(teacher, parts.student), torch.no_grad(), scored_teacher(parts, teacher, view) as known:
        return examine_teacher(
            teacher,
            known,
            parts.task,
            parts.data.classes,
            device=parts.device,
            mean=augment.mean if own is None or own.mean is None else own.mean,
            std=augment.std if own is None or own.std is None else own.std,
            prepare=distiller.teacher_images,
            student=parts.student if trained else None,
            batch_size=recipe.train.evaluate_batch_size,
            precision=recipe.runtime.precision,
            channels_last=recipe.runtime.channels_last,
            evaluation=recipe.evaluation,
            watch=watch,
        )


def _engine_rows(report: EngineReport) -> Iterator[dict[str, str]]:
    """What the fast copy is on one line, then what it changed."""
    found = dict(report.rows())
    done = [
        found.pop("number format"),
        f"{found.pop('batch norms folded')} batch norms folded",
        found.pop("also"),
        f"on {found.pop('device')}",
    ]
    yield _row("teacher made fast", f"{', '.join(done)}; {found.pop('chosen because')}", "-")
    for what, value in found.items():
        yield _row(f"teacher made fast: {what}", value, "-")


def _row(what: str, value: str, verdict: str) -> dict[str, str]:
    return {"what": what, "value": value, "verdict": verdict}
