from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import shipkit
from densekd import files
from densekd.config import load_recipe
from densekd.export.card import card_text, data_words
from densekd.export.card_facts import cell, facts_of, limits_of, percent, study_of
from densekd.export.manifest import InputInfo, Manifest, NetworkInfo, Source, Verified, evaluated_as
from densekd.records import dump
from densekd.records.run import ImageList
from densekd.records.study import Gain, StudyCost, StudyMethod, StudyRecord, StudyScores, StudyTeacher

SMP = ("smp:PSPNet", {"encoder_name": "resnet18", "encoder_weights": "imagenet"})
TERM = {
    "method": "channelwise",
    "student": "logits",
    "teacher": "logits",
    "weight": 3.0,
    "options": {"temperature": 4.0},
}


def student(
    folder: Path, model: str = SMP[0], options: dict[str, Any] = SMP[1], record: Any = None, **recipe: Any
) -> Any:
    record = record or shipkit.record_of()
    resolved = load_recipe(shipkit.recipe_of(model, options, **recipe))
    run = SimpleNamespace(path=folder, record=record, recipe=resolved)
    return SimpleNamespace(run=run, recipe=resolved)


def manifest(one: Any, **changes: Any) -> Manifest:
    record, recipe = one.run.record, one.recipe
    source = Source(
        run="r", seed=3, method=record.method, student_sha256="s", recipe_sha256="a", split="val", scores=record.best
    )
    values: dict[str, Any] = {
        "format": "hub-folder",
        "classes": tuple(record.best.iou),
        "palette": tuple((place, 2 * place, 255) for place in range(len(record.best.iou))),
        "network": NetworkInfo(model=recipe.student.model, options=recipe.student.options),
        "input": InputInfo(mean=recipe.data.augment.mean, std=recipe.data.augment.std, multiple_of=8),
        "evaluated": evaluated_as(recipe),
        "source": source,
    }
    return Manifest(**{**values, **changes})


def distilled(folder: Path, **changes: Any) -> Any:
    return student(folder, teacher={"model": "smp:FPN", "untrained": True}, terms=[TERM], **changes)


def test_numbers_are_those_of_the_record(tmp_path: Path) -> None:
    one = distilled(tmp_path)
    facts = facts_of(one, manifest(one))
    assert facts["scores"] == [
        ("this student on val", "58.12", "81.23", 7),
        ("its teacher, examined on val", "70.00", "90.00", 5),
    ]
    assert facts["classes"][:2] == [(0, "sky", "90.00", "`#0000ff`"), (1, "building", "82.00", "`#0102ff`")]
    assert facts["classes"][-1] == (9, "rider", "-", "`#0912ff`")
    assert facts["costs"] == [
        ("this student", "2,000", "5,000,000"),
        ("its teacher", "9,000", "40,000,000"),
        ("the student has", "4.5 times fewer", "8.0 times fewer"),
    ]
    assert "seed 3, the weights of step 30 of 40, whole image" in facts["measured"]
    assert facts["gain"] is None


def test_the_whole_card(tmp_path: Path) -> None:
    one = distilled(tmp_path)
    checked = Verified(
        max_abs_error=0.0, argmax_agreement=1.0, pixels=3072, images=2, of="2 images", sizes=[(32, 48)], by="smp 0"
    )
    text = card_text(one, manifest(one, verified=checked), "my-student", {"model.safetensors": b"", "x.bin": b""})
    _, front, body = text.split("---\n", 2)
    assert front.startswith("# license: choose one")
    told = yaml.safe_load(front)
    assert "license" not in told
    assert told["library_name"] == "segmentation-models-pytorch"
    assert told["pipeline_tag"] == "image-segmentation"
    assert told["tags"] == ["semantic-segmentation", "knowledge-distillation", "densekd", "pytorch"]
    (result,) = told["model-index"][0]["results"]
    assert result["dataset"] == {"type": "scenes", "name": "densekd's drawn scenes", "split": "val"}
    assert result["metrics"][0] == {"type": "mean_iou", "name": "mIoU", "value": 0.5812}
    assert body.startswith("\n# my-student\n")
    for said in (
        "under a teacher (`smp:FPN`), distilled by densekd's method `channelwise`. Its mIoU on val is **58.12** (7",
        "* distilled: `channelwise`, `logits` to the teacher's `logits`, weight 3 (temperature 4.0)",
        "40 steps (2.5 epochs) of 4 images",
        "61 seconds on cpu, 1 threads; densekd 0.1.0, torch 2.15.0",
        "largest absolute difference of a logit 0, the same class at 100% of 3,072 pixels",
        'model = smp.from_pretrained(".").eval()',
        "(0, -width % 8, 0, -height % 8)",
        "* `x.bin`: written by its library",
        "Not set: it is for whoever publishes this folder to choose",
    ):
        assert said in body, said
    assert "{{" not in text
    assert "None" not in text.replace("[None]", "")


def test_trained_alone_has_no_teacher(tmp_path: Path) -> None:
    record = shipkit.record_of(method="none", teacher=None, preflight=None)
    one = student(tmp_path, record=record)
    text = card_text(one, manifest(one), "alone", {})
    assert "teacher" not in text
    assert "distil" not in text.split("## Training")[0].split("# alone")[1]


def test_gain_with_its_spread(tmp_path: Path) -> None:
    def method(name: str, scores: list[float], gain: Gain | None) -> StudyMethod:
        mean = StudyScores(miou=scores, mean=sum(scores) / 2, sd=0.01)
        return StudyMethod(name=name, where="logits", seeds=[2, 3], final=mean, best=mean, gain=gain, cost=StudyCost())

    study = StudyRecord(
        name="study",
        data={},
        teacher=StudyTeacher(miou=0.71, pixel_accuracy=0.92, images=300),
        methods=[
            method("none", [0.40, 0.44], None),
            method("channelwise", [0.48, 0.5], Gain(mean=0.07, low=0.06, high=0.08, n=2)),
        ],
        environment={},
    )
    files.write_json(tmp_path / "study.json", dump(study))
    one = distilled(tmp_path / "channelwise-s3")
    facts = facts_of(one, manifest(one))
    assert facts["gain"] == (
        "In the study it is part of (`study`), students of this method gain **+7.00 mIoU** over the same student "
        "trained alone (95% interval +6.00 to +8.00, paired by seed, 2 seeds): 49.00 +- 1.00 against 42.00 +- 1.00 "
        "(mean and standard deviation, last step)."
    )
    assert facts["scores"][-1] == ("its teacher on val", "71.00", "92.00", 300)
    # A run that was made anew beside the study, or copied to another name, is none of its runs.
    assert study_of(distilled(tmp_path / "other-s3").run) is None
    again = shipkit.record_of(final=shipkit.record_of().final.model_copy(update={"miou": 0.6}))
    assert study_of(distilled(tmp_path / "channelwise-s3", record=again).run) is None
    (tmp_path / "study.json").write_text(json.dumps({"schema": 9}))
    assert study_of(one.run) is None


def test_limits_say_what_is_weak_and_how_it_was_scored(tmp_path: Path) -> None:
    windows = {"mode": "slide", "crop": [16, 16]}
    record = shipkit.record_of(images={"train": ImageList(count=12, sha256="")})
    record.best.iou["pole"] = 0.02
    one = distilled(tmp_path, record=record, evaluation=windows, runtime={"precision": "bfloat16"})
    told = " ".join(limits_of(one, manifest(one, notices=["a | notice"])))
    assert "(12 images)" in told
    assert "IoU below 10): pole." in told
    assert "without a score: rider." in told
    assert "windows of 16x16 every 10x10" in told
    assert "taken in bfloat16" in told
    assert "a \\| notice" in told


def test_a_folder_is_named_without_where_it_lies(tmp_path: Path) -> None:
    data = {"name": "folder", "root": str(tmp_path / "street"), "classes": ["a", "b"]}
    assert data_words(load_recipe(shipkit.recipe_of(*SMP, data=data)).data) == "street"


def test_names_cannot_break_a_table() -> None:
    assert cell("a|b\n<b> `c` \\") == "a\\|b &lt;b> \\`c\\` \\\\"
    assert percent(None) == "-"
    assert percent(0.12345) == "12.35"


@pytest.mark.parametrize(
    ("model", "options", "lines"),
    [
        (
            "torchvision:lraspp_mobilenet_v3_large",
            {"weights_backbone": "DEFAULT"},
            ['get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=10)', '["out"]'],
        ),
        (
            "/home/me/code/net.py:build",
            {"width": 6},
            ["from net import build", "model = build(num_classes=10, width=6)"],
        ),
        pytest.param(
            "smp:FPN",
            {"encoder_name": "tu-mobilenetv2_100", "channel_multiplier": 0.5},
            ["import encoder  #", "smp.from_pretrained"],
            marks=pytest.mark.slow,  # timm is imported
        ),
        pytest.param(
            "smp:FPN", {"encoder_name": "tu-mobilenetv2_100"}, ["smp.from_pretrained"], marks=pytest.mark.slow
        ),
        ("transformers:SegformerForSemanticSegmentation", {}, ["AutoImageProcessor", "processor(images=photo"]),
    ],
)
def test_code_of_every_library(tmp_path: Path, model: str, options: dict[str, Any], lines: list[str]) -> None:
    one = distilled(tmp_path, model=model, options=options)
    text = card_text(one, manifest(one), "x", {})
    for line in lines:
        assert line in text
    assert ("import encoder" in text) == ("channel_multiplier" in options)
    assert "/home/me" not in text
