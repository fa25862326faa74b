"""Where the encoder of a network is, so that weights of a classifier can be loaded into it."""

from __future__ import annotations

from torch import nn

from densekd.errors import ModelError


def encoder_of(network: nn.Module, reference: str) -> nn.Module:
    """The module whose parameter names are those of the encoder's own library.

    `encoder` in segmentation-models-pytorch (one level deeper, `encoder.model`, for timm encoders), `backbone` in
    torchvision, the base model in transformers.

    Raises:
        ModelError: the network has none of these.
    """
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, nn.Module):
        # smp's wrapper of timm networks is the one encoder that only holds another network.
        wrapped = getattr(encoder, "model", None)
        alone = [name for name, _ in encoder.named_children()] == ["model"]
        return wrapped if alone and isinstance(wrapped, nn.Module) else encoder
    for name in ("backbone", getattr(network, "base_model_prefix", "")):
        found = getattr(network, name, None) if name else None
        if isinstance(found, nn.Module):
            return found
    raise ModelError(
        f"{reference}: encoder_checkpoint needs a network with a module named encoder or backbone; "
        f"use checkpoint for the whole network"
    )
