"""`densekd doctor --replay`: a step that a run ended on, taken again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from densekd.cli.guard import complain
from densekd.cli.show import table


def replay_step(path: Path, overrides: dict[str, Any], watch: Any, *, quiet: bool, as_json: bool, trust: bool) -> None:
    """Print the table of a kept step, the first modules whose output is not finite, and what to do."""
    from densekd.runs.replay import replay

    with watch:
        found = replay(path, overrides, watch.checking, trust=trust, said=watch.said)
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2, ensure_ascii=False) + "\n")
        return
    if not quiet:
        samples = [name for micro in found.kept.manifest["samples"] for name in micro]
        complain(f"{found.kept.folder}: {found.kept.manifest['error']}")
        complain(f"images: {', '.join(samples)}")
        for line in found.notices:
            complain(line)
    table(found.rows(), title=f"step {found.kept.step}")
    for line in found.words():
        complain(line)
