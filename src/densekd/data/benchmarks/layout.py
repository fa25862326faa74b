"""Official layouts on disk: what must be there, what is missing, and which folder was probably meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from densekd.data.benchmarks.benchmark import Benchmark
from densekd.data.check import Pair
from densekd.data.folder import Scan, files_below
from densekd.data.images import IMAGE_SUFFIXES
from densekd.errors import DataError, no_folder

_LOOKED_INTO = 200
_SHOWN = 8


class MissingPartError(DataError):
    """Folders or lists of a split are not there."""


def require(benchmark: Benchmark, root: Path, splits: Sequence[str]) -> None:
    """Refuse a root that does not hold what the splits need, with the expected tree.

    Raises:
        MissingPartError: what is missing, what the layout is, what is there, and which root was probably meant.
        DataError: another release of the data set.
    """
    another = None if benchmark.another is None else benchmark.another(root)
    if another:
        raise DataError(f"{root}: {another}")
    missing = lacking(benchmark, root, splits)
    if not missing:
        return
    there = _names(root)
    guess = next((near for near in _near(root) if not lacking(benchmark, near, splits)), None)
    hint = (
        f"; `densekd data get {benchmark.name}` downloads it or says how"
        if guess is None
        else f"; did you mean data.root={guess}?"
    )
    tree = "".join(f"\n  {line}" for line in benchmark.tree.strip().splitlines())
    what = f"it lacks {', '.join(missing)}" if root.is_dir() else no_folder(root)
    holds = f"\nthere: {', '.join(there[:_SHOWN])}{', ...' if len(there) > _SHOWN else ''}" if there else ""
    raise MissingPartError(
        f"{root}: not {benchmark.title} in its official layout: {what}{hint}\nexpected under data.root:{tree}{holds}"
    )


def lacking(benchmark: Benchmark, root: Path, splits: Sequence[str]) -> list[str]:
    """What the splits need and `root` does not hold, paths below it."""
    needed = dict.fromkeys(path for split in splits for path in benchmark.needs(root, split))
    return [path for path in needed if not (root / path).exists()]


def _names(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []


def _folders_in(root: Path) -> list[Path]:
    return [root / name for name in _names(root)[:_LOOKED_INTO] if (root / name).is_dir()]


def _near(root: Path) -> Iterable[Path]:
    """The folders above, those inside, and those inside these."""
    yield from list(root.absolute().parents)[:3]
    inside = _folders_in(root)
    yield from inside
    for folder in inside:
        yield from _folders_in(folder)


def by_name(folder: Path, ending: str) -> tuple[dict[str, Path], list[Path]]:
    """Files below `folder` whose names end with `ending`, by their path without it; and the other files."""
    wanted: dict[str, Path] = {}
    other = []
    for path in files_below(folder):
        if path.name.endswith(ending):
            wanted[path.relative_to(folder).as_posix().removesuffix(ending)] = path
        else:
            other.append(path)
    return wanted, other


def left_out(split: str, files: Sequence[Path], ending: str) -> list[str]:
    """A notice about files among the images that are none of the data set's."""
    if not files:
        return []
    shown = ", ".join(path.name for path in files[:3])
    return [f"{split}: {len(files)} files in its folder of images are no *{ending} and are left out: {shown}"]


def matched(images: Mapping[str, Path], masks: Mapping[str, Path], mask_of: Callable[[str], object]) -> Scan:
    """Images with their masks, in the order of the stems; what is alone is a problem.

    Args:
        images: files by stem.
        masks: files by stem.
        mask_of: where the mask of a stem is expected, for messages.
    """
    scan = Scan()
    for stem in sorted(images):
        if stem in masks:
            scan.pairs.append(Pair(stem, images[stem], masks[stem]))
        else:
            scan.problems.append(f"{images[stem]}: mask missing: expected {mask_of(stem)}")
    scan.problems += [f"{masks[stem]}: image missing" for stem in sorted(masks.keys() - images.keys())]
    return scan


def expected_in(folder: Path, ending: str) -> Callable[[str], Path]:
    """Where a stem's mask is expected."""
    return lambda stem: folder / f"{stem}{ending}"


def read_list(path: Path) -> list[str]:
    """The lines of a list of files, without blank ones.

    Raises:
        DataError: it cannot be read, is empty, or names something twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: list of files cannot be read ({error})") from None
    found = [line for line in lines if line]
    if not found:
        raise DataError(f"{path}: the list of files is empty")
    if len(set(found)) < len(found):
        doubled = sorted({line for line in found if found.count(line) > 1}) if len(found) < 1000 else []
        raise DataError(f"{path}: names files twice: {', '.join(doubled[:5]) or len(found) - len(set(found))}")
    return found


def read_stems(path: Path) -> list[str]:
    """The images that a list names: a line begins with a stem, a file name, or a path to the file.

    Lists that are passed around hold `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png` as often as `ID`.

    Raises:
        DataError: as `read_list`; two lines name one image.
    """
    files = [PurePosixPath(line.split()[0]) for line in read_list(path)]
    stems = [file.stem if file.suffix.lower() in IMAGE_SUFFIXES else file.name for file in files]
    doubled = sorted(stem for stem, count in Counter(stems).items() if count > 1)
    if doubled:
        raise DataError(f"{path}: names images twice: {', '.join(doubled[:5])}")
    return stems


def joined(scans: Iterable[Scan]) -> Scan:
    """Several scans as one split."""
    whole = Scan()
    for scan in scans:
        whole.pairs += scan.pairs
        whole.problems += scan.problems
        whole.notices += scan.notices
    return whole
