"""Whether the weights that a step left behind are finite: what is saved, scored and shipped must be."""

from __future__ import annotations

import torch
from torch import nn

from densekd.errors import NonFiniteError

_STATISTICS = ("running_mean", "running_var")
_NAMED = 3


def unsound(network: nn.Module) -> list[str]:
    """Names of parameters and batch statistics with NaN or infinity, and of other buffers with NaN.

    A mask of attention is a buffer that may well hold infinities.
    """
    found = []
    parameters = dict(network.named_parameters())
    for name, value in [*parameters.items(), *network.named_buffers()]:
        if value.is_meta or not value.is_floating_point() or not value.numel():
            continue
        strict = name in parameters or name.endswith(_STATISTICS)
        # The largest magnitude is NaN where a value is, and one number to bring from the device.
        most = value.detach().abs().amax()
        if bool(~torch.isfinite(most) if strict else torch.isnan(most)):
            found.append(name)
    return found


def require_sound(network: nn.Module, step: int) -> None:
    """Refuse weights that are not finite after a step: its loss and gradient were, its update was not.

    Raises:
        NonFiniteError: which, and what to do.
    """
    names = unsound(network)
    if names:
        listed = f"{', '.join(map(repr, names[:_NAMED]))}{' and others' if len(names) > _NAMED else ''}"
        raise NonFiniteError(
            f"after step {step}: {listed} of the trained networks hold NaN or infinity, though loss and gradient were "
            "finite: the step was too long, or a module makes such values itself. Nothing of it is saved or scored; "
            "checkpoints written before it, if any, are good. Lower train.optimizer.lr, or set train.clip_norm"
        )
