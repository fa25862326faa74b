"""What a student's own library needs to build it and to load its weights: the code of model cards, and the doing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from densekd.errors import CheckpointError, ExportError, ModelError
from densekd.export.manifest import Manifest, NetworkInfo
from densekd.models.build import build_model
from densekd.models.reference import Library, parse_reference
from densekd.models.specs import CheckpointSpec, ModelSpec

WEIGHTS = "model.safetensors"
ENCODER = "encoder.py"
Loading = Literal["from_pretrained", "state_dict"]

_NAMES: Mapping[Library, str] = {
    "smp": "segmentation-models-pytorch",
    "transformers": "transformers",
    "torchvision": "torchvision",
    "timm": "timm",
    "file": "your own code",
}
_OPEN_ENCODER = "tu-densekd_"


def library_of(network: NetworkInfo) -> Library:
    """The library that a student's reference names."""
    return parse_reference(network.model).library


def without_folders(model: str) -> str:
    """A reference for others to read: a file or a folder of this machine by its name alone, all else as it is."""
    reference = parse_reference(model)
    if reference.path is not None:
        return f"{Path(reference.path).name}:{reference.name}"
    plain = reference.name.count("/") <= 1 and not reference.name.startswith((".", "/", "~"))
    return model if plain else f"{reference.library}:{Path(reference.name).name}"


def title_of(network: NetworkInfo) -> str:
    """The library in words: `segmentation-models-pytorch`, or `your own code`."""
    return _NAMES[library_of(network)]


def loading_of(network: NetworkInfo) -> Loading:
    """Whether the library loads a folder by itself, or weights into a network that is built first."""
    return "from_pretrained" if library_of(network) in ("smp", "transformers") else "state_dict"


def build_with(manifest: Manifest, weights: Path, base: Path | str = ".", model: str | None = None) -> nn.Module:
    """The network of a manifest with the weights of a safetensors file, in eval mode and float32.

    Args:
        manifest: names the network and its options.
        weights: the file; loaded strictly.
        base: where the file of a network of the user's own is, or a folder of transformers.
        model: the reference with its folders, where they are known; default the manifest's, which has none.

    Raises:
        ExportError: the network cannot be built here, or the weights do not fit it.
    """
    info = manifest.network
    checkpoint = CheckpointSpec(path=str(weights.absolute()))
    spec = ModelSpec(model=model or info.model, options=info.options, checkpoint=checkpoint)
    try:
        return build_model(spec, manifest.outputs, base_folder=base, notices=[]).float().eval()
    except (ModelError, CheckpointError) as error:
        beside = f". Put that file beside {weights.name}" if library_of(info) == "file" else ""
        raise ExportError(f"{weights}: its network {info.model} cannot be built here: {error}{beside}") from error


def require_trust(path: Path, manifest: Manifest, base: Path, trust: bool) -> None:
    """Refuse an exported student whose network is a file of Python, unless the user trusts it.

    Raises:
        ExportError: it says which file would be executed, and how to allow it.
    """
    code = parse_reference(manifest.network.model).path
    if code is None or trust:
        return
    raise ExportError(
        f"{path}: its network is code, {manifest.network.model}; opening it executes {(base / code).absolute()}, which "
        "can do anything that you can. If you trust that file, give --trust (in Python: "
        "load_exported(path, trust=True))"
    )


def load_folder(folder: Path, manifest: Manifest) -> nn.Module:
    """The network of a hub folder, by its own library wherever that loads folders; in eval mode, float32.

    Only safetensors are read, and no code of the folder is run.

    Raises:
        ExportError: the library cannot load it; its own words are given.
    """
    library = library_of(manifest.network)
    if library in ("torchvision", "timm", "file"):
        return build_with(manifest, folder / WEIGHTS, folder)
    _require_weights(folder)
    try:
        if library == "smp":
            import segmentation_models_pytorch as smp

            _register_encoder(folder)
            network: nn.Module = smp.from_pretrained(str(folder))
        else:
            from transformers import AutoModelForSemanticSegmentation

            network = AutoModelForSemanticSegmentation.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
    except ImportError:
        raise ExportError(f'{folder}: needs transformers: pip install "densekd[hf]"') from None
    except Exception as error:  # a damaged folder fails in as many ways as it has parts
        reason = " ".join(str(error).split())[:400]
        raise ExportError(
            f"{folder}: {title_of(manifest.network)} cannot load it ({type(error).__name__}: {reason})"
        ) from None
    return network.float().eval()


def _require_weights(folder: Path) -> None:
    """A library that finds no safetensors looks for other files, which are pickles."""
    if not any((folder / name).is_file() for name in (WEIGHTS, f"{WEIGHTS}.index.json")):
        raise ExportError(f"{folder}: holds no {WEIGHTS}; weights in another form are not read")


def _register_encoder(folder: Path) -> None:
    """What `encoder.py` of a folder does, without executing a file: densekd knows the encoders it may name."""
    import json

    from densekd.models.timm_widths import open_width

    name = str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("encoder_name", ""))
    if name.startswith(_OPEN_ENCODER):
        open_width(name, base_of(name))


def base_of(encoder: str) -> str:
    """timm's own name of a network that densekd registers with an open width: `tu-densekd_mobilenetv1` and the like."""
    from densekd.models import timm_widths

    function = encoder.removeprefix("tu-")
    for name, entry in timm_widths.open_networks().items():
        if entry.__name__ == function:
            return name
    raise ExportError(f"encoder {encoder!r}: not one that densekd registers")


def encoder_source(encoder: str) -> str | None:
    """`encoder.py`: registers an encoder of an open width with timm, needing timm alone; None where none is needed."""
    if not encoder.startswith(_OPEN_ENCODER):
        return None
    from densekd.models import timm_widths

    base = base_of(encoder)
    function = inspect.getsource(timm_widths.open_networks()[base])
    return (
        f'"""Registers `{encoder.removeprefix("tu-")}` with timm: its {base} of any width, which timm\'s own name '
        'fixes. Import this\nfile before segmentation_models_pytorch loads the folder."""\n\n'
        "from __future__ import annotations\n\nfrom typing import Any\n\nimport timm\n"
        "from timm.models import efficientnet, mobilenetv3  # noqa: F401\n\n\n"
        f"@timm.models.register_model\n{function}"
    )


def plain_options(network: NetworkInfo, outputs: int) -> dict[str, Any]:
    """The options of a constructor without published weights, with the number of outputs under its own name."""
    library = library_of(network)
    unread = {"weights", "weights_backbone", "pretrained", "encoder_weights"}
    options = {name: value for name, value in network.options.items() if name not in unread}
    if library == "torchvision":
        return {"weights": None, "weights_backbone": None, **options, "num_classes": outputs}
    return options
