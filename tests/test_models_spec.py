"""Model references and the parts of a recipe that describe a network."""

from __future__ import annotations

import pydantic
import pytest

from densekd.errors import ModelError
from densekd.models import CheckpointSpec, ModelSpec
from densekd.models.reference import parse_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smp:PSPNet", ("smp", "PSPNet", None)),
        ("torchvision:deeplabv3_resnet50", ("torchvision", "deeplabv3_resnet50", None)),
        ("transformers:nvidia/mit-b0", ("transformers", "nvidia/mit-b0", None)),
        ("timm:resnet18", ("timm", "resnet18", None)),
        ("nets/mine.py:build", ("file", "build", "nets/mine.py")),
        (r"C:\nets\mine.py:build", ("file", "build", r"C:\nets\mine.py")),
    ],
)
def test_known_forms(text: str, expected: tuple[str, str, str | None]) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PSPNet", "for instance smp:PSPNet"),
        ("spm:PSPNet", "did you mean 'smp'"),
        ("nets/mine.py", "nets/mine.py:build"),
        ("nets/mine.py:2x", "'2x' cannot be the name of a function"),
        ("smp:", "not a known reference"),
        ("", "not a known reference"),
    ],
)
def test_other_forms_are_refused(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words.replace("(", r"\(")):
        parse_reference(text)


def test_a_spec_refuses_a_bad_reference_and_an_unknown_key() -> None:
    with pytest.raises(pydantic.ValidationError, match="did you mean 'smp'"):
        ModelSpec(model="spm:PSPNet")
    with pytest.raises(pydantic.ValidationError, match="extra"):
        ModelSpec.model_validate({"model": "smp:PSPNet", "chekpoint": "a.pt"})
    with pytest.raises(pydantic.ValidationError, match="Field required"):
        ModelSpec.model_validate({})


def test_a_string_stands_for_a_checkpoint_path() -> None:
    spec = ModelSpec.model_validate({"model": "smp:PSPNet", "checkpoint": "runs/teacher"})
    assert spec.checkpoint == CheckpointSpec(path="runs/teacher", key=None, strip_prefix=None, ignore=())
    assert ModelSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_a_string_stands_for_one_pattern() -> None:
    spec = CheckpointSpec.model_validate({"path": "a.pt", "ignore": "head.*"})
    assert spec == CheckpointSpec(path="a.pt", ignore=("head.*",))
    assert spec.model_dump(mode="json")["ignore"] == ["head.*"]
    with pytest.raises(pydantic.ValidationError, match=r"ignore"):
        CheckpointSpec.model_validate({"path": "a.pt", "ignore": 3})


def test_the_schema_tells_of_both_forms_of_a_checkpoint() -> None:
    schema = ModelSpec.model_json_schema()
    text, described = schema["$defs"]["CheckpointSpec"]["anyOf"]
    assert text == {"type": "string"}
    assert set(described["properties"]) == {"path", "key", "strip_prefix", "ignore"}
    assert described["required"] == ["path"]
    kinds = [kind["type"] for kind in described["properties"]["ignore"]["anyOf"]]
    assert kinds == ["string", "array"]
