"""Batch normalisation folded into the convolution before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from densekd.teacher.watch import Norm, Product, Seen, watch

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PLAIN_FORWARDS = {kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)}
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass
class Folded:
    """What became of the normalisations: `folded` by path with the path of the layer that took them in; `left` by
    path with the reason."""

    folded: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def fold_batchnorm(network: nn.Module, run: Callable[[], Any], keep: Iterable[str] = ()) -> Folded:
    """Fold every batch normalisation that can be into the convolution or linear layer before it, in place.

    `bn(Wx + b) = (sW) x + s (b - mean) + beta` with `s = gamma / sqrt(var + eps)`, computed in float64.

    Nothing is taken from names or from the order of registration. One forward pass is watched operator by operator,
    and a pair is folded only where the normalisation's input is the very tensor that the layer made, no other operator
    reads it, nobody keeps it, each of their parameters is read once, and the normalisation used its running statistics.

    Args:
        network: in evaluation mode; changed in place.
        run: runs it on an example and returns all that is kept of the pass: its output and what the taps recorded.
        keep: paths of modules that must stay as they are, the tapped ones.
    """
    names = _names(network)
    norms = {module: paths[0] for module, paths in names.items() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    exact: set[nn.Module] = {module for module in norms if type(module) in _PLAIN}
    own = {module: _has_hooks(module) for module in names}
    checks: dict[nn.Module, Any] = {module: _rebuilt_check(module, exact) for module in norms if module not in exact}
    lent: list[Any] = [module for module in names if _may_ignore_bias(module)]
    for module in lent:
        module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels), requires_grad=False)
    try:
        seen = watch(network, run, checks)
    except BaseException:
        for module in lent:
            module.bias = None
        raise
    layers = _by_weight(names)
    found = Folded()
    kept = set(keep)
    for norm, path in norms.items():
        product, reason = _source_of(norm, seen)
        holders = [] if product is None else layers.get(product.weight, [])
        layer = holders[0] if len(holders) == 1 else None
        if product is not None and layer is None:
            reason = "the layer before it shares its weight" if holders else "it follows a weight that is computed"
        if product is not None and layer is not None:
            reason = (
                _why_not_norm(norm, exact, seen)
                or _why_not_layer(layer, product, seen)
                or next((r for m in (norm, layer) if (r := _why_left(m, names, kept, own))), None)
                or _fold(layer, norm)
            )
        if reason is not None or layer is None:
            found.left[path] = reason or "no convolution before it"
            continue
        _replace(network, path, _without_norm(norm))
        found.folded[path] = names[layer][0]
    took = set(found.folded.values())
    for module in lent:
        if names[module][0] not in took:
            module.bias = None
    return found


def _names(network: nn.Module) -> dict[nn.Module, list[str]]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def _by_weight(modules: Iterable[nn.Module]) -> dict[int, list[Any]]:
    """The layers that may take in a normalisation, by the id of their weight."""
    found: dict[int, list[Any]] = {}
    for module in modules:
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and isinstance(module.weight, Tensor):
            found.setdefault(id(module.weight), []).append(module)
    return found


def _source_of(norm: Any, seen: Seen) -> tuple[Product | None, str | None]:
    """What made the input of a normalisation, or why it cannot be told."""
    if norm.running_mean is None:
        return None, "it has no running statistics"
    ran: list[Norm] = seen.norms.get(id(norm.running_mean), [])
    if len(ran) != 1:
        return None, f"it ran {len(ran)} times" if ran else "it did not run on the example"
    made = [p for products in seen.products.values() for p in products if p.norm is ran[0]]
    if not made:
        return None, "its input is not what a convolution made"
    return made[0], None


def _why_not_norm(norm: Any, exact: set[nn.Module], seen: Seen) -> str | None:
    ran = seen.norms[id(norm.running_mean)][0]
    if ran.training:
        return "it uses the statistics of the batch"
    if norm not in exact:
        return f"a {type(norm).__name__} does more than normalise"
    held = tuple(None if t is None else id(t) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var))
    if ran.reads != held or ran.eps != norm.eps or seen.calls.get(norm) != 1:
        return "it normalises with other values than its own"
    if any(seen.reads.get(tensor, 0) != 1 for tensor in held if tensor is not None):
        return "its parameters are read elsewhere too"
    return None


def _why_not_layer(layer: Any, product: Product, seen: Seen) -> str | None:
    if len(seen.products[product.weight]) != 1:
        return f"the layer before it runs {len(seen.products[product.weight])} times"
    if product.uses != 1 or product.kept:
        return "what the layer before it gives is used elsewhere too"
    if product.bias != (None if layer.bias is None else id(layer.bias)):
        return f"the {type(layer).__name__} before it adds no bias of its own"
    if any(seen.reads.get(tensor, 0) != 1 for tensor in (product.weight, product.bias) if tensor is not None):
        return "the weight of the layer before it is read elsewhere too"
    return None


def _may_ignore_bias(module: Any) -> bool:
    """A convolution without bias whose own forward might not add one: it is lent zeros, to see whether it does."""
    return (
        isinstance(module, nn.modules.conv._ConvNd)
        and module.bias is None
        and type(module).forward not in _PLAIN_FORWARDS
        and isinstance(vars(module)["_parameters"].get("weight"), Tensor)
    )


def _why_left(
    module: nn.Module, names: dict[nn.Module, list[str]], kept: set[str], hooked: dict[nn.Module, bool]
) -> str | None:
    path = names[module][0]
    if len(names[module]) > 1:
        return f"{path} is shared: it is also {names[module][1]}"
    if path in kept:
        return f"{path} is tapped"
    if hooked[module]:
        return f"{path} has hooks"
    if parametrize.is_parametrized(module):
        return f"{path} is parametrized"
    if "forward" in vars(module):
        return f"{path} has a forward of its own"
    return None


def _fold(layer: Any, norm: Any) -> str | None:
    """Change the layer's weight and bias; the reason where the folded values are not finite."""
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        weight = (layer.weight.double() * _along_outputs(layer, scale)).to(layer.weight.dtype)
        bias = 0.0 if layer.bias is None else layer.bias.double()
        shift = (bias - norm.running_mean.double()) * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        shift = shift.to(layer.weight.dtype)
    if not (weight.isfinite().all() and shift.isfinite().all()):
        return "the folded weights would not be finite"
    # the memory format of the weight stays: it is what the convolution's own choice of kernel goes by
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(shift, requires_grad=False)
    return None


def _along_outputs(layer: Any, scale: Tensor) -> Tensor:
    """One factor per output channel, shaped to multiply the layer's weight.

    Transposed convolutions hold `(in, out / groups, ...)`: each group of input rows has its own outputs.
    """
    rest = [1] * (layer.weight.dim() - 2)
    if isinstance(layer, _TRANSPOSED):
        per_group = scale.view(layer.groups, -1)
        return per_group.repeat_interleave(layer.in_channels // layer.groups, dim=0).view(layer.in_channels, -1, *rest)
    return scale.view(-1, 1, *rest)


def _without_norm(norm: nn.Module) -> nn.Module:
    """What is left of a normalisation: nothing, or the dropout and activation that timm keeps in the same module."""
    if type(norm) in _PLAIN:
        return nn.Identity().eval()  # as the network that it becomes a part of
    rest = [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(m, nn.Module)]
    rest = [module for module in rest if not isinstance(module, nn.Identity)]
    return rest[0] if len(rest) == 1 else nn.Sequential(*rest).eval()


def _rebuilt_check(norm: Any, exact: set[nn.Module]) -> Callable[[Tensor, Tensor], None]:
    """Whether a normalisation with more in it is exactly what `_without_norm` keeps, after a plain normalisation."""

    def check(given: Tensor, output: Tensor) -> None:
        if norm.running_mean is None or norm.training:
            return
        plain = F.batch_norm(given, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        if torch.equal(_without_norm(norm)(plain), output):
            exact.add(norm)

    return check


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name, None) for name in _HOOKS)


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    network.get_submodule(parent)._modules[name] = module
