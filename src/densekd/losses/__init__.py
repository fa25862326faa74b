"""Losses as modules: they keep the options and call `densekd.functional`."""

from __future__ import annotations

from densekd.losses.base import Adversary as Adversary
from densekd.losses.base import DistillationLoss as DistillationLoss
from densekd.losses.channelwise import ChannelWise as ChannelWise
from densekd.losses.feature import FeatureMimic as FeatureMimic
from densekd.losses.pixelwise import PixelWise as PixelWise
