"""The files of a data set: found and matched, none of them opened yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from densekd.data.check import Pair
from densekd.data.folder import auto_split
from densekd.data.masks import MaskReader
from densekd.data.specs import AutoSplitSpec, Color, HoldoutSpec


@dataclass(frozen=True)
class FoundData:
    """What `densekd.data.find.data_of` finds.

    Attributes:
        splits: pairs of image and mask by split, in the order of their stems.
        reader: turns their masks into labels; it knows the classes and the label of void.
        palette: a colour for each class.
        images: images without labels by split and stem, where a data set has such splits.
        notices: lines for the user.
    """

    splits: dict[str, list[Pair]]
    reader: MaskReader
    palette: tuple[Color, ...]
    images: dict[str, dict[str, Path]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their ids."""
        return self.reader.classes

    @property
    def pairs(self) -> list[Pair]:
        """The pairs of all splits, each once."""
        return list(dict.fromkeys(pair for pairs in self.splits.values() for pair in pairs))


def held_out(found: FoundData, holdout: HoldoutSpec, group: str) -> FoundData:
    """The training pairs divided in two; the validation set and further sets are not there.

    Args:
        holdout: how much is held out.
        group: regular expression that finds the group of a stem.

    Raises:
        DataError: the pattern does not match a stem, or finds fewer than two groups.
    """
    how = AutoSplitSpec(group=group, fraction=holdout.fraction, seed=holdout.seed)
    train, val, said = auto_split(found.splits["train"], how, key="data.holdout")
    notice = f"{said}; the validation set is not opened"
    return replace(found, splits={"train": train, "val": val}, notices=[*found.notices, notice])


def _identity(path: Path) -> object:
    """Equal for two paths to one file; quicker than resolving them, which tells where there are 100,000."""
    try:
        found = path.stat()
    except OSError:  # it will be told when it is opened
        return path
    return (found.st_dev, found.st_ino) if found.st_ino else path.resolve()


def overlaps(splits: Mapping[str, Sequence[Pair]]) -> list[str]:
    """Which of the sets hold images of the training set."""
    trained = {_identity(pair.image) for pair in splits["train"]}
    found = []
    for name, pairs in splits.items():
        shared = sum(_identity(pair.image) in trained for pair in pairs)
        if name != "train" and shared:
            found.append(f"{name}: {shared} of {len(pairs)} images are also in the training set")
    return found


def seen_unlabelled(splits: Mapping[str, Sequence[Pair]], images: Mapping[str, Path]) -> list[str]:
    """Which of the unlabelled images are used with their labels too, for training or for scores."""
    files = {_identity(path) for path in images.values()}
    found = []
    for name, pairs in splits.items() if files else ():
        shared = sum(_identity(pair.image) in files for pair in pairs)
        if shared:
            flaw = "" if name == "train" else ": the student sees them in training, though not their labels"
            found.append(f"{name}: {shared} of {len(pairs)} images are also among the unlabelled{flaw}")
    return found
