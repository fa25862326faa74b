"""`output_stride` for segmentation-models-pytorch: the paper's PSPNet and DeepLabV3 keep the whole encoder, dilated.

A network "at output stride 8" has the five stages of its encoder, the last strides turned into dilations. Cutting it
at depth 3, the default of smp's PSPNet, gives the same stride but another network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from densekd.errors import ModelError

# Decoders that take one deep map. The others join maps of every stride, each twice as large as the next.
_OWN_OPTION = ("DeepLabV3", "DeepLabV3Plus", "PAN")
_ALLOWED = {"PSPNet": (8, 16, 32), "DeepLabV3": (8, 16), "DeepLabV3Plus": (8, 16), "PAN": (16, 32)}
_PROBE = 64


def strides_of(architecture: str) -> tuple[int, ...]:
    """Output strides that an architecture of smp can be given; none where its decoder needs every stride."""
    return _ALLOWED.get(architecture, ())


def settle_output_stride(
    reference: str, architecture: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], int | None]:
    """Turn the option `output_stride` into what smp's constructor takes.

    PSPNet gets `encoder_depth` 5 unless another is given, and a final up-sampling that makes the output as large as
    the input; for DeepLabV3, DeepLabV3Plus and PAN it is their `encoder_output_stride`.

    Returns:
        The options for the constructor, and the stride the encoder must have (None where none was asked for).

    Raises:
        ModelError: a decoder that needs every stride, or a stride that the architecture does not have.
    """
    settled = dict(options)
    asked = settled.pop("output_stride", None)
    if architecture in _OWN_OPTION and asked is not None:
        own = settled.setdefault("encoder_output_stride", asked)
        if own != asked:
            raise ModelError(f"{reference}: output_stride is {asked}, encoder_output_stride is {own}: give one of them")
    if asked is not None:
        _check(reference, architecture, asked)
    if architecture == "PSPNet":
        depth = settled.setdefault("encoder_depth", 3 if asked is None else 5)
        if isinstance(depth, int):
            settled.setdefault("upsampling", min(asked or 32, 2**depth))
        # smp's PSPNet hands unknown arguments to the encoder's builder; 32 means undilated and is its default.
        if asked not in (None, 32):
            settled["output_stride"] = asked
    return settled, asked


def _check(reference: str, architecture: str, asked: Any) -> None:
    allowed = strides_of(architecture)
    if not allowed:
        raise ModelError(
            f"{reference} has no output_stride: its decoder joins maps of every stride; {', '.join(_ALLOWED)} have one"
        )
    if isinstance(asked, bool) or asked not in allowed:
        choices = ", ".join(map(str, allowed))
        raise ModelError(f"{reference}: output_stride must be one of {choices}, got {asked!r}")


def verify_output_stride(reference: str, encoder: nn.Module, asked: int, in_channels: int) -> None:
    """Run the encoder on one small black image and compare the stride of its last map with `asked`.

    Raises:
        ModelError: the stride is another one; for instance an encoder that quietly does not dilate.
    """
    modes = {module: module.training for module in encoder.modules()}
    try:
        encoder.eval()
        with torch.no_grad():
            last = encoder(torch.zeros(1, in_channels, _PROBE, _PROBE))[-1]
    finally:
        for module, mode in modes.items():
            module.training = mode
    measured = _PROBE // last.shape[-1]
    if measured != asked:
        raise ModelError(
            f"{reference}: the encoder ends at stride {measured}, not at output_stride {asked}; "
            f"use encoder_depth 5 and an encoder that can be dilated (resnet, mobilenet_v2, tu-mobilenetv3...)"
        )
