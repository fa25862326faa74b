"""The work of an environment of the matrix in one process of it: two steps, a resume, what comes after, the extras.

    python -I matrix_work.py all|none

Each line is given to what the `densekd` command calls. Prints a line per step, then the versions as JSON; exit code 1
at the first that did not end as it must, with what it said.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import platform
import signal
import sys
import time
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "segmentation-models-pytorch", "timm", "accelerate", "transformers")
PACKAGES += ("onnx", "onnxruntime", "tensorboard", "wandb", "av", "scipy")
SIZES = ["data.train_count=4", "data.val_count=2", "data.size=[32,32]", "train.epochs=null", "train.steps=2"]
SIZES += ["train.batch_size=2", "runtime.device=cpu", "runtime.threads=1"]
TEACHER = ["demo-teacher", *SIZES, "student.options.encoder_name=mobilenet_v2"]
STUDENT = ["demo", *SIZES, "teacher.options.encoder_name=mobilenet_v2", "teacher.checkpoint=teacher"]
STUDENT += ["preflight.on_problem=warn"]
SEGFORMER = ["demo-teacher", *SIZES, "student.model=transformers:SegformerForSemanticSegmentation"]
SEGFORMER += ["student.options={hidden_sizes: [8, 8, 16, 16], depths: [1, 1, 1, 1], decoder_hidden_size: 16}"]
TRACKED = ["train", *TEACHER, "track.to=[tensorboard]", "--out", "tracked"]
HINT = "pip install"


class WrongError(Exception):
    """A line did not end as it must."""


def given(line: list[str], code: int = 0, *words: str) -> None:
    """Do what a line of the command asks for; its exit code and words must be these, and no traceback among them."""
    from densekd.cli.app import call

    began, said = time.monotonic(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            found = call(line)
        except SystemExit as end:
            found = end.code if isinstance(end.code, int) else int(end.code is not None)
    text = said.getvalue()
    lacking = [word for word in words if word not in text]
    if found != code or lacking or "Traceback" in text:
        raise WrongError(f"densekd {' '.join(line)}: exit code {found}, expected {code} and {words}:\n{text[-3000:]}")
    print(f"{time.monotonic() - began:6.1f} s  densekd {line[0]} {'...' if len(line) > 3 else ' '.join(line[1:])}")


def require(what: str, holds: bool) -> None:
    """End with words where something does not hold."""
    if not holds:
        raise WrongError(f"expected {what}")


def distil() -> None:
    """A distillation that SIGTERM ends after its first step, and that goes on with the second."""
    import yaml

    import densekd
    from densekd.runs.progress import Quiet
    from densekd.training.signals import Interrupted

    class Stop(Quiet):
        def step(self, taken: int, steps: int, result: object) -> None:
            signal.raise_signal(signal.SIGTERM)

    overrides = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in STUDENT[1:])}
    try:
        densekd.distill("demo", out="student", progress=Stop(), **overrides)
    except Interrupted as stop:
        require("exit code 143 of a terminated run", stop.exit_code == 143)
    require("a run that was interrupted", _record("student")["status"] == "interrupted")
    given(["distill", "student", "--resume"], 0, "student: student")
    require("a run of two steps", (_record("student")["status"], _record("student")["steps"]) == ("done", 2))


def _record(run: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((Path(run) / "record.json").read_text(encoding="utf-8"))
    return found


def export(kind: str) -> None:
    """The student as a file, verified by the command."""
    out = "exported" if kind == "hub-folder" else f"exported.{kind}"
    size = ["--size", "32", "32"] if kind in ("onnx", "pt2") else []
    given(["export", "student", "--to", kind, "--images", "2", "--out", out, *size])
    require(f"{out}", Path(out).exists())


def names() -> dict[str, str]:
    """Every public name, imported from the wheel; the versions that are installed."""
    import densekd

    require(f"the wheel's package, not {densekd.__file__}", "site-packages" in str(densekd.__file__))
    for name in densekd.__all__:
        getattr(densekd, name)
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def usual() -> None:
    """What every installation can."""
    given(["list", "methods"], 0, "channelwise")
    given(["train", *TEACHER, "--out", "teacher"])
    distil()
    given(["evaluate", "student"], 0, "IoU")
    given(["report", "student", "--out", "page.html"])
    require("a whole page", "</html>" in Path("page.html").read_text(encoding="utf-8"))
    export("safetensors")
    export("hub-folder")


def refusals() -> None:
    """What needs an extra says how it is installed."""
    from densekd.data.benchmarks.sbd import segmentation_of
    from densekd.errors import DataError

    given(["export", "student", "--to", "onnx", "--out", "net.onnx"], 2, HINT, "densekd[export]")
    given(TRACKED, 2, HINT, "densekd[track]")
    given(["train", *SEGFORMER, "--out", "segformer"], 2, HINT, "densekd[hf]")
    Path("film.mp4").write_bytes(b"")
    given(["predict", "student", "film.mp4", "--out", "film"], 2, HINT, "densekd[video]")
    try:
        segmentation_of(Path("some.mat"))
    except DataError as error:
        require(f"the command that installs scipy, not {error}", HINT in str(error) and "densekd[data]" in str(error))
    else:
        raise WrongError("masks of SBD are read without scipy")


def extras() -> None:
    """What the extras are for."""
    importlib.import_module("scipy.io")
    export("pt2")
    export("onnx")
    given(TRACKED)
    require("tensorboard's files", any(Path("tracked").rglob("*tfevents*")))
    given(["train", *SEGFORMER, "--out", "segformer"])
    make_film(Path("film.mp4"))
    given(["predict", "student", "film.mp4", "--out", "film"])


def make_film(path: Path) -> None:
    """Three frames."""
    import av
    import numpy as np

    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(3):
            picture = np.full((32, 32, 3), 60 * number, dtype=np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode())


def main(wanted: str) -> int:
    """All of it; the exit code."""
    try:
        versions = names()
        usual()
        if wanted == "all":
            extras()
        else:
            refusals()
    except WrongError as error:
        print(error)
        return 1
    print(json.dumps(versions))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
