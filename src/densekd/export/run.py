"""`densekd.export_run`: the student of a run in any of the formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from densekd.errors import ArgumentError, RunError, nearest
from densekd.export.exported import Exported
from densekd.export.extras import require_export
from densekd.export.hub import CARD, write_hub_folder
from densekd.export.images import real_images
from densekd.export.make import GraphExport, command_of
from densekd.export.manifest import FILE, Format, OutputKind, Size
from densekd.export.options import GraphOptions, Int8Options
from densekd.export.student import student_of
from densekd.export.watching import Silent, Watching
from densekd.export.weights import write_weights
from densekd.runs.folder import Run

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors", "hub-folder": "-hub"}


def export_run(
    run: Run | str | Path,
    to: Format = "onnx",
    *,
    out: str | Path | None = None,
    size: Size | None = None,
    resize: Size | None = None,
    normalise: bool = False,
    output: OutputKind = "logits",
    images: int = 8,
    int8: Int8Options | None = None,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
    watch: Watching | None = None,
) -> Exported:
    """Export the best student of a run, alone: no teacher, no adapters.

    `onnx` and `pt2` hold the network as a graph that takes any number of images of any size, where that is true of the
    network and of the format. What was written is opened again and compared with the network in torch, on real images,
    at other batch sizes and at three other sizes; only then the file gets its name.

    `safetensors` holds the weights under the names of the student's own library, `hub-folder` is a folder that this
    library loads, with a model card. Each is loaded again by the library and compared on real images first.

    Args:
        run: a run, or its folder.
        to: `onnx`, `pt2`, `safetensors` or `hub-folder`.
        out: the file or folder; default the run's name with the format's suffix, in the current folder.
        size: height and width of the images; default any.
        resize: images of any size are resized to this height and width inside the graph.
        normalise: the graph takes plain pixels, RGB from 0 to 255.
        output: `logits`, `softmax` (binary: sigmoid) or `argmax`, at the size of the images.
        images: the file is compared on so many of the run's validation images (drawn scenes where there are none).
        int8: quantise the file to INT8 (`onnx` alone).
        overrides: keys `data.*` of the recipe, where its data moved.
        force: replace a file that is there, or a folder that `densekd export` made.
        watch: is told what happens.

    Returns:
        The exported file, opened on the CPU.

    Raises:
        RunError: the run has no student yet, or `out` is there and `force` was not given.
        ExportError: it cannot be exported as asked; or what was written is wrong, and was removed.
        ArgumentError: an argument that cannot be.
        ConfigError, DataError: `overrides`.
    """
    kinds = get_args(Format)
    if to not in kinds:
        raise ArgumentError(f"--to {to!r}: expected {', '.join(kinds)}{nearest(to, kinds)}")
    opened = run if isinstance(run, Run) else Run.load(run)
    target = Path(out) if out is not None else Path(opened.path.resolve().name + SUFFIXES[to])
    options = GraphOptions(size=size, resize=resize, normalise=normalise, output=output, images=images)
    if int8 is not None and to != "onnx":
        raise ArgumentError(f"--int8 belongs to --to onnx, not {to}")
    if to == "safetensors" or to == "hub-folder":
        _require_plain(to, options)
        return _library_export(opened, to, target, options.images, overrides or {}, force, watch or Silent())
    if to == "onnx":
        require_export("onnx", "onnxscript", "onnxruntime")
    _require_free(target, SUFFIXES[to], force)
    return GraphExport(
        student=student_of(opened),
        to=to,
        out=target,
        options=options,
        int8=int8,
        overrides=overrides or {},
        watch=watch or Silent(),
        command=command_of(opened.path, to),
    ).run()


def _library_export(
    run: Run, to: Format, target: Path, images: int, overrides: Mapping[str, Any], force: bool, watch: Watching
) -> Exported:
    """The two formats that the student's own library reads."""
    if to == "hub-folder":
        _require_free_folder(target, force)
    else:
        _require_free(target, SUFFIXES[to], force)
    student = student_of(run)
    seen = real_images(run, images, overrides)
    for line in seen.notices:
        watch.said(line)

    def verifying(done: int, total: int) -> None:
        watch.counting("verifying", done, total)

    if to == "hub-folder":
        made = write_hub_folder(student, target, seen, verifying)
        watch.said(f"to publish it, choose a license in {target / CARD}, then: hf upload OWNER/NAME {target}")
        return made
    return write_weights(student, target, seen, verifying)


def _require_plain(to: Format, options: GraphOptions) -> None:
    """Refuse options of a graph for a format that has none."""
    asked = {
        "--size": options.size is not None,
        "--resize": options.resize is not None,
        "--normalise": options.normalise,
        "--output": options.output != "logits",
    }
    for option, given in asked.items():
        if given:
            raise ArgumentError(f"{option} belongs to --to onnx and pt2; {to} holds the network as its library has it")


def _require_free_folder(target: Path, force: bool) -> None:
    if target.exists() and not target.is_dir():
        raise RunError(f"{target}: a file; give a folder with --out")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise RunError(
            f"{target}: holds files; it is never overwritten unasked. Use --force, or --out for another folder"
        )
    if not (target / FILE).is_file():
        raise RunError(f"{target}: was not made by `densekd export --to hub-folder`; --force leaves it alone")


def _require_free(target: Path, suffix: str, force: bool) -> None:
    if suffix and target.suffix != suffix:
        raise ArgumentError(f"--out {target}: expected a name that ends in {suffix}")
    if target.is_dir():
        raise RunError(f"{target}: a folder; give a file with --out")
    if target.exists() and not force:
        raise RunError(f"{target}: exists; it is never overwritten unasked. Use --force, or --out for another file")
