"""The scripts under tools/ that judge the project fail when they should."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def long_tests(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import test_long

    yield test_long
    sys.modules.pop("test_long", None)


@pytest.fixture
def wheel_test(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import wheel_test

    yield wheel_test
    sys.modules.pop("wheel_test", None)


def report(name: str, when: str, outcome: str, seconds: float = 0.5, **extra: Any) -> Any:
    given = {"user_properties": [], **extra}
    return SimpleNamespace(nodeid=name, when=when, outcome=outcome, duration=seconds, **given)


def test_outcomes_are_counted_once_per_test(long_tests: Any) -> None:
    watch = long_tests.Watch()
    for when in ("setup", "call", "teardown"):
        watch.pytest_runtest_logreport(report("a", when, "passed"))
    watch.pytest_runtest_logreport(report("b", "setup", "skipped"))
    watch.pytest_runtest_logreport(report("c", "setup", "failed"))
    watch.pytest_runtest_logreport(report("d", "call", "failed", 3.0))
    watch.pytest_runtest_logreport(report("e", "call", "skipped", wasxfail="known"))
    assert watch.counts == {"passed": 1, "failed": 1, "error": 1, "skipped": 1, "xfailed": 1}
    assert watch.failures == ["c", "d"]
    assert watch.seconds == {"a": 1.5, "b": 0.5, "c": 0.5, "d": 3.0, "e": 0.5}


@pytest.mark.parametrize(("code", "passed", "succeeded"), [(0, 3, True), (0, 0, False), (1, 3, False), (5, 0, False)])
def test_a_failure_or_no_test_at_all_is_no_success(long_tests: Any, code: int, passed: int, succeeded: bool) -> None:
    watch = long_tests.Watch()
    watch.counts["passed"] = passed
    assert long_tests.record(watch, code, 1.0)["passed"] is succeeded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "code", "counts"),
    [
        (
            "@pytest.mark.long\ndef test_it(record_property):\n    record_property('recipe', 'a')\n",
            0,
            {"passed": 1, "failed": 0},
        ),
        ("@pytest.mark.long\ndef test_it():\n    assert False\n", 1, {"passed": 0, "failed": 1}),
        ("def test_it():\n    pass\n", 1, {"passed": 0, "failed": 0}),
        ("@pytest.mark.long\n@pytest.mark.skip\ndef test_it():\n    pass\n", 1, {"passed": 0, "failed": 0}),
    ],
    ids=["passes", "fails", "none is long", "skipped"],
)
def test_long_leaves_a_record(tmp_path: Path, body: str, code: int, counts: dict[str, int]) -> None:
    (tmp_path / "test_one.py").write_text(f"import pytest\n\n{body}")
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import test_long; from pathlib import Path; "
        f"sys.exit(test_long.main(['-p', 'no:cacheprovider', {str(tmp_path)!r}], Path({str(tmp_path)!r}) / 'r.json'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["schema"] == 1
    assert record["passed"] is (code == 0)
    assert {name: record["counts"][name] for name in counts} == counts
    assert record["environment"]["python"] == sys.version.split()[0]
    assert [row["recipe"] for row in record["reported"]] == (["a"] if code == 0 else [])


def wheel(path: Path, names: set[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def test_a_wheel_without_a_recipe_or_with_more_is_refused(wheel_test: Any, tmp_path: Path) -> None:
    whole = {f"densekd/recipes/{name}" for name in wheel_test.RECIPES} | wheel_test.TEMPLATES
    whole |= {"densekd/py.typed", "densekd-1.dist-info/RECORD"}
    assert len(wheel_test.RECIPES) >= 5
    wheel_test.check_content(wheel(tmp_path / "whole.whl", whole))
    for lacking in ("densekd/recipes/demo.yaml", "densekd/report/templates/page.html", "densekd/py.typed"):
        with pytest.raises(SystemExit, match=lacking):
            wheel_test.check_content(wheel(tmp_path / "less.whl", whole - {lacking}))
    with pytest.raises(SystemExit, match="tests"):
        wheel_test.check_content(wheel(tmp_path / "more.whl", whole | {"tests/test_x.py"}))


def test_a_command_that_fails_ends_the_wheel_test(
    wheel_test: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"exit code 3\nwords"):
        wheel_test.step(sys.executable, "-c", "print('words'); raise SystemExit(3)", cwd=tmp_path)
