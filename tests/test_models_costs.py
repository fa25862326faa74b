"""What the named networks cost: the record against counting anew, and against what the libraries publish."""

from __future__ import annotations

import pytest
import torch

from densekd.models import ModelSpec, build_model, measure
from densekd.models.catalog import how_counted, named_rows
from densekd.models.costs import CLASSES, SIZE, count, recorded
from densekd.models.names import short_names

QUICK = ("pspnet-resnet18-half", "deeplabv3-mobilenet_v2")


def test_the_record_holds_every_name_and_no_other() -> None:
    record = recorded()
    assert (record["schema"], tuple(record["size"]), record["classes"]) == (1, SIZE, CLASSES)
    assert list(record["networks"]) == list(short_names())
    assert all(cost["dead_parameters"] == 0 for cost in record["networks"].values())


def test_a_row_for_every_name() -> None:
    rows = {row["model"]: row for row in named_rows()}
    half = rows["pspnet-resnet18-half"]
    assert half["what"].startswith("smp:PSPNet: half the channels")
    assert half["options"] == 'encoder_name: "tu-resnet18", channels: [32, 64, 128, 256], output_stride: 8'
    assert half["library"] == "segmentation-models-pytorch"
    cost = recorded()["networks"]["pspnet-resnet18-half"]
    assert half["M parameters"] == pytest.approx(cost["parameters"] / 1e6, abs=0.005)
    assert half["GFLOPs 512x1024"] == pytest.approx(cost["flops"] / 1e9, abs=0.05)
    assert rows["lraspp-mobilenet_v3_large"]["options"] == "-"
    assert "512x1024" in how_counted()


def test_a_name_that_is_not_in_the_record_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densekd.models.catalog.recorded", lambda: {**recorded(), "networks": {}})
    assert named_rows()[0]["M parameters"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in short_names() if name not in QUICK)]
)
def test_the_record_is_what_is_counted(name: str) -> None:
    found, kept = count(ModelSpec(model=name)), recorded()["networks"][name]
    assert kept == {
        "parameters": found.parameters,
        "dead_parameters": found.dead_parameters,
        "flops": found.flops,
    }


@pytest.mark.slow
def test_counted_without_values_is_counted_with_them() -> None:
    spec = ModelSpec(model="pspnet-mobilenet_v3_small")
    real = measure(build_model(spec, 5, notices=[]), torch.zeros(1, 3, 64, 128))
    assert count(spec, 5, (64, 128)) == real


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "lraspp_mobilenet_v3_large"])
def test_torchvisions_published_figures(name: str) -> None:
    """Parameters to the last one; operations at 520x520, which it counts as multiply-adds, to its three digits."""
    import torchvision

    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    found = count(ModelSpec(model=f"torchvision:{name}", options=options), 21, (520, 520))
    assert found.parameters == published["num_params"]
    assert found.flops / 2e9 == pytest.approx(published["_ops"], abs=6e-4)


@pytest.mark.slow
def test_deeplabv3_is_torchvisions_without_its_auxiliary_head() -> None:
    ours, theirs = (count(ModelSpec(model=m)) for m in ("deeplabv3-resnet50", "torchvision:deeplabv3_resnet50"))
    assert (ours.parameters, ours.flops) == (theirs.parameters, theirs.flops)


@pytest.mark.slow
def test_segformer_is_the_same_network_in_both_libraries() -> None:
    ours, theirs = (count(ModelSpec(model=m), 19, (64, 128)) for m in ("segformer-b0", "segformer-b0-smp"))
    assert (ours.parameters, ours.flops) == (theirs.parameters, theirs.flops)
