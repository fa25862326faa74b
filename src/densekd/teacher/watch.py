"""Which operators a forward pass runs on which tensors: what may be folded is seen, not guessed from names."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Product:
    """A tensor that one operator made of others; `uses` counts the operators that read it, `norm` is the last.

    Only a weak reference is kept: what is still alive after the pass is held by the network's output, by a tap or by
    a module.
    """

    tensor: weakref.ref[Tensor]
    weight: int
    bias: int | None
    axes: int
    uses: int = 0
    norm: Norm | None = None
    kept: bool = False


@dataclass
class Norm:
    """One batch normalisation that ran: the ids of what it read, and whether it took the batch's own statistics."""

    reads: tuple[int | None, ...]
    eps: float | None
    training: bool


@dataclass
class Seen:
    """What a pass did: convolutions by the id of their weight, normalisations by the id of their running mean,
    how many operators read each parameter, and which normalisations' output was not theirs alone."""

    products: dict[int, list[Product]] = field(default_factory=dict)
    norms: dict[int, list[Norm]] = field(default_factory=dict)
    reads: dict[int, int] = field(default_factory=dict)
    calls: dict[nn.Module, int] = field(default_factory=dict)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the outputs of convolutions through one forward pass, operator by operator.

    An operator below Python's modules cannot be overlooked: a second reader of a convolution's output, wherever it
    is written, is counted.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = Seen()
        self.paused = False
        self._watched = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
        self._alive: dict[int, Product] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, seconds of work, to keep it away from a pass that is not compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.paused:
            self._record(func, args, kwargs or {}, result)
        return result

    def _record(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        products = []
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                if id(leaf) in self._watched:
                    self.seen.reads[id(leaf)] = self.seen.reads.get(id(leaf), 0) + 1
                product = self._alive.get(id(leaf))
                if product is not None and product.tensor() is leaf:
                    product.uses += 1
                    products.append(product)
        named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
        named.update(kwargs)
        if func is torch.ops.aten.convolution.default:
            self._product(result, named["weight"], named["bias"])
        elif "batch_norm" in func._schema.name and isinstance(named.get("running_mean"), Tensor):
            norm = Norm(
                tuple(_id(named.get(name)) for name in ("weight", "bias", "running_mean", "running_var")),
                named.get("eps", named.get("epsilon")),
                bool(named.get("training", "with_update" in func._schema.name)),
            )
            self.seen.norms.setdefault(id(named["running_mean"]), []).append(norm)
            for product in products:
                # named first: the normalisation reads it as its input, not as a statistic
                product.norm = norm if product.tensor() is args[0] else None

    def _product(self, made: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        product = Product(weakref.ref(made), id(weight), _id(bias), made.dim())
        self.seen.products.setdefault(id(weight), []).append(product)
        self._alive[id(made)] = product

    def linear(self, module: nn.Linear, made: Any) -> None:
        """Take note of what a linear layer returned: its operators differ with the shape, its meaning does not."""
        if isinstance(made, Tensor) and made.dim() == 2:
            self._product(made, module.weight, module.bias)


def _id(tensor: Any) -> int | None:
    return id(tensor) if isinstance(tensor, Tensor) else None


def watch(
    network: nn.Module, run: Callable[[], Any], checks: Mapping[nn.Module, Callable[[Tensor, Tensor], None]]
) -> Seen:
    """One forward pass, watched.

    Args:
        run: runs it and returns everything of it that will be kept, the network's output and the taps.
        checks: called with the input and the output of these modules.
    """
    mode = Watch(network)
    handles = [_on_call(module, mode, checks.get(module)) for module in _layers(network)]
    try:
        with torch.no_grad(), mode:
            kept = run()
        for product in (product for made in mode.seen.products.values() for product in made):
            product.kept = product.tensor() is not None
        del kept
    finally:
        for handle in handles:
            handle.remove()
    return mode.seen


def _layers(network: nn.Module) -> Iterable[nn.Module]:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.conv._ConvNd, nn.Linear)
    return [module for module in network.modules() if isinstance(module, kinds)]


def _on_call(module: nn.Module, mode: Watch, check: Callable[[Tensor, Tensor], None] | None) -> Any:
    def hook(_module: nn.Module, args: Any, output: Any) -> None:
        mode.seen.calls[module] = mode.seen.calls.get(module, 0) + 1
        if type(module) is nn.Linear:
            mode.linear(module, output)
        if check is not None and args and isinstance(output, Tensor):
            mode.paused = True
            try:
                check(args[0], output)
            finally:
                mode.paused = False

    return module.register_forward_hook(hook)
