"""From a tap's name to a module: dotted paths, the `logits` of known forms of networks, near names."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from densekd.errors import TapError, nearest


class TapName(NamedTuple):
    """A parsed tap: `path` (None for the network's own output) and the item in brackets, if any."""

    path: str | None
    item: str | None


def parse(tap: str) -> TapName:
    """Split `encoder.stage[2]` into path and item.

    Raises:
        TapError: an empty name or unbalanced brackets.
    """
    path, bracket, rest = tap.partition("[")
    if not path or (bracket and not (rest.endswith("]") and len(rest) > 1)):
        raise TapError(
            f"tap {tap!r} is not a tap: expected 'logits', 'output', a module's dotted path as in "
            "'encoder.layer4', or one item of what it returns as in 'encoder[4]'"
        )
    return TapName(None if path == "output" else path, rest[:-1] if bracket else None)


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile(module)` or `module.compile()` was called on this very module."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def find_module(network: nn.Module, path: str, who: str = "network") -> nn.Module:
    """The module at a dotted path, refusing what hooks cannot read.

    Args:
        network: where to look.
        path: dotted, as `named_modules()` gives it.
        who: "student" or "teacher", for messages.

    Raises:
        TapError: no such module (with near names), or one that lies in a compiled or scripted module.

    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    >>> find_module(network, "1")
    ReLU()
    """
    module, done = network, ""
    for part in path.split("."):
        _refuse_compiled(module, done, path, who)
        child = getattr(module, part, None)
        if not isinstance(child, nn.Module):
            raise TapError(_unknown(network, path, who))
        module, done = child, f"{done}.{part}" if done else part
    _refuse_compiled(module, done, path, who)
    return module


def _refuse_compiled(module: nn.Module, at: str, path: str, who: str) -> None:
    where = f"module {at!r}" if at else f"the {who} itself"
    if is_compiled(module):
        raise TapError(
            f"tap {path!r} of the {who} lies in an already compiled module ({where}): hooks set now would be "
            "passed over; build the Distiller with the plain network and compile afterwards"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise TapError(
            f"tap {path!r} of the {who} lies in a TorchScript module ({where}), which runs no Python hooks; "
            "use the network's Python class"
        )


def _unknown(network: nn.Module, path: str, who: str) -> str:
    names = [name for name, _ in network.named_modules() if name and not name.startswith("_orig_mod")]
    ending = [name for name in names if name.endswith(f".{path}")][:3]
    if ending:
        hint = f"; did you mean {', '.join(repr(name) for name in ending)}?"
    else:
        hint = nearest(path, ["output", "logits", *names]) or "."
    children = ", ".join(repr(name) for name, _ in network.named_children())
    return (
        f"the {who} ({type(network).__name__}) has no module {path!r}{hint} "
        f"Expected 'logits', 'output' or a module's dotted path; at the top there are: {children or 'none'}"
    )


# The module that makes the class map before the last up-sampling, in networks of known form. The dry run
# compares what it gives with the network's output, so that a form matched by chance is not used.
_LOGITS_PATHS = (
    ("logits", "module named logits"),
    ("segmentation_head.head", "segmentation-models-pytorch form"),  # its DPT
    ("segmentation_head.classifier", "transformers form"),  # its MobileNets and MobileViT
    ("decode_head.classifier", "transformers form"),
    ("decode_head.conv_seg", "mmsegmentation form"),
)


def logits_candidate(network: nn.Module) -> tuple[str, str] | None:
    """Path and form of the module that should give the class map before the last up-sampling, or None.

    Found by the shape of the network alone; no library is imported:

    * `segmentation_head` is a Sequential: its first convolution (segmentation-models-pytorch)
    * `backbone` and `classifier`: `classifier` (torchvision)
    * `decode_head.classifier` (transformers), `decode_head.conv_seg` (mmsegmentation) and the like
    * a wrapper with a single child is looked through

    Args:
        network: where to look.

    >>> class Network(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         head = torch.nn.Conv2d(8, 5, 3), torch.nn.Upsample(scale_factor=8)
    ...         self.segmentation_head = torch.nn.Sequential(*head)
    >>> logits_candidate(Network())
    ('segmentation_head.0', 'segmentation-models-pytorch form')
    """
    head = getattr(network, "segmentation_head", None)
    if isinstance(head, nn.Sequential):
        for name, child in head.named_children():
            if isinstance(child, nn.Conv2d):
                return f"segmentation_head.{name}", "segmentation-models-pytorch form"
    children = dict(network.named_children())
    if "backbone" in children and "classifier" in children:
        return "classifier", "torchvision form"
    for path, form in _LOGITS_PATHS:
        parent, _, leaf = path.rpartition(".")
        owner = children.get(parent) if parent else network
        if owner is not None and isinstance(getattr(owner, leaf, None), nn.Module):
            return path, form
    if len(children) == 1:
        ((name, child),) = children.items()
        inner = logits_candidate(child)
        if inner is not None:
            return f"{name}.{inner[0]}", inner[1]
    return None
