"""The code of a model card: what loads the student without densekd, and what makes class ids of a photo."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from densekd.export.library import ENCODER, WEIGHTS, encoder_source, library_of, plain_options
from densekd.export.manifest import Manifest

FOLDER = "."
"""The code stands in the folder that it loads."""
_CLASS_NAMES = "num_classes"


class Part(NamedTuple):
    """A section: words, then code."""

    words: str
    code: str


def load_part(manifest: Manifest) -> Part:
    """How the student's own library loads the folder: `model` at the end."""
    library = library_of(manifest.network)
    if library == "smp":
        return _smp(manifest)
    if library == "transformers":
        return Part(
            "`transformers` loads the folder (its path, or its name on the hub) by itself:",
            "from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation\n\n"
            f'processor = AutoImageProcessor.from_pretrained("{FOLDER}")\n'
            f'model = AutoModelForSemanticSegmentation.from_pretrained("{FOLDER}").eval()',
        )
    if library == "torchvision":
        return _torchvision(manifest)
    return _own(manifest)


def _smp(manifest: Manifest) -> Part:
    lines = ["import segmentation_models_pytorch as smp", "", f'model = smp.from_pretrained("{FOLDER}").eval()']
    words = "`segmentation_models_pytorch` loads the folder (its path, or its name on the hub) by itself:"
    if encoder_source(open_encoder(manifest)) is not None:
        lines.insert(
            0, f"import {Path(ENCODER).stem}  # {ENCODER} of this folder: registers the encoder's width with timm"
        )
        words = (
            "`segmentation_models_pytorch` loads the folder (its path, or its name on the hub) once "
            f"`{ENCODER}` was imported: timm has the encoder in fixed widths alone."
        )
    return Part(words, "\n".join(lines))


def open_encoder(manifest: Manifest) -> str:
    """The encoder under the name that densekd registers where the options ask for an open width, else as it is."""
    options = manifest.network.options
    name = str(options.get("encoder_name", ""))
    if not name.startswith("tu-"):
        return name
    from densekd.models.timm_widths import WIDTH_OPTIONS, open_networks

    entry = open_networks().get(name.removeprefix("tu-"))
    asked = any(option in options for option in WIDTH_OPTIONS)
    return f"tu-{entry.__name__}" if entry is not None and asked else name


def _torchvision(manifest: Manifest) -> Part:
    name = manifest.network.model.partition(":")[2]
    arguments = _arguments(plain_options(manifest.network, manifest.outputs))
    return Part(
        f"torchvision loads no folders: three lines build its network and load `{WEIGHTS}`.",
        "import torchvision\nfrom safetensors.torch import load_file\n\n"
        f'model = torchvision.models.get_model("{name}", {arguments})\n'
        f'model.load_state_dict(load_file("{WEIGHTS}"))\n'
        "model.eval()",
    )


def _own(manifest: Manifest) -> Part:
    path, _, function = manifest.network.model.rpartition(":")
    file = Path(path)
    given = {name: value for name, value in manifest.network.options.items() if name not in _names()}
    arguments = ", ".join([f"{_argument(manifest)}={manifest.outputs}", *([_arguments(given)] if given else [])])
    return Part(
        f"The network is code of its authors: `{function}` in `{file.name}`, which is not in this folder. With that "
        f"file beside `{WEIGHTS}`:",
        f"from safetensors.torch import load_file\n\nfrom {file.stem} import {function}\n\n"
        f"model = {function}({arguments})\n"
        f'model.load_state_dict(load_file("{WEIGHTS}"))\n'
        "model.eval()",
    )


def _names() -> tuple[str, ...]:
    return ("num_classes", "classes", "num_labels")


def _argument(manifest: Manifest) -> str:
    """The name of a builder's argument for the number of classes, where the options tell it."""
    return next((name for name in _names() if name in manifest.network.options), _CLASS_NAMES)


def _arguments(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def use_part(manifest: Manifest) -> Part:
    """From a photo to class ids at its size: `classes` at the end, from `model`."""
    if library_of(manifest.network) == "transformers" and manifest.evaluated.fit is None:
        return _with_processor(manifest)
    size, multiple = manifest.evaluated.size, manifest.input.multiple_of
    padded = multiple > 1 and (size is None or any(side % multiple for side in size))
    lines = [
        "import torch",
        "from PIL import Image, ImageOps",
        "from torchvision.transforms.v2 import functional as F",
        "",
    ]
    lines.append('image = F.pil_to_tensor(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))')
    source = "image"
    if size is not None:
        lines.append(f"resized = F.resize(image, [{size[0]}, {size[1]}], antialias=True)")
        source = "resized"
    elif manifest.evaluated.fit is not None:
        short, long = manifest.evaluated.fit
        lines += [
            f"factor = min({long} / max(image.shape[1:]), {short} / min(image.shape[1:]))",
            "resized = F.resize(image, [max(1, round(side * factor)) for side in image.shape[1:]], antialias=True)",
        ]
        source = "resized"
    mean, std = list(manifest.input.mean), list(manifest.input.std)
    lines.append(f"pixels = F.normalize({source}.float() / 255, {mean}, {std})[None]")
    if padded:
        lines += [
            "height, width = pixels.shape[-2:]",
            f"pixels = torch.nn.functional.pad(pixels, (0, -width % {multiple}, 0, -height % {multiple}))",
        ]
    lines += ["with torch.inference_mode():", f"    logits = model(pixels){_main(manifest)}"]
    if padded:
        lines.append(
            '    logits = torch.nn.functional.interpolate(logits, pixels.shape[-2:], mode="bilinear")'
            "[..., :height, :width]"
        )
    lines += [
        '    logits = torch.nn.functional.interpolate(logits, image.shape[-2:], mode="bilinear")',
        _decided(manifest),
    ]
    return Part(_input_words(manifest), "\n".join(lines))


def _with_processor(manifest: Manifest) -> Part:
    return Part(
        _input_words(manifest),
        "import torch\nfrom PIL import Image, ImageOps\n\n"
        'photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")\n'
        "with torch.inference_mode():\n"
        '    logits = model(**processor(images=photo, return_tensors="pt")).logits\n'
        '    logits = torch.nn.functional.interpolate(logits, photo.size[::-1], mode="bilinear")\n'
        f"{_decided(manifest)}",
    )


def _main(manifest: Manifest) -> str:
    return {"torchvision": '["out"]', "transformers": ".logits"}.get(library_of(manifest.network), "")


def _decided(manifest: Manifest) -> str:
    if manifest.binary:
        return f"classes = (logits[0, 0] > 0).long()  # 1: {_plain(manifest.classes[1])}"
    return "classes = logits.argmax(1)[0]  # the ids of the table above"


def _plain(name: str) -> str:
    return " ".join(name.split())


def _input_words(manifest: Manifest) -> str:
    given, evaluated = manifest.input, manifest.evaluated
    said = "RGB from 0 to 1, less the mean {} and divided by {}".format(
        *(" ".join(f"{value:g}" for value in row) for row in (given.mean, given.std))
    )
    if evaluated.size is not None:
        said += f", after images were resized to {evaluated.size[0]}x{evaluated.size[1]} (height x width)"
    elif evaluated.fit is not None:
        said += f", after images were fitted into {evaluated.fit[0]} (short side) by {evaluated.fit[1]}, ratio kept"
    if given.multiple_of > 1:
        said += f"; heights and widths must be multiples of {given.multiple_of}"
    return f"{said}."
