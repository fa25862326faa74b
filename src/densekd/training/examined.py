"""One step looked into: which tensors are finite, and the first module whose output is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from densekd.training.evidence import HIDDEN, Shown
from densekd.training.objective import Distilled, Objective, placed, samples_of


@dataclass(frozen=True)
class Look:
    """One tensor, or several taken together.

    `low`, `high` and `norm` (Euclidean, in double precision) are of its finite values; None where it has none. `bad`:
    how many of its `count` values are not finite; `note`: where that began, what it belongs to.
    """

    what: str
    count: int
    bad: int
    low: float | None
    high: float | None
    norm: float | None
    note: str = ""

    @property
    def finite(self) -> bool:
        return self.bad == 0


@dataclass
class Examination:
    """What one pass found.

    Attributes:
        looks: in the order of the pass: images, weights, maps, values, gradients.
        student, teacher: the first module whose output is not finite, in words; empty: none.
        backward: the module of the student at whose output the gradient is first not finite, from the loss backwards.
    """

    looks: list[Look] = field(default_factory=list)
    student: str = ""
    teacher: str = ""
    backward: str = ""

    def bad(self, kind: str) -> list[Look]:
        """The looks of one kind (the first words of `what`) that are not finite."""
        return [look for look in self.looks if look.what.startswith(kind) and not look.finite]


def look_at(what: str, tensors: Tensor | Sequence[Tensor], note: str = "") -> Look:
    """What there is to say of a tensor, or of several taken together."""
    parts = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    count = sum(part.numel() for part in parts)
    bad, low, high, square = 0, None, None, 0.0
    for part in parts:
        values = part.detach().double().flatten()
        sound = values[torch.isfinite(values)]
        bad += values.numel() - sound.numel()
        if sound.numel():
            least, most = (float(value) for value in torch.aminmax(sound))
            low = least if low is None else min(low, least)
            high = most if high is None else max(high, most)
            square += float(sound.square().sum())
    return Look(what, count, bad, low, high, None if low is None else square**0.5, note)


class First:
    """Hooks on every module of a network: which one's output is first not finite, and which one's gradient."""

    def __init__(self, network: nn.Module) -> None:
        self.forward, self.backward = "", ""
        self._handles = [
            module.register_forward_hook(partial(self._saw, f"{name or 'the network'} ({type(module).__name__})"))
            for name, module in network.named_modules()
        ]

    def __enter__(self) -> First:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _saw(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        for tensor in floats(output):
            if not self.forward and not bool(torch.isfinite(tensor).all()):
                self.forward = name
            if tensor.requires_grad:
                tensor.register_hook(partial(self._came_back, name))  # type: ignore[no-untyped-call]

    def _came_back(self, name: str, gradient: Tensor) -> None:
        if not self.backward and not bool(torch.isfinite(gradient).all()):
            self.backward = name


def floats(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module returned."""
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point())


def examine(
    objective: Objective,
    shown: Sequence[Shown],
    *,
    seed: int,
    device: torch.device,
    channels_last: bool,
    precision: Callable[[], AbstractContextManager[Any]],
    teacher: nn.Module | None = None,
    backward: bool = True,
) -> Examination:
    """Take the forward and backward passes of a step again, from its first micro-batch on, and look at the last one.

    Gradients are added up over the micro-batches, as in the step; no weight is changed, and no gradient is left.

    Args:
        objective: with the weights of the step; in training mode afterwards.
        shown: the step's micro-batches.
        seed: of the step: what dropout draws is what it drew.
        precision: the autocast of each forward pass.
        teacher: a network whose modules are watched; default the one that the terms read.
        backward: whether to take the backward passes too.
    """
    objective.train()
    objective.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    watched = teacher if teacher is not None else getattr(getattr(objective, "distiller", None), "teacher", None)
    with ExitStack() as held:
        student = held.enter_context(First(objective.student))
        other = held.enter_context(First(watched)) if isinstance(watched, nn.Module) else None
        for micro, (batch, pixels) in enumerate(shown):
            found = Examination()
            terms = held.enter_context(_Terms(objective)) if micro == len(shown) - 1 else None
            image, label, valid = placed(batch, device, channels_last=channels_last)
            with precision():
                total, parts = objective(image, label, valid, pixels, samples_of(batch))
            if backward and total.requires_grad:
                (total / len(shown)).backward()
    found.student, found.backward = student.forward, student.backward
    found.teacher = "" if other is None else other.forward
    found.looks = [look_at("images", image), *_weights("student", objective.student)]
    found.looks += [] if not isinstance(watched, nn.Module) else _weights("teacher", watched)
    found.looks += [] if terms is None else terms.looks(found)
    values = [(name, value) for name, value in parts.items() if not name.startswith(HIDDEN)]
    of_terms = set() if terms is None else terms.names
    found.looks += [
        look_at(f"{'term' if name in of_terms else 'task'} {name}", value, "weighted" if name in of_terms else "")
        for name, value in values
    ]
    found.looks += [look_at("total", total), _gradient(objective)]
    objective.zero_grad(set_to_none=True)
    return found


class _Terms:
    """The maps of every term as its loss gets them, and the gradient that comes back to the student's."""

    def __init__(self, objective: Objective) -> None:
        self._maps: dict[str, tuple[Tensor, Tensor]] = {}
        self._gradients: dict[str, Tensor] = {}
        distiller = objective.distiller if isinstance(objective, Distilled) else None
        self._plans = () if distiller is None else distiller.plans
        self.names = {plan.name for plan in self._plans}
        self._handles = [
            distiller.adapters[plan.key].register_forward_pre_hook(partial(self._saw, plan.name))
            for plan in self._plans
            if distiller is not None
        ]

    def __enter__(self) -> _Terms:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _saw(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        student, teacher = args[0], args[1]
        self._maps[name] = (student.detach(), teacher.detach())
        if student.requires_grad:
            student.register_hook(partial(self._gradients.__setitem__, name))

    def looks(self, found: Examination) -> list[Look]:
        looks = []
        for plan in self._plans:
            if plan.name not in self._maps:
                continue
            student, teacher = self._maps[plan.name]
            looks.append(look_at(f"teacher map {plan.teacher.tap}", teacher, _term(plan.name, found.teacher, teacher)))
            looks.append(look_at(f"student map {plan.student.tap}", student, _term(plan.name, found.student, student)))
            if plan.name in self._gradients:
                words = _term(plan.name, "", student)
                looks.append(look_at(f"gradient at student map {plan.student.tap}", self._gradients[plan.name], words))
        return looks


def _term(name: str, first: str, seen: Tensor) -> str:
    bad = first and not bool(torch.isfinite(seen).all())
    return f"term {name}; first not finite: {first}" if bad else f"term {name}"


def _weights(who: str, network: nn.Module) -> list[Look]:
    named = [(name, p) for name, p in network.named_parameters() if p.is_floating_point()]
    if not named:
        return []
    bad = [name for name, parameter in named if not bool(torch.isfinite(parameter).all())]
    return [look_at(f"{who} weights", [parameter for _, parameter in named], _listed(bad))]


def _gradient(objective: Objective) -> Look:
    named = [(name, p.grad) for name, p in objective.named_parameters() if p.grad is not None]
    bad = [name for name, gradient in named if not bool(torch.isfinite(gradient).all())]
    return look_at("gradient of the weights", [gradient for _, gradient in named], _listed(bad))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"not finite: {', '.join(names[:3])}{more}" if names else ""
