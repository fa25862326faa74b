"""`inspect`: the modules of a network, its good taps, and what its channels look at; or two networks side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densekd.cli.guard import complain, guarded, refuse_unread
from densekd.cli.inspect_tree import show
from densekd.cli.show import Watch, table
from densekd.cli.training import Json, Overrides, QuietFlag, Trust, about_code, dotted

if TYPE_CHECKING:
    from densekd.inspection import Inspection, Subject
    from densekd.inspection.pair import PairInspection
    from densekd.inspection.sheet import Sheet


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
    image: Annotated[
        Path | None, typer.Option("--image", help="A picture: also draw a sheet of the channel maps of a tap.")
    ] = None,
    tap: Annotated[
        str | None, typer.Option("--tap", help="With --image: which tap; default the best feature tap.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --image: where the sheet goes; default inspect.png.")
    ] = None,
    channels: Annotated[int, typer.Option("--channels", min=1, help="With --image: so many channels at most.")] = 35,
    order: Annotated[
        str, typer.Option("--order", help="With --image: entropy (the most concentrated first) or index.")
    ] = "entropy",
    temperature: Annotated[
        float, typer.Option("--temperature", help="With --image: of the softmax over the positions of each channel.")
    ] = 4.0,
    raw: Annotated[bool, typer.Option("--raw", help="With --image: the values, without a softmax.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --image: replace an existing sheet.")] = False,
    trust: Trust = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Show a network's modules with shapes, strides and costs, its good taps, and the maps of an image."""
    from densekd.errors import ArgumentError, RunError
    from densekd.inspection import inspect as look
    from densekd.inspection import open_subject

    drawn = {"tap": (tap, None), "channels": (channels, 35), "order": (order, "entropy"), "raw": (raw, False)}
    written = {"temperature": (temperature, 4.0), "out": (out, None), "force": (force, False)}
    refuse_unread("--image", image is not None, **drawn, **written)
    about_code(Path(model), trust, quiet, teacher=pair)
    if pair:
        for name, given in (("--image", image), ("--checkpoint", checkpoint), ("--depth", depth)):
            if given is not None:
                raise ArgumentError(f"{name} belongs to one network; leave it or --pair out")
        _pair(model, options, size, classes, quiet, as_json)
        return
    target = Path("inspect.png") if out is None else out
    if image is not None and target.suffix.lower() != ".png":
        raise ArgumentError(f"--out {target}: expected a name that ends in .png")
    if image is not None and target.exists() and not force:
        raise RunError(f"{target}: exists; use --force to replace it or --out for another file")
    sheet = None
    with Watch() as watch:
        count = _counter(watch, 2 if image is None else 3, quiet)
        subject = open_subject(model, dotted(options), classes=classes, checkpoint=checkpoint, trust=trust)
        count()
        if image is None:
            found = look(subject, size)
        else:
            found, sheet = _with_image(subject, image, size, tap, (temperature, raw, order, channels), count)
        count()
    if sheet is not None:
        _save(sheet, target)
    show(found, sheet, depth, quiet, as_json)
    if sheet is not None and not quiet:
        _tell_sheet(sheet, subject, target)


def _counter(watch: Watch, total: int, quiet: bool) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if not quiet:
            watch.counting("inspecting", done, total)

    return count


def _with_image(
    subject: Subject,
    image: Path,
    size: tuple[int, int] | None,
    tap: str | None,
    how: tuple[float, bool, str, int],
    count: Callable[[], None],
) -> tuple[Inspection, Sheet]:
    """The tree at the image's size, and the sheet."""
    from densekd.errors import TapError
    from densekd.inspection import inspect as look
    from densekd.inspection.good import best_feature
    from densekd.inspection.sheet import draw_sheet, prepare

    prepared = prepare(subject, image, size)
    found = look(subject, prepared.size)
    count()
    best = best_feature(found.taps)
    if tap is None and best is None:
        raise TapError(f"{subject.what}: no feature tap was found; name one with --tap")
    chosen = tap or (best.tap if best is not None else "")
    temperature, raw, order, most = how
    sheet = draw_sheet(subject, prepared, chosen, temperature=temperature, raw=raw, order=order, most=most)
    return found, replace(sheet, notices=[*prepared.notices, *sheet.notices])


def _save(sheet: Sheet, out: Path) -> None:
    import io

    from densekd import files

    held = io.BytesIO()
    sheet.picture.save(held, format="PNG")
    files.write_bytes(out, held.getvalue())


def _tell_sheet(sheet: Sheet, subject: Subject, out: Path) -> None:
    for line in sheet.notices:
        complain(line)
    if not subject.trained:
        complain(
            "the maps are those of random weights and mean little: give a run folder, or weights with --checkpoint"
        )
    complain(f"sheet of {sheet.tap}: {out}")


def _pair(
    recipe: str,
    overrides: list[str] | None,
    size: tuple[int, int] | None,
    classes: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from densekd.config import load_recipe
    from densekd.inspection.pair import inspect_pair

    found = inspect_pair(load_recipe(recipe, dotted(overrides)), size, classes)
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
    else:
        table(_pair_rows(found), title=f"{found.student.what} and {found.teacher.what}")
        sys.stdout.write(f"\n{found.block()}" if found.terms else "")
    if not quiet:
        for line in dict.fromkeys(found.notices):
            complain(line)


def _pair_rows(found: PairInspection) -> list[dict[str, Any]]:
    from densekd.inspection.good import REASONS
    from densekd.inspection.tree import tap_dict

    rows = []
    for match in found.matches:
        role = match.student or match.teacher
        row: dict[str, Any] = {"what": REASONS[role.role] if role is not None else match.role}
        for who, tap, of in (("student", match.student, found.student), ("teacher", match.teacher, found.teacher)):
            row[who] = None if tap is None else tap.tap
            row[f"{who} map"] = None if tap is None else "x".join(map(str, tap.shape[1:]))
            row[f"{who} stride"] = None
            if tap is not None:
                down, across = (f"{value:.3g}" for value in tap_dict(tap, of.size)["stride"])
                row[f"{who} stride"] = down if down == across else f"{down}x{across}"
        rows.append({**row, "between": match.words})
    return rows
