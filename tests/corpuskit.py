"""Picture files as they should not be, and odd ones that must work: each made from nothing, a few hundred bytes."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (16, 24)
"""Height and width of the odd images that have the common size."""

Make = Callable[[Path], None]


def rgb(height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def saved(picture: Image.Image, kind: str, **options: Any) -> Make:
    data = encoded(picture, kind, **options)
    return lambda path: put(path, data)


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *, depth: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    """A PNG file whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _cut(data: bytes, share: float = 0.6) -> bytes:
    return data[: int(share * len(data))]


def _spoiled(data: bytes, place: int, count: int = 40) -> bytes:
    return data[:place] + bytes(255 - byte for byte in data[place : place + count]) + data[place + count :]


def _rgb16() -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb().astype(np.uint16) * 257)
    return png(SIZE[1], SIZE[0], rows, depth=16)


def _turned() -> Make:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(rgb(SIZE[1], SIZE[0])), "JPEG", exif=exif)


def _broken_exif() -> bytes:
    return encoded(Image.fromarray(rgb()), "JPEG", exif=b"Exif\0\0" + b"no TIFF header at all")


PICTURE = Image.fromarray(rgb())
JPEG, PNG = encoded(PICTURE, "JPEG", quality=95), encoded(PICTURE, "PNG")

GOOD: dict[str, Make] = {
    "plain.png": saved(PICTURE, "PNG"),
    "plain.jpg": saved(PICTURE, "JPEG"),
    "cmyk.jpg": saved(PICTURE.convert("CMYK"), "JPEG"),
    "grey.png": saved(PICTURE.convert("L"), "PNG"),
    "grey.jpg": saved(PICTURE.convert("L"), "JPEG"),
    "one-bit.png": saved(PICTURE.convert("1"), "PNG"),
    "sixteen-bit-grey.png": saved(Image.fromarray(rgb()[..., 0].astype(np.uint16) * 257), "PNG"),
    "sixteen-bit-rgb.png": lambda path: put(path, _rgb16()),
    "palette.png": saved(PICTURE.quantize(16), "PNG"),
    "palette-transparent.png": saved(PICTURE.quantize(16), "PNG", transparency=3),
    "alpha.png": saved(PICTURE.convert("RGBA"), "PNG"),
    "grey-alpha.png": saved(PICTURE.convert("LA"), "PNG"),
    "turned.jpg": _turned(),
    "broken-exif.jpg": lambda path: put(path, _broken_exif()),
    "progressive.jpg": saved(PICTURE, "JPEG", progressive=True),
    "one-pixel.png": saved(Image.fromarray(rgb(1, 1)), "PNG"),
    "long.png": saved(Image.new("RGB", (20000, 10), (90, 60, 30)), "PNG"),
    "tall.png": saved(Image.new("L", (10, 20000), 70), "PNG"),
    "lzw.tif": saved(PICTURE, "TIFF", compression="tiff_lzw"),
    "a gif.png": saved(PICTURE.quantize(16), "GIF"),
    "with space.png": saved(PICTURE, "PNG"),
    'it\'s "quoted" `$(x)` %s {0} & <b>;.png': saved(PICTURE, "PNG"),
    "mit Ümlaut, 日本語, e\u0301, 🙂.png": saved(PICTURE, "PNG"),
    "two\nlines\tand a tab.png": saved(PICTURE, "PNG"),
    "--force=-1.png": saved(PICTURE, "PNG"),
    os.fsdecode(b"latin-\xe9.png"): saved(PICTURE, "PNG"),
}
"""Images that work, by name."""

UNREADABLE = "cannot be read as an image"
BAD: dict[str, tuple[Make, str]] = {
    "truncated.jpg": (lambda path: put(path, _cut(JPEG)), f"{UNREADABLE} .*truncated"),
    "truncated.png": (lambda path: put(path, _cut(PNG)), f"{UNREADABLE} .*truncated"),
    "header-alone.png": (lambda path: put(path, PNG[:20]), UNREADABLE),
    "spoiled-pixels.png": (lambda path: put(path, _spoiled(PNG, len(PNG) // 2)), UNREADABLE),
    "spoiled-header.jpg": (lambda path: put(path, _spoiled(JPEG, 0)), "no picture of a known kind"),
    "spoiled-tables.jpg": (lambda path: put(path, _spoiled(JPEG, 20, 200)), UNREADABLE),
    "empty.png": (lambda path: put(path, b""), "the file is empty"),
    "empty.jpg": (lambda path: put(path, b""), "the file is empty"),
    "text.png": (lambda path: put(path, b"<html>404</html>"), "no picture of a known kind"),
    "postscript.png": (
        lambda path: put(path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"),
        "no picture of a known kind",
    ),
    "bomb.png": (
        lambda path: put(path, png(60000, 60000, b"\0" * 1000)),
        "not decoded: .*3600000000 pixels.*up to 178,956,970 pixels are read: cut it into tiles, or make it smaller",
    ),
    "no-pixels.png": (lambda path: put(path, png(0, 0, b"")), UNREADABLE),
    "text-bomb.png": (
        lambda path: put(
            path, png(1, 1, b"\0\0\0\0", more=chunk(b"zTXt", b"x\0\0" + zlib.compress(b"a" * 3_000_000, 9)))
        ),
        UNREADABLE,
    ),
    "float.tif": (saved(Image.fromarray(np.ones(SIZE, np.float32)), "TIFF"), "pixels of kind 'F' are not understood"),
    "pages.tif": (saved(PICTURE, "TIFF", save_all=True, append_images=[PICTURE]), "several pages; save the one"),
    "loop.png": (lambda path: path.symlink_to(path.name), f"{UNREADABLE} .*symbolic links"),
    "nowhere.png": (lambda path: path.symlink_to("there-is-no-such.png"), f"{UNREADABLE} .*No such file"),
    "pipe.png": (os.mkfifo, "no regular file"),
}
"""Images that are refused, by name, with what is said of each."""

IDS = np.random.default_rng(1).integers(0, 3, SIZE).astype(np.uint8)

BAD_MASKS: dict[str, tuple[Make, str]] = {
    "wrong-size": (saved(Image.fromarray(IDS[:-1]), "PNG"), "sizes differ: mask 24x15, image 24x16"),
    "turned": (saved(Image.fromarray(IDS.T.copy()), "PNG"), "sizes differ: mask 16x24, image 24x16"),
    "out-of-range": (saved(Image.fromarray(IDS + 5), "PNG"), "label outside the range: 5, 6, 7; expected ids 0 to 2"),
    "sixteen-bit": (
        saved(Image.fromarray(IDS.astype(np.uint16) * 1000), "PNG"),
        "label outside the range: 1000, 2000; expected",
    ),
    "rgb": (saved(PICTURE, "PNG"), "needs one channel.*'RGB'.*masks.format=colors"),
    "rgba": (saved(PICTURE.convert("RGBA"), "PNG"), "needs one channel.*'RGBA'"),
    "grey-alpha": (saved(PICTURE.convert("LA"), "PNG"), "needs one channel.*'LA'"),
    "truncated": (lambda path: put(path, _cut(encoded(Image.fromarray(IDS), "PNG"))), UNREADABLE),
    "empty": (lambda path: put(path, b""), "the file is empty"),
    "bomb": (lambda path: put(path, png(60000, 60000, b"\0" * 1000, colour=0)), "up to 178,956,970 pixels are read"),
}
"""Masks of an image of the common size that are refused, by what is wrong."""


def size_of(name: str) -> tuple[int, int]:
    """Height and width, upright, of an image of `GOOD`."""
    return {"one-pixel.png": (1, 1), "long.png": (10, 20000), "tall.png": (20000, 10)}.get(name, SIZE)


def put_pair(root: Path, split: str, name: str, make: Make | None = None, mask: Make | None = None) -> None:
    """An image with a mask of ids 0 to 2 under `root/split`; either may be another."""
    for kind in ("images", "masks"):
        (root / split / kind).mkdir(parents=True, exist_ok=True)
    (make or GOOD["plain.png"])(root / split / "images" / name)
    ids = np.resize(IDS, size_of(name) if make is None or name in GOOD else SIZE)
    (mask or saved(Image.fromarray(ids), "PNG"))((root / split / "masks" / name).with_suffix(".png"))
