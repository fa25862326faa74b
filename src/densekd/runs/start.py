"""Where a student's weights come from: a start from random ones is worth a word."""

from __future__ import annotations

from densekd.config import Recipe
from densekd.data.specs import ScenesDataSpec
from densekd.models.reference import parse_reference
from densekd.models.specs import ModelSpec

WEIGHT_OPTIONS = ("encoder_weights", "weights", "weights_backbone", "pretrained")
_FILE = "student.encoder_checkpoint.path=FILE"


def random_start(recipe: Recipe) -> list[str]:
    """A line where all weights of the student start at random, with the keys that load ImageNet's.

    Nothing is said of a network of your own, whose function may load what it likes, and of drawn scenes, which are
    learned from nothing on purpose.
    """
    spec = recipe.student
    given = spec.checkpoint or spec.encoder_checkpoint or any(spec.options.get(key) for key in WEIGHT_OPTIONS)
    keys = _keys(spec)
    if given or keys is None or isinstance(recipe.data, ScenesDataSpec):
        return []
    return [f"student: all weights start at random; ImageNet weights: {keys}"]


def _keys(spec: ModelSpec) -> str | None:
    """How the network's library is told to load weights; None where they are there, or nobody knows."""
    library, name, _ = parse_reference(spec.model)
    if library == "smp":
        return _FILE + _published(spec)
    if library == "torchvision":
        return f"{_FILE}, or student.options.weights_backbone=DEFAULT"
    if library == "transformers" and name.endswith("ForSemanticSegmentation"):
        return f"{_FILE}, or student.model=transformers:OWNER/NAME"
    return None


def _published(spec: ModelSpec) -> str:
    """smp's own option, where weights of such an encoder are published."""
    from densekd.models.timm_widths import UNPUBLISHED

    if any(option in spec.options for option in UNPUBLISHED):
        return ""
    timms = str(spec.options.get("encoder_name", "")).startswith("tu-")
    return f", or student.options.encoder_weights={'true' if timms else 'imagenet'}"
