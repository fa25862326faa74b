from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.errors import ArgumentError, ShapeError, TapError
from densekd.teacher import Batch, LiveTeacher, TeacherImages, TeacherInput, TeacherSource


class TestBatch:
    def test_images(self) -> None:
        x, y = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 8, 8)
        assert Batch((x, 1), {}).images is x
        assert Batch((), {"pixel_values": x}).images is x
        assert Batch((x, 1), {"a": 2}).with_images(y) == Batch((y, 1), {"a": 2})
        assert Batch((), {"pixel_values": x, "a": 2}).with_images(y).kwargs == {"pixel_values": y, "a": 2}

    @pytest.mark.parametrize("batch", [Batch((), {}), Batch(("x",), {}), Batch((torch.rand(3, 4, 4),), {})])
    def test_without_images(self, batch: Batch) -> None:
        with pytest.raises(ArgumentError, match=r"expected images, a tensor \(N, C, H, W\).*got"):
            _ = batch.images


class TestLiveTeacher:
    def test_is_a_source_and_frozen(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
        teacher = LiveTeacher(network, ["0", "output"])
        assert isinstance(teacher, TeacherSource)
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        images = torch.rand(2, 3, 4, 4)
        network.train()
        maps = teacher.maps(Batch((images,), {}))
        assert not network.training
        assert torch.equal(maps["output"], network(images))
        assert torch.equal(maps["0"], network[0](images))
        assert not any(tapped.requires_grad for tapped in maps.values())
        assert int(network[1].num_batches_tracked) == 0

    def test_follows_and_closes(self) -> None:
        teacher = LiveTeacher(nn.Conv2d(3, 4, 1))
        teacher._apply(lambda tensor: tensor.double())
        assert teacher.network.weight.dtype == torch.float64
        teacher.close()
        with pytest.raises(TapError, match="removed by close"):
            teacher.maps(Batch((torch.rand(1, 3, 4, 4).double(),), {}))


class TestTeacherInput:
    def test_renormalises(self) -> None:
        raw = torch.rand(2, 3, 8, 8, dtype=torch.float64)
        mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.1]
        own_mean, own_std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

        def normalise(images: Tensor, m: list[float], s: list[float]) -> Tensor:
            return (images - torch.tensor(m).view(3, 1, 1)) / torch.tensor(s).view(3, 1, 1)

        images = TeacherImages(TeacherInput(mean, std, own_mean, own_std))
        torch.testing.assert_close(
            images(normalise(raw, own_mean, own_std)), normalise(raw, mean, std), rtol=1e-5, atol=1e-5
        )
        assert images.state_dict() == {}

    def test_resizes(self) -> None:
        same = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
        x = torch.rand(1, 3, 8, 8)
        larger = TeacherImages(TeacherInput(*same, size=(16, 12)))(x)
        torch.testing.assert_close(larger, F.interpolate(x, (16, 12), mode="bilinear", align_corners=False))
        smaller = TeacherImages(TeacherInput(*same, size=(4, 4)))(torch.ones(1, 3, 8, 8))
        torch.testing.assert_close(smaller, torch.ones(1, 3, 4, 4))
        assert TeacherImages(TeacherInput(*same, size=(8, 8)))(x).shape == x.shape

    def test_keeps_the_type(self) -> None:
        images = TeacherImages(TeacherInput([0.5], [0.5], [0.0], [1.0]))
        assert images(torch.rand(1, 1, 4, 4).bfloat16()).dtype == torch.bfloat16

    def test_refused(self) -> None:
        one = [0.5], [0.5], [0.0], [1.0]
        with pytest.raises(ArgumentError, match=r"one number per channel.*'mean': 2"):
            TeacherInput([0.5, 0.5], *one[1:])
        with pytest.raises(ArgumentError, match="std must be positive"):
            TeacherInput([0.5], [0.0], [0.0], [1.0])
        for size in ((0, 4), 64, (4,), (4.0, 4), "44", (True, 4), (4, 4, 4)):
            with pytest.raises(ArgumentError, match=r"size must be \(height, width\), two whole numbers.*got"):
                TeacherInput(*one, size=size)  # type: ignore[arg-type]
        for values in (0.5, None, "ab", [None]):
            with pytest.raises(ArgumentError, match="mean must be a list of numbers, one per channel"):
                TeacherInput(values, *one[1:])  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="student_std must be finite"):
            TeacherInput(*one[:3], [float("nan")])
        with pytest.raises(ArgumentError, match="one number per channel"):
            TeacherInput([], [], [], [])
        with pytest.raises(ShapeError, match="has 1 channels, the images have 3"):
            TeacherImages(TeacherInput(*one))(torch.rand(1, 3, 4, 4))
