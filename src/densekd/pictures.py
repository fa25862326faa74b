"""Pictures for people: colour masks, overlays, legends, channel maps and contact sheets, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from densekd.errors import ArgumentError, ShapeError

Color = tuple[int, int, int]
Palette = Sequence[Color]

VOID: Color = (0, 0, 0)
_PAPER: Color = (255, 255, 255)
_INK: Color = (38, 38, 44)
_FRAME: Color = (150, 150, 155)
_EDGE = 0.35


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # takes a while, and most commands draw nothing

    # matplotlib brings DejaVu along: the same letters on every machine, and most alphabets.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _checked(label: Tensor, palette: Palette) -> np.ndarray:
    if label.ndim != 2 or label.is_floating_point():
        raise ShapeError(f"expected class ids (H, W) as integers, got {tuple(label.shape)} of {label.dtype}")
    if not palette:
        raise ArgumentError("expected a palette of one colour per class, got none")
    return label.cpu().numpy()


def colourise(label: Tensor, palette: Palette, void: Color = VOID) -> Image.Image:
    """An RGB picture of a label map: each class in its colour, every id outside the palette in `void`.

    Args:
        label: integers `(H, W)`.
        palette: a colour (red, green, blue; 0 to 255) per class.
        void: the colour of `ignore_index` and of any other id that is no class.

    Raises:
        ShapeError: not `(H, W)`, or not integers.
    """
    ids = _checked(label, palette)
    table = np.array([*palette, void], dtype=np.uint8)
    known = (ids >= 0) & (ids < len(palette))
    return Image.fromarray(table[np.where(known, ids, len(palette))])


def indexed(label: Tensor, palette: Palette, void: Color = VOID) -> Image.Image:
    """A palette picture whose pixel values are the class ids: readable as a mask, coloured when looked at.

    Raises:
        ArgumentError: an id above 255 or below 0, which such a picture cannot hold.
        ShapeError: not `(H, W)`, or not integers.
    """
    ids = _checked(label, palette)
    if len(palette) > 256 or (ids.size and (ids.min() < 0 or ids.max() > 255)):
        raise ArgumentError(
            f"a palette picture holds ids 0 to 255; got {len(palette)} classes and ids from {ids.min()} to {ids.max()}"
        )
    picture = Image.fromarray(ids.astype(np.uint8))
    colors = np.tile(np.array(void, dtype=np.uint8), (256, 1))
    colors[: len(palette)] = np.array(palette, dtype=np.uint8)
    picture.putpalette(colors.flatten().tolist())
    return picture


def photograph(image: Tensor) -> Image.Image:
    """A uint8 tensor `(3, H, W)`, RGB, as a picture.

    Raises:
        ShapeError: another shape or type.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ShapeError(f"expected an image (3, H, W) of 8 bits, got {tuple(image.shape)} of {image.dtype}")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def overlay(image: Tensor, label: Tensor, palette: Palette, alpha: float = 0.5) -> Image.Image:
    """The classes' colours laid over the image, with a crisp line along the border of every region.

    Args:
        image: uint8 `(3, H, W)`, RGB.
        label: integers `(H, W)` of the same size; ids outside the palette leave the image as it is.
        alpha: share of the colour, 0 (image alone) to 1 (colour alone).

    Raises:
        ShapeError: sizes differ.
        ArgumentError: `alpha` outside 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ArgumentError(f"alpha: expected 0 to 1, got {alpha}")
    ids = _checked(label, palette)
    under = np.asarray(photograph(image), dtype=np.float32)
    if under.shape[:2] != ids.shape:
        raise ShapeError(f"image {under.shape[:2]} and label {ids.shape} differ in size (height, width)")
    known = (ids >= 0) & (ids < len(palette))
    share = np.where(_borders(ids), min(1.0, alpha + _EDGE) if alpha > 0 else 0.0, alpha) * known
    colors = np.array(palette, dtype=np.float32)[np.where(known, ids, 0)]
    mixed = under + share[..., None].astype(np.float32) * (colors - under)
    return Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))


def _borders(ids: np.ndarray) -> np.ndarray:
    """True on both sides of every change from pixel to pixel: a line of two pixels."""
    found = np.zeros(ids.shape, dtype=bool)
    down, right = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    found[1:] |= down
    found[:-1] |= down
    found[:, 1:] |= right
    found[:, :-1] |= right
    return found


def legend(
    classes: Sequence[str],
    palette: Palette,
    *,
    width: int = 640,
    notes: Sequence[str] | None = None,
    text_size: int = 15,
) -> Image.Image:
    """Swatches with the names of the classes, in columns of equal width on white paper.

    Args:
        width: pixels; the legend is wider where one entry alone needs more.
        notes: a short text behind each name, in grey (its share of the pixels, its IoU).

    Raises:
        ArgumentError: numbers of classes, colours and notes differ, or there are none.
    """
    behind = [""] * len(classes) if notes is None else list(notes)
    if not classes or not len(classes) == len(palette) == len(behind):
        raise ArgumentError(f"legend: {len(classes)} classes, {len(palette)} colours, {len(behind)} notes")
    classes, behind = [one_line(name) for name in classes], [one_line(text) for text in behind]
    font, small = _font(text_size), _font(max(8, round(0.87 * text_size)))
    gap, swatch, line = round(0.6 * text_size), round(1.2 * text_size), round(1.9 * text_size)
    names = [max(1, round(font.getlength(name))) for name in classes]
    after = [round(small.getlength(text)) + gap if text else 0 for text in behind]
    column = max(swatch + gap + name + rest for name, rest in zip(names, after, strict=True)) + 2 * gap
    columns = max(1, min(len(classes), (width - gap) // column))
    rows = -(-len(classes) // columns)
    paper = Image.new("RGB", (max(width, columns * column + gap), rows * line + gap), _PAPER)
    draw = ImageDraw.Draw(paper)
    for place, (name, color) in enumerate(zip(classes, palette, strict=True)):
        left, top = gap + (place // rows) * column, gap // 2 + (place % rows) * line
        middle = top + line // 2
        box = (left, middle - swatch // 2, left + swatch, middle + swatch // 2)
        draw.rounded_rectangle(box, radius=swatch // 5, fill=tuple(color), outline=_FRAME)
        draw.text((left + swatch + gap, middle), name, fill=_INK, font=font, anchor="lm")
        if behind[place]:
            draw.text(
                (left + swatch + 2 * gap + names[place], middle),
                behind[place],
                fill=(115, 115, 120),
                font=small,
                anchor="lm",
            )
    return paper


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other on white paper, centred."""
    width = max(picture.width for picture in pictures)
    paper = Image.new("RGB", (width, sum(picture.height for picture in pictures)), _PAPER)
    top = 0
    for picture in pictures:
        paper.paste(picture.convert("RGB"), ((width - picture.width) // 2, top))
        top += picture.height
    return paper


def headline(text: str, width: int, *, text_size: int = 15) -> Image.Image:
    """A line of text on white paper of that width; smaller or shortened where it would not fit."""
    gap = max(4, text_size // 2)
    shown, font = _fitting(text, width - 2 * gap, text_size)
    paper = Image.new("RGB", (width, round(2.0 * text_size)), _PAPER)
    ImageDraw.Draw(paper).text((gap, paper.height // 2), shown, fill=_INK, font=font, anchor="lm")
    return paper


def channel_map(values: Tensor, size: tuple[int, int] | None = None, colormap: str = "magma") -> Image.Image:
    """One channel of a feature or class map as a heat image: dark where it is low, bright where it is high.

    The range runs from the 1st to the 99th percentile of the finite values, so that one outlier does not blacken the
    rest; a constant map is shown dark.

    Args:
        values: floating point `(h, w)`.
        size: height and width of the picture, reached by bicubic resampling of the values; default their own.

    Raises:
        ShapeError: not `(h, w)`, or no finite value in it.
    """
    if values.ndim != 2 or not bool(torch.isfinite(values).any()):
        raise ShapeError(f"expected a channel (h, w) with finite values, got {tuple(values.shape)}")
    plane = values.detach().float().cpu().numpy()
    low, high = np.percentile(plane[np.isfinite(plane)], (1, 99))
    scaled = np.nan_to_num((plane - low) / (high - low) if high > low else np.zeros_like(plane), posinf=1.0, neginf=0.0)
    heat = Image.fromarray(scaled.clip(0, 1).astype(np.float32))
    if size is not None:
        heat = heat.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    import matplotlib

    colors = matplotlib.colormaps[colormap](np.asarray(heat).clip(0, 1), bytes=True)
    return Image.fromarray(np.ascontiguousarray(colors[..., :3]))


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    titles: Sequence[str],
    row_titles: Sequence[str] | None = None,
    *,
    cell_width: int = 240,
    text_size: int = 15,
) -> Image.Image:
    """Pictures in a grid under column titles, each scaled to one width; small ones keep their pixels visible.

    Args:
        rows: pictures, or None for an empty place; every row as long as `titles`.
        row_titles: a line above each row.

    Raises:
        ArgumentError: no pictures at all, or rows of other lengths than the titles.
    """
    if not rows or any(len(row) != len(titles) for row in rows) or (row_titles and len(row_titles) != len(rows)):
        raise ArgumentError(
            f"contact sheet: {len(titles)} titles, rows of {[len(row) for row in rows]} pictures, "
            f"{len(row_titles or [])} row titles"
        )
    font, gap, head = _font(text_size), max(4, text_size // 2), round(2.0 * text_size)
    fitted = [[None if picture is None else _to_width(picture, cell_width) for picture in row] for row in rows]
    heights = [max((picture.height for picture in row if picture is not None), default=0) for row in fitted]
    line = head if row_titles else 0
    size = (gap + len(titles) * (cell_width + gap), head + sum(height + line + gap for height in heights) + gap // 2)
    paper = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(paper)
    for column, title in enumerate(titles):
        middle = gap + column * (cell_width + gap) + cell_width // 2
        shown, letters = _fitting(title, cell_width, text_size)
        draw.text((middle, head // 2), shown, fill=_INK, font=letters, anchor="mm")
    top = head
    for place, (row, height) in enumerate(zip(fitted, heights, strict=True)):
        if row_titles:
            draw.text((gap, top + line // 2), one_line(row_titles[place]), fill=_INK, font=font, anchor="lm")
            top += line
        for column, picture in enumerate(row):
            if picture is not None:
                paper.paste(picture, (gap + column * (cell_width + gap), top))
        top += height + gap
    return paper


def _to_width(picture: Image.Image, width: int) -> Image.Image:
    height = max(1, round(picture.height * width / picture.width))
    enlarging = width > picture.width
    # Palette pictures and masks must not grow in-between colours; photographs look better smooth.
    how = Image.Resampling.NEAREST if picture.mode == "P" else Image.Resampling.BICUBIC
    how = how if enlarging or picture.mode == "P" else Image.Resampling.LANCZOS
    return picture.resize((width, height), how).convert("RGB")


def one_line(text: str) -> str:
    """The text with what cannot be drawn, line breaks too, as codes: a name of a file or class may hold anything."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _fitting(text: str, width: int, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text in the largest letters that fit, down to 9 pixels; then shortened."""
    text = one_line(text)
    while size > 9 and _font(size).getlength(text) > width:
        size -= 1
    font, shown = _font(size), text
    while len(shown) > 1 and font.getlength(shown) > width:
        shown = shown.removesuffix("…")[:-1] + "…"
    return shown, font
