"""Recipes of benchmarks from end to end: two steps alone, two under a teacher, a score, on files in the real layouts.

Small crops, few images, weights at random: they start, run and score; what they reach is not tested. `make test` runs
one recipe for each kind of network and of data, with a small network for the teacher; `make test-long` every shipped
recipe with the networks it names, and says how long each took.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import realdata
from densekd.config import load_recipe, shipped_recipes
from densekd.runs import Run, distill, train
from densekd.runs.score import score_run
from densekd.study.methods import resolve_methods
from densekd.training.specs import TermSpec

NAMES = [name for name in shipped_recipes() if "/" in name]
SIZE = (48, 64)
CROP = [32, 32]
# A kind of data and a kind of network each time; every data set and every family is there.
KINDS = [
    "cityscapes/pspnet_r101-pspnet_r18",
    "cityscapes/segformer_b4-segformer_b0",
    "voc/deeplabv3_r101-deeplabv3_mobilenet_v3_small",
    "ade20k/deeplabv3plus_r101-deeplabv3plus_mobilenet_v2",
    "ade20k/hrnet_w48-hrnet_w18_small",
    "camvid/deeplabv3_r101-pspnet_r18",
    "cocostuff/deeplabv3_r101-deeplabv3_r18",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The root of each data set."""
    root = tmp_path_factory.mktemp("benchmarks")
    return {name: realdata.make(name, root / name, size=SIZE)["root"] for name in realdata.WRITERS}


def reduced(name: str, root: str) -> dict[str, Any]:
    """Overrides: the tiny data, two short steps of two images, no weights from elsewhere."""
    recipe = load_recipe(name)
    changes: dict[str, Any] = {
        "data.root": root,
        # HRNet's last resolution is a 32nd: batch norm of one position and two images would end its steps in NaN.
        "data.augment.crop": [2 * side for side in CROP] if "hrnet" in name else CROP,
        "train.steps": 2,
        "train.batch_size": 2,
        "train.global_batch_size": 2,
        "train.evaluate_every": None,
        "train.optimizer.lr": 1e-4,
        "runtime.workers": 0,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "preflight.teacher_images": 1,
        "preflight.on_problem": "warn",
    }
    if recipe.data.augment.fit is not None:
        changes["data.augment.fit"] = [48, 96]
    if "encoder_weights" in recipe.student.options:
        changes["student.options.encoder_weights"] = None
    if recipe.teacher is not None:
        changes["teacher.untrained"] = True
    return changes | small_banks(recipe.terms)


def small_banks(terms: Sequence[TermSpec]) -> dict[str, Any]:
    """A bank of 20,000 pixels for each of 171 classes would take most of the time and the memory."""
    banks = [place for place, term in enumerate(terms) if term.options.get("memory")]
    return {f"terms.{place}.options.pixel_queue": 32 for place in banks}


def ran(run: Run) -> None:
    """It took its two steps, with finite losses, and has a score."""
    record = run.record
    assert (record.status, record.steps) == ("done", 2)
    assert 0 <= record.final.miou <= 1
    losses = [float(row.split(",")[1]) for row in (run.path / "log.csv").read_text().splitlines()[1:]]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_recipe_of_each_kind(name: str, places: dict[str, str], tmp_path: Path) -> None:
    changes = reduced(name, places[name.partition("/")[0]])
    alone = train(load_recipe(name, changes), out=tmp_path / "alone")
    ran(alone)
    # The student's own network, trained alone, as the teacher: R101 and the like take long to build.
    asked = load_recipe(name, changes).model_dump(mode="json")
    asked["teacher"] = {**{key: asked["student"][key] for key in ("model", "options")}, "checkpoint": str(alone.path)}
    run = distill(load_recipe(asked), out=tmp_path / "distilled")
    ran(run)
    assert run.record.teacher.miou is not None
    scored = score_run(run)
    assert scored.miou == pytest.approx(run.record.best.miou, abs=1e-6)


@pytest.mark.slow
def test_every_data_set_and_every_family_of_networks_is_among_the_kinds() -> None:
    def kinds(names: list[str]) -> tuple[set[str], set[str]]:
        recipes = [load_recipe(name) for name in names]
        return {recipe.data.name for recipe in recipes}, {recipe.student.model for recipe in recipes}

    assert kinds(KINDS) == kinds(
        [name for name in NAMES if "-" in name and "-mmseg" not in name and "-mgd" not in name]
    )


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_with_its_own_networks(
    name: str, places: dict[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    recipe = load_recipe(name, reduced(name, places[name.partition("/")[0]]))
    begin = time.monotonic()
    run = (train if recipe.teacher is None else distill)(recipe, out=tmp_path / "run")
    ran(run)
    record_property("recipe", name)
    record_property("seconds", round(time.monotonic() - begin, 1))
    record_property("student_parameters", run.record.student.parameters)


@pytest.mark.long
@pytest.mark.timeout(1800)  # up to thirteen runs
@pytest.mark.parametrize("name", [name for name in NAMES if "-" in name])
def test_every_method_of_a_recipe(
    name: str, places: dict[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Each row of a table: its terms, with the student's own network as the teacher."""
    base = load_recipe(name, reduced(name, places[name.partition("/")[0]]))
    teacher = {"model": base.student.model, "options": base.student.options, "untrained": True}
    methods = [method for method in resolve_methods(base)[0] if method.terms]
    for method in methods:
        asked = method.recipe(base, 0).model_dump(mode="json") | {"teacher": teacher}
        ran(distill(load_recipe(asked, small_banks(method.terms)), out=tmp_path / method.name))
    record_property("recipe", name)
    record_property("methods", " ".join(method.name for method in methods))
