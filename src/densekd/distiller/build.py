"""The distiller's dry run: one forward pass of both networks from which everything else is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from densekd.adapters import keyed_seed
from densekd.class_map import ClassMap
from densekd.distiller.asking import wants_images
from densekd.distiller.plan import TermPlan, build_modules, describe, plan_term
from densekd.distiller.sides import Sides, student_sides, teacher_sides
from densekd.distiller.term import Term
from densekd.distiller.unused import find_unused, summarise, tensors_in
from densekd.distiller.weights import look_at_weights
from densekd.errors import ArgumentError, DensekdError, ModelError
from densekd.taps import DryRun, TapReader, dry_run, preserved, training_without_norms
from densekd.teacher import Batch, FrozenTeacher, LiveTeacher, TeacherImages, TeacherSource
from densekd.teacher import as_batch as as_batch


@dataclass
class Built:
    """What the dry run found and made."""

    plans: list[TermPlan]
    modules: nn.ModuleDict
    notices: list[str] = field(default_factory=list)


def as_source(teacher: Any, terms: Sequence[Term]) -> TeacherSource:
    """The teacher as a source of the maps the terms ask for.

    Raises:
        ArgumentError: neither a network nor a TeacherSource.
    """
    if isinstance(teacher, TeacherSource):
        return teacher
    if isinstance(teacher, nn.Module):
        return LiveTeacher(teacher, list(dict.fromkeys(term.teacher for term in terms)))
    raise ArgumentError(
        f"teacher must be an nn.Module or have maps(batch) (a TeacherSource), got a {type(teacher).__name__}"
    )


def teacher_network(source: Any) -> nn.Module | None:
    """The network behind a source, where it is known."""
    if isinstance(source, (LiveTeacher, FrozenTeacher)):
        return source.network
    return source if isinstance(source, nn.Module) else None


def check_networks(student: Any, teacher: Any, batch: Batch) -> None:
    """Raises:
    ArgumentError: the student is no network or has nothing to train; images on another device.
    ModelError: student and teacher are the same object or share parameters.
    """
    if not isinstance(student, nn.Module):
        raise ArgumentError(f"student must be an nn.Module, got a {type(student).__name__}")
    network = teacher if isinstance(teacher, nn.Module) else teacher_network(teacher)
    if network is student:
        raise ModelError(
            "student and teacher are the same object: the teacher would be frozen and the student with it; "
            "pass copy.deepcopy(network) as the teacher"
        )
    own = {id(parameter): name for name, parameter in student.named_parameters()}
    if network is not None:
        shared = [own[id(parameter)] for parameter in network.parameters() if id(parameter) in own]
        if shared:
            raise ModelError(
                f"student and teacher share {len(shared)} parameters ({', '.join(shared[:3])}"
                f"{', ...' if len(shared) > 3 else ''}): freezing the teacher would freeze them in the student; pass "
                "a deepcopy as the teacher"
            )
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ArgumentError("the student has no trainable parameter: nothing can be distilled into it")
    for who, module in (("student", student), ("teacher", network)):
        if module is None or (module is network and isinstance(teacher, FrozenTeacher)):
            continue  # a FrozenTeacher takes images from any device
        found = next((p.device for p in module.parameters()), None)
        if found is not None and found != batch.images.device:
            raise ArgumentError(
                f"the {who} is on {found}, the example on {batch.images.device}: move student, teacher and example to "
                "one device before the Distiller is built"
            )


def build(
    student: nn.Module,
    reader: TapReader,
    source: TeacherSource,
    terms: Sequence[Term],
    batch: Batch,
    images: TeacherImages | None,
    classes: ClassMap | None,
    num_classes: int | None,
) -> Built:
    """Run both networks once, leave them as they were, and plan every term.

    Raises:
        ModelError: weights that are not finite.
        TapError, ArgumentError: as in the parts of this file and of `plan`.
    """
    teacher_batch = batch if images is None or not wants_images(source) else batch.with_images(images(batch.images))
    network = teacher_network(source)
    alike = look_at_weights(student, network, folded=isinstance(source, FrozenTeacher))
    with preserved(*filter(None, (student, network))), torch.enable_grad():
        teacher = _teacher_sides(source, terms, teacher_batch, images)
        training_without_norms(student)
        found = dry_run(reader, student, batch.args, batch.kwargs)
        own = student_sides(student, reader, found, batch)
        unused = _freeze_unused(student, found, lambda: _run_in_eval(student, reader, batch))
    plans = [plan_term(term, own.sides[term.student], teacher.sides[term.teacher], classes) for term in terms]
    modules = nn.ModuleDict()
    built = Built(plans, modules, [*alike, *own.notices, *teacher.notices])
    dtype = next(p.dtype for p in student.parameters() if p.is_floating_point())
    with preserved():
        for term, plan in zip(terms, plans, strict=True):
            torch.default_generator.manual_seed(keyed_seed("loss", term.name))
            made = build_modules(term, plan, classes, num_classes or own.classes, batch.images.device, dtype)
            modules[plan.key] = made
            built.notices.extend(describe(plan, made))
    if classes is not None:
        built.notices.extend(_unknown_classes(plans, classes))
    built.notices.extend(unused)
    return built


def _teacher_sides(source: TeacherSource, terms: Sequence[Term], batch: Batch, images: TeacherImages | None) -> Sides:
    """The teacher's sides; where `TeacherInput` asked for a size, a failure names it.

    Raises:
        ArgumentError: the teacher fails at the size that was asked for.
    """
    try:
        return teacher_sides(source, [term.teacher for term in terms], batch)
    except (DensekdError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if images is None or images.size is None:
            raise
        height, width = images.size
        raise ArgumentError(
            f"the teacher cannot run on images of {height}x{width}, the size that TeacherInput asks for "
            f"({type(error).__name__}: {error}); give a size that it takes, for many networks a multiple of 32, or "
            "leave size out"
        ) from error


def _run_in_eval(student: nn.Module, reader: TapReader, batch: Batch) -> list[Tensor]:
    student.eval()
    output, maps = reader.run(student, batch.args, batch.kwargs)
    return tensors_in([output, maps])


def _freeze_unused(student: nn.Module, found: DryRun, run_in_eval: Callable[[], list[Tensor]]) -> list[str]:
    """Freeze what takes no part in any output or tap: distributed training would wait for its gradient."""
    try:
        dead, only_eval = find_unused(student, tensors_in([found.output, found.maps]), run_in_eval)
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
        return [
            "student: parameters that take no part could not be looked for behind re-entrant checkpointing "
            "(use_reentrant=False allows it)"
        ]
    notices = []
    if dead:
        parameters = dict(student.named_parameters())
        count = sum(parameters[name].numel() for name in dead)
        summary = summarise(student, dead)
        for name in dead:
            parameters[name].requires_grad_(False)
        notices.append(
            f"student: {len(dead)} parameter tensors ({count:,} parameters) take no part in the forward pass and are "
            f"frozen: {summary}"
        )
    if only_eval:
        notices.append(
            f"student: {len(only_eval)} parameter tensors took no part in training mode, but do in evaluation mode; "
            f"left trainable: {summarise(student, only_eval)}"
        )
    return notices


def _unknown_classes(plans: Sequence[TermPlan], classes: ClassMap) -> list[str]:
    if not any(plan.by_class for plan in plans):
        return ["class_map has no effect: no term compares a class map of the student with one of the teacher"]
    if not classes.unknown:
        return []
    listed = ", ".join(map(str, classes.unknown))
    return [f"class_map: the teacher knows no class for student classes {listed}; they are not distilled"]
