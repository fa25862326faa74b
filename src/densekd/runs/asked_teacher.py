"""The teacher that a recipe asks for: whether there is one, and how it wants its images."""

from __future__ import annotations

from densekd.config import Recipe, TeacherSpec
from densekd.errors import ConfigError
from densekd.losses.catalog import METHODS, make_loss
from densekd.runs.start import WEIGHT_OPTIONS
from densekd.teacher import TeacherInput


def _has_weights(spec: TeacherSpec) -> bool:
    if spec.checkpoint is not None or spec.untrained or any(spec.options.get(key) for key in WEIGHT_OPTIONS):
        return True
    # A hub name brings its weights; a file's function is the user's own business.
    return (spec.model.startswith("transformers:") and "/" in spec.model) or ".py:" in spec.model


def require_teacher(recipe: Recipe) -> TeacherSpec:
    """The recipe's teacher.

    Raises:
        ConfigError: no teacher, no terms, a method nobody knows, or a teacher without trained weights.
    """
    if recipe.teacher is None:
        raise ConfigError("recipe: key 'teacher' is missing: distillation needs a teacher (or use `densekd train`)")
    if not recipe.terms:
        raise ConfigError("recipe: key 'terms' is missing: name at least one distillation term")
    for place, term in enumerate(recipe.terms):
        if term.method not in METHODS:
            make_loss(term.method, term.options)  # raises, naming the nearest method
        if term.weight == 0:
            raise ConfigError(f"recipe: terms.{place}.weight: a term of weight 0 does nothing; leave it out")
    if not _has_weights(recipe.teacher):
        raise ConfigError(
            "teacher.checkpoint: missing: an untrained teacher teaches nothing. Give the run folder or file of a "
            "trained teacher, for instance teacher.checkpoint=runs/my-teacher"
        )
    return recipe.teacher


def teacher_input(recipe: Recipe) -> TeacherInput | None:
    """How the student's images are brought to the teacher's normalisation and size; None when they are the same."""
    spec = recipe.teacher
    if spec is None or (spec.mean is None and spec.size is None):
        return None
    mean, std = recipe.data.augment.mean, recipe.data.augment.std
    own_mean, own_std = spec.mean or mean, spec.std or std
    return TeacherInput(mean=own_mean, std=own_std, student_mean=mean, student_std=std, size=spec.size)
