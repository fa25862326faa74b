"""Procedural street scenes: the same everywhere, exactly labelled, of any size, with the intended class shares."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from densekd.data.base import Sample, SegmentationSet
from densekd.data.scene_compose import compose
from densekd.data.scene_layout import Block
from densekd.data.scene_paint import paint
from densekd.data.scenes import CLASSES, PALETTE, ScenesSet, ScenesSpec
from densekd.errors import ArgumentError, DataError

# Shares of all pixels over the first training scenes, in percent: (least, most).
BANDS = {
    "sky": (10, 25),
    "building": (15, 32),
    "road": (24, 40),
    "pavement": (4, 10),
    "tree": (5, 14),
    "car": (4, 8),
    "person": (0.8, 2.2),
    "pole": (0.8, 2.4),
    "sign": (0.8, 2.2),
    "rider": (0.8, 2.4),
}


@lru_cache(maxsize=1)
def scenes(count: int) -> list[Sample]:
    data = ScenesSet("train", 200)
    return [data.load(i) for i in range(count)]


def digest(sample: Sample) -> str:
    return hashlib.sha256(sample.image.numpy().tobytes() + sample.label.numpy().tobytes()).hexdigest()


def test_the_set_keeps_to_the_protocol() -> None:
    data = ScenesSet("val", 3, (48, 70), seed=4)
    assert isinstance(data, SegmentationSet)
    image, label = data.load(2)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 48, 70))
    assert (label.dtype, tuple(label.shape)) == (torch.int64, (48, 70))
    assert image.is_contiguous()
    assert len(data) == 3
    assert data.name_of(2) == "val-00002"
    assert len(CLASSES) == len(PALETTE) == len(set(PALETTE)) == 10
    assert data.ignore_index == 255


def test_a_scene_is_the_same_at_every_call_and_in_another_order() -> None:
    data = ScenesSet("train", 20)
    first = [digest(data.load(i)) for i in range(6)]
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)
    again = [digest(data.load(i)) for i in reversed(range(6))]
    assert first == again[::-1]
    assert len(set(first)) == 6


def test_drawing_leaves_the_global_generators_alone() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    ScenesSet("train", 2).load(1)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def drawn_elsewhere(code: str) -> str:
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    return out.stdout.strip()


def test_another_process_paints_the_same_bytes() -> None:
    """The drawing alone, which needs no torch."""
    code = (
        "import hashlib, random; from densekd.data.scene_compose import compose; "
        "from densekd.data.scene_paint import paint; i, m = paint(compose(random.Random(77)), (64, 90)); "
        "print(hashlib.sha256(i.tobytes() + m.tobytes()).hexdigest())"
    )
    image, mask = paint(compose(random.Random(77)), (64, 90))
    assert drawn_elsewhere(code) == hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()


@pytest.mark.slow
def test_another_process_loads_the_same_bytes() -> None:
    code = (
        "import hashlib; from densekd.data.scenes import ScenesSet; s = ScenesSet('val', 9, (64, 90), seed=5).load(7); "
        "print(hashlib.sha256(s.image.numpy().tobytes() + s.label.numpy().tobytes()).hexdigest())"
    )
    assert drawn_elsewhere(code) == digest(ScenesSet("val", 9, (64, 90), seed=5).load(7))


def test_a_longer_split_begins_with_the_shorter_one() -> None:
    assert digest(ScenesSet("train", 5).load(4)) == digest(ScenesSet("train", 5000).load(4))


def test_splits_and_seeds_share_no_scene() -> None:
    seen = [
        {digest(ScenesSet(split, 15, (32, 40), seed=seed).load(i)) for i in range(15)}
        for split, seed in (("train", 0), ("val", 0), ("train", 1))
    ]
    assert [len(s) for s in seen] == [15, 15, 15]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    # Not only the noise differs: no two of them have the same layout either.
    masks = [
        {ScenesSet(split, 15, (32, 40)).load(i).label.numpy().tobytes() for i in range(15)}
        for split in ("train", "val")
    ]
    assert not masks[0] & masks[1]


@pytest.mark.parametrize("number", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_class_shares(number: int) -> None:
    counts = torch.zeros(10)
    present = torch.zeros(10)
    for _, label in scenes(number):
        bins = torch.bincount(label.flatten(), minlength=10)
        assert len(bins) == 10, "a label outside the ten classes"
        counts += bins
        present += bins > 0
    shares = (100 * counts / counts.sum()).tolist()
    for name, share in zip(CLASSES, shares, strict=True):
        low, high = BANDS[name]
        assert low <= share <= high, f"{name}: {share:.2f}% of the pixels, expected {low} to {high}%"
    assert (present >= 0.7 * number).all(), dict(zip(CLASSES, present.tolist(), strict=True))


def test_pictures_are_exposed_and_differ_in_colour_between_classes() -> None:
    means = torch.stack([image.float().mean() for image, _ in scenes(60)])
    assert 70 < means.mean() < 150
    assert means.min() > 30
    assert means.max() < 215
    assert means.std() > 5
    spread = torch.stack([image.float().std() for image, _ in scenes(60)])
    assert spread.min() > 20


def edge_contrast(shift: tuple[int, int]) -> float:
    """The mean step of the image across the label's edges, with the label moved by `shift` pixels (y, x)."""
    total, count = 0.0, 0
    for image, label in scenes(60):
        grey = image.float().mean(0)
        moved = torch.roll(label, shift, (0, 1))
        inner = slice(6, -6)
        for axis in (0, 1):
            step = grey.diff(dim=axis).abs()[inner, inner]
            edge = (moved.diff(dim=axis) != 0)[inner, inner]
            total += float(step[edge].sum())
            count += int(edge.sum())
    return total / count


@pytest.mark.parametrize("shift", [(0, 2), (0, -2), (2, 0), (-2, 0), (0, 1), (-1, 0)])
def test_edges_of_the_label_lie_on_edges_of_the_image(shift: tuple[int, int]) -> None:
    here, moved = edge_contrast((0, 0)), edge_contrast(shift)
    assert here > 1.15 * moved, f"contrast at the label's edges {here:.1f}, with the label moved {moved:.1f}"


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (97, 131), (64, 200), (120, 40), (360, 480)])
def test_any_size(size: tuple[int, int]) -> None:
    image, label = ScenesSet("train", 3, size).load(1)
    assert tuple(image.shape) == (3, *size)
    assert tuple(label.shape) == size
    assert int(label.min()) >= 0
    assert int(label.max()) <= 9
    assert len(label.unique()) >= 4


def test_a_scene_looks_the_same_at_twice_the_size() -> None:
    agree = []
    for i in range(4):
        small = ScenesSet("train", 8, (96, 128)).load(i)
        large = ScenesSet("train", 8, (192, 256)).load(i)
        agree.append(float((small.label == large.label[::2, ::2]).float().mean()))
        shrunk = torch.nn.functional.avg_pool2d(large.image.float()[None], 2)[0]
        assert float((shrunk - small.image.float()).abs().mean()) < 14
    assert min(agree) > 0.93


def test_what_is_nearer_hides_what_is_farther() -> None:
    compared = 0
    for seed in range(15):
        scene = compose(random.Random(seed))
        depths = [part.z for part in scene.parts]
        assert depths == sorted(depths, reverse=True)
        # Painted alone, the nearest thing covers what it covers in its scene: nothing is painted over it.
        nearest = scene.parts[-1]
        if isinstance(nearest, Block):
            continue
        whole = paint(scene, (96, 128))[1]
        alone = paint(replace(scene, parts=(nearest,)), (96, 128))[1]
        bare = paint(replace(scene, parts=()), (96, 128))[1]
        assert torch.equal(torch.from_numpy(whole[alone != bare]), torch.from_numpy(alone[alone != bare]))
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("size", [(31, 128), (96, 4000), (96,), (96.0, 128)])
def test_sizes_that_cannot_work_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ArgumentError, match=r"\(height, width\).*from 32 to 2048"):
        ScenesSet("train", 3, size)


@pytest.mark.parametrize("count", [0, -1, True, 2.5])
def test_counts_that_cannot_work_are_refused(count: int) -> None:
    with pytest.raises(ArgumentError, match="at least 1"):
        ScenesSet("train", count)


def test_unknown_split_and_index_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"'train', 'val' and 'unlabelled'.*'test'"):
        ScenesSet("test", 3)  # type: ignore[arg-type]
    for index in (3, -1):
        with pytest.raises(DataError, match=r"numbered 0 to 2.*no scene"):
            ScenesSet("val", 3).load(index)


def test_the_spec_has_defaults_and_names_what_is_wrong() -> None:
    spec = ScenesSpec()
    assert (spec.name, spec.train_count, spec.val_count, spec.size, spec.seed) == ("scenes", 600, 300, (96, 128), 0)
    with pytest.raises(ValidationError, match="from 32 to 2048"):
        ScenesSpec(size=(8, 8))
    with pytest.raises(ValidationError, match="at least 1"):
        ScenesSpec(train_count=0)
    with pytest.raises(ValidationError, match="extra"):
        ScenesSpec(amount=3)  # type: ignore[call-arg]
