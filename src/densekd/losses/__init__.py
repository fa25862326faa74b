"""Losses as modules: they keep the options and call `densekd.functional`."""

from __future__ import annotations

from densekd.losses.base import Adversary as Adversary
from densekd.losses.base import DistillationLoss as DistillationLoss
from densekd.losses.channelwise import ChannelWise as ChannelWise
from densekd.losses.crossimage import CrossImage as CrossImage
from densekd.losses.decoupled import Decoupled as Decoupled
from densekd.losses.dist import Dist as Dist
from densekd.losses.feature import FeatureMimic as FeatureMimic
from densekd.losses.holistic import Holistic as Holistic
from densekd.losses.masked import MaskedGenerative as MaskedGenerative
from densekd.losses.pearson import Pearson as Pearson
from densekd.losses.pixelwise import PixelWise as PixelWise
