"""The validation images that trackers show at every evaluation: image, truth, prediction."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor, nn

from densekd.evaluate import evaluation_mode, spread
from densekd.pictures import colourise, contact_sheet, legend, one_line, photograph
from densekd.runs.assemble import Parts
from densekd.runs.look_pictures import Answering

_WIDTH = 320
"""Pixels of each of the three pictures: event files hold all of them, for every evaluation."""
_LONGEST = 120
"""Bytes of a name in a tag."""
_TITLES = ("image", "truth", "prediction")


class Pictures:
    """A few fixed images of the validation set, drawn whenever asked.

    Args:
        parts: the run's.
        count: images at most; number `(2 i + 1) n / (2 count)` of `n`, rounded down, for i = 0, 1, ...
    """

    def __init__(self, parts: Parts, count: int) -> None:
        self.parts, self.chosen = parts, spread(len(parts.data.val), count)

    def legend(self) -> dict[str, np.ndarray]:
        """The classes and their colours."""
        return {"pictures/classes": _array(legend(self.parts.data.classes, self.parts.data.palette))}

    def draw(self, network: nn.Module) -> dict[str, np.ndarray]:
        """By tag: image, truth and prediction side by side, uint8 `(1, H, W, 3)`.

        Args:
            network: the student as it would be shipped now; its mode is afterwards what it was.
        """
        name_of = self.parts.data.val.name_of
        return {
            f"pictures/{place}-{_short(name_of(index))}": self._one(network, index)
            for place, index in enumerate(self.chosen, start=1)
        }

    def _one(self, network: nn.Module, index: int) -> np.ndarray:
        sample = self.parts.data.val.load(index)
        with evaluation_mode(network):
            ids = Answering(self.parts, network, "student").ids(index)
        row = [photograph(sample.image), self._mask(sample.label), self._mask(ids)]
        return _array(contact_sheet([row], _TITLES, cell_width=_WIDTH))

    def _mask(self, label: Tensor) -> Image.Image:
        """A label map in the palette, already as wide as it is shown: classes get no colours in between."""
        height, width = label.shape
        size = (_WIDTH, max(1, round(height * _WIDTH / width)))
        return colourise(label, self.parts.data.palette).resize(size, Image.Resampling.NEAREST)


def _short(name: str) -> str:
    """A sample's name as part of a tag, of which trackers make a file: bounded, and nothing in it that is no text."""
    text = one_line(name)
    return text if len(text.encode()) <= _LONGEST else f"{text[: _LONGEST // 4]}..."


def _array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))[None]
