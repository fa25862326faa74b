"""The images that are given: files, and folders with their sub-folders; each read before any work starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from densekd.data.folder import files_below
from densekd.data.images import IMAGE_SUFFIXES, check_image
from densekd.errors import DataError

LISTED = 10
"""So many problems of the same kind are listed."""

Said = Callable[[str], None]


def find_images(inputs: Sequence[Path], out: Path, said: Said) -> dict[Path, str]:
    """Image files and the name each result gets (the path inside its folder, without suffix).

    Raises:
        DataError: an input that does not exist, no images, or two images of one name.
    """
    names: dict[Path, str] = {}
    for given in inputs:
        if given.is_dir():
            names |= _in_folder(given, out, said)
        elif given.is_file():
            names[given] = given.stem
        else:
            raise DataError(f"{given}: no such file or folder")
    if not names:
        where = ", ".join(str(given) for given in inputs) or "nothing given"
        raise DataError(f"no images: {where}. Looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    kept: dict[Path, str] = {}
    seen: set[str] = set()
    for path, name in names.items():
        meant = os.path.realpath(path)  # pathlib refuses links that lead in a circle, before they can be told
        if meant not in seen:  # else given twice, by itself and in its folder
            seen.add(meant)
            kept[path] = name
    require_different(kept)
    return kept


def require_different(names: Mapping[Path, str], what: str = "{}.png") -> None:
    """Refuse two images whose results would be one file.

    Args:
        names: of the results, by image.
        what: the result in words, with `{}` for its name.

    Raises:
        DataError: there are two.
    """
    owner: dict[str, Path] = {}
    for path, name in names.items():
        # Some file systems do not tell a from A.
        other = owner.setdefault(name.casefold(), path)
        if other != path:
            raise DataError(f"{other} and {path} would both become {what.format(name)}; predict them into two folders")


def _in_folder(folder: Path, out: Path, said: Said) -> dict[Path, str]:
    entries = sorted(files_below(folder))
    entries = [path for path in entries if out.resolve() not in Path(os.path.realpath(path)).parents]
    images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES]
    if len(entries) > len(images):
        other = next(path for path in entries if path not in images)
        said(
            f"{folder}: {len(entries) - len(images)} files passed over that are no jpg, png or tif ({other.name}, ...)"
        )
    return {path: path.relative_to(folder).with_suffix("").as_posix() for path in images}


def check_all(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> dict[Path, tuple[int, int]]:
    """Height and width of every image; each is opened.

    Args:
        paths: the images.
        progress: called with (images opened, images in all).

    Raises:
        DataError: some cannot be read; up to ten are listed with their reasons.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    problems = []
    for path in paths:
        try:
            sizes[path] = check_image(path)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(
            f"{len(problems)} of {len(paths)} images cannot be used; nothing was written:{listed(problems)}"
        )
    return sizes


def listed(problems: Sequence[str]) -> str:
    """The first ten on lines of their own, and how many more there are."""
    more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return "".join(f"\n  {problem}" for problem in problems[:LISTED]) + more


def only_listed(names: Mapping[Path, str], path: Path) -> dict[Path, str]:
    """Of the images those whose names, without suffix, are in a list; in the order of the images.

    Args:
        names: images and the names of their results.
        path: a text file, a name a line.

    Raises:
        DataError: the list cannot be read, is empty, or names images that are not there.
    """
    try:
        wanted = set(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: list of images cannot be read ({error})") from None
    kept = {image: name for image, name in names.items() if image.stem in wanted}
    lacking = sorted(wanted - {image.stem for image in kept})
    if lacking or not wanted:
        told = f"{len(lacking)} of {len(wanted)} listed images are not there:{listed(lacking)}" if wanted else "empty"
        raise DataError(f"{path}: {told}")
    return kept
