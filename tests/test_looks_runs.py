"""What whole runs keep to be looked at, and that it changes nothing of them."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import yaml
from PIL import Image

import densekd.runs.looks as run_looks
from densekd import files
from densekd.looks.records import ImagesFile, MapsFile, PicturesFile, besides
from densekd.report.looks import run_sections, study_sections
from densekd.runs import Run, distill, train
from densekd.runs.progress import Quiet
from densekd.study.looks import first_pair, keep_beside, pair_among
from densekd.training.signals import Interrupted
from runkit import distillation, log_without_times, make_place, recipe

pytestmark = pytest.mark.slow

KEPT = {"images.json", "pictures.json", "pictures.safetensors", "maps.json", "maps.safetensors"}
LOOKS = {"report": {"page": False, "images": 6, "channels": 4}}
NO_LOOKS = {"report": {"page": False, "images": 0, "channels": 0}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = make_place(tmp_path_factory.mktemp("data"))
    val = root / "val"
    for kind in ("images", "masks"):  # a name that would be markup
        (val / kind / "3.png").rename(val / kind / "3<b>&'\"x.png")
    asked = recipe(root, student={"model": f"{root}/nets.py:teacher"})
    train(asked, out=root / "teacher", train__steps=12, train__evaluate_every=None)
    return root


def asked(place, **changes):
    return {**distillation(place, place / "teacher"), **LOOKS, **changes}


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    return distill(asked(place), out=tmp_path_factory.mktemp("whole") / "distilled")


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory):
    return train({**asked(place), "teacher": None, "terms": []}, out=tmp_path_factory.mktemp("alone") / "alone")


def kept(run: Run, name: str, kind):
    return kind.model_validate(files.read_json(run.path / "looks" / name))


def lines(run: Run) -> list[str]:
    return [line for line in run.record.warnings if line.startswith("looks:")]


class TestARun:
    def test_keeps_pictures_and_maps(self, whole):
        assert {path.name for path in (whole.path / "looks").iterdir()} == KEPT
        assert lines(whole) == []
        pictures, maps = kept(whole, "pictures.json", PicturesFile), kept(whole, "maps.json", MapsFile)
        assert sorted(row.index for row in pictures.rows) == [0, 1, 2, 3]
        assert set(pictures.networks) == {"teacher", "student"}
        assert [len(term.channels) for term in maps.terms] == [3, 10]
        assert maps.terms[0].channels == ["sky", "road", "tree"]
        assert [len(term.shown) for term in maps.terms] == [3, 4]
        for term in maps.terms:
            assert term.temperature == 4.0
            assert all(value >= 0 for values in term.kl.values() for value in values)
            assert all(value <= term.log_positions + 1e-4 for values in term.entropy.values() for value in values)

    def test_scores_of_images_are_those_of_the_pictures(self, whole):
        images = kept(whole, "images.json", ImagesFile)
        assert images.final.step == 6
        assert images.best.step == whole.record.best.step
        scores = {image.name: image for image in images.final.images}
        for row in kept(whole, "pictures.json", PicturesFile).rows:
            assert row.answers["student"].miou == pytest.approx(scores[row.name].miou)
            assert row.answers["student"].accuracy == pytest.approx(scores[row.name].accuracy)

    def test_is_the_same_as_without_bit_for_bit(self, place, whole, tmp_path):
        plain = distill(asked(place, **NO_LOOKS), out=tmp_path / "run")
        assert {path.name for path in (plain.path / "looks").iterdir()} == {"images.json"}
        assert log_without_times(plain.path) == log_without_times(whole.path)
        for name in ("student", "adapters", "average", "optimizer"):
            files_of = [run.path / "checkpoints" / "step-00000006" / f"{name}.safetensors" for run in (plain, whole)]
            assert files_of[0].read_bytes() == files_of[1].read_bytes()
        assert plain.record.recipe_sha256 == whole.record.recipe_sha256

    def test_resumed_keeps_the_same(self, place, whole, tmp_path):
        class Stop(Quiet):
            def step(self, taken, steps, result):
                if taken == 3:
                    os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(Interrupted):
            distill(asked(place), out=tmp_path / "run", progress=Stop())
        resumed = distill(asked(place), out=tmp_path / "run", resume=True)
        for name in KEPT:
            assert (resumed.path / "looks" / name).read_bytes() == (whole.path / "looks" / name).read_bytes(), name

    def test_alone_has_pictures_and_no_maps(self, alone):
        assert lines(alone) == []
        assert {path.name for path in (alone.path / "looks").iterdir()} == KEPT - {"maps.json", "maps.safetensors"}
        assert set(kept(alone, "pictures.json", PicturesFile).networks) == {"student"}

    def test_what_fails_is_a_line_and_the_run_is_done(self, place, tmp_path, monkeypatch):
        def broken(*_):
            raise RuntimeError("no\nroom")

        monkeypatch.setattr(run_looks, "picture_files", broken)
        run = distill(asked(place, train={**asked(place)["train"], "steps": 2}), out=tmp_path / "run")
        assert run.record.status == "done"
        assert lines(run) == ["looks: pictures could not be kept, and the run is done without: RuntimeError: no room"]
        assert {path.name for path in (run.path / "looks").iterdir()} == {
            "images.json",
            "maps.json",
            "maps.safetensors",
        }

    def test_another_teacher_at_the_end_is_not_shown(self, place, tmp_path):
        teacher = tmp_path / "teacher"
        shutil.copytree(place / "teacher", teacher)
        (teacher / "record.json").unlink()  # with it a changed student is refused as damaged

        class Changing(Quiet):
            def step(self, taken, steps, result):
                tensors = files.read_tensors(teacher / "student.safetensors")
                files.write_tensors(teacher / "student.safetensors", {name: 2 * one for name, one in tensors.items()})

        changed = {**asked(place)["teacher"], "checkpoint": str(teacher)}
        run = distill(asked(place, teacher=changed), out=tmp_path / "run", progress=Changing())
        assert run.record.status == "done"
        assert any("weights are other ones than when the run began" in line for line in lines(run))
        assert set(kept(run, "pictures.json", PicturesFile).networks) == {"student"}


SHORT = {"steps": 2, "batch_size": 2, "optimizer": {"name": "adamw", "lr": 0.01}}
KINDS = {
    "windows": {"evaluation": {"mode": "slide", "crop": [8, 8]}},
    "views": {"evaluation": {"scales": [0.5, 1.0], "flip": True}},
    "own-size": {"teacher": {"size": [8, 12], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}},
    "class-map": {"teacher": {"classes": {"sky": "road", "road": ["sky", "tree"], "tree": []}}},
    "pixelwise": {"terms": [{"method": "pixelwise", "student": "output", "teacher": "output"}]},
    "channels-differ": {"terms": [{"method": "pairwise", "student": "2", "teacher": "2"}]},
    "cache": {"distill": {"cache": {"views": 1, "ask": False}}, "data": {"augment": {}}},
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_runs(place, tmp_path, name):
    made = asked(place, train=SHORT)
    for key, value in KINDS[name].items():
        made[key] = {**made.get(key, {}), **value} if isinstance(value, dict) else value
    if name == "class-map":
        made["terms"] = made["terms"][:1]
    if name == "cache":
        made["distill"]["cache"]["root"] = str(tmp_path / "cache")
    run = distill(made, out=tmp_path / "run")
    assert run.record.status == "done"
    assert lines(run) == []
    maps = kept(run, "maps.json", MapsFile)
    if name == "channels-differ":
        assert maps.terms == []
        assert "no channel of one stands for a channel of the other" in maps.notes[0]
    if name == "windows":
        assert maps.terms[0].size == (8, 8)
        assert "of each the middle 8x8" in maps.rule
    if name == "class-map":
        assert maps.terms[0].channels == ["sky", "road"]
    if name == "pixelwise":
        assert not maps.terms[0].softens
    assert set(kept(run, "pictures.json", PicturesFile).networks) == {"teacher", "student"}
    assert all(section.body for section in run_sections(run.path))


def test_a_binary_task(place, tmp_path):
    root = make_place(tmp_path / "binary", classes=2)
    shared = {
        "data": {"name": "folder", "root": str(root), "classes": ["back", "crack"]},
        "task": {"binary": True},
        "train": SHORT,
        **LOOKS,
    }
    teacher = {"model": f"{root}/nets.py:teacher"}
    train({**recipe(root), **shared, "student": teacher}, out=root / "teacher")
    run = distill({**distillation(root, root / "teacher"), **shared}, out=tmp_path / "run")
    assert lines(run) == []
    assert kept(run, "maps.json", MapsFile).terms[0].channels == ["crack against back"]
    assert kept(run, "pictures.json", PicturesFile).classes == ["back", "crack"]


@pytest.fixture(scope="module")
def pair(alone, whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    for run in (alone, whole):
        shutil.copytree(run.path, folder / run.path.name)
    runs = tuple(Run.load(folder / name, trust=True) for name in ("alone", "distilled"))
    assert keep_beside(*runs, lambda _done, _total: None) == []
    return runs


class TestBeside:
    def test_images_are_those_where_the_best_students_differ_most(self, pair):
        [beside] = besides(pair[1].path)
        found = PicturesFile.model_validate(files.read_json(beside / "pictures.json"))
        assert list(found.networks) == ["teacher", "alone", "distilled"]
        assert found.runs == {"alone": "alone", "distilled": "distilled"}
        gains = [row.answers["distilled"].miou - row.answers["alone"].miou for row in found.rows]
        scores = [kept(run, "images.json", ImagesFile).best.images for run in pair]
        expected = [after.miou - before.miou for before, after in zip(*scores, strict=True)]
        assert max(expected) == pytest.approx(gains[0])
        assert [expected[row.index] for row in found.rows] == pytest.approx(gains)

    def test_maps_are_of_terms_without_an_adapter(self, pair):
        found = MapsFile.model_validate(files.read_json(besides(pair[1].path)[0] / "maps.json"))
        assert [term.name for term in found.terms] == ["channelwise:output"]
        assert list(found.terms[0].kl) == ["alone", "distilled"]
        assert "the student alone has no adapter" in found.notes[0]

    def test_it_is_made_once_for_the_same_students(self, pair):
        path = besides(pair[1].path)[0] / "pictures.json"
        before = path.stat().st_mtime_ns
        assert keep_beside(*pair, lambda _done, _total: None) == []
        assert path.stat().st_mtime_ns == before

    def test_what_cannot_be_compared_is_a_line(self, pair, tmp_path):
        shutil.copytree(pair[0].path, tmp_path / "alone")
        (tmp_path / "alone" / "looks" / "images.json").unlink()
        shutil.copytree(pair[1].path, tmp_path / "distilled")
        shutil.rmtree(tmp_path / "distilled" / "looks" / "beside")
        found = keep_beside(Run(tmp_path / "alone"), Run(tmp_path / "distilled"), lambda _done, _total: None)
        assert len(found) == 1
        assert "keeps no scores of single images" in found[0]

    def test_which_runs_are_a_pair(self, pair, tmp_path):
        alone, distilled = pair
        assert pair_among([distilled, alone]) == pair
        assert pair_among([alone]) is None
        shutil.copytree(alone.path, tmp_path / "other")
        recipe = tmp_path / "other" / "recipe.yaml"
        text = yaml.safe_load(recipe.read_text())
        text["student"]["options"]["psp_out_channels"] = 48
        recipe.write_text(yaml.safe_dump(text))
        assert pair_among([Run(tmp_path / "other"), distilled, alone]) == pair
        assert pair_among([Run(tmp_path / "other"), distilled]) is None
        recipe.unlink()
        assert pair_among([Run(tmp_path / "other"), distilled, alone]) == pair
        assert first_pair({"none": {0: alone, 2: alone}, "x": {1: distilled}, "y": {2: distilled}}) == pair
        assert first_pair({"none": {0: alone}, "x": {1: distilled}}) is None

    def test_the_page_shows_it_where_both_runs_are(self, pair):
        paths = {run.path.name: run.path for run in pair}
        titles = [section.title for section in study_sections(pair[0].path.parent, paths)]
        assert titles == ["Where distillation changed most", "What distillation works on"]
        other = study_sections(pair[0].path.parent, {"distilled": pair[1].path})
        assert "no pictures of these runs" in str(other[0].body).lower()

    def test_two_students_alone_are_shown_each_on_its_page(self, pair, place, tmp_path):
        alone, distilled = (shutil.copytree(run.path, tmp_path / run.path.name) for run in pair)
        again = {**asked(place), "teacher": None, "terms": [], "seed": 1}
        other = train(again, out=tmp_path / "other")
        before = (besides(distilled)[0] / "pictures.json").read_bytes()
        assert keep_beside(other, Run(distilled, trust=True), lambda _done, _total: None) == []
        assert len(besides(distilled)) == 2

        def shown(*paths):
            return str(study_sections(tmp_path, {path.name: path for path in (*paths, distilled)})[0].body)

        assert "that of alone," in shown(alone)
        assert "that of other," in shown(other.path)
        assert before in [(folder / "pictures.json").read_bytes() for folder in besides(distilled)]
        record = json.loads((alone / "record.json").read_text())
        (alone / "record.json").write_text(json.dumps({**record, "student_sha256": "of another training"}))
        assert "no pictures of these runs" in shown(alone).lower()

    def test_a_single_one_as_an_earlier_version_kept_it(self, pair, tmp_path):
        alone, distilled = (shutil.copytree(run.path, tmp_path / run.path.name) for run in pair)
        single = besides(distilled)[0].rename(tmp_path / "single")
        shutil.rmtree(distilled / "looks" / "beside")
        single.rename(distilled / "looks" / "beside")
        assert besides(distilled) == [distilled / "looks" / "beside"]
        assert keep_beside(Run(alone), Run(distilled), lambda _done, _total: None) == []
        assert "that of alone," in str(study_sections(tmp_path, {"a": alone, "d": distilled})[0].body)


class TestThePage:
    def test_names_are_escaped_and_every_picture_has_words(self, whole):
        body = "".join(str(section.body) for section in run_sections(whole.path))
        assert "3<b>" not in body
        assert "3&lt;b&gt;&amp;" in body
        assert body.count("<img ") == body.count(' alt="')
        assert ' alt=""' not in body

    def test_a_run_without_looks_says_so(self, tmp_path):
        assert "kept no pictures" in str(run_sections(tmp_path)[0].body)

    def test_damage_is_told_and_the_rest_is_shown(self, whole, tmp_path):
        shutil.copytree(whole.path / "looks", tmp_path / "looks")
        (tmp_path / "looks" / "pictures.safetensors").write_bytes(b"x")
        first, second = run_sections(tmp_path)
        assert "cannot be read" in str(first.body)
        assert "<img " in str(second.body)
        changed = json.loads((tmp_path / "looks" / "maps.json").read_text())
        (tmp_path / "looks" / "maps.json").write_text(json.dumps({**changed, "terms": 3}))
        assert "not as this version writes it: terms" in str(run_sections(tmp_path)[1].body)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_two_processes_keep_it_once(place, whole, tmp_path):
    from scalekit import launch

    made = asked(place, train={**asked(place)["train"], "batch_size": 1})

    def work(rank: int) -> None:
        distill(made, out=tmp_path / "run")

    launched = launch(work, tmp_path / "io")
    assert launched.err() == ""
    run = Run.load(tmp_path / "run")
    assert run.record.status == "done"
    assert lines(run) == []
    assert {path.name for path in (run.path / "looks").iterdir()} == KEPT
    images = kept(run, "images.json", ImagesFile).final.images
    assert all(image.miou is not None and 0 <= image.miou <= 1 for image in images)
    rows = kept(run, "pictures.json", PicturesFile).rows
    assert {row.name: row.answers["student"].miou for row in rows} == pytest.approx(
        {image.name: image.miou for image in images}
    )


def test_pictures_of_the_page_can_be_opened(whole):
    import base64
    import io
    import re

    body = "".join(str(section.body) for section in run_sections(whole.path))
    found = re.findall(r'src="data:image/webp;base64,([^"]+)" width="(\d+)" height="(\d+)"', body)
    assert len(found) > 10
    for data, width, height in found:
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (int(width), int(height))
