"""A small piece of work from end to end in one process, in whatever folder it is told: what `places.py` watches.

    python session.py FOLDER [spawn]

Makes images there, trains a teacher, distils it into a student of another library with a loading process, evaluates,
writes page, file and predictions, each by the function of the `densekd` command. Every path has FOLDER in front,
whatever its name is. Exit code 0 where each command ended with 0.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

NETWORK = """
from torch import nn


def teacher(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, num_classes, 1))
"""
NAMES = ("sky", "road", "tree")


def make_data(root: Path) -> None:
    """Images of 32x32 in three colours, and their masks."""
    import numpy as np
    from PIL import Image

    colors = np.array([[90, 140, 215], [100, 96, 100], [40, 115, 40]], dtype=np.uint8)
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            label = generator.integers(0, len(NAMES), (2, 2)).repeat(16, 0).repeat(16, 1)
            Image.fromarray(colors[label]).save(root / split / "images" / f"{number}.png")
            Image.fromarray(label.astype(np.uint8)).save(root / split / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    (root / "net.py").write_text(NETWORK, encoding="utf-8")


def commands(folder: Path) -> list[list[str]]:
    """The lines of a day's work."""
    data, teacher, student = folder / "data", folder / "runs" / "teacher", folder / "runs" / "student"
    shared = ["folder", f"data.root={data}", "data.augment.crop=[32,32]", "train.steps=2", "train.batch_size=2"]
    shared += ["runtime.device=cpu", "runtime.threads=1", "train.evaluate_every=1"]
    net = f"{data / 'net.py'}:teacher"
    small = ["student.options={encoder_name: tu-lcnet_050, encoder_depth: 3, psp_out_channels: 16}"]
    images = str(data / "val" / "images")
    return [
        ["train", *shared, "runtime.workers=0", f"student.model={net}", "student.options={}", "--out", str(teacher)],
        [
            *["distill", *shared, *small, "runtime.workers=1", f"teacher.model={net}", "teacher.options={}"],
            *[f"teacher.checkpoint={teacher}", "preflight.on_problem=warn", "--out", str(student)],
        ],
        ["evaluate", str(student)],
        ["report", str(student), "--out", str(folder / "page.html")],
        ["export", str(student), "--to", "safetensors", "--out", str(folder / "student.safetensors")],
        ["predict", str(student), images, "--out", str(folder / "predictions")],
    ]


def main(folder: Path) -> int:
    """Do all of it; the first exit code that is not 0."""
    from densekd.cli.app import call

    make_data(folder / "data")
    for line in commands(folder):
        try:
            code = call(line)
        except SystemExit as end:
            code = int(end.code or 0)
        if code != 0:
            print(f"session: densekd {line[0]} ended with exit code {code}", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    if sys.argv[2:]:
        multiprocessing.set_start_method(sys.argv[2])
    sys.exit(main(Path(sys.argv[1])))
