"""A student whose weights are stored with the channels last: trained, saved, shipped and resumed as any other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from densekd import files
from densekd.runs import Run, train
from densekd.runs.layout import layout_words
from densekd.runs.progress import Quiet
from densekd.training.specs import RuntimeSpec
from runkit import log_without_times


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2), nn.Conv2d(6, 6, 3, groups=6))


class TestTold:
    def test_nothing_where_it_acts_or_was_not_asked_for(self) -> None:
        last = network().to(memory_format=torch.channels_last)
        assert layout_words(last, RuntimeSpec()) == []
        assert layout_words(network(), RuntimeSpec(channels_last=False)) == []

    def test_the_layers_that_ended_up_otherwise(self) -> None:
        last = network().to(memory_format=torch.channels_last)
        last[2].weight.data = last[2].weight.data.contiguous()
        (line,) = layout_words(last, RuntimeSpec())
        assert "does not act on 1 of the student's 3 convolutions" in line
        assert line.endswith("layout: 2")

    def test_weights_that_are_made_in_every_pass(self) -> None:
        last = nn.Sequential(*[weight_norm(nn.Conv2d(3, 3, 3)) for _ in range(5)]).to(memory_format=torch.channels_last)
        (line,) = layout_words(last, RuntimeSpec())
        assert "5 of the student's 5" in line
        assert line.endswith("0, 1, 2 and 2 more")

    def test_shards(self) -> None:
        (line,) = layout_words(network(), RuntimeSpec(fsdp=True))
        assert "shards of weights have the plain layout" in line


class _StopAfter(Quiet):
    def step(self, taken: int, steps: int, result: object) -> None:
        if taken == 2:
            raise KeyboardInterrupt


def asked(last: bool) -> dict[str, object]:
    options = {"encoder_name": "tu-lcnet_050", "encoder_depth": 3, "psp_out_channels": 16}
    return {
        "data": {"name": "scenes", "train_count": 4, "val_count": 2, "size": [32, 32]},
        "student": {"model": "smp:PSPNet", "options": options},
        "train": {"steps": 4, "batch_size": 2, "checkpoint_every": 1, "optimizer": {"name": "sgd"}},
        "runtime": {"device": "cpu", "threads": 1, "channels_last": last},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(asked(True), out=tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
class TestLibraryNetwork:
    """PSPNet of segmentation-models-pytorch, four steps on drawn scenes."""

    def test_the_layout_changes_rounding_alone(self, whole: Run, tmp_path) -> None:
        plain = train(asked(False), out=tmp_path / "run")
        ours, theirs = files.read_tensors(whole.weights), files.read_tensors(plain.weights)
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
        rows = [[line.split(",")[1] for line in log_without_times(run.path)[1:]] for run in (whole, plain)]
        assert [float(value) for value in rows[0]] == pytest.approx([float(value) for value in rows[1]], rel=1e-4)
        assert not any("channels_last" in line for line in whole.record.warnings)

    def test_a_resumed_one_is_equal_bit_for_bit(self, whole: Run, tmp_path) -> None:
        out = tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            train(asked(True), out=out, progress=_StopAfter())
        resumed = train(asked(True), out=out, resume=True)
        assert resumed.weights.read_bytes() == whole.weights.read_bytes()
        name = "checkpoints/step-00000004/optimizer.safetensors"
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
        assert log_without_times(resumed.path) == log_without_times(whole.path)

    def test_the_shipped_file_loads_in_its_own_library(self, whole: Run) -> None:
        import segmentation_models_pytorch as smp
        from safetensors.torch import load_model

        own = smp.PSPNet("tu-lcnet_050", encoder_weights=None, encoder_depth=3, psp_out_channels=16, classes=10)
        load_model(own, whole.weights)
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(own.eval()(images), whole.student()(images))

    @pytest.mark.long
    def test_it_exports(self, whole: Run, tmp_path) -> None:
        """What is exported from weights with the channels last gives what the network gives."""
        runtime = pytest.importorskip("onnxruntime")
        student = whole.student().to(memory_format=torch.channels_last).eval()
        assert student.segmentation_head[0].weight.is_contiguous(memory_format=torch.channels_last)
        images, path = torch.randn(2, 3, 32, 32), tmp_path / "student.onnx"
        torch.onnx.export(student, (images,), path, dynamo=True, verbose=False)
        session = runtime.InferenceSession(path)
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), student(images), rtol=1e-4, atol=1e-5)
