"""An exported student with all that turns an image into class ids: what the run does, outside of the file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from densekd.data.augment import AugmentSpec
from densekd.data.palette import made_palette
from densekd.data.transforms import EvalTransform
from densekd.errors import ConfigError, ExportError
from densekd.export import Exported, Manifest
from densekd.inference import WHOLE, EvaluationSpec, Predictor
from densekd.models.sizes import fitting_size
from densekd.pictures import Palette
from densekd.predict.enlarge import enlarged, near
from densekd.tasks.segmentation import SegmentationTask
from densekd.tasks.specs import SegmentationSpec

_READ = "evaluation"


class ShippedStudent:
    """An exported student: a file, or a folder of its own library.

    A file of one size gets every image resized to it; any other file gets images as the run brought them to its
    student (`manifest.evaluated`), padded to the multiple it needs. What it gives is brought back to the image's size:
    logits and probabilities bilinearly, class ids to the nearest.

    Args:
        exported: of `densekd.export.load_exported`.
        overrides: keys of `evaluation` with their values, in the place of the run's.
        most: images or windows in one forward pass.

    Raises:
        ConfigError: an override of something else, or with a value that cannot be.
        ExportError: windows, scales or mirroring that the file cannot be used for.
    """

    def __init__(self, exported: Exported, overrides: Mapping[str, Any] | None = None, most: int = 1) -> None:
        manifest = exported.manifest
        self.exported, self.manifest, self.classes = exported, manifest, manifest.classes
        self.palette: Palette = manifest.palette or made_palette(len(manifest.classes))
        self.evaluation = _evaluation(manifest, overrides or {}, exported.path)
        self.transform = EvalTransform(_augment(manifest, self.evaluation))
        self.task = SegmentationTask(SegmentationSpec(binary=manifest.binary), len(self.classes), 255, self.classes)
        self.gives_ids = manifest.inside.output == "argmax"
        own = getattr(exported, "network", None)
        network = own if isinstance(own, nn.Module) else AsNetwork(exported)
        self.device = getattr(exported, "device", torch.device("cpu"))
        self.predictor = Predictor(network, self.task, self.evaluation, most=most)

    def size_of(self, stored: tuple[int, int]) -> Hashable:
        """What images of that height and width are brought to."""
        return self.transform.size_of(stored)

    def segment(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Class ids `(H, W)`, int64, of images uint8 `(3, H, W)` that are brought to one size."""
        batch = torch.stack([self.transform(image) for image in images])
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        with torch.inference_mode():
            if self.gives_ids:
                found = list(self.predictor.network(batch)[:, 0].long())
            else:
                asked = [near(self.task.num_outputs, *size) for size in sizes]
                found = list(self.predictor.ids(batch.to(self.device), asked))
            return list(enlarged(found, sizes))

    def notices(self, sizes: Sequence[tuple[int, int]]) -> list[str]:
        """What the user should know before images of those heights and widths are segmented."""
        said, size = [], self.manifest.input.size
        others = [stored for stored in sizes if size is not None and stored != tuple(size)]
        if size is not None and others and self.evaluation.crop is None:
            said.append(
                f"{self.exported.path}: takes images of {size[0]}x{size[1]} (height x width) alone; {len(others)} of "
                f"{len(sizes)} are resized to that, and what it finds is resized back"
            )
        used, scored = self.evaluation, self.manifest.evaluated.evaluation
        if used != scored:
            said.append(f"evaluation: {used.in_words()}; the run was scored by: {scored.in_words()}")
        return said


class AsNetwork(nn.Module):
    """An exported file as a network: from normalised images `(N, 3, H, W)` to logits `(N, K, H, W)`, on the CPU.

    Images are padded on the right and below, by the mean colour, to the multiple that the file needs; batches are cut
    or filled up to the number of images it takes. Probabilities become logits by their logarithm (binary: by the
    inverse of the sigmoid), which give the same classes. Class ids stay what they are, as `(N, 1, H, W)`.
    """

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.exported = exported

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        manifest = self.exported.manifest
        height, width = int(images.shape[-2]), int(images.shape[-1])
        padded = fitting_size((height, width), manifest.input.multiple_of)
        images = F.pad(images, (0, padded[1] - width, 0, padded[0] - height))
        if manifest.input.values == "0..255":
            mean = torch.tensor(manifest.input.mean).view(-1, 1, 1)
            images = 255 * (images * torch.tensor(manifest.input.std).view(-1, 1, 1) + mean)
        found = self._in_batches(images.contiguous())[..., :height, :width]
        if manifest.inside.output == "softmax":
            tiny = torch.finfo(torch.float32).tiny
            return found.logit(eps=1e-7) if manifest.binary else found.clamp(min=tiny).log()
        return found[:, None] if manifest.inside.output == "argmax" else found

    def _in_batches(self, images: Tensor) -> Tensor:
        count = self.exported.manifest.input.batch
        if count == "dynamic":
            return self.exported(images)
        made = []
        for begin in range(0, len(images), count):
            part = images[begin : begin + count]
            lacking = count - len(part)
            whole = torch.cat([part, part[-1:].expand(lacking, -1, -1, -1)]) if lacking else part
            made.append(self.exported(whole)[: len(part)])
        return torch.cat(made)


def _augment(manifest: Manifest, evaluation: EvaluationSpec) -> AugmentSpec:
    """The size that images are brought to outside of the file, and the normalisation."""
    wanted, evaluated = manifest.input, manifest.evaluated
    mean, std = _three(wanted.mean), _three(wanted.std)
    if wanted.size is not None and evaluation.crop is None:
        return AugmentSpec(size=wanted.size, mean=mean, std=std)
    if manifest.inside.resize is not None:
        return AugmentSpec(mean=mean, std=std)
    return AugmentSpec(size=evaluated.size, fit=evaluated.fit, mean=mean, std=std)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _evaluation(manifest: Manifest, overrides: Mapping[str, Any], where: object) -> EvaluationSpec:
    """How class ids are found: as the run was scored, or as asked; refused where the file cannot be used so."""
    values: dict[str, Any] = manifest.evaluated.evaluation.model_dump()
    for key, value in overrides.items():
        name = key.removeprefix(f"{_READ}.")
        if name == key or name not in values:
            raise ConfigError(
                f"override {key}: a prediction by an exported file reads evaluation.KEY alone "
                f"({', '.join(values)}); what else was decided is in the file"
            )
        values[name] = value
    try:
        spec = EvaluationSpec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"evaluation: {error.errors()[0]['msg']}") from None
    _require_possible(spec, manifest, where)
    return spec


def _require_possible(spec: EvaluationSpec, manifest: Manifest, where: object) -> None:
    """Refuse windows, scales and mirroring of a file that gives ids, or that takes one size alone.

    Raises:
        ExportError: the file cannot be used so; the message says how else.
    """
    if spec == WHOLE:
        return
    asked = f"{where}: {spec.in_words()} (evaluation, as the run was scored unless you ask otherwise)"
    instead = "predict with the run's folder, or ask for the whole image: evaluation.mode=whole evaluation.crop=null"
    if spec.stride is not None:
        instead += " evaluation.stride=null"
    if manifest.inside.output == "argmax":
        raise ExportError(f"{asked} needs logits, and the file gives class ids; export again without argmax; {instead}")
    size = manifest.input.size
    fixed = None if size is None else tuple(size)
    if fixed is not None and spec.crop != fixed and spec.crop is not None:
        raise ExportError(
            f"{asked}: the file takes {fixed[0]}x{fixed[1]} (height x width) alone, and a window is "
            f"{spec.crop[0]}x{spec.crop[1]}; export again with that size; {instead}"
        )
    if fixed is not None and spec.crop is None and spec.scales != (1.0,):
        raise ExportError(f"{asked}: the file takes {fixed[0]}x{fixed[1]} (height x width) alone; {instead}")
