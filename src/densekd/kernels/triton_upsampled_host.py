"""Cross-entropy of bilinearly up-sampled logits in Triton: which kernels start, and on what.

Extra memory: the gradient of the small logits, and 4 bytes for every full-size pixel. The host waits for nothing and
looks at no value.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from densekd.kernels import triton_upsampled as kernels
from densekd.kernels.bilinear import side
from densekd.kernels.launching import Launch

# Sizes at which nothing spills, for every type and layout (`compiled` of `densekd.kernels.aot`); not tuned on a GPU.
#: classes of a tile; the smallest that a matrix product takes
CLASSES = 16
#: full-size columns that a program of `pixels` handles, and of `slopes` at a time
PIECE, AT_A_TIME = 64, 32
#: small columns of a program of `slopes`
SMALL = 32


class Reach(NamedTuple):
    """Along one side: each output's `low` (int32) and `weight` (float32) as of `bilinear.Side`; and the outputs that
    read each input, from `first` to before `last` (int32)."""

    low: Tensor
    weight: Tensor
    first: Tensor
    last: Tensor


def triton_sums(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    smoothing: float,
    ignore_index: int,
    align_corners: bool,
    want_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `densekd.kernels.upsampled_cross_entropy.tiled`, for float16, bfloat16 and float32.

    The sum of the loss is no number where a label is neither a class nor void.
    """
    gradient = torch.empty_like(logits, dtype=torch.float32) if want_gradient else None
    call = Call(logits, labels, weights, smoothing, ignore_index, align_corners, gradient)
    for launch in launches(call):
        launch.run(logits.device)
    total, size = (part.sum(dtype=torch.float64).float() for part in call.sums)
    return total, size, logits.new_empty(0, dtype=torch.float32) if gradient is None else gradient


class Call:
    """What the kernels of one call read and write."""

    def __init__(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        smoothing: float,
        ignore_index: int,
        align_corners: bool,
        gradient: Tensor | None,
    ) -> None:
        n, height, width = labels.shape
        small_height, small_width = logits.shape[2:]
        self.logits, self.labels, self.gradient = logits, labels, gradient
        self.pieces = n * height * -(-width // PIECE)
        self.log_mass = torch.empty(labels.shape, dtype=torch.float32, device=logits.device)
        self.sums = tuple(torch.empty(self.pieces, dtype=torch.float32, device=logits.device) for _ in range(2))
        down = reach(small_height, height, align_corners, logits.device)
        along = reach(small_width, width, align_corners, logits.device)
        self.numbers: dict[str, Any] = {
            **{"logits": logits, "labels": labels, "log_mass": self.log_mass, "gradient": gradient},
            **{"losses": self.sums[0], "counted": self.sums[1]},
            "weights": logits if weights is None else torch.cat((weights, weights.sum()[None])).float(),
            **{f"row_{name}": value for name, value in down._asdict().items()},
            **{f"column_{name}": value for name, value in along._asdict().items()},
            **{"classes": logits.shape[1], "small_height": small_height, "small_width": small_width},
            **{"height": height, "width": width, "ignore_index": ignore_index},
            **_strides("x", "nchw", logits),
            **_strides("y", "nhw", labels),
            **({} if gradient is None else _strides("g", "nchw", gradient)),
            **{"truth_share": 1.0 - smoothing, "spread": smoothing / logits.shape[1]},
            **{"weighted": weights is not None, "smoothed": smoothing != 0.0},
        }


def launches(call: Call) -> Iterator[Launch]:
    """What is started, in this order."""
    n, classes, small_height, small_width = call.logits.shape
    yield _launch(kernels.pixels, call.pieces, call.numbers, {"block_c": CLASSES, "block_x": PIECE}, 4)
    if call.gradient is not None:
        tile = {"block_c": CLASSES, "block_x": AT_A_TIME, "block_j": SMALL}
        programs = n * -(-classes // CLASSES) * small_height * -(-small_width // SMALL)
        yield _launch(kernels.slopes, programs, call.numbers, tile, 4)


@lru_cache(maxsize=64)
def reach(inputs: int, outputs: int, align_corners: bool, device: torch.device) -> Reach:
    """Kept: made by a few kernels on the device, it would cost more than it is worth in every step."""
    found = side(inputs, outputs, align_corners, device)
    every = torch.arange(inputs, device=device)
    first = torch.searchsorted(found.low, every - 1)
    last = torch.searchsorted(found.low, every, right=True)
    return Reach(found.low.int(), found.weight.float(), first.int(), last.int())


def _launch(kernel: Any, programs: int, numbers: dict[str, Any], tile: dict[str, int], warps: int) -> Launch:
    """The kernel with those of the numbers that it takes."""
    taken = {name: numbers[name] for name in kernel.arg_names if name not in tile}
    constants = {name: taken.pop(name) for name in ("weighted", "smoothed")}
    return Launch(kernel, programs, taken, {**constants, **tile}, warps)


def _strides(letter: str, axes: str, of: Tensor) -> dict[str, int]:
    return {f"{letter}_{axis}": step for axis, step in zip(axes, of.stride(), strict=True)}
