"""`densekd data`: what a survey of a data set counts and warns of, its sheet of samples, and the two commands."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import realdata
from densekd.cli.app import call
from densekd.cli.stopping import STOPPING
from densekd.cli.transfers import Transfers
from densekd.data.check import ProblemsError
from densekd.data.sources import SOURCES
from densekd.data.specs import FolderSpec, UnlabelledFilesSpec
from densekd.data.survey import Survey, class_rows, split_rows, survey
from densekd.data_check import check_files, chosen, files_of, report, sheet
from densekd.errors import DataError

NAMES = ("sky", "road", "tree")
LABELS = {
    ("train", "a"): [[0, 0, 1, 1], [0, 0, 1, 255]],
    ("train", "b"): [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
    ("train", "c"): [[255, 255], [255, 255]],
    ("val", "d"): [[0, 1, 255, 255]],
}


def put(root: Path, split: str, stem: str, label: Any, shade: int) -> None:
    ids = np.array(label, np.uint8)
    for kind in ("images", "masks"):
        (root / split / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*ids.shape, 3), shade, np.uint8)).save(root / split / "images" / f"{stem}.png")
    Image.fromarray(ids).save(root / split / "masks" / f"{stem}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    for shade, ((split, stem), label) in enumerate(LABELS.items()):
        put(folder, split, stem, label, 10 * shade)
    return folder


def spec(root: Path, **changes: Any) -> FolderSpec:
    return FolderSpec(root=str(root), classes=NAMES, **changes)


def look(root: Path, **changes: Any) -> Survey:
    return survey(files_of(spec(root, **changes)))


class TestSurvey:
    def test_files_sizes_and_void(self, root: Path) -> None:
        assert split_rows(look(root)) == [
            {
                "split": "train",
                "images": 3,
                "masks": "yes",
                "smallest": "2x2",
                "largest": "3x3",
                "sizes": 3,
                "void %": round(100 * 5 / 21, 3),
                "void all over": 1,
                "problems": 0,
            },
            {
                "split": "val",
                "images": 1,
                "masks": "yes",
                "smallest": "4x1",
                "largest": "4x1",
                "sizes": 1,
                "void %": 50.0,
                "void all over": 0,
                "problems": 0,
            },
        ]

    def test_small_and_large_are_areas(self, root: Path) -> None:
        put(root, "val", "wide", [[0] * 12], 70)
        put(root, "val", "high", [[0], [0], [1]], 80)
        row = split_rows(look(root))[1]
        assert (row["smallest"], row["largest"]) == ("1x3", "12x1")

    def test_classes_by_a_count_of_python(self, root: Path) -> None:
        rows = class_rows(look(root))
        for split in ("train", "val"):
            held = {
                stem: Counter(np.array(label).flatten().tolist()) for (of, stem), label in LABELS.items() if of == split
            }
            labelled = sum(count for one in held.values() for value, count in one.items() if value != 255)
            for place, name in enumerate(NAMES):
                pixels = sum(one[place] for one in held.values())
                assert rows[place]["class"] == name
                assert rows[place][f"{split} %"] == round(100 * pixels / labelled, 3)
                assert rows[place][f"{split} images"] == sum(one[place] > 0 for one in held.values())

    def test_odd_things_are_warnings(self, root: Path) -> None:
        put(root, "val", "copy", [[0, 0, 0, 0], [0, 0, 0, 0]], 0)  # the image of train/a, labelled otherwise
        put(root, "train", "twin", [[1, 1, 1], [1, 1, 1], [1, 1, 1]], 10)
        assert set(look(root).warnings) == {
            "train: no pixel of 'tree'",
            "train: 1 of 4 masks are void all over: c",
            "val: no pixel of 'tree'",
            "train: 1 images are there twice or more, byte for byte: b = twin",
            "val: 1 images are in train too, byte for byte: copy = a",
        }

    def test_a_split_that_is_all_void(self, root: Path) -> None:
        put(root, "val", "d", [[255, 255]], 90)
        assert "val: every pixel of its 1 masks is void: there is nothing to learn or score" in look(root).warnings

    def test_a_file_in_two_splits(self, root: Path) -> None:
        found = look(root, extra={"again": {"split": "train", "include": "^a$"}})
        assert "again: 1 images are in train too, byte for byte: a = a" in found.warnings
        assert found.files == 4

    def test_problems_are_told_with_the_rest_counted(self, root: Path) -> None:
        put(root, "train", "bad", [[7, 7]], 50)
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "train" / "masks" / "b.png")
        (root / "val" / "images" / "d.png").write_bytes(b"no picture")
        found = look(root)
        assert [len(split.problems) for split in found.splits] == [2, 1]
        assert [split.stems for split in found.splits] == [("a", "c"), ()]
        words = "\n".join(found.problems)
        for part in (
            "b.png: sizes differ: mask 5x5, image 3x3",
            "bad.png: label outside the range: 7",
            "d.png: cannot be",
        ):
            assert part in words
        assert split_rows(found)[1]["smallest"] is None
        assert class_rows(found)[0]["train images"] == 1

    def test_images_without_masks_are_opened_too(self, root: Path, tmp_path: Path) -> None:
        shutil.copytree(root / "train" / "images", tmp_path / "more")
        (tmp_path / "more" / "c.png").write_bytes(b"no picture")
        found = look(root, unlabelled=UnlabelledFilesSpec(root=str(tmp_path / "more")))
        last = split_rows(found)[-1]
        assert (last["split"], last["images"], last["masks"], last["problems"]) == ("unlabelled", 3, "no", 1)
        assert "unlabelled %" not in class_rows(found)[0]
        assert any(line.startswith("unlabelled: 2 images are in train too") for line in found.warnings)

    def test_progress_counts_every_file(self, root: Path) -> None:
        calls: list[tuple[int, int]] = []
        check_files(files_of(spec(root)), lambda *one: calls.append(one))
        assert calls == [(done, 4) for done in range(1, 5)]

    def test_the_report_is_plain_json(self, root: Path) -> None:
        found = look(root)
        assert json.loads(json.dumps(report(found)))["splits"] == split_rows(found)


class TestSheet:
    @pytest.mark.slow
    def test_what_is_shown(self, root: Path) -> None:
        found = files_of(spec(root, palette=[[255, 0, 0], [0, 255, 0], [0, 0, 255]]))
        drawn = sheet(found, survey(found), 4)
        assert drawn is not None
        mask = drawn.crop((340, 70, 640, 120)).getcolors(1 << 20)  # of train/a, whose upper half is of two classes
        assert {color for _, color in mask} == {(255, 0, 0), (0, 255, 0)}
        legend = drawn.crop((0, drawn.height - 40, drawn.width, drawn.height)).getcolors(1 << 20)
        assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= {color for _, color in legend}

    def test_nothing_usable_is_no_sheet(self, root: Path) -> None:
        for path in root.rglob("images/*.png"):
            path.write_bytes(b"no picture")
        found = files_of(spec(root))
        assert sheet(found, survey(found), 4) is None

    def test_the_choice_is_fixed_and_does_not_shift(self, root: Path) -> None:
        for number in range(20):
            put(root, "train", f"n{number}", [[0, 1]], number)
        pairs = files_of(spec(root)).splits["train"]
        stems = [pair.stem for pair in pairs]
        taken = [pair.stem for pair in chosen(pairs, stems, "train", 5)]
        assert taken == sorted(taken)
        assert taken != stems[:5]
        assert [pair.stem for pair in chosen(pairs[::-1], stems, "train", 5)] == taken
        without = [stem for stem in stems if stem not in taken[:1]]
        assert set(taken[1:]) <= {pair.stem for pair in chosen(pairs, without, "train", 5)}
        assert chosen(pairs, stems, "val", 5) != chosen(pairs, stems, "train", 5)


def test_problems_survive_a_copy() -> None:
    error = ProblemsError([str(number) for number in range(12)], 40, "files")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems, again.heading) == (str(error), error.problems, "12 problems in 40 files")
    assert str(error).endswith("\n  9\n  and 2 more")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def densekd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(STOPPING, "_said", False)
    monkeypatch.setattr(STOPPING, "asked", None)

    def run(*words: object) -> tuple[int, str, str]:
        try:
            code = call([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    return run


CLASSES = f"classes=[{', '.join(NAMES)}]"


class TestCheckCommand:
    @pytest.mark.slow
    def test_tables_and_the_sheet(self, densekd: Run, root: Path, tmp_path: Path) -> None:
        code, out, err = densekd("data", "check", "folder", f"root={root}", CLASSES)
        assert code == 0
        first, second = out.split("\n\n")
        assert first.splitlines()[1].split("\t")[:2] == ["train", "3"]
        assert second.splitlines()[0].split("\t") == ["id", "class", "train %", "train images", "val %", "val images"]
        assert "warning: train: no pixel of 'tree'" in err
        with Image.open(tmp_path / "folder-samples.png") as drawn:
            assert drawn.width > 900

    @pytest.mark.slow
    def test_a_sheet_is_not_overwritten(self, densekd: Run, root: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.png").write_text("mine")
        line = ("data", "check", "folder", f"data.root={root}", CLASSES, "--out", "mine.png", "-q")
        code, out, err = densekd(*line)
        assert (code, out) == (2, "")
        assert "mine.png: exists; use --force" in err
        assert densekd(*line, "--samples", "0")[0] == 0
        assert (tmp_path / "mine.png").read_text() == "mine"
        assert densekd(*line, "--force")[0] == 0
        with Image.open(tmp_path / "mine.png") as drawn:
            assert drawn.format == "PNG"

    def test_a_folder_is_no_place_for_the_sheet(self, densekd: Run, root: Path) -> None:
        line = ("data", "check", "folder", f"root={root}", CLASSES, "--out", root, "--force")
        code, out, err = densekd(*line)
        assert (code, out, err) == (2, "", f"error: {root}: a folder; --out takes the PNG file to write\n")

    def test_many_problems(self, densekd: Run, root: Path) -> None:
        for number in range(12):
            put(root, "train", f"bad{number:02}", [[7, 7]], number)
        line = ("data", "check", "folder", f"root={root}", CLASSES, "--samples", "0", "-q")
        code, _, err = densekd(*line)
        assert code == 2
        assert "error: 12 problems in 16 files" in err
        assert "and 2 more" in err
        _, _, err = densekd(*line, "--all")
        assert "bad11.png" in err
        assert "more" not in err
        _, out, _ = densekd(*line, "--json")
        assert len(json.loads(out)["problems"]) == 12

    def test_missing_files(self, densekd: Run, root: Path) -> None:
        for number in range(12):
            (root / "train" / "images" / f"alone{number:02}.png").write_bytes(b"")
        line = ("data", "check", "folder", f"root={root}", CLASSES)
        code, out, err = densekd(*line)
        assert (code, out) == (2, "")
        assert "alone00.png: mask missing" in err
        assert "and 2 more" in err
        assert "alone11.png: mask missing" in densekd(*line, "--all")[2]
        assert len(json.loads(densekd(*line, "--json")[1])["problems"]) == 12

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["folders", "root=x"], "no kind of data set, no recipe and no file; did you mean 'folder'"),
            (["folder", "rot=x"], "unknown key 'data.rot'; did you mean 'root'"),
            (["folder"], "key 'data.root' is missing"),
            (["voc", "root=/nowhere"], "/nowhere: not Pascal VOC 2012 in its official layout: no such folder"),
            (["demo"], "drawn scenes are no files"),
        ],
    )
    def test_mistakes(self, densekd: Run, words: list[str], told: str) -> None:
        code, out, err = densekd("data", "check", *words)
        assert (code, out) == (2, "")
        assert told in err
        assert "Traceback" not in err

    def test_the_data_of_a_recipe(self, densekd: Run, root: Path, tmp_path: Path) -> None:
        recipe = {"data": {"name": "folder", "root": "nowhere", "classes": NAMES}}
        recipe |= {"student": {"model": "smp:FPN"}, "train": {"steps": 1}}
        (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
        code, out, _ = densekd("data", "check", "mine.yaml", f"data.root={root}", "--json", "-q")
        assert code == 0
        assert [row["split"] for row in json.loads(out)["splits"]] == ["train", "val"]
        assert (tmp_path / "mine-samples.png").is_file()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "splits"),
        [
            ("cityscapes", {"train": "yes", "val": "yes", "test": "no"}),
            ("voc", {"train_aug": "yes", "val": "yes"}),
            ("ade20k", {"training": "yes", "validation": "yes"}),
            ("camvid", {"train": "yes", "val": "yes", "test": "yes"}),
            ("cocostuff", {"train2017": "yes", "val2017": "yes"}),
        ],
    )
    def test_every_benchmark(self, densekd: Run, tmp_path: Path, name: str, splits: dict[str, str]) -> None:
        keys = realdata.make(name, tmp_path / "real")
        code, out, err = densekd("data", "check", name, f"root={keys['root']}", "--json")
        assert code == 0, err
        found = json.loads(out)
        assert {row["split"]: row["masks"] for row in found["splits"]} == splits
        assert sum(row["images"] for row in found["splits"]) > 4
        labelled = [split for split, masks in splits.items() if masks == "yes"]
        for split in labelled:
            assert sum(row[f"{split} %"] for row in found["classes"]) == pytest.approx(100, abs=0.1)
        with Image.open(tmp_path / f"{name}-samples.png") as drawn:
            assert drawn.height > 100

    def test_ctrl_c(self, densekd: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("densekd.data.survey.check_pair", stop)
        code, out, err = densekd("data", "check", "folder", f"root={root}", CLASSES)
        assert (code, out, err) == (130, "", "interrupted\n")
        assert not (tmp_path / "folder-samples.png").exists()


class TestGetCommand:
    @pytest.mark.parametrize("name", SOURCES)
    def test_a_dry_run_asks_no_host(self, densekd: Run, tmp_path: Path, name: str) -> None:
        code, out, err = densekd("data", "get", name, "--dry-run", "--json")
        assert code == 0
        assert [row["archive"] for row in json.loads(out)] == [archive.name for archive in SOURCES[name].archives]
        assert SOURCES[name].terms in err
        assert list(tmp_path.iterdir()) == []

    def test_cityscapes_is_by_hand(self, densekd: Run) -> None:
        code, out, err = densekd("data", "get", "cityscapes", "--root", "city scapes")
        assert (code, out) == (2, "")
        assert "By hand:\n  1. register at https://www.cityscapes-dataset.com/register/" in err
        assert "csDownload -d 'city scapes' leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip" in err

    def test_no_host_answers(self, densekd: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise DataError("benchmark.tgz cannot be downloaded: no connection. By hand: put it there")

        monkeypatch.setattr("densekd.data.get.download", fail)
        code, out, err = densekd("data", "get", "camvid", "-q")
        assert (code, out) == (2, "")
        assert err == "error: benchmark.tgz cannot be downloaded: no connection. By hand: put it there\n"

    def test_ctrl_c_says_what_is_kept(self, densekd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("densekd.data.get.download", stop)
        code, _, err = densekd("data", "get", "camvid", "-q")
        assert code == 130
        assert "kept in data/camvid: the same command goes on" in err

    def test_an_unknown_name(self, densekd: Run) -> None:
        code, _, err = densekd("data", "get", "citiscapes")
        assert code == 2
        assert "did you mean 'cityscapes'" in err


class TestTransfers:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [0.0]
        monkeypatch.setattr("densekd.cli.transfers.time.monotonic", lambda: now[0])
        return now

    def test_a_plain_line_every_ten_seconds(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        with Transfers() as shown:
            for second in range(0, 25):
                clock[0] = second
                shown.moved("file.zip", 4_000_000 + second * 2_000_000, 100_000_000)
            shown.said("a line")
        lines = ["file.zip\t26.0/100.0 MB\t2.0 MB/s", "file.zip\t48.0/100.0 MB\t2.0 MB/s", "a line"]
        assert capsys.readouterr().err.splitlines() == lines

    def test_unknown_length_and_a_new_start(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        with Transfers() as shown:
            shown.moved("file.zip", 50_000_000, None)
            clock[0] = 100.0
            shown.moved("file.zip", 0, None)  # begun anew: the rate is of what arrives from now on
            clock[0] = 111.0
            shown.moved("file.zip", 22_000_000, None)
        assert capsys.readouterr().err == "file.zip\t22.0/? MB\t2.0 MB/s\n"

    def test_quiet(self, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
        with Transfers(quiet=True) as shown:
            shown.moved("file.zip", 0, 10)
            clock[0] = 100.0
            shown.moved("file.zip", 10, 10)
            shown.said("a line")
        assert capsys.readouterr().err == ""
