"""The label tables of the benchmarks against facts written down here by hand, and how labels are merged."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import realdata
from densekd.data.benchmarks.ade20k import ADE20K
from densekd.data.benchmarks.benchmark import VOID, Benchmark, Encoding
from densekd.data.benchmarks.camvid import CAMVID
from densekd.data.benchmarks.catalog import BENCHMARKS
from densekd.data.benchmarks.cityscapes import CITYSCAPES, LABELS, CityscapesSpec, LabelIdsReader
from densekd.data.benchmarks.cocostuff import COCOSTUFF, CocoStuffSpec
from densekd.data.benchmarks.voc import VOC
from densekd.data.kinds import DATA_NAMES
from densekd.data.masks import MaskReader
from densekd.errors import ConfigError, DataError

TRAIN_OF = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
TRAIN_OF |= {28: 15, 31: 16, 32: 17, 33: 18}


def read(reader: MaskReader, values: Any) -> list[int]:
    """What a reader makes of values in a file."""
    array = np.asarray(values, np.uint8)
    if array.ndim == 2:
        return reader._from_colors(array[None], Path("a.png"))[0].tolist()
    return reader._from_ids(array[None], Path("a.png"))[0].tolist()


def test_every_benchmark_is_a_kind_of_data() -> None:
    assert ("folder", *BENCHMARKS, "scenes") == DATA_NAMES
    assert {name: len(one.classes) for name, one in BENCHMARKS.items()} == {
        "cityscapes": 19,
        "voc": 21,
        "ade20k": 150,
        "camvid": 11,
        "cocostuff": 171,
    }
    assert {name: tuple(one.counts[part] for part in one.parts) for name, one in BENCHMARKS.items()} == {
        "cityscapes": (2975, 500),
        "voc": (10582, 1449),
        "ade20k": (20210, 2000),
        "camvid": (367, 101, 233),
        "cocostuff": (118287, 5000),
    }
    assert CITYSCAPES.counts["trainval"] == 2975 + 500
    assert (VOC.counts["train"], VOC.counts["trainval"]) == (1464, 1464 + 1449)


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_names_differ_and_have_a_colour(benchmark: Benchmark) -> None:
    assert len(set(benchmark.classes)) == len(benchmark.classes) == len(benchmark.palette(None))
    assert all(name == name.strip() and name for name in benchmark.labels)
    assert all(len(color) == 3 and 0 <= min(color) <= max(color) <= 255 for color in benchmark.palette(None))
    for encoding in benchmark.encodings:
        assert len(set(encoding.names.values())) == len(encoding.names)
        assert tuple(encoding.classes) == benchmark.classes
        merged = [label for labels in encoding.classes.values() for label in labels]
        assert len(set(merged)) == len(merged)
        assert set(merged) <= set(encoding.names.values())
        assert encoding.reader(None, "error").classes == benchmark.classes


class TestCityscapes:
    def test_the_table_is_the_official_one(self) -> None:
        ours = [(label.name, label.label_id, label.train_id, label.color) for label in LABELS]
        theirs = [(one.name, one.id, one.trainId, one.color) for one in official_labels if one.id >= 0]
        assert ours == theirs
        assert {label.label_id: label.train_id for label in LABELS if label.train_id != 255} == TRAIN_OF

    def test_label_ids_become_train_ids_through_one_table(self) -> None:
        reader = CITYSCAPES.encodings[0].reader(None, "error")
        assert read(reader, range(34)) == [TRAIN_OF.get(value, VOID) for value in range(34)]
        # In turn, 7 would become 0 and then, as an id 0, void.
        assert read(reader, [7, 0, 7]) == [0, VOID, 0]

    def test_train_ids_stay(self) -> None:
        reader = CITYSCAPES.encodings[1].reader(None, "error")
        assert read(reader, [*range(19), 255]) == [*range(19), VOID]

    def test_one_kind_read_as_the_other_is_refused(self) -> None:
        ids, train_ids = (encoding.reader(None, "error") for encoding in CITYSCAPES.encodings)
        with pytest.raises(DataError, match=r"255: no such value in Cityscapes labelIds.*holds train ids"):
            read(ids, [0, 5, 255])
        with pytest.raises(DataError, match=r"26, 33: no such value in Cityscapes labelTrainIds.*holds label ids"):
            read(train_ids, [7, 26, 33])
        guessed = CITYSCAPES.encodings[0].reader(None, "error", LabelIdsReader)
        with pytest.raises(DataError, match=r"no value above 18: .*data\.labels=labelIds reads it"):
            read(guessed, [0, 13, 18])
        assert read(guessed, [13, 19]) == [4, 6]
        assert read(pickle.loads(pickle.dumps(guessed)), [33]) == [18]

    def test_submissions_hold_label_ids(self) -> None:
        assert CITYSCAPES.values() == tuple(TRAIN_OF)
        assert CITYSCAPES.values({"ground": ("parking", "road"), "car": ("car",)}) == (9, 26)

    def test_any_of_the_34_labels_is_merged_and_the_others_are_void(self) -> None:
        classes = {"road": ("road", "parking"), "vehicle": ("car", "bus", "caravan")}
        ids, train_ids = CITYSCAPES.encodings
        reader = ids.reader(classes, "error")
        assert reader.classes == ("road", "vehicle")
        assert read(reader, [7, 9, 26, 28, 29, 8, 0, 11]) == [0, 0, 1, 1, 1, VOID, VOID, VOID]
        with pytest.raises(ConfigError, match=r"data\.classes: 'parking' is no label of Cityscapes labelTrainIds"):
            train_ids.reader(classes, "error")
        assert CITYSCAPES.palette(classes) == ((128, 64, 128), (0, 0, 142))

    def test_merged_classes_have_different_colours_and_none_is_black(self) -> None:
        palette = CITYSCAPES.palette({"a": ("static",), "b": ("pole",), "c": ("polegroup",), "d": ("car",)})
        assert len(set(palette)) == 4
        assert (0, 0, 0) not in palette
        assert (palette[1], palette[3]) == ((153, 153, 153), (0, 0, 142))


class TestVoc:
    def test_the_palette_follows_the_bits(self) -> None:
        rule = realdata.voc_palette()
        assert [value for color in VOC.palette(None) for value in color] == rule[: 3 * 21]
        colors = dict(enumerate(VOC.palette(None)))
        assert (colors[0], colors[1], colors[2]) == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
        assert (colors[15], colors[20]) == ((192, 128, 128), (0, 64, 128))

    def test_ids_stay_and_255_is_void(self) -> None:
        reader = VOC.encodings[0].reader(None, "error")
        assert read(reader, [0, 15, 20, 255]) == [0, 15, 20, VOID]
        assert (VOC.classes[0], VOC.classes[15], VOC.classes[20]) == ("background", "person", "tvmonitor")
        assert VOC.values() == tuple(range(21))
        with pytest.raises(DataError, match=r"21: no such value in masks of Pascal VOC"):
            read(reader, [21])

    def test_a_palette_png_is_read_by_its_indices(self, tmp_path: Path) -> None:
        path = realdata.write_indexed(tmp_path / "a.png", np.array([[0, 9, 12, 255]], np.uint8))
        assert np.asarray(Image.open(path).convert("L")).tolist() != [[0, 9, 12, 255]]
        assert VOC.encodings[0].reader(None, "error").read(path).tolist() == [[0, 9, 12, 255]]


class TestAde20k:
    def test_the_step_down_is_made_once(self) -> None:
        reader = ADE20K.encodings[0].reader(None, "error")
        assert read(reader, range(151)) == [VOID, *range(150)]
        with pytest.raises(DataError, match=r"151, 255: no such value in masks of SceneParse150"):
            read(reader, [151, 255])
        assert ADE20K.values() == tuple(range(1, 151))

    def test_names_and_colours_at_well_known_places(self) -> None:
        known = {1: "wall", 2: "building", 3: "sky", 4: "floor", 5: "tree", 13: "person", 21: "car", 57: "pool table"}
        known |= {76: "swivel chair", 90: "television", 100: "buffet", 127: "animal", 137: "traffic light", 150: "flag"}
        assert {number: ADE20K.classes[number - 1] for number in known} == known
        palette = ADE20K.palette(None)
        assert (palette[0], palette[2], palette[149]) == ((120, 120, 120), (6, 230, 230), (92, 0, 255))
        assert palette[6] == palette[48] == (140, 140, 140)
        assert len(set(palette)) == 149


class TestCamvid:
    def test_eleven_is_void(self) -> None:
        reader = CAMVID.encodings[0].reader(None, "error")
        assert read(reader, [*range(12), 255]) == [*range(11), VOID, VOID]
        with pytest.raises(DataError, match=r"12: no such value in CamVid's masks of ids"):
            read(reader, [12])

    def test_32_colours_become_11_classes(self) -> None:
        reader = CAMVID.encodings[1].reader(None, "error")
        assert len(CAMVID.encodings[1].names) == 32
        groups = {
            "Sky": [(128, 128, 128)],
            "Building": [(128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128)],
            "Pole": [(192, 192, 128), (0, 0, 64)],
            "Road": [(128, 64, 128), (128, 0, 192), (192, 0, 64)],
            "Pavement": [(0, 0, 192), (64, 192, 128), (128, 128, 192)],
            "Tree": [(128, 128, 0), (192, 192, 0)],
            "SignSymbol": [(192, 128, 128), (128, 128, 64), (0, 64, 64)],
            "Fence": [(64, 64, 128)],
            "Car": [(64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)],
            "Pedestrian": [(64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)],
            "Bicyclist": [(0, 128, 192), (192, 0, 192)],
        }
        assert sum(map(len, groups.values())) == 31
        for place, (name, colors) in enumerate(groups.items()):
            assert CAMVID.classes[place] == name
            assert read(reader, colors) == [place] * len(colors)
        assert read(reader, [(0, 0, 0)]) == [VOID]
        with pytest.raises(DataError, match=r"\[1, 2, 3\]: no such value in CamVid's masks of colours"):
            read(reader, [(1, 2, 3)])

    def test_labels_of_one_release_are_not_looked_for_in_the_other(self) -> None:
        assert read(CAMVID.encodings[1].reader({"a": ("Car",), "b": ("Train",)}, "error"), [(192, 64, 128)]) == [1]
        with pytest.raises(ConfigError, match=r"'Train' is no label of CamVid's masks of ids"):
            CAMVID.encodings[0].reader({"a": ("Car",), "b": ("Train",)}, "error")

    def test_colours_of_segnet(self) -> None:
        assert dict(zip(CAMVID.classes, CAMVID.palette(None), strict=True)) == {
            "Sky": (128, 128, 128),
            "Building": (128, 0, 0),
            "Pole": (192, 192, 128),
            "Road": (128, 64, 128),
            "Pavement": (60, 40, 222),
            "Tree": (128, 128, 0),
            "SignSymbol": (192, 128, 128),
            "Fence": (64, 64, 128),
            "Car": (64, 0, 128),
            "Pedestrian": (64, 64, 0),
            "Bicyclist": (0, 128, 192),
        }


class TestCocoStuff:
    def test_absent_ids_are_taken_out(self) -> None:
        raw, train_ids = (encoding.reader(None, "error") for encoding in COCOSTUFF.encodings)
        absent = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
        held = [value for value in range(182) if value not in absent]
        assert read(raw, held) == [value - sum(gone < value for gone in absent) for value in held]
        anchors = {10: 10, 12: 11, 79: 70, 80: 71, 89: 79, 91: 80, 181: 170, 255: VOID}
        assert read(raw, list(anchors)) == list(anchors.values())
        assert read(train_ids, [*range(171), 255]) == [*range(171), VOID]
        for value in absent:
            with pytest.raises(DataError, match=f"{value}: no such value in COCO-Stuff's masks of raw ids"):
                read(raw, [value])
        with pytest.raises(DataError, match=r"171, 181: no such value in COCO-Stuff's labelTrainIds"):
            read(train_ids, [171, 181])

    def test_names_at_well_known_places(self) -> None:
        known = {0: "person", 10: "fire hydrant", 11: "stop sign", 79: "toothbrush", 80: "banner", 170: "wood"}
        known |= {15: "cat", 56: "chair", 57: "couch", 60: "dining table", 71: "sink", 94: "clouds"}
        known |= {112: "grass", 137: "road", 145: "sky-other", 146: "skyscraper", 157: "tree"}
        assert {place: COCOSTUFF.classes[place] for place in known} == known
        assert "hair brush" not in COCOSTUFF.classes
        assert len(set(COCOSTUFF.palette(None))) == 171

    def test_raw_ids_can_be_the_classes(self) -> None:
        spec = CocoStuffSpec(root=".", outputs=182)
        assert spec.wanted_classes is not None
        assert [list(spec.wanted_classes)[value] for value in (11, 90, 91, 181)] == [
            "street sign",
            "hair brush",
            "banner",
            "wood",
        ]
        assert len(COCOSTUFF.palette(spec.wanted_classes)) == 182
        with pytest.raises(ValueError, match=r"outputs: 182 and classes are both given"):
            CocoStuffSpec(root=".", outputs=182, classes={"a": ["cat"], "b": ["dog"]})


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ({"a": ["road"]}, "expected two classes or more"),
        ({"a": ["road"], "b": []}, "b: no label; list the official names"),
        ({"a": ["road"], "b": ["rode"]}, "b: 'rode' is no label of Cityscapes; did you mean 'road'"),
        ({"a": ["road"], "b": ["car", "road"]}, "'road' is in two classes, 'a' and 'b'"),
        ({"a": ["road"], "ignore": ["sky"]}, "'ignore' cannot be a class"),
    ],
)
def test_what_is_no_merging_is_refused_with_the_key(classes: dict[str, list[str]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CityscapesSpec(root=".", classes=classes)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_value_has_the_class_of_its_label_or_is_void(data: st.DataObject) -> None:
    encoding: Encoding = data.draw(st.sampled_from([one for b in BENCHMARKS.values() for one in b.encodings]))
    names = list(encoding.names.values())
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=2, max_size=12, unique=True))
    cut = data.draw(st.integers(1, len(chosen) - 1))
    reader = encoding.reader({"one": tuple(chosen[:cut]), "two": tuple(chosen[cut:])}, "error")
    wanted = [0 if name in chosen[:cut] else 1 if name in chosen else VOID for name in names]
    assert read(reader, list(encoding.names)) == wanted
    if encoding.void:
        assert set(read(reader, list(encoding.void))) == {VOID}
