"""SBD, the masks that were made for more of VOC's images: MATLAB files, without a void border."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densekd.data.benchmarks.layout import MissingPartError
from densekd.data.benchmarks.matlab import unpacked
from densekd.data.masks import MaskReader
from densekd.errors import DataError

_FOLDER = "benchmark_RELEASE"


class SbdReader(MaskReader):
    """Reads pictures as `MaskReader` does, and SBD's .mat files."""

    def _label(self, path: Path) -> NDArray:
        return self._from_ids(segmentation_of(path), path) if path.suffix == ".mat" else super()._label(path)


def segmentation_of(path: Path) -> NDArray:
    """The class ids in a file of SBD's `cls`: the field Segmentation of the struct GTcls, `(H, W)`, uint8.

    Raises:
        DataError: it is no such file, or scipy, which reads it, is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"{path}: needs scipy to be read: pip install 'densekd[data]'") from None
    content = unpacked(path)
    try:
        values = np.asarray(loadmat(content, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # scipy raises anything from OSError to TypeError on a damaged file
        raise DataError(f"{path}: cannot be read as a mask of SBD, GTcls.Segmentation ({error!r})") from None
    if values.ndim != 2 or values.dtype != np.uint8:
        raise DataError(f"{path}: GTcls.Segmentation is {values.dtype} {values.shape}; expected uint8 (H, W)")
    return values


def find_sbd(root: Path, given: str | None) -> Path:
    """The folder `dataset` of SBD: the one given, or beside VOC.

    Raises:
        MissingPartError: there is none.
    """
    if given is not None:
        places = [Path(given).expanduser()]
    else:
        above = root.absolute()
        places = [folder / _FOLDER for folder in (above, *list(above.parents)[:2])]
    for place in places:
        for folder in (place, place / "dataset", place / _FOLDER / "dataset"):
            if (folder / "cls").is_dir():
                return folder
    if given is not None:
        raise MissingPartError(f"{given}: no SBD (data.sbd): expected dataset/cls/ID.mat in it")
    raise MissingPartError(
        f"{root}: train_aug needs SBD's masks: SegmentationClassAug/ID.png in it, or "
        f"{_FOLDER}/dataset/cls/ID.mat in it, up to two folders above, or where data.sbd says; "
        "data.train=train does without (1,464 images)"
    )
