"""The list of models: each row names something that can be built."""

from __future__ import annotations

import pytest

from densekd.models.catalog import encoder_names, rows
from densekd.models.reference import parse_reference


@pytest.mark.slow
def test_every_row_is_a_reference_of_its_library() -> None:
    short = {"smp": "segmentation-models-pytorch"}
    found = rows()
    for row in found:
        library = parse_reference(row["model"]).library
        assert row["library"] == short.get(library, library)
        assert row["what"]
        assert row["options"]
    names = [row["model"] for row in found]
    assert len(set(names)) == len(names)
    assert {"smp:PSPNet", "torchvision:lraspp_mobilenet_v3_large", "timm:NAME"} < set(names)
    assert {row["model"] for row in found if "output_stride" in row["options"]} == {
        "smp:PSPNet",
        "smp:DeepLabV3",
        "smp:DeepLabV3Plus",
        "smp:PAN",
    }


def test_encoders_of_both_libraries() -> None:
    names = encoder_names()
    assert {"resnet18", "mobilenet_v2", "tu-resnet18", "tu-mobilenetv1_100"} < set(names)
    assert not [name for name in names if "densekd" in name]
