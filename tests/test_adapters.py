from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.adapters import Adapter, Layout, find_layout, nearest_resize
from densekd.errors import TapError


class TestLayout:
    @pytest.mark.parametrize(
        ("shape", "image", "expected"),
        [
            ((2, 64, 8, 8), (64, 64), Layout("NCHW")),
            ((2, 8, 12, 96), (64, 96), Layout("NHWC")),  # Swin
            ((2, 96, 8, 12), (64, 96), Layout("NCHW")),
            ((2, 7, 7, 7), (224, 224), Layout("NCHW")),
            ((2, 512, 1, 1), (64, 96), Layout("NCHW")),  # pooled
            ((2, 64, 96), (64, 96), Layout("NHW")),
            ((2, 16, 192), (64, 64), Layout("NLC", 0, 16)),
            ((2, 24 + 1, 192), (64, 96), Layout("NLC", 1, 16)),  # ViT
            ((2, 24 + 2, 192), (64, 96), Layout("NLC", 2, 16)),  # DeiT with its distillation token
            ((2, 4 + 5, 192), (32, 32), Layout("NLC", 5, 16)),  # class and four register tokens; 9 is 3 x 3 too
            ((2, 256 + 1, 192), (224, 224), Layout("NLC", 1, 14)),
            ((2, 80, 32), (60, 80), Layout("NLC", 0, 8, True)),  # SegFormer rounds up: 8 x 10
            ((2, 14 * 14, 192), (225, 225), Layout("NLC", 0, 16)),  # a patch convolution rounds down
            ((2, 50, 24 + 1), (64, 96), Layout("NCL", 1, 16)),
        ],
    )
    def test_found(self, shape: tuple[int, ...], image: tuple[int, int], expected: Layout) -> None:
        assert find_layout(shape, image, "tap") == expected

    @given(
        rows=st.integers(1, 12),
        columns=st.integers(1, 12),
        stride=st.sampled_from([4, 8, 16, 32]),
        leading=st.integers(0, 5),
    )
    @settings(max_examples=50, deadline=None)
    def test_tokens_land_on_the_grid_they_came_from(self, rows: int, columns: int, stride: int, leading: int) -> None:
        """Whatever stride was found, the grid is that of a map with the image's own proportions."""
        image = (rows * stride, columns * stride)
        grid = torch.arange(rows * columns * 3.0).reshape(1, rows * columns, 3)
        tokens = torch.cat([torch.full((1, leading, 3), -1.0), grid], dim=1)
        layout = Layout("NLC", leading, stride)
        assert torch.equal(layout.to_nchw(tokens, image), grid.reshape(1, rows, columns, 3).permute(0, 3, 1, 2))
        found = find_layout((1, leading + rows * columns, 1), image, "tap")
        assert found.to_nchw(tokens[..., :1], image).dim() == 4

    def test_to_nchw(self) -> None:
        image = (8, 12)
        x = torch.rand(2, 3, 8, 12)
        assert torch.equal(Layout("NHWC").to_nchw(x.permute(0, 2, 3, 1), image), x)
        assert torch.equal(Layout("NHW").to_nchw(x[:, 0], image), x[:, :1])
        assert torch.equal(Layout("NCL", 0, 1).to_nchw(x.flatten(2), image), x)
        assert torch.equal(Layout("NLC", 0, 1).to_nchw(x.flatten(2).transpose(1, 2), image), x)
        assert Layout("NCHW").to_nchw(x, image) is x

    def test_other_image_size_in_a_later_step(self) -> None:
        layout = find_layout((1, 17, 6), (64, 64), "tap")
        assert layout.to_nchw(torch.rand(1, 1 + 4 * 6, 6), (64, 96)).shape == (1, 6, 4, 6)
        with pytest.raises(
            TapError, match="25 tokens came for an image of 64x64; expected 1 leading ones and a grid of 4x4"
        ):
            layout.to_nchw(torch.rand(1, 25, 6), (64, 64))
        with pytest.raises(TapError, match="read as NLC"):
            layout.to_nchw(torch.rand(1, 6, 4, 4), (64, 64))

    def test_refused(self) -> None:
        with pytest.raises(TapError, match=r"tap 'x': expected a spatial map.*\(2, 10\).*before the pooling"):
            find_layout((2, 10), (64, 64), "tap 'x'")
        with pytest.raises(TapError, match=r"cannot tell the grid.*neither 3000 nor 3001"):
            find_layout((2, 3000, 3001), (64, 64), "tap 'x'")


class TestNearest:
    @given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
    @settings(max_examples=60, deadline=None)
    def test_agrees_with_nearest_exact(self, height: int, width: int, rows: int, columns: int) -> None:
        labels = torch.randint(0, 1000, (2, height, width))
        expected = F.interpolate(labels[:, None].double(), size=(rows, columns), mode="nearest-exact")[:, 0]
        assert torch.equal(nearest_resize(labels, (rows, columns)), expected.long())

    def test_bool_and_same_size(self) -> None:
        mask = torch.rand(1, 4, 4) > 0.5
        assert nearest_resize(mask, (4, 4)) is mask
        assert nearest_resize(mask, (2, 2)).dtype == torch.bool


class TestAdapter:
    def test_nothing_to_do(self) -> None:
        adapter = Adapter(4, 4)
        x = torch.rand(1, 4, 3, 3)
        assert adapter(x, (3, 3)) is x
        assert not list(adapter.parameters())
        assert adapter.state_dict() == {}

    def test_initial_values(self) -> None:
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = Adapter(16, 8, name="a")
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        again, other = Adapter(16, 8, name="a"), Adapter(16, 8, name="b")
        assert torch.equal(first.weight, again.weight)
        assert not torch.equal(first.weight, other.weight)
        assert float(first.weight.detach().abs().max()) <= 0.25
        assert float(first.weight.detach().std()) == pytest.approx(0.25 / 3**0.5, rel=0.2)
        assert not first.bias.any()

    @pytest.mark.parametrize("size", [(3, 5), (12, 7), (6, 5)])
    def test_order_does_not_matter(self, size: tuple[int, int]) -> None:
        adapter = Adapter(4, 7, dtype=torch.float64)
        with torch.no_grad():
            adapter.bias.normal_()
        x = torch.rand(2, 4, 6, 5, dtype=torch.float64)
        projected = torch.einsum("oi,nihw->nohw", adapter.weight[:, :, 0, 0], x) + adapter.bias[:, None, None]
        expected = F.interpolate(projected, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(adapter(x, size), expected)

    def test_works_in_the_map_s_type(self) -> None:
        adapter = Adapter(4, 6)
        x = torch.rand(1, 4, 3, 3)
        assert adapter(x.bfloat16(), (6, 6)).dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = adapter(x, (6, 6))
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert adapter.weight.grad.dtype == torch.float32
