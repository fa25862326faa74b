"""How the axes of a tapped map are to be read, told once from the map's shape and the image's height and width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from densekd.errors import TapError

Kind = Literal["NCHW", "NHWC", "NLC", "NCL", "NHW"]

# Class and register tokens that stand before the grid: none, one (ViT), two (DeiT), five (four registers), nine.
_MAX_LEADING = 9
# Strides that networks use: powers of two, and 14 (DINOv2).
_STRIDES = (1, 2, 4, 8, 14, 16, 32, 64)
# A map's height-to-width ratio may differ from the image's by this factor (rounding, padding) and still fit.
_RATIO_SLACK = 1.3


@dataclass(frozen=True)
class Layout:
    """The axes of a tapped map.

    Attributes:
        kind: "NCHW", "NHWC", "NHW" (one channel, no channel axis), or for tokens "NLC" and "NCL".
        leading: class or register tokens that stand before the grid of the others.
        stride: pixels from one token to the next, in both directions.
        round_up: the last row and column of tokens are kept when they are only partly filled.
    """

    kind: Kind
    leading: int = 0
    stride: int = 0
    round_up: bool = False

    def to_nchw(self, tapped: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The map as `(N, C, H, W)`; nothing is copied where a view will do.

        Args:
            tapped: the map as the tapped module gave it.
            image_size: height and width of the images it was made from.

        Raises:
            TapError: the map of this step does not fit the layout found in the dry run.
        """
        if tapped.dim() != (4 if self.kind in ("NCHW", "NHWC") else 3):
            raise TapError(f"a map read as {self.kind} in the dry run came with shape {tuple(tapped.shape)}")
        if self.kind == "NCHW":
            return tapped
        if self.kind == "NHWC":
            return tapped.permute(0, 3, 1, 2)
        if self.kind == "NHW":
            return tapped.unsqueeze(1)
        tokens = tapped.transpose(1, 2) if self.kind == "NLC" else tapped
        height, width = _grid(image_size, self.stride, self.round_up)
        if tokens.shape[2] != self.leading + height * width:
            raise TapError(
                f"{tokens.shape[2]} tokens came for an image of {image_size[0]}x{image_size[1]}; expected "
                f"{self.leading} leading ones and a grid of {height}x{width} (one per {self.stride} pixels, as in "
                "the dry run); use images of the size of the example"
            )
        return tokens[:, :, self.leading :].reshape(*tokens.shape[:2], height, width)

    def words(self) -> str | None:
        """What is done to the map, for a notice; None for `(N, C, H, W)`."""
        if self.kind == "NCHW":
            return None
        if self.kind in ("NHWC", "NHW"):
            return f"read as ({', '.join(self.kind)})"
        axes = ", ".join(self.kind)
        extra = f" behind {self.leading} leading token{'s' if self.leading > 1 else ''}" if self.leading else ""
        return f"tokens ({axes}) brought to a grid of one per {self.stride} pixels{extra}"


def find_layout(shape: tuple[int, ...], image_size: tuple[int, int], where: str) -> Layout:
    """The layout of a map of `shape` made from images of `image_size` `(H, W)`.

    * 4 axes: `(N, C, H, W)`, unless its height-to-width ratio is not the image's while that of
      `(N, H, W, C)` is.
    * 3 axes: exactly the image's height and width: one channel. Otherwise tokens `(N, L, C)`, or `(N, C, L)` where
      only the last axis fits a stride that networks use. L is a grid of the image's own height and width at one
      whole stride, behind as few leading tokens as possible (9 at most: a class token and 8 registers).

    Args:
        shape: of the map as the tapped module gave it.
        image_size: height and width of the images it was made from.
        where: the tap, for the message of an error.

    Raises:
        TapError: the shape has no spatial axes, or no grid fits.

    >>> layout = find_layout((2, 197, 768), image_size=(224, 224), where="blocks.11")  # a vision transformer's tokens
    >>> layout
    Layout(kind='NLC', leading=1, stride=16, round_up=False)
    >>> layout.to_nchw(torch.rand(2, 197, 768), (224, 224)).shape
    torch.Size([2, 768, 14, 14])
    """
    shape = tuple(shape)
    if len(shape) == 4:
        upright, last = _misfit(shape[2:], image_size), _misfit(shape[1:3], image_size)
        channels_last = upright > math.log(_RATIO_SLACK) and last < min(upright, math.log(_RATIO_SLACK))
        return Layout("NHWC" if channels_last else "NCHW")
    if len(shape) == 3:
        if shape[1:] == tuple(image_size):
            return Layout("NHW")
        tokens_first, tokens_last = (_token_grid(length, image_size) for length in shape[1:])
        if tokens_first is not None and (_is_usual(tokens_first) or not _is_usual(tokens_last)):
            return Layout("NLC", *tokens_first)
        if tokens_last is not None:
            return Layout("NCL", *tokens_last)
        raise TapError(
            f"{where}: cannot tell the grid of a map of shape {shape} made from an image of "
            f"{image_size[0]}x{image_size[1]}: neither {shape[1]} nor {shape[2]} is a grid of one token per whole "
            f"number of pixels with at most {_MAX_LEADING} leading tokens; tap a module that returns (N, C, H, W)"
        )
    raise TapError(
        f"{where}: expected a spatial map, (N, C, H, W), (N, H, W, C) or tokens (N, L, C), got shape {shape}; "
        "tap a module before the pooling or flattening"
    )


def _is_usual(found: tuple[int, int, bool] | None) -> bool:
    return found is not None and found[1] in _STRIDES


def _misfit(size: tuple[int, ...], image_size: tuple[int, int]) -> float:
    return abs(math.log(size[0] * image_size[1] / (size[1] * image_size[0])))


def _grid(image_size: tuple[int, int], stride: int, round_up: bool) -> tuple[int, int]:
    up = stride - 1 if round_up else 0
    return (image_size[0] + up) // stride, (image_size[1] + up) // stride


def _token_grid(length: int, image_size: tuple[int, int]) -> tuple[int, int, bool] | None:
    """Leading tokens, stride and rounding of a grid of `length` tokens.

    Where several fit: strides that networks use first, then those that divide the image, then fewer leading tokens.
    """
    best: tuple[int, int, bool] | None = None
    best_order: tuple[bool, bool, int, bool] | None = None
    for stride in range(1, max(image_size) + 1):
        exact = image_size[0] % stride == 0 and image_size[1] % stride == 0
        for round_up in (False,) if exact else (False, True):
            height, width = _grid(image_size, stride, round_up)
            leading = length - height * width
            if height * width == 0 or not 0 <= leading <= _MAX_LEADING:
                continue
            order = (stride not in _STRIDES, not exact, leading, stride == 14)
            if best_order is None or order < best_order:
                best, best_order = (leading, stride, round_up), order
    return best
