"""What becomes of a step that ended in a value that is not finite: looked into, kept, and told."""

from __future__ import annotations

import shlex
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from densekd.data.keyed import keyed_seed
from densekd.errors import NonFiniteError
from densekd.training.examined import Examination, examine
from densekd.training.replay import FOLDER, keep_step
from densekd.training.sharding import is_sharded
from densekd.training.stepper import Stepper

_FIRST = " First: "


def kept_error(error: NonFiniteError, stepper: Stepper, run: Path, name_of: Callable[[int], str]) -> NonFiniteError:
    """The error with where the value arose and the command that looks into it; the step is in the run's folder.

    Of several processes those that saw the value keep their own batch; a gradient is the sum of all, and all do. Every
    one must call this, and looks into its own batch: all come to know where the value arose.
    """
    evidence = stepper.evidence
    if evidence.kind is None:
        return error
    traceback.clear_frames(error.__traceback__)  # the step's graph: the look below needs its memory
    if not evidence.mine:
        words = _first_seen(stepper)
        return NonFiniteError(f"{error}.{words} The process that saw it keeps its batch in {run / FOLDER}")
    try:
        kept = keep_step(run, stepper, evidence, name_of, str(error))
    except OSError as problem:
        _first_seen(stepper)
        return NonFiniteError(f"{error}; the batch could not be kept ({problem})")
    words = _first_seen(stepper)
    command = f"densekd doctor --replay {shlex.quote(str(kept))}"
    return NonFiniteError(f"{error}.{words} The batch is kept: `{command}` looks into it")


def _first_seen(stepper: Stepper) -> str:
    """Where the value arose first, in whichever process; empty where no look saw it, and for a sharded student."""
    if is_sharded(stepper.plain):
        return ""
    found = stepper.peers.texts(where(_looked_into(stepper)))
    if stepper.peers.world == 1:
        return found[0]
    seen = [(rank, words) for rank, words in enumerate(found) if words]
    return "" if not seen else seen[0][1].replace(_FIRST, f" First, in process {seen[0][0]}: ", 1)


def where(found: Examination | None) -> str:
    """Where the value arose first, as a sentence; empty where the look did not see it."""
    if found is None:
        return ""
    said = []
    for who, first in (("teacher", found.teacher), ("student", found.student)):
        taps = [look.what for look in found.bad(f"{who} map")]
        if first or taps:
            begins = f"the output of module {first} of the {who}" if first else f"the {taps[0]}"
            tapped = f" ({', '.join(dict.fromkeys(taps))})" if first and taps else ""
            said.append(f"{begins} is not finite{tapped}")
    if not said and found.backward:
        said.append(f"the values are finite, the gradient is not, first at the output of module {found.backward}")
    for who in ("student", "teacher"):
        said += [f"the {who} holds weights that are not finite" for _ in found.bad(f"{who} weights")]
    return f"{_FIRST}{'; '.join(said)}." if said else ""


def _looked_into(stepper: Stepper) -> Examination | None:
    evidence = stepper.evidence
    try:
        return examine(
            stepper.plain,
            evidence.shown,
            seed=keyed_seed(stepper.seed, "step", evidence.number, stepper.peers.rank),
            device=stepper.accelerator.device,
            channels_last=stepper.channels_last,
            precision=nullcontext,  # the engine's own autocast is around the objective
            # What averages the gradients of several processes still waits for a backward pass that was not taken.
            backward=stepper.peers.world == 1 or evidence.kind == "gradient",
        )
    except Exception:  # whatever goes wrong in a second look, the error is the one that was found
        return None
