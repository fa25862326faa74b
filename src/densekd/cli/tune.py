"""`tune`: weights and temperatures on a held-out part of the training set."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from densekd.cli.compare import board, parse_seeds
from densekd.cli.guard import complain, guarded
from densekd.cli.show import table
from densekd.cli.training import Json, Overrides, QuietFlag, RecipeArgument, loaded


def _numbers(option: str, text: str) -> list[float]:
    from densekd.errors import ConfigError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected numbers with commas between, for instance 0.3,1,3") from None


@guarded
def tune(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    methods: Annotated[
        str | None, typer.Option("--methods", "--method", help="Labels with commas between, as for `compare`.")
    ] = None,
    factors: Annotated[str, typer.Option("--factors", help="Multiples of each method's weight.")] = "0.1,0.3,1,3,10",
    temperatures: Annotated[
        str, typer.Option("--temperatures", help="Tried for the losses that have one; default: as given.")
    ] = "",
    steps: Annotated[int, typer.Option("--steps", help="Length of each run.")] = 300,
    seeds: Annotated[str, typer.Option("--seeds", help="Runs of each setting.")] = "0",
    group: Annotated[
        str | None, typer.Option("--group", help="Regular expression that finds a file's group in its name.")
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option("--holdout", help="Share of the training images held out; default: the recipe's, or 0.2."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Runs at a time.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default runs/<recipe name>-tune.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Start again the runs whose recipe changed.")] = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Sweep weight and temperature the same way for all methods, never on the validation set; write a recipe."""
    from densekd.records import dump
    from densekd.tuning import tune as sweep

    words = ["densekd", "tune", recipe, *(overrides or []), "--factors", factors, "--steps", str(steps)]
    words += ["--seeds", seeds]
    words += [] if holdout is None else ["--holdout", f"{holdout:g}"]
    words += [] if methods is None else ["--methods", methods]
    words += ["--temperatures", temperatures] if temperatures else []
    words += [] if group is None else ["--group", group]
    with board(quiet) as watch:
        tuned = sweep(
            loaded(recipe, overrides),
            methods=None if methods is None else methods.split(","),
            factors=_numbers("--factors", factors),
            temperatures=_numbers("--temperatures", temperatures),
            steps=steps,
            seeds=parse_seeds(seeds),
            group=group,
            fraction=holdout,
            jobs=jobs,
            out=out,
            force=force,
            progress=watch,
            command=shlex.join(words),
        )
    if as_json:
        sys.stdout.write(json.dumps(dump(tuned.study.record), indent=2) + "\n")
    else:
        table(tuned.rows(), title=f"{tuned.study.path}: mIoU on held-out training images in percent")
    if not quiet:
        for line in tuned.remarks:
            complain(line)
        complain(f"recipe with the chosen settings: {tuned.recipe}")
