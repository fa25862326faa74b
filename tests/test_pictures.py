from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densekd.errors import ArgumentError, ShapeError
from densekd.pictures import channel_map, colourise, contact_sheet, indexed, legend, overlay, photograph, stacked

PALETTE = ((200, 10, 20), (30, 220, 40), (50, 60, 240))
LABEL = torch.tensor([[0, 0, 1, 1], [0, 2, 2, 255]])


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


class TestColourise:
    def test_every_class_in_its_colour_and_void_in_its_own(self):
        found = pixels(colourise(LABEL, PALETTE, void=(9, 8, 7)))
        expected = [[PALETTE[0], PALETTE[0], PALETTE[1], PALETTE[1]], [PALETTE[0], PALETTE[2], PALETTE[2], (9, 8, 7)]]
        assert found.tolist() == [[list(color) for color in row] for row in expected]

    def test_negative_ignore_index_is_void_too(self):
        assert pixels(colourise(torch.tensor([[-1]]), PALETTE, void=(1, 2, 3)))[0, 0].tolist() == [1, 2, 3]

    @pytest.mark.parametrize("label", [torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(2, 2)])
    def test_refuses_what_is_no_label_map(self, label):
        with pytest.raises(ShapeError, match=r"class ids \(H, W\)"):
            colourise(label, PALETTE)


class TestIndexed:
    def test_reads_back_as_ids_and_looks_like_the_colours(self):
        stream = io.BytesIO()
        indexed(LABEL, PALETTE, void=(9, 8, 7)).save(stream, format="PNG")
        again = Image.open(stream)
        assert np.asarray(again).tolist() == LABEL.tolist()
        assert pixels(again).tolist() == pixels(colourise(LABEL, PALETTE, void=(9, 8, 7))).tolist()

    def test_refuses_ids_that_do_not_fit(self):
        with pytest.raises(ArgumentError, match="0 to 255"):
            indexed(torch.tensor([[300]]), PALETTE)
        with pytest.raises(ArgumentError, match="0 to 255"):
            indexed(torch.tensor([[-1]]), PALETTE)


class TestOverlay:
    def test_inside_a_region_the_mixture_is_linear(self):
        image = torch.full((3, 6, 6), 100, dtype=torch.uint8)
        label = torch.zeros(6, 6, dtype=torch.int64)
        for alpha in (0.0, 0.25, 1.0):
            expected = np.rint(100 + alpha * (np.array(PALETTE[0]) - 100))
            assert np.array_equal(pixels(overlay(image, label, PALETTE, alpha))[3, 3], expected)

    def test_border_is_stronger_than_the_inside(self):
        image = torch.zeros(3, 6, 6, dtype=torch.uint8)
        label = torch.zeros(6, 6, dtype=torch.int64)
        label[:, 3:] = 1
        found = pixels(overlay(image, label, PALETTE, 0.4)).astype(int)
        assert found[2, 2, 0] > found[2, 0, 0]
        assert found[2, 3, 1] > found[2, 5, 1]

    def test_void_shows_the_image(self):
        image = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
        found = overlay(image, torch.full((4, 4), 255), PALETTE, 1.0)
        assert np.array_equal(pixels(found), pixels(photograph(image)))

    def test_refusals(self):
        image = torch.zeros(3, 4, 4, dtype=torch.uint8)
        with pytest.raises(ArgumentError, match="alpha"):
            overlay(image, torch.zeros(4, 4, dtype=torch.int64), PALETTE, 1.5)
        with pytest.raises(ShapeError, match="differ in size"):
            overlay(image, torch.zeros(4, 5, dtype=torch.int64), PALETTE)
        with pytest.raises(ShapeError, match="8 bits"):
            photograph(torch.zeros(3, 4, 4))


class TestLegend:
    @settings(max_examples=12, deadline=None)
    @given(
        names=st.lists(st.text("abcdefgh äß", min_size=1, max_size=30), min_size=1, max_size=12),
        width=st.integers(1, 900),
        size=st.sampled_from([8, 15, 33]),
    )
    def test_nothing_is_cut_off(self, names, width, size):
        """The outermost pixels stay paper-white, and every colour is there."""
        palette = tuple((255, 3 * place, 100) for place in range(len(names)))
        found = pixels(legend(names, palette, width=width, notes=["12.5%"] * len(names), text_size=size))
        assert found.shape[1] >= width
        for edge in (found[0], found[-1], found[:, 0], found[:, -1]):
            assert (edge == 255).all()
        for color in palette:
            assert (found == color).all(-1).any()

    def test_refuses_numbers_that_differ(self):
        with pytest.raises(ArgumentError, match="2 classes, 3 colours"):
            legend(["a", "b"], PALETTE)


class TestChannelMap:
    def test_bright_where_it_is_high_at_the_size_asked_for(self):
        found = pixels(channel_map(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), (20, 40))).astype(int)
        assert found.shape == (20, 40, 3)
        corners = [found[0, 0].sum(), found[0, -1].sum(), found[-1, 0].sum(), found[-1, -1].sum()]
        assert corners == sorted(corners)
        assert corners[0] < 60
        assert corners[-1] > 500

    def test_one_outlier_does_not_blacken_the_rest(self):
        values = torch.linspace(0, 1, 400).view(20, 20)
        calm = pixels(channel_map(values)).astype(int)
        values[0, 0] = 1e6
        wild = pixels(channel_map(values)).astype(int)
        assert abs(calm[1:] - wild[1:]).mean() < 5

    def test_constant_and_infinite_values(self):
        assert pixels(channel_map(torch.ones(3, 3))).max() < 20
        channel_map(torch.tensor([[0.0, float("inf")], [float("nan"), 1.0]]))
        with pytest.raises(ShapeError, match="finite"):
            channel_map(torch.full((2, 2), float("nan")))


class TestContactSheet:
    def test_places_and_sizes(self):
        red, green = (Image.new("RGB", (20, 10), color) for color in ("#ff0000", "#00ff00"))
        sheet = contact_sheet([[red, None], [green, red]], ["one", "two"], ["first", "second"], cell_width=60)
        found = pixels(sheet)
        assert (found == (255, 0, 0)).all(-1).sum() == 2 * 60 * 30
        assert (found == (0, 255, 0)).all(-1).sum() == 60 * 30
        rows, columns = np.nonzero((found == (0, 255, 0)).all(-1))
        assert columns.max() < sheet.width / 2
        assert rows.min() > sheet.height / 2

    def test_masks_grow_without_new_colours(self):
        sheet = contact_sheet([[indexed(LABEL, PALETTE)]], ["mask"], cell_width=97)
        inside = pixels(sheet)[-30:-20, 20:90].reshape(-1, 3)
        assert {tuple(color) for color in inside} <= {*PALETTE, (0, 0, 0)}

    @pytest.mark.parametrize("title", ["quite a long title", "one that no letters are small enough for"])
    def test_a_title_too_long_stays_in_its_column(self, title):
        blank = Image.new("RGB", (100, 10), "#ffffff")
        found = pixels(contact_sheet([[blank, blank]], [title, "x"], cell_width=100))
        between = found[:30, 106:113]
        assert (between == 255).all()

    def test_refuses_rows_of_other_lengths(self):
        with pytest.raises(ArgumentError, match="2 titles"):
            contact_sheet([[None]], ["a", "b"])
        with pytest.raises(ArgumentError, match="0 titles"):
            contact_sheet([], [])

    def test_stacked_keeps_every_pixel(self):
        wide, narrow = Image.new("RGB", (9, 2), "#ff0000"), Image.new("RGB", (3, 4), "#00ff00")
        found = stacked([wide, narrow])
        assert found.size == (9, 6)
        assert (pixels(found) == (0, 255, 0)).all(-1).sum() == 12
