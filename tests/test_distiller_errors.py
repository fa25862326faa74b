from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densekd.distiller import Distiller, Term
from densekd.errors import ArgumentError, DtypeError, ModelError, ShapeError, TapError
from densekd.losses import ChannelWise, DistillationLoss, PixelWise
from densekd.teacher import TeacherInput


def network(classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, classes, 1))


def images() -> Tensor:
    return torch.rand(2, 3, 8, 8)


def build(
    student: Any = None, teacher: Any = None, terms: Any = None, example: Any = None, **options: Any
) -> Distiller:
    return Distiller(
        network() if student is None else student,
        network() if teacher is None else teacher,
        [Term(ChannelWise())] if terms is None else terms,
        images() if example is None else example,
        **options,
    )


class NeedsLabels(DistillationLoss):
    name = "needs"
    needs = frozenset({"labels"})

    def forward(self, student_map: Tensor, teacher_map: Tensor, labels: Any = None, mask: Any = None) -> Tensor:
        return (student_map - teacher_map).square().mean()


class TestTerms:
    def test_no_loss(self) -> None:
        with pytest.raises(
            ArgumentError, match=r"needs a loss object.*the class ChannelWise itself: write ChannelWise\(\)"
        ):
            Term(ChannelWise)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="got a MSELoss"):
            Term(nn.MSELoss())  # type: ignore[arg-type]

    @pytest.mark.parametrize("side", ["student", "teacher"])
    @pytest.mark.parametrize(("tap", "came"), [(3, "a int"), (None, "a NoneType"), (nn.ReLU(), "a ReLU")], ids=str)
    def test_tap_is_no_text(self, side: str, tap: Any, came: str) -> None:
        with pytest.raises(DtypeError, match=rf"{side} must be the name of a tap, got {came}; expected 'logits'"):
            Term(ChannelWise(), **{side: tap})

    def test_name_is_no_text(self) -> None:
        with pytest.raises(DtypeError, match=r"name must be a text, got a int; leave it out"):
            Term(ChannelWise(), name=3)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="name is empty; give the term a name"):
            Term(ChannelWise(), name="")

    def test_loss_without_a_name(self) -> None:
        class Nameless(DistillationLoss):
            pass

        with pytest.raises(ArgumentError, match=r"loss Nameless has no name.*name = 'nameless'"):
            Term(Nameless())

    @pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
    def test_weight(self, weight: float) -> None:
        with pytest.raises(ArgumentError, match="weight of term 'channelwise:logits' must be finite and not negative"):
            Term(ChannelWise(), weight=weight)
        distiller = build()
        with pytest.raises(ArgumentError, match="must be finite and not negative"):
            distiller.set_weights({"channelwise:logits": weight})

    def test_weight_is_no_number(self) -> None:
        with pytest.raises(ArgumentError, match="must be a number, got a str"):
            Term(ChannelWise(), weight="3")  # type: ignore[arg-type]

    def test_list(self) -> None:
        with pytest.raises(ArgumentError, match="terms is empty"):
            build(terms=[])
        with pytest.raises(ArgumentError, match="must be a list of Term, got a Term"):
            build(terms=Term(ChannelWise()))
        with pytest.raises(
            ArgumentError, match=r"must hold Term objects, got a ChannelWise; write Term\(ChannelWise\(\)\)"
        ):
            build(terms=[ChannelWise()])

    def test_names(self) -> None:
        with pytest.raises(ArgumentError, match=r"2 terms are called 'channelwise:logits': give each its own name="):
            build(terms=[Term(ChannelWise()), Term(ChannelWise())])
        with pytest.raises(ArgumentError, match="cannot be called 'keys'"):
            build(terms=[Term(ChannelWise(), name="keys")])
        with pytest.raises(ArgumentError, match=r"cannot be called 'a\.b'"):
            build(terms=[Term(ChannelWise(), name="a.b"), Term(ChannelWise(), name="a/b")])

    def test_one_loss_in_two_terms(self) -> None:
        loss = ChannelWise()
        with pytest.raises(ArgumentError, match="'a' and 'b' share one loss object"):
            build(terms=[Term(loss, name="a"), Term(loss, name="b")])

    def test_unknown_weight(self) -> None:
        with pytest.raises(ArgumentError, match=r"no term 'channelwise:logit'; did you mean 'channelwise:logits'\?"):
            build().set_weights({"channelwise:logit": 1.0})


class TestNetworks:
    def test_same_object(self) -> None:
        student = network()
        with pytest.raises(ModelError, match=r"same object.*copy\.deepcopy"):
            build(student, student)
        assert all(p.requires_grad for p in student.parameters())

    def test_shared_parameters(self) -> None:
        student, teacher = network(), network()
        teacher[0] = student[0]
        with pytest.raises(ModelError, match=r"share 2 parameters \(0\.weight, 0\.bias\)"):
            build(student, teacher)
        assert all(p.requires_grad for p in student.parameters())

    def test_no_network(self) -> None:
        with pytest.raises(ArgumentError, match=r"student must be an nn.Module, got a str"):
            build("student")
        with pytest.raises(ArgumentError, match=r"teacher must be an nn\.Module or have maps\(batch\)"):
            build(teacher="teacher")

    def test_nothing_to_train(self) -> None:
        with pytest.raises(ArgumentError, match="no trainable parameter"):
            build(network().requires_grad_(False))

    def test_tap_before_anything_trainable(self) -> None:
        student = network()
        student[:2].requires_grad_(False)
        with pytest.raises(TapError, match="tap '0' of the student carries no gradient"):
            build(student, terms=[Term(ChannelWise(), student="0", teacher="0")])

    def test_another_device(self) -> None:
        with pytest.raises(ArgumentError, match="the teacher is on meta, the example on cpu: move"):
            build(teacher=network().to("meta"))

    def test_hooks_are_removed_after_an_error(self) -> None:
        student, teacher = network(), network()
        with pytest.raises(TapError):
            build(student, teacher, [Term(ChannelWise(), student="0", teacher="7")])
        with pytest.raises(TapError):
            build(student, teacher, [Term(ChannelWise(), student="0", teacher="1"), Term(ChannelWise(), student="9")])
        assert not any(module._forward_hooks for net in (student, teacher) for module in net.modules())


class TestOptions:
    def test_teacher_input(self) -> None:
        with pytest.raises(DtypeError, match=r"teacher_input must be a densekd\.TeacherInput or None, got a tuple"):
            build(teacher_input=(0.5, 0.5))

    @pytest.mark.parametrize("classes", [0, -1, 2.0, "5", True])
    def test_num_classes(self, classes: Any) -> None:
        with pytest.raises(ArgumentError, match=r"num_classes must be a whole number from 1, or None, got"):
            build(num_classes=classes)

    @pytest.mark.parametrize("classes", [3, "01", {0: [1]}])
    def test_class_map(self, classes: Any) -> None:
        with pytest.raises(ArgumentError, match=r"class_map: expected for each student class a list"):
            build(class_map=classes)
        with pytest.raises(ArgumentError, match=r"class_map: expected for student class 1 a list.*got None"):
            build(class_map=[[0], None])

    @pytest.mark.parametrize("error", [RuntimeError, ValueError, AssertionError])
    def test_size_that_the_teacher_cannot_take(self, error: type[Exception]) -> None:
        class Picky(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = network()

            def forward(self, x: Tensor) -> Tensor:
                if x.shape[2] % 8 or x.shape[3] % 8:
                    raise error(f"wrong height {x.shape[2]}")
                return self.net(x)

        own: dict[str, Any] = {name: [0.5] * 3 for name in ("mean", "std", "student_mean", "student_std")}
        student, teacher = network(), Picky()
        words = rf"images of 33x47, the size that TeacherInput asks for \({error.__name__}: wrong height 33\)"
        with pytest.raises(ArgumentError, match=words) as caught:
            build(student, teacher, teacher_input=TeacherInput(**own, size=(33, 47)))
        assert isinstance(caught.value.__cause__, error)
        assert not any(module._forward_hooks for net in (student, teacher) for module in net.modules())
        assert build(teacher=Picky(), teacher_input=TeacherInput(**own, size=(32, 48)))(images()).loss.isfinite()
        with pytest.raises(error, match="wrong height 9"):
            build(teacher=Picky(), example=torch.rand(1, 3, 9, 9))


class TestExample:
    @pytest.mark.parametrize("example", ["images", 3, {"x": torch.rand(1, 3, 4, 4)}, torch.rand(3, 8, 8), ()])
    def test_no_images(self, example: Any) -> None:
        with pytest.raises(
            ArgumentError, match=r"example must be a tensor of images|expected images, a tensor \(N, C, H, W\)"
        ):
            build(example=example)

    def test_empty(self) -> None:
        with pytest.raises(ArgumentError, match="holds no image"):
            build(example=torch.rand(0, 3, 8, 8))


class TestTaps:
    def test_unknown(self) -> None:
        teacher = nn.ModuleDict({"stem": nn.Conv2d(3, 3, 1)})
        with pytest.raises(TapError, match=r"the teacher \(ModuleDict\) has no module 'sten'; did you mean 'stem'\?"):
            build(teacher=teacher, terms=[Term(ChannelWise(), student="0", teacher="sten")])

    def test_no_spatial_map(self) -> None:
        classifier = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        with pytest.raises(TapError, match=r"tap 'logits' of the student: expected a spatial map.*\(2, 5\)"):
            build(classifier)

    def test_batch_is_not_first(self) -> None:
        class Turned(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.transpose(0, 1)

        student = nn.Sequential(nn.Conv2d(3, 5, 1), Turned())
        with pytest.raises(TapError, match=r"tap '1' of the student: expected a map of 2 images along the first axis"):
            build(student, terms=[Term(ChannelWise(), student="1")])

    def test_class_counts_differ(self) -> None:
        with pytest.raises(
            TapError, match=r"has 5 classes, the teacher's 'logits' has 7.*class_map=.*tap feature maps"
        ):
            build(teacher=network(7))
        with pytest.raises(ArgumentError, match="class_map has 2 entries, the student has 5 classes"):
            build(teacher=network(7), class_map=[[0], [1]])
        features = build(teacher=network(7), terms=[Term(ChannelWise(), student="0", teacher="2")])
        assert features(images()).loss.isfinite()

    def test_features_for_a_loss_of_classes(self) -> None:
        with pytest.raises(
            TapError, match=r"pixelwise compares classes.*'0' of the student and '0' of the teacher cannot"
        ):
            build(terms=[Term(PixelWise(), student="0", teacher="0")])
        with pytest.raises(TapError, match=r"'2' of the student \(5 channels\) and '2' of the teacher \(7 channels\)"):
            build(teacher=network(7), terms=[Term(PixelWise(), student="2", teacher="2")])
        assert build(terms=[Term(PixelWise(), student="2", teacher="2")])(images()).loss.isfinite()

    def test_labels_with_an_unknown_class(self) -> None:
        with pytest.raises(ArgumentError, match="needs labels, but class_map leaves student classes without"):
            build(terms=[Term(NeedsLabels())], class_map=[[0], [1], [2], [3], []])

    def test_class_map_without_effect_says_so(self) -> None:
        distiller = build(terms=[Term(ChannelWise(), student="0", teacher="0")], class_map=[[0], [1], [2], [3], [4]])
        assert any("class_map has no effect" in notice for notice in distiller.notices)

    def test_not_called_in_a_later_step(self) -> None:
        class Sometimes(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.extra, self.skip = network(), nn.Conv2d(5, 5, 1), False

            def forward(self, x: Tensor) -> Tensor:
                y = self.net(x)
                return y if self.skip else self.extra(y)

        student = Sometimes()
        distiller = build(student, terms=[Term(ChannelWise(), student="extra")])
        student.skip = True
        with pytest.raises(TapError, match="tap 'extra' of the student was not called in this forward pass"):
            distiller(images())


class TestStep:
    def test_labels(self) -> None:
        distiller = build(terms=[Term(NeedsLabels())])
        with pytest.raises(
            ArgumentError, match=r"term 'needs:logits' needs labels: call distiller\(images, labels=labels\)"
        ):
            distiller(images())
        with pytest.raises(ShapeError, match=r"labels: expected \(2, 8, 8\).*got \(2, 1, 8, 8\)"):
            distiller(images(), labels=torch.zeros(2, 1, 8, 8, dtype=torch.int64))
        with pytest.raises(DtypeError, match="labels: expected integers"):
            distiller(images(), labels=torch.zeros(2, 8, 8))

    @pytest.mark.parametrize("weight", [1.0, 0.0])
    def test_labels_that_no_term_needs(self, weight: float) -> None:
        distiller = build(terms=[Term(ChannelWise(), weight=weight)])
        good = torch.zeros(2, 8, 8, dtype=torch.int64)
        for labels in (good, good.to(torch.uint8)):
            assert distiller(images(), labels=labels).loss.isfinite()
        with pytest.raises(ShapeError, match=r"labels: expected \(2, 8, 8\), one value per pixel.*got \(2, 4, 4\)"):
            distiller(images(), labels=good[:, :4, :4])
        for labels, came in (
            (good.float(), "torch.float32"),
            (good.bool(), "torch.bool"),
            (good.to(torch.complex64), "torch.complex64"),
        ):
            with pytest.raises(DtypeError, match=rf"labels: expected integers.*got {came}; convert with"):
                distiller(images(), labels=labels)
        with pytest.raises(DtypeError, match=r"labels: expected a tensor \(N, H, W\) = \(2, 8, 8\) or None.*list"):
            distiller(images(), labels=[[0]])

    @pytest.mark.parametrize("loss", [ChannelWise, NeedsLabels])
    def test_another_device(self, loss: type[DistillationLoss]) -> None:
        distiller = build(terms=[Term(loss())])
        labels = torch.zeros(2, 8, 8, dtype=torch.int64, device="meta")
        with pytest.raises(ArgumentError, match=r"labels: expected on cpu, where the images are, got meta; move"):
            distiller(images(), labels=labels)
        with pytest.raises(ArgumentError, match=r"valid: expected on cpu, where the images are, got meta; move"):
            distiller(images(), valid=labels.bool())

    def test_valid(self) -> None:
        distiller = build()
        with pytest.raises(ShapeError, match=r"valid: expected \(2, 8, 8\).*got \(2, 4, 4\)"):
            distiller(images(), valid=torch.ones(2, 4, 4, dtype=torch.bool))
        with pytest.raises(DtypeError, match=r"valid: expected a bool tensor.*float32"):
            distiller(images(), valid=torch.ones(2, 8, 8))
        with pytest.raises(DtypeError, match=r"valid: expected a tensor.*got a bool"):
            distiller(images(), valid=True)

    @pytest.mark.parametrize(
        ("value", "words"), [(lambda s: s, r"a scalar, got shape \(2, 5, 8, 8\)"), (lambda s: 0.0, "got a float")]
    )
    def test_loss_that_is_no_scalar(self, value: Any, words: str) -> None:
        class Map(NeedsLabels):
            needs = frozenset()

            def forward(self, student_map: Tensor, teacher_map: Tensor, labels: Any = None, mask: Any = None) -> Tensor:
                return value(student_map)

        with pytest.raises(ArgumentError, match=rf"the loss of term 'needs:logits' must return .*{words}"):
            build(terms=[Term(Map())])(images())

    def test_no_images(self) -> None:
        with pytest.raises(ArgumentError, match="expected images"):
            build()(x=images())

    def test_second_copy_of_the_student_is_a_fine_teacher(self) -> None:
        student = network()
        out = build(student, copy.deepcopy(student)).eval()(images())
        assert out.loss.item() == pytest.approx(0.0, abs=1e-6)
