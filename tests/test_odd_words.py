"""Names with control characters, marks of HTML and Markdown, or line breaks: drawn, and told to trackers, as text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import corpuskit
import runkit
from densekd.pictures import contact_sheet, headline, legend, one_line
from densekd.runs import train
from densekd.runs.tracking.kinds import fenced
from densekd.runs.tracking.pictures import _short

ODD = ("<img src=x onerror=alert(1)>", "a\x1b[2J\nb", os.fsdecode(b"n-\xe9"), "a..\\..\\up", "\u202egnp", "x" * 240)
CLASSES = ("<b>sky", "ro\x1bad\n\n```\n\n![x](http://host/x.png)", "tr|ee[/]")


def test_a_line_of_text_holds_nothing_else() -> None:
    assert [one_line(name) for name in ODD[1:5]] == [r"a\x1b[2J\nb", r"n-\udce9", "a..\\..\\up", r"\u202egnp"]
    assert one_line("Straße 日本 🙂") == "Straße 日本 🙂"


def test_pictures_of_any_names() -> None:
    drawn = legend(ODD, [(1, 2, 3)] * len(ODD), notes=["\n"] * len(ODD))
    for name in ODD:
        assert headline(name, 200).width == 200
    contact_sheet([[drawn]] * len(ODD), [ODD[1]], ODD)


def test_no_text_ends_its_fence() -> None:
    assert fenced("a: 1\n") == "```yaml\na: 1\n```"
    text = fenced("a: |\n  ```\n  ![x](y)\n  `````\n")
    assert text.startswith("``````yaml\n")
    assert text.endswith("\n``````")


def test_names_in_tags_are_bounded() -> None:
    assert _short("a" * 120) == "a" * 120
    assert _short("日" * 41) == "日" * 30 + "..."
    assert "\n" not in _short(ODD[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = runkit.make_place(tmp_path_factory.mktemp("place"), train=4, val=0)
    for name in ODD:
        corpuskit.put_pair(root, "val", f"{name}.png")
    return root


def tracked(place: Path, out: Path, to: str) -> Path:
    raw = runkit.recipe(place, track={"to": to, "images": len(ODD)})
    raw["data"]["classes"] = list(CLASSES)
    raw["train"]["steps"] = 2
    run = train(raw, out=out)
    assert run.record.trackers[to].failed is None
    assert not [line for line in run.record.warnings if line.startswith("track")]
    return out / "tracking"


@pytest.mark.slow
def test_tensorboard(place: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    page = pytest.importorskip("tensorboard.plugin_util")
    folder = tracked(place, tmp_path / "run", "tensorboard")
    found = reader.EventAccumulator(str(folder / "tensorboard"), {"images": 0, "tensors": 0}).Reload()
    tags = [*found.Tags()["images"], *found.Tags()["scalars"]]
    assert len(found.Tags()["images"]) == 1 + len(ODD)
    assert all(one_line(tag) == tag for tag in tags)
    assert f"val/iou/{one_line(CLASSES[1])}" in tags
    (text,) = found.Tensors("recipe/text_summary")
    shown = page.markdown_to_safe_html(text.tensor_proto.string_val[0].decode())
    assert "<img" not in shown
    assert "<b>" not in shown
    assert shown.count("<code>") == 1


@pytest.mark.long
def test_wandb(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb.setup().settings, "mode", "offline")
    folder = tracked(place, tmp_path / "run", "wandb")
    pictures = [path for path in folder.rglob("*.png") if path.is_file()]
    assert len(pictures) == 1 + len(ODD)
    assert {path.parent.name for path in pictures} == {"pictures"}
    assert all(one_line(path.name) == path.name for path in pictures)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
