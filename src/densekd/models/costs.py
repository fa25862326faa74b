"""What the networks of the table of short names cost: live parameters and operations, from a record or counted anew."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import torch

from densekd.models.build import build_model
from densekd.models.measure import Measured, measure
from densekd.models.specs import ModelSpec

RECORD = "costs.json"
SIZE = (512, 1024)
CLASSES = 19


def count(spec: ModelSpec, classes: int = CLASSES, size: tuple[int, int] = SIZE) -> Measured:
    """The cost of a network for one image of `size` (height, width): exact, without computing with any value.

    The network is built on the CPU and moved to torch's meta device, where tensors have a shape alone; see
    `densekd.models.measure` for what is counted.

    Raises:
        ModelError: it cannot be built, or run on images of this size.
    """
    network = build_model(spec, classes, notices=[]).to("meta")
    return measure(network, torch.empty(1, 3, *size, device="meta"))


@cache
def recorded() -> dict[str, Any]:
    """The record of `benchmarks/network_costs.py`: `size`, `classes`, `environment`, and `networks` by short name."""
    found: dict[str, Any] = json.loads(
        resources.files("densekd").joinpath("models", RECORD).read_text(encoding="utf-8")
    )
    return found
