"""A network as a tree of modules: what each returns, at which stride, what it costs; taps worth distilling marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from densekd.errors import ArgumentError
from densekd.inspection.good import REASONS, Good, Names, good_taps
from densekd.inspection.subject import Size, Subject
from densekd.inspection.watching import Output, Seen, Watched, stride, watch
from densekd.models.costs import SIZE
from densekd.models.measure import Measured
from densekd.models.sizes import fitting_size, input_multiple


@dataclass(frozen=True)
class Node:
    """One module.

    Attributes:
        module: dotted path; empty for the network itself.
        kind: its class.
        outputs: what it returned, tensor by tensor; nothing where it was never called.
        parameters: elements of its live parameters: those that the network's output depends on.
        dead: elements of the others.
        flops: of its calls, for one image; a multiplication and the addition after it count as two.
        share: of the network's operations, 0 to 1; None where the network has none that are counted.
        calls: in one pass.
        good: the tap worth distilling that it gives, or several of its items.
        notes: what else there is to know, one line each.
    """

    module: str
    kind: str
    outputs: list[Output]
    parameters: int
    dead: int
    flops: int
    share: float | None
    calls: int
    good: list[Good] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """0 for the network, 1 for its children."""
        return self.module.count(".") + 1 if self.module else 0


@dataclass(frozen=True)
class Inspection:
    """A network's pass over one image of `size` (height, width), module by module.

    Attributes:
        nodes: in the order of `named_modules`: every module after the one that holds it.
        taps: those worth distilling, in the order of the pass; the class map last.
    """

    what: str
    size: Size
    trained: bool
    measured: Measured
    nodes: list[Node]
    taps: list[Good]
    notices: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.what,
            "size": list(self.size),
            "weights": "its own" if self.trained else "random",
            "parameters": self.measured.parameters,
            "dead_parameters": self.measured.dead_parameters,
            "flops": self.measured.flops,
            "taps": [tap_dict(tap, self.size) for tap in self.taps],
            "modules": [_node_dict(node, self.size) for node in self.nodes],
            "notices": self.notices,
        }


def inspect(subject: Subject, size: Size | None = None) -> Inspection:
    """Run the network once on an image of `size` and say what every module did.

    Args:
        size: height and width, brought up to a multiple that the network needs; None: what it is trained at, else
            512x1024.

    Raises:
        ArgumentError: a size that is no size.
        ModelError: the network fails on an image of this size.
    """
    chosen, notices = fitted(subject, size)
    watched = watch(subject.network, chosen)
    taps = good_taps(subject.network, watched, subject.outputs)
    if not subject.trained:
        notices.append(f"{subject.what}: random weights: shapes and costs are those of any others")
    nodes = list(_nodes(subject.network, watched, taps))
    return Inspection(
        subject.what, chosen, subject.trained, watched.measured, nodes, taps, [*subject.notices, *notices]
    )


def fitted(subject: Subject, size: Size | None) -> tuple[Size, list[str]]:
    """The size of the image, and a line where it had to be another than asked for.

    Raises:
        ArgumentError: a height or width below 1.
    """
    asked = size or subject.size or SIZE
    if min(asked) < 1:
        raise ArgumentError(f"size: expected height and width from 1, got {asked[0]} {asked[1]}")
    multiple = input_multiple(subject.network)
    found = fitting_size(asked, multiple)
    if found == asked:
        return found, []
    return found, [f"{subject.what}: takes multiples of {multiple}: {asked[0]}x{asked[1]} became {found[0]}x{found[1]}"]


def tap_dict(tap: Good, image: Size) -> dict[str, Any]:
    """A tap for JSON."""
    down, across = stride(image, tap.shape)
    return {
        "tap": tap.tap,
        "module": tap.module,
        "role": tap.role,
        "why": REASONS[tap.role],
        "shape": list(tap.shape),
        "stride": [down, across],
    }


def _nodes(network: nn.Module, watched: Watched, taps: list[Good]) -> Iterator[Node]:
    dead = _dead(network, watched.measured)
    names = Names(watched)
    total = watched.measured.flops
    for name, module in network.named_modules():
        seen = watched.modules[name]
        sizes = {key: parameter.numel() for key, parameter in module.named_parameters()}
        prefix = f"{name}." if name else ""
        lost = sum(count for key, count in sizes.items() if f"{prefix}{key}" in dead)
        yield Node(
            module=name,
            kind=type(module).__name__,
            outputs=seen.outputs,
            parameters=sum(sizes.values()) - lost,
            dead=lost,
            flops=seen.flops,
            share=seen.flops / total if total else None,
            calls=seen.calls,
            good=[tap for tap in taps if tap.module == name],
            notes=[*_notes(name, module, seen, watched, names), *_lost(name, lost, watched.measured)],
        )


def _dead(network: nn.Module, measured: Measured) -> set[str]:
    """Names of the dead parameters; the measurement names modules that hold nothing else."""
    names = [name for name, _ in network.named_parameters()]
    return {name for name in names if any(name == dead or name.startswith(f"{dead}.") for dead in measured.dead_names)}


def _notes(name: str, module: nn.Module, seen: Seen, watched: Watched, names: Names) -> Iterator[str]:
    if seen.calls == 0:
        inside = any(other.calls for key, other in watched.modules.items() if key.startswith(f"{name}."))
        container = type(module).forward is nn.Module.forward or isinstance(module, nn.ModuleList | nn.ModuleDict)
        words = "a container, never called itself: no tap" if container else "never called: no tap"
        yield words if inside or not container else "never called, nor what it holds: no tap"
    elif seen.calls > 1:
        yield f"called {seen.calls} times: no tap; the output of its last call is shown"
    elif len(seen.outputs) == 1 and name:
        identity = seen.outputs[0].identity
        named = names.of(identity)
        if identity == watched.entry:
            yield "the image itself"
        elif named is not None and named[0] != name:
            yield f"the same map as {named[0]}"


def _lost(name: str, lost: int, measured: Measured) -> list[str]:
    """Dead parameters, where all of a module are (or the module's own) and for the whole."""
    own = [dead for dead in measured.dead_names if dead.rpartition(".")[0] == name and name]
    return [f"{lost:,} dead parameters"] if lost and (not name or name in measured.dead_names or own) else []


def shape_words(output: Output) -> str:
    """What a module returned: `512x64x128` for one map of 512 channels, all axes of anything else."""
    axes = output.shape[1:] if output.shape[:1] == torch.Size([1]) and len(output.shape) > 1 else output.shape
    words = "x".join(map(str, axes)) or "scalar"
    return f"{output.item}: {words}" if output.item else words


def stride_words(output: Output, image: Size) -> str:
    """Pixels between neighbouring positions: `8`, or `8x16` where down and across differ; empty for no map."""
    if output.map is None:
        return ""
    down, across = (f"{value:.3g}" for value in stride(image, output.map))
    return down if down == across else f"{down}x{across}"


def _node_dict(node: Node, image: Size) -> dict[str, Any]:
    return {
        "module": node.module,
        "kind": node.kind,
        "outputs": [
            {
                "item": output.item,
                "shape": list(output.shape),
                "stride": None if output.map is None else list(stride(image, output.map)),
            }
            for output in node.outputs
        ],
        "parameters": node.parameters,
        "dead_parameters": node.dead,
        "flops": node.flops,
        "share": node.share,
        "calls": node.calls,
        "good": [REASONS[tap.role] for tap in node.good],
        "notes": node.notes,
    }
