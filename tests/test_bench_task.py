"""The benchmark of up-sampling and cross-entropy: right before fast, a valid record."""

from __future__ import annotations

import json

import pytest

from densekd.bench import task
from densekd.errors import ArgumentError, DensekdError
from densekd.records import BenchRecord, dump

TINY = (task.Case((1, 3, 4, 6), (16, 24)), task.Case((1, 3, 4, 6), (16, 24), align_corners=True))


@pytest.mark.slow
def test_record_holds_every_case_and_survives_json():
    ticks = []
    record = task.run(cases=TINY, rounds=3, progress=lambda done, total: ticks.append((done, total)))
    assert BenchRecord.model_validate(json.loads(json.dumps(dump(record)))) == record
    assert (record.bench, record.device, record.threads) == ("task", "cpu", 1)
    assert [(case.name, case.variant) for case in record.cases] == [
        (name, variant)
        for name in ("1x3x4x6 -> 16x24", "1x3x4x6 -> 16x24, aligned corners")
        for variant in (task.REFERENCE, task.FUSED)
    ]
    for case in record.cases:
        assert len(case.samples) == 3
        assert 0 <= case.error <= task.VALUE_TOLERANCE
        assert 0 < case.extra["gradient_error"] <= task.GRADIENT_TOLERANCE
    assert [case.ratio for case in record.cases[::2]] == [1.0, 1.0]
    assert ticks[-1] == (10, 10)
    table = task.rows(record)
    assert [row["variant"] for row in table[:2]] == [task.REFERENCE, task.FUSED]
    assert table[0]["share of memory"] == 1.0


def test_a_wrong_variant_is_not_timed(monkeypatch):
    monkeypatch.setitem(task.VARIANTS, task.FUSED, lambda *a: 1.01 * task.one_after_the_other(*a))
    with pytest.raises(DensekdError, match=r"upsampled_cross_entropy is wrong on 1x3x4x6 -> 16x24.*nothing was timed"):
        task.run(cases=TINY[:1], rounds=1)


def test_cases_must_differ():
    for cases in ((), (TINY[0], TINY[0])):
        with pytest.raises(ArgumentError, match="cases: expected different ones"):
            task.run(cases=cases)
