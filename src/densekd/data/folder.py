"""Images and masks in folders, matched by their file stems."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densekd.data.base import Sample
from densekd.data.check import Pair
from densekd.data.images import IMAGE_SUFFIXES, read_image
from densekd.data.keyed import keyed_seed
from densekd.data.masks import MASK_SUFFIXES, MaskReader
from densekd.data.specs import AutoSplitSpec, SplitSpec, UnlabelledFilesSpec
from densekd.errors import DataError, nearest, no_folder


class FolderSet:
    """Pairs of image and mask files as a data set (see `densekd.data.base.SegmentationSet`).

    Args:
        pairs: the files, as `scan_split` finds them.
        reader: turns mask files into labels; its class names and ignore_index are the set's.
        palette: a colour for each class.
    """

    def __init__(self, pairs: Sequence[Pair], reader: MaskReader, palette: tuple[tuple[int, int, int], ...]) -> None:
        self.pairs = tuple(pairs)
        self.palette = palette
        self._reader = reader

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their ids."""
        return self._reader.classes

    @property
    def ignore_index(self) -> int:
        """Label of void."""
        return self._reader.ignore_index

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> Sample:
        """Read image and mask number `index`.

        Raises:
            DataError: a file cannot be read, holds values that mean no class, or the sizes differ (files may
                have changed since they were checked).
        """
        pair = self.pairs[index]
        image, label = read_image(pair.image), self._reader.read_narrow(pair.mask)
        if image.shape[1:] != label.shape:
            raise DataError(
                f"{pair.mask}: sizes differ: mask {label.shape[1]}x{label.shape[0]}, "
                f"image {image.shape[2]}x{image.shape[1]} (width x height)"
            )
        return Sample(image, label)

    def name_of(self, index: int) -> str:
        """The file stem."""
        return self.pairs[index].stem


@dataclass
class Scan:
    """What one split's folders hold."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def files_below(folder: Path) -> list[Path]:
    """All files below `folder`, sorted; names that begin with a dot are left out. Links to folders are followed.

    Raises:
        DataError: a folder cannot be read, or a link leads back to a folder it lies in.
    """
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_unread):
        _refuse_loop(Path(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _refuse_unread(error: OSError) -> None:
    """`os.walk` would pass over the folder without a word."""
    raise DataError(f"{error.filename}: folder cannot be read ({error.strerror})") from None


def _refuse_loop(folder: Path) -> None:
    if not folder.is_symlink():
        return
    meant = folder.resolve()
    if any(above.resolve() == meant for above in folder.parents):
        raise DataError(f"{folder}: a link that leads back to {meant}, in which it lies; remove the link")


def by_stem(folder: Path, suffixes: frozenset[str], scan: Scan) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files of the wanted kinds by stem, and the others by stem; two files of one stem are a problem."""
    wanted: dict[str, Path] = {}
    other: dict[str, Path] = {}
    for path in files_below(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if path.suffix.lower() not in suffixes:
            other[stem] = path
        elif stem in wanted:
            scan.problems.append(f"{path}: duplicate stem: {wanted[stem].name} has the same; keep one of them")
        else:
            wanted[stem] = path
    return wanted, other


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    if not root.is_dir():
        raise DataError(f"{root}: {no_folder(root)} (data.root)")
    _require_inside(root, split)
    images, masks = root / split / "images", root / split / "masks"
    for folder in (images, masks):
        if not folder.is_dir():
            names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
            hint = nearest(split, names) if split not in names else ""
            if split == "val":
                hint += "; data.auto_split can cut a validation set out of the training files"
            raise DataError(
                f"{folder}: {no_folder(folder)}; expected {split}/images and {split}/masks in {root}, "
                f"which holds {', '.join(names) or 'no folders'}{hint}"
            )
    return images, masks


def _require_inside(root: Path, name: str) -> None:
    """A recipe may come from somebody else: below the root it names, it reads; elsewhere it does not."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{name}: leaves the folder {root}; give a path below it (links may lead elsewhere)")


def listed_stems(root: Path, name: str) -> set[str]:
    """Stems in a list file; an image suffix on a line is dropped.

    Raises:
        DataError: the list lies outside of the root, cannot be read, or names something twice.
    """
    _require_inside(root, name)
    path = root / name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: list of files cannot be read ({error})") from None
    stems = [line.strip() for line in lines if line.strip()]
    doubled = sorted({stem for stem in stems if stems.count(stem) > 1}) if len(set(stems)) < len(stems) else []
    if doubled:
        raise DataError(f"{path}: listed twice or more: {', '.join(doubled[:10])}")
    return {re.sub(r"\.(jpe?g|png|tiff?)$", "", stem, flags=re.IGNORECASE) for stem in stems}


def kept_stems(stems: Iterable[str], spec: SplitSpec | UnlabelledFilesSpec, listed: set[str] | None) -> set[str]:
    """The stems that a list and the patterns leave."""
    return {
        stem
        for stem in stems
        if (listed is None or stem in listed)
        and (spec.include is None or re.search(spec.include, stem))
        and (spec.exclude is None or not re.search(spec.exclude, stem))
    }


def scan_split(root: Path, name: str, spec: SplitSpec) -> Scan:
    """Find the pairs of one split, in the order of their stems, and what is wrong with its files.

    Sub-folders count: `images/berlin/1.jpg` has the stem `berlin/1` and the mask `masks/berlin/1.png`.

    Args:
        root: folder of the data set.
        name: name of the split in the recipe; its folder, unless `spec.split` says another.
        spec: folder and filters.

    Raises:
        DataError: a folder or the list is missing, or nothing is left to use.
    """
    folders = _folders(root, spec.split or name)
    listed = None if spec.list is None else listed_stems(root, spec.list)
    scan = Scan()
    images, other_images = by_stem(folders[0], IMAGE_SUFFIXES, scan)
    masks, other_masks = by_stem(folders[1], MASK_SUFFIXES, scan)
    kept = kept_stems(images.keys() | masks.keys(), spec, listed)
    for stem in sorted(kept | ((listed or set()) - images.keys())):
        if stem in images and stem in masks:
            scan.pairs.append(Pair(stem, images[stem], masks[stem]))
        elif stem in images:
            scan.problems.append(_mask_missing(images[stem], folders[1] / stem, other_masks.get(stem)))
        else:
            expected = folders[0] / f"{stem}.jpg"
            scan.problems.append(f"{masks.get(stem, stem)}: image missing: expected {expected} (or .png, .tif)")
    # A mask of an unusable kind has been named with its image; what is left belongs to no image at all.
    strange = [*other_images.values(), *(path for stem, path in other_masks.items() if stem not in images)]
    if strange:
        shown = ", ".join(path.name for path in strange[:3])
        scan.notices.append(f"{name}: {len(strange)} files are neither image nor mask and are left out: {shown}")
    if not scan.pairs and not scan.problems:
        raise DataError(f"{folders[0]}: no images for {name}{nothing_left(spec, len(images))}")
    return scan


def nothing_left(spec: SplitSpec | UnlabelledFilesSpec, files: int) -> str:
    """What filters did to files that were there; empty where none were, or nothing filtered them."""
    filters = [f"{key}={value}" for key in ("include", "exclude", "list") if (value := getattr(spec, key))]
    return f"; {files} files, none of them left by {', '.join(filters)}" if filters and files else ""


def _mask_missing(image: Path, expected: Path, other: Path | None) -> str:
    if other is None:
        return f"{image}: mask missing: expected {expected}.png (or .tif, .tiff)"
    return (
        f"{image}: mask missing: {other.name} is no .png, .tif or .tiff; a mask must be stored without loss, "
        "which JPEG does not do"
    )


def auto_split(
    pairs: Sequence[Pair], spec: AutoSplitSpec, key: str = "data.auto_split"
) -> tuple[list[Pair], list[Pair], str]:
    """Divide pairs into training and validation, whole groups at a time.

    Groups are visited in an order drawn from `spec.seed`; one goes to validation where that brings the number
    of validation images nearer to `spec.fraction` of all. Where none does, the smallest group goes. The result
    does not depend on the order of the files.

    Returns:
        training pairs, validation pairs, and a line that says what was done.

    Raises:
        DataError: the pattern does not match a stem, or finds fewer than two groups.
    """
    groups: dict[str, list[Pair]] = {}
    strays = []
    for pair in sorted(pairs, key=lambda pair: pair.stem):
        match = re.search(spec.group, pair.stem)
        if match is None:
            strays.append(pair.stem)
        else:
            groups.setdefault(match.group(1 if match.re.groups else 0) or "", []).append(pair)
    if strays:
        raise DataError(
            f"{key}.group: {spec.group!r} does not match {len(strays)} of {len(pairs)} file stems: "
            f"{', '.join(strays[:5])}"
        )
    if len(groups) < 2:
        raise DataError(
            f"{key}.group: {spec.group!r} puts all {len(pairs)} files into one group "
            f"({next(iter(groups), '')!r}); a split needs two or more"
        )
    wanted = spec.fraction * len(pairs)
    order = sorted(groups, key=lambda group: (keyed_seed(spec.seed, "auto_split", group), group))
    chosen: list[str] = []
    count = 0
    for group in order:
        if abs(count + len(groups[group]) - wanted) < abs(count - wanted) and len(chosen) < len(groups) - 1:
            chosen.append(group)
            count += len(groups[group])
    if not chosen:
        chosen = [min(order, key=lambda group: len(groups[group]))]
    val = [pair for group in sorted(chosen) for pair in groups[group]]
    train = [pair for group in sorted(groups) if group not in chosen for pair in groups[group]]
    names = ", ".join(sorted(chosen)[:5]) + (", ..." if len(chosen) > 5 else "")
    said = f"validation set: {len(val)} of {len(pairs)} images, {len(chosen)} of {len(groups)} groups ({names})"
    return train, val, said
