"""Small sets of stored maps for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densekd.teacher_cache import CacheKey, MapWriter, Summary

KEY = CacheKey({"teacher": "0a1b", "data": {"augment": {"flip": 0.5, "crop": [64, 64]}}, "terms": [{"tap": "logits"}]})
TAPS = {"logits": (3, 5, 7), "encoder.layer4": (4, 2, 3)}
VIEWS, IMAGES = 2, 3
PAIRS = [(view, index) for view in range(VIEWS) for index in range(IMAGES)]


def maps_of(view: int, index: int) -> dict[str, Tensor]:
    """The maps of one sample, always the same."""
    generator = torch.Generator().manual_seed(100 * view + index)
    return {tap: 4 * torch.randn(shape, generator=generator) for tap, shape in TAPS.items()}


def writer(folder: Path, **given: Any) -> MapWriter:
    options: dict[str, Any] = {"taps": TAPS, "views": VIEWS, "images": IMAGES, "encoding": "bfloat16", **given}
    return MapWriter(folder, options.pop("key", KEY), **options)


def fill(to: MapWriter, pairs: Iterable[tuple[int, int]] | None = None) -> None:
    for view, index in to.missing() if pairs is None else pairs:
        to.write(view, index, maps_of(view, index), fingerprint=1000 * view + index)


def make_set(folder: Path, **given: Any) -> Summary:
    with writer(folder, **given) as made:
        fill(made)
        return made.finish()


def samples(pairs: Iterable[tuple[int, int]] = PAIRS) -> Tensor:
    return torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2)
