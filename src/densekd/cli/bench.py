"""`bench`: measure on this machine, print a table, write a record."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import Watch, table
from densekd.cli.training import Json, QuietFlag

app = typer.Typer(help="Measure on this machine: a table and a record.")


@app.callback()
def _root() -> None:
    """Benchmarks by name."""


@app.command("loss")
@guarded
def loss(
    out: Annotated[
        Path, typer.Option("--out", help="Where the record goes; an existing file is kept unless --force.")
    ] = Path("bench-loss.json"),
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds; medians are reported.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes only, to see that it works.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing record.")] = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Channel-wise KL: time, speed-up, peak memory and error against the textbook formulation."""
    from densekd import files
    from densekd.bench import loss as bench
    from densekd.errors import RunError
    from densekd.records import dump

    if out.exists() and not force:
        raise RunError(f"{out}: exists; use --force to replace it or --out for another file")
    with Watch() as watch:

        def count(done: int, total: int) -> None:
            watch.counting("measuring", done, total)

        shapes = bench.QUICK_SHAPES if quick else bench.SHAPES
        words = ["densekd", "bench", "loss", "--threads", str(threads), "--rounds", str(rounds)]
        command = shlex.join([*words, *(["--quick"] if quick else [])])
        progress = None if quiet else count
        record = bench.run(threads=threads, rounds=rounds, shapes=shapes, progress=progress, command=command)
    files.write_json(out, dump(record))
    if as_json:
        typer.echo(json.dumps(dump(record), indent=2))
    else:
        table(bench.rows(record), title=f"channel-wise KL, forward and backward, {threads} thread(s)")
    if not quiet:
        complain(f"record: {out}")
