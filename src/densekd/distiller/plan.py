"""From the shapes of the dry run to what each term does in every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Size, Tensor, nn

from densekd.adapters import Adapter, Layout
from densekd.class_map import ClassMap
from densekd.distiller.term import Term, module_key
from densekd.errors import ArgumentError, TapError
from densekd.losses import DistillationLoss


@dataclass(frozen=True)
class Side:
    """One network's part in a term, as the dry run found it.

    `is_class_map`: known to be the class map (`logits`, `output`, or the module `logits` stands for);
    `may_be_classes`: that, or a map with as many channels as there are classes.
    """

    tap: str
    layout: Layout
    shape: Size
    is_class_map: bool
    may_be_classes: bool


@dataclass(frozen=True)
class TermPlan:
    """What a term does in every step, as the dry run found it.

    Attributes:
        name: the term's.
        key: its adapter and loss are this module of `distiller.adapters`.
        student, teacher: tap, layout and shape on each side; `shape` is (N, C, H, W) before the class map.
        by_class: the class map applies.
        needs_labels: the loss is given the labels.
    """

    name: str
    key: str
    student: Side
    teacher: Side
    by_class: bool
    needs_labels: bool


class TermModules(nn.Module):
    """What a term trains beside the student: its adapter, and the loss with the parameters it may have."""

    def __init__(self, adapter: Adapter, loss: DistillationLoss) -> None:
        super().__init__()
        self.adapter = adapter
        self.loss = loss

    def forward(self, student_map: Tensor, teacher_map: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """The unweighted loss, a scalar."""
        size = (teacher_map.shape[2], teacher_map.shape[3])
        value: Tensor = self.loss(self.adapter(student_map, size), teacher_map, labels=labels, mask=mask)
        return value


def plan_term(term: Term, student: Side, teacher: Side, classes: ClassMap | None) -> TermPlan:
    """Check that the two sides can be compared, and how.

    Raises:
        TapError: class maps with different numbers of classes and no class map; a loss that needs class maps on
            feature maps.
        ArgumentError: a class map that does not fit.
    """
    both = student.is_class_map and teacher.is_class_map
    if both and classes is not None:
        classes.check(student.shape[1], teacher.shape[1])
        if len(classes.known) < len(classes.groups) and "labels" in term.loss.needs:
            raise ArgumentError(
                f"term {term.name!r} needs labels, but class_map leaves student classes without a teacher class; give "
                "each student class at least one teacher class, or use a loss without labels"
            )
    elif both and student.shape[1] != teacher.shape[1]:
        raise TapError(
            f"term {term.name!r}: the student's {student.tap!r} has {student.shape[1]} classes, the teacher's "
            f"{teacher.tap!r} has {teacher.shape[1]}: a class of one cannot be told from the other's; give "
            "class_map=[[teacher classes of student class 0], ...], or tap feature maps instead (a module's dotted "
            "path), where an adapter fits the channels"
        )
    sides = (("student", student), ("teacher", teacher))
    where = [f"{side.tap!r} of the {who}" for who, side in sides if not side.may_be_classes]
    if not where and not both and student.shape[1] != teacher.shape[1]:
        where = [f"{side.tap!r} of the {who} ({side.shape[1]} channels)" for who, side in sides]
    if term.loss.logits_only and where:
        raise TapError(
            f"term {term.name!r}: {term.loss.name} compares classes and needs class maps with equal classes on both "
            f"sides, which {' and '.join(where)} cannot be; tap 'logits', or use a loss for feature maps (channelwise)"
        )
    return TermPlan(
        name=term.name,
        key=module_key(term.name),
        student=student,
        teacher=teacher,
        by_class=both and classes is not None,
        needs_labels="labels" in term.loss.needs,
    )


def adapted_shapes(plan: TermPlan, classes: ClassMap | None) -> tuple[int, Size]:
    """Channels of the student map before the adapter, and the shape both maps have after it."""
    if plan.by_class and classes is not None:
        known = classes.channels(plan.student.shape[1])
        return known, Size((plan.teacher.shape[0], known, *plan.teacher.shape[2:]))
    return plan.student.shape[1], plan.teacher.shape


def build_modules(
    term: Term,
    plan: TermPlan,
    classes: ClassMap | None,
    num_classes: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> TermModules:
    """The adapter and the bound loss of one term; what a loss draws while it is bound is keyed by the term's name.

    A loss that compares maps whatever their channels gets the student's own: an adapter would be one more thing
    to learn.
    """
    channels, shape = adapted_shapes(plan, classes)
    adapted = shape[1] if term.loss.equal_channels else channels
    adapter = Adapter(channels, adapted, name=term.name, device=device, dtype=dtype)
    term.loss.bind(Size((shape[0], adapted, *shape[2:])), shape, num_classes)
    return TermModules(adapter, term.loss).to(device)


def describe(plan: TermPlan, modules: TermModules) -> list[str]:
    """What the user should know of a term's adapter, layouts, and the parameters its loss trains."""
    done = [
        f"{who} map {words}"
        for who, side in (("student", plan.student), ("teacher", plan.teacher))
        if (words := side.layout.words()) is not None
    ]
    adapter = modules.adapter
    if adapter.weight is not None:
        count = sum(parameter.numel() for parameter in adapter.parameters())
        done.append(
            f"adapter: 1x1 convolution {adapter.in_channels} -> {adapter.out_channels} channels ({count:,} parameters)"
        )
    if plan.student.shape[2:] != plan.teacher.shape[2:]:
        sizes = ["x".join(map(str, side.shape[2:])) for side in (plan.student, plan.teacher)]
        done.append(f"student map resized from {sizes[0]} to the teacher's {sizes[1]}")
    own = sum(parameter.numel() for parameter in modules.loss.parameters())
    if own:
        done.append(f"the loss trains {own:,} parameters of its own")
    return [f"term {plan.name!r}: {'; '.join(done)}"] if done else []
