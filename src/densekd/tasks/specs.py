"""The `task` part of a recipe: what the network is trained for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from densekd.spec import Spec

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

PARTS = ("cross_entropy", "dice", "auxiliary")
"""Parts of the task's loss that a weight belongs to, as they are named in the log."""


class OhemSpec(Spec):
    """Online hard example mining: the cross-entropy of the hardest pixels alone."""

    threshold: float | None = Field(
        default=None, gt=0, lt=1, description="keep pixels whose true class has a probability below this"
    )
    keep_fraction: float | None = Field(
        default=None, gt=0, le=1, description="keep this share of the valid pixels of a batch, the hardest"
    )
    min_kept: int = Field(
        default=10_000, ge=1, description="keep at least so many pixels of a batch (or all valid ones)"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> OhemSpec:
        if (self.threshold is None) == (self.keep_fraction is None):
            raise ValueError("give either threshold or keep_fraction")
        return self


class SegmentationSpec(Spec):
    """Semantic segmentation: the task's loss is the weighted sum of the parts given here."""

    name: Literal["segmentation"] = "segmentation"
    cross_entropy: Weight = Field(default=1.0, description="weight of the cross-entropy (binary: of the two classes)")
    dice: Weight = Field(default=0.0, description="weight of the soft Dice loss")
    ohem: OhemSpec | None = Field(default=None, description="restrict the cross-entropy to the hardest pixels")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target spread evenly over all classes"
    )
    class_weights: tuple[Weight, ...] | dict[str, Weight] | None = Field(
        default=None, description="weights in the cross-entropy: one per class, or {name: weight} (others 1)"
    )
    binary: bool = Field(default=False, description="two classes, one logit: the probability of the second class")
    auxiliary: Weight = Field(default=0.0, description="weight of the same loss on the network's auxiliary output")

    fused: Literal["auto"] | bool = Field(
        default="auto",
        description="up-sampling and cross-entropy in one, so that full-size logits are never made in training; auto: "
        "where that is the same loss, false: never, true: an error where it cannot be done",
    )

    @property
    def needs_full_size(self) -> str | None:
        """Which part of the loss reads full-size logits, in words; None: none does."""
        reasons = {
            "task.dice reads full-size logits": self.dice > 0,
            "task.ohem reads full-size logits": self.ohem is not None,
            "task.binary has one logit, whose full-size map is small": self.binary,
        }
        return next((words for words, so in reasons.items() if so), None)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts whose weight is not 0."""
        return tuple(name for name in PARTS if getattr(self, name))

    @model_validator(mode="after")
    def _some_loss(self) -> SegmentationSpec:
        if self.cross_entropy == 0 and self.dice == 0:
            raise ValueError("cross_entropy and dice are both 0: nothing would be learned")
        if self.cross_entropy == 0 and (self.ohem is not None or self.class_weights or self.label_smoothing):
            raise ValueError("ohem, class_weights and label_smoothing belong to cross_entropy, whose weight is 0")
        if self.fused is True and self.needs_full_size is not None:
            raise ValueError(f"fused is true, but {self.needs_full_size}; leave fused at auto")
        return self
