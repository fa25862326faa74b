"""Windows, scales and mirroring against slow transcriptions in float64; shares of the images and their sum."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from densekd.config import load_recipe
from densekd.errors import ArgumentError, ConfigError
from densekd.evaluate import confusion, share_of
from densekd.inference import WHOLE, EvaluationSpec, Predictor
from densekd.inference.windows import slide, window_starts
from densekd.models import output_at_any_size
from densekd.tasks.segmentation import SegmentationTask
from densekd.tasks.specs import SegmentationSpec

CPU = torch.device("cpu")


class Keeping(SegmentationTask):
    """Keeps the probabilities that it decides on."""

    def __init__(self, *, binary: bool = False) -> None:
        names = ("a", "b") if binary else ("a", "b", "c")
        super().__init__(SegmentationSpec(binary=binary), len(names), 255, names)
        self.seen: list[torch.Tensor] = []

    def most_probable(self, probabilities: torch.Tensor) -> torch.Tensor:
        self.seen.append(probabilities[0].clone())
        return super().most_probable(probabilities)


class Net(nn.Module):
    """A convolution over 3x3 pixels in float64, at every second pixel where `stride` is 2."""

    def __init__(self, outputs: int = 3, stride: int = 1, *, symmetric: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, outputs, 3, stride=stride, padding=1, dtype=torch.float64)
        draw = torch.Generator().manual_seed(3)
        weight = torch.randn(self.conv.weight.shape, generator=draw, dtype=torch.float64)
        self.conv.weight.data = weight + weight.flip(-1) if symmetric else weight
        self.conv.bias = nn.Parameter(torch.randn(outputs, generator=draw, dtype=torch.float64))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(images.shape))
        return self.conv(images)


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def resized(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)


def slow_slide(network: nn.Module, image: torch.Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> torch.Tensor:
    """Window after window: `(1, K, H, W)` of `(1, C, H, W)`."""
    (height, width), (tall, wide) = image.shape[-2:], crop
    high, broad = max(height, tall), max(width, wide)
    padded = torch.zeros(1, image.shape[1], high, broad, dtype=torch.float64)
    padded[..., :height, :width] = image
    down = max(high - tall + stride[0] - 1, 0) // stride[0] + 1
    right = max(broad - wide + stride[1] - 1, 0) // stride[1] + 1
    total, count = torch.zeros(1, 1, high, broad, dtype=torch.float64), torch.zeros(high, broad, dtype=torch.float64)
    for i in range(down):
        for j in range(right):
            top, left = min(i * stride[0], high - tall), min(j * stride[1], broad - wide)
            logits = resized(network(padded[..., top : top + tall, left : left + wide]), tall, wide)
            total = total + F.pad(logits, (left, broad - left - wide, top, high - top - tall))
            count[top : top + tall, left : left + wide] += 1
    return (total / count)[..., :height, :width]


def slow_probabilities(
    network: nn.Module, image: torch.Tensor, spec: EvaluationSpec, size: tuple[int, int], *, binary: bool = False
) -> torch.Tensor:
    found = []
    for scale in spec.scales:
        height, width = max(1, round(image.shape[-2] * scale)), max(1, round(image.shape[-1] * scale))
        scaled = transforms.resize(image, [height, width], antialias=True)
        for mirrored in [False, True] if spec.flip else [False]:
            view = torch.stack(list(scaled.unbind(-1))[::-1], -1) if mirrored else scaled
            logits = slow_slide(network, view, spec.crop, spec.stride) if spec.mode == "slide" else network(view)
            logits = resized(logits, *size)
            odds = logits.exp() if not binary else torch.cat([logits.exp() / (1 + logits.exp())], 1)
            one = odds if binary else odds / odds.sum(1, keepdim=True)
            found.append(torch.stack(list(one.unbind(-1))[::-1], -1) if mirrored else one)
    return torch.stack(found).mean(0)[0]


class TestWindows:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 60), st.integers(1, 40), st.data())
    def test_they_cover_a_side_without_gaps(self, size: int, crop: int, data: st.DataObject) -> None:
        stride = data.draw(st.integers(1, crop))
        starts = window_starts(size, crop, stride)
        assert len(starts) == max(size - crop + stride - 1, 0) // stride + 1
        assert starts[0] == 0
        assert max(crop, starts[-1] + crop) == max(crop, size)
        assert all(0 < later - earlier <= stride for earlier, later in pairwise(starts))

    def test_by_hand(self) -> None:
        assert window_starts(10, 4, 3) == [0, 3, 6]
        assert window_starts(11, 4, 3) == [0, 3, 6, 7]
        assert window_starts(3, 4, 3) == [0]

    @pytest.mark.parametrize("wrong", [(0, 1, 1), (5, 0, 1), (5, 2, 0), (5, 2, 3)])
    def test_what_cannot_be(self, wrong: tuple[int, int, int]) -> None:
        with pytest.raises(ArgumentError, match=r"^windows: expected .* got side"):
            window_starts(*wrong)

    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize(
        ("size", "crop", "step"),
        [((13, 17), (6, 7), (4, 5)), ((5, 17), (7, 6), (7, 2)), ((4, 5), (7, 6), (3, 3)), ((9, 9), (9, 9), (1, 1))],
    )
    def test_the_mean_over_the_windows_of_a_pixel(
        self, stride: int, size: tuple[int, int], crop: tuple[int, int], step: tuple[int, int]
    ) -> None:
        network, images = Net(stride=stride), picture(2, 3, *size)
        with torch.no_grad():
            expected = torch.cat(
                [slow_slide(network, images[:1], crop, step), slow_slide(network, images[1:], crop, step)]
            )
            for most in (1, 3, 100):
                network.shapes.clear()
                torch.testing.assert_close(slide(network, images, crop, step, most), expected, rtol=0, atol=1e-12)
                assert max(shape[0] for shape in network.shapes) <= most
                assert {shape[1:] for shape in network.shapes} == {(3, *crop)}

    def test_a_crop_of_the_images_size_is_the_whole_image(self) -> None:
        network, task, images = Net(stride=2), Keeping(), picture(2, 3, 11, 14)
        spec = EvaluationSpec(mode="slide", crop=(11, 14), stride=(3, 3))
        with torch.no_grad():
            torch.testing.assert_close(slide(network, images, (11, 14), (3, 3), 8), resized(network(images), 11, 14))
            windows = list(Predictor(network, task, spec).ids(images, [(11, 14)] * 2))
            whole = list(Predictor(network, task).ids(images, [(11, 14)] * 2))
        assert all(torch.equal(one, other) for one, other in zip(windows, whole, strict=True))


class TestViews:
    @pytest.mark.parametrize("binary", [False, True])
    @pytest.mark.parametrize(
        "spec",
        [
            EvaluationSpec(flip=True),
            EvaluationSpec(scales=(0.5, 1, 1.75)),
            EvaluationSpec(scales=(0.75, 1.25), flip=True, mode="slide", crop=(6, 5), stride=(4, 5)),
        ],
        ids=EvaluationSpec.in_words,
    )
    def test_mean_probabilities_against_a_slow_count(self, spec: EvaluationSpec, binary: bool) -> None:
        task, network, images = Keeping(binary=binary), Net(1 if binary else 3, stride=2), picture(2, 3, 9, 13)
        sizes = [(9, 13), (15, 11)]
        with torch.no_grad():
            ids = list(Predictor(network, task, spec, most=3).ids(images, sizes))
            for row, size in enumerate(sizes):
                expected = slow_probabilities(network, images[row : row + 1], spec, size, binary=binary)
                torch.testing.assert_close(task.seen[row], expected, rtol=0, atol=1e-12)
                best = (expected[0] > 0.5).long() if binary else expected.argmax(0)
                assert ids[row].dtype == torch.int64
                assert torch.equal(ids[row], best)

    def test_one_view_at_another_scale(self) -> None:
        network, task, images = Net(), Keeping(), picture(1, 3, 8, 10)
        with torch.no_grad():
            (found,) = Predictor(network, task, EvaluationSpec(scales=(0.5,))).ids(images, [(8, 10)])
            expected = resized(network(transforms.resize(images, [4, 5], antialias=True)), 8, 10).argmax(1)[0]
        assert torch.equal(found, expected)
        assert network.shapes[0] == (1, 3, 4, 5)

    def test_a_symmetric_network_gains_nothing_by_mirroring(self) -> None:
        network, task, images = Net(symmetric=True), Keeping(), picture(2, 3, 9, 12)
        with torch.no_grad():
            mirrored = list(Predictor(network, task, EvaluationSpec(flip=True)).ids(images, [(9, 12)] * 2))
            plain = list(Predictor(network, task).ids(images, [(9, 12)] * 2))
        assert all(torch.equal(one, other) for one, other in zip(mirrored, plain, strict=True))

    def test_with_mirroring_the_answer_to_the_mirrored_image_is_the_mirrored_answer(self) -> None:
        predictor = Predictor(Net(), Keeping(), EvaluationSpec(flip=True, scales=(1, 1.5)))
        plain, images = Predictor(Net(), Keeping()), picture(1, 3, 9, 12)
        with torch.no_grad():
            (found,), (other,) = (list(predictor.ids(one, [(9, 12)])) for one in (images, images.flip(-1)))
            (alone,), (alone_other,) = (list(plain.ids(one, [(9, 12)])) for one in (images, images.flip(-1)))
        assert torch.equal(found.flip(-1), other)
        assert not torch.equal(alone.flip(-1), alone_other)

    def test_nothing_asked_for_is_the_networks_map_enlarged(self) -> None:
        network, task, images = Net(stride=2), Keeping(), picture(2, 3, 9, 12)
        with torch.no_grad():
            found = list(Predictor(network, task, WHOLE).ids(images, [(9, 12), (30, 5)]))
            output = output_at_any_size(network, images)
            expected = [task.predict(output[:1], (9, 12))[0], task.predict(output[1:], (30, 5))[0]]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert task.seen == []

    def test_every_window_is_prepared(self) -> None:
        network, seen = Net(), []

        def prepare(windows: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(windows.shape))
            return resized(windows, 4, 4)

        spec = EvaluationSpec(mode="slide", crop=(6, 6), stride=(6, 6))
        with torch.no_grad():
            list(Predictor(network, Keeping(), spec, most=3, prepare=prepare).ids(picture(1, 3, 12, 12), [(12, 12)]))
        assert seen == [(3, 3, 6, 6), (1, 3, 6, 6)]
        assert network.shapes == [(3, 3, 4, 4), (1, 3, 4, 4)]

    def test_no_window_at_a_time(self) -> None:
        with pytest.raises(ArgumentError, match="expected 1 window or more"):
            Predictor(Net(), Keeping(), most=0)


def entries(count: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    sizes = [(4, 5), (3, 6)]
    return [
        {
            "image": picture(3, *sizes[place % 2], seed=place),
            "label": torch.randint(0, 3, sizes[place % 2], generator=draw),
            "index": place,
        }
        for place in range(count)
    ]


class TestShares:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 50), st.integers(1, 9))
    def test_every_index_is_in_one_share(self, total: int, world: int) -> None:
        shares = [list(share_of(total, rank, world)) for rank in range(world)]
        assert sorted(index for share in shares for index in share) == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    @pytest.mark.parametrize("wrong", [(-1, 2), (2, 2), (0, 0)])
    def test_a_rank_that_is_none(self, wrong: tuple[int, int]) -> None:
        with pytest.raises(ArgumentError, match="expected a rank"):
            share_of(5, *wrong)

    @settings(max_examples=8, deadline=None)
    @given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3))
    def test_the_matrices_of_the_shares_add_up_to_that_of_all(self, count: int, world: int, batch_size: int) -> None:
        view, network, task = entries(count), Net(), Keeping()
        whole = confusion(network, view, task, device=CPU, batch_size=batch_size)
        assert whole.images == count
        held: list[torch.Tensor] = []
        for rank in range(world):
            part = confusion(
                network, view, task, device=CPU, batch_size=batch_size, shard=(rank, world), total=held_in(held)
            )
            assert part.images == len(share_of(count, rank, world))
        assert len(held) == world  # once in every process, in those without an image too
        summed = confusion(network, view, task, device=CPU, shard=(0, world), total=lambda own: sum(held))
        assert torch.equal(summed.matrix, whole.matrix)
        assert summed.images == count

    def test_watched_is_the_own_share(self) -> None:
        seen: list[tuple[int, int]] = []
        confusion(
            Net(), entries(5), Keeping(), device=CPU, batch_size=1, shard=(1, 2), watch=lambda *at: seen.append(at)
        )
        assert seen == [(0, 2), (1, 2), (2, 2)]


def held_in(held: list[torch.Tensor]) -> Any:
    def total(own: torch.Tensor) -> torch.Tensor:
        assert own.dtype == torch.int64
        held.append(own.clone())
        return own

    return total


def test_a_matrix_of_windows_is_that_of_the_ids_by_hand() -> None:
    view, network, task = entries(3), Net(), Keeping()
    spec = EvaluationSpec(mode="slide", crop=(3, 3), stride=(2, 2))
    found = confusion(network, view, task, device=CPU, evaluation=spec)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    with torch.no_grad():
        for entry in view:
            ids = slow_slide(network, entry["image"][None], (3, 3), (2, 2)).argmax(1)[0]
            for truth, guess in zip(entry["label"].flatten(), ids.flatten(), strict=True):
                expected[truth, guess] += 1
    assert torch.equal(found.matrix, expected)
    assert not torch.equal(found.matrix, confusion(network, view, task, device=CPU).matrix)


class TestSpec:
    @pytest.mark.parametrize(
        ("values", "told"),
        [
            ({"mode": "slide"}, r"^recipe: evaluation: mode slide needs `crop`"),
            ({"crop": [4, 4]}, r"^recipe: evaluation: `crop` and `stride` belong to mode slide"),
            ({"mode": "slide", "crop": [0, 4]}, r"^recipe: evaluation.crop.0: .*greater than 0, got 0$"),
            (
                {"mode": "slide", "crop": [4, 4], "stride": [2, 5]},
                r"no larger than `crop` \(4, 4\), got \(2, 5\): pixels between",
            ),
            ({"scales": [1.0, 0.0]}, r"^recipe: evaluation.scales.1: .*greater than 0, got 0.0$"),
            ({"scales": [1.0, 0.5, 1]}, r"^recipe: evaluation: `scales`: 1 is there more than once$"),
            ({"scales": []}, r"^recipe: evaluation.scales: .*at least 1 item"),
            ({"mode": "windows"}, r"^recipe: evaluation.mode: .*'whole' or 'slide'"),
            ({"flips": True}, r"^recipe: unknown key 'evaluation.flips'.*'flip'"),
        ],
    )
    def test_one_line_for_each_mistake(self, values: dict[str, Any], told: str) -> None:
        with pytest.raises(ConfigError, match=told) as caught:
            load_recipe("demo", {f"evaluation.{key}": value for key, value in values.items()})
        assert len(str(caught.value).splitlines()) == 1

    def test_what_is_used_in_words(self) -> None:
        assert EvaluationSpec().in_words() == "whole image"
        spec = EvaluationSpec(mode="slide", crop=(512, 768), scales=(0.5, 1), flip=True)
        assert spec.steps == (341, 512)
        assert spec.views == 4
        assert spec.in_words() == "windows of 512x768 every 341x512, scales 0.5 1, mirrored too"
        assert EvaluationSpec(scales=(2,)).in_words() == "whole image, scale 2"

    def test_a_stride_alone(self) -> None:
        with pytest.raises(ValidationError, match="belong to mode slide"):
            EvaluationSpec(stride=(3, 3))
