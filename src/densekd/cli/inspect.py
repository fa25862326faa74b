"""`inspect`: the modules of a network, its good taps, and what its channels look at; or two networks side by side."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import Watch, table
from densekd.cli.training import Json, Overrides, QuietFlag, dotted

if TYPE_CHECKING:
    from densekd.inspection import Inspection
    from densekd.inspection.tree import Node

_DEPTH = 3


@guarded
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="What a recipe names (pspnet-resnet18, smp:PSPNet, file.py:build), or the folder of a run; with "
            "--pair a recipe.",
            metavar="MODEL",
        ),
    ],
    options: Overrides = None,
    pair: Annotated[
        bool, typer.Option("--pair", help="MODEL is a recipe: the taps of its teacher and student side by side.")
    ] = False,
    size: Annotated[
        tuple[int, int] | None, typer.Option("--size", help="Height and width of the image.", metavar="H W")
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, help="Outputs of the network; default 19, or what is known.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Weights of the whole network: a file, or a run folder.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=0, help="Levels of modules; default 3 on a terminal, else all.")
    ] = None,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Show a network's modules with shapes, strides and costs, its good taps, and the maps of an image."""
    from densekd.inspection import inspect as look
    from densekd.inspection import open_subject

    with Watch() as watch:
        subject = open_subject(model, dotted(options), classes=classes, checkpoint=checkpoint)
        if not quiet:
            watch.counting("inspecting", 1, 2)
        found = look(subject, size)
        if not quiet:
            watch.counting("inspecting", 2, 2)
    _show(found, depth, quiet, as_json)


def _show(found: Inspection, depth: int | None, quiet: bool, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
    elif sys.stdout.isatty():
        _draw(found, _DEPTH if depth is None else depth)
    else:
        table([_row(node, found) for node in found.nodes if depth is None or node.depth <= depth])
    if quiet:
        return
    for line in found.notices:
        complain(line)
    height, width = found.size
    dead = f", {found.measured.dead_parameters:,} dead" if found.measured.dead_parameters else ""
    complain(
        f"one image of {height}x{width}: {found.measured.parameters:,} live parameters{dead}, "
        f"{found.measured.flops / 1e9:.4g} GFLOPs (a multiplication and the addition after it count as two)"
    )


def _row(node: Node, found: Inspection) -> dict[str, Any]:
    from densekd.inspection.tree import shape_words, stride_words

    return {
        "module": node.module or "(the network)",
        "kind": node.kind,
        "output": "; ".join(map(shape_words, node.outputs)) or None,
        "stride": "; ".join(stride_words(output, found.size) or "-" for output in node.outputs) or None,
        "parameters": node.parameters,
        "share of FLOPs": None if node.share is None else f"{100 * node.share:.1f}%",
        "good tap": "; ".join(_tap_words(node)) or None,
        "notes": "; ".join(_notes(node)) or None,
    }


def _tap_words(node: Node) -> list[str]:
    from densekd.inspection.good import REASONS

    return [f"{tap.tap}: {REASONS[tap.role]}" for tap in node.good]


def _notes(node: Node) -> list[str]:
    return [*node.notes, *([f"{node.dead:,} dead parameters"] if node.dead else [])]


def _draw(found: Inspection, depth: int) -> None:
    """The tree on a terminal: down to `depth`, and further where a good tap lies."""
    from rich.console import Console
    from rich.tree import Tree

    wanted = {tap.module for tap in found.taps}
    branches: dict[str, Tree] = {}
    hidden = 0
    for node in found.nodes:
        if node.depth > depth and not any(tap == node.module or tap.startswith(f"{node.module}.") for tap in wanted):
            hidden += 1
            continue
        label = _label(node, found)
        if not node.module:
            branches[""] = Tree(label)
            continue
        above = node.module.rpartition(".")[0]
        branches[node.module] = branches[above].add(label)
    Console().print(branches[""])
    if hidden:
        Console(stderr=True).print(f"{hidden} modules deeper than {depth} are not shown: --depth", style="dim")


def _label(node: Node, found: Inspection) -> Any:
    from rich.text import Text

    from densekd.inspection.tree import shape_words, stride_words

    text = Text(node.module.rpartition(".")[2] or found.what, style="bold")
    text.append(f" {node.kind}", style="not bold dim")
    for output in node.outputs:
        text.append(f"  {shape_words(output)}", style="not bold cyan")
        if output.map is not None:
            text.append(f" /{stride_words(output, found.size)}", style="not bold")
    if node.parameters:
        text.append(f"  {_short(node.parameters)}", style="not bold")
    if node.share:
        text.append(f"  {100 * node.share:.1f}%", style="not bold")
    for words in _tap_words(node):
        text.append(f"  * {words}", style="not bold green")
    for words in _notes(node):
        text.append(f"  ({words})", style="not bold yellow")
    return text


def _short(count: int) -> str:
    if count >= 1e6:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.1f} k" if count >= 1e3 else str(count)
