"""Networks of the libraries made fast, in float32 and bfloat16, and compiled."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import densekd
from densekd.losses import ChannelWise
from densekd.teacher import Batch, FrozenTeacher

pytestmark = pytest.mark.slow
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler g++ here")


def images(n: int = 2, size: int = 64) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(3))


def lived_in(network: nn.Module) -> nn.Module:
    """Statistics of the normalisations from one batch, as training leaves them."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        network.train()(images(4))
    return network


def smp(name: str, encoder: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import segmentation_models_pytorch

        return getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None, classes=5, **options)

    return make


def torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision.models import segmentation

        return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5)

    return make


def timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, features_only=True)

    return make


def segformer() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=5, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16
    )
    return transformers.SegformerForSemanticSegmentation(config)


# network, taps, batch normalisations, those that can be folded (the rest stand before a convolution, or never run)
CASES = {
    "PSPNet": (smp("PSPNet", "resnet18", encoder_depth=5), ["logits", "encoder.layer4"], 24, 24),
    "DeepLabV3Plus": (smp("DeepLabV3Plus", "efficientnet-b0"), ["logits", "output"], 58, 57),
    "Unet, densenet": (smp("Unet", "densenet121"), ["logits"], 131, 69),
    "deeplabv3": (torchvision("deeplabv3_mobilenet_v3_large"), ["logits", "backbone[out]"], 53, 53),
    "segformer": (segformer, ["logits"], 1, 1),
    "hrnet features": (timm("hrnet_w18_small"), ["output[3]"], 87, 87),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_library(name: str) -> None:
    torch.manual_seed(0)
    make, taps, norms, foldable = CASES[name]
    teacher = lived_in(make())
    assert sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in teacher.modules()) == norms
    fast = densekd.freeze_teacher(teacher, example=images(), taps=taps, dtype="float32")
    assert fast.report.folded == foldable
    assert len(fast.report.left) == norms - foldable
    wide = copy.deepcopy(teacher).double().eval()
    exact = densekd.teacher.LiveTeacher(wide, taps).maps(Batch((images().double(),), {}))
    plain = densekd.teacher.LiveTeacher(copy.deepcopy(teacher), taps).maps(Batch((images(),), {}))
    for tap, found in fast.maps(Batch((images(),), {})).items():
        rounding = (plain[tap].double() - exact[tap]).norm()
        assert (found.double() - exact[tap]).norm() <= 10 * rounding + 1e-6 * exact[tap].norm()


@pytest.mark.parametrize("name", ["PSPNet", "deeplabv3", "segformer"])
def test_reduced_in_a_distiller(name: str) -> None:
    torch.manual_seed(0)
    make = CASES[name][0]
    teacher = lived_in(make())
    fast = densekd.freeze_teacher(teacher, example=images(), dtype="bfloat16")
    assert not fast.report.autocast
    assert 0 < fast.report.errors["logits"].maps < 0.2
    distiller = densekd.Distiller(make(), fast, [densekd.Term(ChannelWise())], images(1))
    out = distiller(images())
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert distiller.plans[0].teacher.is_class_map


class Branching(nn.Module):
    """Control flow that no tracer follows: a way that depends on values, a loop over shapes, an item taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.stem(x))
        if x.mean().item() > 1e3:
            x = -x
        for layer in self.body[: x.shape[2] // 16]:
            x = x + layer(x)
        return {"out": self.head(x)}


class Telling(nn.Module):
    """Takes note whenever it runs uncompiled."""

    uncompiled: ClassVar[list[bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.uncompiled.append(True)
        return x.relu()


@NEEDS_COMPILER
class TestCompiled:
    @pytest.mark.parametrize("make", [Branching, pytest.param(CASES["PSPNet"][0], marks=pytest.mark.long)])
    def test_gives_the_taps(self, make: Callable[[], nn.Module]) -> None:
        torch.manual_seed(0)
        teacher = lived_in(make())
        taps = ["logits", "encoder.layer4"] if hasattr(teacher, "encoder") else ["head", "body.1"]
        fast = densekd.freeze_teacher(teacher, example=images(), taps=taps, dtype="float32", compile=True)
        assert fast.report.compiled
        plain = densekd.teacher.LiveTeacher(copy.deepcopy(teacher), taps)
        for batch in (Batch((images(),), {}), Batch((images(3),), {}), Batch((images(),), {})):
            theirs = plain.maps(batch)
            for tap, found in fast.maps(batch).items():
                torch.testing.assert_close(found, theirs[tap], rtol=1e-3, atol=1e-3)

    @pytest.mark.long
    def test_ten_shapes(self) -> None:
        """torch gives up on a function that it has compiled eight times; no shape may run uncompiled."""
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Conv2d(3, 4, 3), Telling(), nn.Conv2d(4, 5, 1))
        fast = densekd.freeze_teacher(teacher, example=images(1, 8), taps=["2"], dtype="float32", compile=True)
        for size in range(8, 18):
            fast.maps(Batch((images(1, size),), {}))
            Telling.uncompiled.clear()
            fast.maps(Batch((images(1, size),), {}))
            assert Telling.uncompiled == []

    def test_copy_is_compiled_anew(self) -> None:
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1))
        fast = densekd.freeze_teacher(teacher, example=images(1, 8), taps=["2"], dtype="bfloat16", compile=True)
        other: FrozenTeacher = copy.deepcopy(fast)
        batch = Batch((images(1, 8),), {})
        torch.testing.assert_close(other.maps(batch)["2"], fast.maps(batch)["2"])
