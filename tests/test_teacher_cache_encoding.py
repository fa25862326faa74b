from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.teacher_cache.encoding import ENCODINGS, BeyondError, Encoding, encode, softened_error
from densekd.teacher_cache.stored import Stored

sizes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))


def back(data: bytes, encoding: Encoding, shape: tuple[int, int, int]) -> torch.Tensor:
    stored = Stored.empty(encoding, 2, shape)
    stored.values.fill_(77)  # what is not written must not look right
    stored.fill(1, memoryview(data))
    return stored.unpacked()[1]


class TestRoundTrip:
    @given(sizes, st.integers(0, 2**31), st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]))
    @settings(max_examples=25, deadline=None)
    def test_bfloat16_is_torchs_own_rounding(self, shape, seed, scale):
        tapped = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        encoded = encode(tapped, "bfloat16")
        assert torch.equal(back(encoded.data, "bfloat16", shape), tapped.to(torch.bfloat16).float())
        assert torch.equal(encoded.back, tapped.to(torch.bfloat16).float())

    @given(sizes, st.integers(0, 2**31), st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]), st.sampled_from([0.0, 1e3]))
    @settings(max_examples=25, deadline=None)
    def test_int8_errs_by_half_a_step_of_its_channel(self, shape, seed, scale, offset):
        tapped = scale * (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + offset)
        encoded = encode(tapped, "int8")
        found = back(encoded.data, "int8", shape)
        assert torch.equal(found, encoded.back)
        exact = tapped.double().numpy().reshape(shape[0], -1)
        step = (exact.max(1) - exact.min(1)) / 255
        slack = 1e-6 * np.abs(exact).max(1)  # of float32 itself
        error = np.abs(found.double().numpy().reshape(shape[0], -1) - exact).max(1)
        assert (error <= 0.5001 * step + slack).all()

    @pytest.mark.parametrize("encoding", ENCODINGS)
    @pytest.mark.parametrize("value", [0.0, -3.25, 1e-40, 2.0**100])
    def test_a_constant_channel_comes_back_as_it_was(self, encoding, value):
        tapped = torch.full((2, 3, 3), value)
        tapped[1] = torch.arange(9.0).reshape(3, 3)
        found = back(encode(tapped, encoding).data, encoding, (2, 3, 3))
        exact = tapped.to(torch.bfloat16).float() if encoding == "bfloat16" else tapped
        assert torch.equal(found[0], exact[0])
        assert (found[1] - tapped[1]).abs().max() < 0.02

    def test_steps_that_float32_can_hardly_hold(self):
        smallest = 2.0**-149
        tapped = torch.tensor([[[0.0, 380 * smallest, 100 * smallest]]])
        found = back(encode(tapped, "int8").data, "int8", (1, 1, 3))
        assert found.tolist() == [[[0.0, 255 * smallest, 100 * smallest]]]

    @pytest.mark.parametrize("encoding", ENCODINGS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_any_float_dtype_and_layout(self, encoding, dtype):
        tapped = torch.randn(3, 4, 6).to(dtype)
        turned = tapped.transpose(1, 2).contiguous().transpose(1, 2)
        assert not turned.is_contiguous()
        assert encode(turned, encoding).data == encode(tapped.float(), encoding).data


class TestBeyond:
    @pytest.mark.parametrize("encoding", ENCODINGS)
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_not_finite(self, encoding, value):
        tapped = torch.zeros(2, 3, 3)
        tapped[1, 2, 2] = value
        with pytest.raises(BeyondError, match=rf"1 of 18 values are not finite \(the first: {value}\)"):
            encode(tapped, encoding)

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_beyond_float32(self, encoding):
        with pytest.raises(BeyondError, match=r"a value \(1e\+300\) is beyond the largest float32"):
            encode(torch.full((1, 2, 2), 1e300, dtype=torch.float64), encoding)

    def test_beyond_bfloat16(self):
        with pytest.raises(BeyondError, match=r"a value \(3\.4e\+38\) is beyond the largest bfloat16"):
            encode(torch.tensor([[[3.4e38, 0.0]]]), "bfloat16")

    def test_int8_further_apart_than_float32(self):
        with pytest.raises(BeyondError, match=r"values from -3e\+38 to 3e\+38 are too far apart for int8"):
            encode(torch.tensor([[[-3e38, 3e38]]]), "int8")
        huge = torch.tensor([[[-1.5e38, 0.0, 1.5e38]]])
        assert (back(encode(huge, "int8").data, "int8", (1, 1, 3)) - huge).abs().max() <= 0.51 * 3e38 / 255


class TestSoftenedError:
    def test_is_the_relative_l2_error_over_positions(self):
        tapped, other = torch.randn(3, 4, 5), torch.randn(3, 4, 5)

        def soft(values: torch.Tensor) -> np.ndarray:
            e = np.exp(values.double().numpy().reshape(3, -1) / 4.0)
            return e / e.sum(1, keepdims=True)

        expected = np.linalg.norm(soft(other) - soft(tapped)) / np.linalg.norm(soft(tapped))
        assert softened_error(tapped, other, 4.0) == pytest.approx(expected, rel=1e-5)
        assert softened_error(tapped, tapped + 7.0, 4.0) < 1e-6

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_of_what_is_read_back_is_small(self, encoding):
        tapped = 5 * torch.randn(19, 16, 16)
        assert 1e-6 < softened_error(tapped, encode(tapped, encoding).back, 4.0) < 0.01


class TestDamage:
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_what_is_of_another_size_is_no_map(self, encoding):
        data = encode(torch.randn(2, 3, 4), encoding).data
        for shape in ((2, 3, 5), (2, 3, 3)):
            with pytest.raises(ValueError, match=r"instead of|not readable as zstandard"):
                back(data, encoding, shape)
        with pytest.raises(ValueError, match=r"not readable as zstandard|fewer than"):
            back(data[:10], encoding, (2, 3, 4))
