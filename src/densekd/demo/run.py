"""The demo as a small study: one teacher, then the student alone and distilled, same schedule and seeds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from densekd.config import Recipe, TeacherSpec, load_recipe, parse_override, recipe_digest
from densekd.demo.figure import draw_figure
from densekd.errors import ConfigError, RunError
from densekd.runs import Run, train
from densekd.runs.device import choose_device
from densekd.runs.progress import Quiet
from densekd.study import Silent, Study, check_seeds, prepare
from densekd.study.machine import cpus, gpus_for

METHOD = "channelwise"
#: the study scores the teacher on all validation images: no run needs to try it on some
_SCORED = {"preflight.teacher_images": 0}
FIGURE = "demo.png"


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: the study and the picture."""

    study: Study
    figure: Path


def run_demo(
    folder: Path,
    *,
    seeds: Sequence[int] = (0,),
    force: bool = False,
    overrides: Mapping[str, Any] | None = None,
    teacher_overrides: Mapping[str, Any] | None = None,
    progress: Silent | None = None,
) -> DemoResult:
    """Train the teacher once, then for every seed the student alone and with channel-wise distillation.

    Finished runs in `folder` are used again; an interrupted demo goes on where it stopped.

    Args:
        folder: the study, `demo.png` and the runs go here.
        seeds: one pair of students per seed; the teacher's seed is the recipe's.
        force: start again in a folder that holds another demo.
        overrides: keys of the recipe `demo` (data keys apply to the teacher too).
        teacher_overrides: keys of the recipe `demo-teacher`.
        progress: what watches; default nothing.

    Raises:
        RunError: the folder holds something else, or runs of another recipe and `force` is not given.
        RunsFailedError: a run failed; the others are done.
    """
    shared = {key: value for key, value in (overrides or {}).items() if key.startswith(("data.", "runtime."))}
    teacher_recipe = load_recipe("demo-teacher", {**shared, **(teacher_overrides or {})})
    # Both recipes are checked before the teacher is trained: a mistyped key must not cost minutes.
    recipe = load_recipe("demo", {**(overrides or {}), "teacher.checkpoint": str(folder / "teacher"), **_SCORED})
    if recipe.teacher is None or recipe.teacher.model_copy(update={"checkpoint": None}) != _plain_teacher():
        raise ConfigError("demo: the keys of its teacher are fixed; for other networks use `densekd distill`")
    _require_demo(folder)
    watch = progress or Silent()
    seeds = check_seeds(seeds)
    _teacher(folder / "teacher", teacher_recipe, force, watch.run("teacher"))
    # Two at a time: networks so small use one core well and two badly.
    jobs = min(2, gpus_for(choose_device(recipe)) or cpus())
    comparison = prepare(
        recipe, methods=["none", METHOD], seeds=seeds, jobs=jobs, out=folder, force=force, progress=watch
    )
    study = comparison.go(_command(seeds, overrides or {}))
    study.raise_if_failed()
    teacher = Run.load(folder / "teacher")
    alone, distilled = (study.runs[name][seeds[0]] for name in ("none", METHOD))
    figure = draw_figure(folder / FIGURE, recipe, teacher, alone, distilled, watch.run("figure").evaluating)
    return DemoResult(study, figure)


def _command(seeds: Sequence[int], overrides: Mapping[str, Any]) -> str:
    """The command as it can be typed again."""
    words = ["densekd", "demo", "--seeds", ",".join(map(str, seeds))]
    return shlex.join([*words, *(_typed(key, value) for key, value in overrides.items())])


def _typed(key: str, value: Any) -> str:
    """`key=value` as the command line reads it: as YAML where Python's words would be another value."""
    plain = f"{key}={value}"
    try:
        same = parse_override(plain) == (key, value)
    except ConfigError:
        same = False
    if same:
        return plain
    style = '"' if isinstance(value, str) else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=float("inf"))
    return f"{key}={text.strip().removesuffix('...').strip()}"


def _plain_teacher() -> TeacherSpec | None:
    return load_recipe("demo").teacher


def _require_demo(folder: Path) -> None:
    """Refuse a folder with anything that no demo made; it would be said only after minutes else."""
    if not folder.is_dir():
        return
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    if names and "teacher" not in names:
        raise RunError(f"{folder}: holds {min(names)}, and no teacher: it is no demo's; choose another --out")


def _teacher(path: Path, recipe: Recipe, force: bool, progress: Quiet) -> Run:
    if not (path / "record.json").is_file():
        return train(recipe, out=path, force=path.exists(), progress=progress)
    run = Run.load(path)
    if recipe_digest(run.recipe) != recipe_digest(recipe):
        if not force:
            raise RunError(
                f"{path}: the teacher of a demo with other settings; use --force to start again, or another --out"
            )
        return train(recipe, out=path, force=True, progress=progress)
    return run if run.record.status == "done" else train(recipe, out=path, resume=True, progress=progress)
