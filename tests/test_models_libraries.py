"""Networks of torchvision, transformers and timm by reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from densekd.errors import ModelError
from densekd.models import ModelSpec, build_model
from densekd.taps import TapReader, dry_run, main_output

SMALL = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}


def build(model: str, classes: int = 5, /, folder: Path | str = ".", **options: Any) -> tuple[nn.Module, list[str]]:
    notices: list[str] = []
    network = build_model(ModelSpec(model=model, options=options), classes, base_folder=folder, notices=notices)
    return network.eval(), notices


def maps(network: nn.Module, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    reader = TapReader(network, ("logits", "output"))
    with torch.no_grad():
        found = dry_run(reader, network, (torch.randn(1, 3, *size),), {}).maps
    reader.close()
    return found


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("lraspp_mobilenet_v3_large", 8),
        pytest.param("deeplabv3_mobilenet_v3_large", 16, marks=pytest.mark.slow),
        pytest.param("deeplabv3_resnet50", 8, marks=pytest.mark.slow),
        pytest.param("fcn_resnet50", 8, marks=pytest.mark.slow),
    ],
)
def test_torchvision(name: str, stride: int) -> None:
    network, notices = build(f"torchvision:{name}")
    found = maps(network, (64, 96))
    assert notices == []
    assert found["logits"].shape == (1, 5, 64 // stride, 96 // stride)
    assert found["output"].shape == (1, 5, 64, 96)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("deeplabv3_resnet5", {}, "did you mean 'deeplabv3_resnet50'"),
        ("resnet18", {}, "not a segmentation network.*smp:FPN with options.encoder_name"),
        ("fcn_resnet50", {"aux_los": True}, "no option 'aux_los'; did you mean 'aux_loss'"),
        ("fcn_resnet50", {"num_classes": 21}, "options.num_classes is 21, but 5"),
        ("fcn_resnet50", {"weights": "DEFAULT"}, "has 21 classes, 5 are needed; use weights_backbone"),
        ("fcn_resnet50", {"weights_backbone": "IMAGENET"}, "names no weights of torchvision"),
        ("fcn_resnet50", {"weights_backbone": 1}, "names no weights of torchvision"),
    ],
)
def test_torchvision_refuses(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(f"torchvision:{name}", **options)


@pytest.mark.slow
def test_segformer_from_a_configuration() -> None:
    network, notices = build("transformers:SegformerForSemanticSegmentation", **SMALL)
    found = maps(network, (64, 96))
    assert notices == []
    assert found["logits"].shape == found["output"].shape == (1, 5, 16, 24)
    assert network.config.num_labels == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("SegformerForSemanticSegmentatio", {}, "did you mean 'SegformerForSemanticSegmentation'"),
        ("SegformerModel", {}, "gives no class map.*SegformerForSemanticSegmentation"),
        ("SegformerForSemanticSegmentation", {"hiden_sizes": [8]}, "no option 'hiden_sizes'; did you mean 'hidden_s"),
        ("SegformerForSemanticSegmentation", {"num_labels": 3}, "options.num_labels is 3, but 5"),
        ("SegformerForSemanticSegmentation", {"id2label": {0: "a"}}, "id2label has 1 entries, 5 outputs"),
        ("SegformerForSemanticSegmentation", {"num_encoder_blocks": "many"}, "cannot be built"),
    ],
)
def test_transformers_refuses(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(f"transformers:{name}", **options)


@pytest.mark.slow
def test_a_folder_of_save_pretrained(tmp_path: Path) -> None:
    saved, _ = build("transformers:SegformerForSemanticSegmentation", **SMALL)
    saved.save_pretrained(tmp_path / "net")
    images = torch.randn(1, 3, 32, 32)
    expected = main_output(saved(images))

    loaded, notices = build("transformers:net", folder=tmp_path)
    assert notices == []
    torch.testing.assert_close(main_output(loaded.eval()(images)), expected)

    other, notices = build("transformers:net", 7, folder=tmp_path)
    assert main_output(other(images)).shape[1] == 7
    assert "start at random: decode_head.classifier.bias, decode_head.classifier.weight" in notices[0]

    fresh, notices = build("transformers:net", folder=tmp_path, pretrained=False)
    assert notices == []
    assert not torch.allclose(main_output(fresh(images)), expected)

    with pytest.raises(ModelError, match="no option 'hiden_sizes'"):
        build("transformers:net", folder=tmp_path, hiden_sizes=[8])


@pytest.mark.slow
def test_a_folder_in_half_precision_gives_a_network_in_float32(tmp_path: Path) -> None:
    saved, _ = build("transformers:SegformerForSemanticSegmentation", **SMALL)
    saved.half().save_pretrained(tmp_path / "net")
    loaded, _ = build("transformers:net", folder=tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.slow
def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    with pytest.raises(ModelError, match=r"transformers:net.*config\.json"):
        build("transformers:net", folder=tmp_path)


def test_timm_is_refused_as_a_segmentation_network() -> None:
    with pytest.raises(ModelError, match=r"smp:FPN with options.encoder_name tu-resnet18.*options.features to true"):
        build("timm:resnet18")
    with pytest.raises(ModelError, match="did you mean 'resnet18'"):
        build("timm:resnt18", features=True)


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("resnet18", (64, 96), (1, 512, 2, 3)),
        pytest.param("vit_tiny_patch16_224", (224, 224), (1, 197, 192), marks=pytest.mark.slow),
    ],
)
def test_timm_features(name: str, size: tuple[int, int], shape: tuple[int, ...]) -> None:
    network, notices = build(f"timm:{name}", features=True)
    assert "gives features, not a class map" in notices[0]
    assert maps(network, size)["output"].shape == shape
    with pytest.raises(ModelError, match="cannot be built"):
        build(f"timm:{name}", features=True, frobnicate=1)
