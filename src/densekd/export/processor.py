"""`preprocessor_config.json`: the run's size and normalisation for transformers, checked against the run's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from densekd.data.transforms import EvalTransform
from densekd.errors import ExportError
from densekd.export.images import RealImages
from densekd.export.student import Student

# Of a resized pixel, in grey levels of 255: libraries round in another order.
_MOST_LEVELS = 1.01


def write_processor(student: Student, folder: Path, real: RealImages) -> list[str]:
    """Write the file, read it with `AutoImageProcessor`, and compare what it makes of real images.

    It is a SegformerImageProcessor for every network: it resizes, scales, normalises, and brings class maps back.

    Returns:
        Lines that the card and the manifest keep: what the file does not say.

    Raises:
        ExportError: it gives other pixels than the run's evaluation, by more than a level of 255.
    """
    from transformers import AutoImageProcessor, SegformerImageProcessor

    augment = student.recipe.data.augment
    size: dict[str, Any] = {"do_resize": False}
    if augment.size is not None:
        size = {"do_resize": True, "size": {"height": augment.size[0], "width": augment.size[1]}, "resample": 2}
    made: Any = SegformerImageProcessor(
        **size, do_rescale=True, do_normalize=True, image_mean=list(augment.mean), image_std=list(augment.std)
    )
    made.save_pretrained(str(folder))
    opened: Any = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    transform = EvalTransform(augment.model_copy(update={"fit": None}))
    worst = 0.0
    for image in real.images:
        found = opened(images=image, return_tensors="pt")["pixel_values"][0].float()
        expected = transform(image)
        if found.shape != expected.shape:
            raise ExportError(
                f"preprocessor_config.json makes {tuple(found.shape)} of an image, the run {tuple(expected.shape)}"
            )
        worst = max(worst, float((found - expected).abs().max()))
    level = 1 / 255 / min(augment.std)
    if worst > _MOST_LEVELS * level:
        raise ExportError(
            f"preprocessor_config.json gives pixels that differ from the run's by {worst / level:.1f} levels of 255; "
            "this is a defect of densekd"
        )
    notices = []
    if augment.fit is not None:
        short, long = augment.fit
        notices.append(
            f"preprocessor_config.json does not resize: the run fitted images into {short} (short side) by {long} "
            "(long side) with their ratio kept, which it cannot say; do so before"
        )
    if worst > 0.01 * level:
        notices.append(
            f"preprocessor_config.json: resized pixels differ from the run's by {worst / level:.2f} of 255 at most"
        )
    return notices
