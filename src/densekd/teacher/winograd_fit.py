"""Which convolutions of a float32 teacher are put into Winograd's form, and whether that makes it faster."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from densekd.teacher.choose import SMALLEST_GAIN, SMALLEST_SECONDS
from densekd.teacher.engine import Engine
from densekd.teacher.engine_checks import Options
from densekd.teacher.plain import seconds_of
from densekd.teacher.source import Batch
from densekd.teacher.winograd import (
    PRODUCTS,
    can_be_winograd,
    geometry,
    output_size,
    put_in,
    take_out,
    tiles,
    winograd_weight,
)

# Below these the passes over memory cost more than the multiplications that are saved. Told from shapes alone, not
# from timings: the same network on the same images has the same convolutions changed on every machine and every time.
_FEWEST_CHANNELS = 64
_FEWEST_TILES = 16
_SMALLEST_SAVING = 2.5
_ROUNDS = 3


class Changed(NamedTuple):
    """How many convolutions are in Winograd's form, and why these or none; no words where that was never asked."""

    layers: int = 0
    why: str = ""


def use_winograd(engine: Engine, batch: Batch, options: Options) -> tuple[Changed, list[str]]:
    """Put every convolution that fits into Winograd's form, in place, as `options.winograd` asks.

    With "auto" the engine is left as it was unless a pass over the batch takes 20 ms or more and is at least 1.1 times
    as fast in the new form.

    Args:
        engine: in float32; has run on the batch before.

    Returns:
        What was done, and notices.
    """
    against, always = _against(options, engine.device), options.winograd is True
    if against or options.winograd is False:
        # no error: a run goes on elsewhere with the recipe it has
        return Changed(), [f"winograd=True changes nothing: {' and '.join(against)}"] if always else []
    return _used(engine, batch, always=always), []


def _against(options: Options, device: torch.device) -> list[str]:
    reasons = {
        f"the teacher runs on {device}, where the library has forms of its own": device.type != "cpu",
        f"dtype is {options.dtype!r}": options.dtype not in ("auto", "float32"),
        "channels_last is False": not options.channels_last,
    }
    return [reason for reason, holds in reasons.items() if holds]


def _used(engine: Engine, batch: Batch, *, always: bool) -> Changed:
    found = _fitting(engine, batch)
    if not found:
        return Changed(0, "no 3x3 convolution of stride 1 has the channels and the size that it pays for")
    if not always and (taken := seconds_of(engine, batch)) < SMALLEST_SECONDS:
        return Changed(0, f"float32 takes {1000 * taken:.2g} ms, less than {1000 * SMALLEST_SECONDS:.0f}: not worth it")
    forms = {module: winograd_weight(module.weight) for module in found}
    memory = f"{sum(form.numel() * form.element_size() for form in forms.values()) / 1e6:.0f} MB of weights besides"
    if always:
        _put(forms)
        return Changed(len(forms), f"asked for; {memory}")
    gain = _gain(engine, batch, forms)
    if gain < SMALLEST_GAIN:
        take_out(engine.network)
        return Changed(0, f"the teacher is {gain:.2f} times as fast with it, less than {SMALLEST_GAIN}")
    return Changed(len(forms), f"{gain:.2f} times as fast; {memory}")


def _put(forms: dict[nn.Conv2d, Tensor]) -> None:
    for module, form in forms.items():
        put_in(module, form)


def _gain(engine: Engine, batch: Batch, forms: dict[nn.Conv2d, Tensor]) -> float:
    """Seconds of a pass as it is by seconds in the new form, which stays; the fastest of a few, taken in turns."""
    before = after = math.inf
    for _ in range(_ROUNDS):
        take_out(engine.network)
        before = min(before, seconds_of(engine, batch))
        _put(forms)
        after = min(after, seconds_of(engine, batch))
    return before / after


def _fitting(engine: Engine, batch: Batch) -> list[nn.Conv2d]:
    """The convolutions that fit on all images they got in a pass over the batch."""
    shapes: dict[nn.Conv2d, set[tuple[int, ...]]] = {}

    def note(module: Any, args: Any) -> None:
        shapes.setdefault(module, set()).add(tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ())

    # what a hook before the forward pass does to the weights is not known
    candidates = [m for m in engine.network.modules() if can_be_winograd(m) and not m._forward_pre_hooks]
    handles = [module.register_forward_pre_hook(note) for module in candidates]
    try:
        engine.maps(batch)
    finally:
        for handle in handles:
            handle.remove()
    return [module for module, seen in shapes.items() if all(_fits(module, shape) for shape in seen)]


def _fits(module: nn.Conv2d, shape: tuple[int, ...]) -> bool:
    if len(shape) != 4 or min(module.in_channels, module.out_channels) < _FEWEST_CHANNELS:
        return False
    padding, dilation = geometry(module)
    height, width = output_size((shape[2], shape[3]), padding, dilation)
    if min(height, width) < 1:
        return False
    per_image = math.prod((*tiles((height, width), dilation), *dilation))
    saving = 9 * height * width / (PRODUCTS * per_image)
    return saving >= _SMALLEST_SAVING and per_image * shape[0] >= _FEWEST_TILES
