"""The files of `data.name: folder`, with its classes and colours."""

from __future__ import annotations

from pathlib import Path

from densekd.data.check import complain
from densekd.data.folder import Scan, auto_split, scan_split
from densekd.data.found import FoundData, held_out
from densekd.data.masks import MaskReader, colors_of
from densekd.data.palette import made_palette
from densekd.data.specs import Color, FolderSpec, SplitSpec, check_names
from densekd.errors import ConfigError, DataError, no_folder


def find_folder(spec: FolderSpec) -> FoundData:
    """The pairs of train, val and every further set; all that is wrong with the file names in one error.

    Raises:
        DataError: a folder, a list or a file of a pair is missing, or nothing is left to use.
        ConfigError: classes, palette and masks contradict each other.
    """
    root = Path(spec.root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: {no_folder(root)} (data.root)")
    classes = class_names(spec)
    if 0 <= spec.ignore_index < len(classes):
        taken = classes[spec.ignore_index]
        raise ConfigError(f"data.ignore_index: {spec.ignore_index} is the id of {taken!r}; choose 255 or another")
    reader = MaskReader(spec.masks, classes, spec.ignore_index)
    if spec.palette is not None and len(spec.palette) != len(classes):
        raise ConfigError(f"data.palette: {len(spec.palette)} colours for {len(classes)} classes")
    return _splits(spec, root, reader, folder_palette(spec, classes))


def folder_palette(spec: FolderSpec, classes: tuple[str, ...]) -> tuple[Color, ...]:
    """The recipe's palette, its mask colours, or made ones."""
    if spec.palette is not None:
        return spec.palette
    if spec.masks.colors is not None:
        return tuple(colors_of(spec.masks.colors[name])[0] for name in classes)
    return made_palette(len(classes))


def class_names(spec: FolderSpec) -> tuple[str, ...]:
    """The recipe's classes, else the lines of the folder's `classes.txt`.

    Raises:
        DataError: neither is there.
    """
    if spec.classes is not None:
        return spec.classes
    root = Path(spec.root).expanduser()
    path = root / "classes.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{root}: which classes? give data.classes, or write {path} with one name a line in the order of the ids"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    try:
        return check_names(tuple(line.strip() for line in lines if line.strip()))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _splits(spec: FolderSpec, root: Path, reader: MaskReader, palette: tuple[Color, ...]) -> FoundData:
    asked: dict[str, SplitSpec] = {"train": spec.train}
    if spec.holdout is None:
        if spec.auto_split is None:
            asked["val"] = spec.val or SplitSpec()
        asked |= spec.extra
    scans: dict[str, Scan] = {name: scan_split(root, name, split) for name, split in asked.items()}
    problems = dict.fromkeys(problem for scan in scans.values() for problem in scan.problems)
    complain(list(problems), sum(len(scan.pairs) for scan in scans.values()))
    splits = {name: scan.pairs for name, scan in scans.items()}
    notices = [notice for scan in scans.values() for notice in scan.notices]
    if spec.auto_split is not None:
        train, val, said = auto_split(splits["train"], spec.auto_split)
        splits = {**splits, "train": train, "val": val}
        notices.append(said)
    found = FoundData(splits, reader, palette, notices=notices)
    if spec.holdout is None:
        return found
    group = spec.holdout.group or (spec.auto_split.group if spec.auto_split else None)
    if group is None:
        raise ConfigError("data.holdout.group: missing; give the pattern that finds a file's group")
    return held_out(found, spec.holdout, group)
