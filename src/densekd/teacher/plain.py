"""The plain float32 teacher on the example: what a fast copy is compared with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from densekd.adapters import Layout, find_layout
from densekd.errors import ArgumentError, DensekdError, ModelError
from densekd.failures import out_of_memory, own_place
from densekd.taps import TapReader, dry_run, holds_class_map, logits_candidate, main_output, preserved
from densekd.teacher.engine import Engine
from densekd.teacher.engine_checks import Options, copied
from densekd.teacher.fidelity import MapError, MiouCount, answered, class_map, map_errors
from densekd.teacher.precision import Precision
from densekd.teacher.source import Batch

# Rounds of a race end after this many, or after the first that began so many seconds after the start.
_ROUNDS, _SECONDS = 5, 4.0


class Compared(NamedTuple):
    """The error of each tap's maps, and the share of positions with the same class; None without class maps."""

    errors: dict[str, MapError]
    agreement: float | None


@dataclass
class Plain:
    """The plain teacher, frozen for as long as it is looked at.

    Attributes:
        engine: it in float32, without anything done to it.
        batch: the example.
        maps: its maps of the example, `(N, C, H, W)` each.
        layouts: how its maps are to be read.
        class_taps: the taps that are class maps.
        classes: the class of each position of its own output, part by part; empty where that is no class map.
        counts: of the held-out batches; None without labels.
        notices: what the dry run says.
    """

    engine: Engine
    batch: Batch
    options: Options
    maps: dict[str, Tensor]
    layouts: dict[str, Layout]
    class_taps: frozenset[str]
    classes: list[Tensor]
    channels: int | None
    notices: list[str]
    held_out: list[tuple[Tensor, Tensor]]
    counts: MiouCount | None = None

    @property
    def miou(self) -> float | None:
        """On the held-out batches; None without labels."""
        return None if self.counts is None else self.counts.miou

    def read(self, engine: Engine) -> dict[str, Tensor]:
        """An engine's maps of the example, `(N, C, H, W)` each."""
        return self._upright(engine.maps(self.batch), engine)

    def _upright(self, raw: dict[str, Tensor], engine: Engine) -> dict[str, Tensor]:
        images = self.batch.images
        size = (images.shape[2], images.shape[3]) if engine.size is None else engine.size
        return {tap: self.layouts[tap].to_nchw(tapped, size) for tap, tapped in raw.items()}

    def compare(self, engine: Engine) -> Compared:
        """An engine's maps of the example, and the classes it answers, against the plain teacher's."""
        raw, outputs = engine.whole(self.batch)
        errors = map_errors(self._upright(raw, engine), self.maps, self.options.temperature)
        if not self.classes:
            return Compared(errors, None)
        same = total = 0
        for ours, theirs in zip(_classes(outputs), self.classes, strict=True):
            equal = ours.to(theirs.device) == theirs
            same, total = same + int(equal.sum()), total + equal.numel()
        return Compared(errors, same / total)

    def score(self, engine: Engine) -> MiouCount | None:
        """An engine's intersections and unions on the held-out batches; None without labels."""
        if not self.held_out:
            return None
        if self.channels is None:
            raise ArgumentError("held_out: the teacher's own output is no class map (N, K, H, W), so it has no mIoU")
        classes = self.options.num_classes or max(self.channels, 2)
        if classes != max(self.channels, 2):
            raise ArgumentError(f"num_classes={classes}, but the teacher's class map has {self.channels} channels")
        count = MiouCount(classes, self.options.ignore_index)
        for images, labels in self.held_out:
            start = 0
            for output in engine.outputs(self.batch.with_images(images)):
                logits = class_map(output)
                assert logits is not None
                count.update(logits, labels[start : start + len(logits)])
                start += len(logits)
        return count


def _classes(outputs: list[Any]) -> list[Tensor]:
    found = [class_map(output) for output in outputs]
    return [answered(logits) for logits in found if logits is not None]


@contextmanager
def plain_teacher(
    teacher: nn.Module, options: Options, batch: Batch, held_out: list[tuple[Tensor, Tensor]]
) -> Iterator[Plain]:
    """Inside the block the teacher is in evaluation mode and tapped; afterwards it is as it was.

    Raises:
        TapError: a tap cannot be read.
        ModelError: the teacher fails on the example, or gives maps that are not finite.
    """
    first = next((t for t in (*teacher.parameters(), *teacher.buffers())), None)
    device = batch.images.device if first is None else first.device
    exact = all(t.dtype == torch.float32 for t in (*teacher.parameters(), *teacher.buffers()) if t.is_floating_point())
    notices = [] if exact else ["the teacher came in another number format; it is compared with itself in float32"]
    with preserved(teacher):
        network = teacher if exact else copied(teacher)
        network.eval()
        reader = TapReader(network, options.taps, who="teacher")
        try:
            engine = Engine(
                network,
                reader,
                Precision("float32"),
                device,
                size=options.size,
                micro_batch=options.micro_batch,
            )
            yield _look(engine, options, batch, held_out, notices)
        finally:
            reader.close()


def _look(
    engine: Engine, options: Options, batch: Batch, held_out: list[tuple[Tensor, Tensor]], notices: list[str]
) -> Plain:
    part = next(engine.parts(batch))
    size = (part.images.shape[2], part.images.shape[3])
    with told(engine, f"the example, images {tuple(part.images.shape)}"), engine.precision.around(engine.device.type):
        found = dry_run(engine.reader, engine.network, part.args, part.kwargs)
        layouts = {
            tap: find_layout(tuple(tapped.shape), size, f"tap {tap!r} of the teacher")
            for tap, tapped in found.maps.items()
        }
        raw, outputs = engine.whole(batch)
    maps = {tap: layouts[tap].to_nchw(tapped, size) for tap, tapped in raw.items()}
    for tap, tapped in maps.items():
        if not bool(tapped.isfinite().all()):
            raise ModelError(
                f"the teacher's map {tap!r} of the example holds NaN or infinite values already in float32: check its "
                "weights and the normalisation of the images"
            )
    read = [
        f"tap {tap!r} of the teacher: {words}"
        for tap, layout in layouts.items()
        if (words := layout.words()) is not None
    ]
    whole = holds_class_map(found.output)
    plain = Plain(
        engine,
        batch,
        options,
        maps,
        layouts,
        _class_taps(engine, found.output, maps),
        _classes(outputs),
        main_output(found.output).shape[1] if whole else None,
        [*notices, *found.notices, *read],
        held_out,
    )
    with told(engine, "the held-out images"):
        plain.counts = plain.score(engine)
    return plain


def _class_taps(engine: Engine, output: Any, maps: dict[str, Tensor]) -> frozenset[str]:
    if not holds_class_map(output):
        return frozenset()
    classes, candidate = main_output(output).shape[1], logits_candidate(engine.network)
    heads = {None, *([candidate[0]] if candidate else []), engine.reader.names.get("logits", (None,))[0]}
    return frozenset(
        tap
        for tap, name in engine.reader.names.items()
        if name.path in heads and name.item in (None, "out", "logits") and maps[tap].shape[1] == classes
    )


@contextmanager
def told(engine: Engine, what: str) -> Iterator[None]:
    """Errors of the network's own code say on what it failed.

    Raises:
        ModelError: it fails.
    """
    try:
        yield
    except DensekdError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        place = own_place(error)
        raise ModelError(
            f"the teacher ({type(engine.network).__name__}) fails on {what} on {engine.device}: "
            f"{f'{place}: ' if place else ''}{type(error).__name__}: {error}"
        ) from error


def race(engines: Sequence[Engine], batch: Batch) -> list[float]:
    """Seconds of each engine for one forward pass over the batch: the fastest of up to 5 rounds, taken in turns."""
    best = [float("inf")] * len(engines)
    start = time.perf_counter()
    for _ in range(_ROUNDS):
        for place, engine in enumerate(engines):
            best[place] = min(best[place], seconds_of(engine, batch))
        if time.perf_counter() - start > _SECONDS:
            break
    return best


def seconds_of(engine: Engine, batch: Batch) -> float:
    """Seconds of one forward pass over the batch."""
    _wait(engine.device)
    start = time.perf_counter()
    engine.maps(batch)
    _wait(engine.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
