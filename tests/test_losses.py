"""The loss modules and the catalog: they keep options and delegate."""

from __future__ import annotations

import copy
import doctest
import pickle

import pytest
import torch

import densekd.functional.channelwise
from densekd import functional as F
from densekd import losses
from densekd.errors import ArgumentError, DtypeError
from densekd.losses.catalog import METHODS, loss_options, make_loss


def maps():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    mask = torch.rand(2, 4, 5, generator=generator) < 0.7
    return student.requires_grad_(), teacher, mask


CASES = [
    (losses.ChannelWise(), F.channelwise_kl, {"temperature": 4.0}),
    (losses.ChannelWise(temperature=1.5), F.channelwise_kl, {"temperature": 1.5}),
    (losses.ChannelWise(divergence="mse"), F.channelwise_mse, {"temperature": 4.0}),
    (losses.PixelWise(), F.pixelwise_kl, {"temperature": 1.0}),
    (losses.PixelWise(temperature=2, divergence="mse"), F.pixelwise_mse, {"temperature": 2.0}),
    (losses.FeatureMimic(), F.feature_mse, {}),
]


@pytest.mark.parametrize(("loss", "function", "options"), CASES, ids=str)
def test_a_module_is_its_function(loss, function, options):
    student, teacher, mask = maps()
    assert loss(student, teacher) == function(student, teacher, **options)
    assert loss(student, teacher, labels=torch.zeros(2, 4, 5).long(), mask=mask) == function(
        student, teacher, mask=mask, **options
    )
    loss.bind(student.shape, teacher.shape, 3)
    assert loss.adversary() is None
    assert list(loss.parameters()) == []
    again = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
    assert again(student, teacher) == loss(student, teacher)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_made_by_its_own_name(name):
    loss = make_loss(name, {})
    assert type(loss) is METHODS[name]
    assert loss.name == name
    assert METHODS[name].__name__ in dir(losses)


def test_options_reach_the_loss():
    loss = make_loss("channelwise", {"temperature": 2.0, "divergence": "mse"})
    assert (loss.temperature, loss.divergence) == (2.0, "mse")
    assert "temperature=2.0, divergence='mse'" in repr(loss)
    assert loss_options("channelwise") == {"temperature": 4.0, "divergence": "kl"}
    assert loss_options("feature") == {}


def test_mistakes_are_named():
    with pytest.raises(ArgumentError, match=r"unknown method 'chanelwise'; did you mean 'channelwise'"):
        make_loss("chanelwise", {})
    with pytest.raises(ArgumentError, match=r"no option 'temprature'; did you mean 'temperature'.*divergence"):
        make_loss("channelwise", {"temprature": 2})
    with pytest.raises(ArgumentError, match=r"no option 'temperature'.*its options: none"):
        make_loss("feature", {"temperature": 2})
    with pytest.raises(ArgumentError, match="positive finite number, got -1"):
        make_loss("pixelwise", {"temperature": -1})
    with pytest.raises(ArgumentError, match="divergence: expected one of 'kl', 'mse', got 'KL'"):
        make_loss("pixelwise", {"divergence": "KL"})
    with pytest.raises(DtypeError, match="expected a number, got str"):
        make_loss("pixelwise", {"temperature": "hot"})


def test_the_base_names_the_class_without_forward():
    with pytest.raises(NotImplementedError, match="DistillationLoss does not define forward"):
        losses.DistillationLoss()(torch.zeros(1), torch.zeros(1))


def test_the_examples_in_the_docstrings_run():
    result = doctest.testmod(densekd.functional.channelwise, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
