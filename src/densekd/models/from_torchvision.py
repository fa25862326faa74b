"""Segmentation networks of torchvision: `torchvision:deeplabv3_resnet50`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from densekd.errors import ModelError, nearest
from densekd.models.online import torch_file
from densekd.models.options import named_parameters, refuse_unknown, with_classes

_INSTEAD = "give a file in checkpoint or encoder_checkpoint, or drop the option"


def build_from_torchvision(name: str, options: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Build `torchvision:NAME`. `weights` and `weights_backbone` are None unless given.

    Raises:
        ModelError: not one of torchvision's segmentation networks, an unknown option, or weights whose number of
            classes is another one.
        CheckpointError: weights were asked for and cannot be fetched.
    """
    import torchvision

    reference = f"torchvision:{name}"
    names = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name not in names:
        if name in torchvision.models.list_models():
            raise ModelError(
                f"{reference} is not a segmentation network; torchvision has {', '.join(names)}; "
                f"a classifier can be an encoder: smp:FPN with options.encoder_name"
            )
        raise ModelError(f"{reference}: no such network{nearest(name, names)} ({', '.join(names)})")
    known, _ = named_parameters(torchvision.models.get_model_builder(name))
    refuse_unknown(reference, options, known)
    settled = {
        "weights": None,
        "weights_backbone": None,
        **with_classes(reference, options, "num_classes", num_classes),
    }
    _check_weights(reference, name, settled, num_classes)
    try:
        return torchvision.models.get_model(name, **settled)
    except Exception as error:
        raise ModelError(f"{reference} cannot be built: {type(error).__name__}: {error}") from error


def _check_weights(reference: str, name: str, options: Mapping[str, Any], num_classes: int) -> None:
    for option in ("weights", "weights_backbone"):
        asked = options[option]
        if asked is None:
            continue
        try:
            found = _entry(name, option, asked)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(
                f"{reference}: options.{option} {asked!r} names no weights of torchvision ({error})"
            ) from error
        categories = found.meta.get("categories", ())
        if option == "weights" and len(categories) != num_classes:
            raise ModelError(
                f"{reference}: options.weights {asked!r} has {len(categories)} classes, {num_classes} are needed; "
                f"use weights_backbone for the encoder alone"
            )
        torch_file(found.url, f"options.{option} {asked!r} of {reference}", _INSTEAD)


def _entry(name: str, option: str, asked: Any) -> Any:
    """The weights entry that `asked` stands for; short names (DEFAULT) belong to the network or its backbone."""
    import torchvision

    if not isinstance(asked, str):
        raise TypeError("expected a name")
    if "." in asked:
        return torchvision.models.get_weight(asked)
    backbone = name.partition("_")[2]
    return torchvision.models.get_model_weights(name if option == "weights" else backbone)[asked]
