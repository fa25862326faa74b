from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, PolynomialLR

from densekd.training.schedules import learning_rate_factor, term_weight
from densekd.training.specs import ScheduleSpec, TermSpec


def rates(scheduler, optimizer, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def sgd(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


class TestLearningRate:
    @pytest.mark.parametrize(("steps", "power"), [(1, 0.9), (10, 0.9), (37, 2.0)])
    def test_poly_is_torchs(self, steps, power):
        optimizer = sgd(0.3)
        expected = rates(PolynomialLR(optimizer, total_iters=steps, power=power), optimizer, steps)
        spec = ScheduleSpec(name="poly", power=power)
        assert [0.3 * learning_rate_factor(spec, step, steps) for step in range(steps)] == pytest.approx(expected)

    def test_poly_with_a_floor_is_mmsegs_least_learning_rate(self):
        spec = ScheduleSpec(power=0.9, floor=0.01)
        for step in (0, 1, 39_999, 79_999, 80_000):
            expected = (0.01 - 1e-4) * (1 - step / 80_000) ** 0.9 + 1e-4
            assert 0.01 * learning_rate_factor(spec, step, 80_000) == pytest.approx(expected, rel=1e-12)
        with pytest.raises(ValueError, match=r"floor belongs to poly, and here the schedule is onecycle"):
            ScheduleSpec(name="onecycle", floor=0.01)

    @pytest.mark.parametrize(("steps", "start"), [(10, 0.3), (100, 0.1), (37, 0.75)])
    def test_onecycle_is_torchs(self, steps, start):
        optimizer = sgd(0.3)
        scheduler = OneCycleLR(
            optimizer, max_lr=0.3, total_steps=steps, pct_start=start, div_factor=10, final_div_factor=100
        )
        expected = rates(scheduler, optimizer, steps - 1)  # torch allows one step less than it counts
        spec = ScheduleSpec(name="onecycle", pct_start=start, div_factor=10, final_div_factor=100)
        found = [0.3 * learning_rate_factor(spec, step, steps) for step in range(steps)]
        assert found[:-1] == pytest.approx(expected)
        assert found[-1] == pytest.approx(0.3 / 1000)

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_onecycle_of_very_few_steps_stays_within_its_range(self, steps):
        spec = ScheduleSpec(name="onecycle")
        found = [learning_rate_factor(spec, step, steps) for step in range(steps)]
        assert all(0 < factor <= 1 for factor in found)

    def test_constant_and_warm_up(self):
        spec = ScheduleSpec(name="constant", warmup_steps=4, warmup_factor=0.2)
        found = [learning_rate_factor(spec, step, 10) for step in range(6)]
        assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])

    def test_warm_up_multiplies_poly(self):
        spec = ScheduleSpec(name="poly", power=1.0, warmup_steps=2, warmup_factor=0.5)
        assert [learning_rate_factor(spec, step, 4) for step in range(4)] == pytest.approx(
            [0.5, 0.75 * 0.75, 0.5, 0.25]
        )

    def test_warm_up_of_onecycle_is_refused(self):
        with pytest.raises(ValueError, match="onecycle rises over `pct_start`"):
            ScheduleSpec(name="onecycle", warmup_steps=5)


class TestTermWeights:
    def test_constant_and_end(self):
        spec = TermSpec(weight=3.0, end_step=2)
        assert [term_weight(spec, step, 5) for step in range(5)] == [3.0, 3.0, 0.0, 0.0, 0.0]

    def test_warm_up(self):
        spec = TermSpec(weight=3.0, warmup_steps=3)
        assert [term_weight(spec, step, 5) for step in range(5)] == pytest.approx([1, 2, 3, 3, 3])

    def test_linear_decay_to_the_end_step_or_the_last(self):
        spec = TermSpec(weight=4.0, decay="linear")
        assert [term_weight(spec, step, 4) for step in range(4)] == pytest.approx([4, 3, 2, 1])
        spec = TermSpec(weight=4.0, decay="linear", end_step=2)
        assert [term_weight(spec, step, 4) for step in range(4)] == pytest.approx([4, 2, 0, 0])

    def test_cosine_decay(self):
        spec = TermSpec(weight=2.0, decay="cosine")
        expected = [1 + math.cos(math.pi * step / 4) for step in range(4)]
        assert [term_weight(spec, step, 4) for step in range(4)] == pytest.approx(expected)
