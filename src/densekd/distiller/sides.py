"""What the dry run says of every tap of one network: layout, shape, and whether it is the class map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from densekd.adapters import Layout, find_layout
from densekd.distiller.asking import chosen, not_given
from densekd.distiller.plan import Side
from densekd.errors import TapError
from densekd.taps import DryRun, TapReader, dry_run, holds_class_map, logits_candidate, main_output
from densekd.teacher import Batch, LiveTeacher, TeacherSource


@dataclass
class Sides:
    """One network's sides by tap; `classes` are the channels of its class map, where it has one."""

    sides: dict[str, Side]
    classes: int | None
    notices: list[str] = field(default_factory=list)


def student_sides(student: nn.Module, reader: TapReader, found: DryRun, batch: Batch) -> Sides:
    """The student's sides.

    Raises:
        TapError: a map without spatial axes, or without a gradient.
    """
    for tap, tapped in found.maps.items():
        if not tapped.requires_grad:
            raise TapError(
                f"tap {tap!r} of the student carries no gradient, so a term there would teach the student nothing: "
                "everything before it is frozen, or it runs under no_grad (as re-entrant checkpointing does: "
                "use_reentrant=False); tap a later module"
            )
    return _sides("student", student, reader, found, batch)


def teacher_sides(source: TeacherSource, taps: Sequence[str], batch: Batch) -> Sides:
    """The teacher's sides, from one run without a graph.

    Raises:
        TapError: a map without spatial axes, or one that the source does not give.
    """
    with torch.no_grad():
        if isinstance(source, LiveTeacher):
            missing = [tap for tap in taps if tap not in source.reader.names]
            if missing:
                raise TapError(not_given(missing[0], source.reader.names))
            network = source.network.eval()
            found = dry_run(source.reader, network, batch.args, batch.kwargs)
            return _sides("teacher", network, source.reader, found, batch)
        maps = chosen(getattr(source, "example", source.maps)(batch), taps)
    known = getattr(source, "class_taps", ("logits", "output"))
    upright = Layout("NCHW") if getattr(source, "nchw", False) else None
    classes = getattr(source, "classes", None)
    sides = {tap: _side("teacher", tap, tapped, batch, tap in known, classes, upright) for tap, tapped in maps.items()}
    return Sides(sides, classes, list(getattr(source, "notices", ())))


def _sides(who: str, network: nn.Module, reader: TapReader, found: DryRun, batch: Batch) -> Sides:
    whole = holds_class_map(found.output)
    classes = main_output(found.output).shape[1] if whole else None
    candidate = logits_candidate(network)
    sides = {}
    for tap, tapped in found.maps.items():
        name = reader.names[tap]
        if name.path is None:
            is_classes = whole and name.item in (None, "out", "logits")
        else:
            known = tap == "logits" or (candidate is not None and name.path == candidate[0])
            is_classes = known and tapped.dim() == 4 and tapped.shape[1] == classes
        sides[tap] = _side(who, tap, tapped, batch, is_classes, classes)
    return Sides(sides, classes, found.notices)


def _side(
    who: str,
    tap: str,
    tapped: Tensor,
    batch: Batch,
    is_classes: bool,
    classes: int | None,
    layout: Layout | None = None,
) -> Side:
    images = batch.images
    if tapped.shape[:1] != images.shape[:1]:
        raise TapError(
            f"tap {tap!r} of the {who}: expected a map of {images.shape[0]} images along the first axis, got shape "
            f"{tuple(tapped.shape)}; tap a module that keeps the batch first"
        )
    if tapped.numel() == 0:
        raise TapError(f"tap {tap!r} of the {who}: a map of nothing, shape {tuple(tapped.shape)}; tap another module")
    size = (images.shape[2], images.shape[3])
    layout = layout or find_layout(tuple(tapped.shape), size, f"tap {tap!r} of the {who}")
    shape = layout.to_nchw(tapped, size).shape
    return Side(tap, layout, shape, is_classes, is_classes or shape[1] == classes)


def size_of(images: Tensor) -> tuple[int, int]:
    """Height and width."""
    return images.shape[2], images.shape[3]


def call(source: object, method: str, *args: Any) -> None:
    """Call a method that a teacher source may have."""
    found = getattr(source, method, None)
    if found is not None:
        found(*args)
