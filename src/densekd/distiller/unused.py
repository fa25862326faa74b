"""Parameters that take no part in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor that carries a gradient in nested tuples, lists, mappings and objects with fields."""
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (list, tuple, set)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if is_dataclass(value) and not isinstance(value, type):
        return tensors_in(vars(value))
    return []


def parts_without_gradient(network: nn.Module, outputs: Iterable[Tensor]) -> set[str]:
    """Names of the trainable parameters that none of `outputs` depends on; frees the graph.

    Raises:
        RuntimeError: a re-entrant checkpoint in the graph, which autograd cannot look through.
    """
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    total = torch.stack([output.sum().float() for output in outputs]).sum()
    gradients = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
    return {name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None}


def find_unused(
    student: nn.Module, outputs: list[Tensor], run_in_eval: Callable[[], list[Tensor]]
) -> tuple[set[str], set[str]]:
    """Parameters that take no part at all, and those that only take part in evaluation mode.

    The second forward pass, run only where the first leaves a doubt, keeps layers that training skips at random
    (layer drop) from being taken for dead ones.
    """
    unused = parts_without_gradient(student, outputs)
    if not unused:
        return set(), set()
    dead = unused & parts_without_gradient(student, run_in_eval())
    return dead, unused - dead


def summarise(network: nn.Module, names: set[str], limit: int = 8) -> str:
    """`names` by the outermost modules whose trainable parameters are all among them, with counts."""
    sizes = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad or name in names}
    groups: list[str] = []

    def visit(module: nn.Module, prefix: str) -> None:
        inside = [name for name in sizes if name.startswith(prefix)]
        if inside and prefix and all(name in names for name in inside):
            groups.append(f"{prefix.rstrip('.')} ({sum(sizes[name] for name in inside):,})")
            return
        own = [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)]
        groups.extend(f"{name} ({sizes[name]:,})" for name in own if name in names)
        for name, child in module.named_children():
            if any(other.startswith(f"{prefix}{name}.") for other in names):
                visit(child, f"{prefix}{name}.")

    visit(network, "")
    more = f" and {len(groups) - limit} more" if len(groups) > limit else ""
    return ", ".join(groups[:limit]) + more
