"""The base of all records."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A part of a record: no unknown keys, infinities as null."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


def dump(record: BaseModel) -> dict[str, Any]:
    """The record as plain JSON values, with its public key names.

    Args:
        record: one of these models.

    >>> from densekd.records import Scores
    >>> dump(Scores(miou=0.5, pixel_accuracy=0.75, iou={"road": 0.9, "train": None}, images=101))
    {'miou': 0.5, 'pixel_accuracy': 0.75, 'iou': {'road': 0.9, 'train': None}, 'images': 101, 'left_out': 0}
    """
    return record.model_dump(mode="json", by_alias=True)
