"""What a published data set is: its label names, its kinds of mask files, its splits, and how its files are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densekd.data.folder import Scan
from densekd.data.masks import IGNORE_NAME, MaskReader
from densekd.data.palette import made_palette
from densekd.data.specs import Color, MasksSpec
from densekd.errors import ConfigError, nearest

VOID = 255
"""Label of void in every benchmark, after reading."""

_BLACK = (0, 0, 0)
Classes = Mapping[str, tuple[str, ...]]
"""`{class: official label names}` in the order of the ids; what no class names is void."""


@dataclass(frozen=True)
class Encoding:
    """One kind of mask files: what its values mean.

    Attributes:
        kind: what such files are called, for messages.
        holds: the values they hold, in words, for messages.
        names: `{value in the file: official label name}`; a value is a number, or a colour in files painted in colours.
        classes: what is learned where the recipe merges nothing.
        void: further values, at which nothing is known.
    """

    kind: str
    holds: str
    names: Mapping[Any, str]
    classes: Classes
    void: tuple[Any, ...] = (VOID,)

    def reader(self, classes: Classes | None, unlisted: str, of: type[MaskReader] = MaskReader) -> MaskReader:
        """Reads such files into the ids of `classes` (None: of the encoding's own), through one table.

        Raises:
            ConfigError: a label that these files do not tell apart.
        """
        wanted = self.classes if classes is None else classes
        owner = {label: name for name, labels in wanted.items() for label in labels}
        held = set(self.names.values())
        unknown = [label for label in owner if label not in held]
        if unknown:
            raise ConfigError(
                f"data.classes: {unknown[0]!r} is no label of {self.kind}, which are there{nearest(unknown[0], held)}"
            )
        names = tuple(wanted)
        if any(isinstance(value, tuple) for value in self.names):
            colors: dict[str, Any] = dict.fromkeys(names, ())
            for value, label in [*self.names.items(), *((value, "") for value in self.void)]:
                key = owner.get(label, IGNORE_NAME)
                colors[key] = (*colors.get(key, ()), value)
            spec = MasksSpec.model_validate({"format": "colors", "colors": colors, "unlisted": unlisted})
        else:
            ids = {name: number for number, name in enumerate(names)}
            table = {value: ids[owner[label]] if label in owner else VOID for value, label in self.names.items()}
            table |= dict.fromkeys(self.void, VOID)
            spec = MasksSpec.model_validate({"format": "id_map", "id_map": table, "unlisted": unlisted})
        return of(spec, names, VOID, (self.kind, self.holds))


@dataclass(frozen=True)
class Layout:
    """The files of some splits, matched, and what their masks hold."""

    scans: dict[str, Scan]
    encoding: Encoding
    notices: list[str] = field(default_factory=list)
    reader: type[MaskReader] = MaskReader


@dataclass(frozen=True)
class Benchmark:
    """A published data set.

    Attributes:
        name: as in `data.name`.
        title: its own name.
        encodings: its kinds of mask files; the first is the official one, as downloaded.
        colors: a colour for each official label name of all encodings, and each class.
        counts: images in each split that has labels, as published.
        parts: the splits with labels that together are all of it, none inside another.
        tree: its layout below `data.root`, a line a path.
        group: regular expression that finds the group of images in a stem: whole groups are held out.
        needs: the folders and files below the root without which a split is not there.
        find: the files of splits, from the spec, its root and their names.
        images: `{split without labels: its folder of images below the root}`.
        instead: what a part becomes where its further files are not there.
        another: recognises another release at a root, and says why it is refused.
    """

    name: str
    title: str
    encodings: tuple[Encoding, ...]
    colors: Mapping[str, Color]
    counts: Mapping[str, int]
    parts: tuple[str, ...]
    tree: str
    group: str
    needs: Callable[[Path, str], tuple[str, ...]]
    find: Callable[[Any, Path, Sequence[str]], Layout]
    images: Mapping[str, str]
    instead: Mapping[str, str] = field(default_factory=dict)
    another: Callable[[Path], str | None] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The official class names, in the order of their ids."""
        return tuple(self.encodings[0].classes)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every official label name that a recipe may merge."""
        return tuple(dict.fromkeys(name for encoding in self.encodings for name in encoding.names.values()))

    def palette(self, classes: Classes | None) -> tuple[Color, ...]:
        """A colour per class: the official one, or that of the first label that a class merges.

        A merged class whose colour is black, which is left for void, or taken gets a made one.
        """
        if classes is None:
            return tuple(self.colors[name] for name in self.classes)
        found: dict[Color, None] = {}
        spare = iter(made_palette(2 * len(classes)))
        for labels in classes.values():
            color = self.colors[labels[0]]
            while color == _BLACK or color in found:
                color = next(spare)
            found[color] = None
        return tuple(found)

    def values(self, classes: Classes | None = None) -> tuple[Any, ...]:
        """For each class the value of its first label in the official files: what a submission to a server holds.

        Raises:
            ConfigError: the official files do not hold a label.
        """
        place: dict[str, Any] = {}
        for value, name in self.encodings[0].names.items():
            place.setdefault(name, value)
        wanted = self.encodings[0].classes if classes is None else classes
        unknown = [labels[0] for labels in wanted.values() if labels[0] not in place]
        if unknown:
            raise ConfigError(f"data.classes: {unknown[0]!r} has no value in {self.encodings[0].kind}")
        return tuple(place[labels[0]] for labels in wanted.values())


def check_merge(classes: Classes, benchmark: Benchmark) -> None:
    """Refuse classes that are no merging of the benchmark's labels.

    Raises:
        ValueError: fewer than two classes, one without labels, an unknown label, or one label in two classes.
    """
    if len(classes) < 2:
        raise ValueError(f"expected two classes or more, got {list(classes)}")
    owner: dict[str, str] = {}
    for name, labels in classes.items():
        if name == IGNORE_NAME or not name:
            raise ValueError(f"{name!r} cannot be a class; labels that no class names are void anyway")
        if not labels:
            raise ValueError(f"{name}: no label; list the official names that it merges")
        for label in labels:
            if label not in benchmark.labels:
                raise ValueError(
                    f"{name}: {label!r} is no label of {benchmark.title}{nearest(label, benchmark.labels)}"
                )
            if owner.setdefault(label, name) != name:
                raise ValueError(f"{label!r} is in two classes, {owner[label]!r} and {name!r}")
