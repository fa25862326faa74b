"""The taps of a recipe's teacher and student beside each other, and terms proposed from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from densekd.config import Recipe
from densekd.data.find_folder import class_names
from densekd.data.scenes import CLASSES
from densekd.data.specs import FolderSpec, ScenesDataSpec
from densekd.errors import ConfigError, DataError
from densekd.inspection.good import Good, best_feature
from densekd.inspection.subject import Size, built_from, usual_size
from densekd.inspection.tree import Inspection, inspect, tap_dict
from densekd.losses.channelwise import ChannelWise
from densekd.models.specs import ModelSpec
from densekd.training.specs import TermSpec

#: of the published command lines: CIRKD's `train_cwd.sh` has 50 on the head's features and 3 on logits, both at 4
FEATURE_WEIGHT = 50.0
TEMPERATURE = 4.0


@dataclass(frozen=True)
class Match:
    """A tap of the student and the teacher's beside it; one is None where there is no counterpart.

    Attributes:
        words: what stands between the two: nothing, an adapter, a resize.
    """

    role: str
    student: Good | None
    teacher: Good | None
    words: str

    @property
    def equal(self) -> bool:
        """Whether both maps have one shape."""
        return self.student is not None and self.teacher is not None and self.student.shape == self.teacher.shape


@dataclass(frozen=True)
class PairInspection:
    """Two networks beside each other.

    Attributes:
        matches: encoder stages from the shallowest, then the head's features, then the class maps.
        terms: proposed; empty where nothing fits.
        notices: lines for the user.
    """

    student: Inspection
    teacher: Inspection
    matches: list[Match]
    terms: list[TermSpec]
    notices: list[str]

    def block(self) -> str:
        """The terms as YAML, to be pasted into a recipe."""
        return terms_block(self.terms)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""

        def side(tap: Good | None, of: Inspection) -> dict[str, Any] | None:
            return None if tap is None else tap_dict(tap, of.size)

        return {
            "student": {"model": self.student.what, "size": list(self.student.size)},
            "teacher": {"model": self.teacher.what, "size": list(self.teacher.size)},
            "taps": [
                {
                    "role": match.role,
                    "student": side(match.student, self.student),
                    "teacher": side(match.teacher, self.teacher),
                    "equal": match.equal,
                    "match": match.words,
                }
                for match in self.matches
            ],
            "terms": [_plain(term) for term in self.terms],
            "yaml": self.block(),
            "notices": self.notices,
        }


def inspect_pair(recipe: Recipe, size: Size | None = None, classes: int | None = None) -> PairInspection:
    """Run student and teacher of a recipe once, with random weights, and propose terms. No data is opened.

    Args:
        size: height and width of the student's images; None: those of the recipe, else 512x1024. The teacher sees
            images of the same size, or of its own.
        classes: of the data, where neither the recipe nor its folder says.

    Raises:
        ConfigError: no teacher, or a data set whose classes nobody knows.
        ModelError: a network that cannot be built or run.
    """
    if recipe.teacher is None:
        raise ConfigError("recipe: key 'teacher' is missing: a pair is a student and its teacher")
    outputs = 1 if recipe.task.binary else _classes(recipe, classes)
    own = len(recipe.teacher.class_names or ()) or outputs
    augment, asked = recipe.data.augment, size or usual_size(recipe)
    student = inspect(built_from(_model(recipe.student), outputs, "student", augment), asked)
    teacher = inspect(built_from(_model(recipe.teacher), own, "teacher", augment), recipe.teacher.size or student.size)
    mapped = recipe.teacher.class_names is not None or recipe.teacher.classes is not None
    matches = matched(student.taps, teacher.taps, mapped=mapped)
    terms, notices = proposed(student.taps, teacher.taps, mapped=mapped)
    found = PairInspection(student, teacher, matches, terms, [*student.notices, *teacher.notices, *notices])
    if terms:
        read = yaml.safe_load(found.block())["terms"]
        Recipe.model_validate({**recipe.model_dump(mode="json"), "terms": read})
    return found


def matched(student: list[Good], teacher: list[Good], *, mapped: bool = False) -> list[Match]:
    """The taps of two networks by what they are: stages of the encoders from the deepest, head's features, class maps.

    Args:
        mapped: the recipe says which classes of the teacher stand for those of the student.
    """
    stages = [[tap for tap in taps if tap.role == "stage"] for taps in (student, teacher)]
    count = max(map(len, stages))
    ours, theirs = ([*[None] * (count - len(taps)), *taps] for taps in stages)
    pairs: list[tuple[str, Good | None, Good | None]] = [
        (f"stage {place + 1}", one, other) for place, (one, other) in enumerate(zip(ours, theirs, strict=True))
    ]
    for role in ("head", "logits"):
        one, other = (next((tap for tap in taps if tap.role == role), None) for taps in (student, teacher))
        if one is not None or other is not None:
            pairs.append((role, one, other))
    return [Match(role, one, other, between(one, other, mapped=mapped)) for role, one, other in pairs]


def between(student: Good | None, teacher: Good | None, *, mapped: bool = False) -> str:
    """What stands between two maps, in words."""
    if student is None or teacher is None:
        return "no counterpart"
    if student.shape == teacher.shape:
        return "equal: no adapter"
    sizes = ["x".join(map(str, tap.shape[2:])) for tap in (student, teacher)]
    resized = "" if sizes[0] == sizes[1] else f"resize {sizes[0]} -> {sizes[1]}"
    if student.shape[1] == teacher.shape[1]:
        return f"equal channels: {resized}"
    if student.role == teacher.role == "logits":
        words = "teacher.classes maps them" if mapped else "say with teacher.classes which stand for which"
        return f"{student.shape[1]} and {teacher.shape[1]} classes: {words}"
    adapter = f"1x1 adapter {student.shape[1]} -> {teacher.shape[1]}"
    return f"{adapter}, {resized}" if resized else f"equal size: {adapter}"


def proposed(student: list[Good], teacher: list[Good], *, mapped: bool = False) -> tuple[list[TermSpec], list[str]]:
    """Channel-wise terms with published weights: on the class maps, and on the heads' features or the last stages."""
    terms, notices = [], []
    classes = [next((tap for tap in taps if tap.role == "logits"), None) for taps in (student, teacher)]
    if classes[0] is None or classes[1] is None:
        notices.append("no term on logits: not both networks give a class map")
    elif classes[0].shape[1] != classes[1].shape[1] and not mapped:
        notices.append("no term on logits: the networks have other classes; teacher.classes says which stand for which")
    else:
        terms.append(_term(classes[0], classes[1], ChannelWise.default_weight))
    features = _features(student, teacher)
    if features is None:
        notices.append("no term on features: not both networks have a feature map that a tap gives")
    else:
        terms.append(_term(*features, FEATURE_WEIGHT))
    return terms, notices


def terms_block(terms: list[TermSpec]) -> str:
    """Terms as the recipes write them: a line each."""
    lines = [yaml.safe_dump(_plain(term), default_flow_style=True, sort_keys=False, width=10_000) for term in terms]
    return "".join(["terms:\n", *(f"  - {line}" for line in lines)])


def _features(student: list[Good], teacher: list[Good]) -> tuple[Good, Good] | None:
    """Both heads' features, or both last stages: one of each kind would compare what is not of a kind."""
    best = best_feature(student), best_feature(teacher)
    if best[0] is None or best[1] is None:
        return None
    if best[0].role != best[1].role:
        last = [next((tap for tap in reversed(taps) if tap.role == "stage"), None) for taps in (student, teacher)]
        if last[0] is not None and last[1] is not None:
            return last[0], last[1]
    return best[0], best[1]


def _term(student: Good, teacher: Good, weight: float) -> TermSpec:
    options: dict[str, float | int | bool | str | None] = {"temperature": TEMPERATURE}
    return TermSpec(method=ChannelWise.name, student=student.tap, teacher=teacher.tap, weight=weight, options=options)


def _plain(term: TermSpec) -> dict[str, Any]:
    kept: dict[str, Any] = term.model_dump(mode="json", include={"method", "student", "teacher", "weight", "options"})
    return kept


def _model(spec: ModelSpec) -> ModelSpec:
    return ModelSpec(model=spec.model, options=spec.options)


def _classes(recipe: Recipe, given: int | None) -> int:
    """How many classes the data has, without opening any image.

    Raises:
        ConfigError: nobody knows.
    """
    data = recipe.data
    if given is not None:
        return given
    if isinstance(data, ScenesDataSpec):
        return len(CLASSES)
    if not isinstance(data, FolderSpec):
        return len(data.wanted_classes or data.benchmark.classes)
    try:
        return len(class_names(data))
    except DataError as error:
        raise ConfigError(f"{error}; or say how many there are with --classes") from None
