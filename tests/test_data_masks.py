from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densekd.data.masks import MaskReader
from densekd.data.specs import MasksSpec
from densekd.errors import ConfigError, DataError

CLASSES = ("sky", "road", "car")


def reader(void: int = 255, **spec: Any) -> MaskReader:
    return MaskReader(MasksSpec(**spec), CLASSES, void)


def saved(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


def kind_of(path: Path) -> str:
    with Image.open(path) as picture:
        return picture.mode


def test_ids_are_read_as_they_are(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 255]], np.uint8)
    assert reader().read(saved(tmp_path / "m.png", values)).tolist() == [[0, 1], [2, 255]]


def test_a_palette_png_gives_its_indices_and_not_their_brightness(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 255]], np.uint8)
    picture = Image.fromarray(values, mode="P")
    picture.putpalette([component for i in range(256) for component in (i * 7 % 256, 255 - i, i // 2)])
    picture.save(tmp_path / "m.png")
    assert kind_of(tmp_path / "m.png") == "P"
    assert reader().read(tmp_path / "m.png").tolist() == [[0, 1], [2, 255]]


def test_one_bit_masks_are_0_and_1(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "m.png")
    assert reader().read(tmp_path / "m.png").tolist() == [[0, 1]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_masks_are_read_in_full(tmp_path: Path, suffix: str) -> None:
    values = np.array([[7, 11000], [65535, 26001]], np.uint16)
    path = saved(tmp_path / f"m.{suffix}", values)
    table = {7: 0, 11000: 1, 26001: 2, 65535: 255}
    assert reader(format="id_map", id_map=table).read(path).tolist() == [[0, 1], [255, 2]]
    with pytest.raises(DataError, match="outside the range: 7, 11000, 26001, 65535"):
        reader().read(path)


def test_an_id_map_is_one_table_and_not_a_chain_of_replacements(tmp_path: Path) -> None:
    # One after the other, 1 -> 2 -> 0 -> 1 would turn everything into one class.
    path = saved(tmp_path / "m.png", np.array([[0, 1, 2, 9]], np.uint8))
    assert reader(format="id_map", id_map={1: 2, 2: 0, 0: 1, 9: 255}).read(path).tolist() == [[1, 2, 0, 255]]


def test_several_values_may_be_one_class_and_void_may_be_negative(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", np.array([[4, 5, 6, 7, 8]], np.uint8))
    made = reader(-100, format="id_map", id_map={4: 0, 5: 0, 6: 1, 7: 2, 8: -100})
    assert made.read(path).tolist() == [[0, 0, 1, 2, -100]]


def test_values_without_a_class_are_an_error_or_void_as_asked(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", np.array([[0, 1, 2, 3, 40]], np.uint8))
    with pytest.raises(DataError, match=r"m\.png: label outside the range: 3, 40; expected ids 0 to 2"):
        reader().read(path)
    assert reader(unlisted="ignore").read(path).tolist() == [[0, 1, 2, 255, 255]]
    table = {0: 0, 1: 1, 2: 2}
    with pytest.raises(DataError, match=r"not in masks\.id_map: 3, 40"):
        reader(format="id_map", id_map=table).read(path)
    assert reader(format="id_map", id_map=table, unlisted="ignore").read(path).tolist() == [[0, 1, 2, 255, 255]]


def test_many_strange_values_are_shortened(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", np.arange(60, dtype=np.uint8).reshape(6, 10))
    with pytest.raises(DataError, match=r"3, 4, 5, 6, 7, 8, 9, 10 and 49 more"):
        reader().read(path)


COLORS = {"sky": (128, 128, 128), "road": [(128, 64, 128), (0, 0, 1)], "car": (64, 0, 128), "ignore": (0, 0, 0)}


def test_colours_are_read_exactly(tmp_path: Path) -> None:
    row = [(128, 128, 128), (128, 64, 128), (0, 0, 1), (64, 0, 128), (0, 0, 0)]
    path = saved(tmp_path / "m.png", np.array([row], np.uint8))
    assert reader(format="colors", colors=COLORS).read(path).tolist() == [[0, 1, 1, 2, 255]]
    with Image.open(path) as picture:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=5).save(tmp_path / "p.png")
    assert kind_of(tmp_path / "p.png") == "P"
    assert reader(format="colors", colors=COLORS).read(tmp_path / "p.png").tolist() == [[0, 1, 1, 2, 255]]


def test_unknown_colours_are_an_error_or_void_as_asked(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", np.array([[(128, 128, 128), (129, 128, 128), (255, 255, 255)]], np.uint8))
    with pytest.raises(DataError, match=r"not in masks\.colors: \[129, 128, 128\], \[255, 255, 255\]"):
        reader(format="colors", colors=COLORS).read(path)
    assert reader(format="colors", colors=COLORS, unlisted="ignore").read(path).tolist() == [[0, 255, 255]]


def test_the_kind_of_file_must_fit_the_format(tmp_path: Path) -> None:
    grey = saved(tmp_path / "grey.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"masks\.format is colors, but its pixels are of kind 'L'"):
        reader(format="colors", colors=COLORS).read(grey)
    color = saved(tmp_path / "color.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"masks\.format is ids, which needs one channel.*'RGB'"):
        reader().read(color)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"format": "id_map", "id_map": {0: 0, 1: 1, 2: 3}}, r"expected ids 0 to 2 or the ignore_index 255, got 2: 3"),
        ({"format": "id_map", "id_map": {0: 0, 1: 1}}, "no value stands for car"),
        ({"format": "colors", "colors": {**COLORS, "skye": (1, 1, 1)}}, "'skye' is no class; did you mean 'sky'"),
        ({"format": "colors", "colors": {"sky": (1, 1, 1), "road": (2, 2, 2)}}, "no colour is given for car"),
        ({"format": "colors", "colors": {**COLORS, "car": (0, 0, 1)}}, r"\[0, 0, 1\] stands for both 'road' and 'car'"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        reader(**spec)


def test_ids_that_fit_are_kept_in_8_bits(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png")
    for void, dtype in ((255, torch.uint8), (-1, torch.int64), (300, torch.int64)):
        made = reader(void, format="id_map", id_map={0: 0, 1: 1, 2: 2, 255: void})
        narrow, wide = made.read_narrow(tmp_path / "m.png"), made.read(tmp_path / "m.png")
        assert (narrow.dtype, wide.dtype) == (dtype, torch.int64)
        assert narrow.tolist() == wide.tolist() == np.where(values == 255, void, values.astype(int)).tolist()
    narrow[0, 0] = 1  # the caller's own


def test_no_byte_is_left_for_what_is_unlisted(tmp_path: Path) -> None:
    names = tuple(map(str, range(255)))
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "m.png")
    found = MaskReader(MasksSpec(), names, 255).read_narrow(tmp_path / "m.png")
    assert found.dtype == torch.int64
    assert found.tolist() == values.tolist()
