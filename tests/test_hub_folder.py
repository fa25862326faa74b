"""Folders and weights that the student's own library loads: in a process where densekd cannot be imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

import shipkit
from densekd.data.images import read_image
from densekd.data.transforms import EvalTransform
from densekd.errors import ArgumentError, ExportError, RunError
from densekd.export import export_run, load_exported
from densekd.export.library import encoder_source
from densekd.models.sizes import output_at_any_size
from densekd.predict import predict
from densekd.runs import Run

NET = """
from torch import nn


def build(num_classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.Conv2d(width, num_classes, 1))
"""
SEGFORMER = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}
# Runs the code of the card, with densekd out of reach, and keeps the classes it found.
ALONE = """
import json, re, sys
from pathlib import Path
import numpy as np

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "densekd":
            raise ImportError("densekd is out of reach")

sys.meta_path.insert(0, Nothing())
sys.path.insert(0, ".")
for number, code in enumerate(re.findall(r"```python\\n(.*?)```", Path("README.md").read_text(), re.S)):
    exec(compile(code, f"block {number}", "exec"), globals())
np.savez(sys.argv[1], logits=logits.numpy(), classes=classes.numpy())
assert not any(name.split(".")[0] == "densekd" for name in sys.modules)
"""


def photo(path: Path) -> Path:
    generator = np.random.default_rng(0)
    cells = generator.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    Image.fromarray(cells.repeat(9, 0).repeat(8, 1)).save(path, quality=95)
    return path


def found_alone(folder: Path, out: Path) -> Any:
    """What the code of the card finds, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(out)], cwd=folder, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(out)


def found_here(folder: Path) -> Any:
    """The same in this process, which takes a library less to import."""
    found: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S):
        exec(code, found)
    return found


def of_the_run(run: Run, path: Path) -> torch.Tensor:
    """Logits at the photo's size, as an evaluation of the run has them."""
    image = read_image(path)
    with torch.inference_mode():
        logits = output_at_any_size(run.student(), EvalTransform(run.recipe.data.augment)(image)[None])
        return F.interpolate(logits.float(), image.shape[1:], mode="bilinear")


CASES = [
    pytest.param("smp:PSPNet", {"encoder_name": "resnet18", "encoder_weights": "imagenet"}, {}, False, id="smp"),
    pytest.param(
        "smp:FPN",
        {"encoder_name": "tu-mobilenetv3_small_100", "channel_multiplier": 0.5, "decoder_segmentation_channels": 32},
        {"data": {"name": "scenes", "size": [40, 56], "train_count": 4, "val_count": 4}},
        True,
        id="smp-open-width",
    ),
    pytest.param(
        "transformers:SegformerForSemanticSegmentation",
        SEGFORMER,
        {
            "data": {
                "name": "scenes", "size": [32, 48], "train_count": 4, "val_count": 4, "augment": {"size": [64, 64]}
            }
        },
        True,
        id="transformers",
    ),
    pytest.param("torchvision:lraspp_mobilenet_v3_large", {"weights_backbone": "DEFAULT"}, {}, False, id="torchvision"),
    pytest.param("net.py:build", {"width": 5}, {}, True, id="own"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("model", "options", "changes", "alone"), CASES)
def test_the_card_s_code_gives_what_the_run_gives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    options: dict[str, Any],
    changes: dict[str, Any],
    alone: bool,
) -> None:
    if model.startswith("transformers"):
        pytest.importorskip("transformers", reason="the extra hf is not installed")
    if model == "net.py:build":
        (tmp_path / "net.py").write_text(NET)
        model = f"{tmp_path}/{model}"
    run = shipkit.make_run(tmp_path / "run", shipkit.recipe_of(model, options, **changes))
    made = export_run(run, "hub-folder", out=tmp_path / "hub", images=2)
    checked = made.manifest.verified
    assert checked is not None
    assert (checked.max_abs_error, checked.argmax_agreement) == (0.0, 1.0)
    assert made.manifest.format == "hub-folder"
    everything = b"".join(path.read_bytes() for path in (tmp_path / "hub").iterdir())
    assert str(tmp_path).encode() not in everything
    if "net.py" in model:
        with pytest.raises(ExportError, match=r"opening it executes .*net\.py.* give --trust"):
            load_exported(tmp_path / "hub")
        with pytest.raises(ExportError, match=r"net\.py:build cannot be built here"):
            load_exported(tmp_path / "hub", trust=True)
        (tmp_path / "hub" / "net.py").write_text(NET)
    made = load_exported(tmp_path / "hub", trust=True)
    picture = photo(tmp_path / "hub" / "photo.jpg")
    monkeypatch.chdir(tmp_path / "hub")
    found = found_alone(tmp_path / "hub", tmp_path / "found.npz") if alone else found_here(tmp_path / "hub")
    logits, expected = torch.as_tensor(found["logits"]), of_the_run(run, picture)
    # Resized photos differ by a level of 255 here and there, for libraries round in other orders.
    assert (logits - expected).abs().max() < 0.1 * expected.std()
    assert (logits - expected).abs().mean() < 0.01 * expected.std()
    assert np.array_equal(np.asarray(found["classes"]), np.asarray(logits[0].argmax(0)))
    (one,) = predict(made, [picture], tmp_path / "out")
    with Image.open(one.mask) as mask:
        assert np.array_equal(np.asarray(mask), np.asarray(expected[0].argmax(0)))


@pytest.mark.slow
def test_transformers_knows_the_classes_and_the_pixels(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    data = {
        "name": "scenes", "size": [32, 48], "train_count": 4, "val_count": 4,
        "augment": {"size": [64, 96], "mean": [0.5, 0.4, 0.3], "std": [0.3, 0.25, 0.2]},
    }  # fmt: skip
    recipe = shipkit.recipe_of("transformers:SegformerForSemanticSegmentation", SEGFORMER, data=data)
    export_run(shipkit.make_run(tmp_path / "run", recipe), "hub-folder", out=tmp_path / "hub", images=1)
    network = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "hub")
    assert network.config.id2label == dict(enumerate(shipkit.CLASSES))
    assert network.config.label2id["road"] == 2
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hub")
    white = processor(images=np.full((10, 10, 3), 255, np.uint8), return_tensors="pt")["pixel_values"]
    assert white.shape == (1, 3, 64, 96)
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([0.5 / 0.3, 0.6 / 0.25, 0.7 / 0.2]))


@pytest.mark.slow
class TestWeights:
    def test_names_are_the_library_s_own(self, tmp_path: Path) -> None:
        import segmentation_models_pytorch as smp

        run = shipkit.make_run(tmp_path / "run", shipkit.recipe_of("smp:PSPNet", {"encoder_name": "resnet18"}))
        made = export_run(run, "safetensors", out=tmp_path / "w.safetensors", images=1)
        network = smp.PSPNet("resnet18", encoder_weights=None, classes=10)
        with safe_open(tmp_path / "w.safetensors", "pt") as stream:
            assert list(stream.metadata()) == ["densekd"]
            assert set(stream.keys()) == set(network.state_dict())
        network.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
        images = torch.rand(2, 3, 32, 48)
        with torch.inference_mode():
            assert torch.equal(network.eval()(images), made(images))
        assert json.loads(made.manifest.text())["verified"]["max_abs_error"] == 0.0

    def test_wrong_weights_leave_no_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = shipkit.make_run(tmp_path / "run", shipkit.recipe_of("smp:PSPNet", {"encoder_name": "resnet18"}))
        from densekd import files

        read = files.read_tensors

        def shifted(path: Path) -> dict[str, torch.Tensor]:
            return {
                name: value + 1 if name.startswith("segmentation_head") else value for name, value in read(path).items()
            }

        monkeypatch.setattr("densekd.export.weights.files.read_tensors", shifted)
        with pytest.raises(ExportError, match="differ from torch's"):
            export_run(run, "safetensors", out=tmp_path / "out" / "w.safetensors", images=1)
        assert not list((tmp_path / "out").iterdir())

    def test_a_folder_of_another_network_is_not_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = shipkit.make_run(tmp_path / "run", shipkit.recipe_of("smp:PSPNet", {"encoder_name": "resnet18"}))
        from densekd.export import hub

        load = hub.load_folder

        def broken(folder: Path, *rest: Any) -> Any:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "upsampling": 4}))
            return load(folder, *rest)

        monkeypatch.setattr(hub, "load_folder", broken)
        with pytest.raises(ExportError):
            export_run(run, "hub-folder", out=tmp_path / "out" / "hub", images=1)
        assert not (tmp_path / "out").exists()


class TestRefusals:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        (tmp_path / "net.py").write_text(NET)
        return shipkit.make_run(tmp_path / "run", shipkit.recipe_of(f"{tmp_path}/net.py:build")).path

    def test_a_folder_that_holds_something_else(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "hub").mkdir()
        (tmp_path / "hub" / "mine.txt").write_text("mine")
        with pytest.raises(RunError, match="--force"):
            export_run(run, "hub-folder", out=tmp_path / "hub")
        with pytest.raises(RunError, match="--force leaves it alone"):
            export_run(run, "hub-folder", out=tmp_path / "hub", force=True)
        with pytest.raises(RunError, match="a file; give a folder"):
            export_run(run, "hub-folder", out=tmp_path / "net.py")
        assert (tmp_path / "hub" / "mine.txt").read_text() == "mine"

    @pytest.mark.parametrize("asked", [{"size": (8, 8)}, {"resize": (8, 8)}, {"normalise": True}, {"output": "argmax"}])
    def test_options_of_a_graph(self, run: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
        with pytest.raises(ArgumentError, match=f"--{next(iter(asked))} belongs to --to onnx and pt2"):
            export_run(run, "safetensors", out=tmp_path / "x.safetensors", **asked)


def test_encoders_that_timm_has_need_no_file() -> None:
    assert encoder_source("resnet18") is None
    assert encoder_source("tu-resnet18") is None
