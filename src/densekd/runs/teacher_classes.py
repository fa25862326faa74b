"""The label set of a recipe's teacher, and how it maps to that of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from densekd.class_map import ClassMap
from densekd.config import TeacherSpec
from densekd.errors import ConfigError, nearest

_LISTED = 12


@dataclass(frozen=True)
class TeacherClasses:
    """A teacher with a label set of its own.

    Attributes:
        names: of its classes, in the order of its outputs.
        groups: for each class of the data the teacher classes that it stands for, by number.
        notices: lines for the user.
    """

    names: tuple[str, ...]
    groups: list[list[int]]
    notices: list[str]

    @property
    def map(self) -> ClassMap:
        """From its logits to those of the data's classes."""
        return ClassMap(self.groups)


def teacher_classes(spec: TeacherSpec, names: Sequence[str], outputs: int) -> TeacherClasses | None:
    """The teacher's label set; None where it is that of the data, in the same order and with as many outputs.

    With `teacher.classes` each class of the data has the teacher classes named there (none: the teacher does not know
    it); without, that of its own name.

    Args:
        spec: `class_names` and `classes`.
        names: the data's classes.
        outputs: channels of the student's class map: as many, or 1 for two classes with one logit. A teacher whose
            `class_names` are given has an output for each.

    Raises:
        ConfigError: a class of the data without an entry, an entry for no class, or the name of no teacher class (the
            nearest names are given); a teacher that knows none, or for one logit not both, of the data's classes.
    """
    own = tuple(spec.class_names or names)
    if spec.classes is None:
        if own == tuple(names) and (spec.class_names is None or outputs == len(names)):
            return None
        groups = [[own.index(name)] for name in _named(names, own)]
    else:
        groups = _grouped(spec.classes, names, own)
        _require_known(groups, names, outputs)
    return TeacherClasses(own, groups, _told(groups, names, own))


def _named(names: Sequence[str], own: Sequence[str]) -> Sequence[str]:
    missing = [name for name in names if name not in own]
    if missing:
        raise ConfigError(
            f"teacher.class_names: the teacher has no class of the name {_listed(missing)}"
            f"{nearest(missing[0], own)}; say with teacher.classes which of its classes each class of the data stands "
            f"for ({len(missing)} of {len(names)} are missing)"
        )
    return names


def _grouped(classes: Mapping[str, Sequence[str]], names: Sequence[str], own: Sequence[str]) -> list[list[int]]:
    for name in classes:
        if name not in names:
            raise ConfigError(f"teacher.classes: {name!r} is no class of the data{nearest(name, names)}")
    missing = [name for name in names if name not in classes]
    if missing:
        raise ConfigError(
            f"teacher.classes: no entry for {_listed(missing)}; expected one for every class of the data ([] where the "
            "teacher does not know it)"
        )
    for name, group in classes.items():
        for teachers in group:
            if teachers not in own:
                raise ConfigError(
                    f"teacher.classes.{name}: {teachers!r} is no class of the teacher{nearest(teachers, own)}"
                    + ("" if nearest(teachers, own) else f" (its classes: {_listed(own)})")
                )
    return [[own.index(teachers) for teachers in classes[name]] for name in names]


def _require_known(groups: Sequence[Sequence[int]], names: Sequence[str], outputs: int) -> None:
    if not any(groups):
        raise ConfigError("teacher.classes: every class of the data has []: expected classes of the teacher for some")
    unknown = [name for name, group in zip(names, groups, strict=True) if not group]
    if outputs == 1 and unknown:
        raise ConfigError(
            f"teacher.classes.{unknown[0]}: [] not together with task.binary: one logit compares two classes, and the "
            "teacher must know both; name its classes for it"
        )


def _told(groups: Sequence[Sequence[int]], names: Sequence[str], own: Sequence[str]) -> list[str]:
    told = [f"teacher: its {len(own)} classes are mapped to the {len(names)} of the data"]
    kept = {number for group in groups for number in group}
    dropped = [name for number, name in enumerate(own) if number not in kept]
    if dropped:
        told.append(
            f"teacher: its classes {_listed(dropped)} stand for no class of the data and are dropped: the others share "
            "their probability in proportion"
        )
    unknown = [name for name, group in zip(names, groups, strict=True) if not group]
    if unknown:
        told.append(
            f"teacher: it does not know {_listed(unknown)}: not distilled by class, and its scores leave pixels of "
            "these out"
        )
    return told


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(repr(name) for name in names[:_LISTED]) + more
