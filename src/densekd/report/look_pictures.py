"""Chosen images on a page: image, truth, answers and their errors, under one legend."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from markupsafe import Markup
from PIL import Image
from torch import Tensor

from densekd.looks.pictures import read_ids
from densekd.looks.records import PictureRow, PicturesFile
from densekd.report.look_drawing import (
    WRONG,
    classes_picture,
    enlarged,
    errors_picture,
    hatch,
    photograph,
    share_wrong,
    shares,
    stretched,
    webp,
)
from densekd.report.pictures import embedded
from densekd.report.words import points, share

_NAMED = 5
_GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(46%,10.5rem),1fr));gap:.4rem .8rem"
_SWATCH = "display:inline-block;width:.9em;height:.9em;margin-right:.4em;vertical-align:-.08em;border:1px solid #8888"


def pictures_body(record: PicturesFile, held: Mapping[str, bytes]) -> Markup:
    """All chosen images.

    Args:
        record: `pictures.json`.
        held: the small files that it names.
    """
    if not record.rows:
        return Markup('<p class="soft">No image with labels.</p>')
    rule = record.rule[:1].upper() + record.rule[1:]
    body = Markup('<p class="soft">Chosen by rule: {}. mIoU of an image is over the classes in it.</p>').format(rule)
    body += Markup().join(Markup('<p class="soft">{}.</p>').format(note) for note in record.notes)
    body += legend(record)
    return body + Markup().join(_row(record, row, held) for row in record.rows)


def legend(record: PicturesFile) -> Markup:
    """Names and colours of the classes that are in the pictures' data set, and of the error maps."""
    colors = [*zip(record.classes, record.palette, strict=True), ("wrong (in error maps)", WRONG)]
    marks = [(name, f"rgb({red} {green} {blue})") for name, (red, green, blue) in colors]
    items = [
        Markup('<span style="white-space:nowrap"><i style="{};background:{}"></i>{}</span>').format(
            Markup(_SWATCH), Markup(paint), name
        )
        for name, paint in (*marks, ("no label", hatch()))
    ]
    holder = Markup('<p class="soft" style="display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;max-width:none">{}</p>')
    return holder.format(Markup().join(items))


def _row(record: PicturesFile, row: PictureRow, held: Mapping[str, bytes]) -> Markup:
    """One image: the photograph, the truth and every answer first, then the errors of the answers."""
    classes, palette = record.classes, record.palette
    image = photograph(held[row.image])
    truth = read_ids(held[row.truth])
    smooth, flat = enlarged(image), partial(classes_picture, palette=palette)
    size = (smooth.width, smooth.height)
    shown = [
        _figure(smooth, f"Image {row.name}", f"image, {row.width}x{row.height}", photo=True),
        _figure(flat(stretched(truth, size)), f"Truth of {row.name}: {_named(truth, classes)}", "truth"),
    ]
    for key, title in record.networks.items():
        answer = row.answers[key]
        ids = read_ids(held[answer.file])
        score = "" if answer.miou is None else f", mIoU {points(answer.miou)}"
        alt = f"Answer of {title} for {row.name}: {_named(ids, classes)}"
        large = stretched(ids, size)
        answered = _figure(flat(large), alt, title + score)
        wrong = share_wrong(truth, ids, len(classes))
        told = "nothing labelled" if wrong is None else f"{share(wrong)} wrong"
        drawn = errors_picture(smooth, stretched(truth, size), large, len(classes))
        errors = _figure(drawn, f"Errors of {title} on {row.name}: {told}", f"errors of {title}: {told}")
        shown.append(Markup("<div>{}{}</div>").format(answered, errors))
    head = Markup("<h3>{}: {}</h3>").format(row.name, row.why)
    return head + Markup('<div style="{}">{}</div>').format(Markup(_GRID), Markup().join(shown))


def _figure(picture: Image.Image, alt: str, caption: str, *, photo: bool = False) -> Markup:
    width, height = picture.size
    return embedded(
        webp(picture, lossless=not photo), "image/webp", width=width, height=height, alt=alt, caption=caption
    )


def _named(ids: Tensor, classes: list[str]) -> str:
    """The largest classes of a label map, for those who do not see it."""
    found = shares(ids, classes)
    told = ", ".join(f"{name} {share(part)}" for name, part in found[:_NAMED])
    return (told or "nothing labelled") + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
