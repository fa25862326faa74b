"""The fast copy of a recipe's teacher: made once for a run, the same after a resume and in every process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.config import TeacherSpec
from densekd.errors import ArgumentError, DtypeError, ModelError, RunError
from densekd.evaluate import evaluation_mode, some_of
from densekd.inference import EvaluationSpec
from densekd.inference.windows import window_starts
from densekd.losses.catalog import loss_options
from densekd.models.sizes import fitting_size, input_multiple
from densekd.runs.asked_teacher import require_teacher, teacher_input
from densekd.runs.assemble import Parts
from densekd.runs.ranks import Ranks
from densekd.taps import holds_class_map, main_output, preserved
from densekd.teacher import FrozenTeacher, TeacherImages, freeze_teacher
from densekd.training.specs import TermSpec

# Images of the example, where nothing is made for one shape alone.
_FEW = 4
# Held-out images are kept in memory while number formats are compared: no more of them than fit into this.
_MOST_BYTES = 256 << 20
_VOID = -1
# The one loss that softens over positions, as the error of the copy is measured.
_OVER_POSITIONS = "channelwise"

Pair = tuple[Tensor, Tensor]


def fast_teacher(parts: Parts, teacher: nn.Module, ranks: Ranks | None = None, *, scored: bool = True) -> FrozenTeacher:
    """The teacher as `teacher.engine` asks for it, measured on training images and on validation images with labels.

    What `auto` comes to is decided once: by the first of several processes, and never again after a resume.

    Args:
        parts: data, recipe and device of the run; its notices get those of the copy.
        teacher: the plain network, on the run's device; it stays as it is.
        ranks: the processes of the run; None: one.
        scored: compare mIoU on validation images too, as many as `preflight.teacher_images`.

    Raises:
        ModelError, ArgumentError: an option of `teacher.engine` cannot be had here, or the copy is wrong.
        RunError: the run to go on with does not tell which number format its teacher had.
    """
    spec = require_teacher(parts.recipe)
    asked = _asked(parts, spec)
    made: list[FrozenTeacher] = []

    def decide() -> str:
        made.append(_made(parts, teacher, spec, asked, scored))
        return json.dumps(decided(made[0]))

    if "auto" in asked.values():
        asked = json.loads(decide() if ranks is None else ranks.from_first("what the teacher's copy is like", decide))
    scored = scored and (ranks is None or ranks.first)
    found = made[0] if made else _made(parts, teacher, spec, asked, scored)
    parts.notices.extend(_of_the_teacher(notice) for notice in found.notices)
    return found


def decided(teacher: FrozenTeacher) -> dict[str, Any]:
    """What `auto` came to, by key of `teacher.engine`: what makes the same copy again."""
    return {"dtype": teacher.report.dtype, "winograd": teacher.report.winograd > 0}


def _of_the_teacher(notice: str) -> str:
    return notice if notice.startswith("teacher: ") else f"teacher.engine: {notice}"


def _asked(parts: Parts, spec: TeacherSpec) -> dict[str, Any]:
    """The number format and whether convolutions are in Winograd's form: as the run to go on with was, else the recipe.

    Raises:
        RunError: that run's record does not say.
    """
    before = parts.before
    if before is None:
        return {"dtype": spec.engine.dtype, "winograd": spec.engine.winograd}
    engine = None if before.teacher is None else before.teacher.engine
    begun = spec.engine.dtype if engine is None else engine.get("dtype")
    if not isinstance(begun, str) or begun == "auto":
        raise RunError(
            "teacher.engine.dtype is auto, and the record of the run to go on with does not say what it chose: it "
            "could go on under another teacher; start again with --force"
        )
    # a record without the key is of a version that knew no such form
    winograd = spec.engine.winograd is True if engine is None else engine.get("winograd", 0) > 0
    return {"dtype": begun, "winograd": winograd}


def _made(parts: Parts, teacher: nn.Module, spec: TeacherSpec, asked: dict[str, Any], scored: bool) -> FrozenTeacher:
    others = spec.engine.model_dump(exclude=set(asked))
    try:
        return freeze_teacher(
            teacher,
            example=_example(parts, spec),
            taps=list(dict.fromkeys(term.teacher for term in parts.recipe.terms)),
            temperature=_temperature(parts),
            held_out=_held_out(parts, teacher) if scored else None,
            ignore_index=_VOID,
            **asked,
            **others,
        )
    except (ArgumentError, DtypeError, ModelError) as error:
        raise type(error)(f"teacher.engine: {error}") from error


def _example(parts: Parts, spec: TeacherSpec) -> Tensor:
    """Training images: as many as in a step where the copy is made for that shape, else a few."""
    count = parts.recipe.train.batch_size + parts.unlabelled_per_batch
    shaped = spec.engine.compile or parts.device.type == "cuda" or (spec.engine.device or "").startswith("cuda")
    return parts.teacher_example(count if shaped else min(count, _FEW))


def _temperature(parts: Parts) -> float:
    """The lowest temperature of the channel-wise terms, at which an error of the maps counts most."""
    asked = [one for term in parts.recipe.terms if (one := temperature_of(term)) is not None]
    return min(asked, default=_usual_temperature())


def temperature_of(term: TermSpec) -> float | None:
    """At which temperature a term softens over positions; None where it does not."""
    if term.method != _OVER_POSITIONS:
        return None
    asked = term.options.get("temperature", _usual_temperature())
    return float(asked) if isinstance(asked, float | int) and asked > 0 else None


def _usual_temperature() -> float:
    return float(loss_options(_OVER_POSITIONS)["temperature"])


def _held_out(parts: Parts, teacher: nn.Module) -> list[Pair] | None:
    """Validation images as the teacher gets them, with labels in its classes; None where it has no class map.

    They are those that the teacher is examined on, as far as they fit into 256 MB.
    """
    count = parts.recipe.preflight.teacher_images
    if not count or not _gives_classes(parts, teacher):
        return None
    view, multiple = some_of(parts.eval_view(), count), input_multiple(teacher)
    spec = teacher_input(parts.recipe)
    prepare = None if spec is None else TeacherImages(spec)
    pairs, held = list[Pair](), 0
    entries = (view[place] for place in range(len(view)))
    seen = (shown(parts.recipe.evaluation, e["image"], in_teacher_classes(parts, e["label"])) for e in entries)
    for image, label in chain.from_iterable(seen):
        pair = fitted(image if prepare is None else prepare(image[None])[0], label, multiple)
        held += pair[0].numel() * pair[0].element_size()
        if pairs and held > _MOST_BYTES:
            break
        pairs.append(pair)
    known = any(bool((label != _VOID).any()) for _, label in pairs)
    return list(_batches(pairs, parts.recipe.train.evaluate_batch_size)) if known else None


def _gives_classes(parts: Parts, teacher: nn.Module) -> bool:
    with preserved(teacher), evaluation_mode(teacher), torch.no_grad():
        output = teacher(parts.teacher_example(1))
    return holds_class_map(output) and main_output(output).shape[1] == parts.teacher_outputs()


def in_teacher_classes(parts: Parts, label: Tensor) -> Tensor:
    """Labels `(H, W)` in the teacher's own classes, -1 where nothing is labelled.

    Also -1 where the class of the data stands for none or for several classes of the teacher: no one of them is right.
    """
    label = label.long()
    own = parts.teacher_classes()
    if own is None:
        return label.masked_fill(label == parts.data.ignore_index, _VOID)
    mapped = torch.full_like(label, _VOID)
    for number, group in enumerate(own.groups):
        if len(group) == 1:
            mapped[label == number] = group[0]
    return mapped


def shown(evaluation: EvaluationSpec, image: Tensor, label: Tensor) -> Iterator[Pair]:
    """What an evaluation shows the network of an image `(C, H, W)` and its label: itself, or its windows.

    A network of one input size takes no other. An image smaller than a window is padded on the right and below with
    zeros, its label with -1.
    """
    if evaluation.crop is None or evaluation.steps is None:
        yield image, label
        return
    (tall, wide), (down, right) = evaluation.crop, evaluation.steps
    image, label = fitted(image, label, 1)
    padding = (0, max(0, wide - image.shape[2]), 0, max(0, tall - image.shape[1]))
    image, label = F.pad(image, padding), F.pad(label, padding, value=_VOID)
    for top in window_starts(image.shape[1], tall, down):
        for left in window_starts(image.shape[2], wide, right):
            rows, columns = slice(top, top + tall), slice(left, left + wide)
            yield image[:, rows, columns], label[rows, columns]


def fitted(image: Tensor, label: Tensor, multiple: int) -> Pair:
    """An image `(C, H, W)` and its label `(h, w)`, both brought to a size that the network takes.

    The label comes to the image's size by nearest; then the image is padded on the right and below with zeros, the
    label with -1.
    """
    height, width = image.shape[1], image.shape[2]
    if label.shape != (height, width):
        label = F.interpolate(label[None, None].double(), (height, width), mode="nearest-exact")[0, 0].long()
    tall, wide = fitting_size((height, width), multiple)
    padding = (0, wide - width, 0, tall - height)
    return F.pad(image, padding), F.pad(label, padding, value=_VOID)


def _batches(pairs: list[Pair], size: int) -> Iterator[Pair]:
    """Neighbours of one size together, so many at a time."""
    for _, same in groupby(pairs, key=lambda pair: pair[0].shape):
        images, labels = zip(*same, strict=True)
        for start in range(0, len(images), size):
            end = start + size
            yield torch.stack(images[start:end]), torch.stack(labels[start:end])
