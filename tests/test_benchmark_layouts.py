"""Files of the benchmarks in their official layouts: found, matched, read, and told when they are not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

import realdata
from densekd.config import Recipe, dump_recipe, load_recipe, recipe_digest
from densekd.data.build import DataBundle, build_data
from densekd.data.find import data_of, palette_of
from densekd.data.kinds import DataSpec
from densekd.data.specs import HoldoutSpec
from densekd.errors import ConfigError, DataError, RunError
from densekd.runs.score import _require_split
from densekd.tuning.sweep import _holdout

SPEC: TypeAdapter[Any] = TypeAdapter(DataSpec)
SIZE = (12, 24)


def build(data: dict[str, Any], **changes: Any) -> DataBundle:
    return build_data(SPEC.validate_python({**data, **changes}))


def stems(data: Any) -> list[str]:
    return [data.name_of(index) for index in range(len(data))]


def told(data: DataBundle, words: str) -> bool:
    return any(words in notice for notice in data.notices)


@pytest.mark.parametrize(
    ("name", "train", "val", "classes"),
    [
        ("cityscapes", "aachen/aachen_000000_000019", "frankfurt/frankfurt_000000_000019", 19),
        ("voc", "2007_000000", "2008_000000", 21),
        ("ade20k", "ADE_train_00000001", "ADE_val_00000001", 150),
        ("camvid", "0001TP_000000", "0001TP_000100", 11),
        ("cocostuff", "000000000009", "000000000139", 171),
    ],
)
def test_every_set_is_read_as_downloaded(tmp_path: Path, name: str, train: str, val: str, classes: int) -> None:
    data = build(realdata.make(name, tmp_path, size=SIZE))
    assert (stems(data.train)[0], stems(data.val)[0]) == (train, val)
    assert (len(data.classes), len(data.palette), data.ignore_index) == (classes, classes, 255)
    image, label = data.train.load(0)
    assert (image.shape, label.shape) == ((3, *SIZE), SIZE)
    assert set(label.unique().tolist()) <= {*range(classes), 255}
    assert told(data, "images, and ")
    assert told(data, f"files checked: train {len(data.train)}, val {len(data.val)} pairs")


@pytest.mark.parametrize("name", list(realdata.WRITERS))
def test_the_parent_and_a_child_folder_are_recognised(tmp_path: Path, name: str) -> None:
    data = realdata.make(name, tmp_path / "a" / "b", size=SIZE)
    root = Path(data["root"])
    child = next(entry for entry in sorted(root.iterdir()) if entry.is_dir())
    for wrong in (root.parent, child):
        with pytest.raises(DataError, match=r"official layout: it lacks .*; did you mean data\.root=") as error:
            build(data, root=str(wrong))
        assert f"data.root={root}?" in str(error.value)
        assert "expected under data.root:\n  " in str(error.value)
    with pytest.raises(DataError, match=f"no such folder; `densekd data get {name}` downloads it or says how"):
        build(data, root=str(tmp_path / "nowhere"))


class TestCityscapes:
    @pytest.fixture
    def data(self, tmp_path: Path) -> dict[str, Any]:
        return realdata.make("cityscapes", tmp_path, size=SIZE)

    def test_auto_takes_label_ids_and_says_so(self, data: dict[str, Any]) -> None:
        assert told(build(data), "data.labels: read are the files *_gtFine_labelIds.png")
        assert not told(build(data, labels="labelIds"), "data.labels")

    def test_auto_takes_train_ids_where_there_are_no_others(self, tmp_path: Path) -> None:
        data = build(realdata.make("cityscapes", tmp_path, size=SIZE, kinds=["labelTrainIds"]))
        assert told(data, "data.labels: read are the files *_gtFine_labelTrainIds.png")
        pair = data.train.pairs[0]  # type: ignore[attr-defined]
        assert np.array_equal(np.asarray(Image.open(pair.mask)), data.train.load(0).label.numpy())

    def test_both_kinds_beside_each_other_give_the_same_labels(self, data: dict[str, Any]) -> None:
        ids = build(data, labels="labelIds").train
        for pair, index in zip(ids.pairs, range(3), strict=True):  # type: ignore[attr-defined]
            label = ids.load(index).label.numpy().astype(np.uint8)
            realdata.write_grey(Path(str(pair.mask).replace("labelIds", "labelTrainIds")), label)
        for pair, index in zip(build(data).val.pairs, range(2), strict=True):  # type: ignore[attr-defined]
            label = build(data).val.load(index).label.numpy().astype(np.uint8)
            realdata.write_grey(Path(str(pair.mask).replace("labelIds", "labelTrainIds")), label)
        train_ids = build(data, labels="labelTrainIds").train
        assert all(ids.load(index).label.equal(train_ids.load(index).label) for index in range(3))
        assert told(build(data), "*_gtFine_labelIds.png")

    def test_kinds_that_are_mixed_are_refused(self, data: dict[str, Any]) -> None:
        mask = sorted(Path(data["root"], "gtFine", "train").rglob("*labelIds.png"))[0]
        mask.rename(str(mask).replace("labelIds", "labelTrainIds"))
        with pytest.raises(DataError, match=r"expected .*labelIds\.png; its labelTrainIds are there, and all must"):
            build(data)

    @pytest.mark.parametrize("key", ["train", "val", "extra"])
    def test_the_test_split_has_no_labels(self, data: dict[str, Any], key: str) -> None:
        with pytest.raises(ValueError, match=r"got 'test': Cityscapes has no public labels there; .*densekd predict"):
            build(data, **{key: ["test"] if key == "extra" else "test"})

    def test_its_images_can_be_distilled_on(self, data: dict[str, Any]) -> None:
        root = Path(data["root"])
        more = build(data, unlabelled={"root": str(root / "leftImg8bit" / "test")}).unlabelled
        assert more is not None
        assert stems(more) == ["berlin/berlin_000000_000019_leftImg8bit"]
        with pytest.raises(DataError, match=r"gtFine holds masks, .*leftImg8bit$"):
            build(data, unlabelled={"root": str(root)})

    def test_trainval_is_both(self, data: dict[str, Any]) -> None:
        both = build(data, train="trainval", extra=["trainval"])
        assert (len(both.train), list(both.extra)) == (5, ["trainval"])
        assert told(both, "val: 2 of 2 images are also in the training set")
        with pytest.raises(ValueError, match=r"the name 'train' is taken: it is what data\.train says"):
            build(data, train="trainval", extra=["train"])

    def test_whole_cities_are_held_out(self, data: dict[str, Any]) -> None:
        shutil.rmtree(Path(data["root"], "gtFine", "val"))
        held = build(data, holdout={})
        cities = [{stem.split("/")[0] for stem in stems(which)} for which in (held.train, held.val)]
        assert cities[0] | cities[1] == {"aachen", "bochum"}
        assert not cities[0] & cities[1]

    def test_merged_classes(self, data: dict[str, Any]) -> None:
        merged = build(data, classes={"flat": ["road", "parking"], "rest": ["car", "sky"]})
        assert (merged.classes, len(merged.palette)) == (("flat", "rest"), 2)
        mask = np.asarray(Image.open(merged.train.pairs[0].mask))  # type: ignore[attr-defined]
        label = merged.train.load(0).label.numpy()
        assert np.array_equal(label == 0, np.isin(mask, (7, 9)))
        assert np.array_equal(label == 1, np.isin(mask, (26, 23)))
        assert np.array_equal(label == 255, ~np.isin(mask, (7, 9, 26, 23)))

    def test_all_that_is_there_is_found(self, data: dict[str, Any]) -> None:
        found = data_of(SPEC.validate_python(data), every=True)
        assert {name: len(pairs) for name, pairs in found.splits.items()} == {"train": 3, "val": 2}
        assert list(found.images["test"]) == ["berlin/berlin_000000_000019_leftImg8bit"]
        shutil.rmtree(Path(data["root"], "gtFine", "train"))
        less = data_of(SPEC.validate_python(data), every=True)
        assert list(less.splits) == ["val"]
        assert "train: not there (gtFine/train)" in less.notices
        with pytest.raises(DataError, match=r"it lacks gtFine/train; "):
            build(data)

    def test_files_of_a_pair_that_are_missing_are_listed(self, data: dict[str, Any]) -> None:
        masks = sorted(Path(data["root"], "gtFine").rglob("*labelIds.png"))
        masks[0].unlink()
        images = sorted(Path(data["root"], "leftImg8bit", "val").rglob("*.png"))
        images[1].unlink()
        with pytest.raises(DataError, match=r"(?s)2 problems in 3 .*mask missing: expected .*Ids\.png.*image missing"):
            build(data)

    def test_pictures_under_other_names_are_told(self, data: dict[str, Any]) -> None:
        realdata.write_image(Path(data["root"], "leftImg8bit", "train", "aachen", "mine.png"), SIZE)
        assert told(
            build(data), "train: 1 files in its folder of images are no *_leftImg8bit.png and are left out: mine"
        )


class TestVoc:
    def test_own_masks_before_those_of_sbd(self, tmp_path: Path) -> None:
        root = realdata.voc(tmp_path, size=SIZE)
        data = build({"name": "voc", "root": str(root)})
        assert stems(data.train) == ["2007_000000", "2007_000001", "2007_000002", "2009_000000", "2009_000001"]
        folders = [pair.mask.parent.name for pair in data.train.pairs]  # type: ignore[attr-defined]
        assert folders == 3 * ["SegmentationClass"] + 2 * ["SegmentationClassAug"]
        assert told(data, "3 masks from SegmentationClass (VOC's own, with a void border), 2 from SegmentationClassAug")
        assert told(data, "train_aug: 5 images, and Pascal VOC 2012 has 10582 there")

    def test_the_list_decides_where_there_is_one(self, tmp_path: Path) -> None:
        root = realdata.voc(tmp_path, size=SIZE, added=3)
        lists = root / "ImageSets" / "Segmentation"
        realdata.write_lines(lists / "aug.txt", ["2009_000002"])
        data = build({"name": "voc", "root": str(root)})
        assert stems(data.train)[3:] == ["2009_000002"]
        realdata.write_lines(lists / "train_aug.txt", ["2007_000001", "2009_000000"])
        data = build({"name": "voc", "root": str(root)})
        assert stems(data.train) == ["2007_000001", "2009_000000"]
        assert told(data, "train_aug: images of train_aug.txt; 1 masks from SegmentationClass")
        realdata.write_lines(lists / "train_aug.txt", ["2007_000001", "2008_000000"])
        with pytest.raises(DataError, match=r"train_aug\.txt: lists 1 images of val\.txt"):
            build({"name": "voc", "root": str(root)})
        realdata.write_lines(lists / "train_aug.txt", ["2007_000001", "2020_000000"])
        with pytest.raises(DataError, match=r"2020_000000\.jpg: listed, but no such image"):
            build({"name": "voc", "root": str(root)})

    @pytest.mark.parametrize(
        "line", ["/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png", "{0}.jpg", "{0}\r", "{0}  1"]
    )
    def test_lists_may_hold_paths_of_images_and_masks(self, tmp_path: Path, line: str) -> None:
        root = realdata.voc(tmp_path, size=SIZE)
        lists = root / "ImageSets" / "Segmentation"
        data = {"name": "voc", "root": str(root)}
        named = [line.format(stem) for stem in ("2009_000001", "2007_000001")]
        realdata.write_lines(lists / "train_aug.txt", ["\ufeff" + named[0], named[1]])
        assert stems(build(data).train) == ["2007_000001", "2009_000001"]
        realdata.write_lines(lists / "train_aug.txt", [*named, line.format("2008_000000")])
        with pytest.raises(DataError, match=r"train_aug\.txt: lists 1 images of val\.txt"):
            build(data)
        realdata.write_lines(lists / "train_aug.txt", [*named, f"{line.format('2007_000001')} "])
        with pytest.raises(DataError, match=r"train_aug\.txt: names .* twice: 2007_000001|names files twice"):
            build(data)

    def test_without_sbd_only_vocs_own_splits(self, tmp_path: Path) -> None:
        root = realdata.voc(tmp_path, size=SIZE, masks="none")
        data = {"name": "voc", "root": str(root)}
        with pytest.raises(DataError, match=r"train_aug needs SBD's masks: .*data\.train=train does without"):
            build(data)
        assert stems(build(data, train="train").train) == ["2007_000000", "2007_000001", "2007_000002"]
        assert len(build(data, train="trainval").train) == 5
        found = data_of(SPEC.validate_python(data), every=True)
        assert list(found.splits) == ["train", "val"]
        assert any("train_aug needs SBD's masks" in notice for notice in found.notices)
        with pytest.raises(DataError, match=r"no SBD \(data\.sbd\)"):
            build(data, sbd=str(tmp_path))

    @pytest.mark.slow
    @pytest.mark.parametrize("given", [False, True])
    def test_masks_of_sbd_are_read_from_their_structs(self, tmp_path: Path, given: bool) -> None:
        data = realdata.make("voc", tmp_path, size=SIZE, masks="mat")
        if given:
            (tmp_path / "benchmark_RELEASE").rename(tmp_path / "elsewhere")
            data["sbd"] = str(tmp_path / "elsewhere")
        train = build(data).train
        assert [pair.mask.suffix for pair in train.pairs] == 3 * [".png"] + 2 * [".mat"]  # type: ignore[attr-defined]
        assert stems(train)[3] == "2009_000000"
        assert np.array_equal(train.load(3).label.numpy(), realdata.blocks("2009_000000", range(21), SIZE))

    @pytest.mark.slow
    def test_other_mat_files_are_no_masks(self, tmp_path: Path) -> None:
        from scipy.io import savemat

        data = realdata.make("voc", tmp_path, size=SIZE, masks="mat")
        bad = tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "2009_000001.mat"
        bad.write_bytes(bad.read_bytes()[:100])
        with pytest.raises(DataError, match=r"2009_000001\.mat: no file of MATLAB's version 5"):
            build(data)
        savemat(str(bad), {"GTcls": {"Segmentation": np.zeros((2, 3, 4))}})
        with pytest.raises(DataError, match=r"Segmentation is float64 \(2, 3, 4\); expected uint8 \(H, W\)"):
            build(data)
        realdata.write_mat(bad, np.full(SIZE, 21, np.uint8))
        with pytest.raises(DataError, match=r"21: no such value in masks of Pascal VOC"):
            build(data)


class TestAde20k:
    def test_zero_is_void_and_the_rest_one_lower(self, tmp_path: Path) -> None:
        train = build(realdata.make("ade20k", tmp_path, size=SIZE)).train
        for index, pair in enumerate(train.pairs):  # type: ignore[attr-defined]
            values = np.asarray(Image.open(pair.mask)).astype(int)
            assert np.array_equal(train.load(index).label.numpy(), np.where(values == 0, 255, values - 1))

    def test_the_full_release_is_refused_by_name(self, tmp_path: Path) -> None:
        realdata.write_image(tmp_path / "images" / "training" / "a" / "abbey" / "ADE_train_00000001.jpg", SIZE)
        realdata.write_image(tmp_path / "images" / "training" / "a" / "abbey" / "ADE_train_00000001_seg.png", SIZE)
        with pytest.raises(DataError, match=r"the full ADE20K \(ADE_train_00000001_seg\.png\).*ADEChallengeData2016"):
            build({"name": "ade20k", "root": str(tmp_path)})
        (tmp_path / "index_ade20k.mat").write_bytes(b"")
        with pytest.raises(DataError, match=r"the full ADE20K \(index_ade20k\.mat\)"):
            build({"name": "ade20k", "root": str(tmp_path)})

    def test_single_images_are_held_out(self, tmp_path: Path) -> None:
        held = build(realdata.make("ade20k", tmp_path, size=SIZE, train=5), holdout={"fraction": 0.4})
        assert (len(held.train), len(held.val)) == (3, 2)


class TestCamvid:
    @pytest.mark.parametrize(
        ("layout", "said"), [("segnet", "SegNet's release"), ("folders", "folders"), ("original", "the original")]
    )
    def test_its_layout_is_recognised_and_said(self, tmp_path: Path, layout: str, said: str) -> None:
        data = build(realdata.make("camvid", tmp_path, size=SIZE, layout=layout), extra=["test"])
        assert told(data, f"camvid: {said}")
        assert (len(data.train), len(data.val), len(data.extra["test"])) == (4, 2, 2)
        assert len(data.classes) == 11

    def test_colours_of_the_original_become_classes(self, tmp_path: Path) -> None:
        train = build(realdata.make("camvid", tmp_path, size=SIZE, layout="original")).train
        classes = [0, 1, 2, 3, 4, 5, 6, 255]
        for index, pair in enumerate(train.pairs):  # type: ignore[attr-defined]
            values = np.asarray(Image.open(pair.mask))
            wanted = np.full(SIZE, -1)
            for color, number in zip((*realdata.CAMVID_COLORS, (0, 0, 0)), classes, strict=True):
                wanted[(values == color).all(-1)] = number
            assert np.array_equal(train.load(index).label.numpy(), wanted)

    def test_the_original_needs_lists(self, tmp_path: Path) -> None:
        data = realdata.make("camvid", tmp_path, size=SIZE, layout="original")
        (Path(data["root"]) / "val.txt").unlink()
        with pytest.raises(DataError, match=r"it lacks val\.txt"):
            build(data)
        realdata.write_lines(Path(data["root"]) / "val.txt", ["0001TP_000100.png", "0001TP_999999"])
        with pytest.raises(DataError, match=r"0001TP_999999\.png: in val\.txt, but no such image"):
            build(data)

    def test_whole_drives_are_held_out(self, tmp_path: Path) -> None:
        held = build(realdata.make("camvid", tmp_path, size=SIZE, train=6), holdout={"fraction": 0.3})
        drives = [{stem.split("_")[0] for stem in stems(which)} for which in (held.train, held.val)]
        assert sorted(drives[0] | drives[1]) == ["0001TP", "0006R0", "Seq05VD"]
        assert not drives[0] & drives[1]


class TestCocoStuff:
    def test_raw_and_converted_masks_are_told_apart(self, tmp_path: Path) -> None:
        raw = build(realdata.make("cocostuff", tmp_path, size=SIZE))
        assert told(raw, "data.labels: read are the files *.png (raw ids)")
        for split in (raw.train, raw.val):
            for index, pair in enumerate(split.pairs):  # type: ignore[attr-defined]
                label = split.load(index).label.numpy().astype(np.uint8)
                realdata.write_grey(pair.mask.with_name(f"{pair.stem}_labelTrainIds.png"), label)
        data = {"name": "cocostuff", "root": str(tmp_path)}
        assert told(build(data), "(raw ids)")
        converted = build(data, labels="labelTrainIds")
        assert converted.train.load(1).label.equal(raw.train.load(1).label)
        for mask in tmp_path.glob("annotations/*/????????????.png"):
            mask.unlink()
        assert told(build(data), "read are the files *_labelTrainIds.png")
        with pytest.raises(ConfigError, match=r"data\.outputs: 182 needs the masks of raw ids"):
            build(data, outputs=182)

    def test_raw_ids_as_classes(self, tmp_path: Path) -> None:
        data = build(realdata.make("cocostuff", tmp_path, size=SIZE), outputs=182)
        assert (len(data.classes), len(data.palette), data.classes[11]) == (182, 182, "street sign")
        values = np.asarray(Image.open(data.train.pairs[0].mask))  # type: ignore[attr-defined]
        assert np.array_equal(data.train.load(0).label.numpy(), values)

    def test_the_small_release_is_refused_by_name(self, tmp_path: Path) -> None:
        for folder in ("images", "annotations", "imageLists"):
            (tmp_path / folder).mkdir()
        with pytest.raises(DataError, match="COCO-Stuff 10k"):
            build({"name": "cocostuff", "root": str(tmp_path)})


def test_unknown_values_are_an_error_or_void(tmp_path: Path) -> None:
    data = realdata.make("camvid", tmp_path, size=SIZE)
    mask = sorted(Path(data["root"], "trainannot").iterdir())[0]
    realdata.write_grey(mask, np.full(SIZE, 77, np.uint8))
    with pytest.raises(DataError, match=r"77: no such value in CamVid's masks of ids, .*data\.unlisted=ignore makes"):
        build(data)
    assert build(data, unlisted="ignore").train.load(0).label.unique().tolist() == [255]
    realdata.write_image(mask, SIZE)
    with pytest.raises(DataError, match=r"its pixels are of kind 'RGB'; expected CamVid's masks of ids: 0 to 10"):
        build(data)


def test_the_order_of_merged_classes_is_saved_and_is_part_of_a_recipe(tmp_path: Path) -> None:
    base = {"student": {"model": "nets.py:student"}, "train": {"steps": 1}}
    data = {"name": "cityscapes", "root": str(tmp_path), "classes": {"b": ["sky", "car"], "a": ["road"]}}
    recipe = load_recipe({**base, "data": data})
    turned = load_recipe({**base, "data": {**data, "classes": {"a": ["road"], "b": ["sky", "car"]}}})
    assert recipe_digest(recipe) != recipe_digest(turned)
    path = tmp_path / "saved.yaml"
    path.write_text(dump_recipe(recipe))
    again = load_recipe(path)
    assert again.data == recipe.data
    assert list(again.data.classes) == ["b", "a"]  # type: ignore[union-attr,arg-type]
    with pytest.raises(ConfigError, match=r"data\.classes: a class is named twice"):
        load_recipe({**base, "data": {**data, "classes": [{"a": ["sky"]}, {"a": ["road"]}]}})
    with pytest.raises(ConfigError, match=r"data\.classes: b: 'skye' is no label of Cityscapes; did you mean 'sky'"):
        load_recipe({**base, "data": {**data, "classes": {"b": ["skye"], "a": ["road"]}}})


def test_paths_of_a_saved_recipe_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"name": "voc", "root": "VOC2012", "sbd": "sbd", "unlabelled": {"root": "more"}}
    base = {"student": {"model": "nets.py:student"}, "train": {"steps": 1}}
    found = load_recipe({**base, "data": data}).data
    assert (found.root, found.sbd) == (str(tmp_path / "VOC2012"), str(tmp_path / "sbd"))  # type: ignore[union-attr]


def recipe_of(data: dict[str, Any]) -> Recipe:
    return load_recipe({"data": data, "student": {"model": "nets.py:student"}, "train": {"steps": 1}})


def test_an_evaluation_says_why_an_official_split_is_not_opened() -> None:
    with pytest.raises(RunError, match=r"'test': Cityscapes keeps its labels to itself; .*/leftImg8bit/test; there"):
        _require_split(recipe_of({"name": "cityscapes", "root": "/data"}), "test")
    camvid = {"name": "camvid", "root": "/data"}
    with pytest.raises(RunError, match=r"'test': is not opened; data\.extra=\[test\] opens it; there are val, train$"):
        _require_split(recipe_of(camvid), "test")
    _require_split(recipe_of({**camvid, "extra": ["test"]}), "test")
    with pytest.raises(RunError, match=r"'tests': no such split; did you mean 'test'"):
        _require_split(recipe_of({**camvid, "extra": ["test"]}), "tests")


def test_tune_needs_no_group_where_the_set_has_its_own() -> None:
    voc = recipe_of({"name": "voc", "root": "/data"})
    assert _holdout(voc, None, 0.3) == HoldoutSpec(fraction=0.3)
    assert _holdout(voc, "^2007", None).group == "^2007"
    with pytest.raises(ConfigError, match="--group is missing"):
        _holdout(recipe_of({"name": "folder", "root": "/data", "classes": ["a", "b"]}), None, None)


def test_colours_are_known_without_files() -> None:
    spec = SPEC.validate_python({"name": "voc", "root": "/nowhere"})
    assert palette_of(spec, ())[1] == (128, 0, 0)
    merged = {"name": "cityscapes", "root": "/nowhere", "classes": {"a": ["car"], "b": ["sky", "road"]}}
    assert palette_of(SPEC.validate_python(merged), ()) == ((0, 0, 142), (70, 130, 180))


def test_files_stay_in_memory_when_asked(tmp_path: Path) -> None:
    data = realdata.make("voc", tmp_path, size=SIZE)
    kept = build(data, in_memory=True).train
    label = kept.load(0).label
    shutil.rmtree(tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClass")
    assert kept.load(0).label.equal(label)
