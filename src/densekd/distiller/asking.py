"""How the teacher's source is asked for its maps in a step: started first, collected when the student is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from densekd.distiller.plan import TermPlan
from densekd.errors import TapError, nearest
from densekd.teacher import Batch, TeacherSource


def asked(
    source: TeacherSource, images: nn.Module | None, batch: Batch, plans: Sequence[TermPlan]
) -> tuple[Batch, Callable[[], dict[str, Tensor]]]:
    """Start the teacher: the batch as it gets it, and what waits for its maps.

    Args:
        images: makes the teacher's images of the student's, where they are not the same.
    """
    if not plans:
        return batch, dict
    taps = [plan.teacher.tap for plan in plans]
    with torch.no_grad():
        if images is not None and wants_images(source):
            batch = batch.with_images(images(batch.images))
        started = submitted(source, batch)

    def collect() -> dict[str, Tensor]:
        with torch.no_grad():
            return chosen(started(), taps)

    return batch, collect


def wants_images(source: TeacherSource) -> bool:
    """Whether a source looks at the images of a batch: one that has stored its maps does not."""
    return bool(getattr(source, "needs_images", True))


def submitted(source: TeacherSource, batch: Batch) -> Callable[[], Mapping[str, Tensor]]:
    """Ask a source for its maps: what is returned gives them, once they are wanted."""
    submit: Callable[[Batch], Callable[[], Mapping[str, Tensor]]] | None = getattr(source, "submit", None)
    if submit is not None:
        return submit(batch)
    maps = source.maps(batch)
    return lambda: maps


def chosen(maps: Mapping[str, Tensor], taps: Sequence[str]) -> dict[str, Tensor]:
    """The maps of `taps`, detached.

    Raises:
        TapError: the source does not give one of them.
    """
    for tap in taps:
        if not isinstance(maps.get(tap), Tensor):
            raise TapError(not_given(tap, maps))
    return {tap: maps[tap].detach() for tap in taps}


def not_given(tap: str, given: Mapping[str, object]) -> str:
    """That a source has no map for a tap."""
    return (
        f"the teacher source gives no map {tap!r}{nearest(tap, given)}; it gives: "
        f"{', '.join(map(repr, given)) or 'none'}; name its taps when it is made, or change the term's teacher tap"
    )
