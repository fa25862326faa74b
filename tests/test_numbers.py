"""What the losses of a run say: spikes, terms without effect, overflow of float16; and the teacher's maps in a step."""

from __future__ import annotations

import json
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from densekd.distiller import Distiller, Term
from densekd.errors import NonFiniteError, SilentTermError, TapError
from densekd.losses import ChannelWise, IntraClass
from densekd.runs.engine import engine
from densekd.training.numbers import (
    MOST_LINES,
    OVERFLOWS,
    SILENT_STEPS,
    WINDOW,
    is_spike,
    last_words,
    note_losses,
    note_overflow,
    note_zeros,
    remembered,
)
from densekd.training.objective import Distilled
from densekd.training.optimizers import build_optimizer
from densekd.training.specs import OptimizerSpec, RuntimeSpec, TermSpec, TrainSpec
from densekd.training.stepper import Stepper

LOSSES = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=20, max_size=40)


@settings(max_examples=40, deadline=None)
@given(LOSSES, st.floats(0, 1e9, allow_nan=False))
def test_a_spike_lies_ten_deviations_above_the_median_and_twice_as_high(before, value):
    middle = float(np.median(before))
    deviation = 1.4826 * float(np.median(np.abs(np.array(before) - middle)))
    expected = middle > 0 and value > 2 * middle and value > middle + 10 * deviation
    assert is_spike(value, before) == expected


def test_few_steps_are_no_ground_for_a_spike():
    assert not is_spike(1e9, [1.0] * 19)
    assert is_spike(1e9, [1.0] * 20)


def losses(steps: int = 400) -> list[dict[str, float]]:
    draw = np.random.default_rng(3)
    found = [{"loss": 2 + float(draw.normal(0, 0.1)), "term": 1 + float(draw.normal(0, 0.05))} for _ in range(steps)]
    for step in range(60, steps, 9):
        found[step]["term"] = 40.0
        found[step]["loss"] = 41.0
    return found


def test_spikes_are_told_by_name_and_bounded_in_number():
    numbers = remembered({})
    told = [note_losses(numbers, step + 1, one) for step, one in enumerate(losses())]
    lines = [line for line in told if line is not None]
    assert lines[0].startswith("loss spike at step 61: loss = 41 (median of the 60 steps before: ")
    assert "term = 40 (median of the 60 steps before: " in lines[0]
    assert lines == numbers["lines"]
    assert len(lines) == MOST_LINES
    assert numbers["untold"] == len(range(60, 400, 9)) - MOST_LINES > 0
    assert {len(values) for values in numbers["recent"].values()} == {WINDOW}
    assert last_words(numbers, 0, 400) == [f"{numbers['untold']} more loss spikes after the first 20: see log.csv"]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 399))
def test_a_resume_at_any_step_tells_the_same(cut):
    whole, again = remembered({}), remembered({})
    for step, one in enumerate(losses()):
        if step == cut:
            again = remembered(json.loads(json.dumps(again)))
        note_losses(whole, step + 1, one)
        note_losses(again, step + 1, one)
    assert again == whole


def test_a_term_that_is_zero_for_fifty_steps_is_named():
    numbers = remembered({})
    for step in range(1, SILENT_STEPS):
        note_zeros(numbers, step, ["a", "b"], {"a": 1.0, "b": 0.0}, set())
    numbers = remembered(json.loads(json.dumps(numbers)))
    with pytest.raises(SilentTermError, match=r"step 50: term 'b' was exactly 0 in 50 steps in a row"):
        note_zeros(numbers, SILENT_STEPS, ["a", "b"], {"a": 1.0, "b": 0.0}, set())


def test_one_step_with_effect_begins_anew_and_a_weight_of_zero_is_no_silence():
    numbers = remembered({})
    for step in range(1, 3 * SILENT_STEPS):
        note_zeros(numbers, step, ["a"], {"a": 0.0 if step % 40 else 0.1, "off": 0.0}, set())
    assert numbers["zeros"] == {"a": (3 * SILENT_STEPS - 1) % 40}


def test_steps_with_nothing_to_compare_are_counted_apart():
    numbers = remembered({})
    for step in range(1, 3 * SILENT_STEPS):
        note_zeros(numbers, step, ["a"], {"a": 0.0}, {"a"})
    assert numbers["zeros"] == {}
    said = "term 'a' had nothing to compare in 149 steps (no valid pixel, or no labelled one)"
    assert last_words(numbers, 0, 200) == [said]


def test_a_loss_scale_that_collapsed_ends_the_run():
    numbers = remembered({})
    for step in range(1, OVERFLOWS):
        note_overflow(numbers, step, True, 2.0**-step)
    note_overflow(numbers, OVERFLOWS, False, None)
    for step in range(OVERFLOWS + 1, 2 * OVERFLOWS):
        note_overflow(numbers, step, True, 2.0**-step)
    with pytest.raises(NonFiniteError, match=r"step 50: .*25 steps in a row and the loss scale has fallen to 0\.002"):
        note_overflow(numbers, 2 * OVERFLOWS, True, 0.002)


def test_the_end_says_how_many_steps_the_scaler_left_out():
    assert last_words(remembered({}), 3, 90) == ["3 of 90 steps were skipped by the loss scaler (overflow)"]


class Task:
    parts = ("cross_entropy",)

    def loss(self, output, labels, pixels=None):
        value = F.cross_entropy(output.float(), labels, ignore_index=255)
        return value.nan_to_num(), {"cross_entropy": value.detach().nan_to_num()}

    def pixels(self, labels):
        return (labels != 255).sum()


class Gives(nn.Module):
    """A 1x1 convolution whose output is changed by `change`."""

    def __init__(self, change=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.change = nn.Conv2d(3, 4, 1), change

    def forward(self, images):
        found = self.conv(images)
        return found if self.change is None else self.change(found)


def batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(2, 3, 4, 4, generator=draw),
        "label": torch.randint(4, (2, 4, 4), generator=draw),
        "valid": torch.ones(2, 4, 4, dtype=torch.bool),
    }


@pytest.fixture
def stepper():
    with ExitStack() as held:

        def make(teacher, loss=None, scaler=None):
            accelerator = held.enter_context(engine(RuntimeSpec(), torch.device("cpu")))
            accelerator.scaler = scaler
            term = Term(loss or ChannelWise(), student="output", teacher="output", name="a")
            distiller = Distiller(Gives(), teacher, [term], batch()["image"], num_classes=4)
            objective = Distilled(distiller, Task())
            spec = TrainSpec(steps=9, optimizer=OptimizerSpec(lr=0.1, momentum=0.0))
            optimizer = build_optimizer(objective.student, objective.extra_state(), spec.optimizer)
            prepared, optimizer = accelerator.prepare(objective, optimizer)
            terms = [("a", TermSpec())]
            return Stepper(accelerator, prepared, optimizer, spec, terms, steps=9, seed=0, channels_last=False)

        yield make


def test_a_map_of_the_teacher_that_is_not_finite_stops_a_finite_loss(stepper):
    teacher = Gives(lambda output: output.flip(1))
    found = stepper(teacher)
    shown = batch()
    shown["valid"][:, 0] = False
    assert found.step(0, iter([shown])).parts["a"] > 0
    before = {name: value.clone() for name, value in found.plain.state_dict().items()}

    def broken(output):
        output = output.flip(1)
        output[:, :, 0] = torch.nan  # where no pixel counts
        return output

    teacher.change = broken
    with pytest.raises(NonFiniteError, match=r"step 2: not finite: the teacher's map of term 'a';"):
        found.step(1, iter([shown]))
    assert found.evidence.kind == "teacher"
    assert found.evidence.bad == ["a"]
    assert found.evidence.mine
    assert all(torch.equal(value, before[name]) for name, value in found.plain.state_dict().items())


def test_a_tap_that_stops_firing_names_its_term():
    student = Gives()
    term = Term(ChannelWise(), student="conv", teacher="output", name="a")
    distiller = Distiller(student, Gives(lambda output: output.flip(1)), [term], batch()["image"])
    objective = Distilled(distiller, Task())
    objective(**{key: batch()[key] for key in ("image", "label")}, valid=None)
    student.forward = lambda images: nn.functional.conv2d(images, student.conv.weight)
    with pytest.raises(TapError, match=r"tap 'conv' of the student was not called .* \(read by term 'a'\)"):
        objective(**{key: batch()[key] for key in ("image", "label")}, valid=None)


def test_what_is_looked_at_in_a_step_is_no_part_of_the_loss(stepper):
    result = stepper(Gives(lambda output: output + torch.rand_like(output))).step(0, iter([batch()]))
    assert list(result.parts) == ["cross_entropy", "a"]
    assert result.acting == ("a",)
    assert not result.empty


@pytest.mark.parametrize(
    ("loss", "key", "value", "empty"),
    [
        (ChannelWise(), "valid", False, {"a"}),
        (ChannelWise(), "label", 255, set()),
        (IntraClass(), "label", 255, {"a"}),
    ],
)
def test_nothing_to_compare_is_told_from_no_effect(stepper, loss, key, value, empty):
    shown = batch()
    shown[key][:] = value
    change = None if key == "label" else lambda output: output.flip(1)  # equal maps: zero whatever the batch
    found = stepper(Gives(change), loss).step(0, iter([shown]))
    assert found.parts["a"] == 0
    assert found.empty == empty


def test_the_loss_scaler_leaves_steps_out_until_its_scale_fits(stepper):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    found = stepper(Gives(lambda output: output.flip(1)), scaler=scaler)
    found.plain.student.conv.weight.register_hook(lambda gradient: gradient * 64)
    before = found.plain.student.conv.weight.clone()
    first = found.step(0, iter([batch()]))
    assert first.skipped
    assert first.scale == 2.0**126
    assert torch.equal(found.plain.student.conv.weight, before)
    results = [found.step(number, iter([batch()])) for number in range(1, 9)]
    assert not results[-1].skipped
    assert results[-1].scale is None
    assert not torch.equal(found.plain.student.conv.weight, before)
