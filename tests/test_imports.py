from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "numpy", "pydantic", "accelerate", "timm", "transformers", "matplotlib")


def loaded(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport sys; print(' '.join(n for n in {HEAVY!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_densekd_loads_nothing_large():
    assert loaded("import densekd; dir(densekd); densekd.__version__") == set()


def test_the_check_above_can_fail():
    assert "numpy" in loaded("import densekd, numpy")


def test_the_command_line_loads_nothing_large():
    assert loaded("import densekd.cli.main, densekd.cli.app, densekd.errors") == set()


def test_names_resolve_and_stay():
    import densekd

    for name in densekd.__all__:
        assert getattr(densekd, name) is not None
    assert set(densekd.__all__) <= set(dir(densekd))
    import densekd.doctor
    import densekd.runs
    import densekd.training

    assert densekd.train is densekd.runs.train
    assert densekd.distill is densekd.runs.distill
    assert densekd.preflight is densekd.doctor.preflight
    assert callable(densekd.train)
    assert callable(densekd.preflight)


def test_an_unknown_name_is_an_attribute_error():
    import densekd

    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        densekd.distil
