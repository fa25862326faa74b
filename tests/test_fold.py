from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from densekd.teacher.fold import Folded, fold_batchnorm

CONVS: dict[str, Any] = {
    "1d": nn.Conv1d,
    "2d": nn.Conv2d,
    "3d": nn.Conv3d,
    "t1d": nn.ConvTranspose1d,
    "t2d": nn.ConvTranspose2d,
    "t3d": nn.ConvTranspose3d,
}
NORMS: dict[str, Any] = {"1": nn.BatchNorm1d, "2": nn.BatchNorm2d, "3": nn.BatchNorm3d}


def lived_in(network: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and weights as after training, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) * 3 + 0.2)
            if module.affine:
                module.weight.data = torch.randn(module.num_features, generator=generator)
                module.bias.data = torch.randn(module.num_features, generator=generator)
    return network.eval().requires_grad_(False)


def folded(network: nn.Module, images: Tensor, keep: tuple[str, ...] = ()) -> tuple[nn.Module, Folded]:
    """A folded copy, compared with the network itself in float64."""
    exact = copy.deepcopy(network).double()(images.double())
    fast = copy.deepcopy(network)
    found = fold_batchnorm(fast, lambda: fast(images), keep)
    torch.testing.assert_close(fast(images).double(), exact, rtol=1e-4, atol=1e-4)
    return fast, found


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 6, 6)), generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Modules by name and a forward pass written in the test."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.written = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def check(kind: str, groups: int, bias: bool, affine: bool, dilation: int, seed: int) -> None:
    dims = int(kind[-2])
    torch.manual_seed(seed)
    layer = CONVS[kind](4, 6, 2, groups=groups, bias=bias, dilation=dilation)
    norm = NORMS[kind[-2]](6, eps=0.1 if bias else 1e-5, affine=affine)
    network = nn.Sequential(layer, norm, nn.ReLU(inplace=True))
    fast, found = folded(lived_in(network, seed), images(2, 4, *[5] * dims))
    assert found == Folded({"1": "0"}, {})
    assert isinstance(fast[1], nn.Identity)


class TestFolded:
    @pytest.mark.parametrize("kind", CONVS)
    def test_every_kind(self, kind: str) -> None:
        check(kind, groups=2, bias=kind.startswith("t"), affine=True, dilation=1, seed=3)

    @pytest.mark.slow
    @settings(max_examples=80, deadline=None)
    @given(
        kind=st.sampled_from(sorted(CONVS)),
        groups=st.sampled_from([1, 2]),
        bias=st.booleans(),
        affine=st.booleans(),
        dilation=st.sampled_from([1, 2]),
        seed=st.integers(0, 1000),
    )
    def test_equals_the_network_in_float64(
        self, kind: str, groups: int, bias: bool, affine: bool, dilation: int, seed: int
    ) -> None:
        check(kind, groups, bias, affine, dilation, seed)

    def test_linear(self) -> None:
        _, found = folded(lived_in(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))), images(5, 3))
        assert found.folded == {"1": "0"}

    def test_linear_over_tokens_has_its_channels_elsewhere(self) -> None:
        network = lived_in(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
        _, found = folded(network, images(5, 4, 3))
        assert found.folded == {}

    @pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
    def test_padding(self, mode: str) -> None:
        conv = nn.Conv2d(3, 4, 3, padding="same", padding_mode=mode)
        _, found = folded(lived_in(nn.Sequential(conv, nn.SyncBatchNorm(4))), images())
        assert found.folded == {"1": "0"}

    def test_order_of_registration_says_nothing(self) -> None:
        """Both norms stand where the other one is used."""
        network = Net(
            lambda net, x: net.norm1(net.conv2(net.norm2(net.conv1(x)))),
            conv1=nn.Conv2d(3, 4, 1),
            norm1=nn.BatchNorm2d(4),
            conv2=nn.Conv2d(4, 4, 1),
            norm2=nn.BatchNorm2d(4),
        )
        _, found = folded(lived_in(network), images())
        assert found.folded == {"norm1": "conv2", "norm2": "conv1"}

    def test_memory_format_and_type_stay(self) -> None:
        network = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(memory_format=torch.channels_last)
        fast, _ = folded(network, images())
        weight = fast[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert weight.dtype == torch.float32
        assert not weight.requires_grad

    def test_normalisation_with_activation(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), NormAct(4, nn.ReLU(inplace=True)))
        fast, found = folded(lived_in(network), images())
        assert found.folded == {"1": "0"}
        assert isinstance(fast[1], nn.ReLU)

    def test_subclass_that_adds_its_bias(self) -> None:
        network = nn.Sequential(Padded(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        _, found = folded(lived_in(network), images())
        assert found.folded == {"1": "0"}


class NormAct(nn.BatchNorm2d):
    """As timm writes it: normalisation, dropout and activation in one module."""

    def __init__(self, channels: int, act: nn.Module, twice: bool = False) -> None:
        super().__init__(channels)
        self.drop, self.act, self.twice = nn.Identity(), act, twice

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        x = self.act(self.drop(x))
        return x + x if self.twice else x


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


class WithoutBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(3, 3, 1, **options)


def norm(**options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(3, **options)


def kept(net: Any, x: Tensor) -> Tensor:
    net.seen = net.conv(x)
    return net.norm(net.seen)


def normalised(net: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return F.batch_norm(x, net.norm.running_mean, net.norm.running_var, weight, bias, False, 0.0, eps)


def own_forward() -> nn.Module:
    layer = conv()
    layer.forward = partial(nn.Conv2d.forward, layer)  # type: ignore[method-assign]
    return layer


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda _module, _args, output: None)
    return module


TRAPS: dict[str, tuple[nn.Module, dict[str, str]]] = {
    "residual use": (
        Net(lambda n, x: (y := n.conv(x)) + n.norm(y), conv=conv(), norm=norm()),
        {"norm": "is used elsewhere too"},
    ),
    "a view of it is used": (
        Net(lambda n, x: (y := n.conv(x)).flatten(2).mean() + n.norm(y), conv=conv(), norm=norm()),
        {"norm": "is used elsewhere too"},
    ),
    "kept as an attribute": (Net(kept, conv=conv(), norm=norm()), {"norm": "is used elsewhere too"}),
    "changed in place": (
        Net(lambda n, x: n.norm(n.conv(x).relu_()), conv=conv(), norm=norm()),
        {"norm": "is used elsewhere too"},
    ),
    "a layer run twice": (
        Net(lambda n, x: n.norm(n.conv(x)) + n.conv(2 * x), conv=conv(), norm=norm()),
        {"norm": "runs 2 times"},
    ),
    "a norm run twice": (
        Net(lambda n, x: n.norm(n.a(x)) + n.norm(n.b(x)), a=conv(), b=conv(), norm=norm()),
        {"norm": "it ran 2 times"},
    ),
    "the weight is used": (
        Net(lambda n, x: n.norm(n.conv(x)) + F.conv2d(x, n.conv.weight), conv=conv(), norm=norm()),
        {"norm": "runs 2 times"},
    ),
    "the weight is read": (
        Net(lambda n, x: n.norm(n.conv(x)) + n.conv.weight.sum(), conv=conv(), norm=norm()),
        {"norm": "weight of the layer before it is read elsewhere"},
    ),
    "the norm's weight is read": (
        Net(lambda n, x: n.norm(n.conv(x)) + n.norm.weight.sum(), conv=conv(), norm=norm()),
        {"norm": "its parameters are read elsewhere"},
    ),
    "a functional call without its weight": (
        Net(
            lambda n, x: n.norm.bias.sum() + normalised(n, n.conv(x), None, None, n.norm.eps), conv=conv(), norm=norm()
        ),
        {"norm": "it normalises with other values than its own"},
    ),
    "a functional call with another epsilon": (
        Net(lambda n, x: normalised(n, n.conv(x), n.norm.weight, n.norm.bias, 0.5), conv=conv(), norm=norm()),
        {"norm": "it normalises with other values than its own"},
    ),
    "a functional call": (
        Net(lambda n, x: normalised(n, n.conv(x), n.norm.weight, n.norm.bias, n.norm.eps), conv=conv(), norm=norm()),
        {"norm": "it normalises with other values than its own"},
    ),
    "no statistics": (nn.Sequential(conv(), norm(track_running_stats=False)), {"1": "no running statistics"}),
    "before a layer": (nn.Sequential(norm(), conv()), {"0": "its input is not what a convolution made"}),
    "something between": (nn.Sequential(conv(), nn.ReLU(), norm()), {"2": "its input is not what a convolution made"}),
    "never run": (Net(lambda n, x: n.conv(x), conv=conv(), norm=norm()), {"norm": "did not run on the example"}),
    "computed weight": (nn.Sequential(Standardised(3, 3, 1), norm()), {"1": "it follows a weight that is computed"}),
    "bias ignored": (nn.Sequential(WithoutBias(3, 3, 1, bias=False), norm()), {"1": "adds no bias of its own"}),
    "hooks on the layer": (nn.Sequential(hooked(conv()), norm()), {"1": "0 has hooks"}),
    "hooks on the norm": (nn.Sequential(conv(), hooked(norm())), {"1": "1 has hooks"}),
    "own forward": (nn.Sequential(own_forward(), norm()), {"1": "0 has a forward of its own"}),
    "parametrized": (
        nn.Sequential(parametrizations.weight_norm(conv()), norm()),
        {"1": "it follows a weight that is computed"},
    ),
    "more than a norm": (
        nn.Sequential(conv(), NormAct(3, nn.ReLU(), twice=True)),
        {"1": "a NormAct does more than normalise"},
    ),
}


class TestLeft:
    @pytest.mark.parametrize("name", TRAPS)
    def test_left_alone(self, name: str) -> None:
        network, reasons = TRAPS[name]
        fast, found = folded(lived_in(network), images())
        assert found.folded == {}
        assert list(found.left) == list(reasons)
        for path, reason in reasons.items():
            assert reason in found.left[path]
        for before, after in zip(network.state_dict().values(), fast.state_dict().values(), strict=True):
            assert torch.equal(before, after)

    def test_returned_as_well(self) -> None:
        network = lived_in(Net(lambda n, x: [y := n.conv(x), n.norm(y)], conv=conv(), norm=norm()))
        found = fold_batchnorm(network, lambda: network(images()))
        assert "is used elsewhere too" in found.left["norm"]

    @pytest.mark.parametrize(("tap", "reason"), [("0", "0 is tapped"), ("1", "1 is tapped")])
    def test_tapped(self, tap: str, reason: str) -> None:
        _, found = folded(lived_in(nn.Sequential(conv(), norm())), images(), keep=(tap,))
        assert found == Folded({}, {"1": reason})

    def test_shared_under_two_names(self) -> None:
        layer = conv()
        network = Net(lambda n, x: n.norm(n.conv(x)), conv=layer, norm=norm(), other=layer)
        _, found = folded(lived_in(network), images())
        assert found.left == {"norm": "conv is shared: it is also other"}

    def test_weight_of_two_layers(self) -> None:
        """Only one of them runs; which, the weight does not say."""
        network = Net(lambda n, x: n.norm(n.conv(x)), conv=conv(), norm=norm(), other=conv())
        network.other.weight = network.conv.weight
        fast, found = folded(lived_in(network), images())
        assert found.left == {"norm": "the layer before it shares its weight"}
        assert isinstance(fast.norm, nn.BatchNorm2d)

    def test_statistics_of_the_batch(self) -> None:
        network = lived_in(nn.Sequential(conv(), norm()))
        network[1].train()
        found = fold_batchnorm(network, lambda: network(images()))
        assert found.left == {"1": "it uses the statistics of the batch"}

    def test_parametrized_norm(self) -> None:
        network = nn.Sequential(conv(), norm())
        parametrize.register_parametrization(network[1], "bias", nn.Identity())
        _, found = folded(lived_in(network), images())
        assert found.folded == {}

    def test_not_finite(self) -> None:
        network = lived_in(nn.Sequential(conv(), norm()))
        network[1].running_var.fill_(-1.0)
        found = fold_batchnorm(network, lambda: network(images()))
        assert found.left == {"1": "the folded weights would not be finite"}

    def test_lent_bias_is_taken_back(self) -> None:
        network = lived_in(nn.Sequential(Padded(3, 3, 3, bias=False), nn.ReLU(), norm()))
        fast, _ = folded(network, images())
        assert fast[0].bias is None

    def test_lent_bias_is_taken_back_from_a_pass_that_fails(self) -> None:
        network = lived_in(nn.Sequential(Padded(3, 3, 3, bias=False), norm()))
        with pytest.raises(RuntimeError):
            fold_batchnorm(network, lambda: network(images(2, 5, 6, 6)))
        assert network[0].bias is None

    def test_no_hooks_are_left(self) -> None:
        fast, _ = folded(lived_in(nn.Sequential(conv(), nn.ReLU(), norm())), images())
        assert not any(module._forward_hooks for module in fast.modules())
