"""Everything that can be said of a data set before training on it: every file opened, everything counted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densekd.data.check import Facts, Pair, Progress, check_pair, look_at_all
from densekd.data.found import FoundData
from densekd.data.images import check_image
from densekd.data.masks import MaskReader
from densekd.errors import DataError

_NAMED = 3
_BLOCK = 1 << 20


@dataclass(frozen=True)
class SplitSurvey:
    """What one split holds. Files with problems are in `files` and in nothing else.

    Attributes:
        files: images of the split.
        stems: of the files without problems, in their order.
        labelled: whether its images have masks.
        sizes: (height, width) of these.
        pixels: of each class, and last of void.
        images: how many images hold a pixel of each class.
        all_void: stems of masks in which nothing is labelled.
        problems: a line for each file that cannot be used.
    """

    name: str
    files: int
    stems: tuple[str, ...]
    labelled: bool
    sizes: tuple[tuple[int, int], ...]
    pixels: Tensor
    images: Tensor
    all_void: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def shares(self) -> list[float]:
        """Share of each class among the labelled pixels of the split: its pixels over those of all classes."""
        labelled = self.pixels[:-1].double()
        return (labelled / labelled.sum().clamp(min=1)).tolist()


@dataclass(frozen=True)
class Survey:
    """A data set as its files are.

    Attributes:
        files: pairs, and images without masks, that were opened; each once, though several splits may have it.
        warnings: what is odd, and no mistake for certain.
        notices: what the search for the files had to say.
    """

    classes: tuple[str, ...]
    splits: tuple[SplitSurvey, ...]
    files: int
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """Each file that cannot be used, once, though several splits may have it."""
        return list(dict.fromkeys(problem for split in self.splits for problem in split.problems))


@dataclass(frozen=True)
class _Seen:
    """Facts of a pair, or of an image alone, and what the image file's bytes hash to."""

    height: int
    width: int
    digest: bytes
    pixels: Tensor | None = None


@dataclass
class _Files:
    """A split before it is summed up: what each of its files is called, and what became of it."""

    name: str
    labelled: bool
    stems: list[str] = field(default_factory=list)
    seen: list[_Seen | DataError] = field(default_factory=list)


def survey(found: FoundData, progress: Progress | None = None) -> Survey:
    """Open every image and mask, several at a time, and count.

    Files with problems are told in the result, not raised: a data set is to be judged as a whole.

    Args:
        found: the files, as `densekd.data.find.data_of` gives them.
        progress: called with (files done, files in all).
    """
    pairs = found.pairs
    alone = list(dict.fromkeys(path for split in found.images.values() for path in split.values()))
    things: list[Pair | Path] = [*pairs, *alone]
    reader = found.reader
    looked = dict(zip(things, look_at_all(things, lambda thing: _look(thing, reader), progress), strict=True))
    splits = [_Files(name, True, [p.stem for p in of], [looked[p] for p in of]) for name, of in found.splits.items()]
    splits += [
        _Files(name, False, list(of), [looked[path] for path in of.values()]) for name, of in found.images.items()
    ]
    count = len(found.classes)
    summed = tuple(_summed(one, count) for one in splits)
    warnings = [line for one in summed for line in _strange(one, found.classes)]
    warnings += [*_twice(splits), *_across(splits)]
    return Survey(found.classes, summed, len(things), tuple(warnings), tuple(found.notices))


def _look(thing: Pair | Path, reader: MaskReader) -> _Seen:
    if isinstance(thing, Pair):
        facts: Facts = check_pair(thing, reader)
        return _Seen(facts.height, facts.width, _digest(thing.image), facts.pixels)
    height, width = check_image(thing)
    return _Seen(height, width, _digest(thing))


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _summed(one: _Files, classes: int) -> SplitSurvey:
    good = [(stem, seen) for stem, seen in zip(one.stems, one.seen, strict=True) if isinstance(seen, _Seen)]
    counted = [seen.pixels for _, seen in good if seen.pixels is not None]
    table = torch.stack(counted) if counted else torch.zeros((0, classes + 1), dtype=torch.int64)
    return SplitSurvey(
        one.name,
        len(one.stems),
        tuple(stem for stem, _ in good),
        one.labelled,
        tuple((seen.height, seen.width) for _, seen in good),
        table.sum(0),
        (table[:, :-1] > 0).sum(0),
        tuple(stem for stem, seen in good if seen.pixels is not None and not bool(seen.pixels[:-1].any())),
        tuple(str(seen) for seen in one.seen if isinstance(seen, DataError)),
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _strange(split: SplitSurvey, classes: Sequence[str]) -> list[str]:
    if not split.labelled or not split.sizes:
        return []
    found = []
    absent = [repr(classes[place]) for place, count in enumerate(split.pixels[:-1].tolist()) if count == 0]
    if len(absent) == len(classes):
        return [f"{split.name}: every pixel of its {split.files} masks is void: there is nothing to learn or score"]
    if absent:
        found.append(f"{split.name}: no pixel of {', '.join(absent)}")
    if split.all_void:
        count = len(split.all_void)
        found.append(f"{split.name}: {count} of {split.files} masks are void all over: {_named(split.all_void)}")
    return found


def _by_digest(one: _Files) -> dict[bytes, list[str]]:
    held: dict[bytes, list[str]] = {}
    for stem, seen in zip(one.stems, one.seen, strict=True):
        if isinstance(seen, _Seen):
            held.setdefault(seen.digest, []).append(stem)
    return held


def _twice(splits: Sequence[_Files]) -> list[str]:
    found = []
    for one in splits:
        doubled = [stems for stems in _by_digest(one).values() if len(stems) > 1]
        if doubled:
            shown = _named([" = ".join(stems[:_NAMED]) for stems in doubled])
            found.append(f"{one.name}: {len(doubled)} images are there twice or more, byte for byte: {shown}")
    return found


def _across(splits: Sequence[_Files]) -> list[str]:
    """Images of one split that are in another too, be it the same file or a copy."""
    held: Mapping[str, dict[bytes, list[str]]] = {one.name: _by_digest(one) for one in splits}
    names, found = list(held), []
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            shared = held[name].keys() & held[other].keys()
            if shared:
                shown = _named(sorted(f"{held[other][digest][0]} = {held[name][digest][0]}" for digest in shared))
                found.append(f"{other}: {len(shared)} images are in {name} too, byte for byte: {shown}")
    return found


def split_rows(found: Survey) -> list[dict[str, Any]]:
    """A row per split: files, sizes as width x height from the smallest to the largest area, void, problems.

    `void %` is of all pixels of the split's masks.
    """
    rows = []
    for split in found.splits:
        sizes = sorted(set(split.sizes), key=lambda size: (size[0] * size[1], size))
        total = int(split.pixels.sum())
        rows.append(
            {
                "split": split.name,
                "images": split.files,
                "masks": "yes" if split.labelled else "no",
                "smallest": _size(sizes[0]) if sizes else None,
                "largest": _size(sizes[-1]) if sizes else None,
                "sizes": len(sizes),
                "void %": round(100 * int(split.pixels[-1]) / total, 3) if total else None,
                "void all over": len(split.all_void),
                "problems": len(split.problems),
            }
        )
    return rows


def class_rows(found: Survey) -> list[dict[str, Any]]:
    """A row per class: for each split its share of the labelled pixels, and how many images hold it."""
    labelled = [(split, split.shares, split.images.tolist()) for split in found.splits if split.labelled]
    return [
        {
            "id": place,
            "class": name,
            **{
                column: value
                for split, shares, images in labelled
                for column, value in (
                    (f"{split.name} %", round(100 * shares[place], 3)),
                    (f"{split.name} images", images[place]),
                )
            },
        }
        for place, name in enumerate(found.classes)
    ]


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
