"""Whole studies: what is refused before anything is trained, and runs in processes of their own."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from densekd.config import load_recipe
from densekd.errors import ConfigError, DensekdError, RunError
from densekd.losses import DistillationLoss
from densekd.losses.catalog import METHODS
from densekd.records import StudyRecord
from densekd.runs import Run
from densekd.runs.lock import claimed
from densekd.runs.progress import Quiet
from densekd.study import compare, prepare
from densekd.study.check import open_study
from densekd.study.machine import share_out
from densekd.study.pool import Job, _death, run_jobs
from densekd.study.teacher import score_teacher
from runkit import recipe
from studykit import Keeping, comparable_recipe, place_with_teacher

DENSEKD = [sys.executable, "-m", "densekd.cli.main"]
MORTAL = """
import os, signal, sys
from torch import nn


class Student(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Conv2d(3, num_classes, 1)

    def forward(self, image):
        print("a network that talks on standard output")
        if sys.argv[0] == "-c":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(image)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_with_teacher(tmp_path_factory.mktemp("data"))


def prepared(place, folder, labels=("channelwise",), raw=None, **options):
    return prepare(raw or comparable_recipe(place), methods=list(labels), seeds=[0], out=folder, **options)


class Bank(DistillationLoss):
    """More channels by a memory than any machine has."""

    name = "bank"

    def bind(self, student_shape, teacher_shape, num_classes):
        raise MemoryError("a queue of 4096 GB")


class TestBeforeAnyTraining:
    def test_a_good_study_names_its_runs_and_writes_nothing(self, place, tmp_path):
        watch = Keeping()
        labels = ["channelwise", "both", "channelwise@features"]
        names = prepared(place, tmp_path / "s", labels, progress=watch).look()
        assert names == ["none-s0", "channelwise-s0", "both-s0", "channelwise@features-s0"]
        assert not (tmp_path / "s").exists()
        assert watch.lines.count("4 of 4 runs to do, about 1 min") == 1
        # What all methods say is said once; what one says, with its name.
        adapter = "method 'channelwise@features': term 'channelwise:2': adapter: 1x1 convolution 6 -> 10 channels"
        assert sum(line.startswith(adapter) for line in watch.lines) == 1
        assert len(set(watch.lines)) == len(watch.lines)

    def test_a_method_that_cannot_stand_at_its_tap(self, place, tmp_path):
        comparison = prepared(place, tmp_path / "s", ["channelwise", "pixelwise@features"])
        with pytest.raises(
            ConfigError, match=r"^method 'pixelwise@features': term .*pixelwise compares classes"
        ) as error:
            comparison.go()
        assert "\n" not in str(error.value)
        assert not (tmp_path / "s").exists()

    def test_a_run_that_another_process_holds(self, place, tmp_path):
        pytest.importorskip("fcntl")
        watch = Keeping()
        comparison = prepared(place, tmp_path / "s", ["channelwise"], progress=watch)
        held = tmp_path / "s" / "channelwise-s0"
        held.mkdir(parents=True)  # as one that outlives its study, which was killed, has it
        with claimed(held), pytest.raises(RunError, match="channelwise-s0: another process is training in it"):
            comparison.go()
        assert not any("runs to do" in line for line in watch.lines)

    def test_a_tap_that_is_not_there(self, place, tmp_path):
        comparison = prepared(place, tmp_path / "s", ["channelwise@features"], **{"compare.features.student": "layer9"})
        with pytest.raises(ConfigError, match=r"method 'channelwise@features': .*'layer9'"):
            comparison.look()

    def test_a_memory_bank_that_does_not_fit(self, place, tmp_path, monkeypatch):
        monkeypatch.setitem(METHODS, "bank", Bank)
        with pytest.raises(ConfigError, match=r"method 'bank': out of memory.*a queue of 4096 GB"):
            prepared(place, tmp_path / "s", ["channelwise", "bank"]).look()

    def test_labels_that_a_method_needs_and_cannot_have(self, place, tmp_path, monkeypatch):
        class Needy(DistillationLoss):
            name = "needy"
            needs = frozenset({"labels"})

            def forward(self, student_map, teacher_map, labels=None, mask=None):
                raise ConfigError("needy needs labels, and there are none")

        monkeypatch.setitem(METHODS, "needy", Needy)
        with pytest.raises(ConfigError, match=r"method 'needy': .*needy needs labels, and there are none"):
            prepared(place, tmp_path / "s", ["channelwise", "needy"]).look()

    def test_problems_of_the_checks_stop_the_study(self, place, tmp_path):
        raw = comparable_recipe(place)
        raw["preflight"]["on_problem"] = "stop"
        raw["teacher"] = {"model": raw["teacher"]["model"], "untrained": True}
        with pytest.raises(ConfigError, match=r"^(?!method)(?s:.*)\nnothing was trained"):
            prepared(place, tmp_path / "s", raw=raw).look()
        raw["preflight"]["on_problem"] = "warn"
        watch = Keeping()
        assert prepared(place, tmp_path / "s", raw=raw, progress=watch).look() == ["none-s0", "channelwise-s0"]
        assert any("head" in line for line in watch.lines)

    def test_no_teacher_and_an_untrained_one(self, place, tmp_path):
        raw = comparable_recipe(place)
        raw["teacher"] = {"model": "smp:PSPNet"}
        with pytest.raises(ConfigError, match=r"teacher\.checkpoint: missing"):
            prepared(place, tmp_path / "s", raw=raw)
        del raw["teacher"]
        with pytest.raises(ConfigError, match="key 'teacher' is missing"):
            prepared(place, tmp_path / "s", raw=raw)

    def test_settings_of_one_loss_are_checked_once_and_their_options_each(self, place, tmp_path, monkeypatch):
        from densekd.study import check

        looked, look = [], check._look
        monkeypatch.setattr(check, "_look", lambda *given: looked.append(given[1].name) or look(*given))
        raw = comparable_recipe(place)
        tried = [(1.0, 4.0), (9.0, 4.0), (9.0, 1.0)]
        raw["compare"]["methods"] = {
            f"try{number}": {"terms": [{"weight": weight, "options": {"temperature": temperature}}]}
            for number, (weight, temperature) in enumerate(tried)
        }
        watch = Keeping()
        assert len(prepared(place, tmp_path / "s", list(raw["compare"]["methods"]), raw, progress=watch).look()) == 4
        assert looked == ["try0"]
        raw["compare"]["methods"]["try2"]["terms"][0]["options"]["temperature"] = -1
        with pytest.raises(ConfigError, match=r"method 'try2': .*temperature"):
            prepared(place, tmp_path / "s", ["try0", "try2"], raw).look()

    def test_a_warm_up_that_would_not_end(self, place, tmp_path):
        raw = comparable_recipe(place)
        raw["compare"]["methods"]["both"]["terms"][0]["warmup_steps"] = 6
        with pytest.raises(ConfigError, match=r"method 'both': terms\.0\.warmup_steps: 6 of 6"):
            prepared(place, tmp_path / "s", ["both"], raw).look()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"budget": "second"}, r"--budget 'second': unknown; did you mean 'seconds'"),
            ({"jobs": 0}, r"--jobs 0: expected 1 or more"),
        ],
    )
    def test_options(self, place, tmp_path, options, words):
        with pytest.raises(ConfigError, match=words):
            prepared(place, tmp_path / "s", **options)

    def test_folders_that_are_no_studys(self, place, tmp_path):
        with pytest.raises(RunError, match="holds a run; a study needs a folder of its own"):
            prepared(place, place / "teacher")
        (tmp_path / "table.csv").write_text("mine")
        with pytest.raises(RunError, match=r"holds table\.csv, but no plan\.json"):
            prepared(place, tmp_path)
        with pytest.raises(RunError, match="a file; choose a folder"):
            prepared(place, tmp_path / "table.csv")

    def test_the_default_folder(self, place, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert prepare(comparable_recipe(place), methods=None, seeds=[0]).folder == Path("runs/tiny-compare")


class TestTeacher:
    def opened(self, place, **changes):
        return open_study(load_recipe(comparable_recipe(place, **changes)), Quiet())

    def test_it_is_scored_whole_once(self, place, tmp_path):
        opened = self.opened(place)
        found = score_teacher(opened, tmp_path, Quiet())
        own = Run.load(place / "teacher").record
        assert (found.miou, found.iou, found.images) == (own.best.miou, own.best.iou, 4)
        assert (found.steps, found.parameters) == (12, own.student.parameters)
        assert found.sha256 == opened.sha256

        class Nothing(Quiet):
            def evaluating(self, done, images):
                raise AssertionError("scored again")

        assert score_teacher(opened, tmp_path, Nothing()) == found
        with pytest.raises(AssertionError, match="scored again"):  # other data: other scores
            score_teacher(self.opened(place, task={"dice": 1.0}), tmp_path, Nothing())
        (tmp_path / "teacher.json").write_text("{")
        assert score_teacher(opened, tmp_path, Quiet()) == found

    def test_further_splits(self, place, tmp_path):
        raw = comparable_recipe(place)
        raw["data"]["extra"] = {"again": {"split": "val"}, "seen": {"split": "train"}}
        found = score_teacher(open_study(load_recipe(raw), Quiet()), tmp_path, Quiet())
        assert found.extra_splits["again"] == found.miou
        assert 0 < found.extra_splits["seen"] < 1

    def test_its_own_normalisation_is_used(self, place, tmp_path):
        raw = comparable_recipe(place)
        raw["teacher"] |= {"mean": [0.9, 0.1, 0.5], "std": [0.1, 0.9, 0.5]}
        other = score_teacher(open_study(load_recipe(raw), Quiet()), tmp_path, Quiet())
        assert other.miou != score_teacher(self.opened(place), tmp_path / "b", Quiet()).miou

    def test_one_that_gives_features_has_no_scores(self, place, tmp_path):
        raw = comparable_recipe(place)
        raw["teacher"] = {"model": f"{place}/nets.py:features", "untrained": True}
        with (place / "nets.py").open("a") as stream:
            stream.write(
                "\n\ndef features(num_classes: int) -> nn.Module:\n    return nn.Conv2d(3, 12, 3, padding=1)\n"
            )
        found = score_teacher(open_study(load_recipe(raw), Quiet()), tmp_path, Quiet())
        assert (found.miou, found.iou, found.extra_splits) == (None, {}, {})
        assert found.parameters > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)  # several processes, each of which imports everything
class TestRuns:
    def test_failures_resumes_and_changes(self, place, tmp_path):
        folder, raw = tmp_path / "s", comparable_recipe(place)
        raw["train"]["steps"] = 2
        # Finite on the first batch, but the norm of its gradient is not.
        raw["compare"]["methods"]["wild"] = {"terms": [{"student": "output", "teacher": "output", "weight": 1e38}]}
        watch = Keeping()
        study = compare(raw, methods=["both", "wild"], seeds=[0], jobs=2, out=folder, progress=watch)

        assert watch.endings["wild-s0"].startswith("failed: step 1: the gradient as a whole is not finite")
        assert watch.endings["none-s0"].startswith("done: mIoU")
        assert watch.counts[-1] == (3, 3)
        record = StudyRecord.model_validate_json((folder / "study.json").read_text())
        assert record == study.record
        none, both, wild = record.methods
        assert (none.gain, none.where, both.where) == (None, "-", "logits")
        assert both.gain.mean == pytest.approx(both.final.mean - none.final.mean)
        assert (wild.final, wild.failed[0].seed) == (None, 0)
        assert wild.failed[0].output == "wild-s0/output.txt"
        assert "NonFiniteError" in (folder / "wild-s0" / "output.txt").read_text()
        assert study.failures[0].endswith(f"(its output: {folder / 'wild-s0' / 'output.txt'})")
        assert record.teacher.miou is not None
        assert record.teacher.images == 4
        assert record.teacher.steps == 12
        assert record.plan.jobs == 2
        assert not list(folder.glob(".*.part"))
        with (folder / "table.csv").open() as stream:
            assert [row["failed"] for row in csv.DictReader(stream)] == ["0", "0", "1"]

        # Again: what is finished stays, what failed is tried again; other threads are no change.
        before = (folder / "both-s0" / "record.json").stat().st_mtime_ns
        watch = Keeping()
        compare(raw, methods=["both"], seeds=[0], jobs=1, out=folder, progress=watch)
        assert watch.endings == {}
        assert "teacher" in watch.began
        assert (folder / "both-s0" / "record.json").stat().st_mtime_ns == before

        # A changed recipe is refused, and forced only where it changed.
        raw["compare"]["methods"]["both"]["terms"][1]["weight"] = 0.25
        with pytest.raises(RunError, match=r"both-s0 \(terms\.1\.weight: 0\.5 -> 0\.25\)\. Use --force"):
            compare(raw, methods=["both"], seeds=[0], out=folder)
        watch = Keeping()
        compare(raw, methods=["both", "wild"], seeds=[0], out=folder, force=True, progress=watch)
        assert set(watch.endings) == {"both-s0", "wild-s0"}
        assert watch.endings["wild-s0"].startswith("failed: step 1")
        assert "both-s0: started again (terms.1.weight: 0.5 -> 0.25)" in watch.lines
        assert Run.load(folder / "both-s0").recipe.terms[1].weight == 0.25

        # A damaged record: refused, and its run alone started again when forced.
        (folder / "none-s0" / "record.json").write_text("{")
        with pytest.raises(RunError, match=r"none-s0 \(its record cannot be read: .*\)\. Use --force"):
            compare(raw, methods=["both"], seeds=[0], out=folder)
        watch = Keeping()
        compare(raw, methods=["both"], seeds=[0], out=folder, force=True, progress=watch)
        assert set(watch.endings) == {"none-s0"}
        assert Run.load(folder / "none-s0").record.status == "done"

    def test_a_run_in_a_study_is_the_run_by_hand(self, place, tmp_path):
        from densekd.runs import distill, train
        from runkit import log_without_times

        raw = comparable_recipe(place)
        raw["train"]["steps"] = 3
        compare(raw, methods=["channelwise"], seeds=[1], out=tmp_path / "s")
        distill(raw, out=tmp_path / "d", seed=1)
        train(raw, out=tmp_path / "t", seed=1)
        assert log_without_times(tmp_path / "s" / "channelwise-s1") == log_without_times(tmp_path / "d")
        assert log_without_times(tmp_path / "s" / "none-s1") == log_without_times(tmp_path / "t")

    def test_a_process_that_is_killed_fails_alone(self, place, tmp_path):
        (tmp_path / "mortal.py").write_text(MORTAL)
        mortal = recipe(place, student={"model": f"{tmp_path}/mortal.py:Student"})
        healthy = recipe(place)
        healthy["train"]["steps"] = 1

        def job(name, raw):
            asked = {"kind": "train", "recipe": raw, "out": str(tmp_path / name), "resume": False, "force": False}
            return Job(name, {"work": "run", **asked}, tmp_path / f"{name}.txt")

        watch, ended = Keeping(), []
        jobs = [job("mortal", mortal), job("healthy", healthy)]
        outcomes = run_jobs(jobs, share_out(1, cores=2, gpus=0).places, watch, ended.append)
        assert [(one.job.name, one.status) for one in outcomes] == [("mortal", "failed"), ("healthy", "done")]
        assert outcomes == ended
        assert outcomes[0].reason.startswith("its process was ended by SIGKILL")
        assert watch.steps == {"healthy": [1]}

    @pytest.mark.long
    def test_equal_seconds(self, place, tmp_path):
        folder, raw = tmp_path / "s", comparable_recipe(place)
        raw["train"] |= {"steps": 40, "evaluate_every": None, "checkpoint_every": 100}
        watch = Keeping()
        study = compare(raw, methods=["channelwise"], seeds=[0], budget="seconds", out=folder, progress=watch)
        plan = study.record.plan
        none, cwd = plan.methods
        assert (plan.budget, none.steps) == ("seconds", 40)
        assert none.samples >= 10
        assert plan.seconds == pytest.approx(40 * none.seconds_per_step)
        assert cwd.steps == round(40 * none.seconds_per_step / cwd.seconds_per_step)
        assert [line.steps for line in study.record.methods] == [40, cwd.steps]
        with (folder / "channelwise-s0" / "log.csv").open() as stream:
            rates = [float(row["lr"]) for row in csv.DictReader(stream)]
        assert len(rates) == cwd.steps
        assert rates[-1] == pytest.approx(0.01 * (1 / cwd.steps) ** 0.9)  # the schedule spans the method's own steps
        assert not list(folder.glob(".calibration*"))

        # Later: the plan stands; a label that is added is timed, and changes no other.
        watch = Keeping()
        later = compare(raw, methods=["channelwise"], seeds=[0], budget="seconds", out=folder, progress=watch)
        assert later.record.plan == plan
        assert watch.endings == {}
        watch = Keeping()
        more = compare(raw, methods=["both", "channelwise"], seeds=[0], budget="seconds", out=folder, progress=watch)
        assert set(watch.endings) == {"both-s0"}
        assert "budget: timing a few steps of none, both" in watch.lines
        assert [entry for entry in more.record.plan.methods if entry.name != "both"] == [none, cwd]
        with pytest.raises(RunError, match="was begun with --budget seconds"):
            compare(raw, methods=["channelwise"], seeds=[0], out=folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestInterruptions:
    def start(self, place, tmp_path, *more):
        raw = comparable_recipe(place)
        raw["train"] |= {"steps": 2000, "evaluate_every": None, "checkpoint_every": 50, "log_every": 10}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
        command = ["compare", "r.yaml", "--methods", "channelwise", "--seeds", "0", "--jobs", "2", "--out", "s", *more]
        return subprocess.Popen(
            [*DENSEKD, *command],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def records(self, tmp_path):
        return [Run.load(tmp_path / "s" / name).record for name in ("none-s0", "channelwise-s0")]

    def until_both_train(self, child, tmp_path, beyond=(0, 0)):
        """Wait until each of the two runs has written a checkpoint after its step of `beyond`.

        Its own: one may begin seconds before the other, and would be done when the other has come as far.
        """
        deadline = time.monotonic() + 200
        while True:
            steps = [self.latest(tmp_path / "s" / name) for name in ("none-s0", "channelwise-s0")]
            if all(step > before for step, before in zip(steps, beyond, strict=True)):
                return
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @staticmethod
    def latest(run):
        pointer = run / "checkpoints" / "latest"
        return int(pointer.read_text().strip().rpartition("-")[2]) if pointer.is_file() else 0

    def test_ctrl_c_then_a_kill_then_the_end(self, place, tmp_path):
        child = self.start(place, tmp_path)
        self.until_both_train(child, tmp_path)
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=200)
        assert (child.returncode, out) == (130, "")
        assert "stopped: 0 of 2 runs are done; the same command goes on" in err
        assert "Traceback" not in err
        assert {record.status for record in self.records(tmp_path)} == {"interrupted"}
        reached = [self.latest(tmp_path / "s" / name) for name in ("none-s0", "channelwise-s0")]

        # The study's process is killed: its runs notice, save and leave.
        child = self.start(place, tmp_path)
        self.until_both_train(child, tmp_path, beyond=reached)
        child.kill()
        child.communicate()
        deadline = time.monotonic() + 200
        while {record.status for record in self.records(tmp_path)} != {"interrupted"}:
            assert time.monotonic() < deadline
            time.sleep(0.05)

        child = self.start(place, tmp_path, "--json")
        out, err = child.communicate(timeout=400)
        assert child.returncode == 0, err
        record = StudyRecord.model_validate(json.loads(out))
        assert [line.steps for line in record.methods] == [2000, 2000]
        assert "resuming from" in err
        assert record.command.startswith("densekd compare r.yaml")
        assert {one.status for one in self.records(tmp_path)} == {"done"}


class TestWords:
    def test_how_a_process_died(self):
        assert _death(-9) == "its process was ended by SIGKILL (the system does so where memory runs out)"
        assert _death(-11) == "its process was ended by SIGSEGV"
        assert _death(3) == "its process ended with exit code 3 and no word"

    def test_recipes_of_a_study_are_valid_recipes(self, place):
        assert load_recipe(comparable_recipe(place)).compare.features.student == "2"

    def test_the_errors_are_the_users(self):
        from densekd.study import RunsFailedError

        assert issubclass(RunsFailedError, DensekdError)
