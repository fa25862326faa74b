"""The student and its task once on real images before anything is written: what cannot be trained is told at once."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from densekd.errors import ModelError, NonFiniteError, TapError
from densekd.evaluate import autocast, evaluation_mode
from densekd.inference import Predictor
from densekd.models.auxiliary import auxiliary_of
from densekd.runs.assemble import Parts
from densekd.runs.attempt import attempt
from densekd.runs.forecast import gradients_kept
from densekd.taps import main_output, preserved
from densekd.taps.outputs import describe
from densekd.training.last_upsampling import ending, observed


def rehearse(parts: Parts) -> None:
    """One training batch forwards and backwards, one validation image forwards; everything is left as it was.

    The batch is the run's first micro-batch, in training mode and in the run's precision; the image is the first of
    the validation set, in evaluation mode, alone and (where an evaluation has batches) twice in a batch. Weights,
    gradients, buffers, modes and random states are afterwards what they were before.

    Raises:
        ModelError: the student fails, gives another shape than the task needs, or gets no gradient from the loss.
        NonFiniteError: the loss is not finite before any step is taken.
    """
    head = auxiliary_of(parts.student)
    trained = nn.ModuleList([parts.student] if head is None else [parts.student, head])
    with preserved(*trained), gradients_kept(trained):
        _train(parts)
        _evaluate(parts)


def _train(parts: Parts) -> None:
    batch = _first_batch(parts)
    images = batch["image"].to(parts.device).contiguous(memory_format=parts.layout)
    labels = batch["label"].to(parts.device)
    student, who, shape = parts.student, _name(parts), tuple(images.shape)
    student.train()
    with autocast(parts.device, parts.recipe.runtime.precision):
        with observed(student) as observation:
            output = attempt(lambda: student(images), who, f"in training mode on images {shape}", _expected(parts))
        _require_class_map(parts, output, len(images))
        # What can be left to the loss is told from this pass: it alone makes the full-size map and takes its loss.
        parts.ending = ending(output, labels, observation.last)
        try:
            total, losses = parts.task.loss(output, labels)
        except ModelError as error:
            raise ModelError(f"{who}: {error}") from None
    bad = [f"{name} = {float(value)}" for name, value in losses.items() if not torch.isfinite(value)]
    if bad:
        raise NonFiniteError(
            f"{who}: not finite on the first training batch, before any step: {', '.join(bad)}; look at its weights, "
            "its options, and data.augment.mean and std"
        )
    if total.requires_grad:
        attempt(
            partial(torch.autograd.backward, total), who, f"in the backward pass on images {shape}", _expected(parts)
        )
    if all(parameter.grad is None for parameter in student.parameters()):
        raise ModelError(
            f"{who}: the loss reaches none of its parameters: it has none, all are frozen, or its output is detached; "
            "nothing would be learned"
        )


def _evaluate(parts: Parts) -> None:
    entry = parts.eval_view()[0]
    size = (entry["label"].shape[-2], entry["label"].shape[-1])
    precision = autocast(parts.device, parts.recipe.runtime.precision)
    expected = f"{_expected(parts)}. Validation images keep their stored size unless data.augment.size or fit is set"

    batch_size = parts.recipe.train.evaluate_batch_size
    predictor = Predictor(parts.student, parts.task, parts.recipe.evaluation, most=batch_size)

    def predict(images: Tensor) -> list[Tensor]:
        with evaluation_mode(parts.student), torch.no_grad(), precision:
            return list(predictor.ids(images, [size] * len(images)))

    # One image as the last of a split may be, two because a network may deal with one alone otherwise.
    for count in range(1, min(2, batch_size, len(parts.data.val)) + 1):
        images = torch.stack([entry["image"]] * count).to(parts.device).contiguous(memory_format=parts.layout)
        what = f"an image {tuple(images.shape)}" if count == 1 else f"images {tuple(images.shape)}"
        attempt(partial(predict, images), _name(parts), f"in evaluation mode on {what}", expected)


def _first_batch(parts: Parts) -> dict[str, Any]:
    with closing(parts.batcher().batches(0, 1)) as batches:
        return next(batches)


def _name(parts: Parts) -> str:
    return f"student ({parts.recipe.student.model})"


def _shape(parts: Parts, count: int | str) -> str:
    outputs = parts.task.num_outputs
    meaning = "one logit for two classes" if parts.task.binary else f"a map for each of the {outputs} classes"
    return f"({count}, {outputs}, h, w), {meaning}"


def _expected(parts: Parts) -> str:
    return f"it gets RGB images (N, 3, H, W) and must give {_shape(parts, 'N')}"


def _require_class_map(parts: Parts, output: Any, count: int) -> None:
    try:
        found = main_output(output)
    except TapError:
        found = None
    if (
        found is not None
        and found.is_floating_point()
        and found.ndim == 4
        and found.shape[:2] == (count, parts.task.num_outputs)
    ):
        return
    given = describe(output if found is None else found)
    raise ModelError(
        f"{_name(parts)} gives {given}; expected {_shape(parts, count)}, as a tensor, as the first of a tuple or list, "
        "under 'out' or 'logits', or as .logits"
    )
