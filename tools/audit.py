"""Known vulnerabilities of the pinned requirements, asked of pip-audit where its data can be reached.

    python tools/audit.py

Exit code 1 where a pinned version has a known vulnerability. Where pip-audit, or the data that it asks for, cannot be
had, that is said and the exit code is 0: nothing was audited, and nothing claims that it was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from installing import ROOT, mirror

REQUIREMENTS = ROOT / "requirements.txt"
_SECONDS = 300


def command(uv: str) -> list[str]:
    """pip-audit in an environment of its own; every version is pinned, so that pip is not needed."""
    asked = ["pip-audit", "-r", str(REQUIREMENTS), "--no-deps", "--disable-pip", "--format", "json"]
    return [uv, "tool", "run", *asked, "--progress-spinner", "off"]


def outcome(stdout: str, stderr: str) -> tuple[int, list[str]]:
    """Exit code and lines for the user, of what pip-audit printed."""
    try:
        found: list[dict[str, Any]] = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = [line.strip() for line in stderr.splitlines() if line.strip()]
        return 0, [f"not audited: pip-audit gave no answer ({said[-1][:300] if said else 'no words'})"]
    skipped = [one for one in found if "skip_reason" in one]
    bad = [one for one in found if one.get("vulns")]
    lines = [
        f"{one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for one in bad
        for flaw in one["vulns"]
    ]
    audited = len(found) - len(skipped)
    if audited:
        lines.append(f"audited: {audited} pinned requirements, {len(bad)} with known vulnerabilities")
    if skipped:
        names = ", ".join(one["name"] for one in skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        lines.append(f"not audited: {len(skipped)} of {len(found)} ({names}): {skipped[0]['skip_reason']}")
    return (1 if bad else 0), lines


def main() -> int:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        print("not audited: uv, which runs pip-audit, is not there")
        return 0
    try:
        done = subprocess.run(
            command(uv), env={**os.environ, **mirror()}, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"not audited: {error}")
        return 0
    code, lines = outcome(done.stdout, done.stderr)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
