"""Networks by short name: what each stands for, that it is built, and that it is the network of its name."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pydantic
import pytest
import torch
from torch import nn

from densekd.config import dump_recipe, load_recipe
from densekd.errors import ModelError
from densekd.models import ModelSpec, build_model, measure
from densekd.models.names import expanded, short_names
from densekd.models.reference import parse_reference
from densekd.taps import TapReader, dry_run, main_output

NAMES = short_names()
# One of each kind; the others are built by `make test-long`.
QUICK = ("pspnet-resnet18-half", "deeplabv3-mobilenet_v3_small", "deeplabv3plus-mobilenet_v2", "hrnet-w18_small")
# The stride of `logits`: the encoder's, or that of the finest map that the decoder joins.
STRIDES = {"pspnet": 8, "deeplabv3": 8, "deeplabv3plus": 4, "upernet": 4, "segformer": 4, "hrnet": 4, "lraspp": 8}


def test_every_name_stands_for_a_reference_with_options() -> None:
    assert len(NAMES) > 60
    for name, named in NAMES.items():
        assert parse_reference(named.model).library in {"smp", "torchvision", "transformers"}
        assert named.auxiliary is None or named.auxiliary.startswith("encoder.")
        spec = ModelSpec(model=name)
        assert (spec.model, spec.options) == (named.model, named.options)
        # What was resolved once stays what it is.
        assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec
    twice = Counter((named.model, repr(sorted(named.options.items()))) for named in NAMES.values())
    assert max(twice.values()) == 1


def test_options_are_added_but_none_of_the_names_own_is_changed() -> None:
    model, options = expanded("pspnet-resnet18", {"encoder_weights": "imagenet", "output_stride": 8})
    assert model == "smp:PSPNet"
    assert options == {"encoder_name": "resnet18", "output_stride": 8, "encoder_weights": "imagenet"}
    with pytest.raises(ModelError, match=r"stands for smp:PSPNet with encoder_name 'resnet18', .*'resnet34'; remove"):
        expanded("pspnet-resnet18", {"encoder_name": "resnet34"})
    assert expanded("smp:PSPNet", {"encoder_name": "resnet34"}) == ("smp:PSPNet", {"encoder_name": "resnet34"})


def test_what_was_expanded_shares_nothing_with_the_table() -> None:
    expanded("pspnet-resnet18-half", {})[1]["channels"].append(1024)
    assert expanded("pspnet-resnet18-half", {})[1]["channels"] == [32, 64, 128, 256]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pspnet-resnet19", "did you mean 'pspnet-resnet18'"),
        ("segformer-b9", "did you mean 'segformer-b"),
        ("PSPNet", "smp:PSPNet; did you mean 'pspnet-resnet"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(text: str, words: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=words):
        ModelSpec(model=text)


def test_options_that_are_no_mapping_are_the_only_mistake_told() -> None:
    with pytest.raises(pydantic.ValidationError, match="1 validation error"):
        ModelSpec.model_validate({"model": "pspnet-resnet18", "options": 3})


def test_a_resolved_recipe_holds_what_the_names_stand_for() -> None:
    given = {"student.model": "pspnet-resnet18-half", "student.options": {}, "teacher.model": "pspnet-resnet101"}
    recipe = load_recipe("demo", {**given, "teacher.options": {}, "teacher.checkpoint": "x"})
    text = dump_recipe(recipe)
    assert "pspnet-resnet" not in text
    assert recipe.student.options["channels"] == [32, 64, 128, 256]
    assert recipe.teacher is not None
    assert recipe.teacher.options == {"encoder_name": "resnet101", "output_stride": 8}


def build(name: str, **options: Any) -> nn.Module:
    notices: list[str] = []
    network = build_model(ModelSpec(model=name, options=options), 19, notices=notices)
    assert notices == []
    return network


LONG = [pytest.param(name, marks=pytest.mark.long) for name in NAMES if name not in QUICK]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *LONG])
def test_a_named_network_runs_at_its_stride_and_every_live_parameter_learns(name: str) -> None:
    network = build(name)
    images = torch.randn(2, 3, 64, 128)
    taps = ["logits", *filter(None, [NAMES[name].auxiliary])]
    reader = TapReader(network, taps)
    found = dry_run(reader, network.eval(), (images,), {})
    reader.close()
    stride = STRIDES[name.split("-")[0]]
    assert found.maps["logits"].shape == (2, 19, 64 // stride, 128 // stride)
    if NAMES[name].auxiliary is not None:
        # The stage before the last: dilated with it, or at twice its size.
        assert found.maps[taps[1]].shape[2:] == ((4, 8) if name.startswith("upernet") else (8, 16))
    measured = measure(network, images)
    assert measured.dead_parameters == 0
    main_output(network.train()(images)).square().mean().backward()
    assert [key for key, value in network.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", ["pspnet-resnet18-half", "deeplabv3-resnet18c"])
def test_no_weights_are_published_for_another_width_or_stem(name: str) -> None:
    with pytest.raises(ModelError, match="no weights are published for 'tu-resnet18' of another width or stem"):
        build(name, encoder_weights=True)


@pytest.mark.slow
def test_half_width_is_half_in_every_stage() -> None:
    whole, half = build("pspnet-resnet18"), build("pspnet-resnet18-half")
    assert [2 * channels for channels in half.encoder.out_channels[2:]] == list(whole.encoder.out_channels[2:])  # type: ignore[union-attr, arg-type]
    assert list(build("pspnet-resnet18d-half").encoder.out_channels[1:]) == [32, 32, 64, 128, 256]  # type: ignore[union-attr, arg-type]


@pytest.mark.slow
def test_the_deep_stem_is_three_convolutions_as_in_mmseg() -> None:
    stem = build("pspnet-resnet18c").encoder.model.conv1  # type: ignore[union-attr]
    convolutions = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]  # type: ignore[union-attr]
    assert [c.out_channels for c in convolutions] == [32, 32, 64]
    assert all(c.kernel_size == (3, 3) for c in convolutions)
