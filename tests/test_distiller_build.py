from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.distiller import Distiller, Term
from densekd.errors import TapError
from densekd.losses import ChannelWise, DistillationLoss
from densekd.teacher import Batch, TeacherInput
from distiller_parts import images, network, textbook, two_terms


class TestTeacherSide:
    def test_is_frozen_and_outside(self) -> None:
        student, teacher = network(4), network(8, dropout=0.5)
        distiller = Distiller(student, teacher, two_terms(), images())
        assert distiller.teacher is teacher
        own = {id(p) for p in distiller.parameters()}
        assert own == {id(p) for p in [*student.parameters(), *distiller.adapters.parameters()]}
        assert teacher not in list(distiller.modules())
        assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "adapters"}
        distiller.train()
        assert student.training
        assert not any(module.training for module in teacher.modules())
        assert not any(p.requires_grad for p in teacher.parameters())
        first, second = (distiller(images()).loss for _ in range(2))
        assert torch.equal(first, second)  # the teacher's dropout is off, the student has none
        assert int(teacher.norm.num_batches_tracked) == 0
        first.backward()
        assert all(p.grad is None for p in teacher.parameters())

    def test_follows_to(self) -> None:
        distiller = Distiller(network(4), network(8), two_terms(), images())
        nn.Sequential(distiller).double()
        assert distiller.teacher.stem.weight.dtype == torch.float64
        assert distiller(images().double()).loss.dtype == torch.float64

    def test_own_normalisation_and_size(self) -> None:
        teacher, x = network(8), images()
        spec = TeacherInput([0.5] * 3, [0.25] * 3, [0.0] * 3, [1.0] * 3, size=(32, 32))
        distiller = Distiller(network(4), teacher, [Term(ChannelWise())], x, teacher_input=spec).eval()
        wanted = F.interpolate((x - 0.5) / 0.25, (32, 32), mode="bilinear", align_corners=False)
        logits = F.interpolate(distiller.student(x), (32, 32), mode="bilinear", align_corners=False)
        out = distiller(x)
        assert out.loss.item() == pytest.approx(textbook(logits, teacher(wanted)).item(), rel=1e-4)
        assert "teacher_images" not in " ".join(distiller.state_dict())

    def test_source(self) -> None:
        class Cached:
            def __init__(self) -> None:
                self.batches: list[Batch] = []

            def maps(self, batch: Batch) -> Mapping[str, Tensor]:
                self.batches.append(batch)
                return {"logits": torch.ones(batch.images.shape[0], 5, 4, 4, requires_grad=True)}

        source = Cached()
        distiller = Distiller(network(4), source, [Term(ChannelWise())], images())
        out = distiller.to(torch.float32).train()(images(3))
        assert source.batches[-1].images.shape[0] == 3
        assert distiller.teacher is source
        assert out.loss.item() > 0
        with pytest.raises(TapError, match=r"gives no map 'logit'; did you mean 'logits'\?.*it gives: 'logits'"):
            Distiller(network(4), Cached(), [Term(ChannelWise(), teacher="logit")], images())

    def test_class_map(self) -> None:
        student, teacher, x = network(4, classes=3), network(8, classes=5), images()
        distiller = Distiller(student, teacher, [Term(ChannelWise())], x, class_map=[[4], [], [0, 1]]).eval()
        t = teacher(x)
        merged = torch.stack([t[:, 4], t[:, :2].double().exp().sum(1).log()], 1)
        assert distiller(x).loss.item() == pytest.approx(textbook(student(x)[:, [0, 2]], merged).item(), rel=1e-4)
        assert any("no class for student classes 1" in notice for notice in distiller.notices)


class TestDryRun:
    def test_leaves_everything_as_it_was(self) -> None:
        student, teacher = network(4, dropout=0.5), network(8, dropout=0.5)
        student.norm.eval()
        student.stem.weight.grad = torch.ones_like(student.stem.weight)
        modes = {name: module.training for name, module in student.named_modules()}
        states = [{k: v.clone() for k, v in net.state_dict().items()} for net in (student, teacher)]
        torch.manual_seed(5)
        rng = torch.get_rng_state()
        distiller = Distiller(student, teacher, two_terms(), images())
        assert torch.equal(torch.get_rng_state(), rng)
        assert {name: module.training for name, module in student.named_modules()} == modes
        for net, state in zip((student, teacher), states, strict=True):
            assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert torch.equal(student.stem.weight.grad, torch.ones_like(student.stem.weight))
        assert all(p.grad is None for name, p in student.named_parameters() if name != "stem.weight")
        hooked = [name for net in (student, teacher) for name, module in net.named_modules() if module._forward_hooks]
        assert hooked == ["act", "head", "act", "head"]
        distiller.close()
        assert not any(module._forward_hooks for net in (student, teacher) for module in net.modules())

    def test_one_image_through_pooling_to_one_position(self) -> None:
        class Pooled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem = nn.Conv2d(3, 4, 1)
                self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
                self.head = nn.Conv2d(4, 5, 1)

            def forward(self, x: Tensor) -> Tensor:
                x = self.stem(x)
                return self.head(x + self.pool(x))

        assert Distiller(Pooled(), Pooled(), [Term(ChannelWise())], images(1)).eval()(images(1)).loss.isfinite()

    def test_unused_parameters_are_named_and_frozen(self) -> None:
        class Dead(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = network(4)
                self.stage4 = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
                self.parts = nn.ModuleDict({"live": nn.Conv2d(5, 5, 1), "dead": nn.Conv2d(5, 5, 1, bias=False)})
                self.skipped = nn.Conv2d(5, 5, 1)
                self.aux = nn.Conv2d(5, 2, 1)

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                y = self.parts["live"](self.net(x))
                if not self.training:
                    y = self.skipped(y)
                return {"out": y, "aux": self.aux(y)}

        student = Dead()
        distiller = Distiller(student, network(8), [Term(ChannelWise())], images())
        frozen = [name for name, p in student.named_parameters() if not p.requires_grad]
        assert frozen == ["stage4.0.weight", "stage4.0.bias", "stage4.1.weight", "stage4.1.bias", "parts.dead.weight"]
        (notice,) = [n for n in distiller.notices if "take no part" in n]
        assert notice == (
            "student: 5 parameter tensors (65 parameters) take no part in the forward pass and are frozen: "
            "stage4 (40), parts.dead (25)"
        )
        assert any("left trainable: skipped (30)" in n for n in distiller.notices)

    def test_adapters_are_there_from_the_start_and_the_same_every_time(self) -> None:
        states = []
        for seed in (1, 2):
            student, teacher = network(4), network(8)
            torch.manual_seed(seed)
            distiller = Distiller(student, teacher, two_terms(), images())
            states.append(distiller.adapters.state_dict())
        assert list(states[0]) == ["mimic.adapter.weight", "mimic.adapter.bias"]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert any("adapter: 1x1 convolution 4 -> 8 channels (40 parameters)" in n for n in distiller.notices)

    def test_what_a_loss_builds_is_trained_with_the_adapters(self) -> None:
        class Built(DistillationLoss):
            name = "built"

            def bind(self, student_shape: torch.Size, teacher_shape: torch.Size, num_classes: int | None) -> None:
                self.mix = nn.Conv2d(student_shape[1], teacher_shape[1], 1)

            def forward(self, student_map: Tensor, teacher_map: Tensor, labels: Any = None, mask: Any = None) -> Tensor:
                return (self.mix(student_map) - teacher_map).square().mean()

        states = []
        for seed in (1, 2):
            student, teacher = network(4), network(8)
            torch.manual_seed(seed)
            terms = [Term(Built(), student="act", teacher="act")]
            distiller = Distiller(student, teacher, terms, images())
            states.append(distiller.adapters.state_dict())
        assert "built:act.loss.mix.weight" in states[0]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        distiller(images()).loss.backward()
        assert all(p.grad is not None for p in distiller.adapters.parameters())


class Relation(DistillationLoss):
    """Similarities of positions, which ask for no equal channels."""

    name = "relation"
    equal_channels = False

    def __init__(self) -> None:
        super().__init__()
        self.bound: list[tuple[Any, ...]] = []
        self.came: list[tuple[Any, ...]] = []

    def bind(self, student_shape: torch.Size, teacher_shape: torch.Size, num_classes: int | None) -> None:
        self.bound.append((tuple(student_shape), tuple(teacher_shape), num_classes))

    def forward(self, student_map: Tensor, teacher_map: Tensor, labels: Any = None, mask: Any = None) -> Tensor:
        self.came.append((tuple(student_map.shape), tuple(teacher_map.shape)))
        s, t = (F.normalize(x.flatten(2), dim=1) for x in (student_map, teacher_map))
        return (s.mT @ s - t.mT @ t).square().mean()


class TestEqualChannels:
    """`equal_channels = False`: the student's map keeps its channels, and comes at the teacher's size."""

    @pytest.mark.parametrize(("stride", "size"), [(2, 8), (4, 4)])
    def test_no_convolution_but_the_resize(self, stride: int, size: int) -> None:
        loss, student, teacher = Relation(), network(4, stride=stride), network(8, stride=2)
        distiller = Distiller(student, teacher, [Term(loss, student="act", teacher="act")], images()).eval()
        assert list(distiller.adapters.parameters()) == []
        assert loss.bound == [((2, 4, 8, 8), (2, 8, 8, 8), 5)]
        out = distiller(images())
        assert loss.came == [((2, 4, 8, 8), (2, 8, 8, 8))]
        s, t = student.act(student.norm(student.stem(images()))), teacher.act(teacher.norm(teacher.stem(images())))
        assert s.shape[2] == size
        s = F.interpolate(s, (8, 8), mode="bilinear", align_corners=False)
        torch.testing.assert_close(out.loss, Relation()(s, t))
        notices = " ".join(distiller.notices)
        assert "1x1 convolution" not in notices
        assert ("student map resized from 4x4 to the teacher's 8x8" in notices) == (stride == 4)
        out.loss.backward()
        assert student.stem.weight.grad.abs().sum() > 0

    def test_others_get_the_convolution_and_equal_shapes(self) -> None:
        class Equal(Relation):
            equal_channels = True

        loss = Equal()
        distiller = Distiller(network(4), network(8), [Term(loss, student="act", teacher="act")], images())
        assert loss.bound == [((2, 8, 8, 8), (2, 8, 8, 8), 5)]
        assert sum(p.numel() for p in distiller.adapters.parameters()) == 40

    def test_with_a_class_map(self) -> None:
        loss, pair = Relation(), (network(4, classes=3), network(8, classes=5))
        Distiller(*pair, [Term(loss)], images(), class_map=[[4], [], [0, 1]])
        assert loss.bound == [((2, 2, 16, 16), (2, 2, 16, 16), 3)]


class TestCopies:
    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_copy_is_whole_and_its_own(self, how: str) -> None:
        distiller = Distiller(network(4), network(8), two_terms(), images()).eval()
        distiller.set_weights({"mimic": 0.25})
        expected = distiller(images())
        other = copy.deepcopy(distiller) if how == "deepcopy" else pickle.loads(pickle.dumps(distiller))
        got = other(images())
        assert torch.equal(got.loss, expected.loss)
        with torch.no_grad():
            for p in [*other.parameters(), *other.teacher.parameters()]:
                p.mul_(0.5)
        assert not torch.equal(other(images()).loss, expected.loss)
        assert torch.equal(distiller(images()).loss, expected.loss)
        assert other.train().teacher is not distiller.teacher
        other.close()
        assert torch.equal(distiller(images()).loss, expected.loss)

    def test_two_distillers_on_one_pair(self) -> None:
        student, teacher = network(4), network(8)
        first = Distiller(student, teacher, two_terms(), images()).eval()
        expected = first(images()).loss
        with Distiller(student, teacher, two_terms(), images()) as second:
            assert torch.equal(second(images()).loss, expected)
        assert torch.equal(first(images()).loss, expected)
        with pytest.raises(TapError, match="removed by close"):
            second(images())

    def test_student_alone_is_plain(self) -> None:
        student = network(4)
        keys = list(student.state_dict())
        distiller = Distiller(student, network(8), two_terms(), images())
        assert distiller.student is student
        assert list(student.state_dict()) == keys
        assert {f"student.{key}" for key in keys} <= set(distiller.state_dict())

    def test_state_round_trip(self) -> None:
        first = Distiller(network(4), network(8), two_terms(), images()).eval()
        with torch.no_grad():
            for p in first.parameters():
                p.add_(0.1)
        second = Distiller(network(4, seed=3), network(8), two_terms(), images()).eval()
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(images()).loss, second(images()).loss)
