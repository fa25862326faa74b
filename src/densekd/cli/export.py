"""`export`: the student of a run as a file that runs elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densekd.cli.guard import complain, guarded, refuse_unread
from densekd.cli.show import Watch, table
from densekd.cli.training import Json, Overrides, QuietFlag, Trust, about_code, dotted

if TYPE_CHECKING:
    from densekd.export import Manifest

RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]
_SIZE = "HEIGHT WIDTH"


@guarded
def export(
    run: RunArgument,
    overrides: Overrides = None,
    to: Annotated[str, typer.Option("--to", help="onnx, pt2, safetensors or hub-folder.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", help="File or folder; default the run's name, in the current folder.")
    ] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option("--size", metavar=_SIZE, help="Images of this size alone; default any.")
    ] = None,
    resize: Annotated[
        tuple[int, int] | None,
        typer.Option("--resize", metavar=_SIZE, help="Images of any size, resized to this one inside the file."),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="The file takes plain pixels, RGB from 0 to 255.")
    ] = False,
    output: Annotated[str, typer.Option("--output", help="What comes out: logits, softmax or argmax.")] = "logits",
    images: Annotated[int, typer.Option("--images", help="Validation images that the file is compared on.")] = 8,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise to INT8 (onnx); mIoU before and after.")] = False,
    calibration: Annotated[int, typer.Option("--calibration", help="INT8: training images for value ranges.")] = 100,
    max_drop: Annotated[
        float,
        typer.Option("--max-drop", min=0.0, max=100.0, help="INT8: points of mIoU it may cost; else no file is left."),
    ] = 1.0,
    score: Annotated[int | None, typer.Option("--score", help="INT8: validation images for mIoU; default all.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    trust: Trust = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Write a run's best student as ONNX, pt2, safetensors or a folder of its own library; verified after writing."""
    from densekd.export import Int8Options, export_run
    from densekd.runs import Run

    refuse_unread("--int8", int8, calibration=(calibration, 100), max_drop=(max_drop, 1.0), score=(score, None))
    chosen = Int8Options(calibration=calibration, max_drop=max_drop / 100, score=score) if int8 else None
    opened = Run.load(run, trust=trust)
    about_code(run, trust, quiet)
    with Watch() as watch:
        made = export_run(
            opened,
            to,  # type: ignore[arg-type]  # any word: it says itself which there are
            out=out,
            size=size,
            resize=resize,
            normalise=normalise,
            output=output,  # type: ignore[arg-type]
            images=images,
            int8=chosen,
            overrides=dotted(overrides),
            force=force,
            watch=None if quiet else watch,
        )
    if as_json:
        told = {"path": str(made.path), "bytes": _bytes(made.path), "manifest": json.loads(made.manifest.text())}
        sys.stdout.write(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
        return
    table(_rows(made.path, made.manifest), title=str(made.path))
    if not quiet:
        complain(f"written: {made.path}")


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def _rows(path: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """What the file is, a line each."""
    given, inside, found, int8 = manifest.input, manifest.inside, manifest.verified, manifest.int8
    size = "any size" if given.size is None else f"{given.size[0]}x{given.size[1]}"
    if given.size is None and given.multiple_of > 1:
        size = f"sides that are multiples of {given.multiple_of}"
    told: dict[str, Any] = {
        "format": manifest.format,
        "bytes": _bytes(path),
        "input": f"(N, {given.channels}, H, W) RGB, {size}, {given.values}",
        "resized inside": None if inside.resize is None else f"{inside.resize[0]}x{inside.resize[1]}",
        "output": f"{inside.output}, {len(manifest.classes)} classes",
    }
    if found is not None:
        sizes = " ".join(f"{height}x{width}" for height, width in found.sizes)
        batches = " ".join(map(str, found.batches))
        which = "" if int8 is None else "before INT8: "
        told |= {
            f"{which}verified on": f"{found.of}; sizes {sizes}; batches {batches}; {found.by}",
            f"{which}max abs error": None if found.max_abs_error is None else float(f"{found.max_abs_error:.3g}"),
            f"{which}argmax agreement": found.argmax_agreement,
            f"{which}undecided pixels": f"{found.undecided} of {found.pixels}, {found.different} differ",
        }
    if int8 is not None:
        told |= {
            "INT8: mIoU": f"{100 * int8.miou_before:.2f} -> {100 * int8.miou_after:.2f} on {int8.images} images",
            "INT8: bytes": f"{int8.bytes_before} -> {int8.bytes_after}",
            "INT8: calibrated on": f"{int8.calibration_images} training images",
        }
    return [{"export": name, "value": value} for name, value in told.items() if value is not None]
