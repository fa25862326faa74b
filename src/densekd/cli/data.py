"""`data`: data sets downloaded, and checked before anything is trained on them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import Watch, table
from densekd.cli.training import Json, QuietFlag, dotted
from densekd.cli.transfers import Transfers

if TYPE_CHECKING:
    from densekd.data.check import ProblemsError
    from densekd.data.kinds import FilesSpec
    from densekd.data.survey import Survey
    from densekd.errors import DataError

app = typer.Typer(help="Get a published data set; check any data set.")


@app.callback()
def _root() -> None:
    """Commands of data sets."""


@app.command("check")
@guarded
def check(
    what: Annotated[
        str,
        typer.Argument(
            help="cityscapes, voc, ade20k, camvid, cocostuff or folder; or a recipe, whose data is checked.",
            metavar="NAME",
        ),
    ],
    keys: Annotated[
        list[str] | None,
        typer.Argument(help="Keys of `data`, e.g. root=my-data; of a recipe data.root=my-data", metavar="KEY=VALUE"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The sheet of samples; default NAME-samples.png.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=0, help="Samples of each split; 0: no sheet.")] = 4,
    show_all: Annotated[bool, typer.Option("--all", help="List every problem, not only ten.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing sheet.")] = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Open every image and mask of a data set; count files, sizes and classes; draw a sheet of samples."""
    from densekd import data_check
    from densekd.data.check import ProblemsError
    from densekd.errors import RunError

    spec = spec_of(what, keys)
    out = Path(f"{Path(what).stem}-samples.png") if out is None else out
    if samples and out.is_dir():
        raise RunError(f"{out}: a folder; --out takes the PNG file to write")
    if samples and out.exists() and not force:
        raise RunError(f"{out}: exists; use --force to replace it, --out for another file, or --samples 0 for none")
    try:
        found = data_check.files_of(spec)
    except ProblemsError as error:
        if as_json:
            sys.stdout.write(json.dumps({"problems": error.problems}, indent=2, ensure_ascii=False) + "\n")
        raise _told(error, show_all) from None
    with Watch() as watch:
        seen = data_check.check_files(
            found, None if quiet else lambda done, total: watch.counting("checking files", done, total)
        )
    drawn = data_check.sheet(found, seen, samples) if samples else None
    if drawn is not None:
        data_check.write_sheet(out, drawn)
    _print(seen, spec.root, quiet, as_json)
    if drawn is not None and not quiet:
        complain(f"samples: {out}")
    if seen.problems:
        raise _told(ProblemsError(seen.problems, seen.files, "files and pairs of files"), show_all)


def _told(error: ProblemsError, show_all: bool) -> DataError:
    """The error as the user wants it: with ten problems, or with all."""
    from densekd.errors import DataError

    return DataError("\n  ".join((f"{error.heading}:", *error.problems))) if show_all else error


def spec_of(what: str, keys: list[str] | None) -> FilesSpec:
    """The `data` that a name and keys mean: a kind of data set and keys of `data`, or a recipe and its keys.

    Raises:
        ArgumentError: neither a kind of data set nor a recipe, or one without files.
        ConfigError: keys or values that cannot be.
    """
    from densekd.config import load_recipe, read_recipe, shipped_recipes
    from densekd.data.specs import ScenesDataSpec
    from densekd.errors import ArgumentError, nearest

    kinds = ("cityscapes", "voc", "ade20k", "camvid", "cocostuff", "folder")
    given = dotted(keys)
    if what in kinds:
        prefixed = {key if key.startswith("data.") else f"data.{key}": value for key, value in given.items()}
        recipe = load_recipe({**read_recipe("folder"), "data": {"name": what}}, prefixed)
    elif what in shipped_recipes() or Path(what).exists():
        recipe = load_recipe(what, given)
    else:
        names = [*kinds, *shipped_recipes()]
        raise ArgumentError(
            f"data check {what!r}: no kind of data set, no recipe and no file{nearest(what, names)}; kinds: "
            f"{', '.join(kinds)}"
        )
    if isinstance(recipe.data, ScenesDataSpec):
        raise ArgumentError(f"data check {what!r}: drawn scenes are no files: there is nothing to check")
    return recipe.data


def _print(seen: Survey, root: str, quiet: bool, as_json: bool) -> None:
    from densekd.data.survey import class_rows, split_rows
    from densekd.data_check import report

    for notice in () if quiet else seen.notices:
        complain(notice)
    if as_json:
        sys.stdout.write(json.dumps(report(seen), indent=2, ensure_ascii=False) + "\n")
    else:
        table(split_rows(seen), title=root)
        sys.stdout.write("\n")
        table(class_rows(seen), title="% of the labelled pixels, and images that hold the class")
    for warning in seen.warnings:
        complain(f"warning: {warning}")


@app.command("get")
@guarded
def get(
    name: Annotated[str, typer.Argument(help="voc, ade20k, camvid, cocostuff or cityscapes", metavar="NAME")],
    root: Annotated[Path | None, typer.Option("--root", help="Folder for it; default data/NAME.")] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Leave what was downloaded beside what was in it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; ask no host, write nothing.")] = (
        False
    ),
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Download a data set whose terms allow it without a login; the same command goes on where it was stopped."""
    from densekd.data.get import describe, plan
    from densekd.data.get import get as bring
    from densekd.data.sources import source_of

    source = source_of(name)
    folder = (Path("data") / name if root is None else root).expanduser()
    if not quiet:
        complain(f"{source.title}: {source.home}; terms: {source.terms}")
    if dry_run:
        table([describe(step) for step in plan(source, folder)], as_json=as_json, title=str(folder))
        return
    try:
        with Transfers(quiet) as shown:
            placed = bring(source, folder, keep_archives=keep_archives, moved=shown.moved, said=shown.said)
    except KeyboardInterrupt:
        complain(f"what has arrived is kept in {folder}: the same command goes on")
        raise
    rows = [
        {
            "archive": one.archive.name,
            "was": one.state,
            "folders": " ".join(str(folder / new) for new in one.archive.wanted.values()),
            "files": sum(count.files for count in one.archive.counts),
            "sha256": one.sha256,
        }
        for one in placed
    ]
    table(rows, as_json=as_json, title=source.title)
    if not quiet:
        complain(f"in a recipe: data.name={name} data.root={folder / source.root}")
