"""`freeze_teacher`: a fast copy of a teacher, compared with the plain one before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from densekd.errors import ArgumentError, DensekdError, ModelError
from densekd.failures import out_of_memory
from densekd.taps import TapReader, dry_run
from densekd.teacher.choose import Measured, choose, far_off, in_format
from densekd.teacher.compiled import Compiled
from densekd.teacher.engine import Engine
from densekd.teacher.engine_checks import Options, check_network, checked_options, copied, held_out_batches
from densekd.teacher.engine_report import Candidate, EngineReport
from densekd.teacher.fidelity import MapError
from densekd.teacher.fold import Folded, fold_batchnorm
from densekd.teacher.frozen import FrozenTeacher
from densekd.teacher.graph import Graphs
from densekd.teacher.plain import Compared, Plain, plain_teacher, race, told
from densekd.teacher.precision import channels_last
from densekd.teacher.rounding import check_rounding
from densekd.teacher.source import as_batch
from densekd.teacher.winograd import take_out
from densekd.teacher.winograd_fit import Changed, use_winograd


def freeze_teacher(
    teacher: nn.Module,
    *,
    example: Any,
    taps: Iterable[str] = ("logits",),
    fold_batchnorm: bool = True,
    channels_last: bool = True,
    dtype: str = "auto",
    compile: bool = False,
    cuda_graph: bool | str = "auto",
    winograd: bool | str = "auto",
    device: torch.device | str | None = None,
    micro_batch: int | None = None,
    size: tuple[int, int] | None = None,
    temperature: float = 4.0,
    held_out: Iterable[tuple[Tensor, Tensor]] | None = None,
    num_classes: int | None = None,
    ignore_index: int = 255,
) -> FrozenTeacher:
    """A fast, frozen copy of a teacher, whose error against the plain float32 teacher is measured on the example.

    The teacher itself is left as it is. `Distiller(student, frozen, ...)` takes what comes out in its place.

    Args:
        teacher: the network.
        example: images `(N, C, H, W)` as the teacher gets them, best a batch of training; a tuple of positional or a
            dict of keyword arguments where it takes more.
        taps: the maps to give: all that the terms name as `teacher`.
        fold_batchnorm: fold batch normalisations into the layers before them where that is seen to be exact; a tapped,
            shared or hooked module is left alone.
        channels_last: store weights and images with the channels last.
        dtype: "float32", "bfloat16" or "float16"; "auto" takes the fastest whose softened maps err by at most 1% and
            whose mIoU moves by at most 0.1 point (where `held_out` is given), if it is at least 1.1 times as fast as
            float32, which it takes else, and where float32 on the CPU takes less than 20 ms on the example. float16 is
            tried on CUDA alone.
        compile: `torch.compile` with frozen weights; needs a C++ compiler.
        cuda_graph: record the forward pass of each shape (up to 4) as a CUDA graph and replay it; "auto" does so on
            CUDA where it can be recorded.
        winograd: on the CPU in float32, have 3x3 convolutions of stride 1 multiply a quarter as much, at four times
            the memory of their weights besides (`densekd.teacher.winograd`); "auto" does so where the whole teacher
            takes 20 ms or more on the example and is at least 1.1 times as fast with it.
        device: a device of its own, which it keeps; maps come back to the device of the images.
        micro_batch: images run at once at most.
        size: `(height, width)` the images are brought to, where the distiller's `TeacherInput` does not do so.
        temperature: of the softened maps, `softmax(map / temperature)` over positions.
        held_out: batches `(images, labels)` to compare mIoU on, kept in memory meanwhile; labels `(N, H, W)` in the
            teacher's classes.
        num_classes: of the teacher; default: the channels of its class map, 2 for one channel.
        ignore_index: label of void.

    Raises:
        ArgumentError, DtypeError: an option, the example or a label that cannot be.
        TapError: a tap that cannot be read.
        ModelError: the teacher cannot be copied, fails, or has no values; there is no C++ compiler; the fast copy
            gives NaN or infinite values, or in float32 differs by more than rounding.

    >>> teacher = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 5, 1))
    >>> frozen = freeze_teacher(teacher, example=torch.rand(2, 3, 16, 16), dtype="float32")
    >>> frozen.report.folded  # batch normalisations that are no step of their own any more
    1
    >>> max(error.softened for error in frozen.report.errors.values()) < 1e-4  # of the softened maps
    True
    """
    options = checked_options(
        taps=taps,
        flags={"fold_batchnorm": fold_batchnorm, "channels_last": channels_last, "compile": compile},
        dtype=dtype,
        cuda_graph=cuda_graph,
        winograd=winograd,
        device=device,
        micro_batch=micro_batch,
        size=size,
        temperature=temperature,
        num_classes=num_classes,
        ignore_index=ignore_index,
    )
    check_network(teacher)
    batch = as_batch(example)
    with plain_teacher(teacher, options, batch, held_out_batches(held_out)) as plain:
        return _Making(plain, options).make(teacher)


@dataclass
class _Making:
    """One copy on its way to a `FrozenTeacher`."""

    plain: Plain
    options: Options
    folded: Folded = field(default_factory=Folded)
    winograd: Changed = field(default_factory=Changed)
    notices: list[str] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    compared: dict[Engine, Compared] = field(default_factory=dict)
    scores: dict[Engine, float | None] = field(default_factory=dict)
    seconds: dict[Engine, float] = field(default_factory=dict)

    def make(self, teacher: nn.Module) -> FrozenTeacher:
        options, plain = self.options, self.plain
        exact = self._exact(teacher)
        engine, why = self._in_format(exact)
        if options.compile:
            self._forget(engine)
            engine.compiled = Compiled()
        if options.cuda_graph is not False and engine.device.type == "cuda":
            self._forget(engine)
            engine.graphs = Graphs(required=options.cuda_graph is True)
            for _ in range(2):  # the second run of a shape records it
                engine.maps(plain.batch)
            self.notices.extend(engine.graphs.notices)
            engine.graphs.notices.clear()
        report = self._report(engine, why)
        return FrozenTeacher(
            engine, plain.layouts, plain.class_taps, plain.channels, report, own_device=options.device is not None
        )

    def _exact(self, teacher: nn.Module) -> Engine:
        """The float32 copy: tapped, folded, in its memory format, on its device."""
        options, plain = self.options, self.plain
        device = options.device or plain.engine.device
        if options.cuda_graph is True and device.type != "cuda":
            raise ArgumentError(f"cuda_graph=True needs a CUDA device, the teacher is on {device}; use 'auto' or False")
        network = copied(teacher).to(device)
        reader = TapReader(network, options.taps, who="teacher")
        engine = replace(plain.engine, network=network, reader=reader, device=device)
        part = next(engine.parts(plain.batch))
        with told(engine, f"the example, images {tuple(part.images.shape)}"), engine.precision.around(device.type):
            dry_run(reader, network, part.args, part.kwargs)
            if options.fold_batchnorm:
                self._fold(network, lambda: reader.run_raw(network, part.args, part.kwargs), reader.hooks)
        if options.channels_last:
            channels_last(network)
            engine.channels_last = True
        self._check_exact(engine, f"after folding {len(self.folded.folded)} batch normalisations")
        self._use_winograd(engine)
        return engine

    def _use_winograd(self, engine: Engine) -> None:
        self.winograd, self.notices[:0] = use_winograd(engine, self.plain.batch, self.options)
        if not self.winograd.layers:
            return
        self._forget(engine)
        try:
            self._check_rounding(engine, self._compared(engine).errors, "in Winograd's form", "winograd=False")
        except ModelError:
            if self.options.winograd is True:
                raise
            self._forget(engine)
            take_out(engine.network)
            self.winograd = Changed(0, "the maps differ by more than rounding with it")

    def _fold(self, network: nn.Module, run: Callable[[], Any], tapped: Iterable[str]) -> None:
        try:
            self.folded = fold_batchnorm(network, run, tapped)
        except Exception as error:
            if out_of_memory(error) or isinstance(error, DensekdError):
                raise
            self.notices.append(
                "batch normalisations are not folded: the teacher runs, but not while its operators are watched "
                f"({type(error).__name__}: {' '.join(str(error).split())[:150]})"
            )

    def _check_exact(self, engine: Engine, what: str) -> None:
        try:
            errors = self._compared(engine).errors
        except (AttributeError, RuntimeError) as error:
            if not self.folded.folded:
                raise
            raise ModelError(
                f"the teacher does not run once its batch normalisations are folded ({type(error).__name__}: {error}); "
                "use fold_batchnorm=False"
            ) from error
        self._check_rounding(engine, errors, what)

    def _check_rounding(self, engine: Engine, errors: Mapping[str, MapError], *words: str) -> None:
        check_rounding(self.plain, engine, errors, set(self.folded.folded.values()), *words)

    def _in_format(self, exact: Engine) -> tuple[Engine, str]:
        name = self.options.dtype
        if name == "float32":
            return exact, "asked for"
        if name != "auto":
            engine, _, notice = in_format(exact, name, self._measured)
            self.notices.extend([notice] if notice else [])
            return engine, "asked for"
        engine, why, self.candidates, notices = choose(exact, self._weighed, self._race)
        self.notices.extend(notices)
        return engine, why

    def _measured(self, engine: Engine) -> Measured:
        compared = self._compared(engine)
        if engine not in self.scores:
            count = self.plain.score(engine)
            self.scores[engine] = None if count is None else count.miou
        return Measured(compared.errors, compared.agreement, self.scores[engine])

    def _weighed(self, engine: Engine) -> Measured:
        """For the choice: the float32 copy has the mIoU of the plain teacher, and what errs too much is not scored."""
        compared = self._compared(engine)
        measured = Measured(compared.errors, compared.agreement, None)
        if engine.precision.name == "float32":
            return replace(measured, miou=self.plain.miou)
        return self._measured(engine) if measured.near else measured

    def _compared(self, engine: Engine) -> Compared:
        if engine not in self.compared:
            self.compared[engine] = self.plain.compare(engine)
        return self.compared[engine]

    def _race(self, engines: Sequence[Engine]) -> list[float]:
        """Seconds of each engine, and the plain one's at the same time."""
        plain, *seconds = race([self.plain.engine, *engines], self.plain.batch)
        self.seconds = dict(zip(engines, seconds, strict=True))
        self.seconds[self.plain.engine] = plain
        return seconds

    def _forget(self, engine: Engine) -> None:
        """What was measured of an engine that is changed now; its answers class by class stay what they were."""
        self.compared.pop(engine, None)
        self.seconds.pop(engine, None)

    def _report(self, engine: Engine, why: str) -> EngineReport:
        plain, options = self.plain, self.options
        measured = self._measured(engine)
        self._judge(engine, measured)
        if engine not in self.seconds:
            self._race([engine])
        return EngineReport(
            dtype=engine.precision.name,
            autocast=engine.precision.autocast,
            why=why,
            device=str(engine.device),
            folded=len(self.folded.folded),
            left=self.folded.left,
            channels_last=engine.channels_last,
            compiled=engine.compiled is not None,
            cuda_graph=engine.graphs is not None and engine.graphs.recorded > 0,
            micro_batch=engine.micro_batch,
            size=engine.size,
            example=tuple(plain.batch.images.shape),
            temperature=options.temperature,
            errors=measured.errors,
            agreement=measured.agreement,
            miou_plain=plain.miou,
            miou=measured.miou,
            held_out=0 if plain.counts is None else plain.counts.images,
            seconds_plain=self.seconds[plain.engine],
            seconds=self.seconds[engine],
            candidates=tuple(self.candidates),
            winograd=self.winograd.layers if engine.precision.name == "float32" else 0,
            winograd_why=self.winograd.why,
            notices=tuple(dict.fromkeys([*plain.notices, *self.notices])),
        )

    def _judge(self, engine: Engine, measured: Measured) -> None:
        """Refuse what is wrong; say what is far off."""
        name = engine.precision.name
        for tap, error in measured.errors.items():
            if not error.finite:
                raise ModelError(
                    f"the fast teacher's map {tap!r} of the example holds NaN or infinite values in {name}; use "
                    "dtype='bfloat16', 'float32' or 'auto'"
                )
        if name == "float32":
            self._check_rounding(engine, measured.errors, "compiled," if engine.compiled else "as it is run")
            return
        self.notices.extend(far_off(name, measured, self.plain.miou))
