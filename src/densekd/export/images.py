"""Real images for checking an export: the run's own, or drawn scenes where they cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from densekd.config import load_recipe
from densekd.data.base import Sample, SegmentationSet
from densekd.data.build import DataBundle, build_data
from densekd.data.kinds import AnyDataSpec
from densekd.data.scenes import ScenesSet
from densekd.data.specs import ScenesDataSpec
from densekd.errors import ConfigError, DensekdError
from densekd.evaluate import spread
from densekd.runs.folder import Run


@dataclass
class RealImages:
    """Some images as they are stored, uint8 `(3, H, W)`.

    Attributes:
        words: which they are, for the manifest.
        notices: lines for the user.
    """

    images: list[Tensor]
    words: str
    notices: list[str] = field(default_factory=list)


def open_data(run: Run, overrides: Mapping[str, Any] | None = None) -> DataBundle:
    """The run's data, unchecked: an export opens a few files of it.

    Raises:
        DataError, ConfigError: it cannot be read; an override of another key than `data.*`.
    """
    for key in overrides or {}:
        if key != "data" and not key.startswith("data."):
            raise ConfigError(f"override {key}: an export does not read it. What can be changed: data.*")
    data: AnyDataSpec = load_recipe(run.path / "recipe.yaml", overrides or {}).data
    changes: dict[str, Any] = {"in_memory": False}
    if not isinstance(data, ScenesDataSpec):
        changes["check"] = data.on_error == "skip"  # else the images would have other numbers
    return build_data(data.model_copy(update=changes), unlabelled=False, one_size=False)


def real_images(run: Run, count: int, overrides: Mapping[str, Any] | None = None) -> RealImages:
    """`count` images of the run's validation split, spread evenly over it.

    Where the data cannot be read, as many scenes are drawn, and a notice says so; not where the user has just said
    where it is (`overrides`).
    """
    try:
        val = open_data(run, overrides).val
        samples = some_samples(val, count)
        return RealImages([one.image for one in samples], f"{len(samples)} of the run's {len(val)} validation images")
    except (DensekdError, OSError) as error:
        if overrides:
            raise
        recipe = run.recipe
        size = recipe.data.augment.size or (384, 512)
        drawn = ScenesSet("val", count, size, 0)
        said = f"the run's data cannot be read ({error}); verified on drawn scenes. data.root=FOLDER says where it is"
        return RealImages([one.image for one in some_samples(drawn, count)], f"{count} drawn scenes", [said])


def some_samples(source: SegmentationSet, count: int) -> list[Sample]:
    """`count` samples, spread evenly over the set."""
    return [source.load(index) for index in spread(len(source), count)]
