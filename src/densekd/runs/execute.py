"""`train` and `distill`: from a recipe to a finished run folder."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from densekd import files
from densekd.config import Recipe, load_recipe, recipe_digest
from densekd.data.base import SegmentationSet
from densekd.evaluate import evaluate
from densekd.models.measure import Measured
from densekd.records import Cost, NetworkCost, RunRecord, Scores, TeacherCost, environment
from densekd.runs.assemble import Parts, assemble, build_distiller, build_teacher, require_teacher
from densekd.runs.folder import Run, open_folder, refuse_existing
from densekd.training.batcher import Batcher
from densekd.training.checkpointer import Checkpointer, Position
from densekd.training.loop import Loop, Progress, scores_of
from densekd.training.objective import Alone, Distilled, Objective
from densekd.training.optimizers import build_optimizer
from densekd.training.recorder import Recorder
from densekd.training.signals import Interrupted, StopSignals
from densekd.training.stepper import Stepper, StepResult

if TYPE_CHECKING:
    from densekd.runs.readiness import Readiness

_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
Kind = Literal["train", "distill"]
RecipeLike = str | Path | Mapping[str, Any] | Recipe


class Quiet:
    """Progress that shows nothing; the base of those that do."""

    def step(self, taken: int, steps: int, result: StepResult) -> None:
        """A step was taken."""

    def evaluating(self, done: int, images: int) -> None:
        """An evaluation has seen so many images."""

    def evaluated(self, taken: int, scores: Scores, best: bool) -> None:
        """An evaluation ended."""

    def said(self, line: str) -> None:
        """A line the user must see."""

    def checking(self, done: int, total: int) -> None:
        """So many files of the data set were checked."""

    def ready(self, readiness: Readiness) -> None:
        """The pre-flight ended."""


def train(
    recipe: RecipeLike,
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Quiet | None = None,
    **overrides: Any,
) -> Run:
    """Train the recipe's student alone; its teacher and terms, if any, are not used (and the run says so).

    Args:
        recipe: a file, the name of a shipped recipe, a mapping, or a loaded `Recipe`.
        out: the run's folder; default `runs/<recipe name>`.
        seed: replaces the recipe's seed.
        resume: go on with an interrupted run in that folder.
        force: start again in a folder that holds a run.
        progress: what watches; default nothing.
        overrides: keys of the recipe; `__` stands for the dot: `train__steps=100`, or `**{"train.steps": 100}`.

    Returns:
        The finished run.

    Raises:
        DensekdError: whatever is wrong with recipe, data, networks or folder, before training starts.
        Interrupted: SIGINT or SIGTERM came; the run can be resumed.
        NonFiniteError: a loss or a gradient is NaN or infinite.
    """
    return _run("train", recipe, _Options(out, seed, resume, force, progress or Quiet(), overrides))


def distill(
    recipe: RecipeLike,
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Quiet | None = None,
    **overrides: Any,
) -> Run:
    """Train the recipe's student under its teacher; arguments, result and errors as of `train`.

    A pre-flight comes first: every tap fires, every term acts, the teacher scores what it should.
    """
    return _run("distill", recipe, _Options(out, seed, resume, force, progress or Quiet(), overrides))


@dataclass(frozen=True)
class _Options:
    out: str | Path | None
    seed: int | None
    resume: bool
    force: bool
    progress: Quiet
    overrides: Mapping[str, Any]


def resolve(recipe: RecipeLike, seed: int | None, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with its overrides and seed applied."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    if seed is not None:
        dotted["seed"] = seed
    raw = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    return load_recipe(raw, dotted)


def _run(kind: Kind, recipe_like: RecipeLike, options: _Options) -> Run:
    recipe = resolve(recipe_like, options.seed, options.overrides)
    if kind == "distill":
        require_teacher(recipe)
    folder = Path(options.out) if options.out is not None else Path("runs") / recipe.name
    if not options.resume and not options.force:
        refuse_existing(folder)
    parts = assemble(recipe, watch=options.progress.checking)
    if kind == "train" and (recipe.teacher is not None or recipe.terms):
        parts.notices.append("train: the recipe's teacher and terms are not used: the student is trained alone")
    resumed = open_folder(folder, recipe, resume=options.resume, force=options.force)
    if resumed and Run.load(folder).record.status == "done":
        options.progress.said(f"{folder}: this run is done already; nothing to resume")
        return Run.load(folder)
    with StopSignals() as signals:
        _Execution(kind, recipe, folder, parts, options.progress, signals, resumed).go()
    return Run.load(folder)


class _Execution:
    """One run from its parts to its record."""

    def __init__(
        self,
        kind: Kind,
        recipe: Recipe,
        folder: Path,
        parts: Parts,
        progress: Quiet,
        signals: StopSignals,
        resumed: bool,
    ) -> None:
        self.kind, self.recipe, self.folder, self.parts = kind, recipe, folder, parts
        self.progress, self.signals, self.resumed = progress, signals, resumed
        self.readiness: Readiness | None = None
        self.terms: list[Any] = []

    def go(self) -> None:
        student = self.parts.measured(self.parts.student)
        objective, teacher = self._objective()
        for notice in self.parts.notices:
            self.progress.said(notice)
        record = self._record(student, teacher)
        recorder = Recorder(self.folder, record, self.recipe.train.log_every)
        loop = self._loop(objective, recorder)
        position = self._position(loop)
        recorder.update(status="running", error=None)
        try:
            position = loop.run(position)
            extra = self._extra_splits(loop.stepper)
        except Interrupted as stop:
            recorder.update(status="interrupted", error=str(stop), cost=self._cost(recorder))
            raise
        except BaseException as error:
            recorder.write_log()
            recorder.update(status="failed", error=f"{type(error).__name__}: {error}", cost=self._cost(recorder))
            raise
        recorder.update(status="done", extra_splits=extra, cost=self._cost(recorder), **scores_of(position))

    def _objective(self) -> tuple[Objective, Measured | None]:
        if self.kind == "train":
            return Alone(self.parts.student, self.parts.task), None
        network = build_teacher(self.parts)
        measured = self.parts.measured(network)
        distiller = build_distiller(self.parts, network)
        self.terms = list(zip(distiller.weights, self.recipe.terms, strict=True))
        from densekd.runs.readiness import check_readiness

        self.readiness = check_readiness(self.parts, distiller, network, steps=self.steps)
        self.progress.ready(self.readiness)
        self.readiness.raise_if_failed(self.recipe.preflight.on_problem)
        return Distilled(distiller, self.parts.task), measured

    @property
    def steps(self) -> int:
        return total_steps(self.recipe, len(self.parts.data.train))

    def _loop(self, objective: Objective, recorder: Recorder) -> Loop:
        recipe = self.recipe
        # Accelerate keeps its settings per process; a second run of this process may need other ones.
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(
            mixed_precision=_PRECISION[recipe.runtime.precision], cpu=self.parts.device.type == "cpu"
        )
        optimizer = build_optimizer(objective.named_parameters(), recipe.train.optimizer)
        prepared, prepared_optimizer = accelerator.prepare(objective, optimizer)
        stepper = Stepper(
            accelerator,
            prepared,
            prepared_optimizer,
            recipe.train,
            self.terms,
            steps=self.steps,
            seed=recipe.seed,
            channels_last=recipe.runtime.channels_last,
        )
        batcher = Batcher(
            self.parts.train_view(),
            len(self.parts.data.train),
            recipe.train.batch_size,
            recipe.seed,
            workers=recipe.runtime.workers,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            pin_memory=self.parts.device.type == "cuda",
        )
        checkpointer = Checkpointer(self.folder)
        score = self._score(stepper, self.parts.data.val)
        progress: Progress = self.progress
        return Loop(recipe.train, self.steps, batcher, stepper, recorder, checkpointer, score, progress, self.signals)

    def _score(self, stepper: Stepper, which: SegmentationSet) -> Callable[[Callable[[int, int], None]], Scores]:
        def score(watch: Callable[[int, int], None]) -> Scores:
            return evaluate(
                stepper.shipped,
                self.parts.eval_view(which),
                self.parts.task,
                self.parts.data.classes,
                device=self.parts.device,
                batch_size=self.recipe.train.evaluate_batch_size,
                workers=self.recipe.runtime.workers,
                precision=self.recipe.runtime.precision,
                channels_last=self.recipe.runtime.channels_last,
                watch=watch,
            )

        return score

    def _extra_splits(self, stepper: Stepper) -> dict[str, Scores]:
        return {
            name: self._score(stepper, which)(self.progress.evaluating) for name, which in self.parts.data.extra.items()
        }

    def _position(self, loop: Loop) -> Position:
        if not self.resumed:
            return Position()
        latest = loop.checkpointer.latest()
        for reason in loop.checkpointer.passed_over:
            self.progress.said(f"checkpoint passed over: {reason}")
        if latest is None:
            self.progress.said(f"{self.folder}: no checkpoint was written yet; starting from step 0")
            return Position()
        position = loop.checkpointer.load(latest, loop.stepper)
        loop.recorder.resume_at(position.taken)
        self.progress.said(f"resuming from {latest} (step {position.taken} of {self.steps})")
        return position

    def _record(self, student: Measured, teacher: Measured | None) -> RunRecord:
        recipe = self.recipe
        before = Run.load(self.folder).record.cost if self.resumed and self._has_record() else Cost()
        methods = [spec.method for spec in recipe.terms] if self.kind == "distill" else []
        return RunRecord(
            status="running",
            method="+".join(dict.fromkeys(methods)) or "none",
            seed=recipe.seed,
            split="val",
            selection="best: highest mIoU among the evaluations on val; final: the last step",
            steps=self.steps,
            epochs=round(
                self.steps * recipe.train.accumulate * recipe.train.batch_size / len(self.parts.data.train), 4
            ),
            cost=before.model_copy(update={"device": self._device_name()}),
            student=_network_cost(student),
            teacher=self._teacher_cost(teacher),
            preflight=self.readiness.as_dict() if self.readiness else None,
            warnings=list(self.parts.notices),
            environment=environment(),
            recipe_sha256=recipe_digest(recipe),
        )

    def _has_record(self) -> bool:
        return (self.folder / "record.json").is_file()

    def _device_name(self) -> str:
        device = self.parts.device
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        return f"cpu, {torch.get_num_threads()} threads"

    def _teacher_cost(self, measured: Measured | None) -> TeacherCost | None:
        if measured is None or self.recipe.teacher is None:
            return None
        spec = self.recipe.teacher.checkpoint
        path = None if spec is None else Path(spec.path)
        if path is not None and path.is_dir():
            path = path / "student.safetensors"
        return TeacherCost(
            **_network_cost(measured).model_dump(),
            miou=self.readiness.teacher_miou if self.readiness else None,
            sha256=files.sha256_file(path) if path is not None else "",
        )

    def _cost(self, recorder: Recorder) -> Cost:
        recorder.update()
        cuda = self.parts.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.parts.device) if cuda else _peak_resident_bytes()
        return recorder.record.cost.model_copy(
            update={
                "peak_memory_bytes": peak,
                "teacher_seconds_per_step": self.readiness.teacher_seconds if self.readiness else None,
            }
        )


def total_steps(recipe: Recipe, images: int) -> int:
    """Optimiser steps of the whole run; epochs are rounded up to whole steps."""
    if recipe.train.steps is not None:
        return recipe.train.steps
    per_step = recipe.train.batch_size * recipe.train.accumulate
    assert recipe.train.epochs is not None  # TrainSpec has exactly one of them
    return max(1, -int(-recipe.train.epochs * images // per_step))


def _network_cost(measured: Measured) -> NetworkCost:
    return NetworkCost(parameters=measured.parameters, dead_parameters=measured.dead_parameters, flops=measured.flops)


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
