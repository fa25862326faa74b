from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.distiller import Distiller, Term
from densekd.doctor import Report, preflight
from densekd.errors import ArgumentError, DensekdError, DtypeError, ShapeError
from densekd.losses import ChannelWise, DistillationLoss, FeatureMimic


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(width, 5, 1)
    )


def batch(n: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, 3, 8, 8, generator=generator), torch.randint(5, (n, 8, 8), generator=generator)


def built(terms: list[Term] | None = None, **networks: Any) -> Distiller:
    torch.manual_seed(0)
    student, teacher = networks.get("student") or network(), networks.get("teacher") or network(8)
    return Distiller(student, teacher, terms or [Term(ChannelWise(), weight=3.0)], batch()[0])


class Fixed(DistillationLoss):
    """A loss made for one fault."""

    name = "fixed"

    def __init__(self, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.value = value

    def forward(self, student_map: Tensor, teacher_map: Tensor, labels: Any = None, mask: Any = None) -> Tensor:
        return self.value(student_map)


class TestSound:
    def test_values_norms_and_proposals(self) -> None:
        terms = [
            Term(ChannelWise(), weight=3.0),
            Term(FeatureMimic(), student="1", teacher="1", weight=0.5, name="mimic"),
        ]
        distiller = built(terms).eval()
        distiller.student[3].p = 0.0
        report = preflight(distiller, batch(), F.cross_entropy)
        assert report.ok
        report.raise_if_failed()
        assert [row.name for row in report.terms] == ["channelwise:logits", "mimic"]

        distiller.train()
        images, labels = batch()
        out = distiller(images)
        parameters = list(distiller.student.parameters())
        task = torch.autograd.grad(F.cross_entropy(out.student, labels), parameters, retain_graph=True)
        assert report.task_gradient_norm == pytest.approx(
            torch.cat([g.flatten() for g in task]).norm().item(), rel=1e-4
        )
        for row in report.terms:
            distiller.set_weights({name: (1.0 if name == row.name else 0.0) for name in distiller.weights})
            loss = distiller(images).loss
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            reached = [i for i, gradient in enumerate(found) if gradient is not None]
            norm, of_task = (torch.cat([side[i].flatten() for i in reached]).norm().item() for side in (found, task))
            assert row.value == pytest.approx(row.weight * loss.item(), rel=1e-4)
            assert row.gradient_norm == pytest.approx(row.weight * norm, rel=1e-3)
            assert row.ratio == pytest.approx(row.weight * norm / of_task, rel=1e-3)
            assert row.proposed_weight == pytest.approx(of_task / norm, rel=0.05)

    def test_at_the_proposed_weight_the_ratio_is_one(self) -> None:
        distiller = built()
        distiller.student[3].p = 0.0
        weight = preflight(distiller, batch(), F.cross_entropy).terms[0].proposed_weight
        distiller.set_weights({"channelwise:logits": weight})
        assert preflight(distiller, batch(), F.cross_entropy).terms[0].ratio == pytest.approx(1.0, rel=0.05)

    @pytest.mark.parametrize("n", [1, 2])
    def test_leaves_everything_as_it_was(self, n: int) -> None:
        distiller = built().eval()
        distiller.student[0].weight.grad = torch.ones_like(distiller.student[0].weight)
        modes = [module.training for module in distiller.modules()]
        networks = (distiller, distiller.teacher)
        states = [{key: value.clone() for key, value in net.state_dict().items()} for net in networks]
        rng = torch.get_rng_state()
        assert preflight(distiller, batch(n), F.cross_entropy).ok
        assert torch.equal(torch.get_rng_state(), rng)
        assert [module.training for module in distiller.modules()] == modes
        for net, state in zip(networks, states, strict=True):
            assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        assert torch.equal(distiller.student[0].weight.grad, torch.ones_like(distiller.student[0].weight))
        assert all(p.grad is None for p in distiller.teacher.parameters())

    def test_table_and_json(self) -> None:
        distiller = built()
        distiller.set_weights({"channelwise:logits": 0.0})
        report = preflight(distiller, batch(), F.cross_entropy)
        (row,) = report.rows()
        assert row["term"] == "channelwise:logits"
        assert row["student map"] == row["teacher map"] == "2x5x8x8"
        assert row["state"] == "off"
        assert float(row["proposed weight"]) > 0
        assert json.loads(json.dumps(report.as_dict()))["ok"] is True

    def test_batches(self) -> None:
        images, labels = batch()
        distiller = built()
        expected = preflight(distiller, (images, labels), F.cross_entropy).task_value
        for form in ({"image": images, "label": labels, "index": 3}, {"images": images, "labels": labels}):
            assert preflight(distiller, form, F.cross_entropy).task_value == pytest.approx(expected, rel=0.2)
        nothing = {"image": images, "label": labels, "valid": torch.zeros_like(labels, dtype=torch.bool)}
        assert "exactly 0" in preflight(distiller, nothing, F.cross_entropy).problems[0]
        with pytest.raises(ArgumentError, match=r"batch must be \(images, labels\) or a mapping.*keys \['image'\]"):
            preflight(distiller, {"image": images}, F.cross_entropy)
        with pytest.raises(ArgumentError, match="got a Tensor"):
            preflight(distiller, images, F.cross_entropy)

    def test_pixel_values(self) -> None:
        class Keyword(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = network()

            def forward(self, pixel_values: Tensor, scale: float = 1.0) -> Tensor:
                return self.net(pixel_values) * scale

        images, labels = batch()
        distiller = Distiller(Keyword(), Keyword(), [Term(ChannelWise(), weight=3.0)], {"pixel_values": images})
        report = preflight(distiller, {"pixel_values": images, "scale": 2.0, "labels": labels}, F.cross_entropy)
        assert report.ok


class TestMisuse:
    @pytest.mark.parametrize("given", [network(), None, "distiller"], ids=["network", "none", "text"])
    def test_no_distiller(self, given: Any) -> None:
        with pytest.raises(DtypeError, match=rf"needs a Distiller first, got a {type(given).__name__}; call preflight"):
            preflight(given, batch(), F.cross_entropy)

    @pytest.mark.parametrize("loss", [None, "cross_entropy"])
    def test_task_loss_is_no_function(self, loss: Any) -> None:
        with pytest.raises(DtypeError, match=r"task_loss must be a function \(student_output, labels\) -> scalar"):
            preflight(built(), batch(), loss)

    def test_task_loss_gives_no_scalar(self) -> None:
        distiller = built().eval()
        state = {key: value.clone() for key, value in distiller.state_dict().items()}
        with pytest.raises(ShapeError, match=r"task_loss must return a scalar, got shape \(2, 8, 8\); take its mean"):
            preflight(distiller, batch(), nn.CrossEntropyLoss(reduction="none"))
        with pytest.raises(DtypeError, match=r"must return a scalar tensor, got a tuple.*\[0\]"):
            preflight(distiller, batch(), lambda output, labels: (F.cross_entropy(output, labels), {}))
        with pytest.raises(DtypeError, match="got a NoneType"):
            preflight(distiller, batch(), lambda output, labels: None)
        assert not distiller.training
        assert all(torch.equal(value, state[key]) for key, value in distiller.state_dict().items())

    def test_a_scalar_with_an_axis(self) -> None:
        assert preflight(built(), batch(), lambda output, labels: F.cross_entropy(output, labels).reshape(1)).ok

    def test_labels_of_another_task(self) -> None:
        images, _ = batch()
        assert preflight(built(), (images, torch.rand(2, 5, 8, 8)), F.mse_loss).ok

    @pytest.mark.slow  # the compiler takes seconds to import
    def test_compiled(self) -> None:
        assert preflight(torch.compile(built(), backend="eager"), batch(), F.cross_entropy).ok


class TestProblems:
    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (lambda s: s.sum() * float("nan"), "its value is nan"),
            (lambda s: s.sum() * 0, "it is exactly 0"),
            (
                lambda s: (s - s.detach()).abs().sum().add(1) * 1.0 + 0 * s.sum(),
                "its gradient does not reach the student",
            ),
            (lambda s: s.detach().square().sum(), "its gradient does not reach the student"),
            (lambda s: (s - s.detach()).square().sum().sqrt() + 1, "its gradient is nan"),
        ],
    )
    def test_term(self, value: Callable[[Tensor], Tensor], words: str) -> None:
        report = preflight(built([Term(Fixed(value))]), batch(), F.cross_entropy)
        assert not report.ok
        assert report.problems == [f"term 'fixed:logits': {report.terms[0].problem}"]
        assert words in report.problems[0]
        assert report.rows()[0]["state"] == "problem"
        with pytest.raises(DensekdError, match=f"pre-flight failed: term 'fixed:logits': {words}"):
            report.raise_if_failed()

    def test_weights_that_are_not_finite(self) -> None:
        distiller = built()
        with torch.no_grad():
            distiller.teacher[4].bias[0] = float("nan")
            distiller.student[1].running_mean[0] = float("inf")
        problems = preflight(distiller, batch(), F.cross_entropy).problems
        assert "the student holds weights that are not finite: 1.running_mean" in problems[0]
        assert "the teacher holds weights that are not finite: 4.bias" in problems[1]

    def test_teacher_that_was_thawed(self) -> None:
        distiller = built()
        distiller.teacher.requires_grad_(True)
        distiller.teacher[0].weight.grad = torch.zeros(8, 3, 3, 3)
        text = " ".join(preflight(distiller, batch(), F.cross_entropy).problems)
        assert "6 parameters of the teacher ask for gradients (0.weight" in text
        assert "a gradient reached the teacher" in text
        distiller = built()
        distiller.teacher[3].train()
        assert "in training mode at 3" in preflight(distiller, batch(), F.cross_entropy).problems[0]

    def test_task(self) -> None:
        def nothing(output: Tensor, labels: Tensor) -> Tensor:
            return output.detach().sum() * 0

        report = preflight(built(), batch(), nothing)
        assert "the task's gradient does not reach the student" in report.problems[0]
        assert report.terms[0].ratio is None

        def broken(output: Tensor, labels: Tensor) -> Tensor:
            return output.sum() * float("nan")

        assert "the task's loss or its gradient is not finite" in preflight(built(), batch(), broken).problems[0]

    def test_task_that_writes_to_the_student(self) -> None:
        distiller = built()

        def stepping(output: Tensor, labels: Tensor) -> Tensor:
            loss = F.cross_entropy(output, labels)
            loss.backward(retain_graph=True)
            return loss

        report = preflight(distiller, batch(), stepping)
        assert "changed weights or .grad of the student" in " ".join(report.problems)

    def test_a_step_that_is_refused(self) -> None:
        class NeedsLabels(Fixed):
            needs = frozenset({"labels"})

        distiller = built([Term(NeedsLabels(torch.sum))])
        images, labels = batch()
        report = preflight(distiller, (images, labels[:, :4]), F.cross_entropy)
        assert "labels: expected (2, 8, 8)" in report.problems[0]
        assert report.terms[0].value is None

    def test_sizes_out_of_proportion_are_told(self) -> None:
        distiller = built()
        for weight, words in ((1e6, "drowns the task"), (1e-6, "hardly takes part")):
            distiller.set_weights({"channelwise:logits": weight})
            report = preflight(distiller, batch(), F.cross_entropy)
            assert report.ok
            assert words in report.notices[-1]

    def test_empty_report(self) -> None:
        assert Report().ok
        assert not Report(problems=["x"]).ok
