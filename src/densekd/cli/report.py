"""`report`: a run, a study or several runs as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.training import QuietFlag


@guarded
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folder of a run or of a study, or several of runs.", metavar="RUN|STUDY")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file; default report.html in the folder, of several runs in the working one."),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    quiet: QuietFlag = False,
) -> None:
    """Write the page of a run, of a study, or of several runs side by side: one HTML file that needs no other."""
    from densekd.report import write_page

    if len(folders) > 1:
        _look(folders, quiet)
    path = write_page(*folders, out=out)
    typer.echo(str(path))
    if open_it and not _opened(path) and not quiet:
        complain("no browser could be started here; open the file yourself")


def _look(folders: list[Path], quiet: bool) -> None:
    """Where one run is of the student alone and another distilled, keep pictures of both beside each other."""
    from densekd.cli.training import watching
    from densekd.runs import Run
    from densekd.study.looks import keep_beside, pair_among

    if not all((folder / "record.json").is_file() for folder in folders):
        return  # which writing the page says
    pair = pair_among([Run.load(folder) for folder in folders])
    if pair is None:
        return
    with watching(quiet) as watch:
        lines = keep_beside(*pair, watch.looking)
    for line in () if quiet else lines:
        complain(line)


def _opened(path: Path) -> bool:
    import webbrowser

    return webbrowser.open(path.absolute().as_uri())
