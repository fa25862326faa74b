"""The package as users get it: its wheel, a fresh environment, and commands in clean surroundings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What would bring other packages, other builds of them, or byte code that is compiled anew by every process.
_UNWANTED = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"}
_UNWANTED |= {"PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_EXTRA_INDEX_URL", "UV_INDEX"}


class CommandError(Exception):
    """A command ended with another exit code than expected, or said another thing.

    Attributes:
        code: its exit code; None where it did not end in time.
        said: what it printed.
    """

    def __init__(self, name: str, code: int | None, said: str) -> None:
        super().__init__(f"{name}: {'no end' if code is None else f'exit code {code}'}: {said.strip()[-2000:]}")
        self.code, self.said = code, said


def command(
    *parts: str | Path, cwd: Path, code: int = 0, seconds: float | None = None, name: str = "", **variables: str
) -> str:
    """Run one command; what it printed, stderr included.

    Args:
        parts: the program and its arguments.
        cwd: where.
        code: the exit code that is right.
        seconds: after which it is killed.
        name: for the error; else the program and its arguments.
        variables: of the environment, besides.

    Raises:
        CommandError: it ended with another exit code, or did not end.
    """
    texts = [str(part) for part in parts]
    name = name or " ".join([Path(texts[0]).name, *texts[1:]])[:100]
    environment = {key: value for key, value in os.environ.items() if key not in _UNWANTED}
    try:
        done = subprocess.run(
            texts,
            cwd=cwd,
            env={**environment, "OMP_NUM_THREADS": "1", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(name, None, (error.output or b"").decode("utf-8", "replace")) from None
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode != code:
        raise CommandError(name, done.returncode, said)
    return said


def mirror() -> dict[str, str]:
    """uv does not read pip's settings: an index that is named there is handed on."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    found = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL") or done.stdout.strip()
    return {"UV_DEFAULT_INDEX": found} if found else {}


def build_wheel(work: Path) -> list[str | Path]:
    """The command that builds the wheel into `work/dist`; `wheel_in` finds it."""
    return ["uv", "build", "--wheel", "--out-dir", work / "dist", ROOT]


def wheel_in(work: Path) -> Path:
    """The wheel that was built."""
    (wheel,) = (work / "dist").glob("*.whl")
    return wheel


def programs(environment: Path) -> Path:
    """Where an environment has its programs."""
    return environment / ("Scripts" if os.name == "nt" else "bin")
