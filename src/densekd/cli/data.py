"""`data`: data sets downloaded, and checked before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import table
from densekd.cli.training import Json, QuietFlag
from densekd.cli.transfers import Transfers

app = typer.Typer(help="Get a published data set; check any data set.")


@app.callback()
def _root() -> None:
    """Commands of data sets."""


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
