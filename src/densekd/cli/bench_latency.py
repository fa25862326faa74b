"""`bench latency`: what a student is worth where it runs, beside its teacher."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from densekd.cli.bench import Out, Replace, finish, measuring, refuse_existing, whole_numbers
from densekd.cli.guard import complain, guarded
from densekd.cli.training import Json, QuietFlag, Trust, about_code

_SIZE = re.compile(r"(\d+)x(\d+)")


@guarded
def latency(
    given: Annotated[
        list[str],
        typer.Argument(
            help="Folders of runs (teacher, student and exports of it), exported files, or names of models.",
            metavar="RUN",
        ),
    ],
    out: Out = Path("bench-latency.json"),
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="HEIGHTxWIDTH of the images, with commas between; default the run's.")
    ] = None,
    batch_sizes: Annotated[
        str, typer.Option("--batch-sizes", help="Images in a call, with commas between; latency is taken at 1.")
    ] = "1,2,4,8",
    formats: Annotated[
        str, typer.Option("--formats", help="Exports to make of every run: onnx, pt2, both, or none.")
    ] = "onnx,pt2",
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda; auto: CUDA where there is one.")] = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads of one call.")] = 1,
    seconds: Annotated[
        float, typer.Option("--seconds", help="About how long each size and batch size is measured.")
    ] = 10.0,
    force: Replace = False,
    trust: Trust = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """A run's teacher, student and exported student: latency, images per second, memory, file size."""
    from densekd.bench import latency as bench

    refuse_existing(out, force)
    batches = whole_numbers("--batch-sizes", batch_sizes)
    asked = [] if formats == "none" else [part.strip() for part in formats.split(",") if part.strip()]
    words = ["densekd", "bench", "latency", *given, *(["--sizes", sizes] if sizes is not None else [])]
    words += ["--batch-sizes", batch_sizes, "--formats", formats, "--device", device, "--threads", str(threads)]
    for text in given:
        about_code(Path(text), trust, quiet, teacher=True)
    with measuring(quiet) as progress:
        record = bench.run(
            given,
            sizes=None if sizes is None else _sizes(sizes),
            batches=batches,
            formats=asked,
            device=device,
            threads=threads,
            seconds=seconds,
            progress=progress,
            command=shlex.join([*words, "--seconds", f"{seconds:g}"]),
            trust=trust,
        )
    title = f"forward passes on {record.device}" + (f", {threads} thread(s)" if record.device == "cpu" else "")
    finish(out, record, bench.rows(record), title, quiet, as_json)
    if quiet:
        return
    if record.environment["notices"] != "none":
        complain(record.environment["notices"])
    busy = bench.busy(record, os.cpu_count() or 1)
    if busy is not None:
        complain(busy)


def _sizes(text: str) -> list[tuple[int, int]]:
    from densekd.errors import ArgumentError

    found = [_SIZE.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise ArgumentError(f"--sizes: expected HEIGHTxWIDTH with commas between, for instance 512x1024; got {text!r}")
    return [(int(one[1]), int(one[2])) for one in found if one is not None]
