"""Segment images with the student of a run: class masks, and overlays with a legend."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from densekd import files
from densekd.config import Recipe
from densekd.data.find import palette_of
from densekd.data.images import IMAGE_SUFFIXES, check_image, read_image
from densekd.data.specs import ScenesDataSpec
from densekd.data.transforms import EvalTransform
from densekd.data.views import of_one_size
from densekd.errors import ArgumentError, DataError, RunError
from densekd.evaluate import autocast
from densekd.models.sizes import output_at_any_size
from densekd.pictures import indexed, legend, overlay, stacked
from densekd.runs.folder import Run
from densekd.tasks.segmentation import SegmentationTask

_LISTED = 10
# Class maps are enlarged to the picture in float32: 2**27 values are half a gigabyte.
_MOST_VALUES = 2**27

Said = Callable[[str], None]


@dataclass(frozen=True)
class Prediction:
    """What was written for one image.

    Attributes:
        image: the file that was read.
        mask: palette PNG of the image's size; the value of a pixel is its class id.
        overlay: PNG with the colours over the image and a legend below.
        height, width: of the image, after its EXIF rotation.
        shares: share of the pixels, 0 to 1, of each class that was found.
    """

    image: Path
    mask: Path
    overlay: Path
    height: int
    width: int
    shares: dict[str, float]

    def row(self) -> dict[str, str]:
        """A row of a table."""
        by_size = sorted(self.shares.items(), key=lambda item: -item[1])
        return {
            "image": str(self.image),
            "size": f"{self.width}x{self.height}",
            "classes": ", ".join(f"{name} {_percent(share)}" for name, share in by_size),
            "mask": str(self.mask),
            "overlay": str(self.overlay),
        }


def predict(
    run: Run,
    inputs: Sequence[Path],
    out: Path,
    *,
    batch_size: int = 1,
    alpha: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
    said: Said | None = None,
    force: bool = False,
) -> list[Prediction]:
    """Segment images of any size: `out/masks/NAME.png` and `out/overlays/NAME.png` for each.

    Every file is opened before anything is written. An image is brought to the recipe's size, where it has one,
    and padded to what the network takes, as in an evaluation (`densekd.models.output_at_any_size`); the class map is
    brought back to the image's size. Maps of more than 2**27 values are enlarged as far as that, and the ids from
    there on.

    Args:
        run: a run with a student; neither its data nor its teacher is needed.
        inputs: image files, and folders that are searched with their sub-folders for jpg, png and tif.
        out: the folder for the results.
        batch_size: images a forward pass, where their sizes agree.
        alpha: strength of the colours, 0 to 1.
        progress: called with (images done, images in all).
        said: called with lines that the user should see: files passed over.
        force: write into a folder that holds files already, and over those of the same names.

    Returns:
        What was written, in the order of the inputs.

    Raises:
        RunError: the run has no student yet, or `out` holds files and `force` was not given.
        DataError: no images, unreadable ones (each with its reason), or two that would get one name.
        ArgumentError: `batch_size` below 1 or `alpha` outside 0 to 1.
    """
    if batch_size < 1 or not 0 <= alpha <= 1:
        raise ArgumentError(f"expected batch_size >= 1 and alpha from 0 to 1, got {batch_size} and {alpha}")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; give another folder with --out")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise RunError(f"{out}: holds files; it is never overwritten unasked. Use --force, or --out for another folder")
    names = find_images(inputs, out, said or (lambda line: None))
    sizes = _check(list(names))
    student = _Student(run)
    done: list[Prediction] = []
    resized = student.recipe.data.augment.size
    for group in of_one_size(names, lambda path: resized or sizes[path], batch_size):
        images = [read_image(path) for path in group]
        for path, image, label in zip(group, images, student.segment(images), strict=True):
            done.append(_write(student, path, names[path], image, label, out, alpha))
            if progress is not None:
                progress(len(done), len(names))
    return done


def find_images(inputs: Sequence[Path], out: Path, said: Said) -> dict[Path, str]:
    """Image files and the name each result gets (the path inside its folder, without suffix).

    Raises:
        DataError: an input that does not exist, no images, or two images of one name.
    """
    names: dict[Path, str] = {}
    for given in inputs:
        if given.is_dir():
            names |= _in_folder(given, out, said)
        elif given.is_file():
            names[given] = given.stem
        else:
            raise DataError(f"{given}: no such file or folder")
    if not names:
        where = ", ".join(str(given) for given in inputs) or "nothing given"
        raise DataError(f"no images: {where}. Looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    kept: dict[Path, str] = {}
    seen: set[Path] = set()
    owner: dict[str, Path] = {}
    for path, name in names.items():
        if path.resolve() in seen:  # given twice, by itself and in its folder
            continue
        seen.add(path.resolve())
        kept[path] = name
        # Some file systems do not tell a from A.
        other = owner.setdefault(name.casefold(), path)
        if other != path:
            raise DataError(f"{other} and {path} would both become {name}.png; predict them into two folders")
    return kept


def _in_folder(folder: Path, out: Path, said: Said) -> dict[Path, str]:
    entries = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    entries = [path for path in entries if out.resolve() not in path.resolve().parents]
    images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES]
    if len(entries) > len(images):
        other = next(path for path in entries if path not in images)
        said(
            f"{folder}: {len(entries) - len(images)} files passed over that are no jpg, png or tif ({other.name}, ...)"
        )
    return {path: path.relative_to(folder).with_suffix("").as_posix() for path in images}


def _check(paths: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    sizes: dict[Path, tuple[int, int]] = {}
    problems = []
    for path in paths:
        try:
            sizes[path] = check_image(path)
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:_LISTED])
        raise DataError(f"{len(problems)} of {len(paths)} images cannot be used; nothing was written:{listed}{more}")
    return sizes


class _Student:
    """The run's student with all that turns an image into class ids and colours."""

    def __init__(self, run: Run) -> None:
        self.recipe: Recipe = run.recipe
        with torch.random.fork_rng(devices=[]):  # building draws weights that the run's own then replace
            network = run.student()
        best = run.record.best
        assert best is not None  # run.student() has checked it
        self.classes = tuple(best.iou)
        self.palette = palette_of(self.recipe.data, self.classes)
        data, runtime = self.recipe.data, self.recipe.runtime
        self.transform = EvalTransform(data.augment)
        ignore = data.ignore_index if not isinstance(data, ScenesDataSpec) else 255
        self.task = SegmentationTask(self.recipe.task, len(self.classes), ignore, self.classes)
        cuda = runtime.device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        # The run may have been made on a GPU; half precision has no convolutions worth the name on a CPU.
        self.precision = runtime.precision if cuda or runtime.precision != "float16" else "float32"
        self.layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
        self.network: nn.Module = network.to(device=self.device, memory_format=self.layout)  # type: ignore[call-overload]

    def segment(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Class ids `(H, W)`, int64, of images uint8 `(3, H, W)`."""
        batch = torch.stack([self.transform(image) for image in images])
        batch = batch.to(self.device).contiguous(memory_format=self.layout)
        with torch.inference_mode(), autocast(self.device, self.precision):
            logits = output_at_any_size(self.network, batch)
            return [self._ids(logits[row : row + 1], image) for row, image in enumerate(images)]

    def _ids(self, logits: Tensor, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        factor = min(1.0, (_MOST_VALUES / (logits.shape[1] * height * width)) ** 0.5)
        near = (max(1, int(height * factor)), max(1, int(width * factor)))
        ids = self.task.predict(logits, (height, width) if factor == 1 else near)
        if factor < 1:
            nearest = functional.InterpolationMode.NEAREST_EXACT
            ids = functional.resize(ids.to(torch.int32), [height, width], nearest).long()
        return ids[0].cpu()


def _write(
    student: _Student, path: Path, name: str, image: Tensor, label: Tensor, out: Path, alpha: float
) -> Prediction:
    height, width = label.shape
    counts = torch.bincount(label.flatten(), minlength=len(student.classes)).tolist()
    found = [place for place, count in enumerate(counts) if count]
    shares = {student.classes[place]: counts[place] / label.numel() for place in found}
    mask, over = out / "masks" / f"{name}.png", out / "overlays" / f"{name}.png"
    files.write_bytes(mask, _png(indexed(label, student.palette)))
    key = legend(
        list(shares),
        [student.palette[place] for place in found],
        width=width,
        notes=[_percent(share) for share in shares.values()],
        text_size=min(90, max(13, round(width / 45))),
    )
    files.write_bytes(over, _png(stacked([overlay(image, label, student.palette, alpha), key])))
    return Prediction(path, mask, over, height, width, shares)


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0005 else "<0.1%"
