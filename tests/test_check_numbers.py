"""tools/check_numbers.py: numbers in the docs are those of the records, or it says where they are not."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    import check_numbers

    yield check_numbers
    for name in ("check_numbers", "record_marks", "record_tables"):
        sys.modules.pop(name, None)


def scores(values: list[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    return {"miou": values, "mean": mean, "sd": 0.012}


def study() -> dict[str, Any]:
    cost = {"seconds_per_step": 0.1, "peak_memory_bytes": 10, "extra_parameters": 0, "total_seconds": 61.7}
    network = {"parameters": 940_000, "dead_parameters": 0, "flops": 120_000_000}
    alone = {
        "name": "none",
        "where": "-",
        "seeds": [0, 1, 2],
        "final": scores([0.5, 0.52, 0.54]),
        "best": scores([0.5, 0.52, 0.54]),
        "iou": {"road": 0.9, "sign": None},
        "extra_splits": {"drive": scores([0.4, 0.4, 0.4])},
        "cost": cost,
        "student": network,
    }
    distilled = {
        **alone,
        "name": "channelwise",
        "where": "logits",
        "final": scores([0.56, 0.51, 0.58]),
        "gain": {"mean": 0.03, "low": -0.01, "high": 0.06},
    }
    teacher = {"miou": 0.72, "iou": {"road": 0.95, "sign": None}, "extra_splits": {"drive": 0.6}, "parameters": 11e6}
    return {
        "schema": 1,
        "name": "demo",
        "data": {},
        "teacher": {**teacher, "flops": 2e9, "steps": 10, "total_seconds": 200.0},
        "methods": [alone, distilled],
        "environment": {"cpu": "a quiet one"},
    }


def bench() -> dict[str, Any]:
    def case(variant: str, seconds: float, ratio: float, maps: float) -> dict[str, Any]:
        return {
            "name": "2x3x4x4",
            "variant": variant,
            "median_seconds": seconds,
            "ratio": ratio,
            "peak_bytes": 1,
            "error": 2e-7,
            "samples": [seconds],
            "extra": {"peak_maps": maps},
        }

    cases = [case("textbook", 0.02, 1.0, 5.0), case("blocked", 0.01, 2.0, 2.04)]
    head = {"schema": 1, "bench": "loss", "device": "cpu", "threads": 1, "command": "densekd bench loss"}
    return {**head, "commit": "", "load": [0.0], "cases": cases, "environment": {}}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "docs" / "deeper").mkdir(parents=True)
    (results / "demo.json").write_text(json.dumps(study()))
    (results / "loss.json").write_text(json.dumps(bench()))
    return tmp_path


def check(tool: Any, repository: Path, text: str, *options: str, page: str = "README.md") -> int:
    (repository / "README.md").write_text("")
    (repository / page).write_text(text)
    return int(tool.main(["--root", str(repository), *options]))


def mark(spec: str, text: str) -> str:
    return f"<!-- record: {spec} -->{text}<!-- /record -->"


MEAN = "demo.json methods[name=channelwise].final.mean * 100 .1f"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (MEAN, "55.0"),
        ("demo.json methods[1].gain.mean * 100 +.1f", "+3.0"),
        ("demo.json methods[name=channelwise].final.mean - 0.5 .3f", "0.050"),
        ("demo.json methods[name=none].seeds.#", "3"),
        ("demo.json methods[1].final.miou above methods[0].final.miou", "2"),
        ("demo.json methods[0].student.parameters ,d", "940,000"),
        ("demo.json environment.cpu", "a quiet one"),
        ("demo.json methods[name=channelwise,where=logits].name", "channelwise"),
    ],
)
def test_agreeing_marks_pass(
    tool: Any, repository: Path, spec: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tool, repository, f"The student reaches {mark(spec, text)}.\n") == 0
    assert "1 marks agree" in capsys.readouterr().out


def test_a_number_that_differs_fails_with_its_place(
    tool: Any, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"# Title\n\nIt reaches {mark(MEAN, '56.0')}.\n"
    assert check(tool, repository, text, page="docs/deeper/page.md") == 1
    assert "docs/deeper/page.md:3: expected '55.0', found '56.0'" in capsys.readouterr().err


def test_a_changed_record_fails_the_same_text(tool: Any, repository: Path) -> None:
    text = f"It reaches {mark(MEAN, '55.0')}.\n"
    assert check(tool, repository, text) == 0
    changed = study()
    changed["methods"][1]["final"]["mean"] = 0.5512
    (repository / "benchmarks" / "results" / "demo.json").write_text(json.dumps(changed))
    assert check(tool, repository, text) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (mark("absent.json a.b", "1"), "there is no record .*absent.json"),
        (mark("recipe:absent train.epochs", "1"), "there is no recipe .*absent.yaml"),
        (mark("demo.json methods[name=dist].final.mean", "1"), r"0 entries match \[name=dist\], expected one"),
        (mark("demo.json methods[where=x].final", "1"), "0 entries match"),
        (mark("demo.json teacher.speed", "1"), "no key 'speed'; there are miou"),
        (mark("demo.json methods[7].name", "1"), "the list has 2 entries"),
        (mark("demo.json methods[0].gain", "1"), "no key 'gain'"),
        (mark("demo.json teacher.iou.sign", "1"), "is null"),
        (mark("demo.json teacher.iou", "1"), "leads to a dict"),
        (mark("demo.json teacher.miou times 100", "1"), "'times' is no operator"),
        (mark("demo.json teacher.miou / 0", "1"), "division by zero"),
        (mark("demo.json", "1"), "a path is missing"),
        ("<!-- record: demo.json teacher.miou -->0.72", "not closed on its line"),
        ("0.72<!-- /record -->", "not opened"),
        (f"`{mark('demo.json teacher.miou', '0.72')}`", "use <code>"),
        (mark("demo.json teacher.miou", "0.72"), "begins the line"),
        ("<!-- table: study demo.json -->", "a table that is not closed"),
        ("<!-- table: bars demo.json -->\n<!-- /table -->", "unknown kind of table 'bars'"),
        ("<!-- table: loss demo.json -->\n<!-- /table -->", "not what a table of kind 'loss' is made from"),
    ],
)
def test_a_mark_that_leads_nowhere_fails(
    tool: Any, repository: Path, line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tool, repository, f"{line}\n") == 1
    found = capsys.readouterr().err
    assert re.search(rf"README.md:1: .*{words}", found), found


def test_settings_of_a_recipe_can_be_marked(tool: Any, repository: Path) -> None:
    recipes = repository / "src" / "densekd" / "recipes"
    recipes.mkdir(parents=True)
    (recipes / "demo.yaml").write_text("train: {epochs: 15}\n")
    assert check(tool, repository, f"For {mark('recipe:demo train.epochs', '15')} epochs.") == 0
    assert check(tool, repository, f"For {mark('recipe:demo train.epochs', '25')} epochs.") == 1


def test_a_table_of_published_results_is_made_from_recipes(
    tool: Any, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = repository / "src" / "densekd" / "recipes" / "city"
    recipes.mkdir(parents=True)
    (recipes / "a.yaml").write_text(
        "published:\n  - {method: cwd, miou: 75.50, alone: 70.0, source: Table 2, note: three runs}\n"
    )
    (recipes / "b.yaml").write_text("name: nothing published\n")
    text = "<!-- table: published recipes:city -->\n<!-- /table -->\n"
    assert check(tool, repository, text) == 1
    assert check(tool, repository, text, "--write") == 0
    written = (repository / "README.md").read_text()
    row = re.sub(r"<!--.*?-->", "", written.splitlines()[3])
    assert row == "| `city/a` | `cwd` | 70.00 | 75.50 |  | val | Table 2 | three runs |"
    assert len(written.splitlines()) == 5
    assert check(tool, repository, written.replace("75.50", "75.51")) == 1
    capsys.readouterr()
    assert check(tool, repository, text.replace("city", "town")) == 1
    assert "there are no recipes in" in capsys.readouterr().err


def test_an_invalid_record_fails(tool: Any, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = study()
    del broken["methods"][0]["final"]["sd"]
    (repository / "benchmarks" / "results" / "demo.json").write_text(json.dumps(broken))
    assert check(tool, repository, f"It is {mark('demo.json teacher.miou', '0.72')}") == 1
    assert "is no valid record" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        (f"| student | {mark(MEAN, '55.0')} | 61 |", "61"),
        (f"| student | {mark(MEAN, '55.0')} ± 1.2 |  |", "1.2"),
        (f"| 3 students | {mark(MEAN, '55.0')} | -4.5 |", "3, -4.5"),
        ("| student | 55.0 | |", "55.0"),
    ],
)
def test_a_table_of_results_needs_marks(
    tool: Any, repository: Path, row: str, numbers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tool, repository, f"| | mIoU | seconds |\n|---|---|---|\n{row}\n") == 1
    assert f"README.md:3: {numbers} in a table of results without a record mark" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        f"| | mIoU |\n|---|---|\n| ResNet-18, `8x19` | {mark(MEAN, '55.0')} |\n",
        "| key | default |\n|---|---|\n| lr | 0.01 |\n",
        "<!-- published: the paper's table 2 -->\n| | mIoU |\n|---|---|\n| CWD | 74.87 |\n",
        f"```\n| | mIoU |\n|---|---|\n| CWD | 74.87 |\n{mark(MEAN, '1')}\n```\n",
    ],
)
def test_what_is_no_unmarked_result_passes(tool: Any, repository: Path, text: str) -> None:
    assert check(tool, repository, text) == 0


PAGE = """# Results

Measured on <!-- record: demo.json environment.cpu -->?<!-- /record -->.

<!-- table: study demo.json -->
<!-- /table -->

<!-- table: classes demo.json -->
| stale |
<!-- /table -->

<!-- table: loss loss.json -->
<!-- /table -->
"""


def visible(text: str) -> str:
    return re.sub(r"<!--.*?-->", "", text)


def test_write_fills_marks_and_tables_and_then_all_agrees(tool: Any, repository: Path) -> None:
    assert check(tool, repository, PAGE) == 1
    assert (repository / "README.md").read_text() == PAGE, "a check alone writes nothing"
    assert check(tool, repository, PAGE, "--write") == 0
    text = (repository / "README.md").read_text()
    shown = visible(text)
    assert "Measured on a quiet one." in shown
    assert "| teacher | 72.0 | 60.0 |  |  | 11.00 M | 2.00 | 200 |" in shown
    assert "| student alone | 52.0 ± 1.2 | 40.0 ± 1.2 |  | 3 | 0.94 M | 0.12 | 62 |" in shown
    assert "| student, channelwise | 55.0 ± 1.2 | 40.0 ± 1.2 | +3.0 [-1.0, +6.0] | 3 | 0.94 M | 0.12 | 62 |" in shown
    assert "| road | 95.0 | 90.0 | 90.0 |" in shown
    assert "| sign | - | - | - |" in shown
    assert "| `2x3x4x4` | 20.0 | 10.0 | 2.00x | 5.00 | 2.04 | 2e-07 |" in shown
    assert "stale" not in shown
    assert check(tool, repository, text) == 0


def test_a_number_changed_by_hand_in_a_made_table_fails(
    tool: Any, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(tool, repository, PAGE, "--write")
    text = (repository / "README.md").read_text()
    changed = text.replace("-->55.0<!--", "-->57.0<!--")
    assert changed != text
    assert check(tool, repository, changed) == 1
    found = capsys.readouterr().err
    assert re.search(r"README.md:10: expected .*55\.0 ± 1\.2.*, found .*57\.0 ± 1\.2", found), found


def test_write_says_what_it_cannot_fill(tool: Any, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "benchmarks" / "results" / "loss.json").unlink()
    assert check(tool, repository, PAGE, "--write") == 1
    assert "there is no record" in capsys.readouterr().err
    assert "72.0" in visible((repository / "README.md").read_text()), "the other marks are filled all the same"


def test_a_table_of_a_study_with_a_failed_method_and_a_teacher_that_no_run_made(tool: Any, repository: Path) -> None:
    changed = study()
    changed["teacher"]["total_seconds"] = None
    changed["methods"][1] |= {"final": None, "best": None, "gain": None, "seeds": [], "extra_splits": {}}
    changed["methods"][1]["cost"] = {"total_seconds": None}
    (repository / "benchmarks" / "results" / "demo.json").write_text(json.dumps(changed))
    text = "<!-- table: study demo.json -->\n<!-- /table -->\n"
    assert check(tool, repository, text, "--write") == 0
    rows = [re.sub(r"<!--.*?-->", "", line) for line in (repository / "README.md").read_text().splitlines()]
    assert [row for row in rows if row.startswith("| teacher")] == [
        "| teacher | 72.0 | 60.0 |  |  | 11.00 M | 2.00 | - |"
    ]
    assert rows[-2].startswith("| student, channelwise | failed | failed |  | 0 |")
    assert check(tool, repository, (repository / "README.md").read_text()) == 0


def shown(repository: Path) -> list[str]:
    return [re.sub(r"<!--.*?-->", "", line) for line in (repository / "README.md").read_text().splitlines()]


def drawn(tool: Any, repository: Path, kind: str, record: dict[str, Any]) -> list[str]:
    """The lines of a table of this kind, made from the record."""
    (repository / "benchmarks" / "results" / "demo.json").write_text(json.dumps(record))
    assert check(tool, repository, f"<!-- table: {kind} demo.json -->\n<!-- /table -->\n", "--write") == 0
    return shown(repository)[1:-1]


def test_gains_stand_in_a_row_per_method_and_a_column_per_place(tool: Any, repository: Path) -> None:
    changed = study()
    distilled = changed["methods"][1]
    changed["methods"] += [
        {
            **distilled,
            "name": "channelwise@features",
            "where": "features",
            "gain": {"mean": 0.01, "low": 0, "high": 0.02},
        },
        {**distilled, "name": "pairwise@features", "where": "features", "final": None, "best": None, "gain": None},
    ]
    assert drawn(tool, repository, "gains", changed) == [
        "| gain, points of mIoU | logits | features |",
        "| --- | ---: | ---: |",
        "| channelwise | +3.0 [-1.0, +6.0] | +1.0 [+0.0, +2.0] |",
        "| pairwise |  | failed |",
    ]
    assert check(tool, repository, (repository / "README.md").read_text()) == 0


def test_gains_on_further_splits_stand_beside(tool: Any, repository: Path) -> None:
    changed = study()
    changed["methods"][1]["extra_gains"] = {"drive": {"mean": -0.02, "low": -0.03, "high": 0.004}}
    assert drawn(tool, repository, "gains", changed) == [
        "| gain, points of mIoU | logits | logits, drive |",
        "| --- | ---: | ---: |",
        "| channelwise | +3.0 [-1.0, +6.0] | -2.0 [-3.0, +0.4] |",
    ]


def test_a_sweep_has_a_row_per_method_and_the_chosen_weight(tool: Any, repository: Path) -> None:
    changed = study()
    alone, one = changed["methods"]
    tried = {"channelwise-w0.5": (1.5, 0.61), "channelwise-w2.5": (7.5, 0.61), "dist@features-w0.5": (10.0, 0.4)}
    changed["methods"] = [alone]
    for name, (weight, score) in tried.items():
        changed["methods"].append({**one, "name": name, "final": scores([score]), "terms": [{"weight": weight}]})
    changed["methods"].append({**one, "name": "dist@features-w2.5", "final": None, "terms": [{"weight": 50.0}]})
    # Of equal ones the smaller weight is taken, as `densekd tune` does; a run that failed leaves its place empty.
    assert drawn(tool, repository, "sweep", changed) == [
        "| mIoU, held out | weight x 0.5 | weight x 2.5 | chosen weight |",
        "| --- | ---: | ---: | ---: |",
        "| student alone | 52.0 |  |  |",
        "| channelwise | **61.0** | 61.0 | 1.5 |",
        "| dist@features | **40.0** |  | 10 |",
    ]


def test_costs_of_methods_are_multiples_of_the_plain_error(tool: Any, repository: Path) -> None:
    record = bench()
    (head, *_), extra = record["cases"], {"peak_maps": 2.0, "extra_parameters": 1234, "cost": "N C P"}
    record["bench"] = "methods"
    record["cases"] = [
        {**head, "name": name, "variant": variant, "median_seconds": seconds, "extra": extra}
        for name, variant, seconds in (
            ("logits:2x3x4x4", "mse", 0.01),
            ("logits:2x3x4x4", "dist", 0.025),
            ("features:2x9x4x4", "mse", 0.02),
        )
    ]
    (repository / "benchmarks" / "results" / "methods.json").write_text(json.dumps(record))
    assert check(tool, repository, "<!-- table: methods methods.json -->\n<!-- /table -->\n", "--write") == 0
    assert shown(repository)[3:-1] == [
        "| `mse` | 1.0 | 2.0 | 1.0 | 2.0 | 1,234 | N C P |",
        "| `dist` | 2.5 | 2.0 |  |  | 1,234 | N C P |",
    ]
    assert check(tool, repository, (repository / "README.md").read_text()) == 0


def test_exponents_stand_in_a_row_per_loss(tool: Any, repository: Path) -> None:
    fit = {"exponent": 1.0, "exponent_low": 0.9, "exponent_high": 1.25, "memory_exponent": 2.0}
    case = {"median_seconds": 1.0, "ratio": None, "samples": [1.0], "variant": "pairwise"}
    cases = [
        {**case, "name": f"{axis}:1x2", "extra": {"axis": axis, "cost": "N C P", **fit, "exponent": place + 1.0}}
        for place, axis in enumerate("NCHW")
    ]
    small = {**case, "name": "base:1x1", "extra": {"axis": "base", "cost": "N C P"}}
    record = {"bench": "scaling", "device": "cpu", "threads": 1, "command": "c", "commit": "", "load": []}
    found = drawn(tool, repository, "scaling", {"schema": 1, **record, "cases": [small, *cases], "environment": {}})
    assert found[2] == (
        "| `pairwise` | 1.00 (0.90 to 1.25) | 2.00 (0.90 to 1.25) | 3.00 (0.90 to 1.25) | 4.00 (0.90 to 1.25) "
        "| 2.00 | 2.00 | 2.00 | 2.00 | N C P |"
    )
    assert found[0].startswith("| loss | time, N | time, C |")
    assert len(found) == 3


def test_a_stage_of_the_soak_is_a_row(tool: Any, repository: Path) -> None:
    slopes = {"own_slope": 0.204, "own_slope_low": -0.1, "own_slope_high": 0.31, "rss_slope": 0.5, "rss_last": 931.4}
    counts = {"steps": 20_000, "evaluations": 80, "pages": 20, "files_most": 7, "threads_most": 2}
    case = {"name": "one run", "variant": "v", "median_seconds": 1.0, "ratio": None, "samples": [1.0]}
    record = {"bench": "soak", "device": "cpu", "threads": 1, "command": "c", "commit": "", "load": []}
    cases = [{**case, "extra": {**slopes, **counts}}]
    found = drawn(tool, repository, "soak", {"schema": 1, **record, "cases": cases, "environment": {}})
    assert found[2:] == ["| one run | 20000 | 80 | 20 | 0.20 | 0.50 | -0.10 to 0.31 | 931 | 7 | 2 |"]


def test_stored_views_stand_beside_the_live_teacher(tool: Any, repository: Path) -> None:
    gap = {"mean": -0.01, "low": -0.02, "high": 0.0, "n": 3}
    live = {
        "name": "live",
        "final": scores([0.5, 0.5]),
        "gain": {**gap, "mean": 0.04},
        "to_live": {"mean": 0.0, "low": 0.0, "high": 0.0},
        "seconds_per_step": 0.08,
        "times_alone": 2.5,
    }
    cache = {"bytes": 2_100_000, "build_seconds": 7.4, "errors": {"logits": {"mean": 0.0033, "max": 0.01}}}
    stored = {**live, "name": "cache-1", "to_live": gap, "times_alone": 1.1, "cache": cache}
    assert drawn(tool, repository, "views", {"schema": 1, "variants": [live, stored]})[2:] == [
        "| live | 50.0 ± 1.2 | +4.0 [-2.0, +0.0] |  | 80 | 2.50 |  |  |  |",
        "| cache-1 | 50.0 ± 1.2 | +4.0 [-2.0, +0.0] | -1.0 [-2.0, +0.0] | 80 | 1.10 | 2.1 | 7 | 0.33 |",
    ]


def test_steps_stand_in_a_row_per_pair_and_way(tool: Any, repository: Path) -> None:
    case = {"name": "psp", "variant": "public, +b", "median_seconds": 1.98, "ratio": 1.0, "peak_bytes": 2_000_000}
    case |= {"samples": [1.98], "error": 0.0123, "extra": {"times_student": 2.3}}
    alone = {**case, "variant": "student", "median_seconds": 0.86, "ratio": 2.302, "peak_bytes": None, "error": None}
    record = {"bench": "step", "device": "cpu", "threads": 1, "command": "c", "commit": "", "load": []}
    found = drawn(tool, repository, "steps", {"schema": 1, **record, "cases": [case, alone], "environment": {}})
    assert found[2:] == [
        "| psp | public, +b | 1980 | 1.00x | 2.30x | 2 | 1.2 |",
        "| psp | student | 860 | 2.30x | 2.30x |  |  |",
    ]
