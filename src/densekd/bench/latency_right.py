"""Whether an exported file gives what its network gives; nothing of it is timed before."""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.bench.latency_contestants import Contestant
from densekd.errors import DensekdError
from densekd.export.verify import gap

#: how far values may be from torch's, relative to the largest; of class ids, the logits behind them
_TOLERANCE = 1e-3


def off_by(one: Contestant) -> float | None:
    """How far a file's output is from that of the network it was made of.

    Returns:
        The largest difference over the largest value; of class ids, the share of the pixels that have another one. None
        where there is nothing to compare it with.

    Raises:
        DensekdError: too far, and it was not quantised.
    """
    if one.right is None:
        return None
    images = one.images(2)
    with torch.inference_mode():
        right, logits = one.right(images).cpu(), one.right.logits(images).float().cpu()
    found = one.call(images).cpu()
    if found.shape != right.shape or found.is_floating_point() != right.is_floating_point():
        raise DensekdError(
            f"bench latency: {one.label}, {one.variant} gives {_described(found)}, its network {_described(right)}; "
            "nothing was timed"
        )
    if right.is_floating_point():
        error = float((found - right).abs().max() / right.abs().max().clamp_min(1e-12))
        if not error <= _TOLERANCE and not one.quantised:
            raise DensekdError(
                f"bench latency: {one.label}, {one.variant} is off its network by {error:.2g} of the largest value "
                f"(allowed {_TOLERANCE:g}); nothing was timed"
            )
        return error
    other = found != right
    close = gap(logits, "argmax", one.right.binary) <= 2 * _TOLERANCE * float(logits.abs().max())
    wrong = int((other & ~close).sum())
    if wrong and not one.quantised:
        raise DensekdError(
            f"bench latency: {one.label}, {one.variant} gives another class than its network at {wrong} of "
            f"{other.numel()} pixels that are not close; nothing was timed"
        )
    return float(other.float().mean())


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
