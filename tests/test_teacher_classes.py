"""A teacher with a label set of its own, from the recipe to its score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from densekd.config import TeacherSpec, load_recipe
from densekd.errors import ConfigError
from densekd.runs import distill
from densekd.runs.assemble import assemble, build_distiller, build_teacher
from densekd.runs.progress import Quiet
from densekd.runs.readiness import check_readiness
from densekd.runs.teacher_classes import TeacherClasses, teacher_classes
from densekd.runs.teacher_view import KnownPixels
from densekd.study.check import Opened
from densekd.study.teacher import score_teacher
from runkit import COLORS, NAMES, make_place, recipe

NAMES5 = ["leaf", "road", "parking", "trunk", "sky"]
TO3 = {"sky": "sky", "road": ["road", "parking"], "tree": ["leaf", "trunk"]}


def spec(**given: Any) -> TeacherSpec:
    return TeacherSpec(model="smp:PSPNet", **given)


def found(**given: Any) -> TeacherClasses:
    own = teacher_classes(spec(**given), NAMES, len(NAMES))
    assert own is not None
    return own


class TestGroups:
    def test_the_datas_own_classes_need_no_map(self) -> None:
        assert teacher_classes(spec(), NAMES, 3) is None
        assert teacher_classes(spec(class_names=NAMES), NAMES, 3) is None

    def test_a_teacher_of_two_logits_and_a_student_of_one(self) -> None:
        names = ("background", "polyp")
        assert teacher_classes(spec(), names, 1) is None
        own = teacher_classes(spec(class_names=names), names, 1)
        assert own is not None
        assert own.groups == [[0], [1]]
        with pytest.raises(ConfigError, match=r"teacher\.classes\.polyp: \[\] not together with task\.binary"):
            teacher_classes(spec(classes={"background": "background", "polyp": []}), names, 1)

    def test_groups_by_name(self) -> None:
        own = found(class_names=NAMES5, classes=TO3)
        assert own.groups == [[4], [1, 2], [0, 3]]
        assert own.notices == ["teacher: its 5 classes are mapped to the 3 of the data"]
        assert own.map.known == [0, 1, 2]

    def test_without_groups_each_class_is_that_of_its_name(self) -> None:
        own = found(class_names=["tree", "car", "sky", "road"])
        assert own.groups == [[2], [3], [0]]
        assert "'car' stand for no class of the data and are dropped" in own.notices[1]

    def test_a_class_that_the_teacher_does_not_know(self) -> None:
        own = found(class_names=NAMES5, classes={**TO3, "tree": []})
        assert own.map.unknown == [2]
        assert "'leaf', 'trunk' stand for no class" in own.notices[1]
        assert "does not know 'tree'" in own.notices[2]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"class_names": ["sky", "rood", "tree"]}, r"no class of the name 'road'; did you mean 'rood'.*1 of 3"),
            (
                {"class_names": NAMES5, "classes": {"sky": "sky"}},
                r"no entry for 'road', 'tree'; expected one for every",
            ),
            (
                {"class_names": NAMES5, "classes": {**TO3, "tre": []}},
                r"'tre' is no class .*did you mean 'tree'",
            ),
            (
                {"class_names": NAMES5, "classes": {**TO3, "tree": "leef"}},
                r"tree: 'leef' .*did you mean 'leaf'",
            ),
            ({"class_names": NAMES5, "classes": {**TO3, "tree": "zzz"}}, r"'zzz' is no class .*its classes: 'leaf', "),
            ({"classes": {"sky": [], "road": [], "tree": []}}, r"teacher\.classes: every class of the data has \[\]"),
        ],
    )
    def test_mistakes(self, given: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            teacher_classes(spec(**given), NAMES, len(NAMES))

    def test_mistakes_that_are_seen_in_the_recipe_alone(self) -> None:
        teacher = {"model": "smp:PSPNet", "checkpoint": "x"}
        for given, words in (
            ({"classes": {"a": ["x", "y"], "b": "y"}}, r"teacher: .*'y' is in the groups of 'a' and 'b'.*twice"),
            ({"class_names": ["a", "b", "a"]}, r"teacher: .*class_names holds 'a' twice"),
            ({"class_names": ["a"]}, r"teacher\.class_names"),
        ):
            with pytest.raises(ConfigError, match=words):
                load_recipe("demo", {"teacher": {**teacher, **given}})

    def test_a_resolved_recipe_keeps_them(self) -> None:
        asked = {"model": "smp:PSPNet", "checkpoint": "x", "class_names": NAMES5, "classes": TO3}
        own = load_recipe("demo", {"teacher": asked}).teacher
        assert own is not None
        assert own.classes == {"sky": ("sky",), "road": ("road", "parking"), "tree": ("leaf", "trunk")}
        assert TeacherSpec.model_validate(own.model_dump(mode="json")) == own


def test_pixels_of_unknown_classes_are_void() -> None:
    label = torch.tensor([[0, 1, 255], [2, 2, 1]])
    view = KnownPixels([{"image": torch.zeros(3, 2, 3), "label": label, "index": 0}], [2], 255)
    assert view[0]["label"].tolist() == [[0, 1, 255], [255, 255, 1]]
    assert (len(view), view[0]["index"]) == (1, 0)
    assert label[1, 0] == 2


# For each place of NAMES5 the colour of the blocks that it answers to; "trunk" and "parking" none of their own.
TEACHER = f"""
import torch
from torch import nn

COLORS = torch.tensor({COLORS[[2, 1, 1, 2, 0]].tolist()}) / 255
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def five(num_classes: int) -> nn.Module:
    \"\"\"The class of the nearest colour: |x - c|^2 is linear in x but for a part that all classes share.\"\"\"
    colors = (COLORS - MEAN) / STD
    network = nn.Sequential(nn.Conv2d(3, num_classes, 1))
    with torch.no_grad():
        network[0].weight.copy_(40 * colors[:num_classes, :, None, None])
        network[0].bias.copy_(-20 * colors[:num_classes].square().sum(1))
    return network
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_place(tmp_path_factory.mktemp("data"))
    (root / "five.py").write_text(TEACHER)
    return root


def asked(root: Path, **changes: Any) -> dict[str, Any]:
    teacher = {"model": f"{root}/five.py:five", "class_names": NAMES5, "classes": TO3, **changes}
    terms = [{"method": method, "student": "output", "teacher": "output"} for method in ("channelwise", "pixelwise")]
    terms[1]["name"] = "pixels"
    return recipe(root, teacher=teacher, terms=terms, preflight={"teacher_images": 4})


@pytest.mark.slow
class TestRun:
    def test_distilled_and_scored_in_the_classes_of_the_data(self, place: Path, tmp_path: Path) -> None:
        run = distill(asked(place), out=tmp_path / "run")
        assert run.record.teacher is not None
        assert run.record.teacher.miou is not None
        assert run.record.teacher.miou > 0.95
        assert any("its 5 classes are mapped to the 3" in line for line in run.record.warnings)
        assert set(run.record.final.iou) == set(NAMES)  # type: ignore[union-attr]

    def test_in_another_order_without_groups(self, place: Path, tmp_path: Path) -> None:
        names = ["tree", "road", "parking", "trunk", "sky"]
        run = distill(asked(place, class_names=names, classes=None), out=tmp_path / "run")
        # What is "parking" or "trunk" to the teacher is as likely "road" or "tree": dropped, they take nothing away.
        assert run.record.teacher is not None
        assert run.record.teacher.miou is not None
        assert run.record.teacher.miou > 0.95

    def test_a_class_that_it_does_not_know_is_left_out_of_its_scores(self, place: Path, tmp_path: Path) -> None:
        parts = assemble(load_recipe(asked(place, classes={**TO3, "tree": []})))
        teacher = build_teacher(parts)
        distiller = build_distiller(parts, teacher)
        readiness = check_readiness(parts, distiller, teacher, steps=6, folder=tmp_path)
        assert readiness.exam is not None
        assert readiness.exam.problems == []
        assert readiness.exam.miou > 0.95
        scored = score_teacher(Opened(parts, teacher, "0" * 64), tmp_path, Quiet())
        assert scored.iou["tree"] is None
        assert scored.miou is not None
        assert scored.miou > 0.95
        assert teacher(torch.zeros(1, 3, 4, 4)).shape[1] == 5

    def test_a_student_with_one_logit(self, place: Path, tmp_path: Path) -> None:
        changes = asked(place, classes={"rest": ["leaf", "trunk", "sky"], "road": ["road", "parking"]})
        masks = {"format": "id_map", "id_map": {0: 0, 1: 1, 2: 0}}
        changes["data"] = {**changes["data"], "classes": ["rest", "road"], "masks": masks}
        changes["terms"] = changes["terms"][:1]
        run = distill({**changes, "task": {"binary": True}}, out=tmp_path / "run")
        assert run.record.teacher is not None
        assert run.record.teacher.miou is not None
        assert run.record.teacher.miou > 0.95
