"""Holding out a part of the training set: the validation files are not opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from densekd.config import load_recipe
from densekd.data.build import DataBundle, build_data
from densekd.data.specs import FolderSpec, ScenesDataSpec
from densekd.errors import DataError
from runkit import make_place


def build(root: Path, **options: Any) -> DataBundle:
    return build_data(FolderSpec(root=str(root), classes=("a", "b", "c"), **options))


def names(data: Any) -> set[str]:
    return {data.name_of(index) for index in range(len(data))}


def test_groups_of_the_training_set_take_the_place_of_the_validation_set(tmp_path: Path) -> None:
    root = make_place(tmp_path, train=10)
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"no picture")
    data = build(root, holdout={"group": r"\d", "fraction": 0.3}, extra={"more": {"split": "val"}})
    assert (len(data.train), len(data.val), data.extra) == (7, 3, {})
    assert names(data.train) | names(data.val) == {str(number) for number in range(10)}
    assert any("3 of 10 images" in line and "validation set is not opened" in line for line in data.notices)
    with pytest.raises(DataError, match="val"):
        build(root)


def test_a_recipe_that_splits_by_group_holds_out_by_the_same_groups(tmp_path: Path) -> None:
    root = make_place(tmp_path, train=10)
    split = {"group": r"\d", "fraction": 0.3}
    usual = build(root, auto_split=split)
    data = build(root, auto_split=split, holdout={"fraction": 0.3})
    assert names(data.train) | names(data.val) == names(usual.train)
    assert not names(data.train) & names(data.val)
    with pytest.raises(DataError, match=r"data\.holdout\.group: 'x' does not match 10 of 10 file stems"):
        build(root, holdout={"group": "x"})


def test_a_group_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"holdout\.group is missing: give a regular expression that finds the group"):
        FolderSpec(root=".", holdout={})


def test_scenes_hold_out_their_last_training_scenes() -> None:
    usual = build_data(ScenesDataSpec(train_count=10, val_count=4, size=(48, 64)))
    data = build_data(ScenesDataSpec(train_count=10, val_count=4, size=(48, 64), holdout={"fraction": 0.3}))
    assert (len(data.train), len(data.val)) == (7, 3)
    assert data.val.load(0).image.equal(usual.train.load(7).image)
    assert data.val.name_of(2) == usual.train.name_of(9)
    assert names(data.train) | names(data.val) == names(usual.train)
    assert data.notices == ["data.holdout: training on 7 scenes, scored on 3 of the training set"]
    with pytest.raises(ValueError, match="at least two training scenes"):
        ScenesDataSpec(train_count=1, holdout={})
    with pytest.raises(ValueError, match=r"holdout\.group: drawn scenes have no groups"):
        ScenesDataSpec(train_count=10, holdout={"group": "^a"})


def test_a_recipe_without_it_means_what_it_did() -> None:
    assert load_recipe("demo").data.holdout is None
