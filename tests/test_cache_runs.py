"""Runs that read the teacher's maps: what they learn, what they refuse, how they go on."""

from __future__ import annotations

import csv
import gc
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densekd import files
from densekd.errors import CacheError, ConfigError, DataError, ResourceError, RunError
from densekd.runs import Run, distill, train
from densekd.runs.cache import estimate as costs
from densekd.runs.execute import dry_run, resolve
from densekd.runs.progress import Quiet
from densekd.study import compare, worker
from densekd.study.pool import Outcome
from densekd.training.signals import Interrupted
from runkit import Heard, distillation, log_without_times
from studykit import Keeping, comparable_recipe, place_with_teacher

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_with_teacher(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def root(place, tmp_path_factory):
    """Where a set of two views is."""
    folder = tmp_path_factory.mktemp("cache")
    distill(asked(place, folder), out=folder.parent / "first")
    return folder


@pytest.fixture(scope="module")
def read(root):
    """The run that built that set and read it."""
    return Run.load(root.parent / "first")


@pytest.fixture(scope="module")
def live(place, tmp_path_factory):
    """The same views under the teacher itself."""
    raw = distillation(place, place / "teacher")
    raw["train"]["views"] = {"count": 2}
    return distill(raw, out=tmp_path_factory.mktemp("live") / "run")


def asked(place, folder, **cache):
    raw = distillation(place, place / "teacher")
    raw["distill"] = {"cache": {"root": str(folder), "views": 2, "ask": False, **cache}}
    return raw


class Watching(Heard):
    """Keeps lines and counts, answers, and may send this process a signal in the middle of a build or after a step."""

    def __init__(self, answer=None, stop_build=0, stop_step=0):
        self.answer, self.stop_build, self.stop_step = answer, stop_build, stop_step
        super().__init__()
        self.counts, self.questions = [], []

    def caching(self, done, views):
        self.counts.append((done, views))
        if done == self.stop_build:
            os.kill(os.getpid(), signal.SIGINT)

    def step(self, taken, steps, result):
        if taken == self.stop_step:
            os.kill(os.getpid(), signal.SIGINT)

    def confirm(self, question):
        self.questions.append(question)
        return self.answer


def losses(run: Path) -> np.ndarray:
    with (run / "log.csv").open() as stream:
        return np.array([[float(row[name]) for name in ("loss", "cross_entropy")] for row in csv.DictReader(stream)])


def sets(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def copied(root: Path, folder: Path) -> Path:
    shutil.copytree(root, folder)
    return folder


class TestWhatIsLearned:
    def test_as_under_the_teacher_itself(self, read, live):
        found, expected = losses(read.path), losses(live.path)
        np.testing.assert_allclose(found, expected, rtol=2e-4)
        assert not np.array_equal(found, expected)  # the maps are rounded
        assert found[0, 1] == expected[0, 1]  # the first step sees the same images

    def test_in_eight_bits(self, place, live, tmp_path):
        run = distill(asked(place, tmp_path / "c", encoding="int8"), out=tmp_path / "run")
        np.testing.assert_allclose(losses(run.path), losses(live.path), rtol=5e-3)
        assert run.record.cache.encoding == "int8"

    def test_unrounded_maps_give_the_very_same_run(self, place, live, tmp_path, monkeypatch):
        """The exact maps in the place of the stored ones: nothing but the rounding differs."""
        from densekd.teacher_cache.source import CachedTeacher

        exact = {}

        def kept(fill):
            def write(self, view, index, maps, fingerprint=0):
                exact[view, index] = {tap: tapped.clone() for tap, tapped in maps.items()}
                fill(self, view, index, maps, fingerprint)

            return write

        def maps(self, batch):
            pairs = [exact[view, index] for view, index in batch.samples.tolist()]
            return {tap: torch.stack([pair[tap] for pair in pairs]) for tap in self.taps}

        from densekd.teacher_cache import MapWriter

        monkeypatch.setattr(MapWriter, "write", kept(MapWriter.write))
        monkeypatch.setattr(CachedTeacher, "maps", maps)
        monkeypatch.delattr(CachedTeacher, "submit")
        run = distill(asked(place, tmp_path / "c"), out=tmp_path / "run")
        np.testing.assert_allclose(losses(run.path), losses(live.path), rtol=1e-6)

    def test_another_seed_of_the_run_reads_the_same_set(self, place, root, tmp_path):
        before = sets(root)
        run = distill(asked(place, root), out=tmp_path / "run", seed=7)
        assert sets(root) == before
        assert run.record.cache.build_seconds == Run.load(root.parent / "first").record.cache.build_seconds

    @pytest.mark.parametrize("workers", [1, 2])
    def test_workers_change_nothing(self, place, root, read, tmp_path, workers):
        folder = tmp_path / "c"
        raw = asked(place, folder)
        raw["runtime"]["workers"] = workers
        run = distill(raw, out=tmp_path / "run")  # builds with them, and reads with them
        assert log_without_times(run.path) == log_without_times(read.path)
        assert sets(folder) == sets(root)

    def test_fewer_views_and_taps_are_read_from_a_larger_set(self, place, root, tmp_path):
        raw = asked(place, root, views=1)
        raw["terms"] = raw["terms"][:1]
        run = distill(raw, out=tmp_path / "run")
        assert len(sets(root)) == 1
        assert (run.record.cache.views, list(run.record.cache.taps)) == (1, ["output"])
        alone = distill(raw, out=tmp_path / "b", **{"distill.cache.root": str(tmp_path / "c")})
        assert log_without_times(run.path) == log_without_times(alone.path)
        assert run.record.cache.sha256 == alone.record.cache.sha256

    def test_maps_that_lost_much_are_told(self, place, root, tmp_path, monkeypatch):
        from densekd.runs.cache import stored

        monkeypatch.setattr(stored, "_MUCH", 3.5e-4)
        watch = Watching()
        distill(asked(place, root), out=tmp_path / "run", progress=watch)
        (told,) = [line for line in watch.lines if "distill.cache=null runs" in line]  # the class map errs by less
        assert told.startswith("cache: the softened maps of '2' err by 0.038% as bfloat16")

    def test_the_record_says_what_was_read(self, read, root):
        cache = read.record.cache
        assert (cache.views, cache.images, cache.taps["output"]) == (2, 10, (3, 16, 24))
        assert cache.folder == str(root / cache.sha256[:16])
        assert 0 < cache.errors["2"].mean <= cache.errors["2"].max < 0.01
        assert cache.bytes < cache.raw_bytes
        assert read.record.cost.teacher_seconds_per_step < read.record.cost.seconds_per_step
        assert any(line.startswith("cache: reading") for line in read.record.warnings)

    def test_the_teacher_is_let_go_before_the_first_step(self, place, root, tmp_path):
        gc.collect()
        others = [one for one in gc.get_objects() if type(one) is torch.nn.Conv2d]  # held: their ids stay theirs
        known, widths = {id(one) for one in others}, set()

        class Looking(Watching):
            def step(self, taken, steps, result):
                if taken == 1:
                    gc.collect()
                    own = (one for one in gc.get_objects() if type(one) is torch.nn.Conv2d and id(one) not in known)
                    widths.update(one.out_channels for one in own if one.kernel_size == (3, 3))

        distill(asked(place, root), out=tmp_path / "run", progress=Looking())
        assert widths == {6}  # the student's; the teacher's would be 10

    def test_the_student_alone_says_that_it_reads_none(self, place, root, tmp_path):
        watch = Watching()
        run = train(asked(place, root), out=tmp_path / "run", progress=watch)
        assert any(line.startswith("train: distill.cache is not used") for line in watch.lines)
        assert run.record.cache is None


class TestAsking:
    def test_nobody_can_be_asked(self, place, tmp_path):
        words = r"building it takes about [\d.]+ kB and .* for 20 views .* free\. .*distill\.cache\.ask=false"
        with pytest.raises(ConfigError, match=words):
            distill(asked(place, tmp_path / "c", ask=True), out=tmp_path / "run")
        assert not (tmp_path / "c").exists()
        assert not (tmp_path / "run").exists()

    def test_no(self, place, tmp_path):
        watch = Watching(answer=False)
        with pytest.raises(ConfigError, match="not built, as answered"):
            distill(asked(place, tmp_path / "c", ask=True), out=tmp_path / "run", progress=watch)
        assert len(watch.questions) == 1
        assert not (tmp_path / "c").exists()

    def test_yes(self, place, tmp_path):
        watch = Watching(answer=True)
        distill(asked(place, tmp_path / "c", ask=True), out=tmp_path / "run", progress=watch)
        assert watch.counts[-1] == (20, 20)
        assert len(sets(tmp_path / "c")) == 1

    def test_a_disk_without_the_room(self, place, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(costs.shutil, "disk_usage", lambda _path: usage._replace(free=1000))
        with pytest.raises(ResourceError, match=r"1 kB of disk are free: not enough"):
            distill(asked(place, tmp_path / "c"), out=tmp_path / "run")

    def test_the_estimate_is_near(self, place, root, tmp_path):
        watch = Watching(answer=False)
        with pytest.raises(ConfigError):
            distill(asked(place, tmp_path / "c", ask=True), out=tmp_path / "run", progress=watch)
        (told,) = watch.questions
        value, unit = told.partition("about ")[2].split()[:2]
        expected = Run.load(root.parent / "first").record.cache.bytes
        assert unit == "kB"
        assert 0.7 * expected < 1000 * float(value) < 1.3 * expected


class TestBuilding:
    def test_stopped_and_gone_on_with(self, place, root, read, tmp_path):
        folder, watch = tmp_path / "c", Watching(stop_build=6)
        with pytest.raises(Interrupted, match=r"6 of 20 views that were missing are stored and kept") as stop:
            distill(asked(place, folder), out=tmp_path / "run", progress=watch)
        assert stop.value.exit_code == 130
        assert not (tmp_path / "run").exists()
        watch = Watching()
        run = distill(asked(place, folder), out=tmp_path / "run", progress=watch)
        assert watch.counts[-1] == (14, 14)
        assert log_without_times(run.path) == log_without_times(read.path)
        assert sets(folder) == sets(root)

    def test_a_dry_run_builds_nothing(self, place, tmp_path):
        recipe = resolve(asked(place, tmp_path / "c"), None, {})
        parts = dry_run("distill", recipe, tmp_path / "run", resume=False, force=False, progress=Quiet())
        assert not (tmp_path / "c").exists()
        assert any(line.startswith("cache:") and "is not there yet: about" in line for line in parts.notices)


class TestStale:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"data.augment.flip": 0.25}, r"data\.augment\.flip: 0\.5 there, 0\.25 here"),
            ({"distill.cache.encoding": "int8"}, r"encoding: 'bfloat16' there, 'int8' here"),
            ({"teacher.mean": [0.5, 0.5, 0.5], "teacher.std": [0.5, 0.5, 0.5]}, r"teacher\.input"),
        ],
    )
    def test_a_changed_recipe(self, place, root, tmp_path, change, words):
        folder, watch = copied(root, tmp_path / "c"), Watching()
        distill(asked(place, folder), out=tmp_path / "run", progress=watch, **change)
        (told,) = [line for line in watch.lines if "is of other values" in line]
        assert str(folder / sets(root)[0]) in told
        assert re.search(words, told)
        assert len(sets(folder)) == 2

    def test_one_weight_of_the_teacher(self, place, root, tmp_path):
        folder, teacher, watch = copied(root, tmp_path / "c"), tmp_path / "teacher", Watching()
        shutil.copytree(place / "teacher", teacher)
        (teacher / "record.json").unlink()  # with it a changed student is refused as damaged
        weights = files.read_tensors(teacher / "student.safetensors")
        weights["0.weight"].view(-1)[0] += 1e-6
        files.write_tensors(teacher / "student.safetensors", weights)
        raw = asked(place, folder)
        raw["teacher"]["checkpoint"] = str(teacher)
        distill(raw, out=tmp_path / "run", progress=watch)
        assert any("teacher.sha256" in line for line in watch.lines)
        assert len(sets(folder)) == 2

    def test_an_image_of_another_size_in_bytes(self, place, root, tmp_path):
        folder, data, watch = copied(root, tmp_path / "c"), tmp_path / "data", Watching()
        shutil.copytree(place, data)
        self.redraw(data / "train" / "images" / "3.png", 9)
        raw = asked(place, folder)
        raw["data"]["root"] = str(data)
        distill(raw, out=tmp_path / "run", progress=watch)
        assert any("data.train.file_sizes" in line for line in watch.lines)

    def test_an_image_of_the_same_size_in_bytes_stops_the_run(self, place, root, tmp_path, monkeypatch):
        from densekd.runs.cache import key

        data = tmp_path / "data"
        shutil.copytree(place, data)
        self.redraw(data / "train" / "images" / "3.png", 9)
        sizes = key.image_size
        same = {index: sizes(*found) for index, found in self.sizes(place).items()}
        monkeypatch.setattr(key, "image_size", lambda _which, index: same[index])
        raw = asked(place, root)
        raw["data"]["root"] = str(data)
        with pytest.raises(DataError, match=r"view 0 of image '3' is not what the teacher saw"):
            distill(raw, out=tmp_path / "run")
        assert Run.load(tmp_path / "run").record.status == "failed"

    @staticmethod
    def sizes(place):
        from densekd.config import load_recipe
        from densekd.data.build import build_data

        data = build_data(load_recipe(distillation(place, place / "teacher")).data)
        return {index: (data.train, index) for index in range(len(data.train))}

    @staticmethod
    def redraw(path, seed):
        image = np.array(Image.open(path))
        image[0, 0] = np.random.default_rng(seed).integers(0, 256, 3)
        image[1:3] = np.random.default_rng(seed).integers(0, 256, image[1:3].shape)
        Image.fromarray(image).save(path)


class TestDamage:
    def test_one_byte_of_a_map(self, place, root, tmp_path):
        folder = copied(root, tmp_path / "c")
        self.change(next(folder.glob("*/*.maps")), 200)
        with pytest.raises(CacheError, match=r"damaged: the checksum of view \d of image \d does not fit"):
            distill(asked(place, folder), out=tmp_path / "run")

    def test_one_byte_of_the_index_refuses_the_set_at_once(self, place, root, tmp_path):
        folder = copied(root, tmp_path / "c")
        path = next(folder.glob("*/*.maps"))
        self.change(path, path.stat().st_size - 100)
        with pytest.raises(CacheError, match="damaged") as error:
            distill(asked(place, folder), out=tmp_path / "run")
        assert str(path) in str(error.value)
        assert not (tmp_path / "run").exists()
        path.unlink()  # as the error says
        watch = Watching()
        distill(asked(place, folder), out=tmp_path / "run", progress=watch)
        assert any(f"{path.name} removed since the set was whole" in line for line in watch.lines)

    @staticmethod
    def change(path, place):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)


class TestResume:
    def test_from_the_middle_bit_for_bit(self, place, root, read, tmp_path):
        with pytest.raises(Interrupted):
            distill(asked(place, root), out=tmp_path / "run", progress=Watching(stop_step=3))
        run = distill(asked(place, root), out=tmp_path / "run", resume=True)
        assert log_without_times(run.path) == log_without_times(read.path)
        weights = [files.read_tensors(one.path / "student.safetensors") for one in (run, read)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])

    def test_a_moved_set_is_the_same_set(self, place, root, tmp_path):
        with pytest.raises(Interrupted):
            distill(asked(place, root), out=tmp_path / "run", progress=Watching(stop_step=3))
        moved = copied(root, tmp_path / "moved")
        run = distill(asked(place, moved), out=tmp_path / "run", resume=True)
        assert run.record.status == "done"
        assert run.record.cache.folder.startswith(str(moved))

    def test_another_set_is_refused(self, place, root, tmp_path, monkeypatch):
        from densekd.runs.cache import key

        with pytest.raises(Interrupted):
            distill(asked(place, root), out=tmp_path / "run", progress=Watching(stop_step=3))
        monkeypatch.setattr(key, "probe", lambda _spec: "another version")
        with pytest.raises(RunError, match="the run began with other maps of its teacher"):
            distill(asked(place, root), out=tmp_path / "run", resume=True)
        assert len(sets(root)) == 1  # nothing was built for it


class TestStudy:
    def test_one_set_for_all_runs(self, place, tmp_path, monkeypatch):
        from densekd.study import comparison

        built = []

        def here(jobs, _places, _watch, ended=lambda _outcome: None):
            """The jobs in this process."""
            outcomes = []
            for job in jobs:
                built.append(sets(tmp_path / "c"))
                worker.run(job.request, lambda _event: None)
                outcomes.append(Outcome(job, "done"))
                ended(outcomes[-1])
            return outcomes

        monkeypatch.setattr(comparison, "run_jobs", here)
        raw = comparable_recipe(place)
        raw["train"] |= {"steps": 2, "evaluate_every": None}
        raw["distill"] = {"cache": {"root": str(tmp_path / "c"), "views": 2, "ask": False}}
        labels, watch = ["channelwise", "both", "channelwise@features"], Keeping()
        study = compare(raw, methods=labels, seeds=[1], out=tmp_path / "s", progress=watch)
        assert len(built) == 4
        assert all(one == built[0] for one in built)
        assert len(built[0]) == 1
        cache = study.record.cache
        assert set(cache.taps) == {"output", "2"}
        for name in labels:
            own = Run.load(tmp_path / "s" / f"{name}-s1").record.cache
            assert own.folder == cache.folder
            assert own.build_seconds == cache.build_seconds
        alone = Run.load(tmp_path / "s" / "none-s1")
        assert alone.record.cache is None
        assert alone.recipe.train.views.model_dump() == {"count": 2, "seed": 0}
        assert any("the student alone too" in line for line in study.record.notices)
        assert any("the teacher's maps were stored once" in line for line in study.record.notices)

        # The same call again, the maps moved: nothing is done, and no run counts as changed.
        (tmp_path / "c").rename(tmp_path / "moved")
        raw["distill"]["cache"]["root"] = str(tmp_path / "moved")
        count = len(built)
        again = compare(raw, methods=labels, seeds=[1], out=tmp_path / "s")
        assert len(built) == count
        assert again.record.cache.sha256 == cache.sha256

    def test_a_dry_run_tells_the_price(self, place, tmp_path):
        from densekd.study import prepare

        raw, watch = comparable_recipe(place), Keeping()
        raw["distill"] = {"cache": {"root": str(tmp_path / "c"), "views": 2}}
        prepare(raw, methods=["channelwise"], seeds=[0], out=tmp_path / "s", progress=watch).look()
        assert any("is not there yet: about" in line for line in watch.lines)
        assert not (tmp_path / "c").exists()
