from __future__ import annotations

import json
import random
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from densekd.runs.assemble import assemble, build_distiller, build_teacher
from densekd.runs.execute import resolve
from densekd.runs.readiness import NotReadyError, check_readiness

NAMES = ("sky", "road", "tree", "car")
COLORS = np.array([[90, 140, 215], [100, 96, 100], [40, 115, 40], [190, 40, 50]])
NETWORK = """
from torch import nn


def build(num_classes: int, width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, num_classes, 1)
    )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set of coloured blocks, the file of the networks, and a trained teacher."""
    root = tmp_path_factory.mktemp("ready")
    (root / "net.py").write_text(NETWORK)
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 12)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            label = generator.integers(0, len(NAMES), (3, 4)).repeat(8, 0).repeat(8, 1)
            image = COLORS[label] + generator.normal(0, 12, (*label.shape, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / "images" / f"{number}.png")
            Image.fromarray(label.astype(np.uint8)).save(root / split / "masks" / f"{number}.png")
    network = trained(root)
    save_file(network.state_dict(), root / "teacher.safetensors")
    with torch.no_grad():
        network[3].weight.copy_(network[3].weight[[1, 0, 3, 2]].clone())
        network[3].bias.copy_(network[3].bias[[1, 0, 3, 2]].clone())
    save_file(network.state_dict(), root / "permuted.safetensors")
    return root


def trained(root: Path) -> torch.nn.Module:
    parts = assemble(
        resolve(recipe(root, {"student": {"model": f"{root}/net.py:build", "options": {"width": 24}}}), 0, {})
    )
    view, optimizer = parts.train_view(), torch.optim.Adam(parts.student.parameters(), 0.03)
    entries = [view[(0, index)] for index in range(len(view))]
    images, labels = (torch.stack([entry[key] for entry in entries]) for key in ("image", "label"))
    for _ in range(60):
        optimizer.zero_grad()
        parts.task.loss(parts.student(images), labels)[0].backward()
        optimizer.step()
    return parts.student.eval()


def recipe(root: Path, changes: dict | None = None) -> dict:
    return {
        "name": "ready",
        "data": {
            "name": "folder",
            "root": str(root),
            "classes": list(NAMES),
            "augment": {"scale": [1.0, 1.0], "flip": 0.5},
        },
        "student": {"model": f"{root}/net.py:build", "options": {"width": 8}},
        "teacher": {
            "model": f"{root}/net.py:build",
            "options": {"width": 24},
            "checkpoint": {"path": str(root / "teacher.safetensors")},
        },
        "terms": [{"method": "channelwise"}],
        "train": {"steps": 20, "batch_size": 4, "evaluate_every": 6},
        "runtime": {"device": "cpu", "channels_last": False},
        **(changes or {}),
    }


@pytest.fixture
def ready(place):
    def run(steps: int = 20, **overrides):
        parts = assemble(resolve(recipe(place), 0, {key.replace("__", "."): v for key, v in overrides.items()}))
        teacher = build_teacher(parts)
        distiller = build_distiller(parts, teacher)
        return check_readiness(parts, distiller, teacher, steps=steps, folder=place / "runs" / "not-there-yet")

    return run


def heads(found) -> list[str]:
    return [problem.split(":")[0] for problem in found.problems]


class TestHealthy:
    def test_no_problem_and_one_small_table(self, ready):
        found = ready()
        assert found.problems == []
        assert found.raise_if_failed("stop") == []
        assert found.teacher_miou == found.exam.miou > 0.9
        rows = {row["what"]: row for row in found.rows()}
        expected = "term channelwise:logits|teacher on 12 images|time per step|time to the end|peak memory|disk"
        assert "|".join(rows) == f"training images|{expected}"
        assert rows["teacher on 12 images"]["verdict"] == "ok"
        assert "of the task's (equal at weight" in rows["term channelwise:logits"]["value"]
        assert "20 steps, 4 evaluations" in rows["time to the end"]["value"]

    def test_record_is_plain_json(self, ready):
        found = json.loads(json.dumps(ready().as_dict(), allow_nan=False))
        assert found["teacher"]["miou"] > 0.9
        assert found["forecast"]["evaluations"] == 4
        assert found["terms"]["terms"][0]["ratio"] > 0

    def test_everything_is_left_as_it_was(self, place):
        parts = assemble(resolve(recipe(place), 0, {}))
        teacher = build_teacher(parts)
        distiller = build_distiller(parts, teacher)
        next(parts.student.parameters()).grad = torch.ones_like(next(parts.student.parameters()))
        distiller.train()
        modules = [*distiller.modules(), *teacher.modules()]
        modes = [module.training for module in modules]
        before = {key: value.clone() for key, value in [*distiller.state_dict().items(), *teacher.state_dict().items()]}
        kept = [None if p.grad is None else p.grad.clone() for p in distiller.parameters()]
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        check_readiness(parts, distiller, teacher, steps=20)
        after = {**distiller.state_dict(), **teacher.state_dict()}
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert [module.training for module in modules] == modes
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
        for old, parameter in zip(kept, distiller.parameters(), strict=True):
            assert (old is None) == (parameter.grad is None)
            assert old is None or torch.equal(old, parameter.grad)

    def test_no_exam_is_said(self, ready):
        found = ready(preflight__teacher_images=0)
        assert found.teacher_miou is None
        assert "not examined" in next(row for row in found.rows() if row["what"] == "teacher")["value"]

    @pytest.mark.parametrize("tokens", [False, True])
    def test_teacher_of_features_is_not_scored_and_that_is_said(self, ready, place, tokens):
        last = "nn.Flatten(2)" if tokens else "nn.Identity()"
        code = f"\n\ndef features(num_classes):\n    return nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), {last})\n"
        (place / "features.py").write_text("from torch import nn\n" + code)
        terms = [{"method": "channelwise", "student": "2", "teacher": "0"}]
        found = ready(teacher={"model": f"{place}/features.py:features"}, terms=terms)
        assert (found.problems, found.exam, found.teacher_miou) == ([], None, None)
        said = "teacher gives features: not scored (its output is a tensor of shape (1, 7, "
        assert [line for line in found.notices if line.startswith(f"pre-flight: {said}")]
        assert next(row for row in found.rows() if row["what"] == "teacher")["value"].startswith(said)
        assert found.forecast is not None

    def test_teacher_with_its_own_size_and_normalisation(self, ready):
        found = ready(
            teacher__size=[36, 48], teacher__mean=[0.485, 0.456, 0.406], teacher__std=[0.229, 0.224, 0.225],
            data__augment__mean=[0.5, 0.5, 0.5], data__augment__std=[0.25, 0.25, 0.25],
        )  # fmt: skip
        assert found.problems == []
        assert found.teacher_miou > 0.85


class TestProblems:
    def test_unloaded_teacher_stops(self, ready):
        found = ready(teacher__checkpoint=None, teacher__untrained=True)
        assert heads(found) == ["unloaded head"]
        assert "unloaded head" in [row["verdict"] for row in found.rows()]
        with pytest.raises(NotReadyError, match=r"pre-flight: unloaded head: .*teacher.checkpoint"):
            found.raise_if_failed("stop")

    def test_warning_hands_the_lines_back(self, ready):
        lines = ready(teacher__checkpoint=None, teacher__untrained=True).raise_if_failed("warn")
        assert len(lines) == 1
        assert lines[0].startswith("pre-flight: unloaded head")

    def test_permuted_teacher(self, ready, place):
        found = ready(teacher__checkpoint__path=str(place / "permuted.safetensors"))
        assert heads(found) == ["permuted classes"]

    def test_wrong_normalisation(self, ready):
        found = ready(teacher__mean=[0, 0, 0], teacher__std=[1, 1, 1])
        assert heads(found) == ["wrong normalisation"]
        assert "set teacher.mean=[0.485,0.456,0.406]" in found.problems[0]

    def test_student_that_is_as_good_already(self, ready, place):
        found = ready(student__options={"width": 24}, student__checkpoint={"path": str(place / "teacher.safetensors")})
        assert "no better than the student" in heads(found)
        assert found.exam.student_miou == found.exam.miou
        assert "student before training" in [row["what"] for row in found.rows()]

    def test_full_disk(self, ready, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 100, 10))
        found = ready()
        assert heads(found) == ["disk"]
        assert next(row for row in found.rows() if row["what"] == "disk")["verdict"] == "problem"

    def test_term_that_cannot_run_is_a_problem_not_a_crash(self, place, monkeypatch):
        parts = assemble(resolve(recipe(place), 0, {}))
        teacher = build_teacher(parts)
        distiller = build_distiller(parts, teacher)
        monkeypatch.setattr(parts.student, "forward", lambda image: {"strange": image})
        found = check_readiness(parts, distiller, teacher, steps=5)
        assert found.problems
        assert found.forecast is None
        assert "time per step" not in [row["what"] for row in found.rows()]
        json.dumps(found.as_dict(), allow_nan=False)


class TestForecast:
    def test_total_is_steps_and_evaluations(self, ready):
        cost = ready(steps=50, train__accumulate=2).forecast
        assert cost.evaluations == 9
        assert cost.total_seconds == pytest.approx(
            50 * 2 * (cost.step_seconds + cost.data_seconds) + 9 * cost.evaluation_seconds
        )
        assert 0 < cost.teacher_seconds <= cost.step_seconds

    def test_workers_load_beside_the_steps(self, ready):
        cost = ready(steps=1000, runtime__workers=2, train__evaluate_every=None).forecast
        step = max(cost.step_seconds, cost.data_seconds / 2)
        assert cost.total_seconds == pytest.approx(1000 * step + cost.evaluation_seconds)

    @pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 1), ("adamw", 2)])
    def test_disk_by_hand(self, ready, optimizer, copies):
        cost = ready(train__optimizer__name=optimizer).forecast
        parameters = 8 * 27 + 8 + 16 + 8 * 4 + 4
        buffers = 4 * 16 + 8
        student = 4 * parameters + buffers
        assert cost.disk_bytes == 4 * (student + copies * 4 * parameters) + 2 * student
