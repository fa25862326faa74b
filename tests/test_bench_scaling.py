"""How costs grow: exponents of known laws, what is measured and kept, the verdict, the figure, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from densekd.bench import scaling
from densekd.bench.exponents import AXES, Exponent, along, exponent, exponents, growth, slope, verdict
from densekd.bench.scaling_figure import checked_kind, write_figure
from densekd.cli.app import app
from densekd.errors import ArgumentError, ShapeError
from densekd.losses.catalog import METHODS
from densekd.losses.pixelwise import PixelWise
from densekd.records import BenchCase, BenchRecord, dump

BASE = (2, 4, 8, 8)


def cases(law, method: str = "m", doublings: int = 3) -> list[BenchCase]:
    """Cases of a method whose rounds cost law(shape), the same and twice it; memory is the square."""
    found = []
    grown = [(axis, place, doubling) for place, axis in enumerate(AXES) for doubling in range(1, doublings + 1)]
    for axis, place, doubling in [("base", 0, 0), *grown]:
        shape = scaling._grown(BASE, place, doubling)
        cost = law(*shape)
        found.append(
            BenchCase(
                name=f"{axis}:{shape}",
                variant=method,
                median_seconds=cost,
                ratio=None,
                peak_bytes=round(1e6 * cost**2),
                samples=[1.0, 1.0, 1.0],
                extra={"axis": axis, "shape": list(shape), "cpu_seconds": cost, "cpu_samples": [cost, cost, 2 * cost]},
            )
        )
    return found


def test_the_slope_of_a_power_is_its_exponent():
    assert slope([1, 2, 4, 8], [3 * size**1.7 for size in (1, 2, 4, 8)]) == pytest.approx(1.7)
    # By hand: log2 costs 0, 1, 3 over log2 sizes 0, 1, 2 -> slope 1.5.
    assert slope([1, 2, 4], [1, 2, 8]) == pytest.approx(1.5)
    for sizes, costs in [([1], [1]), ([2, 2], [1, 2]), ([1, 2], [0, 1]), ([1, 2, 4], [1, 2])]:
        with pytest.raises(ArgumentError, match="expected two sizes or more, and costs above 0"):
            slope(sizes, costs)


def test_a_workspace_of_fixed_size_does_not_count_as_memory_that_grows():
    assert growth([1, 2, 4, 8], [1e6 + 3 * size**2 for size in (1, 2, 4, 8)]) == pytest.approx(2)
    assert growth([1, 2, 4], [5, 5, 5]) == 0
    assert growth([1, 2], [4, 8]) == pytest.approx(1)
    assert growth([1, 2, 4], [1, 1, 4]) == pytest.approx(1)  # now and then: as it is


def test_one_size_grows_at_a_time():
    assert scaling._grown(BASE, 1, 2) == (2, 16, 8, 8)
    assert scaling._grown(BASE, 3, 1) == (2, 4, 8, 16)


@pytest.mark.slow
def test_only_quick_losses_go_to_the_largest_maps(monkeypatch):
    found = scaling._contenders("feature", BASE, (1, 3))
    assert [sized.shape for sized in found.values() if sized.axis in {"base", "C"}] == [
        BASE,
        *((2, channels, 8, 8) for channels in (8, 16, 32)),
    ]
    assert list(found)[:2] == ["base:2x4x8x8", "N:4x4x8x8"]
    monkeypatch.setattr(scaling, "_LONG", -1.0)
    assert len(scaling._contenders("feature", BASE, (1, 3))) == 1 + 4
    assert len(scaling._contenders("feature", BASE, (2, 3))) == 1 + 8


def test_a_law_is_found_along_every_axis():
    found = cases(lambda n, c, h, w: n * c**2 * h**0.5 * w**3)
    for axis, expected in zip(AXES, (1, 2, 0.5, 3), strict=True):
        fit = exponent(found, axis)
        assert fit.time == pytest.approx(expected)
        assert fit.memory == pytest.approx(2 * expected, rel=1e-3)
        assert (fit.low, fit.high) == (pytest.approx(expected), pytest.approx(expected))
        assert len(along(found, axis)) == 4


def test_only_the_three_largest_sizes_are_fitted():
    """What a call costs anyway is not hidden, and weighs less on the large maps."""
    fit = exponent(cases(lambda n, c, h, w: 1 + n), "N")
    assert fit.sizes == (4, 8, 16)
    assert fit.time == pytest.approx(slope([4, 8, 16], [5, 9, 17]))


def test_the_spread_is_that_of_single_rounds():
    found = cases(lambda n, c, h, w: float(n))
    largest = max(found, key=lambda case: case.extra["shape"][0])
    largest.extra["cpu_samples"][0] *= 4  # of three sizes, two apart by a factor of 4: log 4 / log 4 more
    fit = exponent(found, "N")
    assert fit.time == pytest.approx(1)
    assert fit.low == pytest.approx(1)
    assert fit.high == pytest.approx(2)


def test_the_verdict_names_what_is_not_linear():
    def fit(axis, time, memory):
        return Exponent("channelwise", axis, time, time, time, memory, (1, 2))

    good = [fit(axis, 1.1, 1.0) for axis in AXES]
    assert verdict(good) == "channelwise is linear in N, C, H, W (time 0.85..1.15, memory 0.98..1.02)"
    for bad in (fit("H", 1.3, 1.0), fit("H", 1.0, 1.1), fit("H", 0.7, 1.0)):
        assert verdict([*good, bad]).endswith(f": H: time {bad.time:.2f}, memory {bad.memory:.2f}")


def test_mistakes_are_named():
    for options, words in [
        ({"methods": ["chanelwise"]}, "unknown method 'chanelwise'"),
        ({"base": (2, 3, 4)}, r"expected a base \(N, C, H, W\) of sizes from 1"),
        ({"doublings": (0, 1)}, r"doublings from 1, fewest and most; got .* and \(0, 1\)"),
        ({"doublings": (3, 2)}, "doublings from 1, fewest and most"),
        ({"rounds": 0}, "rounds: expected a whole number from 1"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            scaling.run(**{"methods": ["feature"], "base": BASE, "doublings": (1, 1), "rounds": 1, **options})
    with pytest.raises(ArgumentError, match=r"a.pdf: expected a figure's name ending in .svg or .png"):
        checked_kind(Path("a.pdf"))


MEASURED = ["channelwise", "pixelwise", "pairwise", "intraclass"]


@pytest.fixture(scope="module")
def record() -> BenchRecord:
    return scaling.run(methods=MEASURED, base=BASE, doublings=(1, 1), rounds=2)


@pytest.mark.slow
class TestMeasured:
    def test_every_method_on_every_map(self, record):
        assert {case.variant for case in record.cases} == set(MEASURED), scaling.left_out(record)
        assert len(record.cases) == 5 * len(MEASURED)
        assert all(
            len(case.samples) == len(case.extra["cpu_samples"]) == 2 and case.peak_bytes > 0 for case in record.cases
        )
        assert BenchRecord.model_validate(json.loads(json.dumps(dump(record)))) == record
        assert record.environment["linear"].startswith("channelwise is ")

    def test_the_fit_stands_at_the_largest_case(self, record):
        for axis in AXES:
            (case,) = (c for c in record.cases if c.variant == "pixelwise" and "exponent" in c.extra and _is(c, axis))
            fit = exponents(record)["pixelwise"][axis]
            assert case.extra["exponent"] == fit.time
            assert case.extra["memory_exponent"] == fit.memory
            assert case.extra["exponent_low"] <= case.extra["exponent_high"]

    def test_the_table_has_a_row_for_each_method(self, record):
        rows = scaling.rows(record)
        assert [row["method"] for row in rows] == MEASURED
        assert list(rows[0])[1:9] == [*(f"time, {axis}" for axis in AXES), *(f"memory, {axis}" for axis in AXES)]

    def test_the_figure_is_equal_for_equal_records(self, record, tmp_path):
        for name in ("a.svg", "b.svg", "a.png"):
            write_figure(tmp_path / name, record)
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
        text = (tmp_path / "a.svg").read_text()
        assert ">channelwise<" in text
        assert ">other methods<" in text
        assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_quadratic_cost_is_seen(monkeypatch):
    """Memory of a loss that compares all pairs of channels: exponent 2 in C, 1 in N."""

    class Pairs(PixelWise):
        def forward(self, student_map, teacher_map, labels=None, mask=None):
            return torch.einsum("nchw,ndhw->ncdhw", student_map, teacher_map).square().mean()

    monkeypatch.setitem(METHODS, "pairs", Pairs)
    record = scaling.run(methods=["pairs", "channelwise"], base=(2, 16, 16, 16), doublings=(2, 2), rounds=1)
    fits = exponents(record)
    assert fits["pairs"]["C"].memory == pytest.approx(2, abs=0.1)
    assert fits["pairs"]["N"].memory == pytest.approx(1, abs=0.05)
    assert all(fit.memory == pytest.approx(1, abs=0.03) for fit in fits["channelwise"].values())


@pytest.mark.slow
def test_a_method_that_refuses_a_map_is_left_out_and_named(monkeypatch):
    class Refusing(PixelWise):
        def bind(self, student_shape, teacher_shape, num_classes):
            raise ShapeError("expected one thing, got another")

    monkeypatch.setitem(METHODS, "refusing", Refusing)
    seen = []
    record = scaling.run(
        methods=["refusing", "feature"],
        base=BASE,
        doublings=(1, 1),
        rounds=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert {case.variant for case in record.cases} == {"feature"}
    assert scaling.left_out(record) == ["left out: refusing: expected one thing, got another"]
    assert "linear" not in record.environment
    assert seen[-1] == (8, 8)


@pytest.mark.slow
def test_the_command_writes_a_record_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["bench", "scaling", "--quick", "--methods", "channelwise,feature", "--rounds", "1", "--out", "here.json"]
    done = CliRunner().invoke(app, [*line, "--figure", "here.svg"])
    assert done.exit_code == 0, done.output
    record = BenchRecord.model_validate_json((tmp_path / "here.json").read_bytes())
    assert record.bench == "scaling"
    assert record.command == "densekd bench scaling --threads 1 --rounds 1 --methods channelwise,feature --quick"
    assert [row.split("\t")[0] for row in done.stdout.splitlines()] == ["method", "channelwise", "feature"]
    assert (tmp_path / "here.svg").read_text().startswith("<?xml")
    assert "linear" not in record.environment  # small maps are not judged
    assert CliRunner().invoke(app, line).exit_code == 2
    wrong = CliRunner().invoke(app, [*line, "--force", "--figure", "here.pdf"])
    assert wrong.exit_code == 2
    assert ".svg or .png" in wrong.stderr


def _is(case: BenchCase, axis: str) -> bool:
    return case.extra["axis"] == axis
