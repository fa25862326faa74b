from __future__ import annotations

import ctypes
import json
import shutil

import pytest
import torch
from PIL import Image

from densekd import files
from densekd.config import dump_recipe, load_recipe, recipe_digest
from densekd.data.build import build_data
from densekd.errors import ConfigError, DtypeError, RunError
from densekd.evaluate import evaluation_mode, spread
from densekd.models import weights_digest
from densekd.runs import Run, distill, train
from densekd.runs.execute import Quiet
from densekd.runs.length import epochs_of, total_steps
from densekd.runs.memory import peak_bytes, reset_peak
from densekd.runs.readiness import NotReadyError
from densekd.runs.score import score_run
from runkit import NAMES, distillation, make_place, recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(place):
    asked = recipe(place, student={"model": f"{place}/nets.py:teacher"})
    return train(asked, out=place / "teacher", train__steps=20, train__evaluate_every=10, train__checkpoint_every=50)


def files_held_out(run, extra):
    """The run as if a part of its training set had been held out for scores."""
    folder = run.path.parent / "held-out"
    shutil.copytree(run.path, folder, dirs_exist_ok=True)
    raw = run.recipe.model_dump(mode="json")
    raw["data"] |= {"holdout": {"group": "."}, "extra": extra}
    files.write_text(folder / "recipe.yaml", dump_recipe(load_recipe(raw)))
    return Run.load(folder, trust=True)


class TestTrain:
    def test_the_record(self, teacher, place):
        record = Run.load(teacher.path).record
        assert (record.status, record.error, record.method, record.seed, record.split) == (
            "done",
            None,
            "none",
            0,
            "val",
        )
        assert (record.steps, record.epochs) == (20, 6.0)
        assert set(record.final.iou) == set(NAMES)
        assert 0.3 < record.best.miou <= 1
        assert record.best.step in {10, 20}
        assert record.student.parameters == sum(p.numel() for p in teacher.student().parameters())
        assert record.recipe_sha256 == recipe_digest(teacher.recipe)
        assert record.cost.seconds_per_step > 0
        assert record.cost.peak_memory_bytes > 1e7
        assert torch.__version__.startswith(record.environment["torch"])
        on_disk = json.loads((teacher.path / "record.json").read_text())
        assert on_disk["schema"] == 1

    def test_the_student_is_the_saved_weights_in_its_own_library(self, teacher):
        network = teacher.student()
        assert type(network) is torch.nn.Sequential
        assert not network.training
        saved = files.read_tensors(teacher.path / "student.safetensors")
        assert set(saved) == set(network.state_dict())
        assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())

    def test_scoring_the_best_student_again_gives_the_record(self, teacher):
        best = teacher.record.best.model_dump()
        best.pop("step")
        assert score_run(teacher).model_dump() == best
        assert score_run(teacher, "train").images == 10
        with pytest.raises(RunError, match="no such split; did you mean 'val'"):
            score_run(teacher, "vall")

    def test_a_mistyped_split_is_told_before_any_file_is_opened(self, teacher):
        further = {"data.extra": {"drive-7": {"split": "val"}}}
        with pytest.raises(RunError, match=r"no such split; did you mean 'drive-7'.*there are val, train, drive-7"):
            score_run(teacher, "drive7", {**further, "data.root": "/nowhere/at/all"})
        assert score_run(teacher, "drive-7", further).images == 4

    @pytest.mark.parametrize(
        "key",
        [
            "student.options.width",
            "student",
            "teacher.checkpoint",
            "terms.0.weight",
            "train.steps",
            "train",
            "seed",
            "name",
            "preflight.teacher_images",
            "task.binary",
            "data.augment.crop",
            "data.augment.flip",
            "data.unlabelled",
            "studnet.options.width",
        ],
    )
    def test_a_key_that_an_evaluation_does_not_read_is_refused(self, teacher, key):
        told = rf"override {key}: an evaluation does not read it.*data\.\* .*runtime\.\*, train\.evaluate_batch_size"
        with pytest.raises(ConfigError, match=told):
            score_run(teacher, overrides={key: 1})

    def test_an_unread_key_inside_a_mapping_is_refused_too(self, teacher):
        with pytest.raises(ConfigError, match=r"override data\.augment\.jitter\.hue: an evaluation does not read it"):
            score_run(teacher, overrides={"data.augment": {"size": [16, 24], "jitter": {"hue": 0.1}}})
        with pytest.raises(ConfigError, match=r"override train\.steps: an evaluation does not read it"):
            score_run(teacher, overrides={"train": {"steps": 1, "evaluate_batch_size": 2}})

    def test_keys_that_an_evaluation_reads(self, teacher):
        best = teacher.record.best.miou
        kept = {
            "runtime.workers": 0,
            "runtime": {"device": "cpu"},
            "train.evaluate_batch_size": 3,
            "data.in_memory": True,
        }
        assert score_run(teacher, overrides=kept).miou == best
        assert score_run(teacher, overrides={"data.augment.mean": [0.0, 0.0, 0.0]}).miou != best
        with pytest.raises(ConfigError, match=r"unknown key 'data\.rot'; did you mean 'root'"):
            score_run(teacher, overrides={"data.rot": "x"})

    def test_extra_splits_are_not_opened_under_a_holdout(self, teacher):
        held = files_held_out(teacher, {"drive-7": {"split": "val"}})
        with pytest.raises(
            RunError, match=r"'drive-7': extra splits are not opened under data\.holdout; there are val"
        ):
            score_run(held, "drive-7")
        with pytest.raises(RunError, match=r"'drive7': no such split; there are val, train$"):
            score_run(held, "drive7")
        assert score_run(held).images == 2
        # without the holdout, images that were never trained on
        assert score_run(held, "drive-7", {"data.holdout": None}).images == 4

    @pytest.mark.parametrize(
        ("overrides", "key"),
        [
            ({"data.holdout": {"group": "."}}, "data.holdout"),
            ({"data.holdout.fraction": 0.5, "data.holdout.group": "."}, "data.holdout"),
            ({"data.auto_split": {"group": "."}}, "data.auto_split"),
        ],
    )
    def test_images_of_the_training_are_never_called_val(self, teacher, overrides, key):
        with pytest.raises(ConfigError, match=rf"^override {key}: {key} would choose other images.*called val"):
            score_run(teacher, overrides=overrides)

    @pytest.mark.parametrize(
        ("overrides", "key"),
        [
            ({"data.holdout.fraction": 0.5}, "data.holdout"),
            ({"data.holdout.seed": 3}, "data.holdout"),
            ({"data.train.exclude": "^1"}, "data.train"),
            ({"data.auto_split": {"group": "."}}, "data.auto_split"),
        ],
    )
    def test_the_part_held_out_stays_what_it_was(self, teacher, overrides, key):
        with pytest.raises(ConfigError, match=rf"^override {key}: data\.\w+ would choose other images"):
            score_run(files_held_out(teacher, {}), overrides=overrides)

    def test_scenes_too_are_held_out_as_they_were(self, teacher, tmp_path):
        for changed, before in (
            ("holdout.fraction", {}),
            ("holdout.fraction", {"holdout": {}}),
            ("train_count", {"holdout": {}}),
        ):
            raw = {**teacher.recipe.model_dump(mode="json"), "data": {"name": "scenes", "train_count": 9, **before}}
            files.write_text(tmp_path / "recipe.yaml", dump_recipe(load_recipe(raw)))
            for name in ("record.json", "student.safetensors"):
                shutil.copy(teacher.path / name, tmp_path)
            value = 6 if changed == "train_count" else 0.5
            with pytest.raises(ConfigError, match=rf"^override data\.{changed.split('.')[0]}: data\.holdout would"):
                score_run(Run.load(tmp_path, trust=True), overrides={f"data.{changed}": value})

    def test_drawn_scenes_have_no_root(self, teacher, tmp_path):
        raw = {**teacher.recipe.model_dump(mode="json"), "data": {"name": "scenes"}}
        files.write_text(tmp_path / "recipe.yaml", dump_recipe(load_recipe(raw)))
        for name in ("record.json", "student.safetensors"):
            shutil.copy(teacher.path / name, tmp_path)
        with pytest.raises(ConfigError, match=r"'data\.root': it belongs to data\.name=folder, .* and here"):
            score_run(Run.load(tmp_path, trust=True), overrides={"data.root": "x"})

    def test_training_images_of_several_sizes_can_be_scored(self, teacher, tmp_path):
        root = make_place(tmp_path / "mixed")
        for kind in ("images", "masks"):
            image = Image.open(root / "train" / kind / "0.png")
            image.resize((30, 20), Image.Resampling.NEAREST).save(root / "train" / kind / "0.png")
        assert score_run(teacher, "train", {"data.root": str(root)}).images == 10

    def test_a_recipe_with_a_teacher_says_that_it_is_not_used(self, place, teacher, tmp_path):
        run = train(distillation(place, teacher.path), out=tmp_path / "run", train__steps=1)
        assert "train: the recipe's teacher and terms are not used: the student is trained alone" in run.record.warnings
        assert run.record.teacher is None

    def test_the_seed_decides_and_nothing_else(self, place, tmp_path):
        def weights(name, **changes):
            torch.manual_seed(hash(name) % 1000)
            run = train(recipe(place), out=tmp_path / name, train__steps=2, **changes)
            return (run.path / "student.safetensors").read_bytes()

        assert weights("a") == weights("b") != weights("c", seed=1)

    def test_binary(self, place, tmp_path):
        root = make_place(tmp_path / "two", classes=2)
        asked = recipe(root, task={"binary": True, "dice": 1.0})
        asked["data"]["classes"] = ["back", "front"]
        run = train(asked, out=tmp_path / "run")
        assert set(run.record.final.iou) == {"back", "front"}
        assert run.student()(torch.zeros(1, 3, 8, 8)).shape == (1, 1, 8, 8)

    @pytest.mark.slow
    def test_scenes_and_a_library_network_in_channels_last(self, tmp_path):
        import segmentation_models_pytorch as smp

        asked = {
            "data": {"name": "scenes", "train_count": 4, "val_count": 2, "size": [64, 64]},
            "student": {"model": "smp:FPN", "options": {"encoder_name": "resnet18", "encoder_depth": 3}},
            "train": {"steps": 2, "batch_size": 2},
            "runtime": {"device": "cpu", "threads": 1, "channels_last": True},
        }
        run = train(asked, out=tmp_path / "run")
        own = smp.FPN("resnet18", encoder_weights=None, encoder_depth=3, classes=10)
        own.load_state_dict(files.read_tensors(run.weights))
        own.eval()
        image = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(own(image), run.student()(image))


class TestThreads:
    def test_more_than_there_are_is_refused(self, place, tmp_path, monkeypatch):
        monkeypatch.setattr("os.cpu_count", lambda: 4)
        asked = recipe(place, runtime={"device": "cpu", "threads": 5})
        with pytest.raises(ConfigError, match=r"runtime\.threads: 5 is more than the 4 logical CPUs of this machine"):
            train(asked, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_run_goes_on_where_there_are_fewer(self, place, tmp_path, monkeypatch):
        asked = recipe(place, runtime={"device": "cpu", "threads": 3})
        asked["train"]["steps"] = 2
        monkeypatch.setattr("os.cpu_count", lambda: 4)
        set_to = []
        monkeypatch.setattr(torch, "set_num_threads", set_to.append)

        class Stop(Quiet):
            def step(self, taken, steps, result):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(asked, out=tmp_path / "run", progress=Stop())
        monkeypatch.setattr("os.cpu_count", lambda: 2)
        record = train(asked, out=tmp_path / "run", resume=True).record
        assert "runtime.threads: 3 when the run began; this machine has 2 logical CPUs: 2" in record.warnings
        assert set_to == [3, 2]
        with pytest.raises(ConfigError, match=r"runtime\.threads: 3 is more than the 2"):
            score_run(Run.load(tmp_path / "run"))
        assert score_run(Run.load(tmp_path / "run"), overrides={"runtime.threads": 2}).images == 4


class TestDistill:
    def test_the_record_and_the_notices(self, place, teacher, tmp_path):
        run = distill(distillation(place, teacher.path), out=tmp_path / "run", train__steps=2)
        record = run.record
        assert record.method == "channelwise"
        assert record.teacher.sha256 == weights_digest(teacher.student())
        assert record.teacher.miou == record.preflight["teacher"]["miou"]
        assert record.cost.extra_parameters == 6 * 10 + 10
        assert any("adapter" in line for line in record.warnings)
        assert any("only 4 images" in line for line in record.warnings)
        assert not any("teacher" in name for name in files.read_tensors(run.weights))

    @pytest.mark.slow
    def test_a_teacher_of_features(self, place, tmp_path):
        asked = distillation(place, place / "x")
        options = {"features": True, "pretrained": False}
        asked["teacher"] = {"model": "timm:test_resnet", "options": options, "untrained": True}
        asked["terms"] = [{"method": "feature", "student": "2", "teacher": "layer2"}]
        asked["preflight"] = {"teacher_images": 4}
        record = distill(asked, out=tmp_path / "run", train__steps=2).record
        assert (record.status, record.teacher.miou, record.preflight["teacher"]) == ("done", None, None)
        assert len(record.teacher.sha256) == 64
        assert len([line for line in record.warnings if "teacher gives features: not scored" in line]) == 1
        assert any("gives features" in line for line in record.preflight["notices"])

    def test_a_problem_stops_it_before_anything_is_written(self, place, tmp_path):
        asked = distillation(place, place / "x")
        asked["teacher"] = {"model": f"{place}/nets.py:teacher", "untrained": True}
        asked["preflight"] = {"teacher_images": 4}
        with pytest.raises(NotReadyError, match="pre-flight: nothing was trained"):
            distill(asked, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
        run = distill(asked, out=tmp_path / "run", preflight__on_problem="warn", train__steps=1)
        assert any(line.startswith("pre-flight: ") for line in run.record.warnings)

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"teacher": None}, "key 'teacher' is missing"),
            ({"terms": []}, "key 'terms' is missing"),
            ({"terms": [{"weight": 0}]}, r"terms\.0\.weight: a term of weight 0 does nothing"),
            (
                {"teacher": {"model": "smp:PSPNet"}},
                r"teacher\.checkpoint: missing: an untrained teacher teaches nothing",
            ),
        ],
    )
    def test_what_cannot_be_distilled(self, place, teacher, tmp_path, changes, told):
        with pytest.raises(ConfigError, match=told):
            distill(distillation(place, teacher.path), out=tmp_path / "run", **changes)


class TestFolder:
    def test_an_existing_folder_is_refused_before_any_work(self, place, teacher, tmp_path):
        class Watching(Quiet):
            def checking(self, done, total):
                raise AssertionError("work began")

        with pytest.raises(RunError, match="exists; it is never overwritten unasked"):
            train(recipe(place), out=teacher.path, progress=Watching())
        (tmp_path / "file").write_text("")
        with pytest.raises(RunError, match="a file; choose a folder"):
            train(recipe(place), out=tmp_path / "file", force=True, progress=Watching())

    def test_force_clears_a_runs_own_files_only(self, place, tmp_path):
        run = train(recipe(place), out=tmp_path / "run", train__steps=4)
        assert train(recipe(place), out=run.path, train__steps=1, force=True).record.steps == 1
        assert [path.name for path in (run.path / "checkpoints").glob("step-*")] == ["step-00000001"]
        (run.path / "notes.txt").write_text("mine")
        with pytest.raises(RunError, match=r"holds files that are not a run's \(notes\.txt\)"):
            train(recipe(place), out=run.path, force=True)
        other = tmp_path / "other"
        (other / "checkpoints").mkdir(parents=True)
        with pytest.raises(RunError, match=r"holds no recipe\.yaml, so it is no run"):
            train(recipe(place), out=other, force=True)

    def test_a_failed_check_leaves_the_old_run(self, place, teacher):
        with pytest.raises(Exception, match="no such folder"):
            train(recipe(place), out=teacher.path, force=True, data__root="/nowhere/at/all")
        assert Run.load(teacher.path).record.status == "done"

    def test_load(self, tmp_path):
        with pytest.raises(RunError, match="no such folder"):
            Run.load(tmp_path / "x")
        with pytest.raises(RunError, match=r"holds no record\.json: it is no run"):
            Run.load(tmp_path)
        files.write_json(tmp_path / "record.json", {"schema": 1, "status": "odd"})
        with pytest.raises(RunError, match="not a record of schema 1: status"):
            Run.load(tmp_path).record
        with pytest.raises(RunError, match=r"holds no recipe\.yaml"):
            Run.load(tmp_path).recipe
        with pytest.raises(DtypeError, match=r"^Run\.load: expected the path of a run folder, got 3"):
            Run.load(3)


class TestLength:
    def steps(self, images=10, **changes) -> int:
        raw = {
            "data": {"name": "scenes"},
            "student": {"model": "smp:PSPNet"},
            "train": {"batch_size": 1, **changes.pop("train", {})},
            **changes,
        }
        return total_steps(load_recipe(raw), images)

    @pytest.mark.parametrize(
        ("epochs", "batch", "accumulate", "expected"),
        [(1, 1, 1, 10), (1, 3, 1, 4), (1, 3, 2, 2), (1.1, 1, 1, 11), (0.7, 1, 1, 7), (0.01, 8, 1, 1), (3, 7, 1, 5)],
    )
    def test_epochs_are_rounded_up(self, epochs, batch, accumulate, expected):
        assert self.steps(train={"epochs": epochs, "batch_size": batch, "accumulate": accumulate}) == expected

    def test_epochs_of(self):
        assert epochs_of(5, 2 * 8, 30) == round(5 * 2 * 8 / 30, 4)

    def test_a_warm_up_that_never_ends(self):
        with pytest.raises(ConfigError, match=r"train\.schedule\.warmup_steps: 5 of 5 steps of the run"):
            self.steps(train={"steps": 5, "schedule": {"warmup_steps": 5}})
        with pytest.raises(ConfigError, match=r"terms\.0\.warmup_steps: 3 of 2 steps of the term"):
            self.steps(train={"steps": 5}, terms=[{"warmup_steps": 3, "end_step": 2}])


def test_a_network_gets_its_modes_back():
    network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.BatchNorm2d(1)))
    network[1].eval()
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, False, False]


def test_indices_are_spread():
    assert spread(10, 3) == [1, 5, 8]
    assert spread(3, 5) == [0, 1, 2]


def test_peak_memory_is_that_of_the_run():
    cpu = torch.device("cpu")
    del [torch.ones(60_000_000)][0]
    # Where another test has told the allocator to keep what is freed, the block would be made of that.
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak(cpu)
    low = peak_bytes(cpu)
    block = torch.ones(50_000_000)
    assert peak_bytes(cpu) - low > 0.9 * block.numel() * block.element_size()


def test_the_data_of_a_folder_can_stay_in_memory(place):
    spec = load_recipe(recipe(place), {"data.in_memory": True}).data
    assert build_data(spec).train.load(0).image.shape == (3, 16, 24)
