"""Labels become terms; runs of a study differ in their terms alone; every run is told from every other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import densekd
from densekd.config import load_recipe
from densekd.errors import CheckpointError, ConfigError, RunError
from densekd.losses.catalog import METHODS
from densekd.models.digest import weights_digest
from densekd.records import PlannedMethod, StudyPlan, read_run_name, run_name
from densekd.runs.asked_teacher import require_teacher
from densekd.runs.assemble import assemble, build_distiller, build_teacher
from densekd.runs.execute import resolve
from densekd.runs.folder import start_folder
from densekd.runs.forecast import training_batch
from densekd.runs.progress import Quiet
from densekd.study import check_seeds, prepare, resolve_methods
from densekd.study.calibration import _Enough, _Timing, median_of, steps_for, warm_up_of
from densekd.study.check import lengths_of
from densekd.study.comparison import _Ready
from densekd.study.machine import share_out
from densekd.study.methods import ALONE, where_of
from densekd.study.plan import current, plan_by_steps, planned_steps, read_plan, told, write_plan
from densekd.study.pool import Job, Outcome
from densekd.study.tasks import comparable, digest_of, left_aside, plan_tasks, require_same
from densekd.training.specs import TermSpec
from densekd.training.stepper import StepResult
from studykit import TEACHER, Keeping, comparable_recipe, place_with_teacher


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_with_teacher(tmp_path_factory.mktemp("data"))


@pytest.fixture
def base(place):
    return load_recipe(comparable_recipe(place))


def terms(method):
    return [(t.method, t.student, t.teacher, t.weight, t.options) for t in method.terms]


class TestLabels:
    def test_a_plain_name_is_one_term_on_the_logits_with_its_own_weight(self, base):
        (_, found), _ = resolve_methods(base, ["none", "pixelwise"])
        assert terms(found) == [("pixelwise", "logits", "logits", METHODS["pixelwise"].default_weight, {})]
        assert found.where == "logits"

    def test_a_plain_name_stands_for_the_recipes_own_terms_of_that_method(self, place):
        raw = comparable_recipe(place)
        raw["terms"] = [
            {"method": "channelwise", "weight": 7.0, "options": {"temperature": 2.0}},
            {"method": "pixelwise"},
            {"method": "channelwise", "student": "2", "teacher": "2", "weight": 40.0},
        ]
        (_, found), _ = resolve_methods(load_recipe(raw), ["channelwise"])
        assert terms(found) == [
            ("channelwise", "logits", "logits", 7.0, {"temperature": 2.0}),
            ("channelwise", "2", "2", 40.0, {}),
        ]
        assert found.where == "logits+features"

    @pytest.mark.parametrize(
        ("label", "taps"),
        [
            ("channelwise@features", [("2", "2")]),
            ("channelwise@logits", [("logits", "logits")]),
            ("channelwise@logits+features", [("logits", "logits"), ("2", "2")]),
        ],
    )
    def test_places(self, base, label, taps):
        (_, found), _ = resolve_methods(base, [label])
        assert [(t.student, t.teacher) for t in found.terms] == taps
        assert {t.weight for t in found.terms} == {3.0}
        assert (found.name, found.where) == (label, label.partition("@")[2])

    def test_a_label_of_the_recipe(self, base):
        (_, found), _ = resolve_methods(base, ["both"])
        assert [t.method for t in found.terms] == ["channelwise", "pixelwise"]
        assert found.where == "logits"
        told_otherwise = load_recipe(base.model_dump(mode="json"), {"compare.methods.both.where": "features"})
        assert resolve_methods(told_otherwise, ["both"])[0][1].where == "features"

    def test_a_label_of_the_recipe_comes_before_a_method_of_that_name(self, base):
        changed = load_recipe(base.model_dump(mode="json"), {"compare.methods": {"pixelwise": {"terms": [{}]}}})
        assert terms(resolve_methods(changed, ["pixelwise"])[0][1])[0][0] == "channelwise"

    def test_none_is_always_there_and_first(self, base):
        found, lines = resolve_methods(base, ["channelwise"])
        assert [method.name for method in found] == ["none", "channelwise"]
        assert lines == ["methods: 'none', the student alone, is added: gains are against it"]
        found, lines = resolve_methods(base, ["channelwise", " none "])
        assert [method.name for method in found] == ["none", "channelwise"]
        assert lines == []

    def test_without_labels(self, base):
        assert [method.name for method in resolve_methods(base)[0]] == ["none", "both"]
        plain = base.model_copy(update={"compare": type(base.compare)()})
        assert [method.name for method in resolve_methods(plain)[0]] == ["none", "channelwise"]

    @pytest.mark.parametrize(
        ("labels", "words"),
        [
            (["chanelwise"], r"unknown method 'chanelwise'; did you mean 'channelwise'"),
            (["bothh"], r"unknown method 'bothh'; did you mean 'both'"),
            (["channelwise@featurs"], r"'channelwise@featurs': no such place; did you mean 'features'"),
            (["both@features"], r"unknown method 'both@features'"),
            (["pixelwise", "pixelwise"], r"'pixelwise' is given twice"),
            (["none"], r"at least one method beside 'none'"),
            ([""], r"^--methods: a label is empty; expected labels with commas between"),
            (["", " "], r"^--methods: a label is empty"),
            ("channelwise", r"^--methods: expected a list of labels, got 'channelwise'$"),
            ([1], r"^--methods: expected a list of labels, got 1 among them$"),
            (7, r"^--methods: expected a list of labels, got 7$"),
        ],
    )
    def test_refusals(self, base, labels, words):
        with pytest.raises(ConfigError, match=words):
            resolve_methods(base, labels)

    @pytest.mark.parametrize(
        ("term", "words"),
        [
            ({"weight": 0}, r"^recipe: {key}\.1\.weight: a term of weight 0 does nothing"),
            (
                {"method": "pixelwize"},
                r"^recipe: {key}\.1\.method: unknown method 'pixelwize'; did you mean 'pixelwise'",
            ),
        ],
    )
    def test_a_term_that_cannot_be_is_told_by_its_key(self, base, term, words):
        raw = base.model_dump(mode="json")
        named = load_recipe(raw, {"compare.methods": {"a": {"terms": [{}, term]}}})
        with pytest.raises(ConfigError, match=words.format(key=r"compare\.methods\.a\.terms")):
            resolve_methods(named, ["a"])
        plain = load_recipe(raw, {"compare.methods": {}, "terms": [{"method": "pixelwise"}, term]})
        with pytest.raises(ConfigError, match=words.format(key="terms")):
            resolve_methods(plain)

    def test_the_recipes_own_term_of_a_label_is_told_by_its_place(self, base):
        terms = [{"method": "pixelwise"}, {"weight": 0}]
        mixed = load_recipe(base.model_dump(mode="json"), {"compare.methods": {}, "terms": terms})
        assert [method.name for method in resolve_methods(mixed, ["pixelwise"])[0]] == ["none", "pixelwise"]
        with pytest.raises(ConfigError, match=r"^recipe: terms\.1\.weight: a term of weight 0 does nothing"):
            resolve_methods(mixed, ["channelwise"])

    def test_features_that_nobody_named(self, base):
        plain = base.model_copy(update={"compare": type(base.compare)()})
        with pytest.raises(ConfigError, match=r"which features\? give compare\.features\.student=MODULE"):
            resolve_methods(plain, ["pixelwise@features"])

    def test_where(self):
        mixed = TermSpec(student="logits", teacher="layer4")
        assert where_of([TermSpec(), TermSpec(student="output")]) == "logits"
        assert where_of([mixed]) == "features"
        assert where_of([mixed, TermSpec()]) == "logits+features"

    @pytest.mark.parametrize("seeds", [[], [1, 1], [-1], [0.5], [True], ["0"]])
    def test_seeds(self, seeds):
        with pytest.raises(ConfigError, match="expected different numbers, whole and none below 0"):
            check_seeds(seeds)
        for single in (3, "012"):
            with pytest.raises(
                ConfigError, match=f"^--seeds: expected a list of different whole numbers, got {single!r}"
            ):
                check_seeds(single)
        assert check_seeds((2, 0)) == [2, 0]


class TestPreparation:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"progress": 3}, r"^progress: expected a densekd\.study\.Silent or one of its subclasses, got 3"),
            ({"out": 3}, r"^--out: expected the path of a folder, got 3"),
            ({"force": "no"}, r"^--force: expected True or False, got 'no'"),
            ({"budget": None}, r"^--budget None: unknown; expected steps or seconds"),
            ({"methods": "channelwise"}, r"^--methods: expected a list of labels"),
            ({"jobs": "2"}, r"^--jobs 2: expected 1 or more runs at a time, a whole number"),
        ],
    )
    def test_wrong_types(self, base, tmp_path, options, words):
        with pytest.raises(ConfigError, match=words):
            prepare(base, **{"methods": ["channelwise"], "seeds": [0], "out": tmp_path / "s", **options})

    def test_a_label_too_long_for_a_folder(self, base, tmp_path):
        def changed(label):
            spec = {label: {"terms": [{"method": "channelwise"}]}}
            return load_recipe(base.model_dump(mode="json"), {"compare.methods": spec})

        longest = "a" * 197
        assert prepare(changed(longest), methods=[longest], seeds=[0], out=tmp_path / "s").methods[1].name == longest
        for label, size in (("a" * 198, 201), ("\u00e4" * 100, 203)):
            with pytest.raises(ConfigError, match=f"^label '.*would have a name of {size} bytes; 200 at most"):
                prepare(changed(label), methods=[label], seeds=[0], out=tmp_path / "s")

    @pytest.mark.parametrize("key", ["checkpoint", "encoder_checkpoint"])
    def test_weights_of_the_teacher_that_are_not_there_are_told_first(self, base, tmp_path, key):
        changes = {"teacher.checkpoint": None, "teacher.untrained": True, f"teacher.{key}": "runs/nobody"}
        wrong = load_recipe(base.model_dump(mode="json"), changes)
        with pytest.raises(CheckpointError, match=rf"^teacher\.{key}: checkpoint .*nobody: no such file"):
            prepare(wrong, methods=["channelwise"], seeds=[0], out=tmp_path / "s")

    def test_the_example_on_the_page_has_a_teacher(self, monkeypatch):
        page = Path(__file__).resolve().parent.parent / "docs" / "compare.md"
        (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

        class CheckedError(Exception):
            pass

        def compare(recipe, *, methods, seeds, jobs, **overrides):
            found = resolve(recipe, None, overrides)
            require_teacher(resolve_methods(found, methods)[0][1].recipe(found, seeds[0]))
            raise CheckedError

        monkeypatch.setattr(densekd, "compare", compare)
        with pytest.raises(CheckedError):
            exec(code, {})


class TestThePartOfTheRecipe:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"compare.method": 1}, r"unknown key 'compare\.method'; did you mean 'methods'"),
            (
                {"compare.methods": {"a": {"term": []}}},
                r"methods\.a\.term'; did you mean 'terms'",
            ),
            (
                {"compare.methods": {"a": {"terms": [{"wieght": 1}]}}},
                r"terms\.0\.wieght'; did you mean 'weight'",
            ),
            ({"compare.methods": {"a": {"terms": []}}}, r"compare\.methods\.a\.terms: expected one term or more"),
            (
                {"compare.methods": {"none": {"terms": [{}]}}},
                r"the label 'none' is the student alone",
            ),
            ({"compare.methods": {"a/b": {"terms": [{}]}}}, r"compare\.methods\.a/b: string should match"),
            ({"compare.methods.both.where": "here"}, r"compare\.methods\.both\.where: input should be 'logits'"),
            ({"compare.features": {"student": "a"}}, r"key 'compare\.features\.teacher' is missing"),
        ],
    )
    def test_mistakes_name_their_key(self, base, changes, words):
        with pytest.raises(ConfigError, match=words):
            load_recipe(base.model_dump(mode="json"), changes)


class TestTheSameForAll:
    def test_initial_weights_first_batch_and_schedule_by_digest(self, base):
        methods, _ = resolve_methods(base, ["channelwise", "pixelwise", "channelwise@features", "both"])
        for seed in (0, 1):
            found = set()
            for method in methods:
                parts = assemble(method.recipe(base, seed))
                batch, _ = training_batch(parts)
                if method.terms:
                    build_distiller(parts, build_teacher(parts)).close()
                first = weights_digest(torch.nn.ParameterList([batch["image"]]))
                labels = batch["label"].flatten().tolist()
                found.add((weights_digest(parts.student), first, str(labels), parts.recipe.train.model_dump_json()))
            assert len(found) == 1
        assert weights_digest(assemble(methods[0].recipe(base, 0)).student) not in {one[0] for one in found}

    def test_recipes_differ_in_terms_name_and_for_none_the_teacher(self, base):
        methods, _ = resolve_methods(base, ["channelwise", "both"])
        none, cwd, both = (method.recipe(base, 3).model_dump(mode="json") for method in methods)
        assert {key for key in cwd if cwd[key] != both[key]} == {"name", "terms"}
        assert {key for key in cwd if cwd[key] != none[key]} == {"name", "terms", "teacher"}
        assert none["teacher"] is None
        assert (cwd["seed"], cwd["name"], cwd["compare"]["methods"]) == (3, "channelwise-s3", {})

    def test_a_length_of_its_own(self, base):
        method = resolve_methods(base, ["channelwise@features"])[0][1]
        found = method.recipe(base, 0, steps=17, threads=1)
        assert (found.train.steps, found.runtime.threads, found.name) == (17, 1, "channelwise@features-s0")


class TestTasks:
    def tasks(self, base, folder, labels=("channelwise",), seeds=(0, 1), teacher="t", threads=None):
        methods, _ = resolve_methods(base, list(labels))
        steps = {method.name: None for method in methods}
        return plan_tasks(base, methods, list(seeds), folder, steps=steps, threads=threads, teacher=teacher)

    def test_names_and_order(self, base, tmp_path):
        found = self.tasks(base, tmp_path)
        assert [task.name for task in found] == ["none-s0", "channelwise-s0", "none-s1", "channelwise-s1"]
        assert {task.action for task in found} == {"start"}

    @given(st.text(min_size=1, max_size=9), st.integers(0, 10**6))
    def test_a_runs_name_is_read_as_it_was_made(self, method, seed):
        assert read_run_name(run_name(method, seed)) == (method, seed)

    def test_what_is_no_runs_name(self):
        assert run_name("channelwise", 0) == "channelwise-s0"
        assert read_run_name("a-s1-s2") == ("a-s1", 2)
        for other in ("teacher", "-s0", "a-s", "a-s-1", "a-s01", "a-s1b", "a-s\u0661", "a-s1\n"):
            assert read_run_name(other) is None, other

    def test_threads_and_other_labels_are_no_change(self, base, tmp_path):
        for task in self.tasks(base, tmp_path, threads=2):
            start_folder(task.path, task.recipe)
        other = load_recipe(base.model_dump(mode="json"), {"compare.methods": {}, "name": "renamed"})
        found = self.tasks(other, tmp_path, threads=1)
        assert {task.action for task in found} == {"resume"}
        assert {task.recipe.runtime.threads for task in found} == {2}  # a run goes on as it began
        assert require_same(found, force=False) == []

    def test_a_change_is_named_and_forced_only_where_it_is(self, base, tmp_path):
        for task in self.tasks(base, tmp_path):
            start_folder(task.path, task.recipe)
        other = load_recipe(base.model_dump(mode="json"), {"terms.0.weight": 9.0})
        found = self.tasks(other, tmp_path)
        assert [task.action for task in found] == ["resume", "again", "resume", "again"]
        words = r"channelwise-s0 \(terms\.0\.weight: 3\.0 -> 9\.0\); channelwise-s1 .*Use --force to start these again"
        with pytest.raises(RunError, match=words):
            require_same(found, force=False)
        assert require_same(found, force=True)[0] == "channelwise-s0: started again (terms.0.weight: 3.0 -> 9.0)"

    def test_runs_that_are_not_asked_for_are_told(self, base, tmp_path):
        every = self.tasks(base, tmp_path, labels=["channelwise", "pixelwise"], seeds=(0, 1))
        for task in every:
            start_folder(task.path, task.recipe)
        start_folder(tmp_path / "teacher", every[0].recipe)  # as in a demo's folder
        start_folder(tmp_path / "my-student", every[0].recipe)
        assert left_aside(every, tmp_path) == []
        found = left_aside(self.tasks(base, tmp_path, seeds=(0,)), tmp_path)
        assert found == [
            "runs of other labels or seeds in the folder are left as they are and not counted here: channelwise-s1, "
            "none-s1, pixelwise-s0 and 1 more"
        ]
        comparison = prepare(base, methods=["channelwise"], seeds=[0], out=tmp_path)
        asked = self.tasks(base, tmp_path, seeds=(0,))
        ended = {task.name: Outcome(Job(task.name, {}, tmp_path / "x"), "failed", "why") for task in asked}
        assert comparison._summed_up(_Ready(TEACHER, None, None, asked), ended, "").record.notices == found

    def test_a_damaged_recipe_is_a_change(self, base, tmp_path):
        (tmp_path / "none-s0").mkdir()
        (tmp_path / "none-s0" / "recipe.yaml").write_text("data: [")
        found = self.tasks(base, tmp_path)
        assert found[0].action == "again"
        assert "its recipe cannot be read" in found[0].differs[0]

    @pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1}', "\udcff"])
    def test_a_damaged_record_is_started_again_when_forced_and_the_error_says_so(self, base, tmp_path, content):
        for task in self.tasks(base, tmp_path):
            start_folder(task.path, task.recipe)
        (tmp_path / "none-s0" / "record.json").write_text(content, errors="surrogateescape")
        found = self.tasks(base, tmp_path)
        assert [task.action for task in found] == ["again", "resume", "resume", "resume"]
        with pytest.raises(
            RunError, match=r"none-s0 \(its record cannot be read: .*record\.json: not .*Use --force to"
        ):
            require_same(found, force=False)
        assert require_same(found, force=True)[0].startswith("none-s0: started again (its record cannot be read")

    def test_what_is_no_run_is_left_alone(self, base, tmp_path):
        (tmp_path / "none-s0").mkdir()
        (tmp_path / "none-s0" / "thesis.tex").write_text("x")
        with pytest.raises(RunError, match=r"holds files and no recipe\.yaml, so it is no run \(thesis\.tex\)"):
            self.tasks(base, tmp_path)

    def test_the_output_of_a_run_that_failed_before_it_began_is_no_obstacle(self, base, tmp_path):
        (tmp_path / "none-s0").mkdir()
        (tmp_path / "none-s0" / "output.txt").write_text("x")
        assert self.tasks(base, tmp_path)[0].action == "start"

    def test_digests(self, base):
        method = resolve_methods(base, ["channelwise"])[0][1]
        assert digest_of(method.recipe(base, 0)) == digest_of(method.recipe(base, 1, threads=1))
        assert digest_of(method.recipe(base, 0)) != digest_of(method.recipe(base, 0, steps=5))
        assert comparable(method.recipe(base, 1)).seed == 1


class TestPlan:
    def test_steps(self, base, tmp_path):
        methods, _ = resolve_methods(base, ["channelwise", "both"])
        share = share_out(2, cores=4, gpus=0)
        plan = plan_by_steps(None, base, methods, {m.name: 6 for m in methods}, share)
        write_plan(tmp_path, plan)
        assert read_plan(tmp_path) == plan
        assert (plan.budget, plan.jobs, plan.threads) == ("steps", 2, 2)
        assert planned_steps(plan, methods) == {"none": None, "channelwise": None, "both": None}
        # Another set of methods keeps what was planned for the others.
        fewer = plan_by_steps(plan, base, methods[:2], {m.name: 6 for m in methods}, share)
        assert {entry.name for entry in fewer.methods} == {"none", "channelwise", "both"}
        assert told(plan, methods) == []

    def seconds(self, base, methods):
        entries = [
            PlannedMethod(
                name=m.name,
                steps=6 if m is ALONE else 3,
                seconds_per_step=1.0 if m is ALONE else 2.0,
                reference_seconds_per_step=1.0,
                samples=4,
                recipe_sha256=digest_of(m.recipe(base, 0)),
            )
            for m in methods
        ]
        return StudyPlan(budget="seconds", seconds=6.0, jobs=1, threads=None, methods=entries)

    def test_a_plan_by_seconds_sets_the_steps_of_all_but_the_student_alone(self, base):
        methods, _ = resolve_methods(base, ["channelwise"])
        plan = self.seconds(base, methods)
        assert planned_steps(plan, methods) == {"none": None, "channelwise": 3}
        assert told(plan, methods) == [
            "budget: 6.0 s of training for each method, as long as the student alone takes for its 6 steps",
            "budget: channelwise: 3 steps, each 2.00 times one of the student alone",
        ]

    def test_images_kept_in_memory_are_read_before_anything_is_timed(self, base):
        """Three steps; where images are kept, those of one pass more: over the labelled or over the others."""

        def steps(**changes):
            return warm_up_of(load_recipe(base.model_dump(mode="json"), changes), 21, 30)

        batch = {"train.batch_size": 4, "train.accumulate": 2}
        ratio = {"data.unlabelled": {"root": ".", "ratio": 0.2}}  # one beside four, two a step
        assert warm_up_of(base, 21, 30) == 3
        assert steps(**batch) == 3
        assert steps(**batch, **{"data.in_memory": True}) == 3 + 3
        assert steps(**batch, **{"data.in_memory": True}, **ratio) == 3 + 15

    def test_steps_of_the_warm_up_are_not_timed(self):
        timing = _Timing(Quiet(), warm_up=4)
        results = [StepResult(1.0, {}, None, 0.1, float(taken), 0.0, False) for taken in range(1, 10)]
        for taken, result in enumerate(results[:-1], 1):
            timing.step(taken, 99, result)
        with pytest.raises(_Enough):
            timing.step(9, 99, results[-1])
        assert timing.seconds == [5.0, 6.0, 7.0, 8.0, 9.0]  # at least five, and fifteen seconds of them

    def test_a_length_below_the_warm_up_is_refused(self, base):
        slow = load_recipe(base.model_dump(mode="json"), {"train.schedule.warmup_steps": 4})
        methods, _ = resolve_methods(slow, ["pixelwise"])
        recipes = [(method, method.recipe(slow, 0, steps=steps)) for method, steps in zip(methods, (6, 4), strict=True)]
        assert lengths_of(recipes[:1], images=10) == {"none": 6}
        with pytest.raises(ConfigError, match=r"method 'pixelwise': train\.schedule\.warmup_steps: 4 of 4 steps"):
            lengths_of(recipes, images=10)

    def test_entries_hold_as_long_as_the_recipe_does(self, base):
        methods, _ = resolve_methods(base, ["channelwise", "both"])
        plan = self.seconds(base, methods)
        assert set(current(plan, base, methods)) == {"none", "channelwise", "both"}
        weight = load_recipe(base.model_dump(mode="json"), {"terms.0.weight": 9.0})
        changed, _ = resolve_methods(weight, ["channelwise", "both"])
        assert set(current(plan, weight, changed)) == {"none", "both"}
        batch = load_recipe(base.model_dump(mode="json"), {"train.batch_size": 2})
        assert current(plan, batch, resolve_methods(batch, ["channelwise", "both"])[0]) == {}
        assert current(None, base, methods) == {}

    def test_a_damaged_plan(self, tmp_path):
        (tmp_path / "plan.json").write_text('{"schema": 1}')
        with pytest.raises(RunError, match=r"plan\.json: not a plan of schema 1: budget: Field required"):
            read_plan(tmp_path)
        (tmp_path / "plan.json").write_text("{")
        with pytest.raises(RunError, match=r"plan\.json: not readable as JSON .*; remove it to plan anew"):
            read_plan(tmp_path)

    def test_arithmetic(self):
        assert steps_for(100, 0.5, 1.25) == 40
        assert steps_for(3, 0.001, 100.0) == 1
        assert median_of([[1.0, 5.0], [2.0]]) == (2.0, 3)


class TestShares:
    def test_one_at_a_time_is_left_to_the_recipe(self):
        found = share_out(1, cores=8, gpus=0, environment={})
        assert (found.threads, found.places, found.told) == (None, ({},), ())

    @pytest.mark.parametrize(("jobs", "cores", "asked", "threads"), [(2, 8, None, 4), (3, 8, None, 2), (2, 8, 1, 1)])
    def test_threads(self, jobs, cores, asked, threads):
        found = share_out(jobs, cores=cores, gpus=0, asked_threads=asked, environment={})
        assert found.threads == threads
        assert found.places == ({"OMP_NUM_THREADS": str(threads)},) * jobs

    def test_more_runs_than_cpus(self):
        found = share_out(3, cores=2, gpus=0, environment={})
        assert found.threads == 1
        assert found.told == ("--jobs 3: more runs at a time than the 2 CPUs here; each gets one thread",)

    def test_a_gpu_each(self):
        found = share_out(3, cores=16, gpus=2, environment={})
        assert [place["CUDA_VISIBLE_DEVICES"] for place in found.places] == ["0", "1", "0"]
        assert found.told == ("--jobs 3: more runs at a time than the 2 GPUs here; they share them",)
        found = share_out(2, cores=16, gpus=2, environment={"CUDA_VISIBLE_DEVICES": "5, GPU-abc"})
        assert [place["CUDA_VISIBLE_DEVICES"] for place in found.places] == ["5", "GPU-abc"]
        found = share_out(2, cores=16, gpus=1, environment={})
        assert all("CUDA_VISIBLE_DEVICES" not in place for place in found.places)

    def test_no_run_at_a_time(self):
        with pytest.raises(ConfigError, match="--jobs 0: expected 1 or more"):
            share_out(0, cores=8, gpus=0)

    @pytest.mark.parametrize("jobs", [1.5, "2", True, None])
    def test_no_number_of_runs_at_a_time(self, jobs):
        with pytest.raises(ConfigError, match=f"--jobs {jobs}: expected 1 or more runs at a time, a whole number"):
            share_out(jobs, cores=8, gpus=0)

    def test_never_more_at_a_time_than_runs(self):
        found = share_out(4, cores=8, gpus=0, runs=2, environment={})
        assert (found.threads, len(found.places)) == (4, 2)
        assert found.told == ("--jobs 4: there are 2 runs: 2 at a time",)

    def test_a_study_has_no_more_places_than_runs(self, base, tmp_path):
        watch = Keeping()
        found = prepare(base, methods=["pixelwise"], seeds=[0], jobs=3, out=tmp_path / "s", progress=watch)
        assert len(found.share.places) == 2
        assert "--jobs 3: there are 2 runs: 2 at a time" in watch.lines

    @pytest.mark.parametrize(("cores", "gpus", "most"), [(2, 0, 8), (2, 4, 16)])
    def test_an_absurd_number_at_a_time_is_bounded(self, cores, gpus, most):
        found = share_out(most + 1, cores=cores, gpus=gpus, runs=100, environment={})
        assert len(found.places) == most
        assert found.told[0] == f"--jobs {most + 1}: no more than 4 for each CPU or GPU here: {most} at a time"
