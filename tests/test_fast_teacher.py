"""The teacher's fast copy in runs and studies: chosen once, kept, measured on the right images and labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from densekd.config import Recipe, load_recipe, recipe_digest
from densekd.errors import ArgumentError, ConfigError, RunError
from densekd.inference import WHOLE, EvaluationSpec
from densekd.records import PlannedTeacher, RunRecord, StudyPlan, TeacherCost
from densekd.runs import Run, distill, fast_teacher, train
from densekd.runs.assemble import Parts
from densekd.runs.fast_teacher import fitted, in_teacher_classes, shown
from densekd.runs.progress import Quiet
from densekd.runs.ranks import Ranks
from densekd.study import engine as study_engine
from densekd.study.check import Opened
from densekd.study.methods import Method, tapping
from densekd.training.specs import TermSpec
from runkit import distillation, make_place, recipe


class TestHeldOut:
    def test_windows_of_an_evaluation(self) -> None:
        """A network of one input size is shown windows, as an evaluation shows it."""
        image, label = torch.arange(3 * 5 * 6).view(3, 5, 6).float(), torch.arange(30).view(5, 6)
        assert [tuple(pair[0].shape) for pair in shown(WHOLE, image, label)] == [(3, 5, 6)]
        windows = list(shown(EvaluationSpec(mode="slide", crop=(4, 4), stride=(2, 2)), image, label))
        assert [truth[0, 0].item() for _, truth in windows] == [0, 2, 6, 8]
        for pixels, truth in windows:
            assert torch.equal(pixels[0], truth.float())
        ((pixels, truth),) = shown(EvaluationSpec(mode="slide", crop=(8, 8)), image, label)
        assert pixels.shape == (3, 8, 8)
        assert (truth == -1).sum() == 64 - 30

    def test_an_image_that_does_not_fit_is_padded_with_void(self) -> None:
        image, label = torch.ones(3, 5, 7), torch.arange(140).view(10, 14) % 4
        padded, truth = fitted(image, label, 4)
        assert padded.shape == (3, 8, 8)
        assert truth.shape == (8, 8)
        assert padded[:, :5, :7].eq(1).all()
        assert padded.sum() == 3 * 35
        # Of two neighbours nearest-exact takes the second: rows and columns 1, 3, 5, ...
        assert truth[:5, :7].equal(label[1::2, 1::2])
        assert truth[5:].eq(-1).all()
        assert truth[:, 7:].eq(-1).all()

    def test_labels_in_the_teachers_classes(self) -> None:
        label = torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8)
        data = SimpleNamespace(ignore_index=255)
        same: Any = SimpleNamespace(data=data, teacher_classes=lambda: None)
        assert in_teacher_classes(same, label).tolist() == [[0, 1, 2, -1]]
        own = SimpleNamespace(groups=[[7], [3, 4], []])  # one of its classes, either of two, none
        other: Any = SimpleNamespace(data=data, teacher_classes=lambda: own)
        assert in_teacher_classes(other, label).tolist() == [[7, -1, -1, -1]]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    asked = load_recipe(distillation(tmp_path, tmp_path / "t"), {"teacher.engine.dtype": "auto"})
    nothing: Any = None
    return Parts(asked, nothing, nothing, nothing, torch.device("cpu"))


class Made:
    """What stands for the copies that are made: it keeps what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chosen: str = "bfloat16") -> None:
        self.asked: list[str] = []
        self.winograd: list[Any] = []
        self.chosen = chosen
        monkeypatch.setattr(fast_teacher, "_made", self._make)

    def _make(self, parts: Parts, teacher: Any, spec: Any, asked: dict[str, Any], scored: bool) -> Any:
        self.asked.append(asked["dtype"])
        self.winograd.append(asked["winograd"])
        found = self.chosen if asked["dtype"] == "auto" else asked["dtype"]
        layers = 3 if found == "float32" and asked["winograd"] is not False else 0
        report = SimpleNamespace(dtype=found, winograd=layers)
        return SimpleNamespace(report=report, notices=["slow", "teacher: seen"])


def begun(engine: dict[str, Any] | None) -> RunRecord:
    teacher = TeacherCost(parameters=1, sha256="x", engine=engine)
    return RunRecord(status="interrupted", method="m", seed=0, split="val", steps=1, epochs=1.0, teacher=teacher)


class TestNumberFormat:
    def test_auto_is_decided_once_and_told(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        made = Made(monkeypatch)
        found = fast_teacher.fast_teacher(parts, torch.nn.Identity())
        assert (found.report.dtype, made.asked) == ("bfloat16", ["auto"])
        assert parts.notices == ["teacher.engine: slow", "teacher: seen"]

    def test_a_resume_keeps_what_the_run_began_with(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        made = Made(monkeypatch, chosen="float32")
        fast_teacher.fast_teacher(replace(parts, before=begun({"dtype": "bfloat16"})), torch.nn.Identity())
        assert made.asked == ["bfloat16"]
        with pytest.raises(RunError, match="does not say what it chose"):
            fast_teacher.fast_teacher(replace(parts, before=begun(None)), torch.nn.Identity())
        named = parts.recipe.model_copy(update={"teacher": _with(parts.recipe, dtype="float32")})
        fast_teacher.fast_teacher(replace(parts, recipe=named, before=begun(None)), torch.nn.Identity())
        assert made.asked == ["bfloat16", "float32"]

    def test_of_several_processes_the_first_decides(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        made = Made(monkeypatch, chosen="float32")
        said = json.dumps({"dtype": "bfloat16", "winograd": False})
        second: Any = SimpleNamespace(from_first=lambda _what, _work: said, first=False)
        assert fast_teacher.fast_teacher(parts, torch.nn.Identity(), second).report.dtype == "bfloat16"
        first = Ranks.alone()
        assert fast_teacher.fast_teacher(parts, torch.nn.Identity(), first).report.dtype == "float32"
        assert made.asked == ["bfloat16", "auto"]

    def test_winograds_form_is_decided_once_and_told(
        self, tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By the first process, also where the number format is named; a resume keeps it, and one of a run begun before
        there was such a form goes on without."""
        made = Made(monkeypatch, chosen="float32")
        said = list[str]()

        def from_first(_what: str, work: Any) -> str:
            said.append(work())
            return said[-1]

        named = replace(parts, recipe=load_recipe(distillation(tmp_path, tmp_path / "t")))
        first: Any = SimpleNamespace(from_first=from_first, first=True)
        fast_teacher.fast_teacher(named, torch.nn.Identity(), first)
        assert json.loads(said[0]) == {"dtype": "float32", "winograd": True}
        second: Any = SimpleNamespace(from_first=lambda _what, _work: said[0], first=False)
        fast_teacher.fast_teacher(named, torch.nn.Identity(), second)
        for engine in ({"dtype": "float32", "winograd": 3}, {"dtype": "float32", "winograd": 0}, {"dtype": "float32"}):
            fast_teacher.fast_teacher(replace(parts, before=begun(engine)), torch.nn.Identity())
        assert made.winograd == ["auto", True, True, False, False]
        assert set(made.asked) == {"float32"}

    def test_recipes_of_before_keep_their_digest(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        """A resume compares digests: a key that a recipe of before did not have counts only where it says something."""
        monkeypatch.setattr("densekd.config.load.sha256", lambda data: data.decode())
        asked = parts.recipe.model_copy(update={"teacher": _with(parts.recipe, winograd=False)})
        assert '"micro_batch"' in recipe_digest(parts.recipe)
        assert '"winograd"' not in recipe_digest(parts.recipe)
        assert '"winograd": false' in recipe_digest(asked)

    def test_keys_are_checked(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"unknown key 'teacher\.engine\.dtyp'; did you mean 'dtype'"):
            load_recipe(distillation(tmp_path, tmp_path / "t"), {"teacher.engine.dtyp": "auto"})


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ([], 4.0),
        ([{"method": "channelwise", "options": {"temperature": 2.0}}, {"method": "channelwise"}], 2.0),
        ([{"method": "channelwise", "options": {"temperature": 9.0}}, {"method": "channelwise"}], 4.0),
        ([{"method": "channelwise", "options": {"temperature": 9.0}}], 9.0),
        # the temperature of a softmax over classes, or of similarities, says nothing of positions
        ([{"method": "pixelwise", "options": {"temperature": 1.0}}, {"method": "crossimage"}], 4.0),
    ],
)
def test_errors_are_measured_at_the_lowest_temperature_over_positions(terms: list[Any], expected: float) -> None:
    specs = [TermSpec(student="logits", teacher="logits", weight=1.0, **term) for term in terms]
    parts: Any = SimpleNamespace(recipe=SimpleNamespace(terms=specs))
    assert fast_teacher._temperature(parts) == expected


def _with(recipe: Recipe, **engine: Any) -> Any:
    assert recipe.teacher is not None
    return recipe.teacher.model_copy(update={"engine": recipe.teacher.engine.model_copy(update=engine)})


class TestStudies:
    def test_each_tap_at_the_lowest_temperature_of_all_methods(self) -> None:
        """Else the number format would be settled at the temperature of whichever method comes first."""

        def term(tap: str, method: str = "channelwise", **options: Any) -> TermSpec:
            return TermSpec(method=method, student="s", teacher=tap, weight=1.0, options=options)

        methods = [
            Method("warm", "logits", (term("logits", "pixelwise", temperature=0.1), term("4", "pairwise"))),
            Method("usual", "logits", (term("logits"),)),
            Method("cold", "logits", (term("logits", temperature=1.0), term("4", "attention"))),
            Method("hot", "logits", (term("logits", temperature=9.0),)),
        ]
        first, second = tapping(methods)
        assert (first.teacher, first.options, first.name) == ("logits", {"temperature": 1.0}, "tap 0")
        assert (second.teacher, second.method, second.name) == ("4", "pairwise", "tap 1")
        parts: Any = SimpleNamespace(recipe=SimpleNamespace(terms=tapping(methods)))
        assert fast_teacher._temperature(parts) == 1.0

    def test_every_run_is_told_what_was_chosen_once(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[str, bool, list[str]]] = []
        winograds: list[bool | str] = []

        def make(parts: Parts, _teacher: Any, *, scored: bool) -> Any:
            assert parts.recipe.teacher is not None
            dtype = parts.recipe.teacher.engine.dtype
            asked.append((dtype, scored, [term.teacher for term in parts.recipe.terms]))
            winograds.append(parts.recipe.teacher.engine.winograd)
            found = "bfloat16" if dtype == "auto" else dtype
            return SimpleNamespace(report=SimpleNamespace(dtype=found, winograd=3 * (found == "float32")))

        monkeypatch.setattr(study_engine, "fast_teacher", make)
        opened = Opened(parts, torch.nn.Identity(), "these weights")
        methods = [
            Method("none"),
            Method("one", "logits", parts.recipe.terms[:1]),
            Method("all", "-", parts.recipe.terms),
        ]
        found = study_engine.settle(opened, parts.recipe, methods, None)
        assert asked == [("auto", True, ["output", "2"])]
        for method in methods[1:]:
            for seed in (0, 1):
                own = method.recipe(found.base, seed)
                assert own.teacher is not None
                assert (own.teacher.engine.dtype, own.teacher.engine.winograd) == ("bfloat16", False)
        assert found.planned == PlannedTeacher(dtype="bfloat16", winograd=False, sha256="these weights")

        plan = StudyPlan(
            budget="steps",
            jobs=1,
            threads=1,
            methods=[],
            teacher=PlannedTeacher(dtype="float32", sha256="these weights"),
        )
        assert study_engine.settle(opened, parts.recipe, methods, plan).planned.dtype == "float32"
        other = Opened(parts, torch.nn.Identity(), "other weights")
        assert study_engine.settle(other, parts.recipe, methods, plan).planned.dtype == "bfloat16"
        assert [dtype for dtype, _, _ in asked] == ["auto", "float32", "auto"]

        # the plan of a study that began before there was such a form: its runs' recipes say nothing of it
        old = study_engine.settle(opened, parts.recipe, methods, plan)
        assert old.base.teacher is not None
        assert (old.planned.winograd, old.base.teacher.engine.winograd) == (None, "auto")
        kept = plan.model_copy(update={"teacher": plan.teacher.model_copy(update={"winograd": True})})
        again = study_engine.settle(opened, parts.recipe, methods, kept)
        assert again.base.teacher is not None
        assert (again.planned.winograd, again.base.teacher.engine.winograd) == (True, True)
        assert winograds == ["auto", "auto", "auto", "auto", True]


class _StopAtOnce(Quiet):
    def step(self, taken: int, steps: int, result: object) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_place(tmp_path_factory.mktemp("data"))
    train(recipe(root, student={"model": f"{root}/nets.py:teacher"}), out=root / "teacher", train__steps=20)
    return root


@pytest.mark.slow
class TestRuns:
    def test_measured_recorded_printed_and_kept(self, place: Path, tmp_path: Path) -> None:
        asked = distillation(place, place / "teacher")
        asked["teacher"]["engine"] = {"dtype": "auto"}
        shown: list[dict[str, str]] = []

        class Listening(_StopAtOnce):
            def ready(self, readiness: Any) -> None:
                shown.extend(readiness.rows())

        with pytest.raises(KeyboardInterrupt):
            distill(asked, out=tmp_path / "run", progress=Listening())
        path = tmp_path / "run" / "record.json"
        engine = json.loads(path.read_text())["teacher"]["engine"]
        assert engine["folded"] == 1
        assert engine["held_out"] == 4
        assert set(engine["errors"]) == {"output", "2"}
        assert max(error["softened"] for error in engine["errors"].values()) <= 0.01
        told = {row["what"]: row["value"] for row in shown}
        assert told["teacher made fast"].startswith(engine["dtype"])
        assert "softened" in told["teacher made fast: error of output"]

        other = {"float32": "bfloat16", "bfloat16": "float32"}[engine["dtype"]]
        record = json.loads(path.read_text())
        record["teacher"]["engine"]["dtype"] = other
        path.write_text(json.dumps(record))
        distill(asked, out=tmp_path / "run", resume=True)
        found = Run.load(tmp_path / "run").record.teacher
        assert found is not None
        assert found.engine is not None
        assert found.engine["dtype"] == other
        assert found.sha256 == record["teacher"]["sha256"]

    def test_what_cannot_be_had_names_the_key(self, place: Path, tmp_path: Path) -> None:
        asked = distillation(place, place / "teacher")
        asked["teacher"]["engine"] = {"device": "cuda:63"}
        with pytest.raises(ArgumentError, match=r"teacher\.engine: device: 'cuda:63' cannot be used here"):
            distill(asked, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()
