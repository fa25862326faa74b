"""A data set judged before training: what its files hold, and a sheet of samples to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from densekd import files
from densekd.data.check import Pair, Progress
from densekd.data.find import data_of
from densekd.data.found import FoundData
from densekd.data.images import read_image
from densekd.data.keyed import keyed_seed
from densekd.data.kinds import FilesSpec
from densekd.data.survey import Survey, class_rows, split_rows, survey
from densekd.data.unlabelled import scan_images

_CELL = 320
_COLUMNS = ("image", "mask", "overlay")


def files_of(spec: FilesSpec) -> FoundData:
    """All files of a data set: every official split of a benchmark, and the images of `unlabelled`.

    Raises:
        DataError: folders, lists or files are missing.
        ConfigError: classes, palette and masks contradict each other.
    """
    found = data_of(spec, every=True)
    if spec.unlabelled is None:
        return found
    images, notices = scan_images(spec.unlabelled)
    return replace(found, images={**found.images, "unlabelled": images}, notices=[*found.notices, *notices])


def check_files(found: FoundData, progress: Progress | None = None) -> Survey:
    """Open every file and count: `densekd.data.survey.survey`."""
    return survey(found, progress)


def chosen(pairs: Sequence[Pair], usable: Sequence[str], split: str, count: int) -> list[Pair]:
    """`count` pairs of a split in the order of their stems: always the same, whatever else is in the split.

    Each stem has a number drawn from its name; the lowest are taken.
    """
    good = set(usable)
    drawn = sorted(
        (pair for pair in pairs if pair.stem in good), key=lambda pair: keyed_seed(0, "contact sheet", split, pair.stem)
    )
    return sorted(drawn[:count], key=lambda pair: pair.stem)


def sheet(found: FoundData, seen: Survey, count: int) -> Image.Image | None:
    """Samples of every split with labels: image, mask in colours, and both; below them the classes.

    The number beside a class is its share of the labelled pixels of all splits. None where no file can be used.

    Args:
        count: samples of each split.
    """
    # Here, because the fonts come with matplotlib, which takes longer to load than many a data set to check.
    from densekd.pictures import colourise, contact_sheet, legend, overlay, photograph, stacked

    rows: list[list[Image.Image | None]] = []
    titles: list[str] = []
    for split in seen.splits:
        if not split.labelled:
            continue
        for pair in chosen(found.splits[split.name], split.stems, split.name, count):
            image, label = read_image(pair.image), found.reader.read(pair.mask)
            palette = found.palette
            pictures = photograph(image), colourise(label, palette), overlay(image, label, palette)
            rows.append([_pixels_kept(picture) for picture in pictures])
            titles.append(f"{split.name}: {pair.stem} ({image.shape[2]}x{image.shape[1]})")
    if not rows:
        return None
    pixels = sum(split.pixels[:-1].double() for split in seen.splits if split.labelled)
    shares = (100 * pixels / pixels.sum().clamp(min=1)).tolist()  # type: ignore[union-attr]
    drawn = contact_sheet(rows, _COLUMNS, titles, cell_width=_CELL)
    notes = [f"{share:.2g} %" for share in shares]
    return stacked([drawn, legend(found.classes, found.palette, width=drawn.width, notes=notes)])


def _pixels_kept(picture: Image.Image) -> Image.Image:
    """A small picture enlarged without in-between colours, which would be none of a class."""
    if picture.width >= _CELL:
        return picture
    size = (_CELL, max(1, round(picture.height * _CELL / picture.width)))
    return picture.resize(size, Image.Resampling.NEAREST)


def write_sheet(path: Path, drawn: Image.Image) -> None:
    """Write a sheet as PNG, whole or not at all."""
    stream = io.BytesIO()
    drawn.save(stream, "PNG")
    files.write_bytes(path, stream.getvalue())


def report(seen: Survey) -> dict[str, Any]:
    """All that was found, for `--json`."""
    return {
        "splits": split_rows(seen),
        "classes": class_rows(seen),
        "warnings": list(seen.warnings),
        "notices": list(seen.notices),
        "problems": seen.problems,
    }
