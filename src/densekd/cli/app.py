"""All commands. Heavy imports happen inside them: `densekd --help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from densekd._version import __version__
from densekd.cli import (
    bench,
    bench_latency,
    cache,
    compare,
    data,
    demo,
    export,
    inspect,
    listing,
    looking,
    report,
    training,
    tune,
)
from densekd.cli.guard import complain
from densekd.cli.stopping import STOPPING
from densekd.errors import RunError
from densekd.launch import is_first, require_one_process

_IN_SEVERAL = ("train", "distill", "cache", "list")

app = typer.Typer(
    name="densekd",
    help="Channel-wise knowledge distillation for dense prediction: a large frozen teacher, a small student.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"densekd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere on the line).")] = False,
) -> None:
    """Options of every command."""


app.command("demo")(demo.demo)
app.command("train")(training.train)
app.command("distill")(training.distill)
app.command("evaluate")(looking.evaluate)
app.command("predict")(looking.predict)
app.command("inspect")(inspect.inspect)
app.command("export")(export.export)
app.command("doctor")(training.doctor)
app.command("compare")(compare.compare)
app.command("tune")(tune.tune)
app.command("report")(report.report)
bench.app.command("latency")(bench_latency.latency)
app.add_typer(bench.app, name="bench")
app.add_typer(cache.app, name="cache")
app.add_typer(data.app, name="data")
app.command("list")(listing.list_things)


def call(arguments: list[str]) -> int:
    """Run the command and give its exit code; a mistake on the line itself becomes one line too."""
    try:
        if next((word for word in arguments if not word.startswith("-")), "list") not in _IN_SEVERAL:
            require_one_process()
        return app(args=arguments, prog_name="densekd", standalone_mode=False) or 0
    except RunError as error:
        if is_first():
            complain(f"error: {error}")
        return 2
    except Exception as error:
        if STOPPING.asked is not None:
            return STOPPING.end()
        # Usage errors, whichever copy of click typer brings: they say themselves what is wrong.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "densekd"
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(message())
        elif is_first():
            complain(f"error: {' '.join(message().split())} (see: {path} --help)")
        return int(getattr(error, "exit_code", 2))
