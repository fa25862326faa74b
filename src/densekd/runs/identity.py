"""What must be the same in all processes of a run before its first step."""

from __future__ import annotations

from collections.abc import Iterator

from densekd.models.digest import weights_digest
from densekd.runs.assemble import Parts
from densekd.runs.images import images_of
from densekd.training.objective import Objective


def digests(parts: Parts, objective: Objective, teacher_digest: str) -> Iterator[tuple[str, str]]:
    """Digests of images and weights, each with what it is of."""
    for name, listed in images_of(parts.data).items():
        yield f"the names of the images of {name}", listed.sha256
    yield "the teacher's weights", teacher_digest
    yield "the student's weights", weights_digest(objective.student)
    extra = objective.extra_state()
    yield "the adapters' weights", "" if extra is None else weights_digest(extra)
    for name, adversary in objective.adversaries().items():
        yield f"the adversary of {name}", weights_digest(adversary.network)
