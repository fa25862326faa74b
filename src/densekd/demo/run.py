"""The demo as a small study: one teacher, then the student alone and distilled, same schedule and seeds."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densekd.config import TeacherSpec, load_recipe, recipe_digest
from densekd.demo.figure import draw_figure
from densekd.errors import ConfigError, RunError
from densekd.records import StudyRecord
from densekd.runs import Run, train
from densekd.runs.execute import Quiet
from densekd.study import ALONE, Method, run_study, study_record, write_study

CHANNELWISE = Method("channelwise", where="logits")
_KNOWN = ("teacher", "study.json", "demo.png")


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: the study, its file and the picture."""

    record: StudyRecord
    study: Path
    figure: Path


def run_demo(
    folder: Path,
    *,
    seeds: Sequence[int] = (0,),
    force: bool = False,
    overrides: Mapping[str, Any] | None = None,
    teacher_overrides: Mapping[str, Any] | None = None,
    watch: Callable[[str], Quiet] = lambda _name: Quiet(),
) -> DemoResult:
    """Train the teacher once, then for every seed the student alone and with channel-wise distillation.

    Finished runs in `folder` are used again; an interrupted demo goes on where it stopped.

    Args:
        folder: `study.json`, `demo.png` and the runs go here.
        seeds: one pair of students per seed; the teacher's seed is the recipe's.
        force: start again in a folder that holds another demo.
        overrides: keys of the recipe `demo` (data keys apply to the teacher too).
        teacher_overrides: keys of the recipe `demo-teacher`.
        watch: gives what watches a run, by the run's name.

    Raises:
        RunError: the folder holds something else, or runs of another recipe and `force` is not given.
    """
    shared = {key: value for key, value in (overrides or {}).items() if key.startswith(("data.", "runtime."))}
    teacher_recipe = load_recipe("demo-teacher", {**shared, **(teacher_overrides or {})})
    # Both recipes are checked before the teacher is trained: a mistyped key must not cost minutes.
    changes = {**(overrides or {}), "teacher.checkpoint": str(folder / "teacher")}
    recipe = load_recipe("demo", changes)
    if recipe.teacher is None or recipe.teacher.model_copy(update={"checkpoint": None}) != _plain_teacher():
        raise ConfigError("demo: the keys of its teacher are fixed; for other networks use `densekd distill`")
    _guard(folder)
    teacher = _teacher(folder / "teacher", teacher_recipe, force, watch("teacher"))
    runs = run_study(recipe, [ALONE, CHANNELWISE], seeds, folder, force=force, watch=watch)
    data = recipe.data.model_dump(mode="json")
    command = f"densekd demo --seeds {','.join(map(str, seeds))}"
    for key, value in (overrides or {}).items():
        command += f" {shlex.quote(f'{key}={value}')}"
    record = study_record("demo", runs, data=data, teacher=teacher.record, command=command)
    study = write_study(folder, record)
    alone, distilled = (made[0] for _, made in runs)
    figure = draw_figure(folder / "demo.png", recipe, teacher, alone, distilled, watch("figure").evaluating)
    return DemoResult(record, study, figure)


def _plain_teacher() -> TeacherSpec | None:
    return load_recipe("demo").teacher


def _guard(folder: Path) -> None:
    if not folder.exists():
        return
    entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {folder.name}
    strange = sorted(
        name for name in entries if name not in _KNOWN and not name.startswith(("none-s", "channelwise-s", "."))
    )
    if strange:
        raise RunError(f"{folder}: holds files that are not a demo's ({', '.join(strange[:5])}); choose another --out")


def _teacher(path: Path, recipe: Any, force: bool, progress: Quiet) -> Run:
    if not (path / "record.json").is_file():
        return train(recipe, out=path, force=path.exists(), progress=progress)
    run = Run.load(path)
    if run.record.recipe_sha256 != recipe_digest(recipe):
        if not force:
            raise RunError(
                f"{path}: the teacher of a demo with other settings; use --force to start again, or another --out"
            )
        return train(recipe, out=path, force=True, progress=progress)
    return run if run.record.status == "done" else train(recipe, out=path, resume=True, progress=progress)
