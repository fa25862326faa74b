"""Sweeps of weight and temperature: what is tried, that the validation set stays shut, what is chosen and written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from densekd.cli.app import call
from densekd.config import Recipe, load_recipe
from densekd.errors import ConfigError
from densekd.runs import train
from densekd.study import Method, Study
from densekd.study.methods import ALONE
from densekd.study.record import study_record
from densekd.training.specs import TermSpec
from densekd.tuning import Tuned, candidates, sweep, tune
from runkit import distillation, make_place, recipe
from studykit import TEACHER, record

CWD = Method("channelwise", "logits", (TermSpec(method="channelwise", weight=3.0, options={"divergence": "mse"}),))
BOTH = Method("both", "logits", (TermSpec(method="channelwise", weight=3.0), TermSpec(method="feature", weight=0.5)))


def test_every_factor_meets_every_temperature() -> None:
    found = candidates(CWD, (0.1, 3.0), (1.0, 4.0))
    assert [c.label for c in found] == [
        "channelwise-w0.1-t1",
        "channelwise-w3-t1",
        "channelwise-w0.1-t4",
        "channelwise-w3-t4",
    ]
    assert [c.terms[0].weight for c in found] == [0.3, 9.0, 0.3, 9.0]
    assert found[0].terms[0].options == {"divergence": "mse", "temperature": 1.0}
    assert {c.method for c in found} == {"channelwise"}


def test_all_terms_of_a_method_move_together_and_those_without_temperature_keep_their_options() -> None:
    (found,) = candidates(BOTH, (2.0,), (1.5,))
    assert [term.weight for term in found.terms] == [6.0, 1.0]
    assert [term.options for term in found.terms] == [{"temperature": 1.5}, {}]
    (cold,) = candidates(Method("feature", "logits", BOTH.terms[1:]), (2.0,), (1.5,))
    assert (cold.label, cold.temperature) == ("feature-w2", None)


@pytest.mark.parametrize(
    "factors", [(), (0.0,), (1.0, 1.0), (1.0, 1.0000001), (float("nan"),), (-1.0, 2.0), ("a",), ("4",), (True,)]
)
def test_bad_factors_are_refused(factors: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"--factors .*expected different positive numbers"):
        candidates(CWD, factors, ())


@pytest.mark.parametrize("single", [1, "1", None])
def test_single_values_are_no_factors_and_no_temperatures(single: Any) -> None:
    with pytest.raises(ConfigError, match=r"--factors: expected a list of different positive numbers, got"):
        candidates(CWD, single, ())
    with pytest.raises(ConfigError, match=r"--temperatures: expected a list of different positive numbers, got"):
        candidates(CWD, (1.0,), single)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group": "["}, r"^--group: '\[' is not a regular expression: unterminated character set"),
        ({"group": 3}, r"^--group: expected a regular expression, got 3"),
        ({"steps": "3"}, r"^--steps 3: expected 1 or more, a whole number"),
        ({"fraction": "a"}, r"^--holdout 'a': expected a share of the training images"),
        ({"temperatures": ["4"]}, r"^--temperatures 4: expected different positive numbers"),
        ({"methods": "channelwise"}, r"^--methods: expected a list of labels, got 'channelwise'"),
        ({"progress": 3}, r"^progress: expected a densekd\.study\.Silent"),
    ],
)
def test_mistakes_in_a_python_call_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tune("demo", **{"teacher.untrained": True, **options})


def test_the_chosen_settings_are_marked_in_the_table() -> None:
    tried = candidates(CWD, (0.1, 3.0), ())
    methods = [ALONE, *(Method(candidate.label, "logits", candidate.terms) for candidate in tried)]
    runs = {method.name: {0: record(0.5)} for method in methods}
    found = study_record("s", methods, runs, {}, data={}, teacher=TEACHER, plan=None, command="")
    tuned = Tuned(Study(Path(), found, {}), {"channelwise": tried[1]}, Path("tuned.yaml"), [])
    assert [row["chosen"] for row in tuned.rows()] == ["", "", "", "yes"]


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ({"group": r"\d", "fraction": 0.3, "seed": 4}, {}, (r"\d", 0.3, 4)),
        ({"group": r"\d", "fraction": 0.3, "seed": 4}, {"fraction": 0.5}, (r"\d", 0.5, 4)),
        ({"group": r"\d", "fraction": 0.3, "seed": 4}, {"group": "."}, (".", 0.3, 4)),
        (None, {"group": "."}, (".", 0.2, 0)),
    ],
)
def test_what_is_held_out_is_as_the_recipe_says_but_for_what_was_asked(
    own: dict[str, Any] | None, asked: dict[str, Any], expected: tuple[Any, ...], monkeypatch: Any, tmp_path: Path
) -> None:
    class SeenError(Exception):
        pass

    def seen(base: Recipe, **_: Any) -> None:
        held = base.data.holdout
        assert held is not None
        raise SeenError(held.group, held.fraction, held.seed)

    monkeypatch.setattr(sweep, "prepare", seen)
    with pytest.raises(SeenError) as found:
        tune(distillation(tmp_path, tmp_path / "teacher"), data__holdout=own, **asked)
    assert found.value.args == expected


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_place(tmp_path_factory.mktemp("tuning"))
    train(recipe(root, student={"model": f"{root}/nets.py:teacher"}), out=root / "teacher")
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"nobody may read this")
    return root


@pytest.mark.slow
def test_a_sweep_never_reads_the_validation_set_and_writes_the_best(place: Path) -> None:
    base = distillation(place, place / "teacher")
    with pytest.raises(ConfigError, match=r"--group is missing: a regular expression that finds a file's group"):
        tune(base, out=place / "none")
    tuned = tune(
        base, methods=["channelwise"], factors=(0.1, 100.0), steps=3, group=r"\d", fraction=0.3, out=place / "sweep"
    )
    tried = ["student + channelwise-w0.1", "student + channelwise-w100"]
    assert [row["method"] for row in tuned.rows()][1:] == ["student alone", *tried]
    lines = {line.name: line for line in tuned.study.record.methods}
    best = tuned.chosen["channelwise"]
    assert [row["method"] for row in tuned.rows() if row["chosen"] == "yes"] == [f"student + {best.label}"]
    means = {name: line.final.mean for name, line in lines.items() if line.final is not None and name != "none"}
    assert means[best.label] == max(means.values())
    assert all(len(run.record.final.iou) == 3 for runs in tuned.study.runs.values() for run in runs.values())
    assert {run.record.final.images for runs in tuned.study.runs.values() for run in runs.values()} == {3}
    assert any(re.search("is the (smallest|largest) tried: widen --factors", line) for line in tuned.remarks)
    written = load_recipe(tuned.recipe)
    assert written.data.holdout is None
    assert written.train.steps == 6
    assert written.compare.methods["channelwise"].terms == best.terms == written.terms
    assert [term.weight for term in written.terms] == pytest.approx([3.0 * best.factor, 1.0 * best.factor])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--factors", "1,x"], "--factors '1,x': expected numbers with commas between"),
        (["--methods", "chanelwise"], "did you mean 'channelwise'"),
        (["--holdout", "2"], "--holdout 2: expected a share of the training images"),
        (["--group", "^a"], "--group: drawn scenes have no groups"),
        (["--group", "["], "--group: '[' is not a regular expression"),
        (["--factors", "1,1.0000001"], "--factors 1.0,1.0000001: expected different positive numbers"),
        (["--steps", "0"], "--steps 0: expected 1 or more"),
        (["--seeds", "0,0"], "--seeds 0,0: expected different numbers"),
    ],
)
def test_mistakes_on_the_command_line_are_named(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        call(["tune", "demo", "teacher.untrained=true", *words])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_with_stored_maps_runs_the_teacher_once(place: Path, tmp_path: Path) -> None:
    """One set of the training images that are left, for all settings; the recipe that is written asks for maps too."""
    base = distillation(place, place / "teacher")
    base["distill"] = {"cache": {"root": str(tmp_path / "cache"), "views": 1, "ask": False}}
    tuned = tune(
        base, methods=["channelwise"], factors=(1.0, 2.0), steps=2, group=r"\d", fraction=0.3, out=tmp_path / "sweep"
    )
    runs = [run for name, seeds in tuned.study.runs.items() if name != "none" for run in seeds.values()]
    read = [run.record.cache for run in runs]
    assert len(read) == 2
    assert all(cache is not None for cache in read)
    assert len({cache.sha256 for cache in read if cache is not None}) == 1
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1
    written = load_recipe(tuned.recipe)
    assert written.distill.cache is not None
    assert written.distill.cache.views == 1
