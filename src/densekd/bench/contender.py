"""One distillation loss on ready maps, as the benchmarks of all losses call, time and weigh it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Size, Tensor, nn

from densekd.errors import DensekdError
from densekd.losses.base import Adversary, DistillationLoss
from densekd.losses.catalog import make_loss

Shape = tuple[int, int, int, int]

_VOID, _REGION = 255, 8


@dataclass
class Contender:
    """A loss on one pair of maps: calling it is a forward and a backward pass, its adversary's included.

    `forward` and `backward` collect the seconds of every call; the adversary's own loss counts as backward.
    """

    name: str
    value: Callable[[], Tensor]
    student: Tensor
    loss: DistillationLoss | None = None
    adversary: Adversary | None = None
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    last: float = math.nan

    def __call__(self) -> None:
        begin = time.perf_counter()
        value = self.value()
        self._wait()
        middle = time.perf_counter()
        torch.autograd.backward(value)
        if self.adversary is not None:
            torch.autograd.backward(self.adversary.loss())
        self._wait()
        self.forward.append(middle - begin)
        self.backward.append(time.perf_counter() - middle)
        self.last = float(value.detach())

    def _wait(self) -> None:
        if self.student.device.type == "cuda":
            torch.cuda.synchronize(self.student.device)

    def _modules(self) -> list[nn.Module]:
        found: list[nn.Module] = [] if self.loss is None else [self.loss]
        return found if self.adversary is None else [*found, self.adversary.network]

    def parameters(self) -> list[Tensor]:
        """Everything that is trained for this loss alone, its adversary's parameters included."""
        found = {id(p): p for module in self._modules() for p in module.parameters() if p.requires_grad}
        return list(found.values())

    def held_bytes(self) -> int:
        """Bytes of parameters and buffers, which stay from step to step."""
        found = {id(t): t for module in self._modules() for t in [*module.parameters(), *module.buffers()]}
        return sum(tensor.numel() * tensor.element_size() for tensor in found.values())

    def clear(self) -> None:
        """Drop all gradients."""
        for tensor in (self.student, *self.parameters()):
            tensor.grad = None

    def require_effect(self, where: str) -> None:
        """Refuse to time what does nothing.

        Raises:
            DensekdError: the last call's value or gradient is zero or not finite.
        """
        norm = 0.0 if self.student.grad is None else float(self.student.grad.norm())
        if not (math.isfinite(self.last) and self.last != 0 and math.isfinite(norm) and norm > 0):
            raise DensekdError(
                f"bench: {self.name} on {where} has the value {self.last:.3g} and a gradient of norm "
                f"{norm:.3g}; both must be finite and not zero. Nothing of this map was timed"
            )


def make_maps(shape: Shape, classes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Unrelated normal maps of standard deviation 4, and labels (N, H, W) in regions of 8 x 8, one in 20 void.

    The student's map asks for a gradient. The same on every device.
    """
    generator = torch.Generator().manual_seed(0)
    student, teacher = (4.0 * torch.randn(shape, generator=generator) for _ in range(2))
    n, _, h, w = shape
    coarse = (n, -(-h // _REGION), -(-w // _REGION))
    labels = torch.randint(classes, coarse, generator=generator)
    labels[torch.rand(coarse, generator=generator) < 0.05] = _VOID
    labels = labels.repeat_interleave(_REGION, 1).repeat_interleave(_REGION, 2)[:, :h, :w].contiguous()
    return student.to(device).requires_grad_(), teacher.to(device), labels.to(device)


def contender(name: str, student: Tensor, teacher: Tensor, labels: Tensor, classes: int) -> Contender:
    """The loss `name` with its default options, bound to these maps; labels only where it needs them.

    Raises:
        DensekdError: the loss refuses the maps.
    """
    loss = make_loss(name)
    loss.bind(Size(student.shape), Size(teacher.shape), classes)
    loss = loss.to(student.device).train()
    asked = labels if "labels" in loss.needs else None
    return Contender(name, lambda: loss(student, teacher, labels=asked), student, loss, loss.adversary())
