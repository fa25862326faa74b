"""From a model's name, a run folder or a recipe to a network that can be looked at, without fetching any weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from densekd.config import Recipe
from densekd.data.augment import AugmentSpec
from densekd.data.specs import ScenesDataSpec
from densekd.errors import ArgumentError, ConfigError, ModelError
from densekd.models.build import build_model
from densekd.models.specs import CheckpointSpec, ModelSpec
from densekd.runs import Run
from densekd.runs.start import WEIGHT_OPTIONS

Size = tuple[int, int]

CLASSES = 19
_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Subject:
    """A network to look at.

    Attributes:
        network: on the CPU, in eval mode.
        what: how it was named.
        outputs: channels that its class map has.
        classes: their names where they are known, else empty.
        trained: whether its weights were read from a file; else they are random.
        augment: how pictures are brought to it (size, normalisation).
        size: height and width that it is trained at, where that is known.
        notices: lines for the user.
    """

    network: nn.Module
    what: str
    outputs: int
    classes: tuple[str, ...]
    trained: bool
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    size: Size | None = None
    notices: list[str] = field(default_factory=list)


def open_subject(
    text: str,
    options: Mapping[str, Any] | None = None,
    *,
    classes: int | None = None,
    checkpoint: str | None = None,
    trust: bool = False,
) -> Subject:
    """The network of a model reference (as recipes name one) or the student of a run folder.

    Args:
        text: a short name, `smp:PSPNet`, `torchvision:...`, `transformers:...`, `timm:...`, `file.py:build`, or the
            folder of a run.
        options: of the network's constructor; none for a run.
        classes: outputs of a network that is no run's; None: those of a local folder's configuration, else 19.
        checkpoint: a file of weights of the whole network.
        trust: execute code that the recipe of a run names, though its folder was not made here.

    Raises:
        RunError: a run without a student; or one whose network is code and whose folder was not made here.
        ModelError: a reference, an option or a value that cannot work.
        CheckpointError: weights that do not fit.
        ArgumentError: options, classes or a checkpoint beside a run.
    """
    folder = Path(text)
    if folder.is_dir():
        if options or classes is not None or checkpoint is not None:
            raise ArgumentError(
                f"{text}: a run has its own network, classes and weights; leave KEY=VALUE and the rest out"
            )
        return _of_run(folder, trust)
    try:
        spec = ModelSpec(model=text, options=dict(options or {}))
    except ValidationError as error:
        raise ModelError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    local = _local_folder(spec)
    names = _names(local) if local is not None and classes is None else ()
    notices = []
    if classes is None and not names:
        notices.append(f"{text}: built with {CLASSES} classes; --classes says otherwise")
    outputs = len(names) or (CLASSES if classes is None else classes)
    if checkpoint is not None:
        spec = spec.model_copy(update={"checkpoint": CheckpointSpec(path=checkpoint)})
    elif local is None or not any((local / name).is_file() for name in _WEIGHTS):
        spec, dropped = without_weights(spec)
        notices += dropped
        return Subject(_built(spec, outputs, notices), text, outputs, names, False, notices=notices)
    return Subject(_built(spec, outputs, notices), text, outputs, names, True, notices=notices)


def built_from(spec: ModelSpec, outputs: int, what: str, augment: AugmentSpec) -> Subject:
    """The network of a recipe's `student` or `teacher`, with random weights.

    Args:
        outputs: channels of its class map.
        what: how it is called in what is shown.
        augment: of the recipe.
    """
    notices: list[str] = []
    plain, _ = without_weights(spec)
    network = _built(plain, outputs, notices)
    return Subject(network, f"{what} ({spec.model})", outputs, (), False, augment, notices=notices)


def without_weights(spec: ModelSpec) -> tuple[ModelSpec, list[str]]:
    """The same network with random weights: no file is read and none is fetched. With lines on what was left out."""
    options = {name: value for name, value in spec.options.items() if name not in WEIGHT_OPTIONS}
    asked = [f"options.{name}" for name in WEIGHT_OPTIONS if spec.options.get(name)]
    asked += [name for name in ("checkpoint", "encoder_checkpoint") if getattr(spec, name) is not None]
    if spec.model.startswith("transformers:") and not spec.model.endswith("ForSemanticSegmentation"):
        options["pretrained"] = False
    changed = {"options": options, "checkpoint": None, "encoder_checkpoint": None}
    told = [f"{spec.model}: {', '.join(asked)} not read: shapes do not depend on weights"] if asked else []
    return spec.model_copy(update=changed), told


def usual_size(recipe: Recipe) -> Size | None:
    """Height and width of the images that a recipe trains on, where it says so."""
    augment = recipe.data.augment
    if augment.crop or augment.size:
        return augment.crop or augment.size
    return recipe.data.size if isinstance(recipe.data, ScenesDataSpec) else None


def _built(spec: ModelSpec, outputs: int, notices: list[str]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(spec, outputs, notices=notices).eval()


def _of_run(folder: Path, trust: bool) -> Subject:
    run = Run.load(folder, trust=trust)
    recipe, best = run.recipe, run.record.best
    with torch.random.fork_rng(devices=[]):
        network = run.student()
    classes = () if best is None else tuple(best.iou)
    names = classes[1:] if recipe.task.binary else classes  # one output: the logit of the second class
    what = f"{folder} (its student)"
    return Subject(network, what, len(names), names, True, recipe.data.augment, usual_size(recipe))


def _local_folder(spec: ModelSpec) -> Path | None:
    library, _, name = spec.model.partition(":")
    folder = Path(name).expanduser()
    return folder if library == "transformers" and (folder / _CONFIG).is_file() else None


def _names(folder: Path) -> tuple[str, ...]:
    """The class names of a folder of `save_pretrained`, in the order of their ids.

    Raises:
        ConfigError: its configuration cannot be read.
    """
    try:
        found = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("id2label", {})
        return tuple(str(found[key]) for key in sorted(found, key=int))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder / _CONFIG}: cannot be read ({error})") from None
