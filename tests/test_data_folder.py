from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densekd.data.base import SegmentationSet
from densekd.data.build import DataBundle, build_data
from densekd.data.check import Pair
from densekd.data.folder import auto_split
from densekd.data.palette import made_palette
from densekd.data.specs import AutoSplitSpec, FolderSpec, ScenesDataSpec
from densekd.errors import ConfigError, DataError

CLASSES = ["sky", "road", "car"]


def picture(path: Path, size: tuple[int, int] = (6, 8), **save: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(values).save(path, **save)
    return values


def mask(path: Path, size: tuple[int, int] = (6, 8), high: int = 3) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(path.name)).integers(0, high, size).astype(np.uint8)
    values.flat[:high] = range(high)
    Image.fromarray(values).save(path)
    return values


def dataset(root: Path, train: int = 4, val: int = 2) -> Path:
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            picture(root / split / "images" / f"{'ab'[i % 2]}_{i}.png")
            mask(root / split / "masks" / f"{'ab'[i % 2]}_{i}.png")
    return root


def build(root: Path, **options: Any) -> DataBundle:
    options.setdefault("classes", CLASSES)
    return build_data(FolderSpec(root=str(root), **options))


def names(data: SegmentationSet) -> list[str]:
    return [data.name_of(i) for i in range(len(data))]


def test_pairs_are_found_loaded_and_counted(tmp_path: Path) -> None:
    dataset(tmp_path)
    seen: list[tuple[int, int]] = []
    spec = FolderSpec(root=str(tmp_path), classes=CLASSES)
    data = build_data(spec, progress=lambda done, total: seen.append((done, total)))
    assert isinstance(data.train, SegmentationSet)
    assert names(data.train) == ["a_0", "a_2", "b_1", "b_3"]
    assert (len(data.val), data.classes, data.ignore_index) == (2, tuple(CLASSES), 255)
    assert seen == [(i, 6) for i in range(1, 7)]
    assert data.notices == ["files checked: train 4, val 2 pairs"]
    image, label = data.train.load(2)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), picture(tmp_path / "b_1.png"))
    assert np.array_equal(label.numpy(), mask(tmp_path / "m" / "b_1.png"))
    assert (image.dtype, label.dtype) == (torch.uint8, torch.uint8)


def test_suffixes_of_any_kind_and_case_are_matched_by_stem(tmp_path: Path) -> None:
    pairs = {"a": (".JPG", ".PNG"), "b.v2": (".jpeg", ".tif"), "c": (".TIFF", ".png"), "d": (".png", ".tiff")}
    for split in ("train", "val"):
        for stem, (image_suffix, mask_suffix) in pairs.items():
            picture(tmp_path / split / "images" / f"{stem}{image_suffix}")
            mask(tmp_path / split / "masks" / f"{stem}{mask_suffix}")
    data = build(tmp_path)
    assert names(data.train) == list(pairs)
    for i in range(4):
        assert data.train.load(i).image.shape == (3, 6, 8)


def test_sub_folders_count_and_hidden_files_do_not(tmp_path: Path) -> None:
    dataset(tmp_path)
    for city in ("aachen", "bonn"):
        picture(tmp_path / "train" / "images" / city / "1.jpg")
        mask(tmp_path / "train" / "masks" / city / "1.png")
    (tmp_path / "train" / "images" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "train" / "images" / "Thumbs.db").write_bytes(b"x")
    data = build(tmp_path)
    assert {"aachen/1", "bonn/1"} < set(names(data.train))
    assert "train: 1 files are neither image nor mask and are left out: Thumbs.db" in data.notices


def test_include_exclude_and_lists_choose_files(tmp_path: Path) -> None:
    dataset(tmp_path)
    (tmp_path / "some.txt").write_text("a_2.png\n\n  b_1\n")
    data = build(
        tmp_path,
        train={"exclude": "^a"},
        extra={
            "held-out": {"split": "train", "include": "^a"},
            "listed": {"split": "train", "list": "some.txt"},
        },
    )
    assert names(data.train) == ["b_1", "b_3"]
    assert {name: names(which) for name, which in data.extra.items()} == {
        "held-out": ["a_0", "a_2"],
        "listed": ["a_2", "b_1"],
    }
    assert "listed: 1 of 2 images are also in the training set" in data.notices
    assert not any("held-out:" in notice for notice in data.notices)


def test_a_listed_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    dataset(tmp_path)
    (tmp_path / "some.txt").write_text("a_0\nzebra\n")
    with pytest.raises(DataError, match="zebra: image missing"):
        build(tmp_path, train={"list": "some.txt"})
    with pytest.raises(DataError, match=r"other\.txt: list of files cannot be read"):
        build(tmp_path, train={"list": "other.txt"})
    (tmp_path / "some.txt").write_text("a_0\na_0\n")
    with pytest.raises(DataError, match="listed twice or more: a_0"):
        build(tmp_path, train={"list": "some.txt"})


def test_files_outside_a_filter_may_be_broken(tmp_path: Path) -> None:
    dataset(tmp_path)
    picture(tmp_path / "train" / "images" / "spare.png")
    with pytest.raises(DataError, match=r"spare\.png: mask missing"):
        build(tmp_path)
    assert len(build(tmp_path, train={"exclude": "spare"}).train) == 4


def broken(root: Path, kind: str) -> str:
    """Damage one file; the words that the error must hold."""
    images, masks = root / "train" / "images", root / "train" / "masks"
    if kind == "mask missing":
        (masks / "a_0.png").unlink()
        return r"a_0\.png: mask missing: expected .*masks.a_0\.png"
    if kind == "jpeg mask":
        (masks / "a_0.png").rename(masks / "a_0.jpg")
        return r"mask missing: a_0\.jpg is no \.png.*without loss"
    if kind == "image missing":
        (images / "a_0.png").unlink()
        return r"masks.a_0\.png: image missing: expected .*images.a_0\.jpg"
    if kind == "sizes differ":
        mask(masks / "a_0.png", (8, 6))
        return r"a_0\.png: sizes differ: mask 6x8, image 8x6"
    if kind == "label":
        mask(masks / "a_0.png", high=6)
        return r"a_0\.png: label outside the range: 3, 4, 5; expected ids 0 to 2 or the ignore_index 255"
    if kind == "no image":
        (images / "a_0.png").write_text("hello")
        return r"images.a_0\.png: cannot be read as an image"
    if kind == "truncated":
        (images / "a_0.png").unlink()
        picture(images / "a_0.jpg", (64, 64), quality=95)
        data = (images / "a_0.jpg").read_bytes()
        (images / "a_0.jpg").write_bytes(data[: len(data) // 2])
        mask(masks / "a_0.png", (64, 64))
        return r"a_0\.jpg: cannot be read as an image \(.*truncated"
    if kind == "truncated mask":
        data = (masks / "a_0.png").read_bytes()
        (masks / "a_0.png").write_bytes(data[: len(data) - 25])
        return r"masks.a_0\.png: cannot be read as an image"
    if kind == "coloured mask":
        picture(masks / "a_0.png")
        return r"a_0\.png: masks\.format is ids, which needs one channel.*masks\.format=colors"
    assert kind == "duplicate"
    picture(images / "a_0.jpg")
    return r"a_0\.png: duplicate stem: a_0\.jpg has the same"


KINDS = ["mask missing", "jpeg mask", "image missing", "sizes differ", "label", "no image", "truncated"]


@pytest.mark.parametrize("kind", [*KINDS, "truncated mask", "coloured mask", "duplicate"])
def test_a_file_that_cannot_be_used_is_named_with_its_reason(tmp_path: Path, kind: str) -> None:
    words = broken(dataset(tmp_path), kind)
    with pytest.raises(DataError, match=words) as caught:
        build(tmp_path)
    assert str(caught.value).startswith("1 problem in ")


def test_ten_problems_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    dataset(tmp_path, train=25)
    for path in (tmp_path / "train" / "images").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError) as caught:
        build(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "25 problems in 27 image-mask pairs:"
    assert sum("cannot be read as an image" in line for line in lines) == 10
    assert lines[-1].strip() == "and 15 more"


def test_the_check_can_be_left_out_and_says_so(tmp_path: Path) -> None:
    broken(dataset(tmp_path), "label")
    data = build(tmp_path, check=False)
    assert data.notices == ["data.check is off: files are opened only when they are used"]
    with pytest.raises(DataError, match="label outside the range"):
        data.train.load(0)
    broken(tmp_path, "sizes differ")
    with pytest.raises(DataError, match="sizes differ"):
        data.train.load(0)


def test_missing_folders_are_named_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder \(data\.root\)"):
        build(tmp_path / "nowhere")
    dataset(tmp_path)
    with pytest.raises(DataError, match=r"trian.*which holds train, val; did you mean 'train'"):
        build(tmp_path, train={"split": "trian"})
    (tmp_path / "val").rename(tmp_path / "test")
    with pytest.raises(DataError, match=r"which holds test, train; data\.auto_split can cut a validation set"):
        build(tmp_path)
    with pytest.raises(DataError, match="no images for train; 4 files, none of them left by include=xyz"):
        build(tmp_path, train={"include": "xyz"})


def test_classes_come_from_the_recipe_or_a_file_and_are_never_guessed(tmp_path: Path) -> None:
    dataset(tmp_path)
    with pytest.raises(DataError, match=r"which classes\? give data\.classes, or write .*classes\.txt"):
        build(tmp_path, classes=None)
    (tmp_path / "classes.txt").write_text("sky\nroad \n\ncar\n")
    assert build(tmp_path, classes=None).classes == ("sky", "road", "car")
    (tmp_path / "classes.txt").write_text("sky\nsky\ncar\n")
    with pytest.raises(DataError, match=r"classes\.txt: class names must differ; twice or more: 'sky'"):
        build(tmp_path, classes=None)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    dataset(tmp_path)
    with pytest.raises(ConfigError, match="ignore_index: 2 is the id of 'car'"):
        build(tmp_path, ignore_index=2)
    with pytest.raises(ConfigError, match="2 colours for 3 classes"):
        build(tmp_path, palette=[[0, 0, 0], [1, 1, 1]])


def test_what_looks_strange_is_said(tmp_path: Path) -> None:
    dataset(tmp_path)
    assert "train: no pixel of 'bus'" in build(tmp_path, classes=[*CLASSES, "bus"]).notices
    for path in [*(tmp_path / "train" / "masks").iterdir(), *(tmp_path / "val" / "masks").iterdir()]:
        Image.fromarray(np.full((6, 8), 255, np.uint8)).save(path)
    with pytest.raises(DataError, match="train: every pixel of its 4 masks is void"):
        build(tmp_path)


def test_a_mask_of_0_and_255_is_not_taken_for_void_unsaid(tmp_path: Path) -> None:
    dataset(tmp_path)
    for path in [*(tmp_path / "train" / "masks").iterdir(), *(tmp_path / "val" / "masks").iterdir()]:
        values = np.zeros((6, 8), np.uint8)
        values[:2] = 255
        Image.fromarray(values).save(path)
    notices = build(tmp_path, classes=["background", "polyp"]).notices
    assert any("no pixel of 'polyp', only void; if 255 means foreground" in notice for notice in notices)
    data = build(tmp_path, classes=["background", "polyp"], masks={"format": "id_map", "id_map": {0: 0, 255: 1}})
    assert data.train.load(0).label.unique().tolist() == [0, 1]


def test_training_images_of_several_sizes_need_a_crop_or_a_size(tmp_path: Path) -> None:
    dataset(tmp_path)
    picture(tmp_path / "train" / "images" / "z.png", (10, 12))
    mask(tmp_path / "train" / "masks" / "z.png", (10, 12))
    with pytest.raises(DataError, match=r"2 sizes, from 6x8 to 10x12.*data\.augment\.crop"):
        build(tmp_path)
    assert len(build(tmp_path, augment={"crop": [6, 6]}).train) == 5
    assert len(build(tmp_path, augment={"size": [6, 6]}).train) == 5


def pairs(**groups: int) -> list[Pair]:
    return [Pair(f"{group}_{i}", Path(f"{group}_{i}"), Path("m")) for group, n in groups.items() for i in range(n)]


def test_auto_split_keeps_groups_whole_and_does_not_depend_on_order() -> None:
    files = pairs(a=10, b=10, c=10, d=10, e=10, f=10, g=10, h=10, i=10, j=10)
    spec = AutoSplitSpec(group=r"^(\w+)_\d+$", fraction=0.2)
    train, val, said = auto_split(files, spec)
    assert (len(train), len(val)) == (80, 20)
    assert not {p.stem[0] for p in train} & {p.stem[0] for p in val}
    assert auto_split(files[::-1], spec) == (train, val, said)
    assert said.startswith("validation set: 20 of 100 images, 2 of 10 groups (")
    others = [auto_split(files, spec.model_copy(update={"seed": seed}))[1] for seed in range(5)]
    assert any(other != val for other in others)


def test_auto_split_comes_near_the_fraction_with_unequal_groups() -> None:
    spec = AutoSplitSpec(group="^[^_]+", fraction=0.25)
    train, val, _ = auto_split(pairs(big=60, x=5, y=7, z=8), spec)
    assert {p.stem.split("_")[0] for p in train} >= {"big"}
    assert len(val) == 20
    train, val, _ = auto_split(pairs(big=60, small=40), AutoSplitSpec(group="^[^_]+", fraction=0.01))
    assert (len(train), len(val)) == (60, 40)


def test_auto_split_says_what_its_pattern_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not match 3 of 5 file stems: b_0, b_1, b_2"):
        auto_split(pairs(a=2, b=3), AutoSplitSpec(group="^a"))
    with pytest.raises(DataError, match="puts all 5 files into one group"):
        auto_split(pairs(a=2, b=3), AutoSplitSpec(group="_"))


def test_auto_split_in_a_recipe(tmp_path: Path) -> None:
    dataset(tmp_path, train=10)
    data = build(tmp_path, auto_split={"group": r"\d+", "fraction": 0.3})
    assert (len(data.train), len(data.val)) == (7, 3)
    assert any(notice.startswith("validation set: 3 of 10 images") for notice in data.notices)
    assert not set(names(data.train)) & set(names(data.val))


def test_palettes_are_given_taken_from_the_masks_or_made(tmp_path: Path) -> None:
    dataset(tmp_path)
    assert build(tmp_path).palette == made_palette(3)
    given = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert build(tmp_path, palette=given).palette == given


@pytest.mark.parametrize("count", [2, 21, 150, 256])
def test_made_colours_differ_and_are_not_black(count: int) -> None:
    colors = made_palette(count)
    assert len(set(colors)) == count
    assert min(max(color) for color in colors) > 100
    assert made_palette(300)[:count] == colors


def test_scenes_are_built_from_their_spec() -> None:
    data = build_data(ScenesDataSpec(name="scenes", train_count=3, val_count=2, size=(48, 64), seed=5))
    assert (len(data.train), len(data.val), data.extra) == (3, 2, {})
    assert data.train.load(0).label.shape == (48, 64)
    assert data.classes == data.train.classes
    assert not torch.equal(data.train.load(0).image, data.val.load(0).image)
