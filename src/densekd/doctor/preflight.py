"""The checks of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from densekd.distiller import Distiller
from densekd.doctor.report import Report, TermRow
from densekd.errors import ArgumentError, DensekdError, DtypeError, ShapeError
from densekd.taps import preserved, training_without_norms
from densekd.teacher import Batch

# Outside this range of the task's gradient norm a term drowns the task, or hardly takes part.
_RATIOS = (0.01, 10.0)

Gradients = dict[str, Tensor]


class _Step(NamedTuple):
    batch: Batch
    labels: Tensor
    valid: Tensor | None


def preflight(distiller: Distiller, batch: Any, task_loss: Callable[[Any, Tensor], Tensor]) -> Report:
    """Prove on one batch that distillation happens.

    Checked: weights of both networks are finite (else they are named); every tap fires; every term at a weight
    above 0 is finite, not zero, and its gradient reaches the student; none reaches the teacher, which is wholly in
    evaluation mode; nothing changes the weights or `.grad` of either network.

    Each term's gradient norm is set against the task's. The proposed weight makes them equal: with `g` the
    gradients at those trainable parameters of the student that both reach, `|g_task| / |g_term at weight 1|`, for each
    term by itself. It is a place to start a search from, not an optimum.

    The step runs in training mode (with one image, layers with running statistics use them). Weights, buffers,
    gradients, modes and random states are afterwards what they were.

    Args:
        distiller: as built, or compiled by `torch.compile`.
        batch: `(images, labels)`, or a mapping with `image`, `images` or `pixel_values`, with `label` or
            `labels`, perhaps a `valid` mask (N, H, W), and with a teacher whose maps are stored `sample` (N, 2), which
            view of which image each one is; other keys of a mapping with `pixel_values` go to the networks, all others
            are left aside.
        task_loss: `task_loss(student_output, labels)` gives the task's loss, a scalar.

    Raises:
        ArgumentError: no Distiller; a batch of another form; a task loss that cannot be called or gives no scalar.

    >>> from densekd.losses import ChannelWise
    >>> _ = torch.manual_seed(0)
    >>> networks = torch.nn.Conv2d(3, 5, 1), torch.nn.Conv2d(3, 5, 1)
    >>> images, labels = torch.rand(2, 3, 8, 8), torch.randint(0, 5, (2, 8, 8))
    >>> distiller = densekd.Distiller(*networks, [densekd.Term(ChannelWise(), weight=3.0)], images)
    >>> report = densekd.preflight(distiller, (images, labels), torch.nn.functional.cross_entropy)
    >>> report.ok, [row["state"] for row in report.rows()]
    (True, ['ok'])
    """
    distiller = _as_distiller(distiller, task_loss)
    step = _as_step(batch)
    network = distiller.teacher if isinstance(distiller.teacher, nn.Module) else None
    report = Report(notices=list(distiller.notices), terms=_rows(distiller))
    report.problems.extend(_bad_weights("student", distiller.student))
    if network is not None:
        report.problems.extend([*_bad_weights("teacher", network), *_teacher_state(network)])
    networks = [module for module in (distiller, network) if module is not None]
    before = [_marks(module) for module in networks]
    with preserved(*networks), torch.enable_grad():
        distiller.train()
        if step.batch.images.shape[0] < 2:
            training_without_norms(distiller.student)
        try:
            # Labels that no term needs are the task's alone, and need not be a class per pixel.
            labels = step.labels if any(plan.needs_labels for plan in distiller.plans) else None
            output, values = distiller.values(step.batch, labels, step.valid)
        except DensekdError as error:
            report.problems.append(str(error))
        else:
            _measure(distiller, report, values, _scalar(task_loss(output, step.labels)))
    for who, module, marks in zip(("student", "teacher"), networks, before, strict=False):
        if _marks(module) != marks:
            report.problems.append(f"a forward pass or the task's loss changed weights or .grad of the {who}")
    if network is not None and any(p.grad is not None for p in network.parameters()):
        report.problems.append("a gradient reached the teacher: its parameters hold .grad; set them to None")
    return report


def _as_distiller(distiller: Any, task_loss: Any) -> Distiller:
    inner = getattr(distiller, "_orig_mod", distiller)  # behind torch.compile
    if not isinstance(inner, Distiller):
        raise DtypeError(
            f"preflight needs a Distiller first, got a {type(distiller).__name__}; call preflight(distiller, batch, "
            "task_loss) with distiller = Distiller(student, teacher, terms, example)"
        )
    if not callable(task_loss):
        raise DtypeError(
            "task_loss must be a function (student_output, labels) -> scalar, such as "
            f"torch.nn.functional.cross_entropy, got {task_loss!r}"
        )
    return inner


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise DtypeError(
            f"task_loss must return a scalar tensor, got a {type(value).__name__}; where it returns more, take the "
            "loss out: lambda output, labels: loss(output, labels)[0]"
        )
    if value.numel() != 1:
        raise ShapeError(
            f"task_loss must return a scalar, got shape {tuple(value.shape)}; take its mean (reduction='mean')"
        )
    return value.reshape(())


def _as_step(batch: Any) -> _Step:
    if isinstance(batch, Mapping):
        images = next((key for key in ("image", "images", "pixel_values") if key in batch), None)
        labels = next((key for key in ("label", "labels") if key in batch), None)
        if images is not None and labels is not None:
            rest = {key: value for key, value in batch.items() if key not in (labels, "valid", "sample")}
            inputs = Batch((), rest) if images == "pixel_values" else Batch((batch[images],), {})
            return _Step(inputs._replace(samples=batch.get("sample")), batch[labels], batch.get("valid"))
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        return _Step(Batch((batch[0],), {}), batch[1], None)
    came = f"keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise ArgumentError(
        "batch must be (images, labels) or a mapping with 'image' (or 'images', 'pixel_values') and 'label' (or "
        f"'labels'), got {came}"
    )


def _rows(distiller: Distiller) -> list[TermRow]:
    return [
        TermRow(
            name=plan.name,
            student_tap=plan.student.tap,
            teacher_tap=plan.teacher.tap,
            student_shape=tuple(plan.student.shape),
            teacher_shape=tuple(plan.teacher.shape),
            weight=distiller.weights[plan.name],
        )
        for plan in distiller.plans
    ]


def _bad_weights(who: str, network: nn.Module) -> list[str]:
    tensors = [*network.named_parameters(), *network.named_buffers()]
    bad = [name for name, tensor in tensors if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if not bad:
        return []
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return [f"the {who} holds weights that are not finite: {', '.join(bad[:5])}{more}; load a sound checkpoint"]


def _teacher_state(network: nn.Module) -> list[str]:
    problems = []
    training = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if training:
        problems.append(f"the teacher is in training mode at {', '.join(training[:3])}; call distiller.train() once")
    loose = [name for name, p in network.named_parameters() if p.requires_grad]
    if loose:
        problems.append(f"{len(loose)} parameters of the teacher ask for gradients ({', '.join(loose[:3])})")
    return problems


def _marks(network: nn.Module) -> list[tuple[int, int | None, int | None]]:
    """What changes when a parameter or its `.grad` is written to or replaced."""
    return [
        (p._version, None if p.grad is None else id(p.grad), None if p.grad is None else p.grad._version)
        for p in network.parameters()
    ]


def _measure(distiller: Distiller, report: Report, values: Mapping[str, Tensor], task: Tensor) -> None:
    """Fill the rows with values, gradient norms and proposals, and collect the problems."""
    parameters = {name: p for name, p in distiller.student.named_parameters() if p.requires_grad}
    own = _gradients(task, parameters)
    report.task_value = float(task.detach())
    report.task_gradient_norm = _norm(own.values())
    if not math.isfinite(report.task_value) or not math.isfinite(report.task_gradient_norm):
        report.problems.append(f"the task's loss or its gradient is not finite: {report.task_value}")
    elif report.task_gradient_norm == 0:
        report.problems.append("the task's gradient does not reach the student: it is zero at every parameter")
    for row in report.terms:
        _measure_term(row, values[row.name], _gradients(values[row.name], parameters), own)
        if row.problem is not None:
            report.problems.append(f"term {row.name!r}: {row.problem}")
        elif row.ratio is not None and row.weight > 0 and not _RATIOS[0] <= row.ratio <= _RATIOS[1]:
            effect = "hardly takes part beside" if row.ratio < 1 else "drowns"
            report.notices.append(
                f"term {row.name!r} {effect} the task: its gradient is {row.ratio:.2g} of the task's; "
                f"weight {row.proposed_weight:g} would make them equal"
            )


def _measure_term(row: TermRow, value: Tensor, gradients: Gradients, task: Gradients) -> None:
    single = float(value.detach())
    norm = _norm(gradients.values())
    row.value, row.gradient_norm = row.weight * single, row.weight * norm
    shared = [name for name in gradients if name in task]
    term_norm, task_norm = (_norm(side[name] for name in shared) for side in (gradients, task))
    if math.isfinite(single) and 0 < term_norm < math.inf and 0 < task_norm < math.inf:
        row.ratio = row.weight * term_norm / task_norm
        row.proposed_weight = float(f"{task_norm / term_norm:.2g}")
    if row.weight > 0:
        row.problem = _problem(single, norm)


def _problem(value: float, norm: float) -> str | None:
    if not math.isfinite(value):
        return f"its value is {value}"
    if not math.isfinite(norm):
        return f"its gradient is {norm}"
    if value == 0:
        return (
            "it is exactly 0: the maps are equal, have a single position, or nothing in them is valid; tap another "
            "module or check the mask"
        )
    if norm == 0:
        return "its gradient does not reach the student: it is zero at every trainable parameter"
    return None


def _gradients(value: Tensor, parameters: Mapping[str, Tensor]) -> Gradients:
    if not value.requires_grad:
        return {}
    found: Sequence[Tensor | None] = torch.autograd.grad(
        value, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def _norm(gradients: Iterable[Tensor]) -> float:
    squares = [gradient.double().square().sum() for gradient in gradients]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
