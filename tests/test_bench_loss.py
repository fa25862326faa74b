"""The loss benchmark: right before fast, a valid record, and machine settings left as they were."""

from __future__ import annotations

import json

import pytest
import torch

from densekd.bench import loss, methods, runner
from densekd.errors import ArgumentError, DensekdError
from densekd.records import BenchRecord, dump

TINY = ((2, 3, 16, 16), (1, 2, 40))


@pytest.fixture(scope="module")
def record() -> BenchRecord:
    return loss.run(shapes=TINY, rounds=3, compiled=False)


def test_record_holds_every_case_and_survives_json(record):
    assert BenchRecord.model_validate(json.loads(json.dumps(dump(record)))) == record
    assert {(case.name, case.variant) for case in record.cases} == {
        (name, variant) for name in ("2x3x16x16", "1x2x40") for variant in ("textbook", "blocked", "torch")
    }
    for case in record.cases:
        assert len(case.samples) == 3
        assert case.median_seconds == sorted(case.samples)[1]
        assert 0 <= case.error <= loss.VALUE_TOLERANCE
        assert 0 < case.extra["gradient_error"] <= loss.GRADIENT_TOLERANCE
        assert case.ratio == pytest.approx(
            next(c.median_seconds for c in record.cases if c.name == case.name and c.variant == "textbook")
            / case.median_seconds
        )
    assert (record.bench, record.device, record.threads) == ("loss", "cpu", 1)
    assert record.environment["THP_MEM_ALLOC_ENABLE"]
    assert record.environment["compiled"] == "not asked"


def test_rows_make_a_table(record):
    table = loss.rows(record)
    assert len(table) == 6
    assert all(list(row) == list(table[0]) for row in table)
    assert [row["speed-up"] for row in table if row["variant"] == "textbook"] == [1.0, 1.0]


def test_memory_of_the_named_shapes():
    """Beyond the maps: at most 2.1 maps for the operator, 5 for the textbook."""
    shape = (8, 19, 64, 64)
    student, teacher = loss.maps(shape)
    size = student.numel() * 4
    with runner.use_threads(1):
        blocked = runner.peak_extra_bytes(lambda: loss._blocked(student, teacher).backward())
        student.grad = None
        textbook = runner.peak_extra_bytes(lambda: loss.textbook(student, teacher).backward())
        value = runner.peak_extra_bytes(lambda: loss._blocked(student.detach(), teacher))
    assert size <= blocked <= 2.1 * size
    assert 5 * size <= textbook <= 5.01 * size
    assert value <= 1.3 * size  # three blocks of scratch, no gradient


def test_peak_counts_what_is_held_together():
    def apart():
        for _ in range(3):
            torch.zeros(1000)

    def together():
        kept = [torch.zeros(1000) for _ in range(3)]
        del kept

    assert runner.peak_extra_bytes(apart) < 5000 <= 12_000 <= runner.peak_extra_bytes(together)


def test_a_wrong_variant_is_never_timed(monkeypatch):
    monkeypatch.setattr(loss, "_plain", lambda s, t: 1.0001 * loss.textbook(s, t))
    monkeypatch.setattr(runner, "interleave", lambda *a, **k: pytest.fail("timed"))
    with pytest.raises(DensekdError, match=r"variant 'torch' is wrong on \(1, 2, 40\).*1.0e-04.*nothing was timed"):
        loss.run(shapes=((1, 2, 40),), rounds=1, compiled=False)


def test_a_wrong_gradient_counts_too(monkeypatch):
    def wrong(student, teacher):
        value = loss.textbook(student, teacher)
        return value.detach() + 1.001 * (value - value.detach())

    monkeypatch.setattr(loss, "_plain", wrong)
    with pytest.raises(DensekdError, match=r"of the gradient 1.0e-03"):
        loss.run(shapes=((1, 2, 40),), rounds=1, compiled=False)


def test_threads_are_restored_whatever_happens(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: before + 1)
    seen = []

    def stop():
        with runner.use_threads(before + 1):
            seen.append(torch.get_num_threads())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("measure", [loss.run, methods.run])
def test_more_threads_than_cpus_are_refused_before_any_is_started(monkeypatch, measure):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("started"))
    with pytest.raises(ArgumentError, match="threads: 3 is more than the 2 logical CPUs of this machine; give 2 or"):
        measure(threads=3)


def test_rounds_are_interleaved_forwards_and_backwards():
    calls, ticks = [], []
    timings = runner.interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        rounds=3,
        warmup=1,
        between=lambda: calls.append("-"),
        tick=lambda: ticks.append(len(calls)),
    )
    assert "".join(calls) == "-a-b-b-a-a-b-b-a"
    assert len(ticks) == 4
    assert [len(t.wall) for t in timings.values()] == [3, 3]


def test_progress_reaches_its_end():
    seen = []
    loss.run(shapes=TINY, rounds=1, compiled=False, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]


def test_mistakes_are_named():
    for options, words in [
        ({"threads": 0}, "threads: expected a whole number from 1, got 0"),
        ({"rounds": 0}, "rounds: expected a whole number from 1, got 0"),
        ({"shapes": ((2, 3),)}, r"expected \(N, C, \*spatial\)"),
        ({"shapes": ()}, "at least one"),
        ({"shapes": (TINY[1], TINY[1])}, "different shapes"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            loss.run(**{"shapes": TINY, "rounds": 1, "compiled": False, **options})


@pytest.mark.slow
def test_compiled_call_is_measured_or_its_absence_noted():
    record = loss.run(shapes=((1, 2, 40),), rounds=1)
    compiled = [case for case in record.cases if case.variant == "compiled"]
    note = record.environment["compiled"]
    assert note.startswith("C++ compiler" if compiled else "left out: no C++ compiler")
