"""Export the student of a run as a graph: trace, write, verify, and only then give the file its name."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd import files
from densekd.errors import ExportError
from densekd.export.blame import at_fault, described, size_dependent
from densekd.export.exported import Exported
from densekd.export.graph import Graph
from densekd.export.images import RealImages, open_data, real_images
from densekd.export.int8 import quantise, write_manifest
from densekd.export.library import without_folders
from densekd.export.load import load_exported
from densekd.export.manifest import InputInfo, InsideInfo, Manifest, Size, evaluated_as
from densekd.export.onnx_file import open_onnx
from densekd.export.options import GraphOptions, Int8Options
from densekd.export.pooling import pooled_to_places
from densekd.export.pt2_file import open_pt2
from densekd.export.sizes import accepted_sizes, class_map_size, in_words, other_sizes
from densekd.export.student import Student
from densekd.export.verify import WrongExportError, compare
from densekd.export.watching import Watching
from densekd.export.writing import OnnxGraph, onnx_graph, pt2_bytes, traced
from densekd.models.sizes import fitting_size


@dataclass
class GraphExport:
    """One export of a student as a graph.

    Attributes:
        to: the format.
        out: the file.
        overrides: `data.*` keys of the recipe, for the images.
        command: that exports it, without sizes; for messages.
    """

    student: Student
    to: Literal["onnx", "pt2"]
    out: Path
    options: GraphOptions
    int8: Int8Options | None
    overrides: Mapping[str, Any]
    watch: Watching
    command: str

    def run(self) -> Exported:
        """Do it.

        Raises:
            ExportError: it cannot be done, or what was written is wrong; no file is left.
        """
        data = None if self.int8 is None else open_data(self.student.run, self.overrides)
        seen = real_images(self.student.run, self.options.images, self.overrides)
        plan = self._planned(seen)
        for line in plan.manifest.notices:
            self.watch.said(line)
        temporary = files.temporary_name(self.out)
        quantised = temporary.with_name(f".int8{temporary.name}")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            manifest = self._verified(plan, seen, temporary)
            if self.int8 is not None and data is not None:
                made = quantise(temporary, quantised, manifest, data, self.student.task, self.int8, self.watch)
                for _ in range(3):  # the manifest is a part of the file, and says how large that is
                    write_manifest(quantised, manifest.model_copy(update={"int8": made}))
                    made = made.model_copy(update={"bytes_after": quantised.stat().st_size})
                quantised.replace(temporary)
            files.give_name(temporary, self.out)
        finally:
            temporary.unlink(missing_ok=True)
            quantised.unlink(missing_ok=True)
        return load_exported(self.out)

    def _planned(self, seen: RealImages) -> Plan:
        """What goes in and out, and the graph."""
        options, student, info = self.options, self.student, self.student.network_info
        augment = student.recipe.data.augment
        stored = (int(seen.images[0].shape[1]), int(seen.images[0].shape[2]))
        base, multiple, always = options.size or stored, 1, False
        others: tuple[Size, ...] = ()
        network_size = options.resize or options.size
        if network_size is not None:
            self._require_takes(fitting_size(network_size, student.multiple))
            if options.size is None:
                others = other_sizes(base, 1)
        else:
            try:
                found = accepted_sizes(student.network, augment.resized(*stored), student.multiple)
            except ExportError as error:
                raise ExportError(f"{error}. {self._fixed_size(augment.resized(*stored))}") from None
            base, others, multiple, always = found.base, found.others, found.multiple, not found.same
            if self.to == "onnx":
                self._require_no_places(base, others[0])
        given = InputInfo(
            mean=augment.mean,
            std=augment.std,
            values="0..255" if options.normalise else "normalised",
            size=options.size,
            multiple_of=multiple,
        )
        inside = InsideInfo(normalise=options.normalise, resize=options.resize, output=options.output)
        manifest = Manifest(
            format=self.to,
            classes=student.task.class_names,
            palette=student.palette,
            binary=student.task.binary,
            # The file is its own network: which folder built it does not matter any more.
            network=info.model_copy(update={"model": without_folders(info.model)}),
            input=given,
            inside=inside,
            evaluated=evaluated_as(student.recipe),
            source=student.source,
            notices=[*seen.notices, *self._differences()],
        )
        graph = Graph(
            student.network, given, inside, binary=student.task.binary, multiple=student.multiple, always=always
        )
        return Plan(manifest, graph.eval(), base, others)

    def _differences(self) -> list[str]:
        """Where the run's evaluation does more than the file."""
        found, recipe = [], self.student.recipe
        if recipe.evaluation.views > 1 or recipe.evaluation.crop is not None:
            found.append(
                f"the run was scored with {recipe.evaluation.in_words()}; the file takes one image, whole, at a time"
            )
        if recipe.runtime.precision != "float32":
            found.append(f"the run computes in {recipe.runtime.precision}; the file computes in float32")
        return found

    def _require_takes(self, size: Size) -> None:
        try:
            class_map_size(self.student.network, size)
        except Exception as error:  # whatever the network raises
            raise ExportError(
                f"the network does not take images of {in_words(size)}; torch says {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from None

    def _require_no_places(self, base: Size, other: Size) -> None:
        """Refuse in seconds what a traced file would be refused for: tracing takes a minute with large networks."""
        names = pooled_to_places(self.student.network, base, other)
        if names:
            why = "ONNX has no operator for it: torch's exporter writes down which positions it takes at one size"
            raise self._one_size_only(why, names, base)

    def _verified(self, plan: Plan, seen: RealImages, path: Path) -> Manifest:
        """Trace, write to `path`, compare, and write again with what the comparison found."""
        self.watch.said(f"tracing the student on images of {in_words(plan.base)}")
        dynamic = self.options.size is None
        try:
            program = traced(plan.graph, plan.base, dynamic=dynamic)
        except ExportError as error:
            if self.options.size is not None or self.options.resize is not None:
                raise
            raise self._one_size_only(f"{error}", size_dependent(plan.graph.network), plan.base) from error
        graph: OnnxGraph | None = None
        if self.to == "onnx":
            self.watch.said("writing ONNX")
            graph = onnx_graph(program)
        images = seen.images if self.options.size is None else [_resized(one, self.options.size) for one in seen.images]

        def write(manifest: Manifest) -> Exported:
            if graph is not None:
                graph.save(path, manifest)
                return open_onnx(path, "cpu", None)
            path.write_bytes(pt2_bytes(program, manifest))
            return open_pt2(path, "cpu", None)

        file = write(plan.manifest)
        try:
            found = compare(
                plan.graph, file, images, plan.others, lambda done, total: self.watch.counting("verifying", done, total)
            )
        except WrongExportError as error:
            raise self._explained(error, plan, graph) from error
        manifest = plan.manifest.model_copy(
            update={"verified": found.verified(len(images), seen.words, runner(self.to))}
        )
        write(manifest)
        return manifest

    def _explained(self, error: WrongExportError, plan: Plan, graph: OnnxGraph | None) -> ExportError:
        """The same error with the module at fault, where the size of the images is the reason."""
        if error.size == plan.base or self.options.size is not None or self.options.resize is not None:
            return ExportError(f"the exported file is wrong and was removed: {error}")
        name = None
        if graph is not None:
            name = at_fault(graph, plan.graph, torch.zeros(2, 3, *error.size).normal_(generator=_fixed()))
        known = size_dependent(plan.graph.network)
        alike = [one for one in known if one != name] if name in known else []
        return self._one_size_only(str(error), [name, *alike] if name is not None else known, plan.base)

    def _one_size_only(self, why: str, names: list[str], base: Size) -> ExportError:
        who = f"its module {described(self.student.network, names)}" if names else "the file"
        return ExportError(
            f"the student cannot be exported to {self.to} for images of any size: {who} would be right at one size "
            f"alone. {why[:1].upper()}{why[1:]}. {self._fixed_size(base)}"
        )

    def _fixed_size(self, size: Size) -> str:
        sides = f"{size[0]} {size[1]}"
        return (
            f"Fix the size: `{self.command} --size {sides}`, or let the file resize images of any size: "
            f"`{self.command} --resize {sides}`"
        )


@dataclass
class Plan:
    """What an export will be.

    Attributes:
        manifest: as far as it is known before verification.
        graph: what is traced.
        base: the size it is traced with.
        others: sizes it must be right at, too.
    """

    manifest: Manifest
    graph: Graph
    base: Size
    others: tuple[Size, ...]


def command_of(run: Path, to: str) -> str:
    """The command that exports a run, as it can be typed."""
    return f"densekd export {shlex.quote(str(run))} --to {to}"


def _resized(image: Tensor, size: Size) -> Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    # Of 8 bits torch refuses one pixel alone, with an internal error.
    image = image.float() if size == (1, 1) else image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def runner(to: str) -> str:
    """What runs a file of that format here, with its version."""
    if to == "pt2":
        return f"torch {torch.__version__}"
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"
