"""Every Python from 3.11 on that is installed here or can be had, one of each minor version; and which cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FIRST = (3, 11)
_ASKED = """
import json, sys, sysconfig
free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print(json.dumps([*sys.version_info[:4], free or sys.prefix != sys.base_prefix]))
"""
_SECONDS = 300


@dataclass(frozen=True)
class Python:
    """A minor version.

    Attributes:
        minor: as `3.12`.
        version: of the interpreter; empty where there is none.
        path: of the interpreter.
        reason: where it came from, or why it cannot be had.
    """

    minor: str
    version: str = ""
    path: Path | None = None
    reason: str = ""


def candidates() -> list[Path]:
    """Interpreters that may be of use: on the path, of pyenv, and those that uv knows."""
    found = [
        Path(name)
        for folder in os.environ.get("PATH", "").split(os.pathsep)
        for name in sorted(Path(folder or ".").glob("python3.[0-9]*"))
        if re.fullmatch(r"python3\.\d+(\.exe)?", name.name)
    ]
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found += sorted(root.glob("versions/*/bin/python3"))
    for line in _uv("python", "list", "--only-installed", "--output-format", "json"):
        found += [Path(entry["path"]) for entry in json.loads(line) if entry.get("path")]
    return found


def installed(paths: Iterable[Path]) -> dict[str, Python]:
    """The newest of each minor version that answers.

    Left out: builds without the lock of threads, previews, interpreters of virtual environments.
    """
    best: dict[str, tuple[tuple[int, ...], Python]] = {}
    for path in paths:
        try:
            done = subprocess.run([path, "-I", "-c", _ASKED], capture_output=True, text=True, timeout=30, check=False)
            *numbers, level, other = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            continue  # a name of pyenv's whose version is not chosen, for instance
        version, minor = tuple(numbers), f"{numbers[0]}.{numbers[1]}"
        if version[:2] < FIRST or level != "final" or other:
            continue
        if minor not in best or version > best[minor][0]:
            best[minor] = version, Python(minor, ".".join(map(str, version)), path, "installed")
    return {minor: python for minor, (_, python) in best.items()}


def offered() -> list[str]:
    """Minor versions of CPython that uv could bring, previews left out; none where uv is not there."""
    found = set[tuple[int, ...]]()
    for line in _uv("python", "list", "--all-versions", "--only-downloads", "--output-format", "json"):
        for entry in json.loads(line):
            parts = re.fullmatch(r"(\d+)\.(\d+)\.\d+", entry["version"])
            if parts and entry.get("implementation") == "cpython":
                found.add((int(parts[1]), int(parts[2])))
    return [".".join(map(str, version)) for version in sorted(found) if version >= FIRST]


def brought(minor: str, folder: Path) -> Python:
    """The interpreter that uv brings into `folder`, or why it does not."""
    uv = shutil.which("uv")
    if uv is None:
        return Python(minor, reason="not installed; uv, which could bring it, is not there")
    asked = [uv, "python", "install", "--no-bin", "--install-dir", str(folder), minor]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Python(minor, reason=f"not installed; uv did not bring it within {_SECONDS} s")
    if done.returncode == 0:
        there = installed(sorted(folder.glob(f"cpython-{minor}*/bin/python3")) + sorted(folder.glob("*/python.exe")))
        if minor in there:
            return Python(minor, there[minor].version, there[minor].path, "brought by uv")
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    why = said[-1].removeprefix("cause:").strip() if said else f"exit code {done.returncode}"
    return Python(minor, reason=f"not installed; uv cannot bring it ({why[:200]})")


def pythons(folder: Path) -> list[Python]:
    """One of each minor version: installed, else brought into `folder`, else with the reason why not."""
    there = installed(candidates())
    wanted = sorted({*there, *offered()}, key=lambda minor: tuple(map(int, minor.split("."))))
    return [there.get(minor) or brought(minor, folder) for minor in wanted]


def _uv(*arguments: str) -> list[str]:
    """What uv answers in JSON, as one text; none where it is not there or does not answer."""
    uv = shutil.which("uv")
    if uv is None:
        return []
    try:
        done = subprocess.run([uv, *arguments], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return []
    return [done.stdout] if done.returncode == 0 and done.stdout.strip().startswith("[") else []
