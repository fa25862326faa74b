"""Up-sampling and cross-entropy as one step of training: the same losses and gradients, the same student."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from densekd import Distiller, Term, distill, doctor, train
from densekd.errors import ConfigError, ModelError
from densekd.losses import ChannelWise
from densekd.runs import readiness
from densekd.tasks.segmentation import SegmentationTask
from densekd.tasks.specs import SegmentationSpec
from densekd.training.last_upsampling import LastUpsampling, observed, putting_off
from densekd.training.objective import Alone, Distilled
from runkit import distillation, make_place, recipe

NETS = """
from torch import nn
from torch.nn import functional as F


class Small(nn.Module):
    def __init__(self, num_classes: int, up: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Conv2d(6, num_classes, 1)
        self.last = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True) if up else nn.Identity()

    def forward(self, x):
        return self.last(self.head(self.body(x)))


def upsampled(num_classes: int) -> nn.Module:
    return Small(num_classes)


def small(num_classes: int) -> nn.Module:
    return Small(num_classes, up=False)
"""


class Net(nn.Module):
    """Ends in `interpolate`, with an auxiliary map beside; its neck interpolates too."""

    def __init__(self, align_corners: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.ReLU())
        self.head, self.beside = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)
        self.up = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=align_corners)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(x)
        features = features + F.interpolate(features[:, :, ::2, ::2], features.shape[2:], mode="bilinear")
        aux = F.interpolate(self.beside(features), size=x.shape[2:], mode="bilinear", align_corners=False)
        return {"out": self.up(self.head(features)), "aux": aux}


def task(**options: Any) -> SegmentationTask:
    return SegmentationTask(SegmentationSpec(**options), 4, 255, ("a", "b", "c", "d"))


def batch(side: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (2, side, side), generator=generator)
    labels[:, :3] = 255
    return torch.randn(2, 3, side, side, generator=generator), labels


def ends(network: nn.Module, images: torch.Tensor) -> LastUpsampling:
    with observed(network.train()) as observation, torch.random.fork_rng():
        network(images)
    return observation.last


def compared(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, **options: Any) -> tuple[Any, Any]:
    """Loss and gradients of the plain way and of the other, from one state."""
    last = ends(copy.deepcopy(network), images)
    found = []
    for fused, left in ((False, None), (True, last)):
        net = copy.deepcopy(network).train()
        torch.manual_seed(0)
        total, _ = Alone(net, task(fused=fused, **options), left)(images, labels, None)
        total.backward()
        gradients = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
        found.append((total.detach(), torch.cat(gradients)))
    return found[0], found[1]


def assert_same(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, tolerance: float, **options: Any):
    (plain, slope), (other, gradient) = compared(network, images, labels, **options)
    assert other.item() == pytest.approx(plain.item(), rel=tolerance)
    assert (gradient - slope).norm() <= tolerance * slope.norm()


def largest(run: Any) -> int:
    """Elements of the largest tensor that an operator gave."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    Watch.most = max(Watch.most, value.numel())
            return out

    with Watch():
        run()
    return Watch.most


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_same_loss_and_gradients_without_full_size_logits(align_corners: bool) -> None:
    network, (images, labels) = Net(align_corners), batch()
    assert_same(network, images, labels, 2e-6, auxiliary=0.4, class_weights=(0.5, 1, 2, 1), label_smoothing=0.1)
    last = ends(network, images)
    assert {name: (call.small, call.upsampling.align_corners) for name, call in last.calls.items()} == {
        "main": ((4, 4), align_corners),
        "auxiliary": ((4, 4), False),
    }
    assert last.after == {"", "up"}


def test_full_size_logits_never_exist() -> None:
    network, (images, labels) = Net(), batch(32)
    last = ends(network, images)
    full = 2 * 4 * 32 * 32

    def step(fused: bool) -> None:
        objective = Alone(network, task(fused=fused, auxiliary=0.4), last if fused else None)
        objective(images, labels, None)[0].backward()

    assert largest(lambda: step(False)) >= full
    # the features of the body, 6 channels at a quarter of the side, and the images
    assert largest(lambda: step(True)) <= max(images.numel(), full // 2)


def test_the_task_resizes_a_small_map_in_one_with_the_loss() -> None:
    (images, labels), network = batch(), nn.Conv2d(3, 4, 4, stride=4)
    assert_same(network, images, labels, 2e-6)
    assert ends(network, images) == LastUpsampling()


def test_a_size_that_is_not_the_labels_goes_the_plain_way() -> None:
    """The network's own up-sampling first, then the task's: one step cannot do both."""
    network, (images, labels) = Net(), batch()
    labels = F.interpolate(labels[:, None].float(), (20, 24), mode="nearest")[:, 0].long()
    (plain, slope), (other, gradient) = compared(network, images, labels)
    torch.testing.assert_close(other, plain)
    torch.testing.assert_close(gradient, slope)


def test_a_loss_that_reads_full_size_logits_gets_them() -> None:
    network, (images, labels) = Net(), batch()
    last = ends(network, images)
    for options in ({"dice": 1.0}, {"ohem": {"keep_fraction": 0.5, "min_kept": 1}}):
        plain = Alone(network, task(**options))(images, labels, None)[0]
        torch.testing.assert_close(Alone(network, task(**options), last)(images, labels, None)[0], plain)
        assert "full-size logits" in str(task(**options).unfused)


def test_nothing_stays_on_the_network() -> None:
    network, (images, labels) = Net(), batch()
    before = {name: dict(vars(module)) for name, module in network.named_modules()}
    keys = list(network.state_dict())
    objective = Alone(network, task(), ends(network, images))
    objective(images, labels, None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert {name: set(vars(module)) for name, module in network.named_modules()} == {
        name: set(found) for name, found in before.items()
    }
    assert list(network.state_dict()) == keys
    assert network(images)["out"].shape == (2, 4, 16, 16)

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    handle = network.head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        objective(images, labels, None)
    handle.remove()
    assert network(images)["out"].shape == (2, 4, 16, 16)
    assert not network._forward_hooks


def test_a_network_that_ends_in_another_way_now_is_told() -> None:
    network, (images, labels) = Net(), batch()
    last = ends(network, images)
    network.up = nn.Upsample(scale_factor=4, mode="nearest")
    with pytest.raises(ModelError, match=r"does not end in the up-sampling.*task.fused=false"):
        Alone(network, task(), last)(images, labels, None)


@pytest.mark.parametrize(
    ("last", "found"),
    [
        (nn.Upsample(scale_factor=2, mode="nearest"), False),
        (nn.Upsample(scale_factor=2, mode="bicubic"), False),
        (nn.Upsample(scale_factor=1.5, mode="bilinear"), False),
        (nn.Upsample(scale_factor=2.0, mode="bilinear"), True),
        (nn.Upsample(size=8, mode="bilinear"), True),
        (nn.Sequential(nn.Upsample(size=8, mode="bilinear"), nn.Identity()), True),
        (nn.Sequential(nn.Upsample(size=8, mode="bilinear"), nn.Conv2d(4, 4, 1)), False),
        (nn.Upsample(size=4, mode="bilinear"), False),
    ],
    ids=str,
)
def test_only_a_bilinear_enlargement_at_the_very_end_is_left_to_the_loss(last: nn.Module, found: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), last)
    assert bool(ends(network, batch()[0]).calls) == found


def test_an_up_sampled_map_that_more_is_made_of_is_not_left_out() -> None:
    class Reused(Net):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            out = super().forward(x)["out"]
            if self.change == "again":
                F.interpolate(out, scale_factor=0.5, mode="nearest")
            if self.change == "in place":
                return {"out": out.mul_(2.0)}
            return {"out": out, "other": torch.cat([out, out], 1)} if self.change == "more" else {"out": out}

    network, images = Reused(), batch()[0]
    for change, found in (("", {"main"}), ("in place", set()), ("more", set()), ("again", set())):
        network.change = change
        assert set(ends(network, images).calls) == found


def test_the_distiller_and_its_taps_read_what_they_always_read() -> None:
    images, labels = batch()
    student, teacher = Net(), Net()
    last = ends(student, images)
    terms = [Term(ChannelWise(), student="head", teacher="head", weight=3.0)]
    distiller = Distiller(student, teacher, terms, images[:1])
    results = []
    for fused, left in ((False, None), (True, last)):
        student.zero_grad()
        total, parts = Distilled(distiller, task(fused=fused), left)(images, labels, None)
        total.backward()
        results.append((total.detach(), parts["channelwise:head"], student.body[0].weight.grad.clone()))
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain)
    # the distiller itself: the student's own output, untouched
    assert distiller(images).student["out"].shape == (2, 4, 16, 16)


def test_the_spec_refuses_what_cannot_be_fused() -> None:
    for options in ({"dice": 0.5}, {"binary": True}, {"ohem": {"threshold": 0.7}}):
        SegmentationSpec(**options)
        with pytest.raises(ValidationError, match=r"fused is true, but task\."):
            SegmentationSpec(fused=True, **options)
    assert task(fused=False).unfused == "task.fused is false"
    assert task().unfused is None


def place(root: Path) -> Path:
    make_place(root)
    (root / "up.py").write_text(NETS)
    return root


def up(root: Path, name: str = "upsampled", **task_options: Any) -> dict[str, Any]:
    return recipe(root, student={"model": f"{root}/up.py:{name}"}, task=task_options)


def parameters(run: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.student().parameters()])


@pytest.mark.slow
def test_a_run_says_what_it_does_and_ships_the_same_student(tmp_path: Path) -> None:
    root = place(tmp_path / "place")
    # Adam would make steps of the rounding in gradients that are zero (a bias before a norm).
    sgd = {"train__optimizer": {"name": "sgd", "lr": 0.05}}
    runs = {fused: train(up(root, fused=fused), out=tmp_path / str(fused), **sgd) for fused in ("auto", True, False)}
    said = {
        fused: [line for line in run.record.warnings if line.startswith("task.fused")] for fused, run in runs.items()
    }
    assert said[True] == [
        "task.fused: up-sampling and cross-entropy are one step: in training the student's class map stays at 4x6, the "
        "labels at 16x24"
    ]
    assert said[False] == []
    torch.testing.assert_close(parameters(runs[True]), parameters(runs[False]), rtol=1e-3, atol=1e-4)
    assert runs[True].student().state_dict().keys() == runs[False].student().state_dict().keys()
    assert runs[True].student().eval()(torch.randn(1, 3, 16, 24)).shape == (1, 3, 16, 24)
    small = train(up(root, "small"), out=tmp_path / "small")
    assert any("stays at 4x6" in line for line in small.record.warnings)


@pytest.mark.slow
def test_a_run_says_why_not(tmp_path: Path) -> None:
    root = place(tmp_path / "place")
    loss = train(up(root, dice=0.5), out=tmp_path / "dice")
    assert "task.fused: full-size logits are made in training: task.dice reads full-size logits" in loss.record.warnings
    with pytest.raises(ConfigError, match=r"task.fused: true, but the student's class map has the labels' size"):
        train(recipe(root, task={"fused": True}), out=tmp_path / "own")
    plain = train(recipe(root), out=tmp_path / "plain")
    assert not any("task.fused" in line for line in plain.record.warnings)


@pytest.mark.slow
def test_a_term_on_the_up_sampled_map_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = place(tmp_path / "place")
    teacher = train(recipe(root, student={"model": f"{root}/nets.py:teacher"}), out=tmp_path / "teacher")
    changes = {"student": {"model": f"{root}/up.py:upsampled"}}
    asked = distillation(root, teacher.path / "student.safetensors") | changes
    checked: list[tuple[int, ...]] = []

    def preflight(distiller: Distiller, given: Any, loss: Any) -> Any:
        def seen(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            checked.append(tuple(output.shape[2:]))
            return loss(output, labels)

        return doctor.preflight(distiller, given, seen)

    monkeypatch.setattr(readiness, "preflight", preflight)
    for tap, reads in (("output", True), ("last", True), ("head", False)):
        asked["terms"] = [{"method": "channelwise", "student": tap, "teacher": "output"}]
        run = distill(asked, out=tmp_path / tap)
        lines = [line for line in run.record.warnings if line.startswith("task.fused")]
        assert len(lines) == 1
        assert ("reads the student's map after its last up-sampling" in lines[0]) == reads
        assert ("one step" in lines[0]) != reads
    assert checked == [(16, 24), (16, 24), (4, 6)]  # the pre-flight makes what training makes
    asked["terms"][0]["student"] = "output"
    with pytest.raises(ConfigError, match=r"task.fused: true, but term 'channelwise:output' reads"):
        distill({**asked, "task": {"fused": True}}, out=tmp_path / "true")


def libraries() -> dict[str, nn.Module]:
    import segmentation_models_pytorch as smp
    import torchvision
    import transformers

    tv = torchvision.models.segmentation
    sizes = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    segformer = transformers.SegformerConfig(num_labels=4, decoder_hidden_size=16, **sizes)
    return {
        "smp PSPNet": smp.PSPNet("resnet18", encoder_weights=None, classes=4),
        "torchvision DeepLabV3": tv.deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4, aux_loss=True
        ),
        "torchvision LRASPP": tv.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4),
        "transformers SegFormer": transformers.SegformerForSemanticSegmentation(segformer),
    }


@pytest.mark.slow
def test_networks_of_the_libraries() -> None:
    images, labels = batch(64)
    for name, network in libraries().items():
        options = {"auxiliary": 0.4} if name == "torchvision DeepLabV3" else {}
        assert_same(network, images, labels, 1e-5, **options)
        before = network.state_dict().keys()
        last = ends(network, images)
        assert set(last.calls) == ({"main", "auxiliary"} if options else set() if "SegF" in name else {"main"}), name
        with putting_off(network, last):
            network(images)
        assert network.state_dict().keys() == before
        copy.deepcopy(network).load_state_dict(network.state_dict(), strict=True)
        # bf16: the plain way rounds the full-size map as well
        with torch.autocast("cpu", torch.bfloat16):
            (plain, slope), (other, gradient) = compared(network, images, labels, **options)
        assert other.item() == pytest.approx(plain.item(), rel=5e-3), name
        assert (gradient - slope).norm() <= 0.05 * slope.norm(), name


@pytest.mark.slow
def test_in_ddp(tmp_path: Path) -> None:
    import torch.distributed as dist

    images, labels = batch()
    network = Net()
    last = ends(network, images)
    expected = compared(network, images, labels, auxiliary=0.4)[0]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(Alone(network, task(auxiliary=0.4), last))
        total, _ = wrapped(images, labels, None)
        total.backward()
    finally:
        dist.destroy_process_group()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
    torch.testing.assert_close(total.detach(), expected[0])
    torch.testing.assert_close(gradient, expected[1])
