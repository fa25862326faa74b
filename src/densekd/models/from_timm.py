"""Networks of timm as feature extractors: `timm:NAME` with `options: {features: true}`.

timm has classifiers, not segmentation networks, and densekd invents no head for them: as the encoder of a segmentation
network a timm network is named by segmentation-models-pytorch (`smp:FPN`, `encoder_name: tu-NAME`). Alone it is of use
as a teacher whose features are distilled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from densekd.errors import ModelError, nearest
from densekd.models.options import say
from densekd.models.timm_weights import refuse_files, timm_weights

_INSTEAD = "give a file in checkpoint, or drop options.pretrained"


def build_from_timm(name: str, options: Mapping[str, Any], notices: list[str] | None) -> nn.Module:
    """Build `timm:NAME` without its classifier and without pooling: its output is its last feature map.

    Other options go to `timm.create_model`; `pretrained` is False unless given.

    Raises:
        ModelError: `features: true` is absent (the message names the segmentation network to use instead), an unknown
            name, or options timm refuses.
        CheckpointError: weights were asked for and cannot be fetched.
    """
    import timm

    reference = f"timm:{name}"
    if not timm.is_model(name):
        raise ModelError(f"{reference}: no such network{nearest(name, timm.list_models())}")
    refuse_files(reference, options)
    settled = dict(options)
    if settled.pop("features", None) is not True:
        raise ModelError(
            f"{reference} is a classifier and gives no class map; for segmentation use it as an encoder: model smp:FPN "
            f"with options.encoder_name tu-{name}; as a teacher of features alone, set options.features to true"
        )
    say(notices, f"{reference} gives features, not a class map: distil its features; it has no mIoU of its own")
    if settled.pop("pretrained", False):
        settled |= {"pretrained": True, "pretrained_cfg_overlay": {"file": timm_weights(reference, name, _INSTEAD)}}
    try:
        return timm.create_model(name, **{"num_classes": 0, "global_pool": "", **settled})
    except Exception as error:
        raise ModelError(f"{reference} cannot be built: {type(error).__name__}: {error}") from error
