"""`compare`: methods x seeds on one student under one protocol."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import table
from densekd.cli.training import Json, Overrides, QuietFlag, RecipeArgument, loaded

if TYPE_CHECKING:
    from densekd.study import Silent, Study


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` as numbers.

    Raises:
        ConfigError: something else is between the commas, or a number comes twice.
    """
    from densekd.errors import ConfigError
    from densekd.study import check_seeds

    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text!r}: expected numbers with commas between, for instance 0,1,2") from None
    return check_seeds(seeds)


def board(quiet: bool) -> Silent:
    """What shows a study's progress."""
    from densekd.cli.board import Board
    from densekd.study import Silent

    return Silent() if quiet else Board()


@guarded
def compare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Labels with commas between: names of `densekd list methods`, NAME@features, or keys of the recipe's "
            "compare.methods. Default: all those keys, else the methods of its terms. `none` is always added.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="One run of each method for each, e.g. 0,1,2.")] = "0,1,2",
    budget: Annotated[
        str, typer.Option("--budget", help="steps: the same for all; seconds: as long as the student alone takes.")
    ] = "steps",
    jobs: Annotated[int, typer.Option("--jobs", help="Runs at a time; they share CPU threads, or GPUs.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the study; default runs/<recipe name>-compare.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start again the runs whose recipe or teacher changed, and no others.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, name the runs, train nothing.")] = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Compare methods on one student: same start, data order and schedule; gains paired by seed, with their cost."""
    from densekd.records import dump
    from densekd.study import prepare

    labels = None if methods is None else methods.split(",")
    words = ["densekd", "compare", recipe, *(overrides or []), "--seeds", seeds, "--budget", budget]
    words += [] if methods is None else ["--methods", methods]
    words += [] if jobs == 1 else ["--jobs", str(jobs)]
    with board(quiet) as watch:
        comparison = prepare(
            loaded(recipe, overrides),
            methods=labels,
            seeds=parse_seeds(seeds),
            budget=budget,
            jobs=jobs,
            out=out,
            force=force,
            progress=watch,
        )
        if dry_run:
            names = comparison.look()
        else:
            study = comparison.go(shlex.join(words))
    if dry_run:
        table([{"run": name} for name in names], as_json=as_json)
        return
    if as_json:
        sys.stdout.write(json.dumps(dump(study.record), indent=2) + "\n")
    else:
        show(study, quiet)
    study.raise_if_failed()


def show(study: Study, quiet: bool) -> None:
    """The study's tables on stdout, and where its files are."""
    seeds = max(len(line.seeds) for line in study.record.methods)
    table(
        study.rows(),
        title=f"{study.path}: mIoU on val in percent, final weights, {seeds} seed(s); gain with its 95% interval",
    )
    if not quiet:
        complain(f"study: {study.path / 'study.json'}; also table.csv, classes.csv, gain.png, classes.png")
        if (study.path / "report.html").is_file():
            complain(f"report: {study.path / 'report.html'}")
