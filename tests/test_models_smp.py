"""Networks of segmentation-models-pytorch: output stride, sizes, encoders of any width, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v2

from densekd.errors import CheckpointError, ModelError
from densekd.models import ModelSpec, build_model, input_multiple, measure
from densekd.taps import TapReader, dry_run

QUARTER = {"encoder_name": "tu-mobilenetv1_100", "channel_multiplier": 0.25, "fix_stem_head": False}


def build(model: str, classes: int = 5, /, **options: Any) -> nn.Module:
    notices: list[str] = []
    network = build_model(ModelSpec(model=model, options=options), classes, notices=notices)
    assert notices == []
    return network.eval()


def shapes(network: nn.Module, height: int, width: int) -> tuple[torch.Size, torch.Size]:
    """Shapes of the network's `logits` and `output`."""
    reader = TapReader(network, ("logits", "output"))
    with torch.no_grad():
        maps = dry_run(reader, network, (torch.randn(1, 3, height, width),), {}).maps
    reader.close()
    return maps["logits"].shape, maps["output"].shape


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("encoder", "stride"),
    [
        ("mobilenet_v2", 16),
        ("tu-test_resnet", 8),
        pytest.param("resnet18", 8, marks=SLOW),
        pytest.param("tu-mobilenetv3_small_050", 8, marks=SLOW),
        pytest.param("tu-resnet18", 16, marks=SLOW),
        pytest.param("resnet18", 32, marks=SLOW),
        pytest.param("resnet18", 16, marks=SLOW),
        pytest.param("mobilenet_v2", 8, marks=SLOW),
        pytest.param("mobilenet_v2", 32, marks=SLOW),
        pytest.param("tu-resnet18", 8, marks=SLOW),
        pytest.param("tu-resnet18", 32, marks=SLOW),
        pytest.param("efficientnet-b0", 8, marks=SLOW),
        pytest.param("mit_b0", 16, marks=SLOW),
        pytest.param("tu-convnext_atto", 8, marks=SLOW),
        pytest.param("resnet101", 8, marks=SLOW),
    ],
)
def test_pspnet_at_an_output_stride_is_the_whole_encoder(encoder: str, stride: int) -> None:
    network = build("smp:PSPNet", encoder_name=encoder, output_stride=stride, psp_out_channels=16)
    logits, output = shapes(network, 64, 96)
    assert logits == (1, 5, 64 // stride, 96 // stride)
    assert output == (1, 5, 64, 96)
    measured = measure(network, torch.randn(1, 3, 64, 96))
    # What smp keeps of a classifier's head is all that may be dead.
    assert set(measured.dead_names) <= {"encoder._conv_head", "encoder._bn1"}
    assert measured.parameters + measured.dead_parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("model", "stride", "logits_stride"),
    [
        ("smp:DeepLabV3", 8, 8),
        pytest.param("smp:DeepLabV3", 16, 16, marks=SLOW),
        # These two join a map of stride 4 and give logits there, whatever the encoder's stride.
        pytest.param("smp:DeepLabV3Plus", 8, 4, marks=SLOW),
        ("smp:DeepLabV3Plus", 16, 4),
        ("smp:PAN", 16, 4),
    ],
)
@pytest.mark.parametrize("encoder", [pytest.param({"encoder_name": "resnet18"}, marks=SLOW), QUARTER])
def test_output_stride_of_other_architectures(
    model: str, stride: int, logits_stride: int, encoder: dict[str, Any]
) -> None:
    network = build(model, output_stride=stride, **encoder)
    with torch.no_grad():
        deepest = network.encoder(torch.zeros(1, 3, 128, 128))[-1]
    assert deepest.shape[-2:] == (128 // stride, 128 // stride)
    logits, output = shapes(network, 128, 128)
    assert logits == (1, 5, 128 // logits_stride, 128 // logits_stride)
    assert output == (1, 5, 128, 128)


@SLOW
def test_dilation_keeps_the_parameters_and_changes_the_strides_alone() -> None:
    plain = build("smp:PSPNet", encoder_name="resnet18", encoder_depth=5)
    dilated = build("smp:PSPNet", encoder_name="resnet18", output_stride=8)
    assert {n: p.shape for n, p in plain.state_dict().items()} == {n: p.shape for n, p in dilated.state_dict().items()}
    assert dilated.encoder.layer4[0].conv1.dilation == (4, 4)
    assert shapes(plain, 64, 64)[0][-1] == 2


def test_sizes_that_do_not_fit_are_refused_with_a_size_that_does() -> None:
    network = build("smp:PSPNet", encoder_name="tu-test_resnet", output_stride=8)
    assert input_multiple(network) == 8
    assert shapes(network, 72, 104)[1] == (1, 5, 72, 104)
    with pytest.raises(ModelError, match=r"eval mode on images \(1, 3, 70, 104\).*divisible by 8.*\(72, 104\)"):
        measure(network, torch.zeros(1, 3, 70, 104))


def test_input_multiple_of_other_networks() -> None:
    assert input_multiple(build("smp:FPN", encoder_name="tu-test_resnet")) == 32
    assert input_multiple(nn.Conv2d(3, 4, 1)) == 1


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("smp:PSPnet", {}, "did you mean 'PSPNet'"),
        ("smp:PSPNet", {"encoder_name": "resnet19"}, "no encoder 'resnet19'; did you mean 'resnet1"),
        ("smp:PSPNet", {"encoder_name": "tu-mobilenetv1_10"}, "did you mean 'tu-mobilenetv1_100'"),
        ("smp:PSPNet", {"encoder_name": 18}, "encoder_name must be a name, got 18"),
        ("smp:PSPNet", {"encoder_dept": 5}, "no option 'encoder_dept'; did you mean 'encoder_depth'"),
        ("smp:PSPNet", {**QUARTER, "encoder_dept": 5}, "no option 'encoder_dept'; did you mean 'encoder_depth'"),
        ("smp:PSPNet", {**QUARTER, "frobnicate": 5}, "cannot be built: TypeError.*frobnicate"),
        ("smp:PSPNet", {"channel_multiplier": 0.5}, "no option 'channel_multiplier'"),
        ("smp:PSPNet", {"encoder_name": "tu-resnet18", "channel_multiplier": 0.5}, "tu-mobilenetv1_100.*not of tu-res"),
        ("smp:PSPNet", {"classes": 7}, "options.classes is 7, but 5 outputs are needed"),
        ("smp:PSPNet", {"activation": "softmax"}, "losses here take logits"),
        ("smp:PSPNet", {"encoder_weights": "imagnet"}, "no weights 'imagnet'; did you mean 'imagenet'"),
        ("smp:PSPNet", {**QUARTER, "encoder_weights": True}, "no weights are published.*encoder_checkpoint"),
        ("smp:PSPNet", {"output_stride": 4}, "must be one of 8, 16, 32, got 4"),
        ("smp:PSPNet", {"output_stride": True}, "must be one of 8, 16, 32, got True"),
        ("smp:DeepLabV3", {"output_stride": 32}, "must be one of 8, 16, got 32"),
        ("smp:DeepLabV3", {"output_stride": 8, "encoder_output_stride": 16}, "give one of them"),
        ("smp:Unet", {"output_stride": 8}, "joins maps of every stride; PSPNet, DeepLabV3"),
        ("smp:PSPNet", {"encoder_name": "densenet121", "output_stride": 8}, "cannot be built.*dilated mode"),
        (
            "smp:PSPNet",
            {"encoder_name": "tu-swin_tiny_patch4_window7_224", "output_stride": 8},
            "cannot be built: TypeError.*output_stride",
        ),
        (
            "smp:PSPNet",
            {"encoder_name": "mobilenet_v2", "encoder_depth": 3, "output_stride": 16},
            "ends at stride 8, not at output_stride 16",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(model: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(model, **options)


def test_the_same_number_of_classes_may_be_repeated() -> None:
    assert shapes(build("smp:PSPNet", 5, encoder_name="tu-test_resnet", classes=5), 32, 32)[1][1] == 5


@pytest.mark.parametrize("classes", [0, -1, True, 2.0])
def test_the_number_of_classes_is_checked(classes: Any) -> None:
    with pytest.raises(ModelError, match="positive integer"):
        build_model(ModelSpec(model="smp:PSPNet"), classes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv1_100",
        pytest.param("mobilenetv2_100", marks=SLOW),
        pytest.param("mobilenetv3_small_100", marks=SLOW),
        pytest.param("mobilenetv3_large_100", marks=SLOW),
    ],
)
def test_width_of_timm_mobilenets(name: str) -> None:
    full = build("smp:FPN", encoder_name=f"tu-{name}", channel_multiplier=1.0)
    named = build("smp:FPN", encoder_name=f"tu-{name}")
    half = build("smp:FPN", encoder_name=f"tu-{name}", channel_multiplier=0.5)
    # Width 1 is timm's own network, name for name.
    assert {n: v.shape for n, v in full.state_dict().items()} == {n: v.shape for n, v in named.state_dict().items()}
    assert half.encoder.out_channels[-1] < named.encoder.out_channels[-1]
    assert shapes(half, 64, 64)[1] == (1, 5, 64, 64)


def test_the_stem_of_a_narrow_mobilenet_can_be_kept() -> None:
    narrow = build("smp:PSPNet", **{**QUARTER, "output_stride": 16})
    kept = build("smp:PSPNet", **{**QUARTER, "fix_stem_head": True, "output_stride": 16})
    assert narrow.encoder.model.conv_stem.out_channels == 8
    assert kept.encoder.model.conv_stem.out_channels == 32


def test_building_does_not_depend_on_what_was_built_before() -> None:
    torch.manual_seed(3)
    first = build("smp:PSPNet", **QUARTER, output_stride=16).state_dict()
    torch.manual_seed(3)
    second = build("smp:PSPNet", **QUARTER, output_stride=16).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_encoder_weights_of_torchvision_fit_the_native_encoder(tmp_path: Path) -> None:
    source = mobilenet_v2().half()
    save_file(source.state_dict(), tmp_path / "classifier.safetensors")
    content = {
        "model": "smp:DeepLabV3Plus",
        "options": {"encoder_name": "mobilenet_v2", "output_stride": 16},
        "encoder_checkpoint": {"path": "classifier.safetensors", "ignore": ["classifier.*"]},
    }
    notices: list[str] = []
    network = build_model(ModelSpec.model_validate(content), 5, base_folder=tmp_path, notices=notices)
    assert notices == []
    loaded = network.encoder.state_dict()
    assert all(torch.equal(value, source.state_dict()[name].to(value.dtype)) for name, value in loaded.items())
    content["encoder_checkpoint"] = "classifier.safetensors"
    with pytest.raises(
        CheckpointError, match=r"2 the network does not have: classifier\.1\..*ignore: \[classifier\.\*\]"
    ):
        build_model(ModelSpec.model_validate(content), 5, base_folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "ignore"),
    [
        ("mobilenetv3_small_050", ["classifier.*", "conv_head.*"]),
        pytest.param("convnext_atto", ["head.*"], marks=SLOW),
    ],
)
def test_encoder_weights_of_timm_fit_its_encoders(tmp_path: Path, name: str, ignore: list[str]) -> None:
    source = timm.create_model(name)
    torch.save(source.state_dict(), tmp_path / "classifier.pth")
    content = {
        "model": "smp:FPN",
        "options": {"encoder_name": f"tu-{name}"},
        "encoder_checkpoint": {"path": "classifier.pth", "ignore": ignore},
    }
    network = build_model(ModelSpec.model_validate(content), 5, base_folder=tmp_path, notices=[])
    # timm itself puts published weights into a network before it takes the features from it.
    twin = timm.create_model(
        name, features_only=True, pretrained_cfg_overlay={"file": tmp_path / "classifier.pth"}, pretrained=True
    )
    loaded = network.encoder.model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in twin.state_dict().items())


def test_encoder_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    half = build("smp:PSPNet", **{**QUARTER, "channel_multiplier": 0.5}).encoder.model
    save_file(half.state_dict(), tmp_path / "half.safetensors")
    spec = ModelSpec.model_validate(
        {"model": "smp:PSPNet", "options": QUARTER, "encoder_checkpoint": "half.safetensors"}
    )
    with pytest.raises(CheckpointError, match=r"have another shape: .*another size: check model and options"):
        build_model(spec, 5, base_folder=tmp_path)
