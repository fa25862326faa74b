"""The processes that train together, during training: what they add up and agree on; one process is alone."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from densekd.training.lateness import Waits
from densekd.training.pulse import Pulse

_LONGEST = 1000


class Peers:
    """Collectives of a run; every process must call the same ones in the same order. For one they change nothing.

    Args:
        rank, world: this process, and how many there are.
        device: where the numbers are sent from.
        pulse: what this process is at; it waits in these calls.
        waits: where long waits for the others are noted; None: nowhere.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
        pulse: Pulse | None = None,
        waits: Waits | None = None,
    ) -> None:
        self.rank, self.world = rank, world
        self.device = device or torch.device("cpu")
        self.pulse = pulse or Pulse()
        self._waits = waits
        self._clock = Clock(self.device)

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.world == 1:
            return number
        found = torch.tensor([number], device=self.device)
        with self.pulse.waiting():
            dist.all_reduce(found, dist.ReduceOp.MAX)
            return int(found)

    def total(self, counts: Tensor) -> Tensor:
        """The sum of the processes' counts."""
        if self.world == 1:
            return counts
        found = counts.to(self.device, copy=True)
        with self.pulse.waiting():
            dist.all_reduce(found)
        return found

    def means(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean of the processes' values, by name, detached; not finite where one of them is not."""
        if self.world == 1:
            return dict(values)
        found = torch.stack([value.detach().float().to(self.device) for value in values.values()]) / self.world
        with self.pulse.waiting(), self._clock:
            dist.all_reduce(found)
        return dict(zip(values, found.unbind(), strict=True))

    def gathered(self, values: Tensor) -> Tensor:
        """The processes' values (M,), as (world, M)."""
        if self.world == 1:
            return values[None]
        values = values.to(self.device)
        parts = [torch.empty_like(values) for _ in range(self.world)]
        with self.pulse.waiting():
            dist.all_gather(parts, values)
        return torch.stack(parts)

    def texts(self, text: str) -> list[str]:
        """The processes' texts, each cut to 1,000 bytes."""
        if self.world == 1:
            return [text]
        own = text.encode()[:_LONGEST]
        padded = torch.frombuffer(bytearray(own.ljust(_LONGEST, b"\0")), dtype=torch.uint8)
        return [bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore") for row in self.gathered(padded).cpu()]

    @torch.no_grad()
    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers, running statistics for instance."""
        if self.world == 1:
            return
        with self.pulse.waiting():
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def took(self, step: int, seconds: float) -> None:
        """A step is over: note how long this process waited in it for what the losses are shared with."""
        waited = self._clock.taken()
        if self._waits is not None:
            self._waits.note(step, seconds, waited)


class Clock:
    """Adds up the seconds between begin and end of its blocks, of a device's own time where the host does not wait."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._seconds = self._begin = 0.0
        self._events: list[tuple[torch.Event, torch.Event]] = []

    def __enter__(self) -> None:
        if self._on_device:
            self._events.append((torch.Event("cuda", enable_timing=True), torch.Event("cuda", enable_timing=True)))
            self._events[-1][0].record()
        else:
            self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._on_device:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._begin

    def taken(self) -> float:
        """The seconds since the last call; nothing is waited for: what the device has not come to is left out."""
        seconds, self._seconds = self._seconds, 0.0
        seconds += sum(begin.elapsed_time(end) / 1000 for begin, end in self._events if end.query())
        self._events.clear()
        return seconds
