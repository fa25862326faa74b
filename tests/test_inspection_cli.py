"""`densekd inspect` from the line, on networks of the libraries, on a run, and on pictures."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from densekd.cli.app import call
from densekd.config import load_recipe
from densekd.distiller import Distiller, Term
from densekd.errors import ArgumentError, ConfigError, TapError
from densekd.inspection import open_subject
from densekd.inspection.pair import inspect_pair
from densekd.inspection.sheet import draw_sheet, prepare
from densekd.inspection.subject import built_from
from densekd.losses.catalog import make_loss
from densekd.models.specs import ModelSpec
from densekd.runs import train
from runkit import NAMES, make_place, recipe

LCNET = {"encoder_name": "tu-lcnet_050", "encoder_depth": 3, "psp_out_channels": 16}
SEGFORMER = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
LINE = ["inspect", "smp:PSPNet", *(f"{key}={value}" for key, value in LCNET.items()), "--size", "60", "128"]
pytestmark = pytest.mark.slow


def rows(text: str) -> list[dict[str, str]]:
    header, *lines = (line.split("\t") for line in text.splitlines() if "\t" in line)
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_the_table_is_whole_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(LINE) == 0
    out, err = capsys.readouterr()
    found = {row["module"]: row for row in rows(out)}
    assert found["segmentation_head.0"]["good tap"] == "logits: class map before the last up-sampling"
    assert found["decoder"]["good tap"] == "the map that the classifier reads"
    assert found["decoder"]["output"] == "16x8x16"
    assert found["decoder"]["stride"] == "8"
    assert found["decoder.conv"]["notes"] == "the same map as decoder"
    assert found["decoder.psp.blocks"]["notes"] == "a container, never called itself: no tap"
    assert found["encoder"]["output"].count(";") == 3
    assert "takes multiples of 8: 60x128 became 64x128" in err
    assert "random weights: shapes and costs are those of any others" in err
    assert "built with 19 classes; --classes says otherwise" in err
    assert call([*LINE, "--depth", "1", "-q"]) == 0
    shorter = capsys.readouterr()
    assert [row["module"] for row in rows(shorter.out)] == ["(the network)", "encoder", "decoder", "segmentation_head"]
    assert shorter.err == ""


def test_the_same_as_json_and_as_a_tree(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call([*LINE, "--json", "--classes", "5", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["size"] == [64, 128]
    assert told["weights"] == "random"
    assert told["taps"][-1] == {
        "tap": "logits",
        "module": "segmentation_head.0",
        "role": "logits",
        "why": "class map before the last up-sampling",
        "shape": [1, 5, 8, 16],
        "stride": [8, 8],
    }
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert call([*LINE, "--depth", "1"]) == 0
    tree = capsys.readouterr()
    drawn, told = (re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text) for text in tree)
    assert "encoder TimmUniversalEncoder" in drawn
    # A good tap is shown however deep it lies; its neighbours are not.
    assert "0 Sequential  16x32x64 /2" in drawn
    assert "conv_stem" not in drawn
    assert "* the map that the classifier reads" in drawn
    assert "modules deeper than 1 are not shown: --depth" in told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["smp:PSPnet"], "no such architecture; did you mean 'PSPNet'"),
        (["smp:PSPNet", "encoder_nam=resnet18"], "has no option 'encoder_nam'"),
        (["smp:PSPNet", "--tap", "decoder"], "--tap belongs to --image; give both, or neither"),
        (["smp:PSPNet", "--channels", "3"], "--channels belongs to --image; give both, or neither"),
        (["smp:PSPNet", "--out", "inspect.png"], "--out belongs to --image; give both, or neither"),
        (["--pair", "demo", "--force"], "--force belongs to --image; give both, or neither"),
        (["--pair", "demo", "--raw"], "--raw belongs to --image; give both, or neither"),
        (["--pair", "demo", "--image", "x.png"], "--image belongs to one network"),
        (["smp:PSPNet", "--image", "x.png", "--out", "x.docx"], "--out x.docx: expected a name that ends in .png"),
        (["smp:PSPNet", "--image", "nowhere.png"], "nowhere.png: cannot be read as an image"),
        (["smp:PSPNet", "encoder_name=tu-lcnet_050", "--size", "0", "9"], "height and width from 1"),
    ],
)
def test_mistakes_are_one_line(line: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call(["inspect", *line, "-q"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) == 1


def test_a_run_is_looked_at_with_its_weights_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_place(tmp_path / "data")
    run = train(recipe(root), out=tmp_path / "run")
    subject = open_subject(str(run.path))
    assert (subject.classes, subject.trained) == (NAMES, True)
    state = run.student().state_dict()
    assert all(torch.equal(value, state[key]) for key, value in subject.network.state_dict().items())
    picture = root / "val" / "images" / "0.png"
    out = tmp_path / "sheet.png"
    line = ["inspect", str(run.path), "--image", str(picture), "--tap", "output", "--out", str(out)]
    assert call([*line, "--order", "index"]) == 0
    told = capsys.readouterr()
    assert f"sheet of output: {out}" in told.err
    assert "random weights" not in told.err
    with Image.open(out) as sheet:
        assert sheet.size[0] > 4 * 240
    with pytest.raises(SystemExit):
        call(line)
    assert f"{out}: exists; use --force" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(["inspect", str(run.path), "--classes", "3"])
    assert "a run has its own network, classes and weights" in capsys.readouterr().err


def test_a_local_folder_brings_its_classes_and_its_weights(tmp_path: Path) -> None:
    import transformers

    labels = dict(enumerate(("road", "sky", "car", "tree")))
    made = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(**{**SEGFORMER, "num_labels": 4, "id2label": labels})
    )
    made.save_pretrained(tmp_path / "whole")
    made.config.save_pretrained(tmp_path / "bare")
    whole, bare = (open_subject(f"transformers:{tmp_path / name}") for name in ("whole", "bare"))
    assert whole.classes == bare.classes == ("road", "sky", "car", "tree")
    assert (whole.outputs, whole.trained, bare.trained) == (4, True, False)
    state = made.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.network.state_dict().items())
    assert not torch.equal(bare.network.decode_head.classifier.weight, made.decode_head.classifier.weight)
    other = open_subject(f"transformers:{tmp_path / 'bare'}", classes=7)
    assert (other.outputs, other.classes) == (7, ())


class Edges(torch.nn.Module):
    """Three channels: bright everywhere, at one place, and in the left half."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made = torch.zeros(len(images), 3, 8, 8)
        made[:, 1, 2, 5] = 400.0
        made[:, 2, :, :4] = 400.0
        return made


def test_a_sheet_shows_the_channels_in_order_of_their_entropy(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 60, 3), 200, dtype=np.uint8)).save(tmp_path / "x.png")
    plain = open_subject("smp:FPN", {"encoder_name": "tu-lcnet_050", "encoder_depth": 5}, classes=3)
    prepared = prepare(plain, tmp_path / "x.png")
    assert prepared.size == (64, 64)
    assert prepared.notices == [f"{tmp_path / 'x.png'}: the network takes multiples of 32: 40x60 was enlarged to 64x64"]
    subject = plain.__class__(Edges(), "edges", 3, ("all", "spot", "half"), trained=True)
    sheet = draw_sheet(subject, prepared, "output")
    assert sheet.channels == [1, 2, 0]
    assert sheet.entropy == pytest.approx([1.0, 0.0, np.log(32) / np.log(64)], abs=1e-6)
    assert draw_sheet(subject, prepared, "output", order="index", most=2).channels == [0, 1]
    few = draw_sheet(subject, prepared, "output", most=1)
    assert few.notices[-1] == "output: 1 of 3 channels are shown, those of the lowest entropy"
    # The second cell of the first row is the spot: dark but for one place, up and right of the middle.
    left = 6 + 240 + 6
    cell = np.asarray(sheet.picture.convert("L"))[:, left : left + 240]
    bright = np.argwhere(cell[-249:-9] > 100).mean(0)  # below it nine rows of paper
    assert bright == pytest.approx([240 * 2.5 / 8, 240 * 5.5 / 8], abs=12)
    for wrong in ({"temperature": 0.0}, {"order": "size"}, {"most": 0}):
        with pytest.raises(ArgumentError):
            draw_sheet(subject, prepared, "output", **wrong)  # type: ignore[arg-type]
    with pytest.raises(TapError, match="no module 'decoder'"):
        draw_sheet(subject, prepared, "decoder")


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple[str, str]]]] = {
    "smp+smp": (
        {"model": "smp:PSPNet", "options": LCNET},
        {"model": "smp:FPN", "options": {"encoder_name": "resnet18"}},
        [("logits", "logits"), ("decoder", "decoder")],
    ),
    "smp+torchvision": (
        {"model": "smp:PSPNet", "options": LCNET},
        {"model": "torchvision:deeplabv3_mobilenet_v3_large"},
        [("logits", "logits"), ("decoder", "classifier.3")],
    ),
    "smp+lraspp": (
        {"model": "smp:PSPNet", "options": LCNET},
        {"model": "torchvision:lraspp_mobilenet_v3_large"},
        [("logits", "logits"), ("encoder.model.blocks.2", "backbone.16")],
    ),
    "transformers+smp": (
        {"model": "transformers:SegformerForSemanticSegmentation", "options": SEGFORMER},
        {"model": "smp:Unet", "options": {"encoder_name": "resnet18"}},
        [("logits", "logits"), ("decode_head.activation", "decoder")],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_proposed_block_runs(name: str) -> None:
    student, teacher, expected = PAIRS[name]
    base = load_recipe("demo", {"student": student, "teacher": {**teacher, "untrained": True}, "data.size": [64, 64]})
    found = inspect_pair(base)
    assert found.student.size == (64, 64)
    pasted = load_recipe(
        {**base.model_dump(mode="json"), "terms": yaml.safe_load(found.block())["terms"]},
    )
    assert [(term.student, term.teacher) for term in pasted.terms] == expected
    assert [(term.weight, term.options) for term in pasted.terms] == [
        (3.0, {"temperature": 4.0}),
        (50.0, {"temperature": 4.0}),
    ]
    networks = [
        built_from(ModelSpec.model_validate(which), 10, "any", base.data.augment).network
        for which in (student, teacher)
    ]
    terms = [
        Term(make_loss(t.method, t.options), student=t.student, teacher=t.teacher, weight=t.weight)
        for t in pasted.terms
    ]
    out = Distiller(*networks, terms, torch.randn(2, 3, 64, 64))(torch.randn(2, 3, 64, 64))
    assert bool(torch.isfinite(out.loss))
    assert all(value > 0 for value in out.parts.values())


def test_a_pair_on_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["inspect", "--pair", "demo"]) == 0
    out, err = capsys.readouterr()
    table, _, block = out.partition("\n\n")
    last = rows(table)[-1]
    assert (last["student"], last["student map"], last["teacher map"]) == ("logits", "10x12x16", "10x12x16")
    assert last["between"] == "equal: no adapter"
    assert [term["student"] for term in yaml.safe_load(block)["terms"]] == ["logits", "decoder"]
    assert "student (smp:PSPNet): random weights" in err
    assert call(["inspect", "--pair", "demo", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["taps"][-1]["equal"] is True
    assert yaml.safe_load(told["yaml"])["terms"] == told["terms"]
    with pytest.raises(ConfigError, match="'teacher' is missing"):
        inspect_pair(load_recipe("demo-teacher"))
    with pytest.raises(ConfigError, match=r"which classes.*or say how many there are with --classes"):
        inspect_pair(load_recipe("folder", {"data.root": str(tmp_path)}))
