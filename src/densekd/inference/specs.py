"""The `evaluation` part of a recipe: how the class ids of an image are found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from densekd.spec import Spec

Size = tuple[PositiveInt, PositiveInt]


class EvaluationSpec(Spec):
    """The same for every score of a run, for predictions and for the teacher's exam."""

    mode: Literal["whole", "slide"] = Field(
        default="whole", description="whole: the image in one piece; slide: windows of `crop`, their logits averaged"
    )
    crop: Size | None = Field(default=None, description="slide: height and width of a window")
    stride: Size | None = Field(
        default=None, description="slide: step down and step right between windows; null: two thirds of `crop`"
    )
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = Field(
        default=(1.0,), description="factors the image is resized by; the class probabilities are averaged"
    )
    flip: bool = Field(default=False, description="also the mirrored image, at every scale")

    @property
    def steps(self) -> Size | None:
        """The stride that is used."""
        if self.crop is None or self.stride is not None:
            return self.stride
        return max(1, 2 * self.crop[0] // 3), max(1, 2 * self.crop[1] // 3)

    @property
    def views(self) -> int:
        """How many versions of an image are looked at."""
        return len(self.scales) * (2 if self.flip else 1)

    def in_words(self) -> str:
        """For tables and records: `whole image`, `windows of 512x512 every 341x341, scales 0.5 1, mirrored too`."""
        said = "whole image"
        if self.crop is not None and self.steps is not None:
            said = f"windows of {self.crop[0]}x{self.crop[1]} every {self.steps[0]}x{self.steps[1]}"
        if self.scales != (1.0,):
            said += f", scale{'s' if len(self.scales) > 1 else ''} {' '.join(f'{scale:g}' for scale in self.scales)}"
        return f"{said}, mirrored too" if self.flip else said

    @model_validator(mode="after")
    def _windows(self) -> EvaluationSpec:
        if self.mode == "whole" and (self.crop is not None or self.stride is not None):
            raise ValueError("`crop` and `stride` belong to mode slide; set mode to slide, or both to null")
        if self.mode == "slide" and self.crop is None:
            raise ValueError("mode slide needs `crop`, the height and width of a window, for instance [512, 512]")
        if self.crop and self.stride and any(step > side for step, side in zip(self.stride, self.crop, strict=True)):
            raise ValueError(
                f"expected a `stride` no larger than `crop` ({self.crop[0]}, {self.crop[1]}), got "
                f"({self.stride[0]}, {self.stride[1]}): pixels between the windows would have no class"
            )
        return self

    @model_validator(mode="after")
    def _different_scales(self) -> EvaluationSpec:
        twice = sorted({scale for scale in self.scales if self.scales.count(scale) > 1})
        if twice:
            raise ValueError(f"`scales`: {', '.join(f'{scale:g}' for scale in twice)} is there more than once")
        return self


WHOLE = EvaluationSpec()
"""The image in one piece, as it is: what happens when nothing else is asked for."""
