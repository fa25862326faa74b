"""The one teacher of a study, scored on all of every split before the first run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from densekd import files
from densekd.config import Recipe
from densekd.data.base import SegmentationSet
from densekd.errors import DensekdError
from densekd.evaluate import autocast, evaluate, evaluation_mode
from densekd.records import Scores, StudyTeacher, dump
from densekd.runs import Run
from densekd.runs.asked_teacher import teacher_input
from densekd.runs.progress import Quiet
from densekd.runs.teacher_view import scored_teacher
from densekd.study.check import Opened
from densekd.taps import holds_class_map, main_output, preserved
from densekd.teacher import TeacherImages

TEACHER = "teacher.json"


def score_teacher(opened: Opened, folder: Path, watch: Quiet) -> StudyTeacher:
    """The teacher's scores and size: read from `teacher.json` where it was scored before, else measured and written.

    A teacher that gives features has no class map and no scores.
    """
    recipe = opened.parts.recipe
    key = _key(recipe, opened.sha256)
    known = _known(folder / TEACHER, key)
    if known is not None:
        return known
    scores = _scores(opened, watch) if _gives_classes(opened) else {}
    val = scores.pop("val", None)
    cost = opened.parts.measured_teacher(opened.teacher)
    found = StudyTeacher(
        miou=None if val is None else val.miou,
        pixel_accuracy=None if val is None else val.pixel_accuracy,
        iou={} if val is None else val.iou,
        images=None if val is None else val.images,
        extra_splits={name: one.miou for name, one in scores.items()},
        parameters=cost.parameters,
        flops=cost.flops,
        sha256=opened.sha256,
        **_own_training(recipe),
    )
    files.write_json(folder / TEACHER, {"of": key, "teacher": dump(found)})
    return found


def _key(recipe: Recipe, sha256: str) -> str:
    """Everything the scores depend on."""
    assert recipe.teacher is not None
    own = recipe.teacher.model_dump(mode="json", include={"mean", "std", "size", "class_names", "classes"})
    parts = [part.model_dump(mode="json") for part in (recipe.data, recipe.task, recipe.evaluation)]
    return files.sha256(json.dumps([sha256, own, *parts, recipe.runtime.precision], sort_keys=True).encode())


def _known(path: Path, key: str) -> StudyTeacher | None:
    if not path.is_file():
        return None
    try:
        held = files.read_json(path)
        return StudyTeacher.model_validate(held["teacher"]) if held["of"] == key else None
    except (DensekdError, ValidationError, KeyError, TypeError):
        return None  # it is scored again and written anew


def _gives_classes(opened: Opened) -> bool:
    parts, teacher = opened.parts, opened.teacher
    precision = autocast(parts.device, parts.recipe.runtime.precision)
    with preserved(teacher), evaluation_mode(teacher), torch.no_grad(), precision:
        output = teacher(parts.teacher_example(1))
    return holds_class_map(output) and main_output(output).shape[1] == parts.teacher_outputs()


def _scores(opened: Opened, watch: Quiet) -> dict[str, Scores]:
    parts, runtime = opened.parts, opened.parts.recipe.runtime
    spec = teacher_input(parts.recipe)
    prepare = None if spec is None else TeacherImages(spec).to(parts.device)

    def scores(which: SegmentationSet) -> Scores:
        with scored_teacher(parts, opened.teacher, parts.eval_view(which)) as view:
            return evaluate(
                opened.teacher,
                view,
                parts.task,
                parts.data.classes,
                device=parts.device,
                batch_size=parts.recipe.train.evaluate_batch_size,
                workers=runtime.workers,
                patience=runtime.patience,
                precision=runtime.precision,
                channels_last=runtime.channels_last,
                evaluation=parts.recipe.evaluation,
                watch=watch.evaluating,
                prepare=prepare,
            )

    return {name: scores(which) for name, which in {"val": parts.data.val, **parts.data.extra}.items()}


def _own_training(recipe: Recipe) -> dict[str, Any]:
    """Steps and seconds of the teacher's training, where its checkpoint is a run's folder."""
    spec = recipe.teacher.checkpoint if recipe.teacher is not None else None
    if spec is None or not (Path(spec.path) / "record.json").is_file():
        return {}
    record = Run.load(spec.path).record
    return {"steps": record.steps, "total_seconds": record.cost.total_seconds}
