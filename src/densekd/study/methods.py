"""What a comparison compares: from the labels of `--methods` to terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from densekd.config import Recipe, Where
from densekd.errors import ConfigError, nearest
from densekd.losses.catalog import METHODS
from densekd.records import STUDENT_ALONE, run_name
from densekd.runs.execute import resolve
from densekd.runs.execution import Kind
from densekd.runs.fast_teacher import temperature_of
from densekd.study.arguments import entries
from densekd.training.specs import TermSpec

_WHERE: tuple[str, ...] = get_args(Where)
_CLASS_MAPS = ("logits", "output")


@dataclass(frozen=True)
class Method:
    """One line of a comparison.

    Attributes:
        name: its label.
        where: it distils "logits", "features" or "logits+features"; "-": the student alone.
        terms: as in a recipe; none: the student alone.
    """

    name: str
    where: str = "-"
    terms: tuple[TermSpec, ...] = ()

    @property
    def kind(self) -> Kind:
        """Whether the student is trained alone."""
        return "distill" if self.terms else "train"

    def recipe(self, base: Recipe, seed: int, *, steps: int | None = None, threads: int | None = None) -> Recipe:
        """The recipe of one run: the study's, with these terms; nothing else of it differs between methods.

        Args:
            base: the study's recipe.
            seed: the run's.
            steps: its length; None: the recipe's own.
            threads: CPU threads of the run; None: the recipe's own.
        """
        changes: dict[str, object] = {
            "name": run_name(self.name, seed),
            "terms": [term.model_dump(mode="json") for term in self.terms],
            "compare": {},
        }
        if not self.terms:
            changes["teacher"] = None
            changes |= _same_views(base)
        if steps is not None:
            changes |= {"train.steps": steps, "train.epochs": None}
        if threads is not None:
            changes["runtime.threads"] = threads
        return resolve(base, seed, changes)


def _same_views(base: Recipe) -> dict[str, object]:
    """What gives the student alone the views that the others see with stored maps: the terms alone shall differ."""
    cache = base.distill.cache
    if cache is None:
        return {}
    return {"distill.cache": None, "train.views": {"count": cache.views, "seed": cache.seed}}


ALONE = Method(STUDENT_ALONE)


def resolve_methods(recipe: Recipe, labels: Sequence[str] | None = None) -> tuple[list[Method], list[str]]:
    """The methods behind labels, the student alone first; and lines for the user.

    A label is `none`, a key of the recipe's `compare.methods`, a method's name (the recipe's own terms of that method
    if it has any, else one term on the logits with the method's own options and weight), or `NAME@features`,
    `NAME@logits`, `NAME@logits+features` (the method's own options and weight, at the taps of `compare.features`).

    Args:
        recipe: the study's.
        labels: None: the keys of `compare.methods`, or else the methods of the recipe's terms.

    Raises:
        ConfigError: no list of texts; an unknown label (the nearest known ones are named), an empty one, one given
            twice, none at all; a term of the recipe behind a label that nobody knows or that does nothing.
    """
    if labels is None:
        labels = list(recipe.compare.methods)
        if not labels:
            _require_terms("terms", recipe.terms)
            labels = list(dict.fromkeys(term.method for term in recipe.terms))
    labels = [_label(label) for label in entries("--methods", labels, "labels")]
    doubled = sorted({label for label in labels if labels.count(label) > 1})
    if doubled:
        raise ConfigError(f"--methods: {doubled[0]!r} is given twice; each label names one folder of runs")
    others = [_method(recipe, label) for label in labels if label != STUDENT_ALONE]
    if not others:
        raise ConfigError(
            f"--methods: expected at least one method beside 'none'; there are {', '.join(_known(recipe))}"
        )
    told = [] if STUDENT_ALONE in labels else ["methods: 'none', the student alone, is added: gains are against it"]
    return [ALONE, *others], told


def _label(label: object) -> str:
    if not isinstance(label, str):
        raise ConfigError(f"--methods: expected a list of labels, got {label!r} among them")
    if not label.strip():
        raise ConfigError("--methods: a label is empty; expected labels with commas between, as channelwise,pixelwise")
    return label.strip()


def _require_terms(key: str, terms: Sequence[TermSpec], method: str | None = None) -> None:
    """Refuse terms (all, or those of one method) that nobody knows or that do nothing, by their key in the recipe."""
    for place, term in enumerate(terms):
        if method is not None and term.method != method:
            continue
        if term.method not in METHODS:
            raise ConfigError(
                f"recipe: {key}.{place}.method: unknown method {term.method!r}{nearest(term.method, METHODS)}; "
                f"known: {', '.join(METHODS)}"
            )
        if term.weight == 0:
            raise ConfigError(f"recipe: {key}.{place}.weight: a term of weight 0 does nothing; leave it out")


def _known(recipe: Recipe) -> list[str]:
    return [*recipe.compare.methods, *(name for name in METHODS if name not in recipe.compare.methods)]


def _method(recipe: Recipe, label: str) -> Method:
    spec = recipe.compare.methods.get(label)
    if spec is not None:
        _require_terms(f"compare.methods.{label}.terms", spec.terms)
        return Method(label, spec.where or where_of(spec.terms), spec.terms)
    name, at, where = label.partition("@")
    if name not in METHODS:
        candidates = [*_known(recipe), STUDENT_ALONE]
        raise ConfigError(
            f"--methods: unknown method {label!r}{nearest(label, candidates)}; known: {', '.join(candidates)}"
        )
    if not at:
        _require_terms("terms", recipe.terms, name)
        own = tuple(term for term in recipe.terms if term.method == name)
        terms = own or (_plain(name, "logits", "logits"),)
        return Method(label, where_of(terms), terms)
    return Method(label, where, tuple(_placed(recipe, label, name, where)))


def _placed(recipe: Recipe, label: str, name: str, where: str) -> list[TermSpec]:
    if where not in _WHERE:
        raise ConfigError(
            f"--methods: {label!r}: no such place{nearest(where, _WHERE)}; after @ comes one of {', '.join(_WHERE)}"
        )
    found = [_plain(name, "logits", "logits")] if "logits" in where else []
    taps = recipe.compare.features
    if "features" in where:
        if taps is None:
            raise ConfigError(
                f"--methods: {label!r}: which features? give compare.features.student=MODULE and "
                "compare.features.teacher=MODULE, for instance encoder.layer4"
            )
        found.append(_plain(name, taps.student, taps.teacher))
    return found


def _plain(name: str, student: str, teacher: str) -> TermSpec:
    return TermSpec(method=name, student=student, teacher=teacher, weight=METHODS[name].default_weight)


def where_of(terms: Sequence[TermSpec]) -> str:
    """The column `where` of these terms, told from their taps: class maps are `logits`, all others `features`."""
    found = {"logits" if term.student in _CLASS_MAPS and term.teacher in _CLASS_MAPS else "features" for term in terms}
    return "+".join(where for where in ("logits", "features") if where in found)


def tapping(methods: Sequence[Method]) -> tuple[TermSpec, ...]:
    """A term for each tap of the teacher that any of the methods reads: of several the one that softens over positions
    at the lowest temperature, where an error of the maps counts most, and else the first."""
    found: dict[str, list[TermSpec]] = {}
    for method in methods:
        for term in method.terms:
            found.setdefault(term.teacher, []).append(term)
    strictest = (min(terms, key=_lowest) for terms in found.values())
    return tuple(term.model_copy(update={"name": f"tap {place}"}) for place, term in enumerate(strictest))


def _lowest(term: TermSpec) -> float:
    temperature = temperature_of(term)
    return math.inf if temperature is None else temperature
