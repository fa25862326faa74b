"""The recipes shipped for benchmarks: found by name, consistent with each other and with the tables of the docs."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

import pytest

from densekd.cli.recipe_rows import network, published_beside, published_rows, recipe_rows
from densekd.config import PublishedResult, Recipe, load_recipe, recipe_digest, shipped_recipes
from densekd.config.shipped import shipped_text
from densekd.errors import ConfigError
from densekd.losses.catalog import METHODS
from densekd.models.specs import ModelSpec

DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
NAMES = [name for name in shipped_recipes() if "/" in name]
WEIGHTS = {"encoder_weights"}


@cache
def shipped(name: str) -> Recipe:
    return load_recipe(name)


def distilling() -> list[str]:
    return [name for name in NAMES if shipped(name).teacher is not None]


def teacher_of(name: str) -> str:
    """`cityscapes/pspnet_r101-pspnet_r18-mmseg` is taught by what `cityscapes/pspnet_r101` trains."""
    return name.partition("-")[0]


class TestNames:
    def test_with_or_without_the_suffix(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        name = "cityscapes/pspnet_r101-pspnet_r18"
        assert load_recipe(f"{name}.yaml") == load_recipe(name)
        assert load_recipe("demo.yaml") == load_recipe("demo")

    def test_a_file_of_that_name_comes_first(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        own = Path("cityscapes/pspnet_r101.yaml")
        own.parent.mkdir()
        own.write_text(shipped_text("demo"))
        assert load_recipe("cityscapes/pspnet_r101.yaml").name == "demo"
        assert load_recipe("cityscapes/pspnet_r101").name == "cityscapes-pspnet_r101"

    @pytest.mark.parametrize(
        ("slip", "words"),
        [
            ("cityscapes/pspnet_r101-pspnet_r8", "did you mean 'cityscapes/pspnet_r101-pspnet_r18'"),
            ("citiscapes/pspnet_r101.yaml", "did you mean 'cityscapes/pspnet_r101'"),
            (
                "voc/x",
                r"no shipped recipe of that name; shipped: voc/deeplabv3_r101, .*`densekd list recipes` shows all",
            ),
        ],
    )
    def test_a_slip_comes_with_the_nearest(self, slip, words):
        with pytest.raises(ConfigError, match=words):
            load_recipe(slip)

    def test_every_recipe_of_the_package_is_found(self):
        root = Path(str(resources.files("densekd").joinpath("recipes")))
        files = {path.relative_to(root).as_posix() for path in root.rglob("*.yaml")}
        assert {f"{name}.yaml" for name in shipped_recipes()} == files
        assert len(NAMES) > 30
        assert list(shipped_recipes())[:2] == ["camvid", "camvid-teacher"], "those without a folder first"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe(name: str) -> None:
    recipe, text = shipped(name), shipped_text(name)
    folder, _, _ = name.partition("/")
    assert (recipe.name, recipe.data.name) == (name.replace("/", "-"), folder)
    header = re.match(r"(# .*\n)+", text)
    assert header is not None
    assert "Published" in header[0]
    assert "Ours:" in header[0].replace("\n# ", " ")
    assert f"`{name}`" in (DOCS / f"{folder}.md").read_text(encoding="utf-8")
    methods = recipe.compare.methods
    for terms in (recipe.terms, *(method.terms for method in methods.values())):
        for term in terms:
            assert term.weight > 0
            METHODS[term.method](**term.options)  # the method is there, its options are known and in range
    if recipe.teacher is None:
        assert {row.method for row in recipe.published} <= {"none"}
        return
    assert {row.method for row in recipe.published} <= set(methods)
    assert all(row.miou != row.alone for row in recipe.published)
    assert methods[recipe.published[0].method if recipe.published else "cwd"].terms == recipe.terms
    trained = shipped(teacher_of(name))
    assert (trained.teacher, trained.data.name) == (None, folder)
    assert recipe.teacher.model == trained.student.model
    assert recipe.teacher.options == {k: v for k, v in trained.student.options.items() if k not in WEIGHTS}
    assert f"teacher.checkpoint=runs/{trained.name}, of `{teacher_of(name)}`" in text


def test_sources_agree_on_the_student_alone():
    """One student under one schedule has one number alone in each source."""
    for name in distilling():
        rows: dict[str, set[float]] = {}
        for row in shipped(name).published:
            if row.alone is not None:
                rows.setdefault(row.source, set()).add(row.alone)
        assert all(len(found) == 1 for found in rows.values()), name


def test_table_2_of_the_paper():
    """Independent of the recipe: the table as published, gains in points beside it."""
    published = {row.method: row for row in shipped("cityscapes/pspnet_r101-pspnet_r18").published}
    logits = {"at": 3.22, "pi": 2.64, "local": 0.65, "pa": 2.31, "ifvd": 1.56, "ho": 3.03, "cwd": 5.77}
    features = {"at": 3.27, "local": 0.71, "pa": 2.13, "ifvd": 2.25, "cwd": 5.17}
    gains = {**logits, **{f"{method}@features": gain for method, gain in features.items()}}
    for method, gain in gains.items():
        row = published[method]
        assert (row.alone, row.teacher) == (69.10, 78.56)
        assert row.miou - row.alone == pytest.approx(gain, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "method", "line"),
    [
        ("cityscapes/pspnet_r101-pspnet_r18", "channelwise", "mIoU 74.87 on val (CWD paper, ICCV 2021, Table 2)"),
        ("cityscapes/pspnet_r101-pspnet_r18", "none", "mIoU 69.10 on val (CWD paper, ICCV 2021, Table 2)"),
        ("cityscapes/deeplabv3_r101", "none", "mIoU 78.07 on val (winycg/CIRKD README)"),
        ("cityscapes/deeplabv3_r101-pspnet_r18-dist", "none", None),
        ("demo", "channelwise", None),
    ],
)
def test_the_line_under_a_result(name, method, line):
    expected = None if line is None else f"published for the recipe as it is shipped: {line}"
    assert published_beside(shipped(name), method) == expected


def test_what_others_published_changes_no_run():
    recipe = shipped("cityscapes/deeplabv3_r101")
    assert recipe_digest(recipe) == recipe_digest(recipe.model_copy(update={"published": ()}))


def test_a_published_row_is_in_percent():
    with pytest.raises(ValueError, match="greater than 0"):
        PublishedResult(method="cwd", miou=0, source="x")
    with pytest.raises(ConfigError, match=r"published\.0\.miou.*less than or equal to 100"):
        load_recipe("demo", {"published": [{"method": "cwd", "miou": 101, "source": "x"}]})


class TestTables:
    FEW = ("demo", "cityscapes/pspnet_r101-pspnet_r18", "cityscapes/segformer_b4")

    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch):
        """All of them are listed by the command's own test."""
        monkeypatch.setattr(
            "densekd.cli.recipe_rows._shipped", lambda: [(name, "", shipped(name)) for name in self.FEW]
        )

    def test_recipes(self):
        rows = {row["recipe"]: row for row in recipe_rows(as_json=False)}
        assert tuple(rows) == self.FEW
        assert rows["cityscapes/pspnet_r101-pspnet_r18"] == {
            "recipe": "cityscapes/pspnet_r101-pspnet_r18",
            "data": "cityscapes",
            "networks": "pspnet-resnet101 -> pspnet-resnet18",
            "method": "channelwise",
            "steps": 40000,
            "published": "69.10 -> 74.87, and 13 more",
            "source": "CWD paper, ICCV 2021, Table 2",
        }
        assert rows["cityscapes/segformer_b4"]["networks"] == "segformer-b4-smp"
        assert (rows["demo"]["networks"], rows["demo"]["published"]) == (
            "PSPNet on resnet18 -> PSPNet on tu-lcnet_050",
            None,
        )

    def test_published(self):
        shown, whole = published_rows(as_json=False), published_rows(as_json=True)
        assert len(shown) == len(whole) == 15
        place = next(i for i, row in enumerate(whole) if row["method"] == "cwd+pi+ho")
        assert (whole[place]["miou"], whole[place]["alone"]) == (75.02, None)
        assert (shown[place]["miou"], shown[place]["alone"]) == ("75.02", None)

    def test_a_network_by_the_name_that_says_most(self):
        assert network(ModelSpec(model="pspnet-resnet18d", options={"encoder_weights": True})) == "pspnet-resnet18d"
        assert network(ModelSpec(model="smp:Unet", options={"encoder_name": "vgg11"})) == "Unet on vgg11"
        assert (
            network(ModelSpec(model="transformers:SegformerForSemanticSegmentation"))
            == "SegformerForSemanticSegmentation"
        )
