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


@pytest.mark.parametrize(
    ("loss", "function", "options"), CASES, ids=lambda value: getattr(value, "__name__", str(value))
)
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


@pytest.mark.parametrize("method", ["channelwise", "pixelwise", "dist", "decoupled", "crossimage"])
@pytest.mark.parametrize("temperature", [1e-300, 1e-7, 2e4, 1e200, 10**400])
def test_temperatures_that_float32_cannot_hold(method, temperature):
    with pytest.raises(ArgumentError, match=r"^temperature: expected a number from 1e-06 to 10000, got "):
        make_loss(method, {"temperature": temperature})


@pytest.mark.parametrize("method", ["intraclass", "decoupled", "crossimage"])
@pytest.mark.parametrize("value", ["255", None, 2.5, True])
def test_the_label_of_void_is_a_whole_number(method, value):
    with pytest.raises(DtypeError, match=r"^ignore_index: expected the label of void, a whole number, got "):
        make_loss(method, {"ignore_index": value})


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("crossimage", "memory"),
        ("local", "normalize"),
        ("pixelwise", "standardize"),
        ("decoupled", "standardize"),
        ("dist", "standardize"),
    ],
)
@pytest.mark.parametrize("value", ["no", 1, None])
def test_a_flag_is_true_or_false_and_no_text_that_counts_as_true(method, option, value):
    with pytest.raises(DtypeError, match=f"^{option}: expected True or False, got {value!r}$"):
        make_loss(method, {option: value})


@pytest.mark.parametrize("function", [F.pixelwise_kl, F.decoupled_kl, F.dist_pearson, F.local_mse])
def test_a_flag_of_a_function_is_true_or_false(function):
    student, teacher, _ = maps()
    labels = [torch.zeros(2, 4, 5).long()] if function is F.decoupled_kl else []
    option = "normalize" if function is F.local_mse else "standardize"
    with pytest.raises(DtypeError, match=f"^{option}: expected True or False, got 'no'$"):
        function(student, teacher, *labels, **{option: "no"})


FUNCTIONS = {
    F.attention_mse: {},
    F.channelmean_mse: {},
    F.channelwise_kl: {},
    F.channelwise_mse: {},
    F.crossimage_kl: {},
    F.crossimage_memory_kl: {"memory": torch.ones(4, 3)},
    F.decoupled_kl: {"labels": torch.zeros(2, 4, 5).long()},
    F.dist_pearson: {},
    F.feature_mse: {},
    F.intraclass_mse: {"labels": torch.zeros(2, 4, 5).long(), "num_classes": 3},
    F.local_mse: {},
    F.masked_mse: {"visible": torch.ones(2, 4, 5).bool(), "generate": lambda x: x},
    F.pairwise_mse: {},
    F.pearson_distance: {},
    F.pixelwise_kl: {},
    F.pixelwise_mse: {},
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_not_dense_is_refused(function):
    options = FUNCTIONS[function]
    student, teacher, mask = maps()
    student = student.detach()
    words = r"expected a dense tensor, got torch\.sparse_coo; convert it with \.to_dense\(\)"
    with pytest.raises(DtypeError, match=f"^student: {words}"):
        function(student.to_sparse(), teacher, **options)
    with pytest.raises(DtypeError, match=f"^teacher: {words}"):
        function(student, teacher.to_sparse(), **options)
    with pytest.raises(DtypeError, match=f"^mask: {words}"):
        function(student, teacher, mask=mask.to_sparse(), **options)
    for name in options.keys() & {"labels", "memory", "visible"}:
        with pytest.raises(DtypeError, match=f"^{name}: {words}"):
            function(student, teacher, **{**options, name: options[name].to_sparse()})
    nested = torch.nested.nested_tensor([x.flatten(1).T for x in student], layout=torch.jagged)
    with pytest.raises(DtypeError, match=r"^student: expected a dense tensor, got a nested tensor; pad it"):
        function(nested, teacher, **options)


def test_the_base_names_the_class_without_forward():
    with pytest.raises(NotImplementedError, match="DistillationLoss does not define forward"):
        losses.DistillationLoss()(torch.zeros(1), torch.zeros(1))


def test_the_examples_in_the_docstrings_run():
    result = doctest.testmod(densekd.functional.channelwise, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
