"""`train`, `distill`, `doctor`: commands that take a recipe."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.recipe_rows import published_beside
from densekd.cli.replaying import replay_step
from densekd.cli.show import Watch, table
from densekd.errors import ConfigError

if TYPE_CHECKING:
    from densekd.config import Recipe
    from densekd.runs import Run
    from densekd.runs.assemble import Parts
    from densekd.runs.execution import Kind

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, a run folder, or the name of a shipped recipe.", metavar="RECIPE")
]
RecipeOrNone = Annotated[
    str | None,
    typer.Argument(help="A recipe file, a run folder, or the name of a shipped recipe.", metavar="RECIPE"),
]
ReplayOption = Annotated[
    Path | None,
    typer.Option("--replay", help="Take a kept step of a run again: runs/<name>/replay/step-XXXXXXXX."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, e.g. train.batch_size=4", metavar="KEY=VALUE")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/<name>.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Replaces the recipe's seed.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in that folder.")]
Force = Annotated[bool, typer.Option("--force", help="Start again in a folder that holds a run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the resolved recipe, train nothing.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Execute the file.py that the recipe names, though this is no run made here.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def dotted(overrides: list[str] | None) -> dict[str, Any]:
    from densekd.config import parse_override

    return dict(parse_override(text) for text in overrides or [])


def loaded(recipe: str, overrides: list[str] | None, seed: int | None = None) -> Recipe:
    """The recipe; memory is asked for as its `runtime` says, before there is a tensor."""
    from densekd import host_memory
    from densekd.config import load_recipe

    resolved = load_recipe(recipe, {**dotted(overrides), **({} if seed is None else {"seed": seed})})
    host_memory.ask(resolved.runtime)
    return resolved


def about_code(folder: Path, trust: bool, quiet: bool, *, teacher: bool = False) -> None:
    """Before a run's networks are opened: refuse code of a run that was not made here, say which is executed.

    And say where the student cannot be compared with the run's record.
    """
    from densekd.models.run_student import STUDENT, unrecorded
    from densekd.runs import Run

    if not (folder / "record.json").is_file():
        return
    run = Run.load(folder, trust=trust)
    for spec in (run.recipe.student, *([run.recipe.teacher] if teacher else [])):
        run.require_trust(spec)
    unknown = unrecorded(folder / STUDENT) if (folder / STUDENT).is_file() else None
    for line in [] if quiet else [*run.code(teacher=teacher), *([] if unknown is None else [unknown])]:
        complain(line)


@guarded
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Train one network, without a teacher."""
    _train_or_distill("train", recipe, overrides, out, seed, resume, force, dry_run, quiet, as_json)


@guarded
def distill(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    seed: Seed = None,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Train a small student under a large frozen teacher."""
    _train_or_distill("distill", recipe, overrides, out, seed, resume, force, dry_run, quiet, as_json)


def watching(quiet: bool) -> Any:
    """What shows a run's progress."""
    from densekd.runs.progress import Quiet

    return Quiet() if quiet else Watch()


def _train_or_distill(
    kind: Kind,
    recipe: str,
    overrides: list[str] | None,
    out: Path | None,
    seed: int | None,
    resume: bool,
    force: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from densekd import runs
    from densekd.runs.execute import dry_run as check
    from densekd.runs.execute import folder_of
    from densekd.runs.ranks import joined
    from densekd.training.signals import Interrupted

    with joined() as ranks:
        resolved = ranks.agreed("the recipe", lambda: loaded(recipe, overrides, seed))
        folder = folder_of(recipe, resolved, out, again=resume or force)
        quiet = quiet or not ranks.first
        if dry_run:
            with watching(quiet) as watch:
                parts = check(kind, resolved, folder, resume=resume, force=force, progress=watch)
            if ranks.first:
                _print_dry_run(parts, quiet, as_json)
            return
        call = runs.train if kind == "train" else runs.distill
        again = [kind, recipe, *(overrides or [])]
        again += [] if out is None else ["--out", str(out)]
        again += [] if seed is None else ["--seed", str(seed)]
        try:
            with watching(quiet) as watch:
                run = call(resolved, out=folder, resume=resume, force=force, progress=watch)
        except (Interrupted, KeyboardInterrupt):
            if ranks.first and (folder / "record.json").is_file():
                complain(f"go on with: densekd {shlex.join(again)} --resume")
            raise
        if ranks.first:
            _print_result(run, quiet, as_json)


def _print_dry_run(parts: Parts, quiet: bool, as_json: bool) -> None:
    from densekd.config import dump_recipe
    from densekd.runs.length import total_steps

    recipe = parts.recipe
    steps = total_steps(recipe, len(parts.data.train), parts.share.images)
    if as_json:
        sys.stdout.write(json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n")
    else:
        sys.stdout.write(dump_recipe(recipe))
    if quiet:
        return
    for notice in parts.unseen:
        complain(notice)
    complain(
        f"dry run: training images: {parts.counts()}; validation images: {len(parts.data.val)}; {steps} steps; nothing "
        "was trained or written"
    )


def _print_result(run: Run, quiet: bool, as_json: bool) -> None:
    from densekd.records import dump

    record = run.record
    if as_json:
        sys.stdout.write(json.dumps(dump(record), indent=2) + "\n")
        return
    rows: list[dict[str, Any]] = []
    for name, scores in (("best", record.best), ("final", record.final), *record.extra_splits.items()):
        if scores is not None:
            extra = name if name not in {"best", "final"} else record.split
            which = f"{name}, step {getattr(scores, 'step', record.steps)}" if name in {"best", "final"} else "final"
            rows.append(
                {
                    "weights": which,
                    "split": extra,
                    "mIoU": round(100 * scores.miou, 2),
                    "pixel accuracy": round(100 * scores.pixel_accuracy, 2),
                    "images": scores.counted,
                }
            )
    table(rows, title=f"{run.path}: {record.method}, seed {record.seed}")
    if quiet:
        return
    complain(f"student: {run.path / 'student.safetensors'} (best on {record.split})")
    if (run.path / "report.html").is_file():
        complain(f"report: {run.path / 'report.html'}")
    published = published_beside(run.recipe, record.method)
    if published is not None:
        complain(published)


def _only_overrides(recipe: str | None, overrides: list[str] | None) -> dict[str, Any]:
    if recipe is not None and "=" not in recipe:
        raise ConfigError(f"--replay reads the recipe of the step's run; leave {recipe!r} out")
    return dotted([*([] if recipe is None else [recipe]), *(overrides or [])])


@guarded
def doctor(
    recipe: RecipeOrNone = None,
    overrides: Overrides = None,
    replay: ReplayOption = None,
    trust: Trust = False,
    out: Out = None,
    seed: Seed = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Check a distillation before it runs: taps, terms, gradients, the teacher's score, time, memory, disk."""
    from densekd import host_memory
    from densekd.models.digest import weights_digest
    from densekd.runs.asked_teacher import require_teacher
    from densekd.runs.assemble import assemble, build_distiller, build_teacher
    from densekd.runs.cache import looked_at
    from densekd.runs.fast_teacher import fast_teacher
    from densekd.runs.length import total_steps
    from densekd.runs.readiness import check_readiness
    from densekd.runs.rehearsal import rehearse

    if replay is not None:
        # Where no recipe is named, the first KEY=VALUE stands in its place.
        changes = _only_overrides(recipe, overrides)
        replay_step(replay, changes, watching(quiet), quiet=quiet, as_json=as_json, trust=trust)
        return
    if recipe is None:
        raise ConfigError("doctor needs a RECIPE, or --replay with a step that a run has kept")
    resolved = loaded(recipe, overrides, seed)
    require_teacher(resolved)
    folder = out if out is not None else Path("runs") / resolved.name
    with watching(quiet) as watch:
        parts = assemble(resolved, watch=watch.checking, said=watch.said)
        steps = total_steps(resolved, len(parts.data.train))
        rehearse(parts)
        teacher = build_teacher(parts)
        distiller = build_distiller(parts, fast_teacher(parts, teacher))
        if resolved.distill.cache is not None:
            parts.notices += looked_at(parts, distiller, weights_digest(teacher))[0]
        readiness = check_readiness(parts, distiller, teacher, steps=steps, folder=folder, watch=watch.examining)
    if not quiet:
        for notice in [*parts.unseen, *host_memory.notices(resolved.runtime), *readiness.notices]:
            complain(notice)
    if as_json:
        engine = None if readiness.engine is None else readiness.engine.as_dict()
        sys.stdout.write(json.dumps({**readiness.as_dict(), "engine": engine}, indent=2) + "\n")
    else:
        table(readiness.rows(), title="pre-flight")
    readiness.raise_if_failed("stop")
