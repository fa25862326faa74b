"""`demo`: everything in one command, from nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import Watch, table
from densekd.cli.training import Json, Overrides, QuietFlag, dotted


def _seeds(text: str) -> list[int]:
    from densekd.errors import ConfigError

    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text!r}: expected numbers with commas between, for instance 0,1,2") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {text!r}: expected different numbers, none below 0")
    return seeds


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
    from densekd.runs.execute import Quiet
    from densekd.study import class_rows, study_rows

    chosen = _seeds(seeds)
    begin = time.monotonic()
    with Watch() as watch:

        def named(name: str) -> Any:
            if quiet:
                return Quiet()
            watch.begin(name)
            return watch

        result = run_demo(out, seeds=chosen, force=force, overrides=dotted(overrides), watch=named)
    if as_json:
        import json

        typer.echo(json.dumps(dump(result.record), indent=2))
        return
    table(
        study_rows(result.record),
        title=f"demo: drawn street scenes, mIoU in percent on {result.record.data['val_count']} unseen scenes",
    )
    table(class_rows(result.record), title="IoU per class, percent")
    if not quiet:
        complain(f"figure: {result.figure}\nstudy: {result.study}\n{time.monotonic() - begin:.0f} s in all")
