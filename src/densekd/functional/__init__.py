"""Losses as functions of two maps: `loss(student, teacher, *, ...)`."""

from __future__ import annotations

from densekd.functional.attention import attention_mse as attention_mse
from densekd.functional.channelmean import channelmean_mse as channelmean_mse
from densekd.functional.channelwise import channelwise_kl as channelwise_kl
from densekd.functional.channelwise import channelwise_mse as channelwise_mse
from densekd.functional.crossimage import crossimage_kl as crossimage_kl
from densekd.functional.crossimage_memory import crossimage_memory_kl as crossimage_memory_kl
from densekd.functional.decoupled import decoupled_kl as decoupled_kl
from densekd.functional.dist import dist_pearson as dist_pearson
from densekd.functional.feature import feature_mse as feature_mse
from densekd.functional.intraclass import intraclass_mse as intraclass_mse
from densekd.functional.local import local_mse as local_mse
from densekd.functional.masked import masked_mse as masked_mse
from densekd.functional.pairwise import pairwise_mse as pairwise_mse
from densekd.functional.pearson import pearson_distance as pearson_distance
from densekd.functional.pixelwise import pixelwise_kl as pixelwise_kl
from densekd.functional.pixelwise import pixelwise_mse as pixelwise_mse
from densekd.functional.upsampled_cross_entropy import upsampled_cross_entropy as upsampled_cross_entropy
