"""Losses as functions of two maps: `loss(student, teacher, *, ...)`."""

from __future__ import annotations

from densekd.functional.channelwise import channelwise_kl as channelwise_kl
from densekd.functional.channelwise import channelwise_mse as channelwise_mse
from densekd.functional.feature import feature_mse as feature_mse
from densekd.functional.pixelwise import pixelwise_kl as pixelwise_kl
from densekd.functional.pixelwise import pixelwise_mse as pixelwise_mse
