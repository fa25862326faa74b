"""What is written for one image or video: masks, and an overlay with a legend."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from densekd import files
from densekd.pictures import Palette, legend, overlay, stacked


@dataclass(frozen=True)
class Prediction:
    """What was written for one image.

    Attributes:
        image: the file that was read.
        mask: PNG of the image's size. The value of a pixel is its class id; in a submission, what the server wants.
        overlay: PNG with the colours over the image and a legend below; None where none was asked for.
        height, width: of the image, after its EXIF rotation.
        shares: share of the pixels, 0 to 1, of each class that was found.
    """

    image: Path
    mask: Path
    overlay: Path | None
    height: int
    width: int
    shares: dict[str, float]

    def row(self) -> dict[str, str]:
        """A row of a table."""
        row = {
            "image": str(self.image),
            "size": f"{self.width}x{self.height}",
            "classes": _by_size(self.shares),
            "mask": str(self.mask),
        }
        return row if self.overlay is None else {**row, "overlay": str(self.overlay)}


@dataclass(frozen=True)
class VideoPrediction:
    """What was written for one video.

    Attributes:
        video: the file that was read.
        masks: folder with a PNG for every frame, `000001.png` and on; None where none were asked for.
        overlay: video of the frames with their colours; None where none was asked for.
        height, width: of a frame, as it is shown.
        frames: how many were segmented.
        shares: of each class that was found, the mean over the frames of its share of the pixels, 0 to 1.
    """

    video: Path
    masks: Path | None
    overlay: Path | None
    height: int
    width: int
    frames: int
    shares: dict[str, float]

    def row(self) -> dict[str, str]:
        """A row of a table."""
        row = {
            "image": f"{self.video} ({self.frames} frames)",
            "size": f"{self.width}x{self.height}",
            "classes": _by_size(self.shares),
            "mask": "-" if self.masks is None else str(self.masks),
        }
        return row if self.overlay is None else {**row, "overlay": str(self.overlay)}


def shares_of(label: Tensor, classes: tuple[str, ...]) -> dict[str, float]:
    """Share of the pixels of each class that is there, in the order of the ids."""
    counts = torch.bincount(label.flatten(), minlength=len(classes)).tolist()
    return {name: count / label.numel() for name, count in zip(classes, counts, strict=True) if count}


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    files.write_bytes(path, stream.getvalue())


def overlaid(
    image: Tensor, label: Tensor, shares: dict[str, float], classes: tuple[str, ...], palette: Palette, alpha: float
) -> Image.Image:
    """The colours over the image, and below it the classes that are there with their shares."""
    key = legend(
        list(shares),
        [palette[classes.index(name)] for name in shares],
        width=label.shape[1],
        notes=[_percent(share) for share in shares.values()],
        text_size=min(90, max(13, round(label.shape[1] / 45))),
    )
    return stacked([overlay(image, label, palette, alpha), key])


def _by_size(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {_percent(share)}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0005 else "<0.1%"
