"""`bench`: measure on this machine, print a table, write a record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import Watch, table
from densekd.cli.training import Json, QuietFlag

if TYPE_CHECKING:
    from densekd.records import BenchRecord

Out = Annotated[Path, typer.Option("--out", help="Where the record goes; an existing file is kept unless --force.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds; medians are reported.")]
Replace = Annotated[bool, typer.Option("--force", help="Replace an existing record.")]

app = typer.Typer(help="Measure on this machine: a table and a record.")


@app.callback()
def _root() -> None:
    """Benchmarks by name; tensors get their memory as in a run that says nothing of it."""
    from densekd import host_memory

    host_memory.ask(host_memory.DEFAULTS)


@app.command("loss")
@guarded
def loss(
    out: Out = Path("bench-loss.json"),
    threads: Threads = 1,
    rounds: Rounds = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes only, to see that it works.")] = False,
    force: Replace = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Channel-wise KL: time, speed-up, peak memory and error against the textbook formulation."""
    from densekd.bench import loss as bench

    refuse_existing(out, force)
    shapes = bench.QUICK_SHAPES if quick else bench.SHAPES
    words = ["densekd", "bench", "loss", "--threads", str(threads), "--rounds", str(rounds)]
    command = shlex.join([*words, *(["--quick"] if quick else [])])
    with measuring(quiet) as progress:
        record = bench.run(threads=threads, rounds=rounds, shapes=shapes, progress=progress, command=command)
    title = f"channel-wise KL, forward and backward, {threads} thread(s)"
    finish(out, record, bench.rows(record), title, quiet, as_json)


@app.command("task")
@guarded
def task(
    out: Out = Path("bench-task.json"),
    threads: Threads = 1,
    rounds: Rounds = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Small maps only, to see that it works.")] = False,
    force: Replace = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Up-sampling and cross-entropy in one step, as runs train: time and peak memory against one after the other."""
    from densekd.bench import task as bench

    refuse_existing(out, force)
    words = ["densekd", "bench", "task", "--threads", str(threads), "--rounds", str(rounds)]
    command = shlex.join([*words, *(["--quick"] if quick else [])])
    cases = bench.QUICK_CASES if quick else bench.CASES
    with measuring(quiet) as progress:
        record = bench.run(threads=threads, rounds=rounds, cases=cases, progress=progress, command=command)
    title = f"up-sampling and cross-entropy, forward and backward, {threads} thread(s)"
    finish(out, record, bench.rows(record), title, quiet, as_json)


@app.command("methods")
@guarded
def methods(
    out: Out = Path("bench-methods.json"),
    names: Annotated[
        str | None, typer.Option("--methods", help="Which, with commas between (see `densekd list methods`).")
    ] = None,
    maps: Annotated[str, typer.Option("--maps", help="Which maps: logits, features, or both.")] = "logits,features",
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, or both; auto: the CPU, and CUDA where there is one.")
    ] = "auto",
    threads: Threads = 1,
    rounds: Rounds = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Small maps only, to see that it works.")] = False,
    force: Replace = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Every distillation loss: time, peak memory, parameters, beside a plain mean squared error."""
    from densekd.bench import methods as bench

    refuse_existing(out, force)
    words = ["densekd", "bench", "methods", "--threads", str(threads), "--rounds", str(rounds)]
    words += [] if names is None else ["--methods", names]
    words += ["--maps", maps, "--device", device, *(["--quick"] if quick else [])]
    with measuring(quiet) as progress:
        record = bench.run(
            methods=None if names is None else _parts(names),
            maps=bench.choose_maps(_parts(maps), quick=quick),
            devices=bench.choose_devices(_parts(device)),
            threads=threads,
            rounds=rounds,
            progress=progress,
            command=shlex.join(words),
        )
    for line in [] if quiet else bench.left_out(record):
        complain(line)
    title = f"distillation losses, forward and backward, on {record.device}, {threads} CPU thread(s)"
    finish(out, record, bench.rows(record), title, quiet, as_json)


@app.command("data")
@guarded
def data(
    out: Out = Path("bench-data.json"),
    workers: Annotated[
        str, typer.Option("--workers", help="Numbers of loading processes, with commas between; 0: none.")
    ] = "0,2",
    rounds: Rounds = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Small pictures only, to see that it works.")] = False,
    force: Replace = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Training images per second from PNG and JPEG files, beside the recipe that most training scripts use."""
    from densekd.bench import data as bench

    refuse_existing(out, force)
    words = ["densekd", "bench", "data", "--workers", workers, "--rounds", str(rounds)]
    kinds, images = (bench.QUICK_KINDS, 8) if quick else (bench.KINDS, 32)
    with measuring(quiet) as progress:
        record = bench.run(
            kinds=kinds,
            workers=whole_numbers("--workers", workers),
            images=images,
            rounds=rounds,
            progress=progress,
            command=shlex.join([*words, *(["--quick"] if quick else [])]),
        )
    finish(out, record, bench.rows(record), "training images from files", quiet, as_json)


@app.command("step")
@guarded
def step(
    out: Out = Path("bench-step.json"),
    pairs: Annotated[
        str, typer.Option("--pairs", help="Networks, ResNet-101 to ResNet-18: pspnet, deeplabv3, or both.")
    ] = "pspnet,deeplabv3",
    device: Annotated[str, typer.Option("--device", help="cpu or cuda; auto: CUDA where there is one.")] = "auto",
    threads: Threads = 1,
    rounds: Rounds = 5,
    size: Annotated[int | None, typer.Option("--size", help="Height and width of the images; default 256.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Images of a step.")] = 2,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Also a compiled teacher.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny networks, to see that it works.")] = False,
    force: Replace = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """A whole training step under a teacher: as public codes take it, and with a fast teacher or stored maps."""
    from densekd.bench import step as bench

    refuse_existing(out, force)
    words = ["densekd", "bench", "step", "--pairs", pairs, "--device", device, "--threads", str(threads)]
    words += ["--rounds", str(rounds), *([] if size is None else ["--size", str(size)]), "--batch", str(batch)]
    words += [*([] if compiled else ["--no-compile"]), *(["--quick"] if quick else [])]
    with measuring(quiet) as progress:
        record = bench.run(
            pairs=_parts(pairs),
            device=device,
            threads=threads,
            rounds=rounds,
            size=size,
            batch=batch,
            quick=quick,
            compiled=compiled,
            progress=progress,
            command=shlex.join(words),
        )
    if not quiet and record.environment["compiled"].startswith("left out"):
        complain(f"exact+compile: {record.environment['compiled']}")
    title = f"one training step under a teacher, on {record.device}, {threads} CPU thread(s)"
    finish(out, record, bench.rows(record), title, quiet, as_json)
    for line in [] if quiet else bench.verdicts(record):
        complain(line)


@app.command("scaling")
@guarded
def scaling(
    out: Out = Path("bench-scaling.json"),
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Also draw it, into a file ending in .svg or .png.")
    ] = None,
    names: Annotated[
        str | None, typer.Option("--methods", help="Which, with commas between (see `densekd list methods`).")
    ] = None,
    threads: Threads = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of every size; medians are fitted.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Small maps only, to see that it works.")] = False,
    force: Replace = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """How time and memory of every distillation loss grow with N, C, H and W: fitted exponents, a figure."""
    from densekd.bench import scaling as bench
    from densekd.bench.scaling_figure import checked_kind, write_figure

    refuse_existing(out, force)
    if figure is not None:
        checked_kind(figure)
    words = ["densekd", "bench", "scaling", "--threads", str(threads), "--rounds", str(rounds)]
    words += [] if names is None else ["--methods", names]
    sizes = (bench.QUICK_MAP, bench.QUICK_DOUBLINGS) if quick else (bench.BASE_MAP, bench.DOUBLINGS)
    with measuring(quiet) as progress:
        record = bench.run(
            methods=None if names is None else _parts(names),
            base=sizes[0],
            doublings=sizes[1],
            threads=threads,
            rounds=rounds,
            judge=not quick,
            progress=progress,
            command=shlex.join([*words, *(["--quick"] if quick else [])]),
        )
    if figure is not None:
        write_figure(figure, record)
    for line in [] if quiet else bench.left_out(record):
        complain(line)
    title = f"exponents of CPU time (medians; single rounds) and of memory, {threads} CPU thread(s)"
    finish(out, record, bench.rows(record), title, quiet, as_json)
    if not quiet and "linear" in record.environment:
        complain(record.environment["linear"])


def whole_numbers(option: str, text: str) -> list[int]:
    """`0,2` as numbers; anything else is an `ArgumentError`."""
    from densekd.errors import ArgumentError

    parts = _parts(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise ArgumentError(f"{option}: expected whole numbers with commas between, for instance 0,2; got {text!r}")
    return [int(part) for part in parts]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def refuse_existing(out: Path, force: bool) -> None:
    """A record that is there is replaced only when that was asked: else a `RunError`."""
    from densekd.errors import RunError

    if out.exists() and not force:
        raise RunError(f"{out}: exists; use --force to replace it or --out for another file")


@contextmanager
def measuring(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """What a benchmark calls with (done, in all), shown on stderr."""
    with Watch() as watch:
        yield None if quiet else lambda done, total: watch.counting("measuring", done, total)


def finish(
    out: Path, record: BenchRecord, rows: Sequence[Mapping[str, Any]], title: str, quiet: bool, as_json: bool
) -> None:
    """Write the record and print it."""
    from densekd import files
    from densekd.records import dump

    files.write_json(out, dump(record))
    if as_json:
        typer.echo(json.dumps(dump(record), indent=2))
    else:
        table(rows, title=title)
    if not quiet:
        complain(f"record: {out}")
