"""A contact sheet of the channel maps of one tap: what each channel of a network looks at in an image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densekd.adapters import find_layout
from densekd.data.images import read_image
from densekd.data.transforms import EvalTransform
from densekd.errors import ArgumentError, nearest
from densekd.inspection.subject import Size, Subject
from densekd.looks.softened import entropy as entropy_in_nats
from densekd.looks.softened import log_shares
from densekd.models.sizes import fitting_size, input_multiple
from densekd.pictures import channel_map, contact_sheet, headline, photograph, stacked
from densekd.taps import TapReader, dry_run

Order = Literal["entropy", "index"]

TEMPERATURE = 4.0
MOST = 35
_COLUMNS = 6


@dataclass(frozen=True)
class Prepared:
    """A picture as people and the network see it.

    Attributes:
        shown: uint8 `(3, H, W)`, as stored.
        images: `(1, 3, h, w)`, normalised, of a size that the network takes.
    """

    shown: Tensor
    images: Tensor
    notices: list[str] = field(default_factory=list)

    @property
    def size(self) -> Size:
        """Height and width of what the network sees."""
        return int(self.images.shape[2]), int(self.images.shape[3])


@dataclass(frozen=True)
class Sheet:
    """A drawn sheet.

    Attributes:
        shape: of the tap's map, `(N, C, H, W)`.
        channels: those shown, in order.
        entropy: of every channel, in the order of the channels: 0 (all in one position) to 1 (the same everywhere).
    """

    picture: Image.Image
    tap: str
    shape: tuple[int, ...]
    channels: list[int]
    entropy: list[float]
    notices: list[str]


def prepare(subject: Subject, path: Path, size: Size | None = None) -> Prepared:
    """Read a picture and bring it to the network, normalised as its run does (else with ImageNet's mean and deviation).

    Args:
        size: height and width; None: the run's own, or that of the picture. A network that takes multiples of a number
            alone gets the picture enlarged to the next ones.

    Raises:
        DataError: no picture that can be read.
        ArgumentError: a height or width below 1.
    """
    shown = read_image(path)
    if size is not None and min(size) < 1:
        raise ArgumentError(f"size: expected height and width from 1, got {size[0]} {size[1]}")
    augment = subject.augment if size is None else subject.augment.model_copy(update={"size": size, "fit": None})
    images = EvalTransform(augment)(shown)[None]
    taken = (int(images.shape[2]), int(images.shape[3]))
    fitting = fitting_size(taken, multiple := input_multiple(subject.network))
    notices = []
    if fitting != taken:
        images = F.interpolate(images, fitting, mode="bilinear", align_corners=False, antialias=True)
        words = f"{taken[0]}x{taken[1]} was enlarged to {fitting[0]}x{fitting[1]}"
        notices.append(f"{path}: the network takes multiples of {multiple}: {words}")
    return Prepared(shown, images, notices)


def draw_sheet(
    subject: Subject,
    prepared: Prepared,
    tap: str,
    *,
    temperature: float = TEMPERATURE,
    raw: bool = False,
    order: str = "entropy",
    most: int = MOST,
) -> Sheet:
    """Draw the channels of a tap, each in its own range of colours, beside the picture.

    Args:
        temperature: each channel is shown as channel-wise distillation sees it: its softmax over the positions at this
            temperature.
        raw: show the values themselves instead.
        order: `entropy`: the most concentrated channels first; `index`: in the network's own order.
        most: so many channels at most.

    Raises:
        ArgumentError: a temperature, an order or a number that cannot be.
        TapError: no such tap, or one that gives no map.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ArgumentError(f"temperature: expected a positive number, got {temperature}")
    if order not in get_args(Order):
        raise ArgumentError(f"order {order!r}: expected entropy or index{nearest(order, get_args(Order))}")
    if most < 1:
        raise ArgumentError(f"channels: expected a number from 1, got {most}")
    from torchvision.transforms.v2.functional import resize

    values, notices = _read(subject, prepared, tap)
    logs = log_shares(values, temperature)
    entropy = entropies(logs)
    ranked = sorted(range(len(entropy)), key=lambda channel: entropy[channel]) if order == "entropy" else None
    channels = (ranked or list(range(len(entropy))))[:most]
    soft = logs.exp().view_as(values)
    which = "those of the lowest entropy" if order == "entropy" else "the first ones"
    if len(channels) < len(entropy):
        notices.append(f"{tap}: {len(channels)} of {len(entropy)} channels are shown, {which}")
    how = "values" if raw else f"softmax over positions at temperature {temperature:g}"
    head = f"{subject.what}, {tap}: {len(entropy)} channels of {values.shape[1]}x{values.shape[2]}, {how}"
    names = _names(subject, tap, len(entropy))
    cells = [(photograph(resize(prepared.shown, list(prepared.size), antialias=True)), "image")]
    size = _cell(prepared.size)
    for channel in channels:
        picture = channel_map((values if raw else soft)[channel], size)
        cells.append((picture, f"{names[channel]}, entropy {entropy[channel]:.3f}"))
    shape = (1, *(int(side) for side in values.shape))
    return Sheet(_arranged(cells, head), tap, shape, channels, entropy, notices)


def entropies(logs: Tensor) -> list[float]:
    """Entropy of each channel of `(C, P)` log shares over the logarithm of P: 0 to 1; one position: 0."""
    if logs.shape[1] == 1:
        return [0.0] * len(logs)
    found = entropy_in_nats(logs.double()) / math.log(logs.shape[1])
    return [float(value) for value in found]


def _read(subject: Subject, prepared: Prepared, tap: str) -> tuple[Tensor, list[str]]:
    """The map of a tap `(C, H, W)`, and what its reader says."""
    reader = TapReader(subject.network, [tap], who="network")
    try:
        with torch.no_grad():
            found = dry_run(reader, subject.network, (prepared.images,), {})
    finally:
        reader.close()
    tapped = found.maps[tap]
    layout = find_layout(tuple(tapped.shape), prepared.size, f"tap {tap!r}")
    words = layout.words()
    notices = [*found.notices, *([] if words is None else [f"{tap}: {words}"])]
    return layout.to_nchw(tapped, prepared.size)[0], notices


def _names(subject: Subject, tap: str, channels: int) -> list[str]:
    if tap in ("logits", "output") and len(subject.classes) == channels:
        return list(subject.classes)
    return [f"channel {number}" for number in range(channels)]


def _cell(size: Size) -> Size:
    """A size of the image's proportions in which small maps stay smooth."""
    return max(1, round(240 * size[0] / size[1])), 240


def _arranged(cells: list[tuple[Image.Image, str]], head: str) -> Image.Image:
    """Rows of six pictures under their own titles."""
    width = min(_COLUMNS, len(cells))
    rows = []
    for start in range(0, len(cells), width):
        row = cells[start : start + width]
        missing = width - len(row)
        pictures = [*(picture for picture, _ in row), *[None] * missing]
        titles = [*(title for _, title in row), *[""] * missing]
        rows.append(contact_sheet([pictures], titles, text_size=13))
    return stacked([headline(head, rows[0].width), *rows])
