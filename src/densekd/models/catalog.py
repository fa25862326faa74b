"""What `densekd list models` shows: short names with what they cost, and every reference that can be built."""

from __future__ import annotations

import importlib.util
import inspect
import json
from typing import Any

from densekd.models.costs import recorded
from densekd.models.names import short_names
from densekd.models.output_stride import strides_of
from densekd.models.reference import parse_reference

_LIBRARIES = {"smp": "segmentation-models-pytorch", "torchvision": "torchvision", "transformers": "transformers"}
_SMP_OPTIONS = "encoder_name, encoder_depth"


def named_rows() -> list[dict[str, Any]]:
    """One row for each short name, with live parameters and operations from the record (`densekd.models.costs`).

    Columns: `model` (the short name), `M parameters`, `GFLOPs HxW`, `library`, `what` (the full reference, and a word
    on it), and the `options` that the name stands for.
    """
    record = recorded()
    height, width = record["size"]
    rows = []
    for name, named in short_names().items():
        cost = record["networks"].get(name)
        rows.append(
            {
                "model": name,
                "M parameters": None if cost is None else round(cost["parameters"] / 1e6, 2),
                f"GFLOPs {height}x{width}": None if cost is None else round(cost["flops"] / 1e9, 1),
                "library": _LIBRARIES[parse_reference(named.model).library],
                "what": f"{named.model}: {named.what}" if named.what else named.model,
                "options": _in_words(named.options),
            }
        )
    return rows


def _in_words(options: dict[str, Any]) -> str:
    return ", ".join(f"{option}: {json.dumps(value)}" for option, value in options.items()) or "-"


def how_counted() -> str:
    """A line on the numbers of `named_rows`."""
    record = recorded()
    height, width = record["size"]
    return (
        f"parameters: live ones, at {record['classes']} classes; FLOPs: of one image of {height}x{width}, a "
        "multiplication and the addition after it count as two; both without an auxiliary head"
    )


def rows() -> list[dict[str, str]]:
    """One row for each network by name and for each open form (hub, folder, timm, file).

    Columns: `model` (the reference), `library`, `what` it is, main `options`.
    """
    return [*_smp_rows(), *_torchvision_rows(), *_transformers_rows(), *_OPEN_FORMS]


def _row(model: str, library: str, what: str, options: str) -> dict[str, str]:
    return {"model": model, "library": library, "what": what, "options": options}


def encoder_names() -> list[str]:
    """Encoders of smp networks (`options.encoder_name`): its own, then timm's as `tu-NAME`."""
    import timm
    from segmentation_models_pytorch.encoders import encoders

    return [*encoders, *(f"tu-{name}" for name in timm.list_models() if not name.startswith("densekd_"))]


_OPEN_FORMS = [
    _row("timm:NAME", "timm", "features of a classifier, as a teacher of features", "features: true; pretrained: true"),
    _row("path/to/file.py:function", "file", "your own network; the file is executed", "the function's arguments"),
]


def _smp_rows() -> list[dict[str, str]]:
    import segmentation_models_pytorch as smp

    rows = []
    for architecture in smp.MODEL_ARCHITECTURES_MAPPING.values():
        name = architecture.__name__
        encoder = inspect.signature(architecture).parameters["encoder_name"].default
        strides = strides_of(name)
        stride = f", output_stride: {'|'.join(map(str, strides))}" if strides else ""
        rows.append(
            _row(f"smp:{name}", "segmentation-models-pytorch", f"{name} on {encoder}", f"{_SMP_OPTIONS}{stride}")
        )
    return rows


def _torchvision_rows() -> list[dict[str, str]]:
    import torchvision

    return [
        _row(f"torchvision:{name}", "torchvision", name.replace("_", " on ", 1), "weights_backbone: DEFAULT")
        for name in torchvision.models.list_models(module=torchvision.models.segmentation)
    ]


def _transformers_rows() -> list[dict[str, str]]:
    hub = _row("transformers:OWNER/NAME", "transformers", "a network of the hub, with its weights", "pretrained")
    folder = _row("transformers:FOLDER", "transformers", "a folder of save_pretrained", "pretrained")
    if importlib.util.find_spec("transformers") is None:
        return [{**hub, "what": f"{hub['what']} (needs the extra hf)"}]
    import transformers

    from densekd.models.from_transformers import segmentation_classes

    return [
        *(
            _row(f"transformers:{name}", "transformers", "random weights", f"those of {_configuration(name)}")
            for name in segmentation_classes(transformers)
        ),
        hub,
        folder,
    ]


def _configuration(name: str) -> str:
    return f"{name.removesuffix('ForSemanticSegmentation')}Config"
