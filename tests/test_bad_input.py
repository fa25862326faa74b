"""The corpus of odd files: read, refused in words, or left out as `data.on_error` says."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import corpuskit
import runkit
from densekd.cli.main import _run
from densekd.config import load_recipe, recipe_digest
from densekd.data.build import DataBundle, build_data
from densekd.data.folder import files_below
from densekd.data.images import check_image, read_image
from densekd.data.left_out import LeftOut, allowed, in_words, settle
from densekd.data.masks import MaskReader
from densekd.data.specs import AugmentSpec, FolderSpec, MasksSpec, UnlabelledFilesSpec
from densekd.data.transforms import TrainTransform
from densekd.data.views import TrainView
from densekd.errors import ConfigError, DataError, ResourceError, RunError
from densekd.runs import train
from densekd.runs.progress import Quiet
from densekd.training.batcher import Batcher
from densekd.training.signals import Interrupted
from densekd.training.stepper import StepResult

SMALL = {name: make for name, make in corpuskit.GOOD.items() if name not in ("long.png", "tall.png")}
AS_STORED = {"flip": 0.0, "scale": [1.0, 1.0], "crop": [16, 16]}


class StopsAt(Quiet):
    """Sends Ctrl-C to itself after so many steps."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, taken: int, steps: int, result: StepResult) -> None:
        if taken == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def code(command: list[str]) -> int:
    """The exit code of a command."""
    try:
        return _run(command)
    except SystemExit as error:
        return int(error.code or 0)


def odd_mask(name: str) -> corpuskit.Make:
    """A mask of the size of an image of the corpus."""
    return corpuskit.saved(Image.fromarray(np.resize(corpuskit.IDS, corpuskit.size_of(name))), "PNG")


def build(root: Path, **options: Any) -> DataBundle:
    return build_data(FolderSpec(root=str(root), classes=runkit.NAMES, augment=AS_STORED, **options))


@pytest.mark.parametrize("name", corpuskit.GOOD)
def test_an_odd_image_is_read(tmp_path: Path, name: str) -> None:
    corpuskit.GOOD[name](tmp_path / name)
    image = read_image(tmp_path / name)
    assert (image.dtype, image.shape) == (torch.uint8, (3, *corpuskit.size_of(name)))
    assert check_image(tmp_path / name) == corpuskit.size_of(name)


@pytest.mark.parametrize("name", corpuskit.BAD)
def test_a_bad_image_is_refused_by_the_check_and_by_the_reader(tmp_path: Path, name: str) -> None:
    make, words = corpuskit.BAD[name]
    make(tmp_path / name)
    for use in (check_image, read_image):
        with pytest.raises(DataError, match=words) as found:
            use(tmp_path / name)
        assert str(found.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", corpuskit.BAD_MASKS)
def test_a_bad_mask_is_refused(tmp_path: Path, name: str) -> None:
    make, words = corpuskit.BAD_MASKS[name]
    corpuskit.put_pair(tmp_path, "train", "a.png", mask=make)
    corpuskit.put_pair(tmp_path, "val", "b.png")
    with pytest.raises(DataError, match=words) as found:
        build(tmp_path)
    assert str(tmp_path / "train" / "masks" / "a.png") in str(found.value)
    with pytest.raises(DataError, match=words.split("image 24x16")[0]):
        build(tmp_path, check=False).train.load(0)


def test_a_header_that_claims_too_much_is_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpuskit.BAD["bomb.png"][0](tmp_path / "bomb.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    for use in (check_image, read_image, MaskReader(MasksSpec(), runkit.NAMES, 255).read):
        with pytest.raises(DataError, match="not decoded"):
            use(tmp_path / "bomb.png")


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_want_of_memory_or_handles_is_no_fault_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    corpuskit.put_pair(tmp_path, "train", "a.png")
    corpuskit.put_pair(tmp_path, "val", "b.png")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ResourceError, match=r"\.png: cannot be read now: (out of memory|.*Too many open files)"):
        build(tmp_path, on_error="skip")


def test_a_link_that_leads_back_is_named_and_other_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / "deep" / "a.png").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").touch()
    (tmp_path / "images" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "again").symlink_to(tmp_path / "images" / "deep")
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path / "images")]
    assert found == ["images/again/a.png", "images/deep/a.png", "images/more/b.png"]
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
    with pytest.raises(DataError, match=r"images/more/back: a link that leads back to .*/images, in which it lies"):
        files_below(tmp_path / "images")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images" / "closed").mkdir(parents=True)
    scan = os.scandir

    def refuse(path: Any) -> Any:  # what the kernel does for who is not root
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"images/closed: folder cannot be read \(Permission denied\)"):
        files_below(tmp_path / "images")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    corpuskit.GOOD["plain.png"](tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    for use in (check_image, read_image):
        with pytest.raises(DataError, match=r"a\.png: cannot be read as an image \(Permission denied\)"):
            use(tmp_path / "a.png")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 training images of which one is truncated, and two validation images; nobody changes them."""
    root = tmp_path_factory.mktemp("large")
    for number in range(100):
        corpuskit.put_pair(root, "train", f"{number:02}.png")
    corpuskit.BAD["truncated.png"][0](root / "train" / "images" / "41.png")
    corpuskit.put_pair(root, "val", "a.png")
    corpuskit.put_pair(root, "val", "b.png")
    return root


@pytest.fixture
def large(shared: Path, tmp_path: Path) -> Path:
    """A copy of `shared`, to be changed."""
    return Path(shutil.copytree(shared, tmp_path / "large"))


class TestOnError:
    def test_one_percent_rounded_down(self) -> None:
        assert [allowed(count) for count in (0, 1, 99, 100, 199, 200, 2975)] == [0, 0, 0, 1, 1, 2, 29]

    def test_stop_names_the_file_and_the_way_out(self, shared: Path) -> None:
        with pytest.raises(DataError, match=r"1 problem in 102 image-mask pairs \(data.on_error=skip leaves") as found:
            build(shared)
        assert f"{shared}/train/images/41.png: cannot be read" in str(found.value)

    def test_skip_leaves_it_out_and_says_so(self, shared: Path) -> None:
        found = build(shared, on_error="skip")
        assert len(found.train) == 99
        assert "41" not in {found.train.name_of(index) for index in range(99)}
        assert found.left_out["train"].count == found.lacking(found.train) == 1
        assert found.lacking(found.val) == 0
        heading = "train: 1 of 100 left out, whose files cannot be used (data.on_error: skip)"
        place = found.notices.index(heading)
        assert found.notices[place + 1].startswith(f"train: left out: {shared}/train/images/41.png: cannot be read")

    @pytest.mark.slow
    def test_a_second_one_is_more_than_a_hundredth(self, large: Path) -> None:
        corpuskit.BAD["empty.png"][0](large / "train" / "images" / "42.png")
        with pytest.raises(DataError, match=r"2 problems in 100 .*\(more than 1% of a split: train: 2 of 100\)"):
            build(large, on_error="skip")
        with pytest.raises(DataError, match="2 problems") as found:
            build(large)
        assert "data.on_error" not in str(found.value)

    @pytest.mark.slow
    def test_a_small_split_loses_none(self, large: Path) -> None:
        corpuskit.BAD["empty.png"][0](large / "val" / "images" / "a.png")
        with pytest.raises(DataError, match="val: 1 of 2"):
            build(large, on_error="skip")

    @pytest.mark.slow
    def test_images_without_labels_too(self, large: Path) -> None:
        more = large / "more"
        more.mkdir()
        for number in range(100):
            corpuskit.GOOD["plain.png"](more / f"{number}.png")
        corpuskit.BAD["empty.png"][0](more / "7.png")
        unlabelled = UnlabelledFilesSpec(root=str(more))
        found = build(large, on_error="skip", unlabelled=unlabelled)
        assert found.unlabelled is not None
        assert len(found.unlabelled) == 99
        assert found.lacking(found.unlabelled) == 1

    def test_what_is_left_out_of_a_scored_split_is_told_with_the_score(self) -> None:
        problems = tuple(f"{number}.png: bad" for number in range(12))
        lines = in_words({"val": LeftOut(1200, problems)})
        assert lines[0].endswith("(data.on_error: skip); scores on val are of the other 1188")
        assert len(lines) == 12
        assert lines[-1] == "val: left out: and 2 more; `densekd data check --all` lists all"

    def test_a_file_of_two_splits_counts_in_both(self) -> None:
        seen: dict[str, int | DataError] = dict.fromkeys(map(str, range(100)), 1) | {"7": DataError("7: bad")}
        splits = {"train": list(seen), "val": list(seen)[:50]}
        with pytest.raises(DataError, match=r"1 problem in 50 .*val: 1 of 50"):
            settle(splits, seen, "skip", "files")
        assert settle({"train": list(seen)}, seen, "skip", "files") == {"train": LeftOut(100, ("7: bad",))}

    def test_it_needs_the_check(self) -> None:
        for name in ("folder", "camvid"):
            raw = {**runkit.recipe(Path("x")), "data": {"name": name, "root": "x", "check": False, "on_error": "skip"}}
            with pytest.raises(ConfigError, match="on_error is 'skip' but check is false"):
                load_recipe(raw)

    def test_scenes_have_no_files(self) -> None:
        raw = {**runkit.recipe(Path("x")), "data": {"name": "scenes", "on_error": "skip"}}
        with pytest.raises(ConfigError, match=r"'data.on_error': it belongs to data.name="):
            load_recipe(raw)

    def test_recipes_without_it_keep_their_digest(self) -> None:
        raw = runkit.recipe(Path("/x"))
        digests = [recipe_digest(load_recipe(raw, {"data.on_error": value})) for value in ("stop", "skip")]
        assert recipe_digest(load_recipe(raw)) == digests[0] != digests[1]


def skipping(root: Path, **changes: Any) -> dict[str, Any]:
    raw = runkit.recipe(root)
    data = {**raw["data"], "on_error": "skip", "augment": {"scale": [0.8, 1.2], "crop": [16, 16]}}
    return {
        **raw,
        "data": data,
        "train": {**raw["train"], "batch_size": 16, "steps": 8, "evaluate_every": 4, "checkpoint_every": 4},
        **changes,
    }


@pytest.mark.slow
def test_a_run_without_the_files_that_cannot_be_used(
    large: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    (large / "nets.py").write_text(runkit.NETWORKS)
    for number in range(98):
        corpuskit.put_pair(large, "val", f"{number}.png")
    corpuskit.BAD["empty.png"][0](large / "val" / "images" / "13.png")
    out = tmp_path_factory.mktemp("runs")
    alone = train(skipping(large), out=out / "alone")
    shared = train(skipping(large, runtime={"device": "cpu", "threads": 1, "workers": 2}), out=out / "shared")
    assert runkit.log_without_times(out / "alone") == runkit.log_without_times(out / "shared")
    record = alone.record
    assert record.final == shared.record.final
    assert (record.left_out["train"].count, record.left_out["train"].of) == (1, 100)
    assert record.left_out["val"].problems == [
        f"{large}/val/images/13.png: cannot be read as an image (the file is empty)"
    ]
    assert record.images["train"].count == 99
    assert record.final is not None
    assert (record.final.images, record.final.left_out, record.final.counted) == (99, 1, "99 of 100")
    assert sum("left out" in line for line in record.warnings) == 4
    assert record.epochs == round(8 * 16 / 99, 4)

    assert code(["evaluate", str(out / "alone")]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("\t99 of 100")

    # Interrupted, and a file mended before it goes on: another set of images.
    with pytest.raises(Interrupted):
        train(skipping(large), out=out / "halved", progress=StopsAt(3))
    whole = (large / "val" / "images" / "14.png").read_bytes()
    broken = (large / "train" / "images" / "41.png").read_bytes()
    (large / "train" / "images" / "41.png").write_bytes(whole)
    with pytest.raises(RunError, match=r"train: 99 images .* when it began, now 100 images"):
        train(skipping(large), out=out / "halved", resume=True)
    (large / "train" / "images" / "41.png").write_bytes(broken)
    resumed = train(skipping(large), out=out / "halved", resume=True)
    assert runkit.log_without_times(out / "halved") == runkit.log_without_times(out / "alone")
    assert resumed.record.left_out == record.left_out
    assert sum("left out" in line for line in resumed.record.warnings) == 4


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_goes_bad_while_training_stops_it_by_name(tmp_path: Path, workers: int) -> None:
    for number in range(6):
        corpuskit.put_pair(tmp_path, "train", f"{number}.png")
    corpuskit.put_pair(tmp_path, "val", "a.png")
    data = build(tmp_path)
    view = TrainView(data.train, TrainTransform(AugmentSpec(**AS_STORED), 255), seed=0)
    corpuskit.BAD["spoiled-pixels.png"][0](tmp_path / "train" / "images" / "4.png")
    with pytest.raises(DataError, match=r"train/images/4\.png: cannot be read as an image"):
        list(Batcher(view, 6, 2, 0, workers=workers).batches(0, 3))


@pytest.mark.long
def test_all_that_works_is_trained_on_checked_predicted_and_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = runkit.make_place(tmp_path / 'it\'s a "place"; 日本', train=0, val=0)
    for split in ("train", "val"):
        # Long pictures are drawn for seconds each where all of them are.
        for name, make in corpuskit.GOOD.items() if split == "train" else SMALL.items():
            stem = name.replace(".", "-", 1) if name.startswith(("plain", "grey.")) else name
            suffix = Path(name).suffix
            corpuskit.put_pair(place, split, stem if stem.endswith(suffix) else stem + suffix, make, odd_mask(name))
    raw = runkit.recipe(place)
    raw["data"]["augment"] = {"scale": [0.8, 1.2], "crop": [16, 16]}
    runs = [
        train({**raw, "runtime": {**raw["runtime"], "workers": workers}}, out=tmp_path / f"run {workers}\nof 2")
        for workers in (0, 2)
    ]
    assert runs[0].record.final == runs[1].record.final
    capsys.readouterr()
    keys = [f"root={place}", "classes=[a, b, c]", "--out", str(tmp_path / "s.png"), "--samples", "2"]
    assert code(["data", "check", "folder", *keys]) == 0
    assert code(["evaluate", str(runs[0].path)]) == 0
    assert code(["predict", str(runs[0].path), str(place / "val" / "images"), "--out", str(tmp_path / "out")]) == 0
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert len(found) >= 2 * len(SMALL)


@pytest.mark.slow
def test_all_that_is_bad_is_named_by_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = runkit.make_place(tmp_path / "place")
    run = train(runkit.recipe(place), out=tmp_path / "run")
    for name, (make, _) in corpuskit.BAD.items():
        path = place / "val" / "images" / f"{Path(name).stem}-{Path(name).suffix[1:]}{Path(name).suffix}"
        make(path)
        corpuskit.saved(Image.fromarray(corpuskit.IDS), "PNG")(place / "val" / "masks" / f"{path.stem}.png")
    capsys.readouterr()
    bad = len(corpuskit.BAD)
    commands = [
        ["train", str(run.path), "--out", str(tmp_path / "again")],
        ["evaluate", str(run.path)],
        ["predict", str(run.path), str(place / "val" / "images"), "--out", str(tmp_path / "out")],
        ["data", "check", str(run.path), "--samples", "0", "--all"],
    ]
    for command in commands:
        assert code(command) == 2, command
        told = capsys.readouterr().err
        assert "Traceback" not in told
        words = rf"{bad} of \d+ images cannot be used" if command[0] == "predict" else f"{bad} problems"
        assert re.search(words, told)
    assert all(f"{Path(name).stem}-" in told for name in corpuskit.BAD)
    assert not (tmp_path / "again").exists()
