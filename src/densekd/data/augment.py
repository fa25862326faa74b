"""The `data.augment` part of a recipe: sizes, random choices, normalisation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from densekd.spec import Spec

Positive = Annotated[int, Field(ge=1)]
Size = tuple[Positive, Positive]


class JitterSpec(Spec):
    """Random change of colours; each number is the half-width of the range, 0 switches it off."""

    brightness: float = Field(default=0.0, ge=0, description="factor drawn from [max(0, 1 - x), 1 + x]")
    contrast: float = Field(default=0.0, ge=0, description="factor drawn from [max(0, 1 - x), 1 + x]")
    saturation: float = Field(default=0.0, ge=0, description="factor drawn from [max(0, 1 - x), 1 + x]")
    hue: float = Field(
        default=0.0, ge=0, le=0.5, description="shift drawn from [-x, x] of the colour circle (slow on a CPU)"
    )

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0


class AugmentSpec(Spec):
    """From a stored image to what the network sees. Evaluation uses `size`, `fit`, `mean` and `std` alone."""

    size: Size | None = Field(default=None, description="height and width to resize to; null: as stored")
    fit: Size | None = Field(
        default=None,
        description="short and long side: resize with the ratio kept, as large as fits into both; instead of `size`",
    )
    scale: tuple[float, float] = Field(
        default=(0.5, 2.0), description="training: range of a random factor on that size, both sides alike"
    )
    scale_step: float | None = Field(
        default=None, gt=0, description="training: the factor is one of low, low + step, ... high; null: any between"
    )
    crop: Size | None = Field(
        default=None,
        description="training: height and width of a random crop; null: what `size` or `fit` gives, or the stored size",
    )
    max_class_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="training: draw the crop anew, at most 10 times, while it holds one class alone or one class has "
        "this share of its labelled pixels or more; 1: never",
    )
    flip: float = Field(default=0.5, ge=0, le=1, description="training: probability of a left-right flip")
    jitter: JitterSpec = Field(default_factory=JitterSpec, description="training: random change of colours")
    distortion: bool = Field(
        default=False,
        description="training: the photometric distortion of published schedules, instead of `jitter`: brightness "
        "+-32, contrast and saturation 0.5 to 1.5, hue +-18 of 180, each with probability 1/2 (slow on a CPU)",
    )
    mean: tuple[float, float, float] = Field(
        default=(0.485, 0.456, 0.406), description="subtracted from red, green and blue in [0, 1]"
    )
    std: tuple[float, float, float] = Field(
        default=(0.229, 0.224, 0.225), description="what red, green and blue are divided by after that"
    )

    @field_validator("scale")
    @classmethod
    def _scale_is_a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 100:
            raise ValueError(f"expected [low, high] with 0 < low <= high <= 100, got {list(value)}")
        return value

    @field_validator("fit")
    @classmethod
    def _short_before_long(cls, value: Size | None) -> Size | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"expected [short, long] with short <= long, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _one_of_each(self) -> AugmentSpec:
        if self.size is not None and self.fit is not None:
            raise ValueError("size and fit are both given: keep one of them")
        if self.distortion and self.jitter.active:
            raise ValueError("distortion and jitter are both given: keep one of them")
        low, high = self.scale
        if self.scale_step is not None and abs((high - low) / self.scale_step - self._scale_steps) > 1e-6:
            raise ValueError(f"scale_step: {self.scale_step:g} does not divide the range from {low:g} to {high:g}")
        return self

    @property
    def _scale_steps(self) -> int:
        return 0 if self.scale_step is None else round((self.scale[1] - self.scale[0]) / self.scale_step)

    @property
    def factors(self) -> tuple[float, ...] | None:
        """The random factors there are; None: any number in `scale`."""
        if self.scale_step is None:
            return None
        return tuple(self.scale[0] + step * self.scale_step for step in range(self._scale_steps + 1))

    def resized(self, height: int, width: int) -> Size:
        """Height and width of a stored picture after `size` or `fit`, before any random factor.

        `fit = [short, long]` multiplies both sides by `min(long / max(height, width), short / min(height, width))`,
        enlarging small pictures too.
        """
        if self.size is not None:
            return self.size
        if self.fit is None:
            return height, width
        short, long = self.fit
        factor = min(long / max(height, width), short / min(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))

    @field_validator("std")
    @classmethod
    def _std_divides(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0:
            raise ValueError(f"expected three numbers above 0, got {list(value)}")
        return value
