"""From a `ModelSpec` to a network with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from densekd.errors import ModelError
from densekd.models.checkpoint import load_checkpoint
from densekd.models.encoder import encoder_of
from densekd.models.from_file import about_execution, build_from_file
from densekd.models.from_smp import build_from_smp
from densekd.models.from_timm import build_from_timm
from densekd.models.from_torchvision import build_from_torchvision
from densekd.models.from_transformers import build_from_transformers
from densekd.models.options import say
from densekd.models.reference import parse_reference
from densekd.models.specs import ModelSpec

# Options that ask for published weights, by library.
_PUBLISHED = {
    "smp": ("encoder_weights",),
    "torchvision": ("weights", "weights_backbone"),
    "transformers": ("pretrained",),
    "timm": ("pretrained",),
}


def build_model(
    spec: ModelSpec, num_classes: int, *, base_folder: Path | str = ".", notices: list[str] | None = None
) -> nn.Module:
    """Build the network of `spec` with `num_classes` outputs and load the weights that `spec` names.

    With a `checkpoint` nothing else is read: published weights and `encoder_checkpoint` would be overwritten, and a
    student must load on a machine that has neither.

    Args:
        spec: reference, options, checkpoints.
        num_classes: outputs of the network: the number of classes, or 1 for a binary task.
        base_folder: where relative paths begin.
        notices: lines for the user are added here; without it they are Python warnings.

    Raises:
        ModelError: the reference, an option or a value cannot work.
        CheckpointError: weights that are missing, damaged, out of reach, or do not fit.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ModelError(f"{spec.model}: the number of classes must be a positive integer, got {num_classes!r}")
    folder = Path(base_folder)
    network = _construct(spec, _needed_options(spec, notices), num_classes, folder, notices)
    if spec.checkpoint is not None:
        load_checkpoint(network, spec.checkpoint, folder, notices=notices)
    elif spec.encoder_checkpoint is not None:
        load_checkpoint(encoder_of(network, spec.model), spec.encoder_checkpoint, folder, notices=notices)
    return network


def code_words(spec: ModelSpec | None) -> str | None:
    """What `build_model` says of the file that it executes, to be told before; None for the networks of libraries."""
    path = None if spec is None else parse_reference(spec.model).path
    return None if path is None else about_execution(Path(path).expanduser())


def _needed_options(spec: ModelSpec, notices: list[str] | None) -> dict[str, Any]:
    """The options without published weights where a checkpoint of the whole network follows."""
    options = dict(spec.options)
    if spec.checkpoint is None:
        return options
    library = parse_reference(spec.model).library
    unread = [name for name in _PUBLISHED.get(library, ()) if options.pop(name, None)]
    if library == "transformers" and not spec.model.endswith("ForSemanticSegmentation"):
        # A hub name or folder brings weights unless told otherwise.
        options["pretrained"] = False
    if spec.encoder_checkpoint is not None:
        unread.append("encoder_checkpoint")
    if unread:
        say(notices, f"{spec.model}: {', '.join(unread)} not read, because checkpoint holds the whole network")
    return options


def _construct(
    spec: ModelSpec, options: dict[str, Any], num_classes: int, folder: Path, notices: list[str] | None
) -> nn.Module:
    library, name, path = parse_reference(spec.model)
    if path is not None:
        return build_from_file(folder / Path(path).expanduser(), name, options, num_classes, notices)
    if library == "smp":
        return build_from_smp(name, options, num_classes)
    if library == "torchvision":
        return build_from_torchvision(name, options, num_classes)
    if library == "transformers":
        return build_from_transformers(name, options, num_classes, folder, notices)
    return build_from_timm(name, options, notices)
