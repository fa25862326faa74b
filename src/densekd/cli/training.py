"""`train`, `distill`, `doctor`: commands that take a recipe."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import Watch, table

if TYPE_CHECKING:
    from densekd.runs import Run

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, a run folder, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, e.g. train.batch_size=4", metavar="[KEY=VALUE]...")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/<name>.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Replaces the recipe's seed.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in that folder.")]
Force = Annotated[bool, typer.Option("--force", help="Start again in a folder that holds a run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the resolved recipe, train nothing.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def dotted(overrides: list[str] | None) -> dict[str, Any]:
    from densekd.config import parse_override

    return dict(parse_override(text) for text in overrides or [])


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


def _train_or_distill(
    kind: str,
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
    from densekd.runs.execute import Quiet, resolve

    changes = dotted(overrides)
    if dry_run:
        _dry_run(kind, resolve(recipe, seed, changes))
        return
    call = runs.train if kind == "train" else runs.distill
    watch = Quiet() if quiet else Watch()
    resumable = f"densekd {shlex.join([kind, recipe, *(overrides or [])])}"
    where = f" --out {shlex.quote(str(out))}" if out else ""
    seeded = f" --seed {seed}" if seed is not None else ""
    from densekd.training.signals import Interrupted

    try:
        if isinstance(watch, Watch):
            with watch:
                run = call(recipe, out=out, seed=seed, resume=resume, force=force, progress=watch, **changes)  # type: ignore[arg-type]
        else:
            run = call(recipe, out=out, seed=seed, resume=resume, force=force, progress=watch, **changes)
    except Interrupted:
        complain(f"go on with: {resumable}{where}{seeded} --resume")
        raise
    _print_result(run, as_json)


def _dry_run(kind: str, recipe: Any) -> None:
    from densekd.config import dump_recipe
    from densekd.runs.assemble import assemble, build_distiller, build_teacher, require_teacher
    from densekd.runs.execute import total_steps

    if kind == "distill":
        require_teacher(recipe)
    parts = assemble(recipe)
    if kind == "distill":
        build_distiller(parts, build_teacher(parts))
    for notice in parts.notices:
        complain(notice)
    sys.stdout.write(dump_recipe(recipe))
    complain(
        f"dry run: {len(parts.data.train)} training and {len(parts.data.val)} validation images, "
        f"{total_steps(recipe, len(parts.data.train))} steps; nothing was trained or written"
    )


def _print_result(run: Run, as_json: bool) -> None:
    from densekd.records import dump

    record = run.record
    if as_json:
        import json

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
                    "images": scores.images,
                }
            )
    table(rows, title=f"{run.path}: {record.method}, seed {record.seed}")
    complain(f"student: {run.path / 'student.safetensors'} (best on {record.split})")


@guarded
def doctor(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    seed: Seed = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Check a distillation before it runs: taps, terms, gradients, the teacher's score, time, memory, disk."""
    from densekd.runs.assemble import assemble, build_distiller, build_teacher, require_teacher
    from densekd.runs.execute import Quiet, resolve, total_steps
    from densekd.runs.readiness import check_readiness

    resolved = resolve(recipe, seed, dotted(overrides))
    require_teacher(resolved)
    watch: Any = Quiet() if quiet else Watch()
    parts = assemble(resolved, watch=watch.checking)
    teacher = build_teacher(parts)
    distiller = build_distiller(parts, teacher)
    readiness = check_readiness(parts, distiller, teacher, steps=total_steps(resolved, len(parts.data.train)))
    if not quiet:
        for notice in parts.notices:
            complain(notice)
    table(readiness.rows(), as_json=as_json, title="pre-flight")
    readiness.raise_if_failed("stop")
