"""The one tensor meant in what a network or a module returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from densekd.errors import TapError

_NAMED = ("out", "logits")


def describe(value: Any) -> str:
    """What came, in a few words: `list of 3 (Tensor (2, 8, 4, 4), ...)`."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"{kind} with keys {', '.join(repr(str(key)) for key in list(value)[:8])}"
    if isinstance(value, (list, tuple)):
        items = [f"Tensor {tuple(item.shape)}" if isinstance(item, Tensor) else type(item).__name__ for item in value]
        return f"{kind} of {len(items)} ({', '.join(items[:6])}{', ...' if len(items) > 6 else ''})"
    return f"an object of type {kind}"


def main_output(output: Any) -> Tensor:
    """The main tensor of a network's output.

    Understood: a tensor; `{"out": ...}` (torchvision); a mapping or object with `logits` (transformers); a tuple
    or list whose first item is a tensor.

    Args:
        output: what a network returned.

    Raises:
        TapError: when no tensor can be told to be the main one.

    >>> main_output({"out": torch.rand(1, 5, 8, 8), "aux": torch.rand(1, 5, 8, 8)}).shape
    torch.Size([1, 5, 8, 8])
    >>> main_output([torch.rand(1, 5, 8, 8), "anything"]).shape
    torch.Size([1, 5, 8, 8])
    """
    if isinstance(output, Tensor):
        return output
    found: Any = None
    if isinstance(output, Mapping):
        found = next((output[key] for key in _NAMED if isinstance(output.get(key), Tensor)), None)
    elif isinstance(getattr(output, "logits", None), Tensor):
        found = output.logits
    elif isinstance(output, (list, tuple)) and output:
        found = output[0]
    if isinstance(found, Tensor):
        return found
    raise TapError(
        "the network's output must be a tensor, a tuple or list that begins with one, a mapping with 'out' or "
        f"'logits', or an object with .logits; got {describe(output)}; tap one item as 'output[key]', or a "
        "module inside the network by its dotted path"
    )


def holds_class_map(output: Any) -> bool:
    """Whether the main tensor is a class map `(N, K, H, W)`, not the first of a list of feature maps.

    A list or tuple whose 4-D tensors differ in channels is a pyramid of features (a backbone's output).

    Args:
        output: what a network returned.

    >>> holds_class_map(torch.rand(1, 5, 8, 8))
    True
    >>> holds_class_map([torch.rand(1, 8, 16, 16), torch.rand(1, 32, 8, 8)])
    False
    """
    if isinstance(output, Sequence) and not hasattr(output, "logits"):
        channels = {item.shape[1] for item in output if isinstance(item, Tensor) and item.dim() == 4}
        if len(channels) > 1:
            return False
    try:
        return main_output(output).dim() == 4
    except TapError:
        return False


def item_of(output: Any, item: str | None, tap: str) -> Tensor:
    """The floating-point tensor a tap gives: the module's output, or the item of it named in brackets.

    Raises:
        TapError: not a tensor, no such item, or not floating point.
    """
    if item is not None:
        output = _pick(output, item, tap)
    elif isinstance(output, (list, tuple)) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor):
        raise TapError(
            f"tap {tap!r}: expected the module to return one tensor, got {describe(output)}; {_advice(output, tap)}"
        )
    return floating(output, tap)


def floating(output: Tensor, tap: str) -> Tensor:
    """The same map.

    Raises:
        TapError: its numbers are no floating-point ones: ids of classes, or complex.
    """
    if not output.is_floating_point():
        raise TapError(f"tap {tap!r}: expected a floating-point map, got {describe(output)}; tap a module before it")
    return output


def _pick(output: Any, item: str, tap: str) -> Any:
    try:
        if isinstance(output, Mapping):
            return output[item]
        if isinstance(output, (list, tuple)):
            return output[int(item)]
        return getattr(output, item)
    except (KeyError, IndexError, ValueError, AttributeError):
        raise TapError(f"tap {tap!r}: there is no item {item!r} in what came: {describe(output)}") from None


def _advice(output: Any, tap: str) -> str:
    inside = "or a module inside it by its dotted path"
    path = tap.partition("[")[0]
    if isinstance(output, Mapping):
        keys = [str(key) for key in output if isinstance(output[key], Tensor)]
        if keys:
            return f"tap one item, for instance '{path}[{keys[0]}]', {inside}"
    if isinstance(output, (list, tuple)):
        places = [index for index, item in enumerate(output) if isinstance(item, Tensor)]
        if places:
            return f"tap one item, for instance '{path}[{places[-1]}]', {inside}"
    return "tap a module inside it, or after it, that returns a tensor"
