"""Losses as modules: they keep the options and call `densekd.functional`."""

from __future__ import annotations

from densekd.losses.attention import AttentionTransfer as AttentionTransfer
from densekd.losses.base import Adversary as Adversary
from densekd.losses.base import DistillationLoss as DistillationLoss
from densekd.losses.channelmean import ChannelMean as ChannelMean
from densekd.losses.channelwise import ChannelWise as ChannelWise
from densekd.losses.crossimage import CrossImage as CrossImage
from densekd.losses.decoupled import Decoupled as Decoupled
from densekd.losses.dist import Dist as Dist
from densekd.losses.feature import FeatureMimic as FeatureMimic
from densekd.losses.holistic import Holistic as Holistic
from densekd.losses.intraclass import IntraClass as IntraClass
from densekd.losses.local import LocalAffinity as LocalAffinity
from densekd.losses.masked import MaskedGenerative as MaskedGenerative
from densekd.losses.pairwise import PairWise as PairWise
from densekd.losses.pearson import Pearson as Pearson
from densekd.losses.pixelwise import PixelWise as PixelWise
