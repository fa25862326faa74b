from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from clikit import densekd as densekd
from densekd.config import load_recipe, shipped_recipes
from densekd.runs import Run, train
from runkit import distillation, make_place, recipe

DENSEKD = [sys.executable, "-m", "densekd.cli.main"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = make_place(tmp_path_factory.mktemp("data"))
    (root / "tiny.yaml").write_text(yaml.safe_dump(recipe(root)))
    (root / "dist.yaml").write_text(yaml.safe_dump(distillation(root, root / "teacher")))
    return root


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (
                ["train", "demoo"],
                "recipe 'demoo': no such file, and no shipped recipe of that name; did you mean 'demo'",
            ),
            (["train", "demo", "train.stepz=3"], "unknown key 'train.stepz'; did you mean 'steps'"),
            (["train", "demo", "train.steps"], "expected key.path=value"),
            (["distill", "demo"], "teacher.checkpoint: missing"),
            (["distill", "demo", "teacher=null"], "key 'teacher' is missing"),
            (["doctor", "demo"], "teacher.checkpoint: missing"),
            (["doctor", "nothing.yaml"], "no such file"),
            (["train", "folder", "data.root=/nowhere"], "/nowhere: no such folder"),
            (["evaluate", "nowhere"], "nowhere: no such folder"),
            (["predict", "nowhere", "x.jpg"], "nowhere: no such folder"),
            (["list", "modls"], "list 'modls': unknown; did you mean 'models'"),
            (["demo", "--seeds", "x"], "--seeds 'x': expected numbers"),
            (["demo", "--seeds", "1,1"], "expected different numbers"),
            (["train", "demo", "--resume"], "nothing to resume"),
            (["train", "demo", "--resume", "--dry-run"], "nothing to resume"),
            (["train", "demo", "--resume", "--force", "--dry-run"], "exclude each other"),
            (["train", "."], "recipe '.': a folder without a recipe.yaml, so no run; give a recipe file"),
            (["train", "demo", "runtime.threads=100000"], "runtime.threads: 100000 is more than the"),
        ],
    )
    def test_one_clear_line_and_code_2(self, densekd, arguments, told):
        code, out, err = densekd(*arguments)
        assert (code, out) == (2, "")
        assert told in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["trian"], "trian"),
            (["train"], "RECIPE"),
            (["train", "demo", "--seed", "x"], "--seed"),
            (["train", "demo", "--what"], "--what"),
            (["bench"], "Missing command"),
            (["bench", "loss", "--threads", "0"], "--threads"),
        ],
    )
    def test_a_mistake_on_the_line_is_one_line_too(self, densekd, arguments, told):
        code, out, err = densekd(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert told in err
        assert "--help)" in err
        assert err.count("\n") == 1

    def test_a_recipe_that_is_not_there_is_not_called_bad_yaml(self, densekd):
        _, _, err = densekd("train", "demoo")
        assert err.startswith("error: recipe 'demoo': no such file")
        assert "YAML" not in err

    def test_the_demo_refuses_a_key_before_it_trains(self, densekd, tmp_path):
        code, _, err = densekd("demo", "foo=1", "--out", str(tmp_path / "demo"))
        assert code == 2
        assert "unknown key 'foo'" in err
        code, _, err = densekd("demo", "teacher.model=smp:FPN", "--out", str(tmp_path / "demo"))
        assert code == 2
        assert "the keys of its teacher are fixed" in err
        assert not (tmp_path / "demo").exists()

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
    def test_out_of_memory_names_the_knobs(self, densekd, monkeypatch, error):
        def fail(*_args, **_kwargs):
            raise error

        monkeypatch.setattr("densekd.config.load_recipe", fail)
        monkeypatch.setattr("densekd.runs.train", fail)
        code, _, err = densekd("train", "demo")
        assert code == 2
        assert "out of memory" in err
        assert "train.batch_size" in err

    @pytest.mark.parametrize("of", ["recipe", "record", "study", "bench"])
    def test_schemas_are_printed(self, densekd, of):
        code, out, _ = densekd("list", "schema", "--of", of)
        schema = json.loads(out)
        assert code == 0
        assert of == "recipe" or "schema" in schema["properties"]

    def test_debug_shows_the_traceback_anywhere_on_the_line(self, densekd):
        with pytest.raises(Exception, match="demoo"):
            densekd("train", "demoo", "--debug")
        with pytest.raises(Exception, match="demoo"):
            densekd("--debug", "train", "demoo")

    def test_a_defect_says_that_it_is_one(self, densekd, monkeypatch):
        def broken(*_args):
            raise KeyError("oops")

        monkeypatch.setattr(densekd_module(), "load_recipe", broken)
        code, _, err = densekd("train", "demo")
        assert code == 1
        assert "internal error: KeyError: 'oops'" in err
        assert "--debug" in err

    def test_whatever_the_users_own_code_raises_is_one_line(self, densekd, place, tmp_path):
        (tmp_path / "own.py").write_text(
            "from torch import nn\nclass Net(nn.Module):\n    def forward(self, images):\n"
            "        raise BaseException('b')\ndef build(num_classes):\n    return Net()\n"
        )
        code, out, err = densekd("train", place / "tiny.yaml", "student.model=own.py:build")
        assert (code, out) == (2, "")
        assert err.splitlines()[-1] == f"error: {tmp_path}/own.py:4: BaseException: b (in your own code)"

    def test_a_full_disk_is_no_defect(self, densekd, monkeypatch):
        def full(*_args):
            raise OSError(28, "No space left on device", "runs/x")

        monkeypatch.setattr(densekd_module(), "load_recipe", full)
        code, _, err = densekd("train", "demo")
        assert code == 2
        assert err.startswith("error: runs/x: could not be written: no space left on the disk; make room there")
        assert err.count("\n") == 1


def densekd_module():
    import densekd.config

    return densekd.config


class TestTrainAndAfter:
    def test_train_evaluate_list_and_overwriting(self, densekd, place):
        code, out, err = densekd("train", place / "tiny.yaml", "seed=4", "train.steps=2", "--out", "r")
        assert code == 0
        rows = [line.split("\t") for line in out.splitlines()]
        assert rows[0] == ["weights", "split", "mIoU", "pixel accuracy", "images"]
        assert [row[0] for row in rows[1:]] == ["best, step 2", "final, step 2"]
        assert "step\tsteps\tloss\tlr" in err
        assert "student: r/student.safetensors" in err
        assert Run.load("r").record.seed == 4

        code, out, err = densekd("train", place / "tiny.yaml", "--out", "r")
        assert (code, out) == (2, "")
        assert "r: exists; it is never overwritten unasked" in err

        code, out, err = densekd("evaluate", "r", "--json", "--quiet")
        assert (code, err) == (0, "")
        assert json.loads(out)["miou"] == Run.load("r").record.best.miou

        code, out, _ = densekd("evaluate", "r", "--per-class", "-q")
        assert [line.split("\t")[1] for line in out.splitlines()] == ["class", "mean", "sky", "road", "tree"]

        code, out, err = densekd("list", "runs", "--folder", ".", "--json")
        assert json.loads(out)[0]["status"] == "done"

    def test_quiet_json(self, densekd, place):
        code, out, err = densekd("train", place / "tiny.yaml", "train.steps=1", "--out", "r", "--quiet", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["status"] == "done"

    def test_dry_run_writes_nothing_and_prints_a_recipe(self, densekd, place, tmp_path):
        code, out, err = densekd("train", place / "tiny.yaml", "--dry-run", "--seed", 5)
        assert code == 0
        assert load_recipe(yaml.safe_load(out)).seed == 5
        assert "training images: 10, 3 in a batch; validation images: 4; 6 steps; nothing was trained or written" in err
        assert list(tmp_path.iterdir()) == []

    def test_dry_run_looks_at_the_folder_as_a_run_does(self, densekd, place, tmp_path):
        densekd("train", place / "tiny.yaml", "train.steps=1", "--out", "r", "-q")
        (tmp_path / "file").write_text("")
        for out, told in (("r", "r: exists; it is never overwritten unasked"), ("file/run", "run: cannot be written")):
            said = [densekd("train", place / "tiny.yaml", "--out", out, *more) for more in ([], ["--dry-run"])]
            assert said[0] == said[1]
            assert said[0][:2] == (2, "")
            assert told in said[0][2]
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")}
        assert densekd("train", place / "tiny.yaml", "--out", "r", "--dry-run", "--force")[0] == 0
        code, _, err = densekd("train", "r", "--dry-run", "--resume")
        assert code == 0
        assert "r: this run is done already; nothing to resume" in err
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")} == before

    @pytest.mark.parametrize(
        ("command", "more"),
        [("train", []), ("train", ["--dry-run"]), ("distill", []), ("distill", ["--dry-run"]), ("doctor", [])],
    )
    def test_a_network_that_cannot_be_trained(self, densekd, place, tmp_path, command, more):
        (place / "narrow.py").write_text(
            "from torch import nn\n\ndef build(num_classes):\n    return nn.Conv2d(3, 2, 1)\n"
        )
        own = f"student.model={place}/narrow.py:build"
        checked = ["teacher.untrained=true", "teacher.checkpoint=null"] if command != "train" else []
        code, out, err = densekd(command, place / "dist.yaml", own, *checked, *more)
        assert (code, out) == (2, "")
        assert f"\nerror: student ({place}/narrow.py:build) gives a tensor of shape (3, 2, 16, 24)" in err
        assert "expected (3, 3, h, w), a map for each of the 3 classes" in err
        assert list(tmp_path.iterdir()) == []

    def test_a_resume_by_the_other_command_names_the_right_one(self, densekd, place):
        untrained = ["teacher.untrained=true", "teacher.checkpoint=null", "train.steps=1"]
        assert densekd("distill", place / "dist.yaml", *untrained, "--out", "r", "-q")[0] == 0
        code, _, err = densekd("train", "r", "--resume")
        assert code == 2
        assert err.startswith("error: r: this run is distilled (channelwise) and cannot go on without its teacher")
        assert "`densekd distill r --resume`" in err

    def test_evaluate_refuses_what_it_does_not_read(self, densekd, place):
        densekd("train", place / "tiny.yaml", "train.steps=1", "--out", "r", "-q")
        code, out, err = densekd("evaluate", "r", "student.options.width=9")
        assert (code, out) == (2, "")
        executed, refused = err.splitlines()
        assert executed.endswith("nets.py is executed: the recipe of r names it as its student")
        assert refused.startswith("error: override student.options.width: an evaluation does not read it")

    def test_a_resume_of_a_run_folder_needs_no_out(self, densekd, place):
        densekd("train", place / "tiny.yaml", "train.steps=1", "--out", "elsewhere", "-q")
        code, _, err = densekd("train", "elsewhere", "--resume")
        assert code == 0
        assert "elsewhere: this run is done already" in err

    def test_force_starts_again_in_the_named_folder_and_nowhere_else(self, densekd, place, tmp_path):
        # both have the recipe's name: by name alone the other one would be meant
        run = train(recipe(place), out=tmp_path / "runs" / "tiny", train__steps=1)
        before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        for folder, start in (
            ("copy", lambda folder: densekd("train", folder, "seed=9", "--force", "-q")),
            ("other", lambda folder: train(folder, seed=9, force=True)),
        ):
            shutil.copytree(run.path, tmp_path / folder)
            start(folder)
            assert Run.load(tmp_path / folder).record.seed == 9
        assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
        assert densekd("train", "copy")[2].startswith("error: runs/tiny: exists; it is never overwritten unasked")


class TestList:
    @pytest.mark.parametrize(
        ("what", "expected"),
        [
            ("methods", {"channelwise", "none"}),
            ("data", {"cityscapes", "voc", "ade20k", "camvid", "cocostuff"}),
            pytest.param("recipes", set(shipped_recipes()), marks=pytest.mark.slow),
            pytest.param("published", {"cityscapes/pspnet_r101-pspnet_r18"}, marks=pytest.mark.slow),
            pytest.param("models", set(), marks=pytest.mark.slow),
        ],
    )
    def test_tables_are_tab_separated_and_json(self, densekd, what, expected):
        code, out, _ = densekd("list", what)
        assert code == 0
        header, *lines = [line.split("\t") for line in out.splitlines()]
        assert lines
        assert all(len(line) == len(header) for line in lines)
        assert expected <= {line[0] for line in lines}
        assert len(json.loads(densekd("list", what, "--json")[1])) == len(lines)

    def test_schema_and_no_runs(self, densekd):
        assert "properties" in json.loads(densekd("list", "schema")[1])
        assert densekd("list", "runs", "--json") == (0, "[]\n", "no runs: runs is no folder\n")
        Path("runs").mkdir()
        assert densekd("list", "runs", "--json") == (0, "[]\n", "no runs under runs\n")

    def test_runs_that_cannot_be_read_are_listed_with_the_reason(self, densekd, place, monkeypatch):
        for name in ("b", "d"):
            assert densekd("train", place / "tiny.yaml", "train.steps=1", "--out", f"runs/{name}", "-q")[0] == 0
        Path("runs/a").mkdir()
        Path("runs/c").mkdir()
        Path("runs/c/record.json").write_text("{")
        scan, text = os.scandir, Path.read_text

        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        def scanned(path):
            return refuse(path) if not isinstance(path, int) and Path(path).name == "a" else scan(path)

        monkeypatch.setattr(os, "scandir", scanned)
        monkeypatch.setattr(
            Path,
            "read_text",
            lambda self, *args, **more: refuse(self) if self.parent.name == "d" else text(self, *args, **more),
        )
        code, out, err = densekd("list", "runs", "--json")
        rows = {row["run"]: row["status"] for row in json.loads(out)}
        assert (code, err) == (0, "")
        assert list(rows) == ["runs/a", "runs/b", "runs/c", "runs/d"]
        assert rows["runs/a"] == "unreadable: Permission denied"
        assert rows["runs/b"] == "done"
        assert "not readable as JSON" in rows["runs/c"]
        assert "Permission denied" in rows["runs/d"]


class TestProcess:
    def test_help_and_version_are_quick(self):
        seconds = []
        for _ in range(3):
            begin = os.times().children_user
            done = subprocess.run([*DENSEKD, "--help"], capture_output=True, text=True, check=True)
            seconds.append(os.times().children_user - begin)
        assert "distill" in done.stdout
        assert min(seconds) < 1.0

    def start(self, place, tmp_path, *more):
        command = [*DENSEKD, "train", str(place / "tiny.yaml"), "train.steps=100000", "--out", "r", *more]
        child = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        deadline = time.monotonic() + 200
        while not (tmp_path / "r" / "checkpoints" / "latest").is_file():
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return child

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("number", "code", "workers"), [(signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 0)]
    )
    def test_a_signal_to_the_whole_group(self, place, tmp_path, number, code, workers):
        child = self.start(place, tmp_path, f"runtime.workers={workers}")
        os.killpg(child.pid, number)
        out, err = child.communicate(timeout=200)
        assert (child.returncode, out) == (code, "")
        assert re.search(r"^go on with: densekd train \S+tiny\.yaml train\.steps=100000 .*--out r --resume$", err, re.M)
        assert "stopped after step" in err
        again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
        assert f"stopping after this step; {again} stops at once\n" in err
        assert "Traceback" not in err
        assert Run.load(tmp_path / "r").record.status == "interrupted"
        # no loading process is left
        with pytest.raises(ProcessLookupError):
            os.killpg(child.pid, 0)

    @pytest.mark.slow
    def test_sigterm_before_the_training(self, tmp_path, place):
        child = subprocess.Popen([*DENSEKD, "train", str(place / "tiny.yaml")], cwd=tmp_path, stderr=subprocess.PIPE)
        time.sleep(0.7)
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=100)
        assert child.returncode in {143, -15}  # -15: it came before the command line had started
        assert b"Traceback" not in err

    @pytest.mark.slow
    def test_a_narrow_encoding(self):
        narrow = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run([*DENSEKD, "list", "mödels"], capture_output=True, env=narrow)
        assert done.returncode == 2
        assert done.stderr.startswith(rb"error: list 'm\xf6dels': unknown")

    @pytest.mark.slow
    def test_a_reader_who_leaves(self):
        command = f"{sys.executable} -m densekd.cli.main list recipes | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert done.stderr == ""

    @pytest.mark.slow
    def test_a_terminal_sees_bars_and_a_drawn_table(self, place, tmp_path):
        leader, follower = pty.openpty()
        command = [*DENSEKD, "train", str(place / "tiny.yaml"), "train.steps=3", "--out", "r"]
        child = subprocess.Popen(
            command, cwd=tmp_path, stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm"}
        )
        os.close(follower)
        seen = b""
        while True:
            try:
                block = os.read(leader, 4096)
            except OSError:
                break
            if not block:
                break
            seen += block
        assert child.wait(timeout=60) == 0
        text = seen.decode()
        assert "training" in text
        assert "3/3" in text or "2/3" in text
        assert "┃" in text
        assert "\t" not in text


def test_paths_in_messages_are_the_users(densekd, place):
    code, _, err = densekd("train", place / "tiny.yaml", "student.model=nets.py:student", "data.root=.")
    assert code == 2
    assert str(Path.cwd()) in err
