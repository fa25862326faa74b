"""`demo`: everything in one command, from nothing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from densekd.cli.compare import board, parse_seeds
from densekd.cli.guard import complain, guarded
from densekd.cli.show import table
from densekd.cli.training import Json, Overrides, QuietFlag, dotted, loaded


@guarded
def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo.")] = Path("runs/demo"),
    seeds: Annotated[str, typer.Option("--seeds", help="One pair of students per seed, e.g. 0,1,2.")] = "0",
    force: Annotated[bool, typer.Option("--force", help="Start again where another demo is.")] = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Draw street scenes, train a teacher, a student alone and the same student distilled; show all three."""
    from densekd.demo import run_demo
    from densekd.records import dump
    from densekd.study import class_rows, size_rows

    chosen = parse_seeds(seeds)
    loaded("demo", overrides)  # its memory is asked for before there is a tensor
    begin = time.monotonic()
    with board(quiet) as watch:
        result = run_demo(out, seeds=chosen, force=force, overrides=dotted(overrides), progress=watch)
    record = result.study.record
    if as_json:
        sys.stdout.write(json.dumps(dump(record), indent=2) + "\n")
        return
    table(
        size_rows(record),
        title=f"demo: drawn street scenes, mIoU in percent on {record.data['val_count']} unseen scenes",
    )
    table(class_rows(record), title="IoU per class, percent")
    if not quiet:
        complain(f"figure: {result.figure}\nstudy: {result.study.path / 'study.json'}")
        if (result.study.path / "report.html").is_file():
            complain(f"report: {result.study.path / 'report.html'}")
        complain(f"{time.monotonic() - begin:.0f} s in all")
