"""Live and dead parameters, operations, and that measuring leaves a network as it was."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from torch import nn

from densekd.errors import ModelError
from densekd.models import ModelSpec, build_model, measure


class Partial(nn.Module):
    """A network with a dead block, a dead lone parameter, a head for training alone, and a detached use."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.unused = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1))
        self.head = nn.Conv2d(8, 2, 1)
        self.extra = nn.Conv2d(8, 2, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.idle = nn.Parameter(torch.ones(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x) * self.scale.detach()
        return (self.head(x), self.extra(x)) if self.training else self.head(x)


def test_parameters_by_hand() -> None:
    measured = measure(Partial(), torch.randn(2, 3, 10, 12))
    stem, head = 3 * 8 * 9 + 2 * 8, 8 * 2 + 2
    # The head for training alone and the parameter whose gradient is cut are used: live.
    assert measured.parameters == stem + 2 * head + 1
    assert measured.dead_parameters == (8 * 8 * 9 + 8) + (8 * 8 + 8) + 7
    assert measured.dead_names == ("idle", "unused")


class Winding(nn.Module):
    """Parameters on paths that only following the values can tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 3))
        self.number = nn.Parameter(torch.ones(2))
        self.written = nn.Parameter(torch.ones(1))
        self.discarded = nn.Conv2d(3, 3, 1)
        self.overwritten = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        self.discarded(x).relu_()
        nearest = (x.mean((2, 3))[:, None] - self.table).square().sum(-1).argmin(-1)
        x = x + nn.functional.embedding(nearest, self.table).detach()[:, :, None, None]
        canvas = torch.zeros_like(x)
        torch._foreach_add_([canvas], [self.written.expand_as(canvas)])
        other = torch.ones(self.overwritten(x).shape)
        return {"out": [x * self.number.max().item() + canvas + other]}


def test_values_are_followed_not_gradients() -> None:
    measured = measure(Winding(), torch.randn(1, 3, 4, 4))
    # A code book without gradient, a number read from a tensor, a tensor changed in place: all reach the output.
    assert measured.parameters == 4 * 3 + 2 + 1
    assert measured.dead_names == ("discarded", "overwritten")
    # Executed all the same.
    assert measured.flops == 2 * 2 * 3 * 3 * 16


def test_operations_by_hand_for_one_image() -> None:
    # 2 operations for each multiply-add; one image of the two; eval mode, so without the extra head.
    expected = 2 * 10 * 12 * (3 * 8 * 9 + 8 * 2)
    assert measure(Partial(), torch.randn(2, 3, 10, 12)).flops == expected


def test_attention_is_counted_by_its_matrix_products() -> None:
    length, width = 6, 8

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(width, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return self.attend(tokens, tokens, tokens, need_weights=False)[0]

    measured = measure(Attends(), torch.randn(1, width, 2, 3))
    projections = 4 * length * width * width
    products = 2 * length * length * width
    assert measured.flops == 2 * (projections + products)
    assert measured.dead_parameters == 0


def test_shared_parameters_count_once() -> None:
    first = nn.Conv2d(3, 3, 1)
    assert measure(nn.Sequential(first, first), torch.randn(1, 3, 4, 4)).parameters == 12


def test_nothing_is_left_behind() -> None:
    network = Partial()
    network.stem[1].eval()
    network.head.weight.requires_grad_(False)
    network(torch.randn(2, 3, 4, 4))[0].sum().backward()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}
    random_states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()

    measure(network, torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)))

    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    for name, parameter in network.named_parameters():
        before = gradients[name]
        assert (parameter.grad is None) if before is None else torch.equal(parameter.grad, before)
    assert not network.head.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert random.getstate() == random_states[1]
    assert numpy.random.get_state()[1].tolist() == random_states[2]
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_cut_stages_of_an_smp_encoder_are_dead() -> None:
    spec = ModelSpec(model="smp:PSPNet", options={"encoder_name": "resnet18", "encoder_depth": 3})
    network = build_model(spec, 5)
    measured = measure(network, torch.zeros(1, 3, 32, 32))
    dead = [*network.encoder.layer3.parameters(), *network.encoder.layer4.parameters()]
    assert measured.dead_names == ("encoder.layer3", "encoder.layer4")
    assert measured.dead_parameters == sum(p.numel() for p in dead)
    assert measured.parameters + measured.dead_parameters == sum(p.numel() for p in network.parameters())


def test_stages_that_an_smp_encoder_runs_for_nothing_are_dead() -> None:
    spec = ModelSpec(model="smp:PSPNet", options={"encoder_name": "mobilenet_v2", "encoder_depth": 4})
    measured = measure(build_model(spec, 5), torch.zeros(1, 3, 64, 64))
    assert measured.dead_names == tuple(f"encoder.features.{i}" for i in (14, 15, 16, 17, 18))


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 3, 4, 4)])
def test_the_example_must_be_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"images \(N, C, h, w\) with N >= 1, got shape"):
        measure(Partial(), torch.zeros(shape))


def test_a_network_that_fails_is_named_with_its_words() -> None:
    with pytest.raises(ModelError, match=r"fails in eval mode on images \(1, 4, 8, 8\): RuntimeError: .*channels"):
        measure(Partial(), torch.zeros(1, 4, 8, 8))
