"""The model card of a hub folder: what the record says, how to load, how to use; no number that was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from densekd.data.kinds import AnyDataSpec
from densekd.data.specs import FolderSpec, ScenesDataSpec
from densekd.export.card_code import load_part, use_part
from densekd.export.card_facts import cell, facts_of, limits_of, percent, training_of
from densekd.export.library import library_of, title_of, without_folders
from densekd.export.manifest import Manifest
from densekd.export.student import Student

_TEMPLATE = "card.md.j2"
_HUB_NAMES = {"smp": "segmentation-models-pytorch", "transformers": "transformers"}
_FILES = {
    "model.safetensors": "the weights",
    "config.json": "the network, for its library",
    "preprocessor_config.json": "size and normalisation, for transformers",
    "encoder.py": "registers the encoder with timm",
    "densekd.json": "the manifest: classes, input, the run it was made of, how it was checked",
    "README.md": "this card",
}


def card_text(student: Student, manifest: Manifest, name: str, contents: Mapping[str, bytes]) -> str:
    """The card as Markdown with the hub's front matter.

    Args:
        student: of the run; numbers come from its `record.json`, and from `study.json` beside it where it is one of a
            study's runs.
        manifest: of the folder.
        name: its title.
        contents: the folder's files by name.
    """
    template = resources.files("densekd").joinpath("export", _TEMPLATE).read_text(encoding="utf-8")
    page = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    data = data_words(student.recipe.data)
    listed = [*(path for path in contents if path != "README.md"), "README.md"]
    return page.from_string(template).render(
        name=name,
        front=yaml.safe_dump(_front(student, manifest, name, data), sort_keys=False, allow_unicode=True),
        sentence=_sentence(student, manifest, data),
        facts={**facts_of(student, manifest), "data": cell(data)},
        load=load_part(manifest),
        use=use_part(manifest),
        training=training_of(student),
        limits=limits_of(student, manifest),
        files=[(path, _FILES.get(path, "written by its library")) for path in listed],
    )


def data_words(data: AnyDataSpec) -> str:
    """The data set by name; of a folder its own name alone, not where it lies."""
    if isinstance(data, ScenesDataSpec):
        return "densekd's drawn scenes"
    if isinstance(data, FolderSpec):
        from pathlib import Path

        return Path(data.root).resolve().name
    return data.benchmark.title


def _front(student: Student, manifest: Manifest, name: str, data: str) -> dict[str, Any]:
    """The hub's metadata; licence and data set ids of the hub are not ours to say."""
    source, library = manifest.source, library_of(manifest.network)
    score = {"type": "mean_iou", "name": "mIoU", "value": round(source.scores.miou, 4)}
    accuracy = {"type": "accuracy", "name": "pixel accuracy", "value": round(source.scores.pixel_accuracy, 4)}
    distilled = [] if source.method == "none" else ["knowledge-distillation"]
    result = {
        "task": {"type": "image-segmentation", "name": "Semantic segmentation"},
        "dataset": {"type": student.recipe.data.name, "name": data, "split": source.split},
        "metrics": [score, accuracy],
    }
    return {
        "library_name": _HUB_NAMES.get(library, "pytorch"),
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", *distilled, "densekd", "pytorch"],
        "metrics": ["mean_iou", "accuracy"],
        "model-index": [{"name": name, "results": [result]}],
    }


def _sentence(student: Student, manifest: Manifest, data: str) -> str:
    info, source = manifest.network, manifest.source
    encoder = info.options.get("encoder_name")
    what = (
        f"`{without_folders(info.model)}`" + (f" with encoder `{encoder}`" if encoder else "") + f" ({title_of(info)})"
    )
    begin = f"{what} for semantic segmentation into {len(manifest.classes)} classes, trained on {cell(data)}"
    score = f"Its mIoU on {cell(source.split)} is **{percent(source.scores.miou)}** ({source.scores.images} images)."
    teacher = student.recipe.teacher if source.method != "none" else None
    if teacher is None:
        return f"{begin}. {score}"
    how = f"under a teacher (`{without_folders(teacher.model)}`), distilled by densekd's method `{source.method}`"
    return f"{begin} {how}. {score}"
