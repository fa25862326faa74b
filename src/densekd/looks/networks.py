"""The maps of a network at its taps, for one image, as a term of the distillation compares them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densekd.adapters import find_layout, nearest_resize
from densekd.class_map import ClassMap
from densekd.distiller.plan import TermModules, TermPlan
from densekd.models.sizes import fitting_size
from densekd.taps import TapReader, dry_run


def tapped(network: nn.Module, taps: Iterable[str], image: Tensor, who: str) -> dict[str, Tensor]:
    """The map `(C, H, W)` of every tap for one image `(1, 3, H, W)`, in the mode the network is in.

    The hooks are the reader's own and are gone afterwards; those of a distiller record nothing.

    Raises:
        TapError: a tap that does not fire, or gives no spatial map.
    """
    reader = TapReader(network, dict.fromkeys(taps), who=who)
    try:
        found = dry_run(reader, network, (image,), {})
    finally:
        reader.close()
    size = (int(image.shape[2]), int(image.shape[3]))
    maps = {}
    for tap, value in found.maps.items():
        layout = find_layout(tuple(value.shape), size, f"tap {tap!r} of the {who}")
        maps[tap] = layout.to_nchw(value, size)[0].detach()
    return maps


def compared(
    plan: TermPlan, modules: TermModules | None, classes: ClassMap | None, student: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor]:
    """Both maps `(C, H, W)` of a term as its loss gets them: in the same classes, after the adapter.

    Args:
        modules: the term's; None: without an adapter, for a student that has none (the size is still brought to the
            teacher's).
    """
    if plan.by_class and classes is not None:
        teacher = classes.teacher(teacher[None], plan.student.shape[1])[0]
        student = classes.student(student[None])[0]
    size = (int(teacher.shape[1]), int(teacher.shape[2]))
    if modules is not None:
        adapted: Tensor = modules.adapter(student[None], size)
        return adapted[0], teacher
    if tuple(student.shape[1:]) != size:
        student = F.interpolate(student[None].float(), size, mode="bilinear", align_corners=False)[0]
    return student, teacher


def middle(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of an image `(3, H, W)`, no larger than `size`."""
    height, width = min(size[0], int(image.shape[1])), min(size[1], int(image.shape[2]))
    top, left = (int(image.shape[1]) - height) // 2, (int(image.shape[2]) - width) // 2
    return image[:, top : top + height, left : left + width]


def padded(image: Tensor, multiple: int) -> tuple[Tensor, Tensor | None]:
    """An image `(3, H, W)` as a batch of one whose sides are multiples of a number, and where it is real.

    Padded on the right and below with zeros, as an evaluation does; bool `(H, W)`, None where nothing was padded.
    """
    height, width = int(image.shape[1]), int(image.shape[2])
    tall, wide = fitting_size((height, width), multiple)
    if (tall, wide) == (height, width):
        return image[None], None
    real = torch.zeros(tall, wide, dtype=torch.bool)
    real[:height, :width] = True
    return F.pad(image, (0, wide - width, 0, tall - height))[None], real


def mask_at(real: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """The mask of a padded image at the size of a map, by nearest; None where every position counts."""
    if real is None:
        return None
    found = nearest_resize(real[None], size)[0]
    return None if bool(found.all()) or not bool(found.any()) else found
