"""What a run keeps to be looked at: shares, entropy and divergence by hand, choices by rule, small files and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densekd import files
from densekd.errors import ArgumentError, ShapeError
from densekd.functional.operator import definition
from densekd.looks.choice import changed_most, extremes, moved_most
from densekd.looks.networks import mask_at, middle, padded
from densekd.looks.pictures import ids_file, packed, photo_file, read_ids, seen_file, unpacked
from densekd.looks.records import ImageScore, as_file
from densekd.looks.softened import density, divergence, entropy, fitting, log_shares
from densekd.looks.terms import TermLooks, channel_names, look
from densekd.metrics import image_scores
from densekd.report.look_drawing import (
    HATCH,
    WRONG,
    classes_picture,
    errors_picture,
    heat_picture,
    share_wrong,
    shares,
    stretched,
)
from densekd.report.look_maps import change_words, divergence_words


def luminance(color):
    """Relative luminance of a colour, as WCAG 2 defines it."""
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


class TestSoftened:
    def test_shares_entropy_and_divergence_by_hand(self):
        # At temperature 2 the values 2 ln 3 and 0 have the shares 3/4 and 1/4.
        teacher = log_shares(torch.tensor([[[2 * math.log(3.0), 0.0]]]), 2.0)
        student = log_shares(torch.tensor([[[5.0, 5.0]]]), 2.0)
        assert teacher.exp().tolist()[0] == pytest.approx([0.75, 0.25])
        assert float(entropy(teacher)) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
        assert float(entropy(student)) == pytest.approx(math.log(2))
        expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
        assert float(divergence(teacher, student)) == pytest.approx(expected)

    def test_the_divergence_is_what_the_loss_lowers(self):
        generator = torch.Generator().manual_seed(0)
        student, teacher = (3 * torch.randn(4, 5, 6, generator=generator) for _ in range(2))
        mask = torch.rand(5, 6, generator=generator) > 0.3
        logs = [log_shares(one, 2.5, mask) for one in (teacher, student)]
        rows, _, _ = definition(student[None], teacher[None], mask[None], 2.5)
        assert divergence(*logs).tolist() == pytest.approx((rows[0] / 2.5**2).tolist(), rel=1e-5)

    def test_masked_positions_have_no_share_and_add_nothing(self):
        values = torch.tensor([[[1.0, 1.0, 900.0]]])
        logs = log_shares(values, 1.0, torch.tensor([[True, True, False]]))
        assert logs.exp().tolist() == [[0.5, 0.5, 0.0]]
        assert float(entropy(logs)) == pytest.approx(math.log(2))
        assert float(divergence(logs, logs)) == 0.0

    def test_extreme_values_stay_finite(self):
        logs = log_shares(torch.tensor([[[3e4, -3e4, 0.0]]]), 1.0)
        even = log_shares(torch.zeros(1, 1, 3), 1.0)
        assert float(entropy(logs)) == 0.0
        assert float(divergence(logs, even)) == pytest.approx(math.log(3))
        assert math.isfinite(float(divergence(even, logs)))

    def test_what_has_no_shares_is_refused(self):
        with pytest.raises(ShapeError, match=r"expected a map \(C, H, W\)"):
            log_shares(torch.zeros(2, 3), 1.0)
        with pytest.raises(ShapeError, match="without a single position"):
            log_shares(torch.zeros(1, 2, 2), 1.0, torch.zeros(2, 2, dtype=torch.bool))
        with pytest.raises(ArgumentError, match="temperature"):
            log_shares(torch.zeros(1, 2, 2), 0.0)
        with pytest.raises(ShapeError, match="one shape"):
            divergence(torch.zeros(1, 2), torch.zeros(1, 3))

    @settings(max_examples=30)
    @given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
    def test_the_density_of_any_map_is_one_on_average(self, height, width, longest):
        values = torch.randn(2, height, width, generator=torch.Generator().manual_seed(height * 10 + width))
        found = density(log_shares(values, 1.0), (height, width), (height, width), height * width)
        assert found.mean((1, 2)).tolist() == pytest.approx([1.0, 1.0], rel=1e-5)
        small = fitting((height, width), longest)
        assert max(small) <= max(longest, 1)
        assert min(small) >= 1


class TestChoice:
    def test_the_largest_gains_then_the_largest_losses(self):
        found = changed_most([0.5, 0.5, 0.5, 0.5, None, 0.5], [0.6, 0.1, 0.9, 0.4, 1.0, None], 4, ("a", "b"))
        assert found.indices == (2, 0, 1, 3)
        assert found.why[2] == "mIoU +40.0 points by b"
        assert found.why[1] == "mIoU -40.0 points by b"
        assert "of the 4 images with labels" in found.rule

    def test_an_odd_one_goes_to_the_gains_and_the_first_of_equals_comes_first(self):
        assert changed_most([0.0] * 4, [0.1] * 4, 3, ("a", "b")).indices == (0, 1, 2)
        assert changed_most([0.0], [0.1], 6, ("a", "b")).indices == (0,)
        assert changed_most([None], [0.1], 6, ("a", "b")).indices == ()

    def test_one_network_best_worst_and_farthest_from_its_teacher(self):
        found = extremes([0.1, 0.9, None, 0.5, 0.4, 0.8], 6, {0: 0.9, 3: 0.2, 4: 0.3})
        assert found.indices == (1, 5, 0, 4, 3)
        assert found.why[3] == "answers other than the teacher's on 20.0% of its labelled pixels"
        assert "the 2 best, then the 2 worst" in found.rule

    def test_without_a_teacher_half_and_half(self):
        found = extremes([0.1, 0.9, 0.5, 0.4], 3)
        assert found.indices == (1, 2, 0)
        assert "differently" not in found.rule

    @settings(max_examples=30)
    @given(st.lists(st.none() | st.floats(0, 1), max_size=12), st.integers(0, 8))
    def test_no_image_twice_none_without_a_score_and_never_too_many(self, scores, count):
        for found in (extremes(scores, count), changed_most(scores, scores[::-1], count, ("a", "b"))):
            assert len(set(found.indices)) == len(found.indices) <= count
            assert all(scores[index] is not None for index in found.indices)
            assert set(found.why) >= set(found.indices)

    def test_channels_by_the_size_of_their_change(self):
        assert moved_most([1.0, 2.0, 3.0], [1.5, 0.0, 3.0], 2) == [1, 0]
        assert moved_most([1.0, 1.0], [2.0, 0.0], 1) == [0]


class TestNumbers:
    def test_divergences_have_three_digits_each(self):
        assert [divergence_words(value) for value in (0.1, 0.04004, 0.0, 1.0, 123.4)] == [
            "0.100",
            "0.0400",
            "0.00",
            "1.00",
            "123",
        ]
        assert [change_words(value) for value in (-0.1, 0.0, 0.25)] == ["\u22120.100", "+0.00", "+0.250"]


class TestTerms:
    def test_channels_are_shown_where_they_moved(self):
        teacher = torch.tensor([[[4.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]]])
        even = torch.zeros(3, 1, 2)
        looks = {"before": [look(teacher, teacher, 1.0, None), look(even, teacher, 1.0, None)]}
        looks["after"] = [look(teacher, teacher, 1.0, None), look(teacher, teacher, 1.0, None)]
        term = TermLooks("t", "channelwise", "a", "b", 1.0, True, ["x", "y", "z"], looks)
        record, planes = term.settled(2, "0")
        assert [(one.channel, one.image) for one in record.shown] == [(0, 1), (2, 1)]
        assert record.kl["after"] == pytest.approx([0, 0, 0])
        share = 1 / (1 + math.exp(-4.0))
        expected = share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share))
        assert record.kl["before"][0] == pytest.approx(expected / 2, rel=1e-5)
        assert record.shown[0].kl["before"] == pytest.approx(expected, rel=1e-5)
        assert record.log_positions == pytest.approx(math.log(2))
        assert planes["0.0.teacher"].tolist()[0] == pytest.approx([2 * share, 2 * (1 - share)])
        assert set(planes) == {f"0.{channel}.{name}" for channel in (0, 2) for name in ("teacher", "before", "after")}
        assert record.shown[0].low < record.shown[0].high

    def test_names_of_channels(self):
        assert channel_names(2, ("sky", "road"), None, True) == ["sky", "road"]
        assert channel_names(1, ("back", "crack"), None, True) == ["crack against back"]
        assert channel_names(2, ("sky", "road", "tree"), [0, 2], True) == ["sky", "tree"]
        assert channel_names(2, ("sky", "road"), None, False) == ["channel 0", "channel 1"]

    def test_padding_is_told_at_the_size_of_the_map(self):
        batch, real = padded(torch.ones(3, 5, 6), 8)
        assert tuple(batch.shape) == (1, 3, 8, 8)
        assert float(batch.sum()) == 90.0
        assert real is not None
        assert mask_at(real, (2, 2)).tolist() == [[True, False], [False, False]]
        assert padded(torch.ones(3, 8, 8), 8)[1] is None
        assert tuple(middle(torch.ones(3, 9, 4), (4, 6)).shape) == (3, 4, 4)


class TestFiles:
    @pytest.mark.parametrize("classes", [3, 255, 300])
    def test_ids_come_back_and_what_is_no_class_is_void(self, classes):
        ids = torch.tensor([[0, 2, classes - 1], [classes, -1, 70000]])
        assert read_ids(ids_file(ids, classes)).tolist() == [[0, 2, classes - 1], [classes] * 3]

    def test_small_pictures_keep_pixels_of_the_map_itself(self):
        ids = torch.tensor([[0, 1]]).repeat(50, 50)
        found = read_ids(ids_file(ids, 2, longest=10))
        assert tuple(found.shape) == (5, 10)
        assert set(found.flatten().tolist()) <= {0, 1}

    def test_small_files_are_kept_in_one(self):
        from safetensors.torch import load

        data = photo_file(torch.full((3, 8, 9), 128, dtype=torch.uint8))
        held = load(packed({"a": data, "b": b"x"}, {"plane": torch.ones(2, 2)}))
        assert unpacked(held["a"]) == data
        assert unpacked(held["b"]) == b"x"
        assert held["plane"].tolist() == [[1.0, 1.0], [1.0, 1.0]]

    def test_what_a_network_saw_comes_back_as_a_picture(self):
        import io

        data = seen_file(torch.zeros(3, 8, 8), (0.5, 0.25, 1.0), (0.1, 0.1, 0.1))
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.getpixel((4, 4)) == pytest.approx((128, 64, 255), abs=6)

    def test_a_name_that_is_no_text_can_be_written(self):
        name = "a\udcff\"<b>'.png"
        assert b"\\\\udcff" in as_file(ImageScore(name=files.as_text(name), miou=None, accuracy=None))


class TestDrawing:
    def test_errors_are_where_a_labelled_pixel_is_wrong(self):
        truth, answer = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[0, 0, 1, 1]])
        found = errors_picture(Image.new("RGB", (4, 1), (200, 200, 200)), truth, answer, 2)
        assert [found.getpixel((place, 0)) for place in (1, 2, 3)] == [WRONG, HATCH[0], WRONG]
        red, green, blue = found.getpixel((0, 0))
        assert red == green == blue > 200
        assert share_wrong(truth, answer, 2) == pytest.approx(2 / 3)
        assert share_wrong(torch.tensor([[2]]), torch.tensor([[0]]), 2) is None

    def test_error_maps_have_few_greys_from_white_down_and_what_is_wrong_is_darker(self):
        ramp = Image.linear_gradient("L").convert("RGB")
        found = errors_picture(ramp, torch.zeros(256, 256), torch.zeros(256, 256), 2)
        greys = [color for _, color in found.getcolors()]
        assert 10 < len(greys) < 25
        assert max(greys) == (255, 255, 255)
        # Contrast as WCAG defines it: what is wrong is told apart without seeing red.
        assert (luminance(min(greys)) + 0.05) / (luminance(WRONG) + 0.05) > 2.5

    @pytest.mark.parametrize("color", HATCH)
    def test_what_has_no_label_is_hatched_whatever_the_classes_colours(self, color):
        ids = torch.zeros(16, 16, dtype=torch.long)
        ids[:, 8:] = 1
        grey = Image.new("RGB", (16, 16), color)
        for found in (classes_picture(ids, [color]), errors_picture(grey, ids, torch.zeros_like(ids), 1)):
            assert {found.getpixel((x, y)) for x in range(8, 16) for y in range(16)} == set(HATCH)
            assert len({found.getpixel((x, y)) for x in range(8) for y in range(16)}) == 1
        assert (luminance(HATCH[1]) + 0.05) / (luminance(HATCH[0]) + 0.05) > 4.5

    def test_label_maps_are_stretched_by_their_own_pixels(self):
        assert stretched(torch.tensor([[0, 5], [7, 9]]), (4, 3)).tolist() == [[0, 0, 5, 5], [0, 0, 5, 5], [7, 7, 9, 9]]

    def test_colours_of_heat_depend_on_the_common_ends(self):
        image = Image.new("RGB", (240, 240), (100, 100, 100))
        low, high = (heat_picture(image, torch.full((2, 2), value), 0.0, 2.0) for value in (0.0, 2.0))
        assert sum(low.getpixel((9, 9))) < sum(high.getpixel((9, 9)))
        assert heat_picture(image, torch.ones(1, 1), 1.0, 1.0).size == (240, 240)

    def test_shares_of_a_label_map(self):
        assert shares(torch.tensor([[0, 1, 1, 9]]), ["a", "b"]) == [
            ("b", pytest.approx(2 / 3)),
            ("a", pytest.approx(1 / 3)),
        ]


def test_scores_of_an_image_are_of_the_classes_in_it():
    # Class 0: 1 of 2 pixels; class 1: 1 of 2; class 2 is neither in the truth nor in the answer.
    counts = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert image_scores(counts) == (pytest.approx(0.5), pytest.approx(2 / 3))
    assert image_scores(torch.zeros(3, 3, dtype=torch.int64)) is None


def test_what_is_kept_for_the_page_is_no_part_of_a_run():
    from densekd.config import load_recipe, recipe_digest
    from densekd.study.tasks import comparable, digest_of

    plain, other = (load_recipe("demo", {"report.images": count, "report.channels": count}) for count in (6, 0))
    assert other.report.images == 0
    assert recipe_digest(plain) == recipe_digest(other)
    assert comparable(plain) == comparable(other)
    assert digest_of(plain) == digest_of(other)
