"""What is to be done with each run of a study: kept, gone on with, started, or started again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from densekd import files
from densekd.config import Recipe, recipe_digest
from densekd.errors import CheckpointError, ConfigError, RunError
from densekd.records import RunRecord, read_run_name, run_name
from densekd.runs import Run
from densekd.runs.folder import differences
from densekd.study.methods import Method

OUTPUT = "output.txt"
_TOLD = 3


@dataclass(frozen=True)
class Task:
    """One run of a study.

    `recipe` is what it is trained with: a run that is gone on with keeps its own, threads included. `differs` says
    in what the run that is there is another one than asked for, or that it is damaged.
    """

    name: str
    method: Method
    seed: int
    path: Path
    recipe: Recipe
    action: Literal["keep", "resume", "start", "again"]
    differs: tuple[str, ...] = ()


def comparable(recipe: Recipe) -> Recipe:
    """The recipe without what changes no run: name, threads, place of stored maps, report, trackers, compare."""
    plain = recipe.model_dump(mode="json")
    plain["runtime"]["threads"] = None
    if plain["distill"]["cache"] is not None:
        plain["distill"]["cache"] |= {"root": "cache", "ask": True}
    return Recipe.model_validate({**plain, "name": "run", "compare": {}, "report": {}, "track": {}})


def digest_of(recipe: Recipe) -> str:
    """Digest of a method's recipe, whatever the seed."""
    return recipe_digest(comparable(recipe).model_copy(update={"seed": 0}))


def plan_tasks(
    base: Recipe,
    methods: Sequence[Method],
    seeds: Sequence[int],
    folder: Path,
    *,
    steps: Mapping[str, int | None],
    threads: int | None,
    teacher: str,
) -> list[Task]:
    """The runs of a study, seed by seed, so that an interrupted study has whole seeds.

    Args:
        steps: of each method by its name; None: the recipe's own.
        threads: CPU threads of a run; None: the recipe's own.
        teacher: the digest of the teacher's weights.
    """
    found = []
    for seed in seeds:
        for method in methods:
            recipe = method.recipe(base, seed, steps=steps[method.name], threads=threads)
            name = run_name(method.name, seed)
            found.append(_task(name, method, seed, folder / name, recipe, teacher))
    return found


def _task(name: str, method: Method, seed: int, path: Path, recipe: Recipe, teacher: str) -> Task:
    if not (path / "recipe.yaml").is_file():
        _require_free(path)
        return Task(name, method, seed, path, recipe, "start")
    try:
        saved = Run(path).recipe
        record = Run.load(path).record if (path / "record.json").is_file() else None
    except (ConfigError, RunError, CheckpointError) as error:
        what = "recipe" if isinstance(error, ConfigError) else "record"
        words = " ".join(str(error).split())
        return Task(name, method, seed, path, recipe, "again", (f"its {what} cannot be read: {words}",))
    differs = [*differences(comparable(saved), comparable(recipe)), *_other_run(record, method, teacher)]
    if differs:
        return Task(name, method, seed, path, recipe, "again", tuple(differs))
    if record is not None and record.status == "done":
        return Task(name, method, seed, path, saved, "keep")
    # Where stored maps lie now, and whether to ask, is no part of the run.
    return Task(name, method, seed, path, saved.model_copy(update={"distill": recipe.distill}), "resume")


def _other_run(record: RunRecord | None, method: Method, teacher: str) -> list[str]:
    """What the recipe does not tell: how the run was trained, and under which weights."""
    if record is None:
        return []
    if (record.method == "none") != (method.kind == "train"):
        return [f"method: {record.method} -> {method.name}"]
    if record.teacher is not None and record.teacher.sha256 != teacher:
        return ["the teacher's weights are other ones"]
    return []


def _require_free(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise RunError(f"{path}: a file, where a run is to be; move it, or choose another --out")
    strange = sorted(e.name for e in path.iterdir() if e.name != OUTPUT and not files.is_temporary(e.name))
    if strange:
        raise RunError(
            f"{path}: holds files and no recipe.yaml, so it is no run ({', '.join(strange[:5])}); move it, or choose "
            "another --out"
        )


def left_aside(tasks: Sequence[Task], folder: Path) -> list[str]:
    """A line about the runs in the study's folder that this call does not ask for; none where there are none.

    Its runs are called LABEL-sSEED: another one there, such as the demo's teacher, is none of the study's.
    """
    asked = {task.name for task in tasks}
    found = {path.parent.name for path in folder.glob("*-s*/recipe.yaml")}
    others = sorted(name for name in found - asked if read_run_name(name) is not None)
    if not others:
        return []
    shown = ", ".join(others[:_TOLD]) + (f" and {len(others) - _TOLD} more" if len(others) > _TOLD else "")
    return [f"runs of other labels or seeds in the folder are left as they are and not counted here: {shown}"]


def require_same(tasks: Iterable[Task], force: bool) -> list[str]:
    """Lines about the runs that will be started again.

    Raises:
        RunError: there are such runs, and `force` was not asked.
    """
    changed = [task for task in tasks if task.action == "again"]
    if not changed:
        return []
    if force:
        return [f"{task.name}: started again ({'; '.join(task.differs)})" for task in changed]
    told = "; ".join(f"{task.name} ({', '.join(task.differs)})" for task in changed[:_TOLD])
    more = f"; and {len(changed) - _TOLD} more" if len(changed) > _TOLD else ""
    raise RunError(
        f"{changed[0].path.parent}: holds runs that are damaged, or of another recipe or teacher: {told}{more}. "
        "Use --force to start these again and no others, or another --out"
    )
