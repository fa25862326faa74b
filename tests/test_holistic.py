"""Holistic: the term, its discriminator, and where that belongs and does not."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densekd.distiller import Distiller, Term
from densekd.doctor import preflight
from densekd.errors import ArgumentError, DtypeError, ShapeError, TapError
from densekd.losses import Adversary
from densekd.losses.discriminator import Discriminator, SelfAttention
from densekd.losses.holistic import Holistic

OBJECTIVES = pytest.mark.parametrize("objective", ["hinge", "wgan-gp"])


def maps(images=2, classes=3, height=9, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(images, classes, height, width, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher


def bound(classes=3, **options):
    torch.manual_seed(0)
    loss = Holistic(**{"width": 4, **options})
    loss.bind(torch.Size((2, classes, 8, 8)), torch.Size((2, classes, 8, 8)), classes)
    with torch.no_grad():
        for name, parameter in loss.adversary().network.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.5)
    return loss


def state(network):
    return copy.deepcopy(network.state_dict())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class TestTerm:
    def test_it_is_the_score_of_the_student_turned_round(self):
        loss = bound()
        network = loss.adversary().network.eval()
        student, teacher = maps()
        exact = student.detach().clone().requires_grad_()
        value, expected = loss(student, teacher), -network(exact).mean()
        torch.testing.assert_close(value, expected)
        value.backward()
        expected.backward()
        torch.testing.assert_close(student.grad, exact.grad)
        assert student.grad.abs().sum() > 0

    def test_the_discriminator_gets_no_gradient_and_keeps_every_bit(self):
        loss = bound()
        network = loss.adversary().network
        before = state(network)
        student, teacher = maps()
        teacher.requires_grad_()
        for mode in (True, False):
            loss.train(mode)(student, teacher).backward()
        assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
        assert same(state(network), before)
        assert teacher.grad is None

    def test_void_is_zero_in_both_maps_and_images_without_a_valid_pixel_do_not_count(self):
        loss = bound()
        student, teacher = maps(3)
        mask = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(1)) < 0.6
        mask[1] = False
        leaf = student.detach().masked_fill(~mask[:, None], torch.nan).requires_grad_()
        value = loss(leaf, teacher.masked_fill(~mask[:, None], torch.inf), mask=mask)
        clean = [torch.where(mask[:, None], x, 0.0)[[0, 2]] for x in (student, teacher)]
        torch.testing.assert_close(value, loss(*clean))
        value.backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad.movedim(1, -1)[~mask].abs().sum() == 0
        loss(leaf, teacher, mask=mask)
        masked = loss.adversary_loss()
        loss = bound()
        loss(*clean)
        torch.testing.assert_close(masked, loss.adversary_loss())

    @OBJECTIVES
    def test_nothing_valid_is_a_zero_that_back_propagates(self, objective):
        loss = bound(objective=objective)
        student, teacher = maps()
        value = loss(student, teacher, mask=torch.zeros(2, 9, 7, dtype=torch.bool))
        value.backward()
        assert value == 0
        assert student.grad.abs().sum() == 0
        other = loss.adversary_loss()
        other.backward()
        assert other == 0
        assert all(p.grad.abs().sum() == 0 for p in loss.adversary().network.parameters())

    @pytest.mark.parametrize("scale", [1e-4, 1e4])
    @OBJECTIVES
    def test_extreme_logits(self, objective, scale):
        loss = bound(objective=objective)
        student, teacher = maps()
        value = loss(scale * student, scale * teacher)
        value.backward()
        other = loss.adversary_loss()
        other.backward()
        assert value.isfinite()
        assert other.isfinite()
        assert student.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in loss.adversary().network.parameters())

    @OBJECTIVES
    def test_autocast_changes_nothing(self, objective):
        student, teacher = maps()
        expected = bound()(student, teacher)
        loss = bound(objective=objective)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(student, teacher)
            torch.manual_seed(1)
            other = loss.adversary_loss()
        assert value.dtype == other.dtype == torch.float32
        assert torch.equal(value, expected)
        other.backward()
        plain = bound(objective=objective)
        plain(student, teacher)
        torch.manual_seed(1)
        torch.testing.assert_close(other, plain.adversary_loss())
        assert loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32
        assert loss(student.double(), teacher.double()).dtype == torch.float64


class TestDiscriminator:
    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (33, 65)], ids=str)
    def test_any_size_and_a_map_does_not_know_its_batch(self, size):
        torch.manual_seed(0)
        network = Discriminator(5, 4).eval()
        x = torch.randn(3, 5, *size)
        scores = network(x)
        assert scores.shape == (3,)
        for n in range(3):
            torch.testing.assert_close(network(x[n : n + 1]), scores[n : n + 1], rtol=1e-4, atol=1e-6)

    def test_every_layer_has_norm_one(self):
        torch.manual_seed(0)
        network = bound(classes=5).adversary().network.train()
        for _ in range(40):
            network(torch.randn(1, 5, 9, 9))
        weights = [m.weight.detach() for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(weights) == 4 + 2 * 3 + 1
        for weight in weights:
            assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1.0, abs=0.01)

    def test_attention_is_that_of_the_formula(self):
        torch.manual_seed(0)
        layer = SelfAttention(16).eval()
        x = torch.randn(2, 16, 3, 2)
        assert torch.equal(layer(x), x)
        layer.gain.data.fill_(0.7)
        query, key, value = (part(x).flatten(2) for part in (layer.query, layer.key, layer.value))
        expected = x.flatten(2).clone()
        for n in range(2):
            for i in range(6):
                share = torch.softmax(torch.stack([query[n, :, i] @ key[n, :, j] for j in range(6)]) / 2**0.5, 0)
                expected[n, :, i] += 0.7 * sum(share[j] * value[n, :, j] for j in range(6))
        torch.testing.assert_close(layer(x).flatten(2), expected)

    @OBJECTIVES
    def test_its_loss_is_that_of_the_formula(self, objective):
        loss = bound(objective=objective, penalty=3.0)
        network = loss.adversary().network.double()
        student, teacher = (x.detach().double() for x in maps())
        loss(student, teacher)
        torch.manual_seed(5)
        value = loss.adversary_loss()
        network.eval()  # with the estimates of the spectral norms that the loss used
        real, fake = network(teacher), network(student)
        if objective == "hinge":
            expected = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
        else:
            torch.manual_seed(5)
            share = torch.rand(2, 1, 1, 1, dtype=torch.double)
            mixed = share * teacher + (1 - share) * student
            lengths = []
            for n in range(2):
                slope = torch.autograd.functional.jacobian(lambda x: network(x[None])[0], mixed[n])
                lengths.append(slope.square().sum().sqrt())
            expected = fake.mean() - real.mean() + 3.0 * sum((length - 1) ** 2 for length in lengths) / 2
        torch.testing.assert_close(value, expected)

    @OBJECTIVES
    def test_small_maps_in_channels_last(self, objective):
        # torch 2.11 ended the process in the backward pass of a norm on such maps
        def gradients(layout):
            loss = bound(objective=objective)
            loss(*(x.detach().contiguous(memory_format=layout) for x in maps(3, height=16, width=24)))
            torch.manual_seed(5)
            loss.adversary_loss().backward()
            return [parameter.grad for parameter in loss.adversary().network.parameters()]

        for one, other in zip(gradients(torch.channels_last), gradients(torch.contiguous_format), strict=True):
            torch.testing.assert_close(one, other)

    def test_the_penalty_has_the_gradient_of_its_value(self, monkeypatch):
        loss = bound(objective="wgan-gp", penalty=10.0)
        network = loss.adversary().network.double().eval()
        loss(*(x.detach().double() for x in maps(1)))
        # The estimates of the spectral norms move in training mode: here they stay.
        monkeypatch.setattr(Discriminator, "train", lambda self, mode=True: self)

        def value():
            torch.manual_seed(5)
            return loss.adversary_loss()

        value().backward()
        for parameter in (network.stages[0][0].parametrizations.weight.original, network.norm.weight):
            slope, at = parameter.grad.flatten()[1].item(), parameter.data.view(-1)
            sides = []
            for step in (1e-6, -1e-6):
                at[1] += step
                sides.append(value().item())
                at[1] -= step
            assert slope == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5)
            assert abs(slope) > 1e-3

    @pytest.mark.parametrize(("objective", "images"), [("hinge", 4), ("wgan-gp", 1)])
    def test_its_loss_falls(self, objective, images):
        loss = bound(objective=objective)
        adversary = loss.adversary()
        optimizer = torch.optim.Adam(adversary.network.parameters(), lr=5e-3, betas=adversary.betas)
        student, _ = maps(images)
        teacher = F.avg_pool2d(student.detach(), 3, 1, 1)  # smooth, the student's is not
        torch.manual_seed(0)
        values = []
        for _ in range(15):
            loss(student, teacher)
            value = adversary.loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert sum(values[-5:]) / 5 < values[0] - 0.5
        assert student.grad is None
        network = adversary.network.eval()
        assert network(teacher).mean() > network(student).mean()

    def test_it_learns_from_the_last_forward_pass_in_training_mode_alone(self):
        loss = bound()
        with pytest.raises(ArgumentError, match="maps of a forward pass in training mode; there was none"):
            loss.adversary_loss()
        first, second = maps(seed=1), maps(seed=2)
        loss.eval()(*first)
        with pytest.raises(ArgumentError, match="there was none"):
            loss.adversary_loss()
        loss.train()(*first)
        value = copy.deepcopy(loss)
        loss(*second)
        loss.eval()(*first)
        again = bound()
        again(*second)
        assert torch.equal(loss.adversary_loss(), again.adversary_loss())
        with pytest.raises(ArgumentError, match="there was none"):
            value.adversary_loss()  # maps are no part of a copy


class TestWhereItBelongs:
    def test_it_is_hidden_and_follows_all_the_same(self):
        loss = bound()
        network = loss.adversary().network
        assert list(loss.parameters()) == list(loss.state_dict()) == list(loss.children()) == []
        loss.double()
        assert {p.dtype for p in network.parameters()} == {torch.float64}
        loss.requires_grad_(False)
        assert all(p.requires_grad for p in network.parameters())
        loss.to("meta")
        assert {t.device.type for t in (*network.parameters(), *network.buffers())} == {"meta"}

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
    def test_copies_have_their_own(self, way):
        loss = bound(objective="wgan-gp")
        student, teacher = maps()
        loss(student, teacher)
        loss.adversary_loss()
        before = torch.get_rng_state()
        again = way(loss)
        assert torch.equal(torch.get_rng_state(), before)
        mine, its = loss.adversary().network, again.adversary().network
        assert same(state(mine), state(its))
        assert mine.training == its.training
        assert torch.equal(again(student, teacher), loss(student, teacher))
        values = []
        for one in (loss, again):
            torch.manual_seed(1)
            values.append(one.adversary_loss())
            values[-1].backward()
        assert torch.equal(*values)
        with torch.no_grad():
            next(its.parameters()).add_(1)
        assert not same(state(mine), state(its))

    def test_adversary(self):
        loss = bound(lr=1e-3, beta1=0.0)
        adversary = loss.adversary()
        assert isinstance(adversary, Adversary)
        assert (adversary.lr, adversary.betas) == (1e-3, (0.0, 0.99))
        with pytest.raises(dataclasses.FrozenInstanceError):
            adversary.lr = 1.0
        assert loss.adversary().network is adversary.network

    def test_in_a_distiller(self):
        def network(width):
            return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, 4, 1))

        torch.manual_seed(0)
        distillers = []
        for _ in range(2):
            student, teacher = network(5), network(7)
            torch.manual_seed(len(distillers))
            term = Term(Holistic(width=4), student="output", teacher="output", weight=0.5)
            distillers.append(Distiller(student, teacher, [term], torch.rand(2, 3, 8, 8)))
        one, other = (d.adapters["holistic:output"].loss.adversary().network for d in distillers)
        assert same(state(one), state(other)), "the same whatever was drawn before"
        distiller = distillers[0].train()
        own = {id(p) for p in one.parameters()}
        assert not own & {id(p) for p in distiller.parameters()}
        assert not any("adapters" in name for name in distiller.state_dict())
        images, labels = torch.rand(3, 3, 8, 8), torch.randint(4, (3, 8, 8))
        before = state(one)
        report = preflight(distiller, (images, labels), lambda output, y: F.cross_entropy(output, y))
        assert report.terms[0].ok, report.problems
        distiller(images).loss.backward()
        assert all(p.grad is None for p in one.parameters())
        assert same(state(one), before)
        assert any(p.grad.abs().sum() > 0 for p in distiller.student.parameters())
        assert same(state(copy.deepcopy(distiller).adapters["holistic:output"].loss.adversary().network), before)
        with pytest.raises(TapError, match="holistic compares classes"):
            Distiller(network(5), network(7), [Term(Holistic(), student="0", teacher="0")], images)


def test_misuse_is_named():
    student, teacher = maps()
    for call in (lambda: Holistic()(student, teacher), lambda: Holistic().adversary()):
        with pytest.raises(ArgumentError, match=r"Holistic: call bind\(student_shape"):
            call()
    for options, error, words in (
        ({"objective": "wgan"}, ArgumentError, "objective: expected one of 'hinge', 'wgan-gp', got 'wgan'"),
        ({"beta1": 1.0}, ArgumentError, "beta1: expected a number of at least 0 and below 1, got 1.0"),
        ({"lr": -1}, ArgumentError, "lr: expected a finite number that is not negative"),
        ({"lr": "fast"}, DtypeError, "lr: expected a number, got str"),
        ({"width": 0}, ArgumentError, "width: expected a whole number from 1 to 1024, got 0; for example 64"),
        ({"width": 100_000}, ArgumentError, "width: expected a whole number from 1 to 1024, got 100000"),
        ({"penalty": float("inf")}, ArgumentError, "penalty: expected a finite"),
    ):
        with pytest.raises(error, match=words):
            Holistic(**options)
    loss = bound()
    for arguments, words in (
        ((student, teacher[..., :3]), "must have one shape"),
        ((student[:, :2], teacher[:, :2]), r"expected maps \(N, 3, H, W\) as it was bound to, got \(2, 2, 9, 7\)"),
        ((student.flatten(2), teacher.flatten(2)), r"expected maps \(N, 3, H, W\)"),
    ):
        with pytest.raises(ShapeError, match=words):
            loss(*arguments)
    assert "objective='wgan-gp', lr=0.0004, betas=(0.9, 0.99), width=8, penalty=10.0" in repr(
        Holistic("wgan-gp", width=8)
    )
