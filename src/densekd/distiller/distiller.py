"""The distiller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, cast

from torch import Tensor, nn

from densekd.adapters import Layout, nearest_resize
from densekd.class_map import ClassMap
from densekd.distiller.asking import asked
from densekd.distiller.build import as_batch, as_source, build, check_networks, teacher_network
from densekd.distiller.checks import check_labels, check_options, check_sizes, check_valid, check_value
from densekd.distiller.output import DistillOutput, TermValues
from densekd.distiller.plan import TermModules, TermPlan
from densekd.distiller.reported import reported
from densekd.distiller.sides import call, size_of
from densekd.distiller.term import Term, check_terms, checked_weight
from densekd.distiller.zero import zero
from densekd.errors import ArgumentError, nearest
from densekd.losses import Adversary
from densekd.taps import TapReader
from densekd.teacher import Batch, TeacherImages, TeacherInput, TeacherSource


class Distiller(nn.Module):
    """Runs a student and its frozen teacher, and adds up the distillation terms between them.

    Building it makes one dry run on `example`: it finds the taps and the shapes, builds the adapters, freezes and
    names what takes no part, and refuses what cannot work. Weights, buffers, gradients, modes, random states and
    hooks of both networks are afterwards what they were, except that the taps have their hooks, that the
    teacher's `requires_grad` is off and it is in evaluation mode, and that student parameters without a part
    are frozen; `notices` says so.

    `parameters()` and `state_dict()` hold the student and the adapters (`student.*`, `adapters.*`), never the
    teacher, which nevertheless follows `.to()`.

    Args:
        student: the network to train.
        teacher: a network (it is frozen in place), or a `TeacherSource`.
        terms: the losses and where they stand.
        example: images `(N, C, H, W)`, one is enough; a tuple of positional or a dict of keyword arguments where the
            networks take more.
        teacher_input: the teacher's own normalisation and size, when they are not the student's.
        class_map: for each student class the list of teacher classes it merges, when the label sets differ (see
            `densekd.class_map.ClassMap`).
        num_classes: classes of the student, for losses that ask; default: the channels of its class map.

    Attributes:
        student: the plain student, to save or export.
        adapters: a module with the adapters and the losses' own parameters.
        notices: what was chosen, built or frozen, one line each.

    Raises:
        TapError: a tap that names no module, never fires, fires twice, gives no spatial map, or lies in a compiled
            module; class maps with different numbers of classes and no `class_map`.
        ModelError: student and teacher are the same object or share parameters.
        ArgumentError: bad terms, example or options.

    >>> from densekd.losses import ChannelWise
    >>> student, teacher = torch.nn.Conv2d(3, 5, 3), torch.nn.Conv2d(3, 5, 3, padding=1)  # any two networks
    >>> images, labels = torch.rand(2, 3, 8, 8), torch.randint(0, 5, (2, 6, 6))
    >>> distiller = densekd.Distiller(student, teacher, [densekd.Term(ChannelWise(), weight=3.0)], images)
    >>> out = distiller(images)
    >>> out.student.shape  # the student's own output, untouched
    torch.Size([2, 5, 6, 6])
    >>> out.parts.keys()
    dict_keys(['channelwise:logits'])
    >>> (torch.nn.functional.cross_entropy(out.student, labels) + out.loss).backward()
    >>> [name for name, _ in distiller.named_parameters()]  # never the teacher's
    ['student.weight', 'student.bias']
    """

    _source: TeacherSource

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | TeacherSource,
        terms: Sequence[Term],
        example: Any,
        *,
        teacher_input: TeacherInput | None = None,
        class_map: Sequence[Sequence[int]] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        terms = check_terms(terms)
        check_options(teacher_input, num_classes)
        check_sizes(teacher, teacher_input)
        batch = as_batch(example)
        check_networks(student, teacher, batch)
        self._classes = None if class_map is None else ClassMap(class_map)
        self._weights = {term.name: term.weight for term in terms}
        images = None if teacher_input is None else TeacherImages(teacher_input).to(batch.images.device)
        taps = list(dict.fromkeys(term.student for term in terms))
        self._reader = TapReader(student, taps, who="student")
        source: TeacherSource | None = None
        try:
            source = as_source(teacher, terms)
            built = build(student, self._reader, source, terms, batch, images, self._classes, num_classes)
        except BaseException:
            self._reader.close()
            if source is not teacher:
                call(source, "close")
            raise
        # past nn.Module's own bookkeeping, which would list the teacher among the children
        object.__setattr__(self, "_source", source)
        self.student = student
        self.adapters = built.modules
        self.teacher_images = images
        self._plans = built.plans
        self.notices: list[str] = built.notices

    @property
    def teacher(self) -> Any:
        """The frozen network, or the source where no network is known."""
        return teacher_network(self._source) or self._source

    @property
    def source(self) -> TeacherSource:
        """Where the teacher's maps come from."""
        return self._source

    def read_from(self, source: TeacherSource) -> None:
        """Take the teacher's maps from `source` from now on, which holds those of the present one.

        Terms, adapters and losses stay as the dry run with the present source made them. That is not closed, so that
        its owner may go on with it; the distiller forgets it.

        Args:
            source: gives the taps of all terms; as `(N, C, H, W)` where it says `nchw = True`, else as the present one.
        """
        object.__setattr__(self, "_source", source)
        if getattr(source, "nchw", False):
            upright = Layout("NCHW")
            self._plans = [replace(plan, teacher=replace(plan.teacher, layout=upright)) for plan in self._plans]

    @property
    def plans(self) -> tuple[TermPlan, ...]:
        """What the dry run found for each term."""
        return tuple(self._plans)

    @property
    def adversaries(self) -> dict[str, Adversary]:
        """By term: the networks that play against the student, which the training loop has to train; mostly none.

        They are no part of `parameters()` and `state_dict()`.
        """
        modules = {plan.name: cast(TermModules, self.adapters[plan.key]) for plan in self._plans}
        found = {name: module.loss.adversary() for name, module in modules.items()}
        return {name: adversary for name, adversary in found.items() if adversary is not None}

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term, now."""
        return dict(self._weights)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the weights of some terms. A term at weight 0 is not computed; with none left the teacher rests.

        Args:
            weights: by term; a term that is not named keeps its own.

        Raises:
            ArgumentError: an unknown term, or a weight that is negative or not finite.

        >>> from densekd.losses import ChannelWise
        >>> networks = torch.nn.Conv2d(3, 5, 1), torch.nn.Conv2d(3, 5, 1)
        >>> distiller = densekd.Distiller(*networks, [densekd.Term(ChannelWise(), weight=3.0)], torch.rand(1, 3, 8, 8))
        >>> distiller.set_weights({"channelwise:logits": 0.0})
        >>> distiller(torch.rand(1, 3, 8, 8)).loss.item()
        0.0
        """
        for name in weights:
            if name not in self._weights:
                raise ArgumentError(
                    f"there is no term {name!r}{nearest(name, self._weights)}; terms: {', '.join(self._weights)}"
                )
        self._weights.update({name: checked_weight(weight, name) for name, weight in weights.items()})

    def forward(
        self,
        *args: Any,
        labels: Tensor | None = None,
        valid: Tensor | None = None,
        samples: Tensor | None = None,
        **kwargs: Any,
    ) -> DistillOutput:
        """One forward pass of both networks.

        Args:
            *args, **kwargs: go to both networks; the images are the first positional one or `pixel_values`.
            labels: `(N, H, W)` integers at image size, for losses that need them; brought to map size by nearest.
            valid: `(N, H, W)` bool at image size, True where a pixel counts; brought to map size by nearest.
            samples: `(N, 2)` int64, which view of which image each one is (view, index); for a teacher whose maps are
                stored, and no other.

        Raises:
            ArgumentError, ShapeError, DtypeError: labels missing where a term needs them; `labels` or `valid` of
                another shape, type or device, whether a term needs them or not.
            TapError: a tap did not fire this time.
        """
        names = [name for name, weight in self._weights.items() if weight != 0.0]
        output, values = self.values(Batch(args, kwargs, samples), labels, valid, names)
        left_out = [self.adapters[plan.key] for plan in self._plans if plan.name not in values]
        total = zero(output, values, left_out, self.student)
        parts: dict[str, Tensor] = {}
        for name, weight in self._weights.items():
            if name in values:
                value = weight * values[name]
                total = total + value
                parts[name] = reported(value)
            else:
                parts[name] = reported(total.new_zeros(()))
        return DistillOutput(output, total, parts)

    def values(
        self,
        batch: Batch,
        labels: Tensor | None = None,
        valid: Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> TermValues:
        """The unweighted values of the terms called `names` (default: all), with their graphs.

        Args:
            batch: the arguments of both networks.
            labels, valid: as `forward`.
            names: the terms that are computed.

        Raises:
            DensekdError: as `forward`.
            DtypeError, ShapeError: a loss returned no scalar.
        """
        plans = [plan for plan in self._plans if names is None or plan.name in names]
        image_size = size_of(batch.images)
        check_valid(valid, batch)
        check_labels(labels, batch)
        for plan in plans:
            if plan.needs_labels and labels is None:
                raise ArgumentError(f"term {plan.name!r} needs labels: call distiller(images, labels=labels)")
        # The teacher first: its activations are gone before the student builds its graph.
        # Where it has a device or a stream of its own, it goes on while the student runs.
        teacher_batch, collect = asked(self._source, self.teacher_images, batch, plans)
        student_taps = dict.fromkeys(plan.student.tap for plan in plans)
        output, student_maps = self._reader.run(self.student, batch.args, batch.kwargs, student_taps)
        teacher_maps = collect()
        values: dict[str, Tensor] = {}
        for plan in plans:
            student = plan.student.layout.to_nchw(student_maps[plan.student.tap], image_size)
            teacher = plan.teacher.layout.to_nchw(teacher_maps[plan.teacher.tap], size_of(teacher_batch.images))
            if plan.by_class and self._classes is not None:
                teacher = self._classes.teacher(teacher, plan.student.shape[1])
                student = self._classes.student(student)
            size = size_of(teacher)
            value = self.adapters[plan.key](
                student,
                teacher,
                nearest_resize(labels, size) if labels is not None and plan.needs_labels else None,
                nearest_resize(valid, size) if valid is not None else None,
            )
            values[plan.name] = check_value(value, plan.name)
        return TermValues(output, values)

    def train(self, mode: bool = True) -> Distiller:
        """Training mode of student and adapters; the teacher stays in evaluation mode.

        Args:
            mode: of the student and the adapters.
        """
        super().train(mode)
        call(self._source, "train", False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        call(self._source, "_apply", fn)
        return self

    def close(self) -> None:
        """Remove the hooks; the student stays as it was trained. Calling the distiller afterwards is an error."""
        self._reader.close()
        call(self._source, "close")

    def __enter__(self) -> Distiller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
