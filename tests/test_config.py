from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from densekd.config import (
    dump_recipe,
    load_recipe,
    override,
    parse_override,
    recipe_digest,
    recipe_schema,
    shipped_recipes,
)
from densekd.errors import ConfigError

RECIPE = {
    "name": "x",
    "data": {"name": "scenes", "train_count": 4, "val_count": 2},
    "student": {"model": "smp:PSPNet", "options": {"encoder_name": "resnet18"}},
    "teacher": {"model": "smp:PSPNet", "checkpoint": "runs/teacher"},
    "terms": [{"method": "channelwise", "options": {"temperature": 4.0}}],
    "train": {"steps": 10},
}
FOLDER = {**RECIPE, "data": {"name": "folder", "root": "data", "classes": ["a", "b"]}}


def refused(raw, match: str, **overrides) -> str:
    with pytest.raises(ConfigError, match=match) as caught:
        load_recipe(raw, overrides)
    return str(caught.value)


class TestMistakes:
    @pytest.mark.parametrize(
        ("key", "told"),
        [
            ("sed", "unknown key 'sed'; did you mean 'seed'"),
            ("train.batchsize", "unknown key 'train.batchsize'; did you mean 'batch_size'"),
            ("train.optimizer.lrr", "unknown key 'train.optimizer.lrr'; did you mean 'lr'"),
            ("terms.0.wieght", "unknown key 'terms.0.wieght'; did you mean 'weight'"),
            ("data.train_cout", "unknown key 'data.train_cout'; did you mean 'train_count'"),
            (
                "data.root",
                "unknown key 'data.root': it belongs to data.name=folder, cityscapes, voc, ade20k, camvid or "
                "cocostuff, and here data.name is scenes",
            ),
            ("data.augment.flipp", "unknown key 'data.augment.flipp'; did you mean 'flip'"),
            ("data.augment.jitter.hues", "unknown key 'data.augment.jitter.hues'; did you mean 'hue'"),
            ("teacher.checkpoint.strip", "unknown key 'teacher.checkpoint.strip'; did you mean 'strip_prefix'"),
            ("student.optionss", "unknown key 'student.optionss'; did you mean 'options'"),
        ],
    )
    def test_unknown_keys_come_with_the_nearest(self, key, told):
        assert refused(RECIPE, "unknown key", **{key: 1}).startswith(f"recipe: {told}")

    def test_a_rule_about_the_whole_of_data_names_no_kind_as_a_key(self):
        told = refused(FOLDER, "holdout", **{"data.holdout": {}})
        assert told.startswith("recipe: data: holdout.group is missing: give a regular expression")
        told = refused(RECIPE, "holdout", **{"data.holdout": {}, "data.train_count": 1})
        assert told == "recipe: data: holdout needs at least two training scenes (train_count)"

    def test_the_other_kind_of_data_offers_its_own_keys(self):
        told = refused(FOLDER, "unknown key 'data.train_count'", **{"data.train_count": 3})
        assert "train_count'?" not in told
        assert "did you mean 'class" in refused(FOLDER, "unknown", **{"data.clases": 1})

    @pytest.mark.parametrize(
        ("key", "value", "told"),
        [
            ("train.steps", "many", r"train\.steps: .*integer.*got 'many'"),
            ("train.steps", 0, r"train\.steps: .*greater than 0, got 0"),
            ("train.optimizer.lr", float("inf"), r"train\.optimizer\.lr: .*finite"),
            ("terms.0.weight", -1, r"terms\.0\.weight: .*, got -1"),
            ("terms.0.options.temperature", [4], r"terms\.0\.options\.temperature: .*got \[4\]"),
            ("train", 5, r"recipe: train: expected a mapping of keys to values, got 5"),
            ("teacher.checkpoint", 5, r"teacher\.checkpoint: expected a mapping"),
            ("data.name", "kitti", r"data: .*'kitti'.*'folder', 'cityscapes', .*'scenes'"),
            (
                "data.augment.std",
                [1, 0, 1],
                r"data\.augment\.std: expected three numbers above 0, got \[1\.0, 0\.0, 1\.0\]$",
            ),
            ("teacher.mean", [0, 0, 0], r"recipe: teacher: give `mean` and `std` together$"),
            ("train.epochs", 3, "recipe: train: give exactly one of `steps` and `epochs`, and null for the other$"),
            ("train.steps", None, "recipe: train: give exactly one of `steps` and `epochs`, and null for the other$"),
            ("name", "../x", r"recipe: name: .*got '\.\./x'"),
            ("name", "", "recipe: name: "),
            ("student.model", "PSPNet", r"student\.model: "),
            ("student.checkpoint", "~no-such-user/x", r"student\.checkpoint\.path: '~no-such-user/x' is no path"),
            ("terms.0.name", "step", r"terms\.0\.name: expected a name that no column of log\.csv has .*, got 'step'$"),
            ("terms.0.name", "dice", r"terms\.0\.name: .*, got 'dice'$"),
            ("terms.0.name", " ", r"terms\.0\.name: expected a name of printable characters.*, got ' '$"),
            ("train.schedule", {"name": "onecycle", "warmup_steps": 3}, "warmup_steps belongs to poly and constant"),
        ],
    )
    def test_values_name_their_key(self, key, value, told):
        assert "\n" not in refused(RECIPE, told, **{key: value})

    def test_missing_keys_and_several_mistakes(self):
        raw = copy.deepcopy(RECIPE)
        del raw["student"]
        lines = refused(raw, "missing", **{"train.stepz": 1, "seed": -1}).splitlines()
        assert len(lines) == 3
        assert "recipe: key 'student' is missing" in lines

    def test_yaml(self, tmp_path):
        path = tmp_path / "r.yaml"
        for text, told in (
            ("a: [", "not valid YAML"),
            ("- a", "expected a mapping of keys to values, got list"),
            ("", "got NoneType"),
            ("seed: 1\nseed: 2", "key 'seed' is given twice"),
            ("train: {steps: 1, steps: 2}", "key 'steps' is given twice"),
            ("x: " + "[\n" * 1200, "not valid YAML"),
        ):
            path.write_text(text)
            refused(path, rf"recipe .*r\.yaml: .*{told}")
        path.write_bytes(b"\xff\xfe\x00")
        refused(path, r"r\.yaml: ")
        refused("demoo", "no such file, and no shipped recipe of that name; did you mean 'demo'")
        refused(
            "demo/x", "no shipped recipe of that name; .*shipped: camvid, .*folder; `densekd list recipes` shows all"
        )
        refused(load_recipe("demo"), "expected a file, a shipped name or a mapping, got Recipe")
        refused(3, "expected a file, a shipped name or a mapping, got int")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("name: &a [*a]", r"recipe: name\.0\.0\.0\.\.\.: nested more than 50 levels deep; does an alias"),
            ("data: &a {name: *a}", r"recipe: data\.name\.name\.name\.\.\.: nested more than 50"),
            ("x: " + "[" * 60 + "]" * 60, r"recipe: x\.0\.0\.0\.\.\.: nested more than 50"),
            ("x: " + "[\n" * 5000 + "]" * 5000, "nested more than 50"),
            ("\n".join(f"{' ' * level}a:" for level in range(5000)), "nested more than 50"),
            (
                "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n"
                + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in pairwise("abcdefghij")),
                "more than 100000 values; do aliases",
            ),
        ],
    )
    def test_yaml_without_end(self, tmp_path, text, told):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        assert "\n" not in refused(path, told)

    def test_values_without_end_from_elsewhere(self):
        endless = {**RECIPE}
        endless["terms"] = [endless]
        refused(endless, r"recipe: terms\.0\.terms\.0\.\.\.: nested more than 50")
        refused(RECIPE, r"recipe: train\.0\.0\.0\.\.\.: nested more than 50", **dict([parse_override("train=&a [*a]")]))

    def test_merged_mappings(self, tmp_path):
        path = tmp_path / "r.yaml"
        body = yaml.safe_dump({key: value for key, value in RECIPE.items() if key != "train"})
        # The inner mapping is merged into the outer before YAML comes to it, with its repeated key.
        path.write_text(
            f"{body}"
            "train: &t\n  steps: 3\n  schedule: &s {<<: {name: constant, warmup_steps: 1}, warmup_steps: 2}\n"
            "  optimizer: {<<: &o {lr: 0.5}, name: adamw}\n"
        )
        recipe = load_recipe(path)
        assert (recipe.train.schedule.name, recipe.train.schedule.warmup_steps) == ("constant", 2)
        assert (recipe.train.optimizer.lr, recipe.train.optimizer.name) == (0.5, "adamw")
        path.write_text("a: {b: &b {<<: &c {x: 1}, x: 2}}\nd: {<<: *b, x: 3}\n")
        refused(path, "unknown key 'a'")
        path.write_text("a: {<<: {x: 1}, y: 1, y: 2}")
        refused(path, "key 'y' is given twice")

    def test_an_alias_is_a_copy(self, tmp_path):
        path = tmp_path / "r.yaml"
        network = "&n {model: 'smp:PSPNet', options: {encoder_name: resnet18}}"
        path.write_text(f"data: {{name: scenes}}\nstudent: {network}\nteacher: *n\ntrain: {{steps: 1}}\n")
        recipe = load_recipe(path, {"student.options.encoder_name": "resnet34"})
        assert recipe.student.options == {"encoder_name": "resnet34"}
        assert recipe.teacher.options == {"encoder_name": "resnet18"}

    def test_numbers_without_a_dot(self, tmp_path):
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump(RECIPE).replace("temperature: 4.0", "temperature: 1e-1"))
        assert load_recipe(path).terms[0].options == {"temperature": 0.1}


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a.b=3", ("a.b", 3)),
            ("a=", ("a", None)),
            ("a=null", ("a", None)),
            ("a=x=y", ("a", "x=y")),
            ("a=[1, 2]", ("a", [1, 2])),
            ("a={b: c}", ("a", {"b": "c"})),
            ("a=1e-3", ("a", 0.001)),
            ("a='5'", ("a", "5")),
            ("a=/data/run #1: x", ("a", "/data/run #1: x")),
            ("a=/data/two\nlines", ("a", "/data/two\nlines")),
            ("a=#fff", ("a", "#fff")),
            ("a=4 # four", ("a", "4 # four")),
            ("a='x' # y", ("a", "x")),
        ],
    )
    def test_values_are_yaml(self, text, expected):
        assert parse_override(text) == expected

    @pytest.mark.parametrize("text", ["train.steps", "=3", " =3"])
    def test_without_a_key_or_equals(self, text):
        with pytest.raises(ConfigError, match=r"expected key\.path=value"):
            parse_override(text)

    def test_bad_yaml(self):
        with pytest.raises(ConfigError, match=r"override a: '\[' is not valid YAML"):
            parse_override("a=[")

    def test_lists_mappings_and_the_shorthand_of_a_checkpoint(self):
        changed = load_recipe(
            RECIPE,
            {
                "terms.0.weight": 7,
                "teacher.checkpoint.key": "ema",
                "student.options.psp_dropout": 0.5,
                "train.clip_norm": 2,
            },
        )
        assert changed.terms[0].weight == 7
        assert changed.teacher.checkpoint.key == "ema"
        assert changed.teacher.checkpoint.path == str(Path("runs/teacher").resolve())
        assert changed.student.options == {"encoder_name": "resnet18", "psp_dropout": 0.5}
        assert RECIPE["teacher"]["checkpoint"] == "runs/teacher", "the caller's mapping stays"

    @pytest.mark.parametrize(
        ("key", "told"),
        [
            ("terms.1.weight", "terms is a list of 1; '1' is none of its places"),
            ("terms.x", "terms is a list of 1; 'x' is none"),
            ("terms.-1", "terms is a list of 1; '-1' is none"),
            ("train.steps.x", "train.steps is the value 10, not a mapping"),
        ],
    )
    def test_ways_that_lead_nowhere(self, key, told):
        refused(RECIPE, f"override {key}: {told}", **{key: 1})

    def test_ids_are_numbers(self):
        raw = {"masks": {"id_map": {0: 0, 7: 1}}}
        override(raw, "masks.id_map.7", 2)
        override(raw, "masks.id_map.9", 1)
        assert raw["masks"]["id_map"] == {0: 0, 7: 2, "9": 1}

    def test_python_values(self, tmp_path):
        recipe = load_recipe(FOLDER, {"data.root": tmp_path, "data.augment.crop": (8, 8)})
        assert recipe.data.root == str(tmp_path)
        assert recipe.data.augment.crop == (8, 8)


class TestResolved:
    @pytest.mark.parametrize("raw", [RECIPE, FOLDER], ids=["scenes", "folder"])
    def test_a_saved_recipe_is_itself(self, raw, tmp_path, monkeypatch):
        recipe = load_recipe(raw)
        (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        monkeypatch.chdir(tmp_path)  # another working directory
        for name in (tmp_path / "recipe.yaml", tmp_path):
            assert load_recipe(name) == recipe
            assert recipe_digest(load_recipe(name)) == recipe_digest(recipe)

    def test_the_digest_tells_recipes_apart(self):
        assert recipe_digest(load_recipe(RECIPE)) != recipe_digest(load_recipe(RECIPE, {"seed": 1}))

    @pytest.mark.parametrize("name", [name for name in shipped_recipes() if "/" not in name])
    def test_shipped_recipes(self, name):
        recipe = load_recipe(name)
        assert recipe.name == name
        assert load_recipe(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe
        assert shipped_recipes()[name], "its first line says what it is"

    def test_the_schema_describes_every_key(self):
        schema = recipe_schema()
        json.dumps(schema)
        assert schema["additionalProperties"] is False
        for part in (schema, *schema["$defs"].values()):
            for key, value in part.get("properties", {}).items():
                assert "description" in value or "const" in value or "$ref" in value, key


def _places(value, prefix=""):
    if isinstance(value, dict):
        for key, entry in value.items():
            yield f"{prefix}{key}"
            yield from _places(entry, f"{prefix}{key}.")
    elif isinstance(value, list):
        for place, entry in enumerate(value):
            yield f"{prefix}{place}"
            yield from _places(entry, f"{prefix}{place}.")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=4,
)
COMPLETE = [load_recipe(raw).model_dump(mode="json") for raw in (RECIPE, FOLDER)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_changed_recipe_is_valid_or_a_config_error_that_names_a_key(data):
    raw = copy.deepcopy(data.draw(st.sampled_from(COMPLETE)))
    key = data.draw(st.sampled_from(list(_places(raw))))
    if data.draw(st.booleans()):
        key += "." + data.draw(st.sampled_from(["x", "0", "", "name"]))
    value = data.draw(ANYTHING)
    told = ""
    try:
        recipe = load_recipe(raw, {key: value})
    except ConfigError as error:
        told = str(error)
    if told:
        assert key.split(".")[0] in told
    else:
        recipe_digest(recipe)
        assert load_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
