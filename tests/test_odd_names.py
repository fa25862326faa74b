"""Folders and files whose names are no UTF-8: whatever writes them down shows their bytes as codes, and reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

import runkit
from densekd import files
from densekd.cli.main import _run
from densekd.config import dump_recipe, load_recipe
from densekd.errors import ConfigError
from densekd.runs import Run

ODD = os.fsdecode(b"n-\xe9")


def code(*words: object) -> int:
    try:
        return _run([str(word) for word in words])
    except SystemExit as error:
        return int(error.code or 0)


def test_text_json_and_yaml_keep_the_name(tmp_path: Path) -> None:
    files.write_text(tmp_path / "t", f"{ODD} Ü")
    assert (tmp_path / "t").read_text(encoding="utf-8") == r"n-\udce9 Ü"
    files.write_json(tmp_path / "j", {ODD: [f"{ODD}/Ü"]})
    assert files.read_json(tmp_path / "j") == {ODD: [f"{ODD}/Ü"]}
    asked = runkit.distillation(Path(ODD), Path(ODD), distill={"cache": {"root": f"{ODD}/c"}})
    files.write_text(tmp_path / "r.yaml", dump_recipe(load_recipe(asked)))
    again = load_recipe(tmp_path / "r.yaml")
    assert again.distill.cache is not None
    assert again.teacher is not None
    assert again.teacher.checkpoint is not None
    paths = [again.data.root, again.teacher.checkpoint.path, Path(again.distill.cache.root).parent]
    assert [Path(path).name for path in paths] == [ODD] * 3


@pytest.mark.parametrize("key", ["distill.cache.root", "teacher.checkpoint.path"])
def test_no_name_is_still_refused(key: str) -> None:
    asked = runkit.distillation(Path("x"), Path("y"), distill={"cache": {"root": "c"}})
    with pytest.raises(ConfigError, match=rf"recipe: {key}: expected the path of a file or folder, got ''"):
        load_recipe(asked, {key: ""})


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a recipe and a run of it; images, masks, code, stored maps and the run have odd names."""
    root = tmp_path_factory.mktemp("names")
    place = runkit.make_place(root / f"data-{ODD}", train=4, val=3)
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (place / split / kind / "1.png").rename(place / split / kind / f"{ODD}.png")
    asked = runkit.distillation(place, place, report={"page": True, "images": 3, "channels": 1})
    asked["teacher"] = {**asked["teacher"], "checkpoint": None, "untrained": True}
    asked["distill"] = {"cache": {"root": str(root / f"cache-{ODD}"), "views": 1, "ask": False}}
    asked["train"] = {**asked["train"], "steps": 2}
    (root / "r.yaml").write_text(yaml.safe_dump(asked))
    assert code("distill", root / "r.yaml", "--out", root / ODD, "-q") == 0
    return root


@pytest.mark.slow
def test_a_run_and_what_reads_it(
    distilled: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(distilled)
    run = Run.load(ODD)
    assert run.record.status == "done"
    assert ODD in run.recipe.data.root
    for path in run.path.rglob("*"):
        if path.suffix in {".json", ".yaml", ".csv", ".html"}:
            path.read_bytes().decode()  # UTF-8, all of it
    assert r"n-\udce9" in (run.path / "report.html").read_text(encoding="utf-8")
    capfd.readouterr()
    assert code("evaluate", ODD, "--json") == 0
    assert json.loads(capfd.readouterr().out)
    for words in (
        ("predict", ODD, f"data-{ODD}/val/images", "--out", "pictures"),
        ("data", "check", "r.yaml", "--samples", "2", "--out", f"{ODD}.png"),
        ("inspect", ODD),
        ("report", ODD),
        ("cache", "verify", f"cache-{ODD}"),
        ("export", ODD, "--to", "safetensors"),
        ("distill", ODD, "--resume"),
    ):
        assert code(*words) == 0, (words, capfd.readouterr().err)
        told = capfd.readouterr()
        (told.out + told.err).encode()
    assert (distilled / f"{ODD}.safetensors").is_file()


@pytest.mark.long
def test_exports_and_a_study(
    distilled: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(distilled)
    asked = yaml.safe_load((distilled / "r.yaml").read_text())
    del asked["distill"]
    (distilled / "c.yaml").write_text(yaml.safe_dump(asked))
    for words in (
        ("export", ODD, "--to", "pt2"),
        ("export", ODD, "--to", "hub-folder"),
        ("export", ODD, "--to", "onnx", "--out", "plain.onnx"),
        ("compare", "c.yaml", "--methods", "none,channelwise", "--seeds", "0", "--out", f"study-{ODD}"),
        ("bench", "latency", ODD),
    ):
        assert code(*words) == 0, (words, capfd.readouterr().err)
    # onnxruntime takes no such path
    assert code("export", ODD, "--to", "onnx") == 2
    assert "onnxruntime cannot open it" in capfd.readouterr().err
