"""How `inspect` shows the modules of a network: a tree on a terminal, else a table, or JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from densekd.cli.guard import complain
from densekd.cli.printable import printable
from densekd.cli.show import table

if TYPE_CHECKING:
    from densekd.inspection import Inspection
    from densekd.inspection.sheet import Sheet
    from densekd.inspection.tree import Node

_DEPTH = 3


def show(found: Inspection, sheet: Sheet | None, depth: int | None, quiet: bool, as_json: bool) -> None:
    """Print what was found, and on stderr what is to be said of it.

    Args:
        sheet: of channel maps, where one was drawn.
        depth: levels of modules; None: 3 on a terminal, else all.
        quiet: nothing on stderr.
    """
    if as_json:
        told = found.as_dict()
        if sheet is not None:
            told["sheet"] = {"tap": sheet.tap, "shape": list(sheet.shape), "channels": sheet.channels}
            told["sheet"]["entropy"] = sheet.entropy
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
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
        "notes": "; ".join(node.notes) or None,
    }


def _tap_words(node: Node) -> list[str]:
    """Why a tap here is a good one; with its name where that is not the module's."""
    from densekd.inspection.good import REASONS

    return [REASONS[tap.role] if tap.tap == node.module else f"{tap.tap}: {REASONS[tap.role]}" for tap in node.good]


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

    text = Text(printable(node.module.rpartition(".")[2] or found.what), style="bold")
    text.append(printable(f" {node.kind}"), style="not bold dim")
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
    for words in node.notes:
        text.append(f"  ({words})", style="not bold yellow")
    return text


def _short(count: int) -> str:
    if count >= 1e6:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.1f} k" if count >= 1e3 else str(count)
