"""Submissions: values, names, archives, refusals; ours scored by the benchmark's own script."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cityskit
from densekd.cli.app import app
from densekd.config import Recipe, load_recipe
from densekd.data.benchmarks.catalog import BENCHMARKS
from densekd.errors import ArgumentError, DataError, RunError
from densekd.predict import predict
from densekd.predict.archive import write_archive
from densekd.predict.inputs import only_listed
from densekd.predict.submission import SUBMISSIONS, submission_of, values_of
from densekd.runs import train

CITYSCAPES, ADE20K, VOC = (submission_of(name) for name in ("cityscapes", "ade20k", "voc"))


def recipe_of(data: dict[str, Any]) -> Recipe:
    return load_recipe({"data": data, "student": {"model": "smp:Unet"}, "train": {"steps": 1}})


def folder(names: tuple[str, ...]) -> Recipe:
    return recipe_of({"name": "folder", "root": "x", "classes": list(names)})


class TestValues:
    def test_cityscapes_gets_label_ids(self) -> None:
        for recipe in (folder(cityskit.NAMES), recipe_of({"name": "cityscapes", "root": "x"})):
            assert values_of(CITYSCAPES, recipe, cityskit.NAMES).tolist() == cityskit.IDS.tolist()
        picture = CITYSCAPES.picture(torch.arange(19).view(1, 19), torch.from_numpy(cityskit.IDS))
        assert picture.mode == "L"
        assert np.asarray(picture).tolist() == [cityskit.IDS.tolist()]

    def test_ade20k_begins_with_1(self) -> None:
        names = BENCHMARKS["ade20k"].classes
        values = values_of(ADE20K, recipe_of({"name": "ade20k", "root": "x"}), names)
        assert values.tolist() == list(range(1, 151))
        picture = ADE20K.picture(torch.arange(150).view(10, 15), values)
        assert picture.mode == "L"
        assert np.asarray(picture).min() == 1

    def test_voc_keeps_its_ids_and_colours(self) -> None:
        values = values_of(VOC, recipe_of({"name": "voc", "root": "x"}), BENCHMARKS["voc"].classes)
        assert values.tolist() == list(range(21))
        stream = io.BytesIO()
        VOC.picture(torch.arange(21).view(3, 7), values).save(stream, format="PNG")
        with Image.open(stream) as picture:
            assert picture.mode == "P"
            assert np.asarray(picture).tolist() == np.arange(21).reshape(3, 7).tolist()
            assert picture.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]
            assert picture.getpalette()[60:63] == [0, 64, 128]

    def test_classes_in_an_order_of_their_own_and_labels_that_are_not_scored(self) -> None:
        classes = {"way": ["road", "parking"], "roadside": ["static", "sidewalk"], "box": ["caravan"]}
        classes |= {name: [name] for name in reversed(cityskit.NAMES[2:])}
        recipe = recipe_of({"name": "cityscapes", "root": "x", "classes": classes})
        values = values_of(CITYSCAPES, recipe, tuple(classes)).tolist()
        assert values == [7, 8, 29, *reversed(cityskit.IDS[2:].tolist())]


class TestRefusals:
    def test_merged_classes(self) -> None:
        classes = {"flat": ["road", "sidewalk"], **{name: [name] for name in cityskit.NAMES[2:]}}
        recipe = recipe_of({"name": "cityscapes", "root": "x", "classes": classes})
        with pytest.raises(RunError, match=r"the run's 'flat' merges 'road' and 'sidewalk' \(data.classes\)"):
            values_of(CITYSCAPES, recipe, tuple(classes))

    def test_classes_left_out(self) -> None:
        recipe = recipe_of({"name": "voc", "root": "x", "classes": {"cat": ["cat"], "dog": ["dog"]}})
        with pytest.raises(RunError, match=r"no class for 'background', 'aeroplane'.*Pascal VOC 2012 scores"):
            values_of(VOC, recipe, ("cat", "dog"))

    def test_another_name_and_the_nearest(self) -> None:
        names = ("roads", *cityskit.NAMES[1:])
        told = r"are not the 19 of Cityscapes: it has 19, of them unknown: 'roads'.*'road'\?; without 'road'$"
        with pytest.raises(RunError, match=told):
            values_of(CITYSCAPES, folder(names), names)

    def test_another_order(self) -> None:
        names = (cityskit.NAMES[0], cityskit.NAMES[2], cityskit.NAMES[1], *cityskit.NAMES[3:])
        with pytest.raises(RunError, match=r"in their order: class 1 is 'building', expected 'sidewalk'"):
            values_of(CITYSCAPES, folder(names), names)

    def test_another_benchmark(self) -> None:
        recipe = recipe_of({"name": "voc", "root": "x"})
        with pytest.raises(RunError, match=r"not the 19 of Cityscapes: it has 21, of them unknown: 'background', "):
            values_of(CITYSCAPES, recipe, BENCHMARKS["voc"].classes)

    def test_an_unknown_submission(self) -> None:
        with pytest.raises(
            ArgumentError, match=r"'cityscape': no such benchmark.*'cityscapes'\?; there are cityscapes"
        ):
            submission_of("cityscape")

    def test_images_of_other_names(self) -> None:
        images = [Path("berlin_000000_000019_leftImg8bit.png"), Path("photo.jpg"), Path("berlin_000000_000019_x.png")]
        with pytest.raises(DataError, match=r"2 of 3 images are not named as Cityscapes names them \(CITY_") as caught:
            CITYSCAPES.files_of(images)
        assert str(caught.value).splitlines()[1:] == ["  photo.jpg", "  berlin_000000_000019_x.png"]


class TestNames:
    @pytest.mark.parametrize(
        ("submission", "image", "result"),
        [
            ("cityscapes", "berlin_000000_000019_leftImg8bit", "berlin_000000_000019_pred_labelIds"),
            ("cityscapes", "bad-honnef_000000_000019", "bad-honnef_000000_000019_pred_labelIds"),
            ("ade20k", "ADE_test_00000001", "ADE_test_00000001"),
            ("voc", "2008_000006", "VOC2012/Segmentation/comp6_test_cls/2008_000006"),
            ("voc-comp5", "2008_000006", "VOC2012/Segmentation/comp5_test_cls/2008_000006"),
        ],
    )
    def test_of_results(self, submission: str, image: str, result: str) -> None:
        path = Path("somewhere") / f"{image}.png"
        assert SUBMISSIONS[submission].files_of([path]) == {path: result}

    def test_what_a_server_will_not_take_is_said(self) -> None:
        sizes = {Path(f"{number}.png"): (1024, 2048) for number in range(1525)}
        assert CITYSCAPES.notices(sizes) == []
        assert ADE20K.notices({Path("a.jpg"): (3, 4)}) == []
        sizes[Path("0.png")] = (512, 1024)
        (line,) = CITYSCAPES.notices(sizes)
        assert "1 of 1525 images are not 2048x1024 as those of Cityscapes (0.png: 1024x512)" in line
        assert "2 images; the test set of Pascal VOC 2012 has 1456" in VOC.notices(dict(list(sizes.items())[:2]))[0]


class TestArchive:
    @pytest.mark.parametrize("name", ["results.zip", "results.tgz"])
    def test_holds_the_files_with_the_paths_a_server_wants(self, tmp_path: Path, name: str) -> None:
        results = tmp_path / "results"
        for file in ("a.png", "VOC2012/b.png"):
            (results / file).parent.mkdir(parents=True, exist_ok=True)
            (results / file).write_bytes(file.encode())
        write_archive(tmp_path / name, results)
        before = (tmp_path / name).read_bytes()
        if name.endswith("zip"):
            with zipfile.ZipFile(tmp_path / name) as packed:
                found = {entry: packed.read(entry) for entry in packed.namelist()}
            assert found == {"a.png": b"a.png", "VOC2012/b.png": b"VOC2012/b.png"}
        else:
            with tarfile.open(tmp_path / name) as tar:
                found = {entry: tar.extractfile(entry).read() for entry in tar.getnames()}
            assert found == {"results/a.png": b"a.png", "results/VOC2012/b.png": b"VOC2012/b.png"}
        write_archive(tmp_path / name, results)
        assert (tmp_path / name).read_bytes() == before


def test_only_the_listed_images(tmp_path: Path) -> None:
    names = {Path("in/2008_000006.jpg"): "2008_000006", Path("in/2008_000007.jpg"): "2008_000007"}
    (tmp_path / "test.txt").write_text("2008_000007\n")
    assert only_listed(names, tmp_path / "test.txt") == {Path("in/2008_000007.jpg"): "2008_000007"}
    (tmp_path / "test.txt").write_text("2008_000007\n2008_000009\n")
    with pytest.raises(DataError, match=r"1 of 2 listed images are not there:\n  2008_000009$"):
        only_listed(names, tmp_path / "test.txt")
    (tmp_path / "test.txt").write_text("\n")
    with pytest.raises(DataError, match=r"test\.txt: empty$"):
        only_listed(names, tmp_path / "test.txt")
    with pytest.raises(DataError, match="list of images cannot be read"):
        only_listed(names, tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("submission", "name", "result", "archive", "first"),
    [
        ("ade20k", "ADE_test_00000001", "ADE_test_00000001.png", "results.zip", 1),
        ("voc-comp5", "2008_000006", "VOC2012/Segmentation/comp5_test_cls/2008_000006.png", "results.tgz", 0),
    ],
)
def test_files_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, submission: str, name: str, result: str, archive: str, first: int
) -> None:
    benchmark = SUBMISSIONS[submission].benchmark
    ids = torch.arange(12).view(3, 4)

    class Student:
        def __init__(self, *given: Any) -> None:
            self.recipe = recipe_of({"name": benchmark.name, "root": "x"})
            self.classes, self.palette = benchmark.classes, benchmark.palette(None)

        def segment(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
            return [ids for _ in images]

    monkeypatch.setattr("densekd.predict.segment.Student", Student)
    (tmp_path / "weights").write_bytes(b"w")
    best = SimpleNamespace(step=3, miou=0.5)
    run = SimpleNamespace(
        path=tmp_path, weights=tmp_path / "weights", record=SimpleNamespace(best=best, recipe_sha256="r")
    )
    image = tmp_path / "in" / "more" / f"{name}.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(image)
    said: list[str] = []
    (made,) = predict(run, [tmp_path / "in"], tmp_path / "out", submission=submission, archive=True, said=said.append)
    assert made.mask == tmp_path / "out" / "results" / result
    assert made.overlay is None
    with Image.open(made.mask) as picture:
        assert np.asarray(picture).tolist() == (ids + first).tolist()
    assert (tmp_path / "out" / archive).is_file()
    assert json.loads((tmp_path / "out" / "submission.json").read_text())["submission"] == submission
    assert any("has 1456" in line for line in said) == (benchmark.name == "voc")


NETWORK = """
from torch import nn


def build(num_classes: int) -> nn.Module:
    return nn.Conv2d(3, num_classes, 3, padding=1)
"""
IMAGES = {
    "train": ["aachen_000000_000019", "aachen_000001_000019"],
    "val": ["lindau_000000_000019", "ulm_000003_000019"],
}


def cityscapes(root: Path) -> tuple[dict[str, Any], list[Path]]:
    """A recipe on made-up files in the layout of Cityscapes, and the label files of val."""
    draw = np.random.default_rng(0)
    (root / "net.py").write_text(NETWORK)
    truth = []
    for split, names in IMAGES.items():
        for name in names:
            cells = draw.integers(0, 34, (4, 8))
            label = cells.repeat(6, 0).repeat(6, 1)
            image = np.stack([label * 7, label * 50 % 256, 255 - label * 3], -1) + draw.integers(0, 9, (24, 48, 1))
            for kind, array, ending in (("leftImg8bit", image, "leftImg8bit"), ("gtFine", label, "gtFine_labelIds")):
                path = root / kind / split / name.split("_")[0] / f"{name}_{ending}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(path)
            if split == "val":
                truth.append(path)
    return {
        "data": {"name": "cityscapes", "root": str(root), "augment": {"scale": [1.0, 1.0]}},
        "student": {"model": f"{root}/net.py:build"},
        "train": {"steps": 30, "batch_size": 2, "optimizer": {"name": "adamw", "lr": 0.05}},
        "runtime": {"device": "cpu", "threads": 1},
    }, truth


@pytest.mark.slow
def test_a_submission_scored_by_cityscapes_own_script(tmp_path: Path) -> None:
    recipe, truth = cityscapes(tmp_path)
    run = train(recipe, out=tmp_path / "run")
    images = tmp_path / "leftImg8bit" / "val"
    ways = ["evaluation.mode=slide", "evaluation.crop=[16,20]", "evaluation.scales=[0.5,1]", "evaluation.flip=true"]
    command = CliRunner()
    found = []
    for place, changes in enumerate(([], ways)):
        out = tmp_path / f"out{place}"
        done = command.invoke(app, ["evaluate", str(run.path), *changes, "--json", "-q"])
        ours = json.loads(done.stdout)
        done = command.invoke(
            app,
            [
                "predict",
                str(run.path),
                str(images),
                *changes,
                "--submission",
                "cityscapes",
                "--archive",
                "--out",
                str(out),
            ],
        )
        assert done.exit_code == 0, done.output
        assert sorted(path.name for path in out.iterdir()) == ["results", "results.zip", "submission.json"]
        theirs = cityskit.official_scores(truth, out)
        assert ours["miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
        assert 0 < ours["miou"] < 1
        with zipfile.ZipFile(out / "results.zip") as packed:
            assert packed.namelist() == [f"{name}_pred_labelIds.png" for name in IMAGES["val"]]
        about = json.loads((out / "submission.json").read_text())
        assert about["evaluation"] == ours["evaluation"]
        assert about["images"] == 2
        found.append(ours)
    assert found[0]["miou"] == run.record.best.miou
    assert run.record.evaluation == "whole image"
    assert found[1]["evaluation"]["crop"] == [16, 20]
    assert found[1]["miou"] != found[0]["miou"]


@pytest.mark.slow
def test_a_run_that_is_evaluated_in_windows_from_the_start(tmp_path: Path) -> None:
    recipe, _ = cityscapes(tmp_path)
    recipe["train"]["steps"] = 2
    run = train(recipe, out=tmp_path / "run", evaluation__mode="slide", evaluation__crop=[16, 20])
    assert run.record.evaluation == "windows of 16x20 every 10x13"
    done = CliRunner().invoke(app, ["evaluate", str(run.path), "--json", "-q"])
    assert json.loads(done.stdout)["miou"] == run.record.best.miou
    done = CliRunner().invoke(app, ["evaluate", str(run.path), "evaluation.flip=true"])
    assert done.stderr.endswith("evaluation: windows of 16x20 every 10x13, mirrored too\n")
    images = [tmp_path / "leftImg8bit" / "val"]
    made = predict(run, images, tmp_path / "out", submission="cityscapes", overlays=True)
    assert [one.overlay.name for one in made] == [f"{name}_leftImg8bit.png" for name in IMAGES["val"]]
    assert all(one.mask.parent == tmp_path / "out" / "results" for one in made)
    with pytest.raises(RunError, match="would go into the archive too"):
        predict(run, images, tmp_path / "out", submission="cityscapes", archive=True, force=True)
    with pytest.raises(ArgumentError, match="give --submission too"):
        predict(run, images, tmp_path / "other", archive=True)
    (tmp_path / "2008_000001.png").write_bytes(made[0].image.read_bytes())
    with pytest.raises(RunError, match="not the 21 of Pascal VOC 2012"):
        predict(run, [tmp_path / "2008_000001.png"], tmp_path / "voc", submission="voc")
    assert not (tmp_path / "voc").exists()
    done = CliRunner().invoke(app, ["predict", str(run.path), str(images[0]), "train.steps=3"])
    assert done.exit_code == 2
    assert "\nerror: override train.steps: a prediction does not read it" in done.stderr
