"""Every method trains in a run, named in a recipe; losses that read labels know what is void in the data set."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekd.config import load_recipe
from densekd.losses.catalog import METHODS
from densekd.runs import distill, train
from densekd.runs.assemble import assemble, build_distiller, build_teacher
from runkit import distillation, make_place, recipe

pytestmark = pytest.mark.slow
OPTIONS = {"crossimage": {"pool": 1}, "holistic": {"width": 8}}
VOID = 200


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_place(tmp_path_factory.mktemp("methods"))
    for path in (root / "train" / "masks").glob("*.png"):
        mask = np.array(Image.open(path))
        mask[:3] = VOID
        Image.fromarray(mask).save(path)
    asked = recipe(root, student={"model": f"{root}/nets.py:teacher"})
    train(with_void(asked), out=root / "teacher")
    return root


def with_void(asked: dict) -> dict:
    return {**asked, "data": {**asked["data"], "ignore_index": VOID}}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_a_run(name: str, place: Path) -> None:
    asked = with_void(distillation(place, place / "teacher"))
    term = {"method": name, "student": "output", "teacher": "output", "options": OPTIONS.get(name, {})}
    run = distill({**asked, "terms": [term]}, out=place / name, train__steps=2, train__evaluate_every=2)
    assert run.record.status == "done"
    assert run.record.method == name
    rows = list(csv.DictReader((run.path / "log.csv").read_text().splitlines()))
    assert len(rows) == 2
    parts = [float(row[f"{name}:output"]) for row in rows]
    assert all(np.isfinite(parts))
    assert any(part != 0 for part in parts)


@pytest.mark.parametrize("name", ["intraclass", "decoupled", "crossimage"])
def test_losses_are_told_what_is_void(name: str, place: Path) -> None:
    asked = with_void(distillation(place, place / "teacher"))
    term = {"method": name, "student": "output", "teacher": "output"}
    parts = assemble(load_recipe({**asked, "terms": [term]}))
    distiller = build_distiller(parts, build_teacher(parts))
    (modules,) = distiller.adapters.values()
    assert modules.loss.ignore_index == VOID
    parts = assemble(load_recipe({**asked, "terms": [{**term, "options": {"ignore_index": 7}}]}))
    distiller = build_distiller(parts, build_teacher(parts))
    assert next(iter(distiller.adapters.values())).loss.ignore_index == 7
