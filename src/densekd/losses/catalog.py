"""The losses a recipe can name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from densekd.errors import ArgumentError, nearest
from densekd.losses.attention import AttentionTransfer
from densekd.losses.base import DistillationLoss
from densekd.losses.channelmean import ChannelMean
from densekd.losses.channelwise import ChannelWise
from densekd.losses.crossimage import CrossImage
from densekd.losses.decoupled import Decoupled
from densekd.losses.dist import Dist
from densekd.losses.feature import FeatureMimic
from densekd.losses.holistic import Holistic
from densekd.losses.intraclass import IntraClass
from densekd.losses.local import LocalAffinity
from densekd.losses.masked import MaskedGenerative
from densekd.losses.pairwise import PairWise
from densekd.losses.pearson import Pearson
from densekd.losses.pixelwise import PixelWise

#: in the order of the documentation
METHODS: dict[str, type[DistillationLoss]] = {
    "channelwise": ChannelWise,
    "pixelwise": PixelWise,
    "pairwise": PairWise,
    "holistic": Holistic,
    "intraclass": IntraClass,
    "attention": AttentionTransfer,
    "local": LocalAffinity,
    "feature": FeatureMimic,
    "channelmean": ChannelMean,
    "crossimage": CrossImage,
    "dist": Dist,
    "pearson": Pearson,
    "masked": MaskedGenerative,
    "decoupled": Decoupled,
}


def loss_options(method: str) -> dict[str, Any]:
    """The options of a method and their defaults."""
    parameters = inspect.signature(_find(method)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_POSITIONAL and p.kind is not p.VAR_KEYWORD}


def make_loss(method: str, options: Mapping[str, Any] | None = None) -> DistillationLoss:
    """The loss of this name with these options.

    Raises:
        ArgumentError: an unknown method or option (the near names are listed), or an option's bad value.
    """
    kind = _find(method)
    known = loss_options(method)
    for option in options or {}:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise ArgumentError(
                f"method {method!r} has no option {option!r}{nearest(option, known)}; its options: {listed}"
            )
    return kind(**(options or {}))


def _find(method: str) -> type[DistillationLoss]:
    if method not in METHODS:
        raise ArgumentError(f"unknown method {method!r}{nearest(method, METHODS)}; known: {', '.join(METHODS)}")
    return METHODS[method]
