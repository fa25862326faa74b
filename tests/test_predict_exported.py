from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shipkit
from densekd.errors import ArgumentError, ConfigError, ExportError, RunError
from densekd.export import export_run
from densekd.export.manifest import Evaluated
from densekd.inference import EvaluationSpec
from densekd.predict import open_student, predict
from densekd.predict.shipped import ShippedStudent
from shipkit import MEAN, STD, File, expected, image

NET = """
from torch import nn


def build(num_classes):
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, num_classes, 1))
"""
WINDOWS = EvaluationSpec(mode="slide", crop=(8, 8))


class TestSizes:
    @pytest.mark.parametrize("values", ["normalised", "0..255"])
    def test_any_size_is_padded_to_the_multiple_with_the_mean_colour(self, values: str) -> None:
        file = File(multiple_of=8, values=values)
        (found,) = ShippedStudent(file).segment([image()])
        assert torch.equal(found, expected())
        (given,) = file.seen
        assert given.shape == (1, 3, 16, 24)
        colours = torch.tensor(MEAN) * 255 if values == "0..255" else torch.zeros(3)
        torch.testing.assert_close(given[0, :, 12:, 20:], colours[:, None, None].expand(3, 4, 4))
        red = torch.tensor(255.0 if values == "0..255" else (1 - MEAN[0]) / STD[0])
        torch.testing.assert_close(given[0, 0, :12, :10], red.expand(12, 10))

    def test_one_size_is_resized_to_and_said(self) -> None:
        file = File(size=(6, 10))
        student = ShippedStudent(file)
        (found,) = student.segment([image()])
        assert torch.equal(found, expected())
        assert file.seen[0].shape == (1, 3, 6, 10)
        assert "takes images of 6x10 (height x width) alone; 1 of 2 are" in student.notices([(12, 20), (6, 10)])[0]
        assert not student.notices([(6, 10)])

    def test_the_size_of_the_run(self) -> None:
        file = File(evaluated=Evaluated(size=(24, 40)))
        assert torch.equal(ShippedStudent(file).segment([image()])[0], expected())
        assert file.seen[0].shape == (1, 3, 24, 40)

    def test_what_resizes_inside_gets_the_image_as_it_is(self) -> None:
        file = File(inside={"resize": (6, 6)}, evaluated=Evaluated(size=(24, 40)))
        ShippedStudent(file).segment([image()])
        assert file.seen[0].shape == (1, 3, 12, 20)

    def test_batches_of_a_fixed_number(self) -> None:
        file = File(batch=2)
        found = ShippedStudent(file, most=3).segment([image(), image().flip(-1), image()])
        assert [given.shape[0] for given in file.seen] == [2, 2]
        assert torch.equal(torch.stack(found), torch.stack([expected(), expected().flip(-1), expected()]))


class TestOutputs:
    @pytest.mark.parametrize("binary", [False, True])
    @pytest.mark.parametrize("kind", ["logits", "softmax", "argmax"])
    def test_all_give_the_same_classes(self, kind: str, binary: bool) -> None:
        file = File(inside={"output": kind}, binary=binary, size=(6, 10))
        (found,) = ShippedStudent(file).segment([image()])
        # Of two classes in one logit, 1 is where it is above 0.
        assert torch.equal(found, 1 - expected() if binary else expected())

    def test_probabilities_of_windows_are_those_of_logits(self) -> None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (3, 13, 21), generator=generator, dtype=torch.uint8)
        evaluated = Evaluated(evaluation=WINDOWS)
        found = [
            ShippedStudent(File(inside={"output": kind}, evaluated=evaluated)).segment([noise])[0]
            for kind in ("logits", "softmax")
        ]
        assert torch.equal(*found)


class TestEvaluation:
    def test_windows_of_a_file_of_any_size(self) -> None:
        file = File(evaluated=Evaluated(evaluation=WINDOWS))
        assert torch.equal(ShippedStudent(file, most=4).segment([image()])[0], expected())
        assert {tuple(given.shape[1:]) for given in file.seen} == {(3, 8, 8)}

    def test_windows_of_the_very_size_of_the_file(self) -> None:
        file = File(size=(8, 8), evaluated=Evaluated(evaluation=WINDOWS))
        student = ShippedStudent(file)
        assert torch.equal(student.segment([image()])[0], expected())
        assert {tuple(given.shape) for given in file.seen} == {(1, 3, 8, 8)}
        assert not student.notices([(12, 20)])

    @pytest.mark.parametrize(
        ("file", "words"),
        [
            (File(size=(6, 10), evaluated=Evaluated(evaluation=WINDOWS)), "takes 6x10 .* alone, and a window is 8x8"),
            (File(inside={"output": "argmax"}, evaluated=Evaluated(evaluation=WINDOWS)), "the file gives class ids"),
            (File(size=(6, 10), evaluated=Evaluated(evaluation=EvaluationSpec(scales=(0.5, 1)))), "takes 6x10"),
        ],
    )
    def test_what_the_file_cannot_do_is_refused(self, file: File, words: str) -> None:
        with pytest.raises(ExportError, match=words) as caught:
            ShippedStudent(file)
        assert "evaluation.mode=whole evaluation.crop=null" in str(caught.value)

    def test_it_can_be_asked_for_otherwise_and_is_said(self) -> None:
        file = File(size=(6, 10), evaluated=Evaluated(evaluation=WINDOWS))
        student = ShippedStudent(file, {"evaluation.mode": "whole", "evaluation.crop": None})
        assert student.segment([image()])[0].shape == (12, 20)
        assert "the run was scored by: windows of 8x8" in student.notices([(6, 10)])[0]

    def test_overrides_that_nothing_reads(self) -> None:
        with pytest.raises(ConfigError, match=r"override data\.augment\.size: .* evaluation\.KEY alone"):
            ShippedStudent(File(), {"data.augment.size": [1, 1]})
        with pytest.raises(ConfigError, match="mode slide needs `crop`"):
            ShippedStudent(File(), {"evaluation.mode": "slide"})


class TestPredict:
    def test_masks_and_coverage(self, tmp_path: Path) -> None:
        Image.fromarray(image().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
        grey = np.full((6, 4), 255, np.uint8)
        Image.fromarray(grey).save(tmp_path / "grey.png")
        made = predict(File(multiple_of=4), [tmp_path / "a.png", tmp_path / "grey.png"], tmp_path / "out")  # type: ignore[arg-type]
        with Image.open(made[0].mask) as mask:
            assert np.array_equal(np.asarray(mask), expected().numpy())
        assert (tmp_path / "out" / "coverage.csv").read_text() == (
            "image,frame,a,b\na,,0.500000,0.500000\ngrey,,1.000000,0.000000\nmean,,0.750000,0.250000\n"
        )

    def test_interrupted_keeps_what_was_written_and_says_how_far(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png"):
            Image.fromarray(image().permute(1, 2, 0).numpy()).save(tmp_path / name)

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        said: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            predict(File(), [tmp_path], tmp_path / "out", progress=stop, said=said.append)  # type: ignore[arg-type]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "coverage.partial.csv", "masks", "overlays",
        ]  # fmt: skip
        assert (tmp_path / "out" / "masks" / "a.png").is_file()
        assert "1 images and frames that were done" in said[-1]

    def test_a_submission_needs_the_run(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="--submission voc: needs the run"):
            predict(File(), [tmp_path], tmp_path / "out", submission="voc")  # type: ignore[arg-type]


class TestOpening:
    def test_what_is_neither(self, tmp_path: Path) -> None:
        (tmp_path / "x.txt").write_text("x")
        with pytest.raises(RunError, match="neither the folder of a run nor an exported file"):
            open_student(tmp_path / "x.txt")
        with pytest.raises(RunError, match=r"nowhere\.onnx: no such file\. Exported students are made by"):
            open_student(tmp_path / "nowhere.onnx")
        with pytest.raises(RunError, match="no such folder"):
            open_student(tmp_path / "nowhere")
        with pytest.raises(RunError, match="it is no run"):
            open_student(tmp_path)

    def test_a_hub_folder_of_others(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ExportError, match=r"holds no densekd\.json"):
            open_student(tmp_path)

    def test_weights_of_others(self, tmp_path: Path) -> None:
        from densekd import files

        files.write_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)})
        with pytest.raises(ExportError, match="without a manifest of densekd"):
            open_student(tmp_path / "w.safetensors")
        (tmp_path / "w.safetensors").write_bytes(b"no")
        with pytest.raises(ExportError, match="not a readable safetensors file"):
            open_student(tmp_path / "w.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{}, {"size": (32, 48), "normalise": True, "output": "softmax"}])
def test_an_onnx_file_gives_the_masks_of_its_run(tmp_path: Path, asked: dict[str, Any]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra export is not installed")
    (tmp_path / "net.py").write_text(NET)
    recipe = shipkit.recipe_of(f"{tmp_path}/net.py:build")
    recipe["data"]["augment"] = {"size": [32, 48]}
    run = shipkit.make_run(tmp_path / "run", recipe)
    export_run(run, "onnx", out=tmp_path / "student.onnx", images=1, **asked)
    cells = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(cells.repeat(11, 0).repeat(9, 1)).save(tmp_path / "photo.png")
    (one,) = predict(run, [tmp_path / "photo.png"], tmp_path / "by-run")
    (other,) = predict(open_student(tmp_path / "student.onnx"), [tmp_path / "photo.png"], tmp_path / "by-file")
    found, expected_ids = (np.asarray(Image.open(made.mask)) for made in (other, one))
    assert len(np.unique(expected_ids)) > 1
    assert (found == expected_ids).mean() > 0.999
