"""What a run records of itself: its plan at the start, its cost at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from densekd.config import recipe_digest
from densekd.errors import RunError
from densekd.models.measure import Measured
from densekd.records import CacheRecord, Cost, NetworkCost, RunRecord, TeacherCost, environment
from densekd.runs.assemble import Parts
from densekd.runs.images import images_of, left_out_of
from densekd.runs.length import epochs_of
from densekd.runs.memory import peak_bytes
from densekd.runs.readiness import Readiness
from densekd.teacher import EngineReport
from densekd.training.objective import Objective
from densekd.training.recorder import Recorder


@dataclass
class Account:
    """The parts of a run's record.

    Attributes:
        method: what the run records as its method.
        steps: of the whole run.
        before: the record of the run that is gone on with.
        readiness: what the checks before a distillation found.
        teacher_digest: of the teacher's weights; empty without a teacher.
        engine: what was done to make the teacher fast.
        stored: the teacher's maps that the run reads; None where the teacher runs in every step.
        warnings: lines that the user sees and the record keeps.
    """

    folder: Path
    method: str
    steps: int
    before: RunRecord | None = None
    readiness: Readiness | None = None
    teacher_digest: str = ""
    engine: EngineReport | None = None
    stored: CacheRecord | None = None
    warnings: list[str] = field(default_factory=list)

    def begin(self, parts: Parts, student: Measured, teacher: Measured | None, objective: Objective) -> RunRecord:
        """The record of a run that starts or goes on; its warnings are those of the run before too.

        Raises:
            RunError: the run before had another teacher.
        """
        recipe, before = parts.recipe, self.before
        extra = objective.extra_state()
        adversaries = [adversary.network for adversary in objective.adversaries().values()]
        trained = [*([] if extra is None else [extra]), *adversaries]
        cost = {
            "device": _device_name(parts),
            "extra_parameters": sum(p.numel() for module in trained for p in module.parameters()),
        }
        if before is not None:
            self.warnings = list(dict.fromkeys([*before.warnings, *self.warnings]))
        return RunRecord(
            status="running",
            method=self.method,
            seed=recipe.seed,
            split="val",
            evaluation=recipe.evaluation.in_words(),
            selection="best: highest mIoU among the evaluations on val; final: the last step",
            steps=self.steps,
            epochs=epochs_of(self.steps, parts.share.images, len(parts.data.train)),
            processes=parts.launch.world if before is None else before.processes,
            cost=(Cost() if before is None else before.cost).model_copy(update=cost),
            student=_network_cost(student),
            teacher=None if teacher is None else self._teacher_cost(teacher),
            cache=self.stored,
            preflight=self.readiness.as_dict() if self.readiness else None,
            warnings=self.warnings,
            environment=environment(),
            recipe_sha256=recipe_digest(recipe),
            images=images_of(parts.data),
            left_out=left_out_of(parts.data),
            trackers={} if before is None else before.trackers,
        )

    def cost(self, recorder: Recorder, device: torch.device) -> Cost:
        """What the run has cost so far."""
        recorder.refresh()
        teacher = self.readiness.teacher_seconds if self.readiness else None
        peaks = [peak_bytes(device), self.before.cost.peak_memory_bytes if self.before else None]
        return recorder.record.cost.model_copy(
            update={
                "peak_memory_bytes": max((peak for peak in peaks if peak is not None), default=None),
                "teacher_seconds_per_step": teacher,
            }
        )

    def _teacher_cost(self, measured: Measured) -> TeacherCost:
        digest = self.teacher_digest
        began = self.before.teacher if self.before is not None else None
        if began is not None and began.sha256 != digest:
            raise RunError(
                f"{self.folder}: the teacher's weights are other ones than those this run began with; put them back, "
                "or start again with --force"
            )
        miou = self.readiness.teacher_miou if self.readiness else None
        engine = None if self.engine is None else self.engine.as_dict()
        return TeacherCost(**_network_cost(measured).model_dump(), miou=miou, sha256=digest, engine=engine)


def _device_name(parts: Parts) -> str:
    device, world = parts.device, parts.launch.world
    name = f"cpu, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return name if world == 1 else f"{world} x {name}"


def _network_cost(measured: Measured) -> NetworkCost:
    return NetworkCost(parameters=measured.parameters, dead_parameters=measured.dead_parameters, flops=measured.flops)
