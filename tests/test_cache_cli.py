"""`densekd cache`: build, info, verify, prune."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest
import yaml

from clikit import densekd as densekd
from densekd.runs.cache.survey import look, prunable, remove
from densekd.teacher_cache import MapWriter, read_header
from runkit import distillation
from studykit import place_with_teacher
from test_cache_views import key, lay


def rows(out: str) -> list[dict[str, str]]:
    head, *lines = [line.split("\t") for line in out.splitlines()]
    return [dict(zip(head, line, strict=True)) for line in lines]


class TestPrune:
    """Which sets go: no recipe, no network."""

    @pytest.fixture
    def root(self, tmp_path):
        """Two unfinished sets, one of them old; a folder that is none."""
        root = tmp_path / "sets"
        lay(root, key(), "new")
        lay(root, key(flip=0.1), "old")
        past = time.time() - 10 * 86400
        os.utime(root / "old" / "header.json", (past, past))
        (root / "mine").mkdir()
        (root / "mine" / "header.txt").write_text("x")
        return root

    @staticmethod
    def names(root, *given, **options):
        return [one.folder.path.name for one in prunable(root, *given, **options)[0]]

    def test_what_is_asked_for(self, root):
        assert self.names(root) == ["new", "old"]
        assert self.names(root, [key()]) == ["old"]
        assert self.names(root, [key(views=2)]) == ["old"]  # the larger set serves it
        assert self.names(root, older_than=5) == ["old"]
        assert self.names(root, older_than=11) == []
        (root / "new" / "set.json").write_text("{}")
        assert self.names(root, unfinished=True) == ["old"]

    def test_folders_with_other_files_stay(self, root):
        (root / "old" / "notes.txt").write_text("mine")
        doomed, told = prunable(root)
        assert [one.folder.path.name for one in doomed] == ["new"]
        assert told == [f"left as it is: {root / 'old'}: holds files that are not a set's (notes.txt)"]

    def test_a_damaged_header_is_left(self, root):
        (root / "old" / "header.json").write_text("{}")
        doomed, told = prunable(root)
        assert [one.folder.path.name for one in doomed] == ["new"]
        assert "damaged" in told[0]

    def test_a_set_that_is_being_built(self, root):
        header = read_header(root / "new")
        with MapWriter(root / "new", header.key, taps=header.taps, views=4, images=5, encoding="int8", class_taps=()):
            doomed, told = prunable(root)
        assert [one.folder.path.name for one in doomed] == ["old"]
        assert told == [f"left as it is: {root / 'new'}: a process is building it"]

    def test_a_set_whose_building_began_since_it_was_looked_at(self, root):
        doomed, _ = prunable(root)
        header = read_header(root / "new")
        with MapWriter(root / "new", header.key, taps=header.taps, views=4, images=5, encoding="int8", class_taps=()):
            told = [remove(one) for one in doomed]
        assert told == [f"left as it is: {root / 'new'}: a process is building it", None]
        assert sorted(path.name for path in root.iterdir()) == ["mine", "new"]
        assert remove(doomed[1]) is None  # gone already

    def test_a_set_itself(self, root):
        assert self.names(root / "old") == ["old"]
        assert self.names(root / "old", [key(flip=0.1)]) == []

    def test_a_file_that_a_builder_renames_at_this_moment(self, root, monkeypatch):
        (folder,) = [one.folder for one in prunable(root)[0] if one.folder.path.name == "new"]
        size, entries = folder.bytes, [*folder.path.iterdir(), folder.path / ".rank000-00000.maps.1.part"]
        monkeypatch.setattr(type(root), "iterdir", lambda _path: iter(entries))
        assert folder.bytes == size
        assert look(folder).state == "unfinished"

    @pytest.mark.slow
    def test_the_command(self, root, densekd):
        code, out, err = densekd("cache", "prune", root)
        assert (code, out) == (2, "")
        assert "2 sets" in err
        assert "give --yes" in err
        code, out, err = densekd("cache", "prune", root, "--dry-run")
        assert [row["set"] for row in rows(out)] == ["new", "old"]
        assert "would free" in err
        assert (root / "old").exists()
        code, out, err = densekd("cache", "prune", root, "--older-than", 5, "--yes", "--json")
        assert [row["set"] for row in json.loads(out)] == ["old"]
        assert sorted(path.name for path in root.iterdir()) == ["mine", "new"]
        assert "freed" in err
        code, out, err = densekd("cache", "prune", root / "new", "--yes")
        assert [row["set"] for row in rows(out)] == ["new"]
        assert sorted(path.name for path in root.iterdir()) == ["mine"]

    @pytest.mark.slow
    def test_info_of_unfinished_sets(self, root, densekd):
        code, out, _ = densekd("cache", "info", root)
        assert code == 0
        assert [(row["set"], row["state"]) for row in rows(out)] == [
            ("new", "unfinished, 0/20"),
            ("old", "unfinished, 0/20"),
        ]
        assert rows(out)[1]["age"] == "10 d"
        code, out, _ = densekd("cache", "verify", root / "new")
        assert (code, rows(out)) == (0, [{"set": "new", "state": "unfinished", "damaged": "0"}])

    @pytest.mark.slow
    def test_a_folder_without_sets_is_not_called_sound(self, tmp_path, densekd):
        code, out, err = densekd("cache", "verify", str(tmp_path))
        assert (code, out) == (0, "")
        assert f"{tmp_path}: no sets; nothing was checked" in err

    @pytest.mark.slow
    def test_no_such_folder(self, densekd):
        for command in ("info", "verify", "prune"):
            code, _, err = densekd("cache", command, "nowhere")
            assert (code, err.count("\n")) == (2, 1)
            assert "nowhere: no such folder" in err


@pytest.mark.slow
class TestBuild:
    @pytest.fixture(scope="class")
    @classmethod
    def recipe(cls, tmp_path_factory):
        place = place_with_teacher(tmp_path_factory.mktemp("data"))
        raw = distillation(place, place / "teacher")
        raw["distill"] = {"cache": {"root": str(place / "sets"), "views": 2, "encoding": "int8"}}
        (place / "r.yaml").write_text(yaml.safe_dump(raw))
        return place / "r.yaml"

    def test_from_the_question_to_the_last_byte(self, recipe, densekd):
        root = recipe.parent / "sets"
        code, _, err = densekd("cache", "build", recipe)
        assert code == 2
        assert "--yes" in err.splitlines()[-1]
        assert not root.exists()

        code, out, err = densekd("cache", "build", recipe, "--yes")
        assert code == 0, err
        assert [(row["tap"], row["map"]) for row in rows(out)] == [("output", "3x16x24"), ("2", "10x16x24")]
        assert "2 views of 10 images, int8" in err
        (folder,) = root.iterdir()

        code, out, err = densekd("cache", "build", recipe, "--json", "--quiet")  # it is there: nothing is asked
        assert code == 0, err
        assert json.loads(out)["folder"] == str(folder)

        code, out, _ = densekd("cache", "info", root)
        (row,) = rows(out)
        assert (row["state"], row["images"], row["views"], row["encoding"]) == ("whole", "10", "2", "int8")
        assert row["teacher"].startswith("nets.py:teacher ")
        code, out, _ = densekd("cache", "info", folder, "--json")
        assert json.loads(out)[0]["taps"] == {"output": [3, 16, 24], "2": [10, 16, 24]}

        code, out, _ = densekd("cache", "verify", root, "--quiet")
        assert (code, rows(out)[0]["state"]) == (0, "sound")
        spare = shutil.copytree(root, recipe.parent / "spare")
        path = next(spare.glob("*/*.maps"))
        data = bytearray(path.read_bytes())
        data[300] ^= 1
        path.write_bytes(data)
        code, out, err = densekd("cache", "verify", spare, "--quiet")
        assert (code, rows(out)[0]["state"]) == (1, "damaged")
        assert f"error: {path}: damaged" in err

        code, out, _ = densekd("cache", "prune", root, "--keep", recipe, "--yes", "--quiet")
        assert (code, out) == (0, "")
        assert folder.exists()
        code, _, err = densekd("cache", "build", recipe, "distill.cache=null")
        assert code == 2
        assert "distill.cache is null" in err

    def test_ctrl_c(self, recipe, densekd, monkeypatch):
        from densekd.cli.show import Watch

        def stopping(self, done, views):
            if done == 3:
                os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(Watch, "caching", stopping)
            code, _, err = densekd("cache", "build", recipe, "data.augment.flip=1.0", "--yes")
        assert code == 130
        assert "3 of 20 views that were missing are stored and kept" in err
        assert f"go on with: densekd cache build {recipe} data.augment.flip=1.0 --yes\n" in err
        code, _, err = densekd("cache", "build", recipe, "data.augment.flip=1.0", "--yes")
        assert code == 0
        assert "17/17" in err

    def test_doctor_says_which_set_will_be_read(self, recipe, densekd):
        code, _, err = densekd("doctor", recipe, "distill.cache.views=1")
        assert code == 0, err
        assert "cache: reading" in err  # the larger set serves
