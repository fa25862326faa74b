"""The softened maps of a run's terms on a few images of `val`: of its teacher, and of its student at two moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from densekd import files
from densekd.distiller import Distiller
from densekd.distiller.plan import TermModules, TermPlan
from densekd.evaluate import autocast, spread
from densekd.looks.networks import compared, mask_at, middle, padded, tapped
from densekd.looks.pictures import packed, seen_file
from densekd.looks.records import MapImage, MapsFile, as_file
from densekd.looks.terms import Look, TermLooks, channel_names, look
from densekd.losses.catalog import loss_options
from densekd.models.sizes import input_multiple
from densekd.runs.asked_teacher import teacher_input
from densekd.runs.assemble import Parts
from densekd.teacher import TeacherImages
from densekd.training.specs import TermSpec

IMAGES = 4
"""Images whose maps are looked at, at most."""
_MOST_VALUES = 2**23
"""Of maps that are kept from before training for the pictures, all terms and images together: 32 MB."""
_OVER_POSITIONS = "channelwise"
_LONGEST = 200

Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class _Image:
    """An image of `val` as networks get it, with what is not padding, on the run's device."""

    batch: Tensor
    real: Tensor | None


@dataclass(frozen=True)
class _Term:
    """A term whose channels correspond, and how it softens."""

    spec: TermSpec
    plan: TermPlan
    temperature: float

    @property
    def softens(self) -> bool:
        return self.spec.method == _OVER_POSITIONS


class MapLooks:
    """The terms of a distiller on a few images, by network.

    Args:
        specs: the recipe's terms, in the order of the distiller's plans.

    Attributes:
        notes: what is not looked at, and why.
    """

    def __init__(self, parts: Parts, distiller: Distiller, specs: Sequence[TermSpec]) -> None:
        self.parts, self.distiller = parts, distiller
        self.notes: list[str] = []
        own = parts.teacher_classes()
        self.classes = None if own is None else own.map
        pairs = zip(specs, distiller.plans, strict=True)
        self.terms = [_Term(spec, plan, self._temperature(spec, plan)) for spec, plan in pairs if self._fits(plan)]
        self.looks: dict[str, dict[str, list[Look]]] = {}
        self.photos: dict[int, Tensor] = {}
        self.indices = spread(len(parts.data.val), IMAGES)
        self.window = parts.recipe.evaluation.crop

    def _fits(self, plan: TermPlan) -> bool:
        modules = self._modules(plan)
        channels = plan.teacher.shape[1]
        if not modules.loss.equal_channels and plan.student.shape[1] != channels and not plan.by_class:
            self.notes.append(
                f"{plan.name}: its loss compares maps of {plan.student.shape[1]} and {channels} channels as they are: "
                "no channel of one stands for a channel of the other"
            )
            return False
        return True

    def _temperature(self, spec: TermSpec, plan: TermPlan) -> float:
        usual: float = loss_options(_OVER_POSITIONS)["temperature"]
        if spec.method != _OVER_POSITIONS:
            return usual
        return float(getattr(self._modules(plan).loss, "temperature", usual))

    def _modules(self, plan: TermPlan) -> TermModules:
        return cast(TermModules, self.distiller.adapters[plan.key])

    def add(self, key: str, student: nn.Module, teacher: nn.Module, watch: Watch) -> None:
        """Look at a student, in the mode it is in, and at the teacher beside it.

        A student whose modules are not the distiller's own has its adapters none the less: they are what brings its
        map to the teacher's channels.

        Raises:
            DensekdError: a tap does not fire on a whole image of `val`.
        """
        found: dict[str, list[Look]] = {term.plan.name: [] for term in self.terms}
        held = 0
        for done, index in enumerate(self.indices):
            watch(done, len(self.indices))
            looks = self._attempt(index, student, teacher) if not done else self._looks(index, student, teacher)
            held += sum(one.density.numel() for one in looks.values())
            if done and held > _MOST_VALUES:
                self.indices = self.indices[:done]
                break
            for name, one in looks.items():
                found[name].append(one)
        self.looks[key] = found

    def drop_adapted(self, why: str) -> None:
        """Leave out the terms whose adapter has weights."""
        adapted = [term for term in self.terms if self._modules(term.plan).adapter.weight is not None]
        self.notes += [f"{term.plan.name}: {why}" for term in adapted]
        self.terms = [term for term in self.terms if term not in adapted]

    def forget_teacher(self, key: str) -> None:
        """Drop the teacher's maps that were kept beside this network's: a later look has them again."""
        empty = torch.empty(0)
        for name, looks in self.looks[key].items():
            self.looks[key][name] = [replace(one, teacher_density=empty) for one in looks]

    def _attempt(self, index: int, student: nn.Module, teacher: nn.Module) -> dict[str, Look]:
        """The first image: where networks take no whole one, of this and all others a part of the training's size."""
        try:
            return self._looks(index, student, teacher)
        except Exception as error:
            size = self.parts.example(1).shape[-2:]
            if self.window == tuple(size):
                raise
            self.window = (int(size[0]), int(size[1]))
            found = self._looks(index, student, teacher)
            words = " ".join(str(error).split())[:_LONGEST]
            self.notes.append(f"the networks cannot run on a whole image ({words}): parts of the training's size")
            return found

    def _image(self, index: int, student: nn.Module, teacher: nn.Module) -> _Image:
        parts = self.parts
        spec = parts.recipe.teacher
        multiple = input_multiple(student)
        if spec is None or spec.size is None:
            multiple = math.lcm(multiple, input_multiple(teacher))
        image = parts.eval_view()[index]["image"]
        if self.window is not None:
            image = middle(image, self.window)
        batch, real = padded(image, multiple)
        return _Image(batch.to(parts.device).contiguous(memory_format=parts.layout), real)

    def _looks(self, index: int, student: nn.Module, teacher: nn.Module) -> dict[str, Look]:
        parts, spec = self.parts, teacher_input(self.parts.recipe)
        image = self._image(index, student, teacher)
        self.photos[index] = image.batch[0]
        shown = image.batch if spec is None else TeacherImages(spec).to(parts.device)(image.batch)
        with torch.no_grad(), autocast(parts.device, parts.recipe.runtime.precision):
            own = tapped(student, [term.plan.student.tap for term in self.terms], image.batch, "student")
            given = tapped(teacher, [term.plan.teacher.tap for term in self.terms], shown, "teacher")
            found = {}
            for term in self.terms:
                pair = own[term.plan.student.tap], given[term.plan.teacher.tap]
                mine, theirs = compared(term.plan, self._modules(term.plan), self.classes, *pair)
                mask = mask_at(image.real, (int(theirs.shape[1]), int(theirs.shape[2])))
                found[term.plan.name] = look(mine, theirs, term.temperature, mask)
        return found

    def files(self, count: int, titles: Mapping[str, str]) -> dict[str, bytes]:
        """`maps.json`, and in `maps.safetensors` what it names, with `count` channels of each term.

        Args:
            titles: what the networks are, by key; the teacher's is "teacher".
        """
        records, tensors = [], dict[str, Tensor]()
        for place, term in enumerate(self.terms):
            plan = term.plan
            looks = {key: found[plan.name][: len(self.indices)] for key, found in self.looks.items()}
            channels = len(next(iter(looks.values()))[0].kl)
            known = self.classes.known if self.classes is not None and plan.by_class else None
            by_class = plan.student.is_class_map and plan.teacher.is_class_map
            names = channel_names(channels, self.parts.data.classes, known, by_class)
            both = TermLooks(
                plan.name,
                term.spec.method,
                plan.student.tap,
                plan.teacher.tap,
                term.temperature,
                term.softens,
                names,
                looks,
            )
            record, planes = both.settled(count, f"{place}")
            records.append(record)
            tensors |= planes
        photos: dict[str, bytes] = {}
        images, augment = [], self.parts.recipe.data.augment
        for place, index in enumerate(self.indices if self.terms else ()):
            name = f"map-{place:02}.jpg"
            photos[name] = seen_file(self.photos[index], augment.mean, augment.std)
            images.append(MapImage(index=index, name=files.as_text(self.parts.data.val.name_of(index)), file=name))
        part = "each in one piece" if self.window is None else f"of each the middle {self.window[0]}x{self.window[1]}"
        rule = (
            f"on {len(images)} images spread evenly over val, {part}; the numbers are means over them; of "
            f"each term the channels whose divergence from the teacher changed most, either way, each on the image "
            "where it changed most in that direction"
        )
        whole = MapsFile(rule=rule, networks=dict(titles), images=images, terms=records, notes=self.notes)
        return {"maps.json": as_file(whole), "maps.safetensors": packed(photos, tensors)}
