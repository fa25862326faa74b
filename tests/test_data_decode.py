from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from densekd.data import decode
from densekd.data.images import open_picture, read_image
from densekd.errors import DataError

torchvisions = pytest.mark.skipif(not decode._decoders(), reason="this torchvision decodes no JPEG")


def colours(height: int, width: int) -> Image.Image:
    """Smooth colours with a little noise, as JPEG is made for."""
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
    values = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    return Image.fromarray((values + draw.integers(-3, 4, values.shape)).clip(0, 255).astype(np.uint8))


def fast(path: Path) -> torch.Tensor | None:
    with open_picture(path) as picture:
        return decode.decoded(picture, path)


def by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@torchvisions
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 50)])
def test_the_pixels_are_those_of_pillow(tmp_path: Path, size: tuple[int, int]) -> None:
    for subsampling, progressive, quality in itertools.product((0, 1, 2), (False, True), (30, 95)):
        path = tmp_path / "a.jpg"
        colours(*size).save(path, quality=quality, subsampling=subsampling, progressive=progressive)
        found = fast(path)
        assert found is not None
        assert np.array_equal(found.permute(1, 2, 0), by_pillow(path))
        assert found.permute(1, 2, 0).is_contiguous()


@torchvisions
def test_the_reader_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    colours(4, 5).save(path)
    nines = {"JPEG": lambda data: torch.full((3, 4, 5), 9, dtype=torch.uint8)}
    monkeypatch.setattr(decode, "_decoders", lambda: nines)
    assert (read_image(path) == 9).all()


def test_without_torchvisions_decoders_pillow_reads_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_decoders", dict)
    for name in ("a.png", "a.jpg"):
        colours(9, 7).save(tmp_path / name)
        assert fast(tmp_path / name) is None
        assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0), by_pillow(tmp_path / name))


@torchvisions
def test_what_only_pillow_reads_right_is_left_to_it(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    picture = colours(6, 8)
    picture.save(tmp_path / "exif.png", exif=turned)
    picture.save(tmp_path / "exif.jpg", exif=turned)
    picture.save(tmp_path / "xmp.png", pnginfo=xmp)
    picture.save(tmp_path / "profile.png", icc_profile=b"none that libpng takes without complaint")
    picture.save(tmp_path / "clear.png", transparency=(0, 0, 0))
    picture.save(tmp_path / "moving.png", save_all=True, append_images=[colours(6, 8).rotate(180)])
    picture.convert("L").save(tmp_path / "grey.jpg")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.convert("P").save(tmp_path / "palette.png")
    picture.save(tmp_path / "a.tif")
    picture.save(tmp_path / "plain.png")
    for path in sorted(tmp_path.iterdir()):
        assert fast(path) is None, path.name
    plain = tmp_path / "plain.jpg"
    upright = Image.Exif()
    upright[0x0112] = 1
    picture.save(plain, exif=upright)
    assert fast(plain) is not None


def test_a_turn_that_is_said_behind_the_pixels_is_seen(tmp_path: Path) -> None:
    path, exif = tmp_path / "late.png", Image.Exif()
    exif[0x0112] = 6
    colours(6, 8).save(path)
    whole = path.read_bytes()
    assert read_image(path).shape == (3, 6, 8)
    path.write_bytes(whole[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + whole[-12:])
    assert read_image(path).shape == (3, 8, 6)


def test_sixteen_bit_colours_keep_their_upper_eight_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    values = np.array([[[0, 255, 256], [65535, 32768, 511]]], ">u2")
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    data = zlib.compress(b"\0" + values.tobytes())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    assert read_image(path).permute(1, 2, 0).tolist() == [[[0, 0, 1], [255, 128, 1]]]


@pytest.mark.parametrize("name", ["half.png", "half.jpg"])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    colours(60, 60).save(path)
    whole = path.read_bytes()
    for part in (0.2, 0.5, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(DataError, match=rf"{name}: cannot be read as an image"):
            read_image(path)
