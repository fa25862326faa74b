"""What a recipe says about a network: which one, its options, and the weights it starts from."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from densekd.models.names import expanded
from densekd.models.reference import parse_reference
from densekd.spec import PathText, Spec


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...])]


class CheckpointSpec(Spec):
    """A file of weights and how to read it. A plain string is shorthand for `{path: ...}`."""

    path: PathText = Field(
        description="a .safetensors file, a file of torch.save or Lightning that holds tensors alone, or the folder "
        "of a run (its student.safetensors); relative to the folder where the command runs",
    )
    key: str | None = Field(
        default=None,
        description="the entry of the file that holds the weights, for instance state_dict or ema.model; needed "
        "only where several entries could be meant",
    )
    strip_prefix: str | None = Field(
        default=None, min_length=1, description="text taken off the front of every name that begins with it"
    )
    ignore: Patterns = Field(
        default=(),
        description="patterns (fnmatch, for instance classifier.*) of names that are left alone, in the file and in "
        "the network; a plain string is one pattern",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        whole = handler.resolve_ref_schema(schema)
        described = dict(whole)
        whole.clear()
        whole.update({"title": cls.__name__, "anyOf": [{"type": "string"}, described]})
        return schema


class ModelSpec(Spec):
    """A network by reference. Weights start at random unless `options` or a checkpoint ask for others.

    A short name is replaced by the reference and the options that it stands for.
    """

    model: str = Field(
        description="a short name of `densekd list models` (pspnet-resnet18), smp:PSPNet, "
        "torchvision:deeplabv3_resnet50, transformers:SegformerForSemanticSegmentation, transformers:OWNER/NAME, "
        "timm:NAME (features alone), or path/to/file.py:function"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of the network's constructor, under its library's own names; for smp also output_stride",
    )
    checkpoint: CheckpointSpec | None = Field(default=None, description="weights of the whole network, loaded strictly")
    encoder_checkpoint: CheckpointSpec | None = Field(
        default=None, description="weights of the encoder (backbone) alone, loaded strictly"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_name(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("model"), str):
            return value
        given = value.get("options", {})
        model, options = expanded(value["model"], given if isinstance(given, dict) else {})
        return {**value, "model": model, "options": options if isinstance(given, dict) else given}

    @field_validator("model")
    @classmethod
    def _known_form(cls, value: str) -> str:
        parse_reference(value)
        return value
