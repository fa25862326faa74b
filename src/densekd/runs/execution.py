"""One run from its checked parts to its record: what `train` and `distill` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from accelerate import Accelerator

from densekd import files
from densekd.config import Recipe, recipe_digest
from densekd.data.base import SegmentationSet
from densekd.errors import RunError
from densekd.evaluate import evaluate
from densekd.models.digest import weights_digest
from densekd.models.measure import Measured
from densekd.records import Cost, NetworkCost, RunRecord, Scores, TeacherCost, environment
from densekd.runs.assemble import Parts, build_distiller, build_teacher
from densekd.runs.claim import Claim
from densekd.runs.engine import engine
from densekd.runs.folder import Run, start_folder
from densekd.runs.images import images_of
from densekd.runs.length import epochs_of, total_steps
from densekd.runs.lock import claimed
from densekd.runs.memory import peak_bytes, reset_peak
from densekd.runs.progress import Quiet
from densekd.runs.readiness import Readiness, check_readiness
from densekd.runs.restore import leave_finished, restore_student
from densekd.training.checkpointer import Checkpointer, Position
from densekd.training.loop import Loop, scores_of
from densekd.training.objective import Alone, Distilled, Objective
from densekd.training.optimizers import build_optimizer
from densekd.training.recorder import Recorder
from densekd.training.signals import Interrupted, StopSignals
from densekd.training.specs import TermSpec
from densekd.training.stepper import Stepper

Kind = Literal["train", "distill"]


def method_of(kind: Kind, recipe: Recipe) -> str:
    """The method a run records: the terms' methods joined by +, or none."""
    return "none" if kind == "train" else "+".join(dict.fromkeys(term.method for term in recipe.terms))


class Execution:
    """One run from its parts to its record."""

    def __init__(self, kind: Kind, parts: Parts, claim: Claim, progress: Quiet) -> None:
        self.kind, self.parts, self.recipe, self.claim = kind, parts, parts.recipe, claim
        self.folder, self.progress = claim.folder, progress
        self.before: RunRecord | None = None
        self.steps = total_steps(self.recipe, len(parts.data.train))
        self.readiness: Readiness | None = None
        self.teacher_digest = ""
        self.terms: list[tuple[str, TermSpec]] = []
        self.warnings: list[str] = []

    def go(self) -> None:
        reset_peak(self.parts.device)
        student = self.parts.measured_student()
        objective, teacher = self._objective()
        # Nothing is written before all checks have passed.
        self.folder.mkdir(parents=True, exist_ok=True)
        with claimed(self.folder):
            # The checks take a while: another process may have been in the folder since the first look at it.
            self.before = self.claim.look()
            if self.before is not None and self.before.status == "done":
                leave_finished(Run.load(self.folder), self.progress.said)
                return
            record = self._record(student, teacher, objective)
            if self.claim.resume:
                files.sweep_temporaries(self.folder)
            else:
                start_folder(self.folder, self.recipe)
            with (
                engine(self.recipe.runtime, self.parts.device) as accelerator,
                StopSignals(self.progress.said) as signals,
            ):
                recorder = Recorder(self.folder, record, self.recipe.train.log_every)
                self._train(self._loop(accelerator, objective, recorder, signals))

    def _train(self, loop: Loop) -> None:
        recorder = loop.recorder
        position = self._position(loop)
        recorder.update(status="running", error=None, warnings=self.warnings, **scores_of(position))
        try:
            position = loop.run(position)
            extra = self._extra_splits(loop, position)
        except (Interrupted, KeyboardInterrupt, SystemExit) as stop:
            said = str(stop) if isinstance(stop, Interrupted) else self._left_at_once()
            recorder.update(status="interrupted", error=said, cost=self._cost(recorder))
            raise
        except BaseException as error:
            recorder.write_log()
            recorder.update(status="failed", error=f"{type(error).__name__}: {error}", cost=self._cost(recorder))
            raise
        if position.skipped_steps:
            self._say(f"{position.skipped_steps} of {self.steps} steps were skipped by the loss scaler (overflow)")
        cost = self._cost(recorder)
        recorder.update(status="done", warnings=self.warnings, extra_splits=extra, cost=cost, **scores_of(position))

    def _left_at_once(self) -> str:
        saved = (self.folder / "checkpoints" / "latest").is_file()
        return f"left at once; {'the last checkpoint stands' if saved else 'no checkpoint was written yet'}"

    def _say(self, line: str) -> None:
        """A line that the user sees and the record keeps."""
        self.progress.said(line)
        self.warnings.append(line)

    def _objective(self) -> tuple[Objective, Measured | None]:
        if self.kind == "train":
            self._say_notices()
            return Alone(self.parts.student, self.parts.task), None
        network = build_teacher(self.parts)
        self.teacher_digest = weights_digest(network)
        measured = self.parts.measured_teacher(network)
        distiller = build_distiller(self.parts, network)
        self.terms = list(zip((plan.name for plan in distiller.plans), self.recipe.terms, strict=True))
        self._say_notices()
        self.readiness = check_readiness(
            self.parts, distiller, network, steps=self.steps, folder=self.folder, watch=self.progress.examining
        )
        self.progress.ready(self.readiness)
        for line in [
            *self.readiness.notices,
            *self.readiness.raise_if_failed(self.recipe.preflight.on_problem),
        ]:
            self._say(line)
        return Distilled(distiller, self.parts.task), measured

    def _say_notices(self) -> None:
        for notice in self.parts.notices:
            self._say(notice)

    def _loop(self, accelerator: Accelerator, objective: Objective, recorder: Recorder, signals: StopSignals) -> Loop:
        recipe = self.recipe
        optimizer = build_optimizer(objective.student, objective.extra_state(), recipe.train.optimizer)
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
        batcher = self.parts.batcher(workers=recipe.runtime.workers, pin_memory=self.parts.device.type == "cuda")
        return Loop(
            recipe.train,
            self.steps,
            batcher,
            stepper,
            recorder,
            Checkpointer(self.folder),
            self._score(stepper, self.parts.data.val),
            self.progress,
            signals,
        )

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
                evaluation=self.recipe.evaluation,
                watch=watch,
            )

        return score

    def _extra_splits(self, loop: Loop, position: Position) -> dict[str, Scores]:
        def watch(done: int, images: int) -> None:
            loop.leave_if_asked(position)
            self.progress.evaluating(done, images)

        return {name: self._score(loop.stepper, which)(watch) for name, which in self.parts.data.extra.items()}

    def _position(self, loop: Loop) -> Position:
        if not self.claim.resume:
            return Position()
        found = loop.checkpointer.latest()
        for reason in found.damage:
            self._say(f"checkpoint passed over: {reason}")
        if found.path is None:
            self.progress.said(f"{self.folder}: no checkpoint was written yet; starting from step 0")
            return Position()
        position = loop.checkpointer.load(found.path, loop.stepper)
        loop.recorder.resume_at(position.taken)
        if position.best is not None:
            restored = restore_student(self.folder, self.recipe, int(position.best["step"]))
            if restored is not None:
                self._say(restored)
        self.progress.said(f"resuming from {found.path} (step {position.taken} of {self.steps})")
        return position

    def _record(self, student: Measured, teacher: Measured | None, objective: Objective) -> RunRecord:
        recipe, before = self.recipe, self.before
        extra = objective.extra_state()
        adversaries = [adversary.network for adversary in objective.adversaries().values()]
        trained = [*([] if extra is None else [extra]), *adversaries]
        cost = {
            "device": self._device_name(),
            "extra_parameters": sum(p.numel() for module in trained for p in module.parameters()),
        }
        if before is not None:
            self.warnings = list(dict.fromkeys([*before.warnings, *self.warnings]))
        return RunRecord(
            status="running",
            method=method_of(self.kind, recipe),
            seed=recipe.seed,
            split="val",
            evaluation=recipe.evaluation.in_words(),
            selection="best: highest mIoU among the evaluations on val; final: the last step",
            steps=self.steps,
            epochs=epochs_of(recipe, len(self.parts.data.train), self.steps),
            cost=(Cost() if before is None else before.cost).model_copy(update=cost),
            student=_network_cost(student),
            teacher=None if teacher is None else self._teacher_cost(teacher),
            preflight=self.readiness.as_dict() if self.readiness else None,
            warnings=self.warnings,
            environment=environment(),
            recipe_sha256=recipe_digest(recipe),
            images=images_of(self.parts.data),
        )

    def _device_name(self) -> str:
        device = self.parts.device
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
        return f"cpu, {torch.get_num_threads()} threads"

    def _teacher_cost(self, measured: Measured) -> TeacherCost:
        digest = self.teacher_digest
        began = self.before.teacher if self.before is not None else None
        if began is not None and began.sha256 != digest:
            raise RunError(
                f"{self.folder}: the teacher's weights are other ones than those this run began with; put them back, "
                "or start again with --force"
            )
        miou = self.readiness.teacher_miou if self.readiness else None
        return TeacherCost(**_network_cost(measured).model_dump(), miou=miou, sha256=digest)

    def _cost(self, recorder: Recorder) -> Cost:
        recorder.update()
        teacher = self.readiness.teacher_seconds if self.readiness else None
        peaks = [peak_bytes(self.parts.device), self.before.cost.peak_memory_bytes if self.before else None]
        return recorder.record.cost.model_copy(
            update={
                "peak_memory_bytes": max((peak for peak in peaks if peak is not None), default=None),
                "teacher_seconds_per_step": teacher,
            }
        )


def _network_cost(measured: Measured) -> NetworkCost:
    return NetworkCost(parameters=measured.parameters, dead_parameters=measured.dead_parameters, flops=measured.flops)
