"""Images without labels: found and checked, void labels, their share of every batch, and what they teach."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densekd.config import load_recipe
from densekd.data.base import SegmentationSet
from densekd.data.build import DataBundle, build_data
from densekd.data.memory import InMemory
from densekd.data.specs import AugmentSpec, FolderSpec, ScenesDataSpec
from densekd.data.transforms import TrainTransform
from densekd.data.unlabelled import Joined, unlabelled_per_batch
from densekd.data.views import TrainView
from densekd.errors import ConfigError, DataError
from densekd.runs import Run, distill, train
from densekd.runs.assemble import assemble
from densekd.runs.execute import Quiet
from densekd.runs.length import total_steps
from densekd.runs.score import score_run
from densekd.tasks.segmentation import SegmentationTask
from densekd.tasks.specs import SegmentationSpec
from densekd.training.batcher import Batcher
from densekd.training.signals import Interrupted
from runkit import COLORS, NAMES, Heard, distillation, log_without_times, make_place, recipe


def pictures(folder: Path, names: list[str], size: tuple[int, int] = (16, 24), seed: int = 1) -> Path:
    """Images of coloured blocks, as those of `runkit.make_place`, without masks."""
    generator = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        label = generator.integers(0, 3, (size[0] // 8, size[1] // 8)).repeat(8, 0).repeat(8, 1)
        image = COLORS[label] + generator.normal(0, 12, (*label.shape, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return folder


def names(data: SegmentationSet) -> list[str]:
    return [data.name_of(i) for i in range(len(data))]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path / "data", train=5, val=2)


def build(place: Path, **unlabelled: Any) -> DataBundle:
    return build_data(FolderSpec(root=str(place), classes=NAMES, unlabelled=unlabelled))


class TestFiles:
    def test_images_of_every_kind_are_found_below_the_root(self, place: Path, tmp_path: Path) -> None:
        more = pictures(tmp_path / "more", ["b.JPG", "a.png", "deep/er/c.tif", "deep/d.jpeg"])
        (more / ".hidden.png").write_bytes(b"x")
        (more / "notes.txt").write_text("x")
        seen: list[tuple[int, int]] = []
        spec = FolderSpec(root=str(place), classes=NAMES, unlabelled={"root": str(more)})
        data = build_data(spec, progress=lambda done, total: seen.append((done, total)))
        assert data.unlabelled is not None
        assert isinstance(data.unlabelled, SegmentationSet)
        assert names(data.unlabelled) == ["a", "b", "deep/d", "deep/er/c"]
        assert "files checked: train 5, val 2 pairs, unlabelled 4 images" in data.notices
        assert "unlabelled: 1 files are no images and are left out: notes.txt" in data.notices
        assert seen[-4:] == [(n, 4) for n in range(1, 5)]
        assert (data.unlabelled.classes, data.unlabelled.ignore_index) == (NAMES, 255)
        assert data.unlabelled.palette == data.palette

    def test_every_pixel_is_void_and_the_image_is_the_file(self, place: Path, tmp_path: Path) -> None:
        more = pictures(tmp_path / "more", ["a.png"])
        data = build_data(
            FolderSpec(root=str(place), classes=NAMES, ignore_index=9, unlabelled={"root": str(more)})
        ).unlabelled
        image, label = data.load(0)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(more / "a.png")))
        assert (label.dtype, tuple(label.shape)) == (torch.int64, (16, 24))
        assert label.unique().tolist() == [9]

    def test_include_exclude_and_a_list_choose(self, place: Path, tmp_path: Path) -> None:
        more = pictures(tmp_path / "more", ["a_1.png", "a_2.png", "b_1.png"])
        (more / "some.txt").write_text("a_2.png\nb_1\n")
        assert names(build(place, root=str(more), include="^a").unlabelled) == ["a_1", "a_2"]
        assert names(build(place, root=str(more), exclude="^a").unlabelled) == ["b_1"]
        listed = build(place, root=str(more), list="some.txt")
        assert names(listed.unlabelled) == ["a_2", "b_1"]
        assert not any("are no images" in notice for notice in listed.notices)

    def test_what_is_wrong_is_told(self, place: Path, tmp_path: Path) -> None:
        more = pictures(tmp_path / "more", ["a.png", "b.jpg"])
        (more / "some.txt").write_text("a\nzebra\n")
        for changes, words in [
            ({"root": str(tmp_path / "nowhere")}, r"nowhere: no such folder \(data.unlabelled.root\)"),
            ({"root": str(place / "train")}, r"masks holds masks.*; set data.unlabelled.root to .*train/images"),
            ({"root": str(place)}, r"(train|val)/masks holds masks, and they would be taken for images"),
            ({"root": str(place / "val" / "masks")}, r"set data.unlabelled.root to .*val/images"),
            ({"root": str(more), "list": "some.txt"}, "more/zebra: in some.txt, but no such image"),
            ({"root": str(more), "include": "^z"}, "no images without masks; 2 files, none of them left by include"),
        ]:
            with pytest.raises(DataError, match=words):
                build(place, **changes)
        pictures(more, ["a.tif"])
        with pytest.raises(DataError, match=r"1 problem in 3 images without masks:\n.*duplicate stem"):
            build(place, root=str(more))

    def test_every_file_is_opened_at_the_start(self, place: Path, tmp_path: Path) -> None:
        more = pictures(tmp_path / "more", [f"{n}.png" for n in range(14)])
        for number in range(12):
            (more / f"{number}.png").write_bytes(b"no picture")
        with pytest.raises(DataError, match=r"12 problems in 14 images without masks:[\s\S]*and 2 more"):
            build(place, root=str(more))
        unchecked = build_data(FolderSpec(root=str(place), classes=NAMES, check=False, unlabelled={"root": str(more)}))
        assert len(unchecked.unlabelled) == 14
        with pytest.raises(DataError, match="cannot be read as an image"):
            unchecked.unlabelled.load(0)

    def test_sizes_that_form_no_batch_are_refused(self, place: Path, tmp_path: Path) -> None:
        more = pictures(tmp_path / "more", ["a.png"], size=(32, 24))
        with pytest.raises(DataError, match="training images, labelled or not, have 2 sizes, from 16x24 to 32x24"):
            build(place, root=str(more))
        crop = FolderSpec(root=str(place), classes=NAMES, augment={"crop": [16, 16]}, unlabelled={"root": str(more)})
        assert len(build_data(crop).unlabelled) == 1

    def test_images_that_are_used_elsewhere_are_counted(self, place: Path, tmp_path: Path) -> None:
        more = pictures(tmp_path / "more", ["x.png"])
        shutil.copy(place / "val/images/1.png", more / "copy.png")
        (more / "linked.png").symlink_to(place / "val/images/0.png")
        notices = build(place, root=str(more)).notices
        assert (
            "val: 1 of 2 images are also among the unlabelled: the student sees them in training, though not their "
            "labels"
        ) in notices
        assert (
            "train: 5 of 5 images are also among the unlabelled"
            in build(place, root=str(place / "train/images")).notices
        )

    def test_they_are_left_unopened_where_nobody_distils(self, place: Path) -> None:
        spec = FolderSpec(root=str(place), classes=NAMES, unlabelled={"root": str(place / "nowhere")})
        assert build_data(spec, unlabelled=False).unlabelled is None

    def test_the_saved_recipe_names_the_folder_wherever_it_is_run(
        self, place: Path, tmp_path: Path, monkeypatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        raw = recipe(place)
        raw["data"]["unlabelled"] = {"root": "more"}
        loaded = load_recipe(raw)
        assert loaded.data.unlabelled.root == str(tmp_path / "more")
        assert loaded.data.unlabelled.ratio == 0.5

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"rot": "x"}, "unknown key 'data.unlabelled.rot'; did you mean 'root'"),
            ({"ratio": 0.5}, "key 'data.unlabelled.root' is missing"),
            ({"root": "x", "ratio": 1.0}, "data.unlabelled.ratio: .*less than or equal to 0.95, got 1.0"),
            ({"root": "x", "ratio": 0.999}, "data.unlabelled.ratio: .*less than or equal to 0.95, got 0.999"),
            ({"root": "x", "ratio": 0}, "data.unlabelled.ratio: .*greater than 0"),
            ({"root": "x", "include": "("}, "data.unlabelled.include: .*not a regular expression"),
            ({"root": "x", "count": 4}, "unknown key 'data.unlabelled.count'"),
        ],
    )
    def test_a_mistake_in_the_recipe_names_its_key(self, place: Path, given: dict[str, Any], words: str) -> None:
        raw = recipe(place)
        raw["data"]["unlabelled"] = given
        with pytest.raises(ConfigError, match=words):
            load_recipe(raw)


class TestScenes:
    def spec(self, **unlabelled: Any) -> ScenesDataSpec:
        return ScenesDataSpec(name="scenes", train_count=3, val_count=3, size=(32, 40), unlabelled=unlabelled)

    def test_they_are_drawn_beyond_the_labelled_ones_and_have_no_label(self) -> None:
        data = build_data(self.spec(count=4))
        assert len(data.unlabelled) == 4
        assert data.unlabelled.name_of(2) == "unlabelled-00002"
        drawn = [
            one.load(i).image.numpy().tobytes() for one in (data.train, data.val, data.unlabelled) for i in range(3)
        ]
        assert len(set(drawn)) == 9
        sample = data.unlabelled.load(1)
        assert sample.label.unique().tolist() == [255]
        assert sample.label.shape == (32, 40)
        assert torch.equal(build_data(self.spec(count=9)).unlabelled.load(1).image, sample.image)

    def test_they_can_be_kept_in_memory(self) -> None:
        spec = self.spec(count=4).model_copy(update={"in_memory": True})
        data = build_data(spec)
        assert isinstance(data.unlabelled, InMemory)
        assert torch.equal(data.unlabelled.load(2).image, build_data(self.spec(count=4)).unlabelled.load(2).image)

    def test_a_count_below_one_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"data\.unlabelled\.count: .*got 0"):
            load_recipe("demo", {"data.unlabelled": {"count": 0}})


class TestJoined:
    def test_the_unlabelled_come_after_the_labelled(self) -> None:
        data = build_data(TestScenes().spec(count=2))
        joined = Joined(data.train, data.unlabelled)
        assert isinstance(joined, SegmentationSet)
        assert names(joined) == [*names(data.train), *names(data.unlabelled)]
        assert torch.equal(joined.load(2).label, data.train.load(2).label)
        assert torch.equal(joined.load(3).image, data.unlabelled.load(0).image)

    def test_padding_alone_is_not_valid(self) -> None:
        """There is an image to distil, whatever is known of its labels."""
        data = build_data(TestScenes().spec(count=2))
        view = TrainView(Joined(data.train, data.unlabelled), TrainTransform(AugmentSpec(crop=(48, 40)), 255), seed=0)
        entry = view[0, 4]
        assert entry["label"].unique().tolist() == [255]
        assert 0 < int(entry["valid"].sum()) < entry["valid"].numel()
        assert bool((entry["image"][:, ~entry["valid"]] == 0).all())


class TestRatio:
    @pytest.mark.parametrize(
        ("ratio", "labelled", "count"),
        [(0.5, 8, 8), (0.75, 4, 12), (0.2, 8, 2), (1 / 3, 8, 4), (0.9, 1, 9), (0.5, 1, 1)],
    )
    def test_a_share_of_the_whole_batch(self, ratio: float, labelled: int, count: int) -> None:
        assert unlabelled_per_batch(ratio, labelled) == count
        assert count / (count + labelled) == pytest.approx(ratio)

    @settings(deadline=None)
    @given(st.floats(0.05, 0.95), st.integers(1, 64))
    def test_no_other_number_of_images_comes_nearer(self, ratio: float, labelled: int) -> None:
        exact = labelled * ratio / (1 - ratio)
        try:
            assert abs(unlabelled_per_batch(ratio, labelled) - exact) <= 0.5
        except ConfigError:
            assert exact <= 0.5

    def test_a_share_below_one_image_is_refused(self) -> None:
        with pytest.raises(
            ConfigError, match=r"ratio: 0\.05 of a batch with 4 labelled images is less than half an image"
        ):
            unlabelled_per_batch(0.05, 4)


class Keys:
    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"key": torch.tensor(key)}


class TestBatches:
    """5 labelled images, 4 a batch, and 7 unlabelled ones (numbered from 5), 3 a batch."""

    def keys(self, first: int, last: int, workers: int = 0, **options: Any) -> list[list[tuple[int, int]]]:
        counts = {"unlabelled": 7, "unlabelled_per_batch": 3, **options}
        batcher = Batcher(Keys(), 5, 4, seed=2, workers=workers, **counts)
        return [[tuple(key) for key in one["key"].tolist()] for one in batcher.batches(first, last)]

    def test_every_batch_has_its_share(self) -> None:
        for batch in self.keys(0, 9):
            assert [index < 5 for _, index in batch] == [True] * 4 + [False] * 3

    def test_the_labelled_images_come_as_without_the_others(self) -> None:
        alone = self.keys(0, 9, unlabelled=0, unlabelled_per_batch=0)
        assert [batch[:4] for batch in self.keys(0, 9)] == alone

    def test_every_pass_over_the_unlabelled_is_a_permutation_of_its_own(self) -> None:
        flat = [key for batch in self.keys(0, 14) for key in batch[4:]]
        for epoch in range(6):
            assert sorted(index for e, index in flat if e == epoch) == list(range(5, 12))
        orders = {tuple(index for e, index in flat if e == epoch) for epoch in range(6)}
        assert len(orders) == 6

    def test_a_start_in_the_middle_gives_the_same_batches(self) -> None:
        whole = self.keys(0, 9)
        for first in range(9):
            assert self.keys(first, 9) == whole[first:]

    def test_workers_and_ranks_change_nothing(self) -> None:
        whole = self.keys(0, 8)
        assert self.keys(0, 8, workers=2) == whole
        halves = [self.keys(0, 4, rank=rank, world=2) for rank in (0, 1)]
        assert [batch for pair in zip(*halves, strict=True) for batch in pair] == whole

    def test_epochs_count_labelled_images(self) -> None:
        assert Batcher(Keys(), 5, 4, seed=2, unlabelled=7, unlabelled_per_batch=3).epochs(10) == 8.0


class Told(Heard):
    """Keeps the pre-flight too."""

    def __init__(self) -> None:
        super().__init__()
        self.readiness: Any = None

    def ready(self, readiness: Any) -> None:
        self.readiness = readiness


class StopAt(Quiet):
    """Asks this process to stop after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, taken: int, steps: int, result: Any) -> None:
        if taken == self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A distillation of 6 steps over 5 labelled and 7 unlabelled images, 3 and 2 in a batch."""
    root = make_place(tmp_path_factory.mktemp("runs") / "data", train=5, val=2)
    pictures(root.parent / "more", [f"{n}.png" for n in range(7)])
    teacher = recipe(root, student={"model": f"{root}/nets.py:teacher"})
    train(teacher, out=root / "teacher", train__steps=10, train__evaluate_every=None)
    asked = distillation(root, root / "teacher")
    asked["data"]["unlabelled"] = {"root": str(root.parent / "more"), "ratio": 0.4}
    return asked


@pytest.fixture(scope="module")
def whole(mixed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Told]:
    told = Told()
    return distill(mixed, out=tmp_path_factory.mktemp("whole") / "run", progress=told), told


@pytest.mark.slow
class TestRuns:
    def test_the_counts_are_shown_and_kept(self, whole: tuple[Run, Told]) -> None:
        run, told = whole
        shown = "5 labelled and 7 unlabelled, 3 and 2 in a batch (40% unlabelled)"
        row = told.readiness.rows()[0]
        assert (row["what"], row["value"]) == ("training images", shown)
        assert run.record.preflight["images"] == shown
        assert run.record.epochs == 3.6  # 6 steps of 3 labelled images over 5
        assert any("unlabelled 7 images" in line for line in told.lines)

    def test_epochs_of_a_recipe_count_labelled_images(self, mixed: dict[str, Any]) -> None:
        loaded = load_recipe(mixed, {"train.steps": None, "train.epochs": 6})
        assert total_steps(loaded, 5) == 10

    @pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
    def test_resumed_is_equal_bit_for_bit_with_any_number_of_workers(
        self, mixed: dict[str, Any], whole: tuple[Run, Told], tmp_path: Path, workers: int
    ) -> None:
        asked = {**mixed, "runtime": {**mixed["runtime"], "workers": workers}}
        with pytest.raises(Interrupted):
            distill(asked, out=tmp_path / "run", progress=StopAt(3))
        run = distill(asked, out=tmp_path / "run", resume=True)
        assert log_without_times(run.path) == log_without_times(whole[0].path)
        bytes_of = [one.path / "student.safetensors" for one in (run, whole[0])]
        assert bytes_of[0].read_bytes() == bytes_of[1].read_bytes()

    def test_they_change_the_terms_and_not_the_first_task_loss(
        self, mixed: dict[str, Any], whole: tuple[Run, Told], tmp_path: Path
    ) -> None:
        """Without layers that mix images, the task's loss of the first step is that of the labelled ones alone."""
        nets = f"{mixed['data']['root']}/nets.py:no_norm"
        first = []
        for name, unlabelled in (("with", mixed["data"]["unlabelled"]), ("without", None)):
            asked = {**mixed, "student": {"model": nets}, "data": {**mixed["data"], "unlabelled": unlabelled}}
            asked["terms"] = [{"method": "channelwise", "student": "output", "teacher": "output"}]
            run = distill(asked, out=tmp_path / name, train__steps=1, train__evaluate_every=None)
            header, row = log_without_times(run.path)
            first.append(dict(zip(header.split(","), map(float, row.split(",")), strict=True)))
        assert first[0]["cross_entropy"] == pytest.approx(first[1]["cross_entropy"], rel=1e-6)
        assert first[0]["channelwise:output"] != pytest.approx(first[1]["channelwise:output"], rel=1e-4)

    def test_a_training_without_teacher_leaves_them_aside_and_says_so(
        self, mixed: dict[str, Any], tmp_path: Path
    ) -> None:
        asked = {**mixed, "data": {**mixed["data"], "unlabelled": {"root": str(tmp_path / "nowhere")}}}
        told = Told()
        run = train(asked, out=tmp_path / "run", progress=told, train__steps=2)
        said = "data.unlabelled is not used: without a teacher, images without labels teach nothing"
        assert said in told.lines
        assert said in run.record.warnings
        plain = train({**mixed, "data": {**mixed["data"], "unlabelled": None}}, out=tmp_path / "plain", train__steps=2)
        assert log_without_times(plain.path) == log_without_times(run.path)
        assert score_run(run).miou == run.record.best.miou

    def test_a_share_that_no_batch_has_is_told(self, mixed: dict[str, Any]) -> None:
        def notices(ratio: float) -> list[str]:
            return assemble(load_recipe(mixed, {"data.unlabelled.ratio": ratio})).notices

        assert "data.unlabelled.ratio: 0.55 was asked for; 4 beside 3 labelled images is 0.571" in notices(0.55)
        assert not any("was asked for" in line for line in notices(0.5))
        with pytest.raises(ConfigError, match="less than half an image"):
            notices(0.1)


LOSSES = [
    {"cross_entropy": 1.0},
    {"cross_entropy": 1.0, "label_smoothing": 0.1, "class_weights": [1.0, 2.0, 0.0]},
    {"cross_entropy": 0.5, "dice": 0.5},
    {"cross_entropy": 1.0, "ohem": {"threshold": 0.7, "min_kept": 10}},
    {"cross_entropy": 1.0, "ohem": {"keep_fraction": 0.3}, "class_weights": [1.0, 2.0, 3.0]},
    {"cross_entropy": 0.0, "dice": 1.0},
]


@pytest.mark.parametrize("spec", LOSSES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_batch_without_any_label_gives_a_zero_that_back_propagates(spec: dict[str, Any], scale: float) -> None:
    task = SegmentationTask(SegmentationSpec(**spec), 3, 255, NAMES)
    weight = torch.randn(3, 3, 1, 1).requires_grad_()
    logits = torch.nn.functional.conv2d(scale * torch.randn(2, 3, 8, 10), weight)
    total, parts = task.loss(logits, torch.full((2, 8, 10), 255))
    assert float(total.detach()) == 0
    assert all(float(part) == 0 for part in parts.values())
    total.backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("spec", LOSSES)
def test_unlabelled_images_leave_the_task_loss_as_it_is(spec: dict[str, Any]) -> None:
    task = SegmentationTask(SegmentationSpec(**spec), 3, 255, NAMES)
    logits, labels = torch.randn(5, 3, 8, 10, dtype=torch.float64), torch.randint(0, 3, (5, 8, 10))
    labels[2:] = 255
    alone, _ = task.loss(logits[:2], labels[:2])
    logits.requires_grad_()
    mixed, _ = task.loss(logits, labels)
    torch.testing.assert_close(mixed.detach(), alone, rtol=1e-12, atol=0)
    mixed.backward()
    assert not logits.grad[2:].any()
    assert logits.grad[:2].any()
