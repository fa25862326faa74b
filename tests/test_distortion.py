from __future__ import annotations

import colorsys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from densekd.data import distortion
from densekd.data.augment import AugmentSpec
from densekd.data.base import Sample
from densekd.data.distortion import PhotometricDistortion, saturated
from densekd.data.keyed import keyed_random
from densekd.data.transforms import TrainTransform

BYTE = st.integers(0, 255)


def picture() -> Tensor:
    return torch.randint(0, 256, (3, 6, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@settings(max_examples=60, deadline=None)
@given(BYTE, BYTE, BYTE, st.floats(0.0, 3.0))
def test_saturation_is_that_of_hsv(red: int, green: int, blue: int, factor: float) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    expected = [255 * v for v in colorsys.hsv_to_rgb(hue, min(1.0, factor * saturation), value)]
    found = saturated(torch.tensor([red, green, blue], dtype=torch.uint8).view(3, 1, 1), factor).flatten().tolist()
    assert found == pytest.approx(expected, abs=0.501)


def only(monkeypatch: pytest.MonkeyPatch, acting: int, value: float) -> None:
    """Let the change of this number act alone, with this value; the numbers are those of the chances drawn."""
    chances = iter(range(5))
    monkeypatch.setattr(distortion, "_chance", lambda: next(chances) == acting)
    monkeypatch.setattr(distortion, "_between", lambda low, high: value)


@pytest.mark.parametrize(
    ("acting", "value", "expected"),
    [
        (0, 20.0, lambda x: (x + 20).clamp(max=255)),
        (0, -32.0, lambda x: (x - 32).clamp(min=0)),
        (4, 1.5, lambda x: (x * 1.5).round().clamp(max=255)),
        (1, 1.5, lambda x: x),
    ],
)
def test_brightness_adds_and_contrast_multiplies(
    monkeypatch: pytest.MonkeyPatch, acting: int, value: float, expected: Callable[[Tensor], Tensor]
) -> None:
    image = picture()
    only(monkeypatch, acting, value)
    found = PhotometricDistortion()(image)
    assert found.dtype == torch.uint8
    assert torch.equal(found.float(), expected(image.float()))
    assert torch.equal(image, picture())


def test_each_change_comes_in_half_of_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[float, float]] = []

    def middle(low: float, high: float) -> float:
        ranges.append((low, high))
        return (low + high) / 2

    monkeypatch.setattr(distortion, "_between", middle)
    change, image = PhotometricDistortion(), picture()[:, :1, :1]
    with keyed_random(0, "test"):
        for _ in range(200):
            change(image)
    counts = {kind: ranges.count(kind) for kind in set(ranges)}
    assert set(counts) == {(-32.0, 32.0), (0.5, 1.5), (-0.1, 0.1)}
    assert 70 < counts[-32.0, 32.0] < 130
    assert 70 < counts[-0.1, 0.1] < 130
    assert 160 < counts[0.5, 1.5] < 240  # contrast and saturation


def test_the_transform_distorts_the_image_alone() -> None:
    sample = Sample(picture(), torch.randint(0, 4, (6, 8)))

    def items(**options: bool) -> list[tuple[Tensor, Tensor]]:
        made = TrainTransform(AugmentSpec(scale=(1, 1), flip=0.0, **options), 255)
        found = []
        for seed in range(8):
            with keyed_random(seed, "test"):
                found.append(made(sample)[:2])
        return found

    plain, distorted, again = items(), items(distortion=True), items(distortion=True)
    for (_, label), (image, same), (repeated, _) in zip(plain, distorted, again, strict=True):
        assert torch.equal(label, same)
        assert torch.equal(image, repeated)
    changed = [float((image - other).abs().mean()) for (image, _), (other, _) in zip(plain, distorted, strict=True)]
    assert sum(value > 0.01 for value in changed) >= 6
