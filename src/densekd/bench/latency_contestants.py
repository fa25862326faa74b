"""What `densekd bench latency` measures: networks in torch and exported students, all called alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densekd import files
from densekd.errors import ArgumentError, CheckpointError, ExportError, nearest
from densekd.export import Exported, export_run, load_exported
from densekd.export.graph import Graph
from densekd.export.make import runner
from densekd.export.manifest import FILE as MANIFEST
from densekd.export.manifest import Manifest
from densekd.inspection.subject import Size, open_subject, usual_size, without_weights
from densekd.inspection.watching import watch
from densekd.models.build import build_model
from densekd.models.sizes import fitting_size, input_multiple
from densekd.models.specs import ModelSpec
from densekd.runs import Run
from densekd.taps import main_output

TEACHER, STUDENT = "teacher", "student"
FORMATS = ("onnx", "pt2")
SUFFIXES = (".onnx", ".pt2")
SIZE = (512, 1024)


@dataclass
class Contestant:
    """One way to run one network.

    Attributes:
        label: of the run, file or model that was given.
        variant: `teacher`, `student`, `student onnx`; `model`; of a file its format.
        call: takes images `(N, 3, h, w)`, float32, as `images` makes them; gives the class map.
        size: height and width of its images.
        how: what runs it.
        file_bytes: of the exported file; of a network in torch its parameters and buffers, which is the length of their
            safetensors file but for its header.
        reference: the teacher that its speed is compared with.
        network: in torch; None for a file.
        right: what a file must compute, in torch; None where its student is not among the contestants.
        parameters, flops: live ones, for one image; None for a file.
        manifest: of a file.
        student_sha256: of the weights of the student that it is.
    """

    label: str
    variant: str
    call: Callable[[Tensor], Tensor]
    size: Size
    device: torch.device
    how: str
    file_bytes: int
    reference: Contestant | None = None
    network: nn.Module | None = None
    right: Graph | None = None
    parameters: int | None = None
    flops: int | None = None
    channels_last: bool = False
    manifest: Manifest | None = None
    student_sha256: str | None = None

    @property
    def quantised(self) -> bool:
        """A file in INT8, which may be off its network."""
        return self.manifest is not None and self.manifest.int8 is not None

    def images(self, batch: int) -> Tensor:
        """Noise: the same for all that take images of one size."""
        made = torch.randn(batch, 3, *self.size, generator=torch.Generator().manual_seed(0))
        pixels = self.manifest is not None and self.manifest.input.values == "0..255"
        made = (made * 50 + 128).clamp(0, 255) if pixels else made
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return made.to(self.device).contiguous(memory_format=layout)


def graph_of(network: nn.Module, manifest: Manifest, device: torch.device) -> Graph:
    """What the file of that manifest must compute, in torch: resizing, normalisation, softmax and argmax included."""
    multiple = input_multiple(network)
    graph = Graph(network, manifest.input, manifest.inside, binary=manifest.binary, multiple=multiple, always=False)
    return graph.eval().to(device)


def check_given(given: Sequence[str], formats: Sequence[str]) -> None:
    """Refuse what is no run with a student, no exported file and no name, before any work.

    Raises:
        ArgumentError: nothing, the same twice, weights without a graph, or an unknown format.
        RunError, ExportError: a folder that is no run, a file that is missing.
    """
    if not given:
        raise ArgumentError("bench latency: expected a run folder, an exported file or the name of a model")
    for place, text in enumerate(given):
        if text in given[:place]:
            raise ArgumentError(f"bench latency: {text} was given twice")
        if Path(text).suffix == ".safetensors" or (Path(text) / MANIFEST).is_file():
            raise ArgumentError(
                f"{text}: weights for the student's own library, as fast as the run's student: name the run"
            )
        if Path(text).is_dir():
            assert Run.load(text).weights.is_file()  # raises where there are none
        elif Path(text).suffix in SUFFIXES and not Path(text).is_file():
            raise ExportError(f"{text}: no such file")
    for name in formats:
        if name not in FORMATS:
            raise ArgumentError(f"formats: {name!r}: expected {', '.join(FORMATS)}{nearest(name, FORMATS)}")


def size_of(given: Sequence[str], *, trust: bool = False) -> Size:
    """The size that the first run or file is made for, as far as it says; else 512x1024."""
    for text in given:
        if Path(text).is_dir():
            found = usual_size(Run.load(text).recipe)
        else:
            found = load_exported(text, trust=trust).manifest.input.size if Path(text).suffix in SUFFIXES else None
        if found is not None:
            return found[0], found[1]
    return SIZE


class Gathering:
    """Builds and loads everything for images of one size.

    Args:
        size: height and width; each network takes it brought up to the multiple that it needs.
        device: where it runs.
        threads: of one call, on the CPU.
        folder: exported files are made here.
        trust: execute code that a run or a file names, though it was not made here.

    Attributes:
        contestants: in the order in which they were given; a teacher that several runs share, once.
        notices: what was left out, and what is not as it seems.
    """

    def __init__(self, size: Size, device: torch.device, threads: int, folder: Path, *, trust: bool = False) -> None:
        self._size, self._device, self._threads, self._folder, self._trust = size, device, threads, folder, trust
        self._teachers: dict[str, Contestant] = {}
        self.contestants: list[Contestant] = []
        self.notices: list[str] = []

    def add(self, text: str, formats: Sequence[str]) -> None:
        """A run folder, an exported file, or the name of a model.

        Raises:
            DensekdError: it cannot be loaded. An export that cannot be made is left out, with a notice.
        """
        if Path(text).is_dir():
            self._run(text, formats)
        elif Path(text).suffix in SUFFIXES:
            self.contestants.append(
                self._file(load_exported(text, trust=self._trust, **self._where()), Path(text).name)
            )
        else:
            subject = open_subject(text)
            self.notices += subject.notices
            self.contestants.append(self._network(subject.network, text, "model", self._size, channels_last=True))

    def relate(self) -> None:
        """Files and models are compared with the first teacher there is; files of a student here must agree with it."""
        first = next(iter(self._teachers.values()), None)
        students = {one.student_sha256: one.network for one in self.contestants if one.variant == STUDENT}
        for one in self.contestants:
            if one.reference is None and one.variant != TEACHER:
                one.reference = first
            if one.manifest is None:
                continue
            network = students.get(one.student_sha256)
            if network is not None:
                one.right = graph_of(network, one.manifest, self._device)
            else:
                self.notices.append(
                    f"{one.label}: what it gives is compared with nothing: its run, {one.manifest.source.run}, was not "
                    "given"
                )

    def _run(self, text: str, formats: Sequence[str]) -> None:
        run, label = Run.load(text, trust=self._trust), Path(text).resolve().name
        last = run.recipe.runtime.channels_last
        teacher = self._teacher(run, label)
        student = self._network(run.student().float(), label, STUDENT, self._size, channels_last=last)
        student.reference, student.student_sha256 = teacher, files.sha256_file(run.weights)
        self.contestants.append(student)
        for name in formats:
            out = self._folder / f"{label}-{len(self.contestants)}.{name}"
            try:
                export_run(run, "onnx" if name == "onnx" else "pt2", out=out, size=student.size, images=2)
                made = self._file(load_exported(out, **self._where()), label)
            except ExportError as error:
                self.notices.append(f"{label}: {name} is left out: {error}")
                continue
            made.variant, made.reference = f"{STUDENT} {name}", teacher
            self.contestants.append(made)

    def _teacher(self, run: Run, label: str) -> Contestant | None:
        """The teacher of a run's recipe, once for all runs that have it."""
        spec, best = run.recipe.teacher, run.record.best
        if spec is None or best is None:
            return None
        run.require_trust(spec)
        key = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
        if key not in self._teachers:
            own = 1 if run.recipe.task.binary else len(best.iou)
            network = self._with_weights(spec, len(spec.class_names or ()) or own, label)
            last, size = run.recipe.runtime.channels_last, spec.size or self._size
            self._teachers[key] = self._network(network.float(), label, TEACHER, size, channels_last=last)
            self.contestants.append(self._teachers[key])
        return self._teachers[key]

    def _with_weights(self, spec: ModelSpec, outputs: int, label: str) -> nn.Module:
        """A network with the weights of its checkpoint; where that is gone, or never was, with random ones."""
        why = "its recipe names no checkpoint"
        if spec.checkpoint is not None:
            try:
                return build_model(spec, outputs, notices=[])
            except CheckpointError as error:
                why = str(error)
        self.notices.append(f"{label}: the teacher has random weights, which take as long ({why})")
        return build_model(without_weights(spec)[0], outputs, notices=[])

    def _network(self, network: nn.Module, label: str, variant: str, size: Size, *, channels_last: bool) -> Contestant:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        fitted = fitting_size(size, input_multiple(network))
        if fitted != size:
            self.notices.append(
                f"{label}, {variant}: takes {fitted[0]}x{fitted[1]} in the place of {size[0]}x{size[1]}"
            )
        network = network.eval().requires_grad_(False)
        cost = watch(network, fitted).measured
        network = network.to(device=self._device, memory_format=layout)  # type: ignore[call-overload]

        def call(images: Tensor) -> Tensor:
            with torch.inference_mode():
                return main_output(network(images))

        return Contestant(
            label,
            variant,
            call,
            fitted,
            self._device,
            "torch, float32" + (", channels last" if channels_last else ""),
            sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()),
            parameters=cost.parameters,
            flops=cost.flops,
            network=network,
            channels_last=channels_last,
        )

    def _file(self, loaded: Exported, label: str) -> Contestant:
        """An exported file; on a GPU its images lie there already where torch runs it."""
        given, format_ = loaded.manifest.input, loaded.manifest.format
        size = given.size or fitting_size(self._size, given.multiple_of)
        return Contestant(
            label,
            format_ if loaded.manifest.int8 is None else f"{format_} int8",
            loaded,
            (size[0], size[1]),
            self._device,
            runner(format_),
            loaded.path.stat().st_size,
            manifest=loaded.manifest,
            student_sha256=loaded.manifest.source.student_sha256,
        )

    def _where(self) -> dict[str, Any]:
        return {"device": self._device.type, "threads": self._threads}
