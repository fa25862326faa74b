"""3x3 convolutions in Winograd's form: their values against float64, where they are used, and how they go away."""

from __future__ import annotations

import copy
import json
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import densekd
from densekd.errors import ArgumentError, ModelError
from densekd.teacher import Batch, FrozenTeacher, freezing, winograd, winograd_fit
from densekd.teacher.winograd import (
    WinogradConv2d,
    can_be_winograd,
    put_in,
    take_out,
    tiles,
    winograd_conv2d,
    winograd_weight,
)

PAIR = st.tuples(st.integers(0, 5), st.integers(0, 5))
DILATION = st.tuples(st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 4]))


def made(inputs: int, outputs: int, seed: int = 0, **options: Any) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(inputs, outputs, 3, **options).requires_grad_(False)


def exact(conv: nn.Conv2d, x: Tensor) -> Tensor:
    bias = None if conv.bias is None else conv.bias.double()
    return F.conv2d(x.double(), conv.weight.double(), bias, 1, conv.padding, conv.dilation)


def changed(conv: nn.Conv2d) -> nn.Conv2d:
    put_in(conv, winograd_weight(conv.weight))
    return conv


class TestValues:
    @settings(max_examples=25, deadline=None)
    @given(
        shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 13), st.integers(1, 13)),
        outputs=st.integers(1, 4),
        padding=PAIR,
        dilation=DILATION,
        bias=st.booleans(),
        layout=st.sampled_from(["plain", "last", "strided"]),
    )
    def test_equal_a_convolution_in_float64(
        self, shape: Any, outputs: int, padding: Any, dilation: Any, bias: bool, layout: str
    ) -> None:
        size = winograd.output_size(shape[2:], padding, dilation)
        if min(size) < 1:
            return
        conv = made(shape[1], outputs, padding=padding, dilation=dilation, bias=bias)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
        if layout == "last":
            x = x.contiguous(memory_format=torch.channels_last)
        elif layout == "strided":
            x = torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]
        found = winograd_conv2d(x, winograd_weight(conv.weight), conv.bias, padding, dilation)
        assert found.shape == (shape[0], outputs, *size)
        torch.testing.assert_close(found.double(), exact(conv, x), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("shape", [(3, 4, 40, 40), (1, 4, 40, 270)])
    def test_blocks_of_tiles(self, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        """Several images at once, one at a time, and some rows of tiles of one: all give the same."""
        conv, x = made(4, 3, padding=2, dilation=2), torch.randn(shape)
        form = winograd_weight(conv.weight)
        for most in (1, 7, 60, 120, 10_000):
            monkeypatch.setattr(winograd, "_TILES", most)
            found = winograd_conv2d(x, form, conv.bias, (2, 2), (2, 2))
            torch.testing.assert_close(found.double(), exact(conv, x), rtol=1e-5, atol=1e-5)

    def test_rounding_is_that_of_float32(self) -> None:
        """The points matter: with 0, +-1, +-2 the error is above 1e-6 here."""
        conv, x = made(64, 8, padding=1), torch.randn(1, 64, 16, 16).relu()
        truth = exact(conv, x)
        found = winograd_conv2d(x, winograd_weight(conv.weight), conv.bias, (1, 1), (1, 1))
        assert (found.double() - truth).norm() < 8e-7 * truth.norm()

    def test_memory_of_a_block_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So many tiles at once, or one row of them of every phase."""
        counts: list[int] = []
        block = winograd._block

        def counted(seen: Tensor, form: Tensor) -> Tensor:
            counts.append(seen.shape[2:-1].numel())
            return block(seen, form)

        monkeypatch.setattr(winograd, "_block", counted)
        form = winograd_weight(made(1, 1).weight)
        for shape, dilation, expected in (
            ((3, 1, 40, 40), (1, 1), [200, 100]),
            ((2, 1, 80, 80), (1, 1), [240, 160] * 2),
            ((1, 1, 16, 80), (4, 4), [80]),
            ((1, 1, 32, 320), (4, 4), [320] * 2),
        ):
            counts.clear()
            winograd_conv2d(torch.zeros(shape), form, None, dilation, dilation)
            assert counts == expected

    def test_one_operator_under_a_compiler(self) -> None:
        """Its fake has the shape and the strides of what it gives."""
        for size, padding, dilation in (((12, 8), (1, 1), (1, 1)), ((9, 14), (0, 3), (2, 1))):
            conv, x = made(2, 3, padding=padding, dilation=dilation), torch.randn(2, 2, *size)
            inputs = (x, winograd_weight(conv.weight), conv.bias, padding, dilation)
            found = torch.ops.densekd.winograd_conv2d(*inputs)
            fake = torch.ops.densekd.winograd_conv2d(*(i.to("meta") if isinstance(i, Tensor) else i for i in inputs))
            assert (fake.shape, fake.stride()) == (found.shape, found.stride())
            torch.testing.assert_close(found.double(), exact(conv, x), rtol=1e-5, atol=1e-5)

    def test_tiles_cover_the_output(self) -> None:
        assert tiles((32, 33), (1, 1)) == (8, 9)
        assert tiles((32, 33), (2, 4)) == (4, 3)


class TestModule:
    def test_it_stays_the_same_object_and_comes_back(self) -> None:
        conv = made(3, 2, padding=1)
        pair = nn.ModuleList([conv, nn.Sequential(conv)])
        x, before = torch.randn(1, 3, 8, 8), copy.deepcopy(conv)
        names, usual = list(conv.state_dict()), conv(x)
        changed(conv)
        assert type(conv) is WinogradConv2d
        assert pair[1][0] is conv
        assert list(conv.state_dict()) == names
        with torch.no_grad():
            found = conv(x)
            assert not torch.equal(found, usual)  # or it was never used
            torch.testing.assert_close(found, usual)
            for again in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
                assert torch.equal(again(x), found)
            take_out(pair)
            assert type(conv) is nn.Conv2d
            assert not hasattr(conv, "winograd")
            assert torch.equal(conv(x), before(x))

    def test_anything_else_is_convolved_as_ever(self) -> None:
        conv = made(3, 2, padding=1)
        x = torch.randn(1, 3, 8, 8)
        usual, wide, one = conv(x), copy.deepcopy(conv).double(), conv(x[0])
        changed(conv)
        assert torch.equal(conv(x), usual)  # gradients are on
        with torch.no_grad():
            assert torch.equal(conv(x[0]), one)
            assert torch.equal(changed(wide)(x.double()), exact(conv, x))
            assert conv(x[:0]).shape == (0, 2, 8, 8)
            with pytest.raises(RuntimeError, match="size"):
                changed(made(3, 2))(x[:, :, :2])

    @pytest.mark.parametrize(
        "options",
        [
            {"stride": 2},
            {"groups": 2},
            {"padding": "same"},
            {"padding_mode": "reflect", "padding": 1},
            {"kernel_size": 5},
            {"kernel_size": (3, 1)},
        ],
    )
    def test_what_cannot_be(self, options: dict[str, Any]) -> None:
        conv = nn.Conv2d(4, 4, **{"kernel_size": 3, **options})
        assert not can_be_winograd(conv)
        assert can_be_winograd(nn.Conv2d(4, 4, 3, dilation=(1, 7), padding=3))

    def test_a_convolution_with_a_meaning_of_its_own(self) -> None:
        class Own(nn.Conv2d):
            pass

        assert not can_be_winograd(Own(4, 4, 3))
        lent = nn.Conv2d(4, 4, 3)
        lent.forward = lambda x: x  # type: ignore[method-assign]
        assert not can_be_winograd(lent)


class TestWhichFit:
    @pytest.mark.parametrize(
        ("shape", "options", "fits"),
        [
            ((2, 64, 32, 32), {"padding": 1}, True),
            ((2, 63, 32, 32), {"padding": 1}, False),
            ((2, 64, 32, 32), {"padding": 4, "dilation": 4}, True),
            ((2, 64, 32, 32), {"padding": 12, "dilation": 12}, False),  # 48 rows of tiles for 32
            ((2, 64, 33, 33), {"padding": 4, "dilation": 4}, False),
            ((2, 64, 65, 65), {"padding": 2, "dilation": 2}, True),
            ((1, 64, 8, 8), {"padding": 1}, False),  # four tiles
            ((4, 64, 8, 8), {"padding": 1}, True),
        ],
    )
    def test_told_from_shapes_alone(self, shape: tuple[int, ...], options: dict[str, Any], fits: bool) -> None:
        with torch.device("meta"):
            conv = nn.Conv2d(shape[1], 64, 3, **options)
        assert winograd_fit._fits(conv, shape) is fits
        assert not winograd_fit._fits(conv, shape[1:])
        with torch.device("meta"):
            assert not winograd_fit._fits(nn.Conv2d(shape[1], 63, 3, **options), shape)


class TestSeen:
    def test_a_convolution_that_gets_several_sizes(self) -> None:
        """All must fit; one that never ran does not."""
        with torch.device("meta"):
            layers = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(3))
            large, small = torch.empty(2, 64, 32, 32), torch.empty(1, 64, 8, 8)
        engine: Any = SimpleNamespace(
            network=layers, maps=lambda _: (layers[0](large), layers[1](small), layers[1](large))
        )
        assert winograd_fit._fitting(engine, Batch((large,), {})) == [layers[0]]
        assert not any(layer._forward_pre_hooks for layer in layers)


class Small(nn.Module):
    """Two convolutions that fit, one of them tapped, and two that do not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.one = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.two = nn.Conv2d(64, 64, 3, padding=2, dilation=2)
        self.head = nn.Conv2d(64, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.one(self.stem(x))).relu()
        return self.head(self.two(y))


def frozen(**options: Any) -> FrozenTeacher:
    x = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    return densekd.freeze_teacher(Small(), example=x, **{"taps": ["head", "two"], "dtype": "float32", **options})


def kinds(teacher: FrozenTeacher) -> list[str]:
    return [name for name, module in teacher.network.named_modules() if type(module) is WinogradConv2d]


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a pass is said to take: of the first alone, then before and after in turns."""
    told: list[float] = []
    monkeypatch.setattr(winograd_fit, "seconds_of", lambda *_: told.pop(0))
    monkeypatch.setattr(winograd_fit, "_ROUNDS", 1)
    return told


@pytest.mark.slow
class TestFreezing:
    def test_asked_for(self) -> None:
        plain, fast = frozen(winograd=False), frozen(winograd=True)
        assert (kinds(plain), kinds(fast)) == ([], ["one", "two"])
        assert (plain.report.winograd, fast.report.winograd) == (0, 2)
        memory = 2 * 36 * 64 * 64 * 4 / 1e6
        assert fast.report.winograd_why == f"asked for; {memory:.0f} MB of weights besides"
        assert json.loads(json.dumps(fast.report.as_dict()))["winograd"] == 2
        assert ("Winograd convolutions", f"2 ({fast.report.winograd_why})") in fast.report.rows()
        assert fast.report.folded == 1  # the folded weights are those that are put into the form
        for error in fast.report.errors.values():
            assert 0 < error.maps < 2e-6
        x = torch.rand(3, 3, 50, 31)
        theirs = plain.maps(Batch((x,), {}))
        for tap, found in fast.maps(Batch((x,), {})).items():
            torch.testing.assert_close(found, theirs[tap], rtol=1e-5, atol=1e-5)

    def test_auto_takes_it_where_it_pays(self, gains: list[float]) -> None:
        gains[:] = [0.5, 1.2, 1.0]
        fast = frozen()
        assert kinds(fast) == ["one", "two"]
        assert fast.report.winograd_why.startswith("1.20 times as fast; ")
        gains[:] = [0.5, 1.09, 1.0]
        slow = frozen()
        assert (kinds(slow), slow.report.winograd) == ([], 0)
        assert slow.report.winograd_why == "the teacher is 1.09 times as fast with it, less than 1.1"
        gains[:] = [0.019, 9.0, 1.0]
        quick = frozen()
        assert (kinds(quick), gains) == ([], [9.0, 1.0])
        assert "less than 20: not worth it" in quick.report.winograd_why

    def test_where_there_is_no_place_for_it(self) -> None:
        for options in ({"dtype": "bfloat16"}, {"channels_last": False}):
            notices = frozen(winograd=True, **options).notices
            assert any("winograd=True changes nothing" in notice for notice in notices), notices
            assert not any("winograd" in notice for notice in frozen(**options).notices)
        network = nn.Sequential(nn.Conv2d(3, 4, 3))
        fast = densekd.freeze_teacher(network, example=torch.rand(1, 3, 8, 8), taps=["0"], winograd=True)
        assert fast.report.winograd_why.startswith("no 3x3 convolution of stride 1")
        with pytest.raises(ArgumentError, match="winograd: expected 'auto', True or False, got 'yes'"):
            frozen(winograd="yes")

    def test_hooks_before_a_convolution(self) -> None:
        """What they do to the weights is not known."""
        teacher = Small()
        teacher.one.register_forward_pre_hook(lambda module, args: None)
        x = torch.rand(2, 3, 48, 48)
        fast = densekd.freeze_teacher(teacher, example=x, taps=["head"], dtype="float32", winograd=True)
        assert kinds(fast) == ["two"]

    def test_a_reduced_format_has_the_usual_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("densekd.teacher.choose.SMALLEST_SECONDS", 0.0)
        monkeypatch.setattr("densekd.teacher.choose.SMALLEST_GAIN", 0.0)
        monkeypatch.setattr("densekd.teacher.choose.LARGEST_ERROR", 1.0)
        monkeypatch.setattr(freezing._Making, "_race", _reduced_wins)
        fast = frozen(dtype="auto", winograd=True)
        assert (fast.report.dtype, fast.report.winograd, kinds(fast)) == ("bfloat16", 0, [])
        assert {name.split(".")[-1] for name, _ in fast.network.named_buffers()} == set()

    def test_a_copy_that_is_wrong(self, monkeypatch: pytest.MonkeyPatch, gains: list[float]) -> None:
        monkeypatch.setattr(winograd_fit, "winograd_weight", lambda weight: 1.01 * winograd_weight(weight))
        gains[:] = [0.5, 2.0, 1.0]
        fast = frozen()
        assert (kinds(fast), fast.report.winograd) == ([], 0)
        assert fast.report.winograd_why == "the maps differ by more than rounding with it"
        assert fast.report.errors["head"].maps < 1e-6
        with pytest.raises(ModelError, match=r"in Winograd's form its map .* use winograd=False"):
            frozen(winograd=True)

    def test_it_goes_away_where_the_teacher_moves(self) -> None:
        fast = frozen(winograd=True)
        fast._apply(lambda tensor: tensor.to("meta"))
        assert kinds(fast) == []


def _reduced_wins(self: Any, engines: Any) -> list[float]:
    found = [1.0 if engine.precision.name == "float32" else 0.5 for engine in engines]
    self.seconds = {**dict(zip(engines, found, strict=True)), self.plain.engine: 1.0}
    return found
