from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from densekd.data.base import Sample
from densekd.data.keyed import keyed_random
from densekd.data.specs import AugmentSpec
from densekd.data.transforms import EvalTransform, TrainTransform

VOID = 255
PLAIN = {"scale": (1.0, 1.0), "flip": 0.0}


def sample(height: int = 24, width: int = 32) -> Sample:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), generator=draw, dtype=torch.uint8)
    label = torch.randint(0, 5, (height, width), generator=draw)
    label[0] = VOID
    return Sample(image, label)


def marked(height: int, width: int) -> Sample:
    """A picture that is bright exactly where its label is 1, in blocks of 4x4 pixels."""
    blocks = (torch.rand(height // 4, width // 4, generator=torch.Generator().manual_seed(2)) < 0.5).long()
    label = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)
    return Sample((label * 255).to(torch.uint8).expand(3, -1, -1).contiguous(), label)


def train(given: Sample, seed: int = 0, void: int = VOID, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    with keyed_random(seed, "test"):
        return TrainTransform(AugmentSpec(**options), void)(given)


def normalised(image: Tensor, spec: AugmentSpec) -> Tensor:
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    return (image / 255 - mean) / std


def test_without_augmentation_the_sample_is_only_normalised() -> None:
    given = sample()
    image, label, valid = train(given, **PLAIN)
    torch.testing.assert_close(image, normalised(given.image.float(), AugmentSpec()))
    assert torch.equal(label, given.label)
    assert valid.all()
    assert (image.dtype, label.dtype, valid.dtype) == (torch.float32, torch.int64, torch.bool)
    assert image.is_contiguous()


def test_the_stored_sample_is_left_as_it_was() -> None:
    given = sample()
    copy = Sample(given.image.clone(), given.label.clone())
    for seed in range(5):
        train(given, seed, scale=(0.5, 1.0), crop=(30, 30), jitter={"brightness": 0.5, "hue": 0.2})
    train(given, **PLAIN)
    assert torch.equal(given.image, copy.image)
    assert torch.equal(given.label, copy.label)


def test_another_normalisation() -> None:
    given = sample()
    spec = AugmentSpec(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.1), **PLAIN)
    torch.testing.assert_close(EvalTransform(spec)(given.image), normalised(given.image.float(), spec))


def test_resizing_is_bilinear_with_antialiasing_and_nearest_for_the_label() -> None:
    given = sample(32, 48)
    spec = AugmentSpec(size=(12, 20), **PLAIN)
    expected = F.interpolate(given.image[None].float(), (12, 20), mode="bilinear", antialias=True)[0].round()
    image, label, _ = train(given, size=(12, 20), **PLAIN)
    step = 1 / 255 / min(spec.std)  # one level of 8 bits: integer arithmetic may round the other way
    torch.testing.assert_close(image, normalised(expected, spec), atol=1.01 * step, rtol=0)
    torch.testing.assert_close(EvalTransform(spec)(given.image), image)
    rows = ((torch.arange(12) + 0.5) * 32 / 12).floor().long()
    columns = ((torch.arange(20) + 0.5) * 48 / 20).floor().long()
    assert torch.equal(label, given.label[rows][:, columns])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(4, 40), st.integers(4, 40)),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.floats(0.3, 2.5),
)
def test_the_result_has_the_size_of_the_crop_and_padding_is_marked(
    seed: int, stored: tuple[int, int], crop: tuple[int, int], factor: float
) -> None:
    given = Sample(torch.full((3, *stored), 7, dtype=torch.uint8), torch.ones(stored, dtype=torch.int64))
    image, label, valid = train(given, seed, scale=(factor, factor), crop=crop)
    assert image.shape == (3, *crop)
    assert label.shape == valid.shape == torch.Size(crop)
    scaled = [max(1, round(side * factor)) for side in stored]
    assert int(valid.sum()) == min(scaled[0], crop[0]) * min(scaled[1], crop[1])
    assert (image[:, ~valid] == 0).all()
    assert (image[:, valid] != 0).all()
    assert torch.equal(label == VOID, ~valid)
    assert (label[valid] == 1).all()
    rows, columns = valid.any(1), valid.any(0)
    assert torch.equal(valid, rows[:, None] & columns)


def test_void_inside_the_picture_is_valid() -> None:
    _, label, valid = train(sample(), **PLAIN)
    assert (label[0] == VOID).all()
    assert valid[0].all()


@pytest.mark.parametrize("void", [255, -1, -100])
def test_padding_carries_the_void_label_of_the_set(void: int) -> None:
    given = sample()
    given = Sample(given.image, given.label.where(given.label != VOID, void))
    _, label, valid = train(given, void=void, crop=(40, 40), **PLAIN)
    assert (label[~valid] == void).all()
    assert set(label[valid].tolist()) == {void, 0, 1, 2, 3, 4}


def test_large_ids_survive_resizing() -> None:
    given = Sample(sample().image, torch.full((24, 32), 70_000))
    _, label, _ = train(given, size=(10, 10), **PLAIN)
    assert (label == 70_000).all()


@pytest.mark.parametrize("seed", range(6))
def test_image_label_and_valid_move_together(seed: int) -> None:
    given = marked(32, 48)
    image, label, valid = train(given, seed, scale=(0.75, 2.0), crop=(40, 56), mean=(0.5,) * 3, std=(0.5,) * 3)
    # Bilinear and nearest resampling of the same edges may differ by a pixel around them.
    agree = ((image[0] > 0) == (label == 1))[valid]
    assert agree.float().mean() > 0.93
    assert ((image[0] > 0) == (label.roll(4, 1) == 1))[valid].float().mean() < 0.8


def test_every_offset_and_both_flips_occur() -> None:
    given = Sample(
        torch.arange(6, dtype=torch.uint8).expand(3, 4, 6).contiguous(), torch.arange(6).expand(4, 6).clone()
    )
    seen = {tuple(train(given, seed, scale=(1, 1), crop=(4, 4))[1][0].tolist()) for seed in range(80)}
    starts = [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)]
    assert seen == {*starts, *(row[::-1] for row in starts)}
    padded = {tuple(train(given, seed, scale=(1, 1), crop=(4, 8), flip=0.0)[2][0].tolist()) for seed in range(40)}
    assert len(padded) == 3


def test_flip_has_its_probability() -> None:
    given = sample()
    flipped = [not torch.equal(train(given, seed, scale=(1, 1), flip=0.25)[1], given.label) for seed in range(400)]
    assert 0.17 < sum(flipped) / 400 < 0.33
    assert torch.equal(train(given, scale=(1, 1), flip=1.0)[1], given.label.flip(1))


def test_scales_fill_their_range() -> None:
    given = sample(40, 40)
    sizes = [int(train(given, seed, scale=(0.5, 1.0), crop=(40, 40))[2].sum()) ** 0.5 for seed in range(60)]
    assert 20 <= min(sizes) < 22
    assert 38 < max(sizes) <= 40


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_changes_the_image_alone(name: str) -> None:
    given = sample()
    plain, label, _ = train(given, **PLAIN)
    changed, same, _ = train(given, jitter={name: 0.4}, **PLAIN)
    assert (changed - plain).abs().mean() > 0.01
    assert torch.equal(label, same)


def test_padding_stays_zero_under_jitter() -> None:
    image, _, valid = train(sample(), crop=(40, 40), jitter={"brightness": 0.9, "contrast": 0.9}, **PLAIN)
    assert (~valid).any()
    assert (image[:, ~valid] == 0).all()


def test_the_crop_defaults_to_the_size_before_scaling() -> None:
    assert train(sample(), scale=(0.5, 2.0))[0].shape == (3, 24, 32)
    assert train(sample(), scale=(0.5, 2.0), size=(10, 14))[0].shape == (3, 10, 14)


@pytest.mark.parametrize(
    ("stored", "fitted"),
    # min(2048 / long side, 512 / short side): the short side decides, but for the last
    [((512, 683), (512, 683)), ((1024, 2048), (512, 1024)), ((300, 200), (768, 512)), ((100, 1000), (205, 2048))],
)
def test_fit_keeps_the_ratio(stored: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert AugmentSpec(fit=(512, 2048)).resized(*stored) == fitted


def test_fit_is_used_before_the_random_scale_and_in_evaluation() -> None:
    given = sample(24, 32)
    image, label, _ = train(given, fit=(12, 40), **PLAIN)
    assert label.shape == (12, 16)
    torch.testing.assert_close(EvalTransform(AugmentSpec(fit=(12, 40)))(given.image), image)
    assert torch.equal(image, train(given, size=(12, 16), **PLAIN)[0])
    halved = train(given, fit=(12, 40), scale=(0.5, 0.5), crop=(12, 16), flip=0.0)[2]
    assert int(halved.sum()) == 6 * 8


def test_keys_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="size and fit are both given"):
        AugmentSpec(size=(8, 8), fit=(8, 8))
    with pytest.raises(ValueError, match=r"short <= long, got \[9, 8\]"):
        AugmentSpec(fit=(9, 8))
    with pytest.raises(ValueError, match="distortion and jitter are both given"):
        AugmentSpec.model_validate({"distortion": True, "jitter": {"hue": 0.1}})
    with pytest.raises(ValueError, match=r"0\.4 does not divide the range from 0.5 to 2"):
        AugmentSpec(scale_step=0.4)


def test_scales_in_steps() -> None:
    spec = {"scale": (0.5, 1.0), "scale_step": 0.25, "crop": (40, 40)}
    sides = {int(train(sample(40, 40), seed, **spec)[2].sum()) ** 0.5 for seed in range(40)}
    assert sides == {20, 30, 40}


def halves(share: int) -> Sample:
    """10 x 20 pixels: class 1 in the last `share` columns, void in the first row, class 0 elsewhere."""
    label = torch.zeros(10, 20, dtype=torch.int64)
    label[:, 20 - share :] = 1
    label[0] = VOID
    return Sample(sample(10, 20).image, label)


def test_a_crop_of_one_class_is_drawn_anew() -> None:
    def alone(limit: float) -> int:
        found = (train(halves(8), seed, crop=(10, 6), max_class_share=limit, **PLAIN)[1][1:] for seed in range(60))
        return sum(len(label.unique()) == 1 for label in found)

    # 5 of 15 places show both classes: the first draw misses them in 2 of 3 cases, eleven in one of 90.
    assert 30 <= alone(1.0) <= 50
    assert alone(0.9) <= 3


def test_the_largest_class_fills_less_than_its_share_of_the_labelled_pixels() -> None:
    labels = [train(halves(8), seed, crop=(10, 6), max_class_share=0.6, **PLAIN)[1] for seed in range(40)]
    # Only with 3 columns of each class does none reach 0.6. A draw finds that in 1 of 15 cases, eleven in a half.
    assert sum(int((label == 0).sum()) == 27 for label in labels) > 12


def test_a_crop_that_cannot_be_varied_is_taken_after_ten_more_draws() -> None:
    given = Sample(sample().image, torch.zeros(24, 32, dtype=torch.int64))
    with keyed_random(3, "test"):
        _, label, _ = TrainTransform(AugmentSpec(crop=(8, 8), max_class_share=0.75, **PLAIN), VOID)(given)
        after = torch.rand(())
    with keyed_random(3, "test"):
        draws = [torch.rand(()), *(torch.randint(0, high, ()) for _ in range(11) for high in (17, 25)), torch.rand(())]
        assert torch.equal(after, torch.rand(()))
    assert len(draws) == 24
    assert (label == 0).all()


def test_unlabelled_images_are_cropped_too() -> None:
    given = Sample(sample().image, torch.full((24, 32), VOID))
    image, label, valid = train(given, crop=(8, 8), max_class_share=0.75, **PLAIN)
    assert valid.all()
    assert (label == VOID).all()
    assert image.abs().sum() > 0


def test_without_the_new_keys_the_draws_are_the_old_ones() -> None:
    with keyed_random(5, "test"):
        TrainTransform(AugmentSpec(crop=(8, 8)), VOID)(sample(40, 40))
        after = torch.rand(())
    with keyed_random(5, "test"):
        side = round(40 * (0.5 + 1.5 * torch.rand(()).item()))
        top, left = (torch.randint(0, side - 7, ()) for _ in range(2))
        flip = torch.rand(())
        assert torch.equal(after, torch.rand(()))
    assert len({float(v) for v in (top, left, flip)}) > 1
