"""Trackers are told what `log.csv` and `record.json` hold, and change nothing else of a run."""

from __future__ import annotations

import csv
import importlib.util
import json
import struct
import threading
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from densekd import files
from densekd.config import dump_recipe, load_recipe, recipe_digest
from densekd.data.build import build_data
from densekd.errors import ConfigError
from densekd.pictures import colourise
from densekd.records import RunRecord, Scores, TrackerRecord
from densekd.runs import Run, distill, train
from densekd.runs.folder import check_folder, start_folder
from densekd.runs.progress import Quiet
from densekd.runs.tracking import check, kinds, require_trackers
from densekd.runs.tracking.tracking import Tracking
from densekd.runs.tracking.values import of_record, of_row, of_scores
from densekd.study import compare
from densekd.study.tasks import digest_of
from densekd.training.loop import Loop
from densekd.training.signals import Interrupted
from runkit import distillation, log_without_times, make_place, recipe

UNSEEN = {"page": False, "images": 0, "channels": 0}
INSTALL = r'pip install "densekd\[track\]"'


def asked(**track):
    raw = {"data": {"name": "scenes"}, "student": {"model": "smp:PSPNet"}, "train": {"steps": 1}}
    return load_recipe({**raw, **track})


class TestTheRecipe:
    def test_off_by_default(self):
        assert asked().track.to == ()

    @pytest.mark.parametrize("short", ["tensorboard", ["tensorboard"], {"to": "tensorboard"}, {"to": ["tensorboard"]}])
    def test_short_forms(self, short):
        assert asked(track=short).track.to == ("tensorboard",)

    def test_it_is_no_part_of_what_a_run_is(self):
        plain, told = asked(), asked(track={"to": ["wandb", "tensorboard"], "images": 1, "name": "a"})
        assert recipe_digest(plain) == recipe_digest(told)
        assert digest_of(plain) == digest_of(told)

    def test_a_recipe_saved_before_there_were_trackers_is_the_same(self, tmp_path):
        lines = dump_recipe(asked()).splitlines()
        start = lines.index("track:")
        end = next(place for place in range(start + 1, len(lines)) if not lines[place].startswith((" ", "-")))
        (tmp_path / "recipe.yaml").write_text("\n".join(lines[:start] + lines[end:]))
        assert recipe_digest(load_recipe(tmp_path / "recipe.yaml")) == recipe_digest(asked(track="tensorboard"))

    @pytest.mark.parametrize(
        ("track", "told"),
        [
            ({"to": ["tensorbord"]}, r"track\.to.*'tensorboard' or 'wandb'.*'tensorbord'"),
            ({"to": ["wandb", "wandb"]}, "'wandb' is named twice"),
            ({"too": ["wandb"]}, r"unknown key 'track\.too'; did you mean 'to'"),
            ({"images": -1}, r"track\.images"),
            ({"project": "a/b"}, r"track\.project"),
        ],
    )
    def test_mistakes(self, track, told):
        with pytest.raises(ConfigError, match=told):
            asked(track=track)


class TestBeforeAnyWork:
    def test_a_missing_package(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=f"tensorboard not installed: {INSTALL}"):
            require_trackers(asked(track="tensorboard").track)
        with pytest.raises(ConfigError, match=f"tensorboard and wandb not installed: {INSTALL}"):
            require_trackers(asked(track=["tensorboard", "wandb"]).track)

    @pytest.mark.slow
    def test_runs_and_studies_ask_before_they_look_at_the_data(self, monkeypatch, tmp_path):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        teacher = {"model": "smp:PSPNet", "untrained": True}
        raw = recipe(tmp_path / "no data", track="tensorboard", teacher=teacher)
        with pytest.raises(ConfigError, match=INSTALL):
            train(raw, out=tmp_path / "run")
        with pytest.raises(ConfigError, match=INSTALL):
            compare(raw, methods=["channelwise"], out=tmp_path / "study")
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
    def test_wandb_offline_is_the_users_choice(self, monkeypatch, mode):
        wandb = pytest.importorskip("wandb")
        settings = wandb.setup().settings
        monkeypatch.setattr(settings, "mode", mode)
        monkeypatch.setattr(settings, "base_url", "http://127.0.0.1:9")
        assert check.wandb_mode() == mode
        if mode == "online":
            with pytest.raises(ConfigError, match=r"does not answer at http://127.0.0.1:9.*WANDB_MODE=offline"):
                require_trackers(asked(track="wandb").track)
        else:
            require_trackers(asked(track="wandb").track)

    @pytest.mark.slow
    def test_wandb_without_a_login_does_not_ask(self, monkeypatch):
        wandb = pytest.importorskip("wandb")
        monkeypatch.setattr(check, "_require_server", lambda: None)
        monkeypatch.setattr(wandb.setup().settings, "mode", "online")
        asked_for, spoken = [], wandb.setup().settings.silent

        def login(prompt=True, verify=False):
            asked_for.append((prompt, verify))
            return False

        monkeypatch.setattr(wandb, "login", login)
        with pytest.raises(ConfigError, match=r"no login on this machine: `wandb login`; with WANDB_MODE=offline"):
            require_trackers(asked(track="wandb").track)
        assert asked_for == [(False, True)]

        def refused(prompt=True, verify=False):
            raise wandb.errors.AuthenticationError("expired")

        monkeypatch.setattr(wandb, "login", refused)
        with pytest.raises(ConfigError, match=r"refuses the login \(expired\).*--relogin"):
            require_trackers(asked(track="wandb").track)
        assert wandb.setup().settings.silent == spoken

        monkeypatch.setattr(wandb, "login", lambda key=None: 1 / 0)
        monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key=None))
        with pytest.raises(ConfigError, match="no login on this machine"):
            require_trackers(asked(track="wandb").track)


def test_what_trackers_wrote_is_removed_with_the_run(tmp_path):
    start_folder(tmp_path, asked())
    (tmp_path / "tracking" / "tensorboard").mkdir(parents=True)
    (tmp_path / "tracking" / "tensorboard" / "events").touch()
    check_folder(tmp_path, asked(), "none", resume=False, force=True)
    start_folder(tmp_path, asked())
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


class TestValues:
    def test_a_row(self):
        row = {"step": "7", "loss": "1.5", "channelwise:logits": "0.25", "lr": "0.01", "grad_norm": "", "seconds": "2"}
        told = {"train/loss": 1.5, "train/channelwise:logits": 0.25, "train/lr": 0.01, "train/seconds": 2.0}
        assert of_row(row) == told

    def test_scores_leave_absent_classes_out(self):
        scores = Scores(miou=0.5, pixel_accuracy=0.75, iou={"road": 0.5, "sky": None}, images=2)
        assert of_scores("val", scores) == {"val/miou": 0.5, "val/pixel_accuracy": 0.75, "val/iou/road": 0.5}

    def test_the_end(self):
        scores = {"miou": 0.5, "pixel_accuracy": 0.75, "iou": {"road": 0.5}, "images": 2}
        record = RunRecord(
            status="done",
            method="none",
            seed=0,
            split="val",
            steps=9,
            epochs=1,
            final=scores,
            best={**scores, "miou": 0.625, "step": 6},
            extra_splits={"night": scores},
        )
        assert of_record(record) == {
            "final/miou": 0.5,
            "final/pixel_accuracy": 0.75,
            "best/miou": 0.625,
            "best/pixel_accuracy": 0.75,
            "best/step": 6.0,
            "extra/night/miou": 0.5,
            "extra/night/pixel_accuracy": 0.75,
            "extra/night/iou/road": 0.5,
        }


class TestTheEndOfARunOfWandb:
    @pytest.fixture
    def ended(self, monkeypatch, tmp_path):
        def make(finish):
            found = object.__new__(kinds.WeightsAndBiases)
            found.start, found.tracker = kinds.Start(tmp_path, asked()), SimpleNamespace(tracker=finish)
            return found

        monkeypatch.setattr(kinds, "_PATIENCE", 0.02)
        return make

    @pytest.mark.parametrize(("whole", "code"), [(True, 0), (False, 1)])
    def test_it_is_told_how_the_run_ended(self, ended, whole, code):
        codes = []
        assert ended(SimpleNamespace(finish=lambda exit_code: codes.append(exit_code))).finish(whole=whole) is None
        assert codes == [code]

    def test_it_is_left_alone_where_it_goes_on_sending(self, ended, tmp_path):
        sent = threading.Event()
        told = ended(SimpleNamespace(finish=lambda exit_code: sent.wait(5))).finish(whole=True)
        sent.set()
        assert told == f"wandb: still sending after 0.02 s; `wandb sync {tmp_path}/tracking/wandb/run-*` does the rest"

    def test_its_error_is_raised_here(self, ended):
        def fails(exit_code):
            raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            ended(SimpleNamespace(finish=fails)).finish(whole=True)


class Kept:
    """In the place of a recorder: keeps what it is told of the record."""

    def __init__(self):
        self.rows = []
        self.record = RunRecord(status="running", method="none", seed=0, split="val", steps=1, epochs=1)

    def update(self, **changes):
        self.record = self.record.model_copy(update=changes)


class Fake:
    """A tracker that fails where it is told to."""

    def __init__(self, name, fails=()):
        self.record, self.fails, self.told = TrackerRecord(where=name, version="1"), set(fails), []
        self.start = kinds.Start(Path(), None)

    def _do(self, what):
        self.told.append(what)
        if what in self.fails:
            raise OSError(f"no {what}\nany more")

    def begin(self):
        self._do("begin")
        return "begun"

    def log(self, values, step):
        self._do("log")

    def log_images(self, pictures, step):
        self._do("images")

    def finish(self, *, whole):
        self._do("finish")
        return None if whole else "left"


@pytest.fixture
def tracking(monkeypatch, tmp_path):
    def make(**fakes):
        monkeypatch.setattr(kinds, "KINDS", {})
        found = Tracking(asked(), tmp_path, said.append, kept.append)
        found.recorder = Kept()
        for name, fake in fakes.items():
            monkeypatch.setitem(tracking_kinds, name, lambda start, fake=fake: fake)
            found._begin(name, kinds.Start(tmp_path, asked()))
        return found, said, kept

    from densekd.runs.tracking import tracking as module

    said, kept, tracking_kinds = [], [], module.KINDS
    return make


class TestATrackerThatFails:
    def test_in_the_middle(self, tracking):
        bad, good = Fake("bad", ["log"]), Fake("good")
        with tracking(bad=bad, good=good)[0] as live:
            live.row({"step": "1", "loss": "1.0"})
            live.row({"step": "2", "loss": "1.0"})
        assert bad.told == ["begin", "log"]
        assert good.told == ["begin", "log", "log", "finish"]
        found = live.recorder.record.trackers
        assert found["bad"].failed == "OSError: no log any more"
        assert found["good"].failed is None

    def test_it_is_said_and_kept(self, tracking):
        live, said, kept = tracking(bad=Fake("bad", ["log"]))
        live.row({"step": "1", "loss": "1.0"})
        assert said == ["begun"]
        assert kept == ["track: bad failed and is told nothing more (OSError: no log any more); the training goes on"]

    def test_another_process_than_the_first_has_none(self, tmp_path):
        with Tracking(asked(track="tensorboard"), tmp_path, print, print, on=False) as other:
            other.begin(None, None, None, resumed=False)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("when", ["begin", "finish"])
    def test_at_its_ends(self, tracking, when):
        live, _, kept = tracking(bad=Fake("bad", [when]))
        with live:
            pass
        assert len(kept) == 1
        assert live.recorder.record.trackers["bad"].failed == f"OSError: no {when} any more"

    def test_a_run_that_does_not_end_as_it_should(self, tracking):
        live, _, kept = tracking(good=Fake("good"))
        with pytest.raises(KeyError), live:
            raise KeyError
        assert kept == ["left"]

    def test_pictures_that_cannot_be_drawn(self, tracking):
        good = Fake("good")
        live, _, kept = tracking(good=good)
        live.images(lambda: {}[0], 3)
        assert good.told == ["begin"]
        assert kept == ["track: no more pictures of validation images: KeyError: 0; the training goes on"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(place):
    student = {"model": f"{place}/nets.py:teacher"}
    return train(recipe(place, student=student, report=UNSEEN), out=place / "teacher")


def distilled(place, teacher, out, **more):
    """A distillation of six steps under TensorBoard, or whatever else."""
    options = {"track": "tensorboard", "report": UNSEEN} | more
    resume = options.pop("resume", False)
    return distill(distillation(place, teacher.path, **options), out=out, resume=resume)


@pytest.fixture(scope="module")
def tracked(place, teacher):
    pytest.importorskip("tensorboard")
    return distilled(place, teacher, place / "tracked")


def events(run):
    """What TensorBoard's own reader finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tracking" / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def rows_of(run):
    return list(csv.DictReader((run.path / "log.csv").read_text().splitlines()))


@pytest.mark.slow
class TestTensorBoard:
    def test_every_number_of_the_log(self, tracked):
        found, rows = events(tracked), rows_of(tracked)
        assert len(rows) == 6
        columns = set(rows[0]) - {"step"}
        assert {"channelwise:output", "channelwise:2", "lr", "grad_norm", "data_wait", "seconds"} <= columns
        assert {tag for tag in found.Tags()["scalars"] if tag.startswith("train/")} == {f"train/{c}" for c in columns}
        for column in columns:
            told = [(event.step, event.value) for event in found.Scalars(f"train/{column}")]
            assert told == [(int(row["step"]), float(np.float32(row[column]))) for row in rows]

    def test_every_evaluation(self, tracked):
        found, record = events(tracked), tracked.record
        assert [event.step for event in found.Scalars("val/miou")] == [2, 4, 6]
        assert found.Scalars("val/miou")[-1].value == np.float32(record.final.miou)
        for name, value in record.final.iou.items():
            assert found.Scalars(f"val/iou/{name}")[-1].value == np.float32(value)
        assert found.Scalars("best/step")[0].value == record.best.step
        assert found.Scalars("final/pixel_accuracy")[0].value == np.float32(record.final.pixel_accuracy)

    def test_the_recipe(self, tracked):
        (text,) = events(tracked).Tensors("recipe/text_summary")
        told = text.tensor_proto.string_val[0].decode()
        assert told == f"```yaml\n{(tracked.path / 'recipe.yaml').read_text()}```"

    def test_pictures_of_the_same_images_each_time(self, tracked):
        found = events(tracked)
        names = [f"pictures/{number}-{number - 1}" for number in (1, 2, 3, 4)]
        assert set(found.Tags()["images"]) == {"pictures/classes", *names}
        assert [image.step for image in found.Images("pictures/classes")] == [0]
        for name in names:
            assert [image.step for image in found.Images(name)] == [2, 4, 6]

    def test_a_picture_shows_truth_and_prediction_in_the_palette(self, tracked):
        encoded = events(tracked).Images("pictures/1-0")[-1].encoded_image_string
        shown = np.asarray(Image.open(BytesIO(encoded)).convert("RGB"))
        data = build_data(tracked.recipe.data)
        truth = np.asarray(colourise(data.val.load(0).label, data.palette).resize((320, 213), Image.Resampling.NEAREST))
        colors = {tuple(color) for color in truth.reshape(-1, 3)}
        third = (shown.shape[1] - 4 * 7) // 3
        middle = shown[-100, 14 + third + third // 2]
        assert third == 320
        assert min(np.abs(np.array(color) - middle).max() for color in colors) <= 2

    def test_the_run_is_the_same_without_it(self, place, teacher, tracked):
        plain = distilled(place, teacher, place / "plain", track=[])
        assert not (plain.path / "tracking").exists()
        assert plain.record.trackers == {}
        assert log_without_times(plain.path) == log_without_times(tracked.path)
        theirs, ours = (files.read_tensors(run.path / "student.safetensors") for run in (plain, tracked))
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
        for name in ("student", "optimizer", "average"):
            path = f"checkpoints/step-00000006/{name}.safetensors"
            assert (plain.path / path).read_bytes() == (tracked.path / path).read_bytes()

    def test_the_record_says_so(self, tracked):
        (entry,) = tracked.record.trackers.items()
        assert entry[0] == "tensorboard"
        assert entry[1].where == "tracking/tensorboard"
        assert entry[1].failed is None

    @pytest.mark.parametrize("evaluated", [False, True])
    def test_a_resume_doubles_no_step(self, place, teacher, tracked, evaluated, monkeypatch, tmp_path):
        """Stopped in the evaluation of step 4, or after it and before its checkpoint."""
        whole = Loop._evaluate

        def cut(loop, position):
            if position.taken == 4 and not evaluated:
                loop._save(position)
                raise Interrupted("cut", 2)
            whole(loop, position)
            if position.taken == 4:
                raise Interrupted("cut", 2)

        monkeypatch.setattr(Loop, "_evaluate", cut)
        with pytest.raises(Interrupted):
            distilled(place, teacher, tmp_path / "cut")
        monkeypatch.setattr(Loop, "_evaluate", whole)
        before = events(Run.load(tmp_path / "cut"))
        assert [event.step for event in before.Scalars("val/miou")] == ([2, 4] if evaluated else [2])
        resumed = distilled(place, teacher, tmp_path / "cut", resume=True)
        found = events(resumed)
        assert [event.step for event in found.Scalars("val/miou")] == [2, 4, 6]
        assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
        assert [image.step for image in found.Images("pictures/1-0")] == [2, 4, 6]
        assert len(found.Images("pictures/classes")) == len(found.Tensors("recipe/text_summary")) == 1
        values = [[event.value for event in one.Scalars("train/loss")] for one in (found, events(tracked))]
        assert values[0] == values[1]

    def test_a_run_begun_without_trackers_goes_on_with_one(self, place, teacher, monkeypatch, tmp_path):
        whole = Loop._evaluate

        def cut(loop, position):
            whole(loop, position)
            loop._save(position)
            raise Interrupted("cut", 2)

        monkeypatch.setattr(Loop, "_evaluate", cut)
        with pytest.raises(Interrupted):
            distilled(place, teacher, tmp_path / "run", track=[])
        monkeypatch.setattr(Loop, "_evaluate", whole)
        found = events(distilled(place, teacher, tmp_path / "run", resume=True))
        assert [event.step for event in found.Scalars("train/loss")] == [3, 4, 5, 6]
        assert len(found.Tensors("recipe/text_summary")) == 1

    def test_a_disk_that_fails_does_not_end_the_training(self, place, teacher, tracked, monkeypatch, tmp_path):
        from accelerate.tracking import TensorBoardTracker

        calls = Counter()
        log = TensorBoardTracker.log

        def fails(self, values, step=None, **options):
            calls["log"] += 1
            if step == 3:
                raise OSError("No space left on device")
            log(self, values, step=step, **options)

        monkeypatch.setattr(TensorBoardTracker, "log", fails)
        run = distilled(place, teacher, tmp_path / "run")
        assert run.record.status == "done"
        assert calls["log"] == 5  # the recipe, steps 1 and 2, the evaluation, step 3
        told = "track: tensorboard failed and is told nothing more (OSError: No space left on device)"
        assert [line for line in run.record.warnings if line.startswith(told)]
        assert json.loads((run.path / "record.json").read_text())["trackers"]["tensorboard"]["failed"]
        assert log_without_times(run.path) == log_without_times(tracked.path)


def wandb_records(folder):
    """The records in the files of W&B's runs, in their order: LevelDB's log format around protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted(folder.glob("*run-*/*.wandb")):
        data, place, parts = path.read_bytes(), 7, b""
        while place < len(data):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
            parts += data[place + 7 : place + 7 + size]
            place += 7 + size
            if kind in (1, 4):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(parts)
                parts = b""
                yield record


@pytest.mark.slow
def test_wandb_offline(place, teacher, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb.setup().settings, "mode", "offline")
    said = []

    class Say(Quiet):
        def said(self, line):
            said.append(line)

    track = {"to": "wandb", "images": 1, "project": "roads", "group": "study"}
    raw = distillation(place, teacher.path, track=track, report=UNSEEN)
    run = distill(raw, out=tmp_path / "run", progress=Say())
    entry = run.record.trackers["wandb"]
    assert (entry.where, entry.failed) == ("tracking/wandb", None)
    assert f"wandb: offline, run {entry.id}; `wandb sync {run.path}/tracking/wandb/offline-run-*` sends it" in said

    records = list(wandb_records(run.path / "tracking" / "wandb"))
    begun = next(record.run for record in records if record.HasField("run"))
    assert (begun.run_id, begun.project, begun.display_name, begun.run_group) == (entry.id, "roads", "run", "study")
    config = {item.key: item.value_json for record in records for item in record.config.update}
    assert json.loads(config["terms"])[0]["method"] == "channelwise"
    told = {}
    for record in records:
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            told.setdefault(record.history.step.num, {})[key] = json.loads(item.value_json)
    for row in rows_of(run):
        for column in set(row) - {"step"}:
            assert told[int(row["step"])][f"train/{column}"] == float(row[column])
    assert told[6]["val/miou"] == told[6]["final/miou"] == run.record.final.miou
    assert [step for step in told if "pictures/1-2/width" in told[step]] == [2, 4, 6]


@pytest.mark.slow
def test_a_resume_goes_on_with_the_same_run_of_wandb(place, teacher, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb.setup().settings, "mode", "offline")
    whole = Loop._evaluate

    def cut(loop, position):
        whole(loop, position)
        loop._save(position)
        raise Interrupted("cut", 2)

    monkeypatch.setattr(Loop, "_evaluate", cut)
    options = {"track": {"to": "wandb", "images": 0}}
    with pytest.raises(Interrupted):
        distilled(place, teacher, tmp_path / "run", **options)
    monkeypatch.setattr(Loop, "_evaluate", whole)
    first = Run.load(tmp_path / "run").record.trackers["wandb"].id
    time.sleep(1.1)  # W&B names folders by the second
    run = distilled(place, teacher, tmp_path / "run", resume=True, **options)
    assert run.record.trackers["wandb"].id == first
    records = list(wandb_records(run.path / "tracking" / "wandb"))
    assert {record.run.run_id for record in records if record.HasField("run")} == {first}
    steps = [record.history.step.num for record in records if record.HasField("history")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1, 0]
