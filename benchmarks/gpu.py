"""Everything that is to be measured on a GPU, with one command; made for an H200, under 8 minutes.

    python benchmarks/gpu.py                # writes results/gpu-*.json
    python benchmarks/gpu.py --dry-run      # what would run, and whether it can
    python benchmarks/gpu.py --tiny         # every line of it on the CPU, with tiny maps; its figures mean nothing

Stages, each in a process of its own with a time limit of its own:

* `correct`: values and gradients of every kernel against float64, all dtypes, layouts and ways of dividing rows;
* `loss`: channel-wise KL, forward and backward, against the copy bandwidth of the same run and the textbook form;
* `task`: up-sampling with cross-entropy, and pixel-wise KL, against torch;
* `step`: the whole distillation step of PSPNet-R101 -> R18 at 512x1024 against the public way;
* `methods`: `densekd bench methods --device cuda`.

A stage writes its record whenever it has something new, and `gpu-targets.json` tells after each stage which targets are
met: a stop loses nothing. A stage that fails or is stopped does not keep the next one from running; but where `correct`
finds a wrong value, fails, or is stopped before it has checked anything, nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from densekd.bench import gpu, gpu_checks, gpu_loss, gpu_step, gpu_task, runner
from densekd.cli.guard import guarded
from densekd.errors import ArgumentError
from densekd.files import write_json
from densekd.records import commit, dump, environment

RESULTS = Path(__file__).parent / "results"
#: seconds of the whole run
LIMIT = 470


@dataclass(frozen=True)
class Stage:
    """One stage: what it calls, the kind of record it leaves, and its seconds at most."""

    run: Callable[..., gpu.Outcome] | None
    bench: Any
    limit: int


STAGES = {
    "correct": Stage(gpu_checks.run, "loss", 140),  # some 200 kernels are compiled, half a second each
    "loss": Stage(gpu_loss.run, "loss", 60),
    "task": Stage(gpu_task.run, "loss", 60),
    "step": Stage(gpu_step.run, "step", 150),
    "methods": Stage(None, "methods", 60),
}


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stages", type=lambda text: text.split(","), default=list(STAGES), help=", ".join(STAGES))
    parser.add_argument("--device", default=None, help="default cuda; with --tiny cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny maps, few rounds, on the CPU: to see that it works")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and whether it can")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--outcome", type=Path, help=argparse.SUPPRESS)  # of one stage, for the process that started it
    given = parser.parse_args(words)
    given.device = given.device or ("cpu" if given.tiny else "cuda")
    unknown = [name for name in given.stages if name not in STAGES]
    if unknown:
        raise ArgumentError(f"--stages: unknown {', '.join(unknown)}; there are {', '.join(STAGES)}")
    return given


def _stage(name: str, given: argparse.Namespace) -> None:
    """Run one stage in this process and write its record as it grows."""
    device, load = torch.device(given.device), runner.machine_load()
    stage = STAGES[name]
    assert stage.run is not None  # `methods` is a command

    def keep(outcome: gpu.Outcome) -> None:
        notes = {**gpu.versions(), **outcome.notes}
        notes |= {f"target: {target.name}": target.words() for target in outcome.targets}
        record = runner.make_record(
            stage.bench,
            device=gpu.device_name(device),
            threads=torch.get_num_threads(),
            command=_command(given, name),
            load=load,
            cases=outcome.cases,
            notes=notes,
        )
        write_json(given.results / f"gpu-{name}.json", dump(record))
        write_json(given.outcome, {"targets": [target.as_dict() for target in outcome.targets]})

    keep(stage.run(device, tiny=given.tiny, keep=keep))


def _command(given: argparse.Namespace, *stages: str) -> str:
    only = f" --stages {','.join(stages)}" if stages else ""
    return f"python benchmarks/gpu.py{only}{' --tiny' if given.tiny else ''}"


def _words(name: str, given: argparse.Namespace, outcome: Path) -> list[str]:
    """The command line of a stage."""
    if name == "methods":
        out = str(given.results / "gpu-methods.json")
        sizes = ["--quick", "--rounds", "1"] if given.tiny else ["--rounds", "15"]
        words = ["bench", "methods", "--device", torch.device(given.device).type, *sizes, "--force", "--out", out]
        return [sys.executable, "-m", "densekd", *words, "--quiet"]
    words = ["--stages", name, "--device", given.device, "--results", str(given.results), "--outcome", str(outcome)]
    return [sys.executable, str(Path(__file__).resolve()), *words, *(["--tiny"] if given.tiny else [])]


def _started(name: str, given: argparse.Namespace, folder: Path, limit: float) -> dict[str, Any]:
    """Run a stage in its own process; what became of it."""
    outcome, begin = folder / f"{name}.json", time.monotonic()
    # Triton chooses its interpreter when it is imported; NumPy warns in it of what masked lanes hold.
    interpreted = {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore::RuntimeWarning"}
    changes = interpreted if torch.device(given.device).type == "cpu" else {}
    # A session of its own: what a stage has started (compilers) goes with it.
    process = subprocess.Popen(
        _words(name, given, outcome), env={**os.environ, **changes}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        code = process.wait(limit)
        status = "done" if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        status = f"stopped after {limit:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    kept = json.loads(outcome.read_text()) if outcome.is_file() else None
    seconds = round(time.monotonic() - begin, 1)
    targets = [] if kept is None else kept["targets"]
    return {"stage": name, "status": status, "seconds": seconds, "targets": targets, "kept": kept is not None}


def _right(stage: dict[str, Any]) -> bool:
    """Whether what `correct` left lets times be taken: nothing wrong in all it checked, or in what it had time for."""
    looked = stage["status"] == "done" or (stage["kept"] and stage["status"].startswith("stopped"))
    return looked and all(target["met"] for target in stage["targets"])


def _shown(stage: dict[str, Any]) -> None:
    print(f"{stage['stage']}: {stage['status']}, {stage['seconds']:.0f} s")
    for target in stage["targets"]:
        found = gpu.Target(target["name"], target["value"], target["wanted"], target["bound"] == "at most")
        print(f"  {found.words()}", flush=True)


def _whole(given: argparse.Namespace) -> int:
    """Every stage after the other; the exit code."""
    begin, stages = time.monotonic(), list[dict[str, Any]]()
    device = torch.device(given.device)
    right = True
    with tempfile.TemporaryDirectory() as folder:
        for name in given.stages:
            left = max(LIMIT - (time.monotonic() - begin), 1.0)
            if right:
                stages.append(_started(name, given, Path(folder), min(STAGES[name].limit, left)))
            else:
                left_out = {"status": "left out", "seconds": 0.0, "targets": [], "kept": False}
                stages.append({"stage": name, **left_out})
            _shown(stages[-1])
            if name == "correct":
                right = _right(stages[-1])
            summary = {"schema": 1, "device": gpu.device_name(device), "command": _command(given), "commit": commit()}
            environ = {**environment(), **gpu.versions()}
            write_json(given.results / "gpu-targets.json", {**summary, "stages": stages, "environment": environ})
    targets = [target for stage in stages for target in stage["targets"]]
    met = sum(target["met"] for target in targets)
    print(
        f"{met} of {len(targets)} targets met in {time.monotonic() - begin:.0f} s; records: {given.results}/gpu-*.json"
    )
    return 0 if all(stage["status"] == "done" for stage in stages) else 1


def _dry_run(given: argparse.Namespace) -> None:
    device = torch.device(given.device)
    can = device.type != "cuda" or torch.cuda.is_available()
    print(f"device {device}: " + (gpu.device_name(device) if can else "torch sees no CUDA device here"))
    backend, why = gpu.kernel_backend(device) if can else ("none", "there is no device")
    print(f"kernels: backend {backend}" + ("" if why is None else f" ({why})"))
    for name in given.stages:
        words = " ".join(Path(word).name if word == sys.executable else word for word in _words(name, given, Path("-")))
        print(f"{name}: at most {STAGES[name].limit} s: {words}")
    print(f"all: at most {LIMIT} s")


def main(words: list[str] | None = None) -> None:
    """Run the stages that were asked for."""
    given = _arguments(words)
    if given.dry_run:
        _dry_run(given)
        return
    if torch.device(given.device).type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("torch sees no CUDA device here; --tiny runs every line of it on the CPU")
    if given.outcome is not None:
        _stage(given.stages[0], given)
    else:
        raise SystemExit(_whole(given))


if __name__ == "__main__":
    guarded(main)()
