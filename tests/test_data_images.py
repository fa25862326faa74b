from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekd.data.images import check_image, read_image
from densekd.errors import DataError


def rgb(height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def read(path: Path) -> np.ndarray:
    return read_image(path).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_exif_rotation_is_applied(tmp_path: Path, turn: int) -> None:
    values = np.zeros((16, 32, 3), np.uint8)
    values[:8, :8] = 255  # a white corner, top left as stored
    exif = Image.Exif()
    exif[0x0112] = turn
    for path in (tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "a.tif"):
        Image.fromarray(values).save(path, exif=exif)
        found = read(path)
        corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[turn]
        assert found.shape == ((16, 32, 3) if turn < 5 else (32, 16, 3))
        assert check_image(path) == found.shape[:2]
        bright = [[found[y, x].min() > 200 for x in (2, -3)] for y in (2, -3)]
        assert bright[corner[0]][corner[1]]
        assert sum(map(sum, bright)) == 1


def test_grey_and_one_bit_become_rgb(tmp_path: Path) -> None:
    grey = rgb()[..., 0]
    Image.fromarray(grey).save(tmp_path / "g.png")
    assert np.array_equal(read(tmp_path / "g.png"), np.stack([grey] * 3, -1))
    Image.fromarray(grey > 100).save(tmp_path / "b.png")
    assert np.array_equal(read(tmp_path / "b.png")[..., 0], (grey > 100) * 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_upper_eight_bits(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 256, 65535, 32768]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"g.{suffix}")
    assert read(tmp_path / f"g.{suffix}")[0, :, 1].tolist() == [0, 0, 1, 255, 128]
    assert check_image(tmp_path / f"g.{suffix}") == (1, 5)


def test_alpha_is_dropped_and_not_blended(tmp_path: Path) -> None:
    values = rgb()
    alpha = np.full((4, 6, 1), 10, np.uint8)
    Image.fromarray(np.concatenate([values, alpha], -1)).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), values)
    Image.fromarray(np.concatenate([values[..., :1], alpha], -1), mode="LA").save(tmp_path / "la.png")
    assert np.array_equal(read(tmp_path / "la.png")[..., 2], values[..., 0])


def test_cmyk_is_converted_as_pillow_does(tmp_path: Path) -> None:
    path = tmp_path / "c.jpg"
    Image.fromarray(rgb(16, 16)).convert("CMYK").save(path, quality=95)
    with Image.open(path) as picture:
        assert picture.mode == "CMYK"
        assert np.array_equal(read(path), np.array(picture.convert("RGB")))
    assert check_image(path) == (16, 16)


def test_a_palette_picture_is_looked_up(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "p.png")
    assert read(tmp_path / "p.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_pixels_of_no_faithful_conversion_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "f.tif")
    for use in (read_image, check_image):
        with pytest.raises(DataError, match=r"f\.tif: pixels of kind 'F' are not understood; save it as 8-bit RGB"):
            use(tmp_path / "f.tif")
    Image.fromarray(np.array([[70000]], np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(DataError, match="grey values from 70000 to 70000"):
        read_image(tmp_path / "i.tif")


def test_a_tiff_of_several_pages_is_refused(tmp_path: Path) -> None:
    page = Image.fromarray(rgb())
    page.save(tmp_path / "t.tif", save_all=True, append_images=[page])
    for use in (read_image, check_image):
        with pytest.raises(DataError, match="holds several pages"):
            use(tmp_path / "t.tif")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.png: cannot be read as an image"):
        read_image(tmp_path / "nothing.png")
    path = tmp_path / "half.jpg"
    Image.fromarray(rgb(200, 200)).save(path, quality=95)
    whole = path.read_bytes()
    # The check decodes at an eighth of the size; an end cut off anywhere must still be seen.
    for part in (0.1, 0.5, 0.95):
        path.write_bytes(whole[: int(part * len(whole))])
        for use in (read_image, check_image):
            with pytest.raises(DataError, match=r"half\.jpg: cannot be read as an image"):
                use(path)
