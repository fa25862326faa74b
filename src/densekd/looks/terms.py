"""The softened maps of one term over a few images, by network: numbers at full size, the channels that moved most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from densekd.looks.choice import moved_most
from densekd.looks.records import ShownChannel, TermMaps
from densekd.looks.softened import density, divergence, entropy, fitting, log_shares

TEACHER = "teacher"
GRID = 96
"""Cells along the longer side of a map that is shown."""
_ENDS = (0.002, 0.998)


@dataclass(frozen=True)
class Look:
    """One student's and its teacher's maps of one term on one image.

    Attributes:
        entropy, teacher_entropy, kl: nats, float64 `(C,)`.
        density, teacher_density: multiples of the even share, float32 `(C, h, w)`.
        log_positions: entropy of an even map.
    """

    size: tuple[int, int]
    log_positions: float
    entropy: Tensor
    teacher_entropy: Tensor
    kl: Tensor
    density: Tensor
    teacher_density: Tensor


def look(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None) -> Look:
    """Compare two maps `(C, H, W)` whose channels correspond.

    Raises:
        ShapeError: their shapes differ.
    """
    size = (int(teacher.shape[1]), int(teacher.shape[2]))
    counted = size[0] * size[1] if mask is None else int(mask.sum())
    mask = None if mask is None else mask.to(teacher.device)
    own, given = (log_shares(one, temperature, mask) for one in (student, teacher))
    kl = divergence(given, own)
    shown = fitting(size, GRID)
    return Look(
        size=size,
        log_positions=float(torch.tensor(counted, dtype=torch.float64).log()),
        entropy=entropy(own).double().cpu(),
        teacher_entropy=entropy(given).double().cpu(),
        kl=kl.double().cpu(),
        density=density(own, size, shown, counted).cpu(),
        teacher_density=density(given, size, shown, counted).cpu(),
    )


@dataclass
class TermLooks:
    """A term and, by network, its looks: one per image, the same images for all.

    Attributes:
        students: in the order in which they are compared; the first and the last say which channels moved.
    """

    name: str
    method: str
    student: str
    teacher: str
    temperature: float
    softens: bool
    channels: list[str]
    students: dict[str, list[Look]] = field(default_factory=dict)

    def settled(self, count: int, key: str) -> tuple[TermMaps, dict[str, Tensor]]:
        """The record of the term with `count` channels shown, and the tensors of their pictures.

        A channel is shown on the image where its divergence changed most in the same direction as on average. Its
        colours mean the same for all networks: they run from the 0.2th to the 99.8th percentile of all their values.

        Args:
            key: begins the names of the tensors.
        """
        names = list(self.students)
        first, last = self.students[names[0]], self.students[names[-1]]
        kl = {name: _mean([one.kl for one in looks]) for name, looks in self.students.items()}
        entropies = {TEACHER: _mean([one.teacher_entropy for one in last])}
        entropies |= {name: _mean([one.entropy for one in looks]) for name, looks in self.students.items()}
        shown, tensors = list[ShownChannel](), dict[str, Tensor]()
        for channel in moved_most(kl[names[0]], kl[names[-1]], count):
            changes = [float(old.kl[channel] - new.kl[channel]) for old, new in zip(first, last, strict=True)]
            toward = [change if sum(changes) >= 0 else -change for change in changes]
            image = toward.index(max(toward))
            planes = {TEACHER: last[image].teacher_density[channel]}
            planes |= {name: looks[image].density[channel] for name, looks in self.students.items()}
            tensors |= {f"{key}.{channel}.{name}": plane.clone() for name, plane in planes.items()}
            shown.append(self._shown(channel, image, planes))
        record = TermMaps(
            name=self.name,
            method=self.method,
            student=self.student,
            teacher=self.teacher,
            temperature=self.temperature,
            softens=self.softens,
            size=last[0].size,
            log_positions=sum(one.log_positions for one in last) / len(last),
            channels=self.channels,
            entropy=entropies,
            kl=kl,
            shown=shown,
        )
        return record, tensors

    def _shown(self, channel: int, image: int, planes: Mapping[str, Tensor]) -> ShownChannel:
        values = torch.cat([plane.flatten() for plane in planes.values()])
        low, high = torch.quantile(values, torch.tensor(_ENDS, dtype=values.dtype))
        entropies = {TEACHER: float(next(iter(self.students.values()))[image].teacher_entropy[channel])}
        entropies |= {name: float(looks[image].entropy[channel]) for name, looks in self.students.items()}
        return ShownChannel(
            channel=channel,
            image=image,
            low=float(low),
            high=float(high),
            entropy=entropies,
            kl={name: float(looks[image].kl[channel]) for name, looks in self.students.items()},
        )


def channel_names(channels: int, classes: Sequence[str], known: Sequence[int] | None, by_class: bool) -> list[str]:
    """Names of the channels of a map: of classes where it is a class map, else numbers.

    Args:
        known: the classes that are compared; None: all of them.
        by_class: whether the map is a class map. One channel for two classes is the second's.
    """
    named = [classes[place] for place in known] if known is not None else list(classes)
    if by_class and channels == len(named):
        return named
    if by_class and channels == 1 and len(classes) == 2:
        return [f"{classes[1]} against {classes[0]}"]
    return [f"channel {place}" for place in range(channels)]


def _mean(values: Sequence[Tensor]) -> list[float]:
    found: list[float] = torch.stack(list(values)).mean(0).tolist()
    return found
