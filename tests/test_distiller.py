from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densekd.distiller import Distiller, Term
from densekd.errors import TapError
from densekd.losses import ChannelWise, DistillationLoss, FeatureMimic
from distiller_parts import images, network, textbook, two_terms


class TestForward:
    def test_values_and_gradients_against_the_textbook(self) -> None:
        student, teacher, x = network(4), network(8, stride=4, seed=1), images()
        distiller = Distiller(student, teacher, two_terms(), x)
        out = distiller(x)
        with torch.no_grad():
            act_t = teacher.act(teacher.norm(teacher.stem(x)))
            head_t = teacher.head(act_t)
        act_s = student.act(student.norm(student.stem(x)))
        head_s = student.head(act_s)
        weight, bias = (p.detach() for p in distiller.adapters["mimic"].adapter.parameters())
        mimic = F.interpolate(F.conv2d(act_s, weight, bias), act_t.shape[2:], mode="bilinear", align_corners=False)
        first = 3.0 * textbook(F.interpolate(head_s, head_t.shape[2:], mode="bilinear", align_corners=False), head_t)
        second = 0.5 * F.mse_loss(mimic.double(), act_t.double())
        assert out.loss.item() == pytest.approx((first + second).item(), rel=1e-4)
        assert list(out.parts) == ["channelwise:head", "mimic"]
        assert out.parts["channelwise:head"].item() == pytest.approx(first.item(), rel=1e-4)
        assert out.parts["mimic"].item() == pytest.approx(second.item(), rel=1e-4)
        assert out.loss.dtype == torch.float32
        assert not out.parts["mimic"].requires_grad
        expected = torch.autograd.grad(first + second, list(student.parameters()))
        got = torch.autograd.grad(out.loss, list(student.parameters()))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

    def test_student_output_is_untouched(self) -> None:
        class Wrap(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = network(4)

            def forward(self, x: Tensor, scale: float = 1.0, *, extra: float = 0.0) -> dict[str, Any]:
                self.last = {"out": self.net(x) * scale + extra, "note": "kept"}
                return self.last

        student, teacher, x = Wrap(), Wrap(), images()
        distiller = Distiller(student, teacher, [Term(ChannelWise())], (x, 2.0))
        out = distiller(x, 3.0, extra=1.0)
        assert out.student is student.last
        torch.testing.assert_close(teacher.last["out"], teacher.net(x) * 3.0 + 1.0)

    def test_keyword_images(self) -> None:
        class Keyword(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = network(4)

            def forward(self, pixel_values: Tensor) -> Tensor:
                return self.net(pixel_values)

        x = images()
        distiller = Distiller(Keyword(), Keyword(), [Term(ChannelWise())], {"pixel_values": x})
        assert torch.equal(distiller(pixel_values=x).loss, distiller(x).loss)

    def test_other_image_sizes_and_one_image(self) -> None:
        distiller = Distiller(network(4), network(8), two_terms(), images(1))
        for x in (images(1), images(3, 16, 24), images(2, 20, 12)):
            assert distiller(x).loss.isfinite()

    def test_two_forwards_before_one_backward(self) -> None:
        distiller = Distiller(network(4), network(8), two_terms(), images()).eval()
        a, b = images(2), images(3, 24, 24)
        parameters = list(distiller.parameters())
        total = distiller(a).loss + distiller(b).loss
        got = torch.autograd.grad(total, parameters)
        first, second = (torch.autograd.grad(distiller(x).loss, parameters) for x in (a, b))
        for g, f, s in zip(got, first, second, strict=True):
            torch.testing.assert_close(g, f + s)

    def test_no_graph_is_kept(self) -> None:
        distiller = Distiller(network(4), network(8), two_terms(), images())
        distiller(images())
        assert distiller._reader.store.seen == {}
        assert distiller.source.reader.store.seen == {}
        distiller.student(images())
        assert distiller._reader.store.seen == {}

    @pytest.mark.slow
    def test_gradient_checkpointing(self) -> None:
        class Checkpointed(nn.Module):
            def __init__(self, reentrant: bool) -> None:
                super().__init__()
                self.first, self.rest = nn.Conv2d(3, 3, 1), network(4)
                self.reentrant = reentrant

            def forward(self, x: Tensor) -> Tensor:
                return checkpoint(self.rest, self.first(x), use_reentrant=self.reentrant)

        x = images()
        student = Checkpointed(False)
        plain = nn.Sequential(OrderedDict(first=copy.deepcopy(student.first), rest=copy.deepcopy(student.rest)))
        terms = [Term(ChannelWise(), student="rest.head", teacher="head")]
        got, expected = (Distiller(s, network(8), copy.deepcopy(terms), x)(x).loss for s in (student, plain))
        assert torch.equal(got, expected)
        got.backward()
        expected.backward()
        for p, q in zip(student.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        with pytest.raises(TapError, match=r"carries no gradient.*re-entrant checkpointing"):
            Distiller(Checkpointed(True), network(8), copy.deepcopy(terms), x)
        outer = Distiller(Checkpointed(True), network(8), [Term(ChannelWise())], x)
        assert any("could not be looked for" in notice for notice in outer.notices)

    def test_autocast(self) -> None:
        distiller = Distiller(network(4), network(8), two_terms(), images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = distiller(images())
        assert out.student.dtype == torch.bfloat16
        assert out.loss.dtype == torch.float32
        assert out.loss.item() == pytest.approx(distiller(images()).loss.item(), rel=0.05)
        out.loss.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in distiller.parameters())

    def test_built_under_autocast_and_no_grad(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            distiller = Distiller(network(4), network(8), two_terms(), images())
        assert {p.dtype for p in distiller.parameters()} == {torch.float32}
        assert distiller(images()).loss.requires_grad

    def test_channels_last_and_half(self) -> None:
        distiller = Distiller(network(4), network(8), two_terms(), images()).eval()
        expected = distiller(images()).loss
        distiller = distiller.to(memory_format=torch.channels_last)
        assert distiller.teacher.stem.weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(distiller(images().to(memory_format=torch.channels_last)).loss, expected)
        distiller = distiller.to(torch.bfloat16)
        assert distiller.teacher.stem.weight.dtype == torch.bfloat16
        assert distiller(images().bfloat16()).loss.item() == pytest.approx(expected.item(), rel=0.1)


class TestMaskAndLabels:
    def test_valid_is_brought_to_map_size(self) -> None:
        student, teacher, x = network(4), network(8), images()
        distiller = Distiller(student, teacher, [Term(ChannelWise(), student="head", teacher="head")], x).eval()
        valid = torch.zeros(2, 16, 16, dtype=torch.bool)
        valid[:, :6, :] = True
        head = {}
        for name, net in (("s", student), ("t", teacher)):
            with torch.no_grad():
                head[name] = net.head(net.act(net.norm(net.stem(x))))[:, :, :3]
        # The maps are nearly equal: what float32 rounds is of the order of 1e-7, whatever the value.
        exact = textbook(head["s"], head["t"]).item()
        assert distiller(x, valid=valid).loss.item() == pytest.approx(exact, rel=1e-5, abs=1e-6)
        nothing = distiller(x, valid=torch.zeros_like(valid)).loss
        assert nothing.item() == 0.0
        nothing.backward()

    def test_labels_are_brought_to_map_size(self) -> None:
        seen: list[Any] = []

        class Labelled(DistillationLoss):
            name = "labelled"
            needs = frozenset({"labels"})

            def bind(self, student_shape: torch.Size, teacher_shape: torch.Size, num_classes: int | None) -> None:
                seen.append((student_shape, teacher_shape, num_classes))

            def forward(self, student_map: Tensor, teacher_map: Tensor, labels: Any = None, mask: Any = None) -> Tensor:
                seen.append(labels)
                return (student_map - teacher_map).square().mean()

        x = images()
        distiller = Distiller(network(4), network(8), [Term(Labelled(), student="act", teacher="act")], x)
        assert seen == [((2, 8, 8, 8), (2, 8, 8, 8), 5)]
        labels = torch.arange(256).reshape(1, 16, 16).repeat(2, 1, 1)
        distiller(x, labels=labels)
        assert torch.equal(seen[1], labels[:, 1::2, 1::2])


class TestWeights:
    def test_at_zero_nothing_runs_and_the_loss_back_propagates(self) -> None:
        calls: list[int] = []

        class Counted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = network(8)

            def forward(self, x: Tensor) -> Tensor:
                calls.append(1)
                return self.net(x)

        terms = [Term(ChannelWise()), Term(FeatureMimic(), student="act", teacher="net.act", name="mimic")]
        distiller = Distiller(network(4), Counted(), terms, images())
        calls.clear()
        distiller.set_weights({"channelwise:logits": 0.0, "mimic": 0})
        out = distiller(images())
        assert calls == []
        assert out.loss.shape == ()
        assert out.loss.item() == 0.0
        assert {name: part.item() for name, part in out.parts.items()} == {"channelwise:logits": 0.0, "mimic": 0.0}
        out.loss.backward()
        assert all(p.grad is not None and not p.grad.any() for p in distiller.adapters.parameters())
        assert all(p.grad is not None and not p.grad.any() for p in distiller.student.parameters())
        distiller.set_weights({"mimic": 2.0})
        assert distiller.weights == {"channelwise:logits": 0.0, "mimic": 2.0}
        out = distiller(images())
        assert calls == [1]
        assert out.parts["channelwise:logits"].item() == 0.0
        assert out.loss.item() == out.parts["mimic"].item() > 0

    def test_zero_even_where_the_student_is_not_finite(self) -> None:
        distiller = Distiller(network(4), network(8), [Term(ChannelWise())], images())
        distiller.set_weights({"channelwise:logits": 0.0})
        out = distiller(images() * float("nan"))
        assert out.loss.item() == 0.0
