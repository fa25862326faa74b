"""What was asked of an export of the graph: sizes, what goes inside, how it is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from densekd.errors import ArgumentError, nearest
from densekd.export.manifest import OutputKind, Size


@dataclass(frozen=True)
class GraphOptions:
    """Of the formats that hold the network as a graph: onnx and pt2.

    Attributes:
        size: height and width of the images; None: any, where that is true.
        resize: images are resized to it inside the graph.
        normalise: the graph takes plain pixels, RGB from 0 to 255.
        output: `logits`, `softmax` or `argmax`.
        images: real images that the file is compared on.

    Raises:
        ArgumentError: a value that cannot be.
    """

    size: Size | None = None
    resize: Size | None = None
    normalise: bool = False
    output: OutputKind = "logits"
    images: int = 8

    def __post_init__(self) -> None:
        for name, pair in (("size", self.size), ("resize", self.resize)):
            if pair is not None and (len(pair) != 2 or min(pair) < 1):
                raise ArgumentError(f"{name}: expected height and width of 1 or more, got {pair}")
        kinds = get_args(OutputKind)
        if self.output not in kinds:
            raise ArgumentError(f"output {self.output!r}: expected {', '.join(kinds)}{nearest(self.output, kinds)}")
        if self.images < 1:
            raise ArgumentError(f"images: expected 1 or more to compare on, got {self.images}")


@dataclass(frozen=True)
class Int8Options:
    """Of `--int8`.

    Attributes:
        calibration: images of the training split, spread evenly over it, that the value ranges are taken from.
        max_drop: the most that mIoU may fall, as a fraction (0.01: one point).
        score: images of the validation split that mIoU is taken on before and after; None: all.

    Raises:
        ArgumentError: a value that cannot be.
    """

    calibration: int = 100
    max_drop: float = 0.01
    score: int | None = None

    def __post_init__(self) -> None:
        if self.calibration < 1:
            raise ArgumentError(f"calibration: expected 1 image or more, got {self.calibration}")
        if not 0 <= self.max_drop <= 1:
            raise ArgumentError(f"max_drop: expected a fraction from 0 to 1, got {self.max_drop}")
        if self.score is not None and self.score < 1:
            raise ArgumentError(f"score: expected 1 image or more, got {self.score}")
