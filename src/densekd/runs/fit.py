"""Training images must fit both networks: refused before anything begins, with the size that would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from densekd.config import Recipe
from densekd.errors import ConfigError
from densekd.models.sizes import fitting_size, input_multiple

Size = tuple[int, int]


def require_fit(
    recipe: Recipe, network: nn.Module, who: Literal["student", "teacher"], stored: Callable[[], Size]
) -> None:
    """Refuse training images whose sides are no multiples of what the network takes.

    Args:
        stored: gives the (height, width) of the stored training images; called where the recipe sets no size.

    Raises:
        ConfigError: they do not fit; the key is named and the next size that fits.
    """
    multiple = input_multiple(network)
    if multiple == 1:
        return
    key, size = _training_size(recipe, who)
    how = "stored as" if recipe.data.augment.fit is None else "fitted to"
    given = f"is not set and the images are {how} " if size is None else ""
    size = size or recipe.data.augment.resized(*stored())
    fitting = fitting_size(size, multiple)
    if size != fitting:
        raise ConfigError(
            f"{key}: {given}{_text(size)} (height, width), and the {who} takes sides that are multiples of {multiple}; "
            f"the next that fits: {key}={_text(fitting)}"
        )


def _training_size(recipe: Recipe, who: str) -> tuple[str, Size | None]:
    """The key that decides what size the network sees in training, and that size."""
    augment, teacher = recipe.data.augment, recipe.teacher
    if who == "teacher" and teacher is not None and teacher.size is not None:
        return "teacher.size", teacher.size
    if augment.crop is None and augment.size is not None:
        return "data.augment.size", augment.size
    return "data.augment.crop", augment.crop


def _text(size: Size) -> str:
    return f"[{size[0]},{size[1]}]"
