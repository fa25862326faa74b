"""From a recipe to the parts of a run: data, task, student, teacher, distiller."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from densekd.config import Recipe
from densekd.data.build import build_data
from densekd.data.keyed import keyed_seed
from densekd.distiller import Distiller, Term
from densekd.distiller.weights import compare_weights, require_finite
from densekd.evaluate import autocast
from densekd.launch import Launch
from densekd.losses.catalog import loss_options, make_loss
from densekd.models.auxiliary import attach_auxiliary, auxiliary_of
from densekd.models.build import build_model, code_words
from densekd.records import RunRecord
from densekd.runs.asked_teacher import require_teacher, teacher_input
from densekd.runs.attempt import attempt
from densekd.runs.device import choose_device, usable_threads
from densekd.runs.excessive import require_possible, usable_workers
from densekd.runs.fit import require_fit
from densekd.runs.mixing import unlabelled_share
from densekd.runs.parts import Parts as Parts
from densekd.runs.share import share_out
from densekd.runs.start import random_start
from densekd.runs.synchronised import not_shared, require_acting, synchronised
from densekd.taps import preserved
from densekd.tasks.segmentation import SegmentationTask
from densekd.teacher import TeacherSource
from densekd.training.specs import TermSpec, ViewsSpec


def assemble(
    recipe: Recipe,
    *,
    watch: Callable[[int, int], None] | None = None,
    training: bool = True,
    resumed: bool = False,
    taught: bool = True,
    launch: Launch | None = None,
    before: RunRecord | None = None,
    said: Callable[[str], None] | None = None,
) -> Parts:
    """Check and open the data, build task and student (its initial weights depend on the seed alone).

    Args:
        watch: called with (files checked, files in all).
        training: the student will be trained: its images must fit it (an evaluation pads them), and a start from
            random weights is told.
        resumed: the run began earlier, perhaps on a machine with more CPUs: `runtime.threads` may exceed them.
        taught: there is a teacher to learn from: on the images of `data.unlabelled`, which are else not opened, and by
            stored maps, which say what views of the images there are.
        launch: which of several processes this is; default the only one.
        before: the record of the run to go on with.
        said: shows the user which files of the recipe are executed, before the first one is; default nobody, and the
            lines stand among the notices alone.

    Raises:
        ConfigError: the size of the training images does not fit the student, or there are fewer CPUs than
            `runtime.threads`, or far fewer than `runtime.workers`; the images of a step cannot be shared out over the
            processes, or are far more than there are; a key of `runtime` that would not act.
        ResourceError: a micro-batch is larger than the memory.
    """
    launch = launch or Launch()
    share = share_out(recipe.train, launch, before)
    threads, about_threads = usable_threads(recipe.runtime.threads, resumed=resumed)
    about_workers = usable_workers(recipe, fresh=training and not resumed)
    if threads is not None:
        torch.set_num_threads(threads)
    device = choose_device(recipe, launch)
    require_acting(recipe, device, launch)
    more, about_more = unlabelled_share(recipe, used=taught) if training else (0, [])
    data = build_data(recipe.data, progress=watch, unlabelled=more > 0, one_size=training)
    task = SegmentationTask(recipe.task, len(data.classes), data.ignore_index, data.classes)
    torch.manual_seed(keyed_seed(recipe.seed, "student"))
    notices = [*about_threads, *about_workers, *about_more, *data.notices]
    shown = [] if said is None else _tell_code(recipe, taught, said)
    student = build_model(recipe.student, task.num_outputs, notices=notices)
    views = _views(recipe, taught)
    parts = Parts(recipe, data, task, student, device, notices, shown, more, launch, before, views=views)
    parts.student = parts.to_device(synchronised(student, recipe, device, launch))
    if training:
        parts.replica = copy.deepcopy(parts.student) if recipe.runtime.fsdp else None
        began = launch.world if before is None else before.processes
        if max(launch.world, began) > 1 or recipe.train.global_batch_size is not None:
            notices.append(str(share))
        notices.extend(random_start(recipe))
        require_fit(recipe, student, "student", parts.stored_size)
        _tell_size(parts, said)
        notices.extend(_attach_head(parts))
        trained = [module for module in (student, auxiliary_of(parts.student)) if module is not None]
        notices.extend(not_shared(recipe, nn.ModuleList(trained), device, launch))
    return parts


def _tell_code(recipe: Recipe, taught: bool, said: Callable[[str], None]) -> list[str]:
    """Show which files building the networks executes."""
    words = {code_words(spec): None for spec in (recipe.student, recipe.teacher if taught else None)}
    lines = [line for line in words if line is not None]
    for line in lines:
        said(line)
    return lines


def _tell_size(parts: Parts, said: Callable[[str], None] | None) -> None:
    """Show what is odd about the size of a step at once: the first batch of it may take long."""
    lines = require_possible(parts)
    parts.notices.extend(lines)
    if said is not None:
        for line in lines:
            said(line)
        parts.shown.extend(lines)


def _views(recipe: Recipe, taught: bool) -> ViewsSpec | None:
    cache = recipe.distill.cache if taught else None
    return recipe.train.views if cache is None else ViewsSpec(count=cache.views, seed=cache.seed)


def _attach_head(parts: Parts) -> list[str]:
    """The auxiliary head that the recipe asks for; its initial weights depend on the seed alone."""
    spec = parts.recipe.student.auxiliary
    if spec is None:
        return []
    torch.manual_seed(keyed_seed(parts.recipe.seed, "auxiliary"))
    head = attach_auxiliary(parts.student, spec, parts.task.num_outputs, parts.example(1))
    parts.to_device(synchronised(head, parts.recipe, parts.device, parts.launch))
    count = sum(parameter.numel() for parameter in head.parameters())
    return [
        f"student: auxiliary head on {spec.tap!r} ({head[0].in_channels} -> {head[0].out_channels} channels, {count:,} "
        "parameters): it is trained beside the student and no part of it"
    ]


def load_teacher(recipe: Recipe, outputs: int, notices: list[str]) -> nn.Module:
    """The recipe's teacher with its weights; those it has none for depend on the seed alone.

    Args:
        outputs: channels of its class map.
        notices: lines for the user are added here.
    """
    spec = require_teacher(recipe)
    torch.manual_seed(keyed_seed(recipe.seed, "teacher"))
    return build_model(spec, outputs, notices=notices)


def build_teacher(parts: Parts) -> nn.Module:
    """The recipe's teacher with its weights, on the run's device, in eval mode; it has run once on two images.

    Raises:
        ConfigError: the size of the training images, or of its own, does not fit it; its classes do not fit the
            data's.
        ModelError: it fails on them, or its weights are not finite.
    """
    own = parts.teacher_classes()
    parts.notices.extend([] if own is None else own.notices)
    network = load_teacher(parts.recipe, parts.teacher_outputs(), parts.notices)
    require_fit(parts.recipe, network, "teacher", parts.stored_size)
    teacher = parts.to_device(network).eval()
    # Here, because the distiller gets a copy of it that is folded: other weights, and fewer.
    require_finite(teacher, "teacher")
    parts.notices.extend(compare_weights(parts.student, teacher))
    spec, images = require_teacher(parts.recipe), parts.teacher_example()
    with preserved(teacher), torch.no_grad(), autocast(parts.device, parts.recipe.runtime.precision):
        attempt(
            lambda: teacher(images),
            f"teacher ({spec.model})",
            f"in evaluation mode on images {tuple(images.shape)}",
            "it gets RGB images (N, 3, H, W); where it takes one size alone, give it as teacher.size",
        )
    return teacher


def _loss_options(term: TermSpec, ignore_index: int) -> dict[str, Any]:
    """The term's options; a loss that reads labels is told what is void in this data set."""
    known = {"ignore_index": ignore_index} if "ignore_index" in loss_options(term.method) else {}
    return {**known, **term.options}


def build_distiller(parts: Parts, teacher: nn.Module | TeacherSource) -> Distiller:
    """The distiller of the recipe's terms, dry-run on two training images. Adapters depend on the seed alone."""
    terms = [
        Term(
            make_loss(spec.method, _loss_options(spec, parts.data.ignore_index)),
            student=spec.student,
            teacher=spec.teacher,
            weight=spec.weight,
            name=spec.name,
        )
        for spec in parts.recipe.terms
    ]
    own = parts.teacher_classes()
    torch.manual_seed(keyed_seed(parts.recipe.seed, "adapters"))
    distiller = Distiller(
        parts.student,
        teacher,
        terms,
        parts.example(2),
        teacher_input=teacher_input(parts.recipe),
        class_map=None if own is None else own.groups,
        num_classes=len(parts.data.classes),  # of the labels: a binary task has one output and two classes
    )
    distiller.adapters = synchronised(distiller.adapters, parts.recipe, parts.device, parts.launch)
    parts.notices.extend(distiller.notices)
    return distiller
