from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densekd.config import load_recipe
from densekd.data.find import palette_of
from densekd.errors import ArgumentError, DataError, RunError
from densekd.predict import predict
from densekd.runs import Run, train

NAMES = ("sky", "road", "tree", "car")
COLORS = np.array([[90, 140, 215], [100, 96, 100], [40, 115, 40], [190, 40, 50]])
PALETTE = [[10, 20, 200], [128, 64, 128], [20, 200, 20], [220, 30, 30]]
NETWORK = """
from torch import nn


def build(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, num_classes, 1))
"""


def blocks(seed: int, height: int, width: int, cell: int = 10) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, len(NAMES), (-(-height // cell), -(-width // cell))).repeat(cell, 0).repeat(cell, 1)
    label = label[:height, :width]
    image = COLORS[label] + generator.normal(0, 8, (*label.shape, 3))
    return image.clip(0, 255).astype(np.uint8), label.astype(np.uint8)


def recipe_of(root: Path, size: list[int] | None) -> dict:
    return {
        "data": {
            "name": "folder",
            "root": str(root),
            "classes": list(NAMES),
            "palette": PALETTE,
            "augment": {"size": size, "scale": [1.0, 1.0]},
        },
        "student": {"model": f"{root}/net.py:build"},
        "train": {"steps": 40, "batch_size": 8, "optimizer": {"name": "adamw", "lr": 0.05}},
        "runtime": {"device": "cpu"},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp("predict")
    (root / "net.py").write_text(NETWORK)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(8):
            image, label = blocks(number, 40, 60)
            Image.fromarray(image).save(root / split / "images" / f"{number}.png")
            Image.fromarray(label).save(root / split / "masks" / f"{number}.png")
    return train(recipe_of(root, [40, 60]), out=root / "run")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, seed, size in (("a.png", 100, (40, 60)), ("more/b.jpg", 101, (97, 131)), ("c.tif", 102, (20, 30))):
        Image.fromarray(blocks(seed, *size)[0]).save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
    return folder


class TestResults:
    def test_masks_are_right_and_have_the_size_of_the_image(self, run, photos, tmp_path):
        seen: list[tuple[int, int]] = []
        made = predict(run, [photos], tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
        assert [one.image.name for one in made] == ["a.png", "c.tif", "b.jpg"]
        assert seen == [(1, 3), (2, 3), (3, 3)]
        truth = {"a.png": blocks(100, 40, 60)[1], "b.jpg": blocks(101, 97, 131)[1], "c.tif": blocks(102, 20, 30)[1]}
        for one in made:
            with Image.open(one.mask) as mask:
                assert mask.mode == "P"
                ids = np.asarray(mask)
                assert mask.getpalette()[:12] == [value for color in PALETTE for value in color]
            expected = truth[one.image.name]
            assert ids.shape == expected.shape == (one.height, one.width)
            assert (ids == expected).mean() > 0.8
            assert sum(one.shares.values()) == pytest.approx(1)
            assert one.shares["road"] == pytest.approx((ids == 1).mean())
            with Image.open(one.overlay) as over:
                assert over.width >= one.width
                assert over.height > one.height

    def test_names_keep_the_sub_folder(self, run, photos, tmp_path):
        made = predict(run, [photos], tmp_path / "out")
        assert {one.mask.relative_to(tmp_path).as_posix() for one in made} == {
            "out/masks/a.png", "out/masks/c.png", "out/masks/more/b.png",
        }  # fmt: skip

    @pytest.mark.parametrize("batch_size", [2, 3])
    def test_batches_change_nothing(self, run, photos, tmp_path, batch_size):
        alone = predict(run, [photos], tmp_path / "alone")
        together = predict(run, [photos], tmp_path / "together", batch_size=batch_size)
        for one, other in zip(alone, together, strict=True):
            assert (np.asarray(Image.open(one.mask)) == np.asarray(Image.open(other.mask))).mean() > 0.999

    def test_orientation_of_the_file_is_followed(self, run, tmp_path):
        image, _ = blocks(7, 40, 60)
        upright, turned = tmp_path / "upright.png", tmp_path / "turned.jpg"
        Image.fromarray(image).save(upright)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise by 90 degrees to be upright
        Image.fromarray(image).rotate(90, expand=True).save(turned, exif=exif, quality=95)
        one, other = predict(run, [upright, turned], tmp_path / "out")
        assert (other.height, other.width) == (40, 60)
        assert (np.asarray(Image.open(one.mask)) == np.asarray(Image.open(other.mask))).mean() > 0.97

    def test_images_as_stored(self, run, photos, tmp_path):
        free = tmp_path / "run"
        free.mkdir()
        raw = load_recipe(run.path / "recipe.yaml", {"data.augment.size": None}).model_dump(mode="json")
        (free / "recipe.yaml").write_text(json.dumps(raw))
        for name in ("record.json", "student.safetensors"):
            (free / name).write_bytes((run.path / name).read_bytes())
        made = predict(Run.load(free, trust=True), [photos], tmp_path / "out", batch_size=4)
        assert [(one.height, one.width) for one in made] == [(40, 60), (20, 30), (97, 131)]
        ids = np.asarray(Image.open(made[2].mask))
        assert (ids == blocks(101, 97, 131)[1]).mean() > 0.8

    def test_large_pictures_are_enlarged_in_two_steps(self, run, tmp_path, monkeypatch):
        image, label = blocks(9, 80, 120, cell=20)
        Image.fromarray(image).save(tmp_path / "a.png")
        monkeypatch.setattr("densekd.predict.enlarge.MOST_VALUES", 4 * 30 * 45)
        (one,) = predict(run, [tmp_path / "a.png"], tmp_path / "out")
        ids = np.asarray(Image.open(one.mask))
        assert ids.shape == (80, 120)
        assert (ids == label).mean() > 0.8

    def test_row_names_the_classes_by_size(self, run, photos, tmp_path):
        (one,) = predict(run, [photos / "a.png"], tmp_path / "out")
        row = one.row()
        assert row["size"] == "60x40"
        first = max(one.shares, key=one.shares.get)
        assert row["classes"].startswith(f"{first} {100 * one.shares[first]:.1f}%")

    def test_nothing_of_the_data_set_is_needed(self, run, photos, tmp_path):
        moved = tmp_path / "moved"
        moved.mkdir()
        raw = load_recipe(run.path / "recipe.yaml", {"data.root": str(tmp_path / "gone")}).model_dump(mode="json")
        (moved / "recipe.yaml").write_text(json.dumps(raw))
        for name in ("record.json", "student.safetensors"):
            (moved / name).write_bytes((run.path / name).read_bytes())
        assert len(predict(Run.load(moved, trust=True), [photos], tmp_path / "out")) == 3

    def test_random_state_is_left_alone(self, run, photos, tmp_path):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        predict(run, [photos / "a.png"], tmp_path / "out")
        assert torch.equal(torch.rand(3), expected)


class TestRefusals:
    def test_every_unreadable_file_is_named_and_nothing_written(self, run, photos, tmp_path):
        (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:200])
        (photos / "text.jpg").write_text("no picture")
        with pytest.raises(DataError, match=r"2 of 5 images cannot be used") as caught:
            predict(run, [photos], tmp_path / "out")
        assert "broken.png" in str(caught.value)
        assert "text.jpg" in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_output_is_not_overwritten_unasked(self, run, photos, tmp_path):
        predict(run, [photos / "a.png"], tmp_path / "out")
        with pytest.raises(RunError, match="--force"):
            predict(run, [photos / "c.tif"], tmp_path / "out")
        predict(run, [photos / "c.tif"], tmp_path / "out", force=True)
        assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["a.png", "c.png"]

    def test_output_that_is_a_file(self, run, photos):
        with pytest.raises(RunError, match="is a file"):
            predict(run, [photos], photos / "a.png")

    def test_names_that_collide(self, run, photos, tmp_path):
        Image.fromarray(blocks(1, 40, 60)[0]).save(photos / "A.jpg")
        with pytest.raises(DataError, match=r"would both become"):
            predict(run, [photos], tmp_path / "out")

    def test_missing_and_empty(self, run, tmp_path):
        with pytest.raises(DataError, match="no such file or folder"):
            predict(run, [tmp_path / "nowhere"], tmp_path / "out")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"no images: .*empty.*\.jpg"):
            predict(run, [tmp_path / "empty"], tmp_path / "out")

    def test_strange_numbers(self, run, photos, tmp_path):
        with pytest.raises(ArgumentError, match="alpha"):
            predict(run, [photos], tmp_path / "out", alpha=2)
        with pytest.raises(ArgumentError, match="batch_size"):
            predict(run, [photos], tmp_path / "out", batch_size=0)


class TestPassedOver:
    def test_files_that_are_no_images_are_said(self, run, photos, tmp_path):
        (photos / "notes.txt").write_text("x")
        (photos / ".hidden").write_text("x")
        lines: list[str] = []
        predict(run, [photos], tmp_path / "out", said=lines.append)
        assert len(lines) == 1
        assert "1 files passed over" in lines[0]
        assert "notes.txt" in lines[0]

    def test_own_results_inside_the_input_are_not_read_again(self, run, photos):
        assert len(predict(run, [photos], photos / "out")) == 3
        assert len(predict(run, [photos], photos / "out", force=True)) == 3

    def test_a_file_given_twice_is_one_image(self, run, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        made = predict(run, [Path("photos/a.png"), photos], tmp_path / "again")
        assert [one.image.name for one in made] == ["a.png", "c.tif", "b.jpg"]
        assert len(predict(run, [photos / "a.png", photos], tmp_path / "out")) == 3


class TestPalette:
    def test_of_colours_in_the_masks(self, run):
        raw = load_recipe(run.path / "recipe.yaml").model_dump(mode="json")
        raw["data"] |= {
            "palette": None,
            "masks": {"format": "colors", "colors": dict(zip(NAMES, PALETTE, strict=True))},
        }
        assert [list(color) for color in palette_of(load_recipe(raw).data, NAMES)] == PALETTE

    def test_made_ones_differ(self, run):
        recipe = load_recipe(run.path / "recipe.yaml", {"data.palette": None})
        assert len(set(palette_of(recipe.data, NAMES))) == 4

    def test_of_scenes(self):
        recipe = load_recipe("demo")
        assert len(palette_of(recipe.data, ["x"] * 10)) == 10
