from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from densekd.data.window import Window, _needed, resized_image, resized_label

SIDES = st.tuples(st.integers(1, 48), st.integers(1, 48))


def picture(height: int, width: int) -> Tensor:
    """Channels innermost, as files are read."""
    values = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return values.permute(2, 0, 1)


def whole_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    resized = functional.resize(tv_tensors.Image(image), list(size), InterpolationMode.BILINEAR, antialias=True)
    return resized.as_subclass(Tensor)


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], tuple[range, range]]:
    """A stored size, a wanted size, and rows and columns of it."""
    stored = draw(SIDES)
    if draw(st.booleans()):
        factor = draw(st.floats(0.2, 3.0))
        wanted = (max(1, round(stored[0] * factor)), max(1, round(stored[1] * factor)))
    else:
        wanted = draw(SIDES)
    ends = [sorted((draw(st.integers(0, side - 1)), draw(st.integers(1, side)))) for side in wanted]
    rows, columns = (range(low, max(low + 1, high)) for low, high in ends)
    return stored, wanted, (rows, columns)


@settings(max_examples=60, deadline=None)
@given(parts())
def test_a_part_of_the_resized_image_is_that_part_of_it(
    case: tuple[tuple[int, int], tuple[int, int], tuple[range, range]],
) -> None:
    stored, wanted, (rows, columns) = case
    image = picture(*stored)
    found = resized_image(image, wanted, rows, columns)
    expected = whole_image(image, wanted)[:, rows.start : rows.stop, columns.start : columns.stop]
    assert found.shape == (3, len(rows), len(columns))
    assert int((found.int() - expected.int()).abs().max()) <= 1


@settings(max_examples=40, deadline=None)
@given(parts())
def test_a_part_of_the_resized_label_has_the_nearest_pixels(
    case: tuple[tuple[int, int], tuple[int, int], tuple[range, range]],
) -> None:
    stored, wanted, (rows, columns) = case
    label = torch.arange(stored[0] * stored[1]).view(stored)
    found = resized_label(label, wanted, rows, columns)
    assert found.shape == (len(rows), len(columns))
    for across, side, goal, which in (
        (found[:, 0] // stored[1], stored[0], wanted[0], rows),
        (found[0] % stored[1], stored[1], wanted[1], columns),
    ):
        for place, number in zip(across.tolist(), which, strict=True):
            # Twice the centre's position, in units of 1 / goal: exact. In the middle of two pixels both are nearest.
            above, rest = divmod((2 * number + 1) * side, 2 * goal)
            assert place == above or (rest == 0 and place == above - 1)
    assert torch.equal(found, found[:, :1] // stored[1] * stored[1] + found[:1] % stored[1])


@pytest.mark.parametrize(
    ("stored", "wanted"), [((96, 128), (131, 175)), ((360, 480), (181, 241)), ((50, 30), (50, 30))]
)
def test_labels_are_resized_as_torch_does(stored: tuple[int, int], wanted: tuple[int, int]) -> None:
    label = torch.randint(0, 255, stored, dtype=torch.uint8)
    # torch's own: torchvision 0.26 takes the nearest of NEAREST for masks, half a pixel off
    expected = F.interpolate(label[None, None], wanted, mode="nearest-exact")[0, 0]
    assert torch.equal(resized_label(label, wanted, range(wanted[0]), range(wanted[1])), expected)


def test_what_lies_behind_the_window_is_not_computed() -> None:
    assert _needed(1000, 2000, 200) == (103, 2.0)
    stored, factor = _needed(1000, 2000, 2000)
    assert (stored, factor) == (1000, 2.0)
    image = picture(64, 64)
    seen = resized_image(image, (128, 128), range(20), range(20))
    image[:, 40:, :] = 0
    image[:, :, 40:] = 0
    assert torch.equal(resized_image(image, (128, 128), range(20), range(20)), seen)


def test_where_a_picture_lies_in_its_window() -> None:
    around = Window(-3, 2, 10, 4)
    assert around.inside((5, 8)) == (range(5), range(2, 6))
    assert around.covered((5, 8)) == (slice(3, 8), slice(0, 4))
