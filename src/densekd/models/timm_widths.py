"""MobileNets of any width for `tu-` encoders: `channel_multiplier`, which timm's own names fix.

timm builds its MobileNets from functions that take a width, but every registered name sets it, so that
`create_model("mobilenetv1_100", channel_multiplier=0.25)` fails. Here the same functions are registered once more under
names of our own that leave the width open; default width and all else are timm's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from timm.models import efficientnet, mobilenetv3

from densekd.errors import ModelError

WIDTH_OPTIONS = ("channel_multiplier", "depth_multiplier", "fix_stem_head", "head_conv")
# And those of its ResNets: published weights fit none of these.
UNPUBLISHED = (*WIDTH_OPTIONS, "channels", "stem_width", "stem_type")


def densekd_mobilenetv1(pretrained: bool = False, **kwargs: Any) -> Any:
    """timm's MobileNetV1 with an open width."""
    return efficientnet._gen_mobilenet_v1("mobilenetv1_100", pretrained=pretrained, **kwargs)


def densekd_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> Any:
    """timm's MobileNetV2 with an open width."""
    return efficientnet._gen_mobilenet_v2("mobilenetv2_100", pretrained=pretrained, **kwargs)


def densekd_mobilenetv3_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """timm's small MobileNetV3 with an open width."""
    return mobilenetv3._gen_mobilenet_v3("mobilenetv3_small_100", pretrained=pretrained, **kwargs)


def densekd_mobilenetv3_large(pretrained: bool = False, **kwargs: Any) -> Any:
    """timm's large MobileNetV3 with an open width."""
    return mobilenetv3._gen_mobilenet_v3("mobilenetv3_large_100", pretrained=pretrained, **kwargs)


_OPEN = {
    "mobilenetv1_100": densekd_mobilenetv1,
    "mobilenetv2_100": densekd_mobilenetv2,
    "mobilenetv3_small_100": densekd_mobilenetv3_small,
    "mobilenetv3_large_100": densekd_mobilenetv3_large,
}


def open_networks() -> dict[str, Callable[..., Any]]:
    """The functions above by timm's own names."""
    return dict(_OPEN)


def open_width(reference: str, name: str) -> str:
    """The registered timm name that builds `name` with a width given by options.

    Raises:
        ModelError: timm has no builder of an open width for this network.
    """
    if name not in _OPEN:
        raise ModelError(
            f"{reference}: {', '.join(WIDTH_OPTIONS)} are options of the encoders "
            f"{', '.join(f'tu-{known}' for known in _OPEN)}, not of tu-{name}"
        )
    entry = _OPEN[name]
    if not timm.is_model(entry.__name__):
        timm.models.register_model(entry)
    return entry.__name__
