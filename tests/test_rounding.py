"""How far rounding may take a float32 copy of a teacher."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densekd.teacher import rounding
from densekd.teacher.engine import Engine
from densekd.teacher.precision import Precision


def test_another_device_may_round_otherwise() -> None:
    """As a GPU whose convolutions multiply in TensorFloat-32, under a plain teacher on the CPU."""
    here, there = torch.device("cpu"), torch.device("meta")
    exact = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answers = {("float64", here): exact, ("float32", there): 1.002 * exact}

    def read(engine: Engine) -> dict[str, Tensor]:
        return {"x": answers[engine.precision.name, engine.device]}

    reader: Any = None
    plain: Any = SimpleNamespace(
        engine=Engine(nn.Identity(), reader, Precision("float32"), here),
        maps={"x": exact.float()},
        options=SimpleNamespace(temperature=4.0),
        read=read,
    )
    assert rounding._allowed(plain, here) == {"x": 1e-4}
    assert rounding._allowed(plain, there) == {"x": pytest.approx(0.02)}
