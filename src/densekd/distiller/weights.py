"""What the weights of student and teacher say before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.errors import ModelError


def look_at_weights(student: nn.Module, teacher: nn.Module | None, *, folded: bool) -> list[str]:
    """Notices about two networks that have little to say to each other.

    Args:
        teacher: None where its network is not known (stored maps, for instance).
        folded: it is a copy that may have other weights than the teacher, and fewer: nothing is said of them.

    Raises:
        ModelError: weights or buffers that are not finite.
    """
    require_finite(student, "student")
    if teacher is None:
        return []
    require_finite(teacher, "teacher")
    return [] if folded else compare_weights(student, teacher)


def compare_weights(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Notices about a teacher that is smaller than its student, or has the same weights."""
    found = []
    own, other = (sum(p.numel() for p in network.parameters()) for network in (student, teacher))
    if own > other > 0:
        found.append(f"the student has more parameters than the teacher ({own:,} and {other:,}): are they exchanged?")
    if _equal(student.state_dict(), teacher.state_dict()):
        found.append("student and teacher have the same weights: there is nothing to learn until the student changes")
    return found


def require_finite(network: nn.Module, who: str) -> None:
    """Raises:
    ModelError: NaN or infinity among the network's parameters and batch statistics, or NaN among other buffers.
    """
    parameters = dict(network.named_parameters())
    for name, value in [*parameters.items(), *network.named_buffers()]:
        if value.is_meta or not value.is_floating_point():
            continue
        # A mask of attention is a buffer that may well hold infinities.
        strict = name in parameters or name.endswith(("running_mean", "running_var"))
        wrong = ~torch.isfinite(value.detach()) if strict else torch.isnan(value)
        count = int(wrong.sum())
        if count:
            raise ModelError(
                f"the {who}'s {name!r} holds {count:,} values of {value.numel():,} that are not finite: its "
                "checkpoint is of a training that failed, or damaged; load another one"
            )


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return False
    return bool(one) and all(torch.equal(one[name], other[name].to(one[name])) for name in one)
