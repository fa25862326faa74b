"""What `densekd list models` shows: every reference that can be built, without a connection."""

from __future__ import annotations

import importlib.util
import inspect

from densekd.models.output_stride import strides_of

_SMP_OPTIONS = "encoder_name, encoder_depth"


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
