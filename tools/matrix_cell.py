"""What is done in each environment of the matrix: every name imported, two steps, a resume, what comes after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from installing import CommandError, command, programs

SIZES = ["data.train_count=4", "data.val_count=2", "data.size=[32,32]", "train.epochs=null", "train.steps=2"]
SIZES += ["train.batch_size=2", "runtime.device=cpu", "runtime.threads=1"]
TEACHER = ["demo-teacher", *SIZES, "student.options.encoder_name=mobilenet_v2"]
STUDENT = [*SIZES, "teacher.options.encoder_name=mobilenet_v2", "teacher.checkpoint=teacher"]
STUDENT += ["preflight.on_problem=warn"]
_SECONDS = 600

NAMES = """
import json, platform
from importlib import metadata
import densekd
for name in densekd.__all__:
    getattr(densekd, name)
assert "site-packages" in densekd.__file__, densekd.__file__
versions = {"python": platform.python_version()}
for package in ("torch", "torchvision", "numpy", "segmentation-models-pytorch", "timm", "accelerate", "transformers",
                "onnx", "onnxruntime", "tensorboard", "wandb", "av", "scipy"):
    try:
        versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(versions))
"""

INTERRUPTED = """
import signal, sys
import densekd
from densekd.runs.progress import Quiet
from densekd.training.signals import Interrupted

class Stop(Quiet):
    def step(self, taken, steps, result):
        if taken == 1:
            signal.raise_signal(signal.SIGTERM)

overrides = dict(text.split("=", 1) for text in sys.argv[1:])
import yaml
try:
    densekd.distill("demo", out="student", progress=Stop(), **{k: yaml.safe_load(v) for k, v in overrides.items()})
except Interrupted as stop:
    sys.exit(stop.exit_code)
"""

MAT = """
from pathlib import Path
from densekd.data.benchmarks.sbd import segmentation_of
from densekd.errors import DataError
try:
    segmentation_of(Path("some.mat"))
except DataError as error:
    print(f"error: {error}")
    raise SystemExit(2)
"""

VIDEO = """
import av, numpy
with av.open("film.mp4", "w") as film:
    stream = film.add_stream("mpeg4", rate=5)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    for number in range(3):
        picture = numpy.full((32, 32, 3), 60 * number, dtype=numpy.uint8)
        film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    film.mux(stream.encode())
"""
_SEGFORMER = "transformers:SegformerForSemanticSegmentation"
_OPTIONS = "student.options={hidden_sizes: [8, 8, 16, 16], depths: [1, 1, 1, 1], decoder_hidden_size: 16}"


class Cell:
    """The commands of one environment.

    Args:
        environment: where the wheel is installed.
        work: an empty folder to work in.
        said: told the name of each step before it is done.
    """

    def __init__(self, environment: Path, work: Path, said: Callable[[str], None]) -> None:
        self._python, self._densekd = (programs(environment) / name for name in ("python", "densekd"))
        self._work, self._said = work, said

    def try_all(self, extras: bool) -> dict[str, str]:
        """Everything; the versions that are installed.

        Raises:
            CommandError: of the first that did not end as it must.
        """
        versions = self._versions()
        self._commands()
        if extras:
            self._with_extras()
        else:
            self._without_extras()
        return versions

    def _versions(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self._program("import of every name", NAMES).splitlines()[-1])
        return found

    def _commands(self) -> None:
        self._expect("--help", "distill", "--help")
        self._expect("list", "channelwise", "list", "methods")
        self._expect("train", "student: teacher", "train", *TEACHER, "--out", "teacher")
        self._program("distil, interrupted after a step", INTERRUPTED, *STUDENT, code=143)
        self._expect("distil, resumed", "student: student", "distill", "student", "--resume")
        record = json.loads((self._work / "student" / "record.json").read_text(encoding="utf-8"))
        self._require("the record of the resumed run", record["status"] == "done" and record["steps"] == 2, record)
        self._expect("evaluate", "IoU", "evaluate", "student")
        self._expect("report", "", "report", "student", "--out", "page.html")
        self._require("the page", "</html>" in (self._work / "page.html").read_text(encoding="utf-8"), "no end")
        self._export("safetensors")
        self._export("hub-folder")

    def _with_extras(self) -> None:
        self._export("onnx")
        self._export("pt2")
        self._expect("track", "", "train", *TEACHER, "track.to=[tensorboard]", "--out", "tracked")
        self._require("tensorboard's files", any(self._work.glob("tracked/**/*tfevents*")), "none")
        self._expect("transformers", "", *self._transformers())
        self._program("a video", VIDEO)
        self._expect("predict a video", "", "predict", "student", "film.mp4", "--out", "film")
        self._program("scipy", "import scipy.io")

    def _without_extras(self) -> None:
        """Each thing that needs an extra says how it is installed."""
        (self._work / "film.mp4").write_bytes(b"")
        self._refused("export onnx", "densekd[export]", "export", "student", "--to", "onnx", "--out", "net.onnx")
        self._refused("track", "densekd[track]", "train", *TEACHER, "track.to=[tensorboard]", "--out", "tracked")
        self._refused("transformers", "densekd[hf]", *self._transformers())
        self._refused("predict a video", "densekd[video]", "predict", "student", "film.mp4", "--out", "film")
        said = self._program("masks of SBD without scipy", MAT, code=2)
        self._require("the command that installs scipy", "densekd[data]" in said, said)
        self._export("pt2")

    @staticmethod
    def _transformers() -> list[str]:
        model = f"student.model={_SEGFORMER}"
        return ["train", "demo-teacher", *SIZES, model, _OPTIONS, "--out", "segformer"]

    def _export(self, kind: str) -> None:
        out = "exported" if kind == "hub-folder" else f"exported.{kind}"
        size = ["--size", "32", "32"] if kind in ("onnx", "pt2") else []
        asked = ["export", "student", "--to", kind, "--images", "2", "--out", out, *size]
        self._expect(f"export {kind}", "", *asked)
        self._require(f"the exported {kind}", (self._work / out).exists(), sorted(p.name for p in self._work.iterdir()))

    def _expect(self, name: str, words: str, *arguments: str) -> str:
        self._said(name)
        said = command(self._densekd, *arguments, cwd=self._work, seconds=_SECONDS, name=name)
        self._require(f"{name}: {words!r} in what it says", words in said, said)
        self._require(f"{name}: no traceback", "Traceback" not in said, said)
        return said

    def _refused(self, name: str, words: str, *arguments: str) -> None:
        self._said(f"{name}, without the extra")
        said = command(self._densekd, *arguments, cwd=self._work, seconds=_SECONDS, code=2, name=name)
        self._require(f"{name}: {words} in what it says", "pip install" in said and words in said, said)
        self._require(f"{name}: no traceback", "Traceback" not in said, said)

    def _program(self, name: str, text: str, *arguments: str, code: int = 0) -> str:
        self._said(name)
        return command(
            self._python, "-I", "-c", text, *arguments, cwd=self._work, seconds=_SECONDS, name=name, code=code
        )

    @staticmethod
    def _require(what: str, holds: bool, found: Any) -> None:
        if not holds:
            raise CommandError(f"expected {what}", 0, str(found))
